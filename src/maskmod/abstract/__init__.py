"""What a predicate can say about whole rectangles of indices, without looking at tokens.

The predicate, unmodified, is recorded once as an expression (`expression`). Everything in it that depends on the
query alone, or on the key alone, is computed for all indices with the user's own torch functions: no approximation
there. Only where queries meet keys does each side become its smallest and largest value per block (`grid`,
`bounds`), and comparisons are answered for whole tiles (`transfer`), after NOT has been pushed inwards (`formula`).

Why the answers are sound. `may(e)` is False for a tile only if `e` is False at each of its tokens: a comparison that
fails for the extreme values fails for all between; a disjunction is False when all its parts are; a conjunction when
one of them is, on the tokens that the others allow. Steps without a rule answer True, "it may". `must(e)` is
`not may(not e)`: one function, one argument, both answers.
"""

from __future__ import annotations

from maskmod.abstract.expression import BOTH, KV, NEITHER, Node, Q, Unknown, evaluate, lanes_read, record
from maskmod.abstract.formula import normal
from maskmod.abstract.grid import Blocks, Grid, Selection
from maskmod.abstract.transfer import may

__all__ = [
    "BOTH",
    "KV",
    "NEITHER",
    "Blocks",
    "Grid",
    "Node",
    "Q",
    "Selection",
    "Unknown",
    "evaluate",
    "lanes_read",
    "may",
    "normal",
    "record",
]
