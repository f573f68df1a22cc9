"""A mask read at given sizes, as a value: made once at each entrance, recorded at most once, checked at most once.

Facts, readers and backends take a `Reading`; nothing asks the same question of a mask twice.
"""

from __future__ import annotations

from typing import Any

import torch

from maskmod._torch.tracing import known_true, tracing
from maskmod.algebra import MaskMod, Sizes, as_mask, device_of, sizes_of
from maskmod.analyser.expression import Node, lanes_read
from maskmod.analyser.record import Unknown, record
from maskmod.analyser.settle import Analysis

__all__ = ["Reading", "read"]


class Reading:
    """A mask at sizes that were checked, on one device; what is asked of it is answered once and kept.

    Attributes:
        written: what the caller passed, unmodified. mask: the same as a `Mask`.
        sizes, device: what it was read at, and where.
        traced: whether it was read inside a trace, where no tensor's value may be looked at.
    """

    def __init__(self, written: MaskMod, sizes: Sizes, device: torch.device):
        self.written, self.mask, self.sizes, self.device = written, as_mask(written), sizes, device
        self.traced = tracing(*self.mask.tensors())
        self.why = "recorded"
        self._recorded, self._root = False, None
        self._analyses: dict[tuple, Analysis] = {}
        self.kept: dict[str, Any] = {}  # what facts found out about it, by a name of theirs

    def __repr__(self) -> str:
        return f"Reading({self.mask!r}, {tuple(self.sizes)}, {self.device})"

    @property
    def is_empty(self) -> bool:
        """Whether a size is known to be zero: there is nothing to read."""
        return any(known_true(size == 0) for size in self.sizes)

    @property
    def root(self) -> Node | None:
        """The recorded predicate, or None where the analyser does not understand it (`why` says what)."""
        if not self._recorded:  # by hand: cached_property takes a lock before Python 3.12, and a lock does not trace
            self._recorded = True
            self._root = self._record()
        return self._root

    def _record(self) -> Node | None:
        try:
            root = record(self.mask, *self.sizes, self.device, self.traced)
        except Unknown as reason:
            self.why = str(reason)
            return None
        read = lanes_read(root)
        B, H, q_len, kv_len = self.sizes
        root.tape.lengths = (B if 0 in read else 1, H if 1 in read else 1, q_len, kv_len)
        return root

    @property
    def lanes(self) -> Sizes:
        """The sizes with 1 for B, or H, where the predicate does not read that index; as they are where unknown."""
        return self.sizes if self.root is None else Sizes(*self.root.tape.lengths)

    def at(self, B: int, H: int) -> Reading:
        """The same mask read for so many rows and heads, with the recording that is there.

        Each is its own size, or 1 where the predicate does not read that index.
        """
        if self.sizes[:2] == (B, H):
            return self
        other = Reading(self.written, self.sizes._replace(B=B, H=H), self.device)
        other.why, other._recorded, other._root = self.why, self._recorded, self._root
        return other

    def analysis(self, block_size: tuple[int, int], *, looks: bool) -> Analysis:
        """What can be said in blocks of (queries, keys); `looks` allows looking at values, never in a trace."""
        key = (block_size, looks)
        if key not in self._analyses:
            self._analyses[key] = Analysis(self, block_size, looks)
        return self._analyses[key]


def read(
    mask: MaskMod, B: int | None, H: int | None, q_len: int, kv_len: int, *, device: torch.device | str | None = None
) -> Reading:
    """Read a mask: check it against the sizes (None for B or H means 1) and settle the device, once.

    >>> from maskmod import causal
    >>> reading = read(causal(), 2, 4, 8, 8)
    >>> tuple(reading.lanes)  # one mask serves every row and head
    (1, 1, 8, 8)
    """
    checked = as_mask(mask)
    return Reading(mask, sizes_of(checked, B, H, q_len, kv_len), device_of(checked, device))
