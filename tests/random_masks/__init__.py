"""Random masks, from one grammar: of the vocabulary beside its meaning on ints, and of raw predicates.

Hypothesis drives it through `masks` and `shapes`, which shrink; `Case(seed)` draws from a seed, which one line repeats.
"""

from random_masks.predicates import Case, assert_same_tables
from random_masks.vocabulary import NAMES, Expression, Size, expressions, masks, shapes

__all__ = ["NAMES", "Case", "Expression", "Size", "assert_same_tables", "expressions", "masks", "shapes"]
