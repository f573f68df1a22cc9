"""What every mask of the catalog means, written apart from it: rules on plain ints, from the definition of each.

The rules use lists, sets and ranges; they share no code with the masks. Each truth builds its mask at any sizes: tables
come from the formulas that the rules use.
"""

from truths.common import SIZES, Truth
from truths.drafts import DRAFTS
from truths.packed import PACKED
from truths.positional import POSITIONAL
from truths.sparse import SPARSE
from truths.vision import VISION

__all__ = ["SIZES", "TRUTHS", "Truth"]

TRUTHS: tuple[Truth, ...] = (*POSITIONAL, *PACKED, *VISION, *SPARSE, *DRAFTS)
