"""What a catalog says of one mask, and the names that its examples are written in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch

from maskmod import choose, masks, packing, positions
from maskmod.algebra import Mask

__all__ = ["VOCABULARY", "Entry", "in_vocabulary"]

VOCABULARY: dict[str, Callable[..., Any]] = {
    name: getattr(module, name)
    for module in (masks, positions, choose, packing)
    for name in module.__all__
    if name[0].islower()
}
"""Every constructor and combinator of masks, and the functions that make their tables, by name."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One mask of the literature.

    >>> from maskmod.masks.catalog import CATALOG
    >>> causal = next(entry for entry in CATALOG if entry.name == "causal")
    >>> causal.keys, causal.build()
    ('q + 1', causal())
    """

    number: int
    """Its place in the survey of patterns; entries that are variants of one pattern share it."""
    group: str
    name: str
    """What people call it; no two entries have the same."""
    expression: str
    """How it is written: a constructor, or an expression of one line."""
    formula: str
    """The predicate, with q and k for the positions of a query and a key."""
    keys: str
    """How many keys a query at position q sees."""
    source: str
    """The paper or the system that it comes from."""
    elsewhere: str
    """What other libraries call it, and where their numbers differ."""
    example: str
    """An expression in `VOCABULARY` that builds a small one."""
    size: tuple[int, int, int, int]
    """(B, H, q_len, kv_len) that the example is drawn at."""
    exactness: Literal["exact", "bounds"] = "exact"
    """What blocks are found without evaluating tokens, at the sizes of the tests: "exact" is every empty and every full
    one; with "bounds" some are left partial until they are opened, and none is wrong."""
    head: int = 0
    """The head that is drawn."""

    def build(self) -> Mask:
        """The mask of the example."""
        return eval(self.example, {"torch": torch, **VOCABULARY})


def in_vocabulary(name: str) -> bool:
    """Whether an expression in text may call this name."""
    return name in VOCABULARY
