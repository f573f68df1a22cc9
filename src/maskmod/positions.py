"""Position is substitution: ``mask(b, h, pi(q_idx), sigma(kv_idx))``, one node, the predicate intact.

Offsets, caches, paging, packing and shards are all written with `shift` and `remap`. This module does not know what a
cache is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from maskmod._torch.tracing import known_true
from maskmod.algebra import Index, Mask, MaskMod, as_mask, spell
from maskmod.algebra.lookup import (
    check_row_count,
    check_row_scalar,
    check_table,
    check_table_sizes,
    is_set,
    look_up,
    row_scalar,
    wide,
)
from maskmod.errors import MaskShapeError

__all__ = ["IndexMap", "Remap", "Shift", "at_positions", "remap", "shift"]

IndexMap: TypeAlias = Callable[[Index, Index], Index]
"""A function ``(b, idx) -> idx`` from rows or columns to positions."""


class Shift(Mask):
    """See `shift`."""

    mask: Mask
    q_offset: int | Tensor
    kv_offset: int | Tensor

    def __post_init__(self):
        check_row_scalar(self, self.q_offset)
        check_row_scalar(self, self.kv_offset)

    def __call__(self, b, h, q_idx, kv_idx):
        return self.mask(b, h, _moved(q_idx, self.q_offset, b), _moved(kv_idx, self.kv_offset, b))

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_row_count(self, self.q_offset, B)
        check_row_count(self, self.kv_offset, B)
        self.mask.check(B, H, _end(q_len, self.q_offset), _end(kv_len, self.kv_offset))

    def __repr__(self) -> str:
        offsets = (("q_offset", self.q_offset), ("kv_offset", self.kv_offset))
        written = (f", {name}={spell(offset)}" for name, offset in offsets if not _is_zero(offset))
        return f"shift({self.mask!r}{''.join(written)})"


def shift(mask: MaskMod, *, q_offset: int | Tensor = 0, kv_offset: int | Tensor = 0) -> Mask:
    """The mask with its rows starting at position ``q_offset`` and its columns at ``kv_offset``.

    Decoding at step t is ``shift(mask, q_offset=t)``; a bottom-right causal mask is
    ``shift(causal(), q_offset=kv_len - q_len)`` (flash-attention; xformers' ``LowerTriangularFromBottomRightMask``).

    Args:
        q_offset, kv_offset: the position of row or column 0: int, or an integer tensor of shape (), (1,) or (B,). A
            tensor stays dynamic: new values never recompile.

    >>> from maskmod import causal
    >>> [kv for kv in range(6) if shift(causal(), q_offset=3)(0, 0, 0, kv)]
    [0, 1, 2, 3]
    """
    return Shift(as_mask(mask), q_offset, kv_offset)


class Remap(Mask):
    """See `remap`."""

    mask: Mask
    q: Tensor | IndexMap | None
    kv: Tensor | IndexMap | None
    valid: Tensor | None

    def __post_init__(self):
        for table in (self.q, self.kv):
            if table is not None and (isinstance(table, Tensor) or not callable(table)):
                check_table(self, table, holds="positions")
        if self.valid is not None:
            check_table(self, self.valid, holds="validity", booleans=True)

    def __call__(self, b, h, q_idx, kv_idx):
        q_position, q_in_range = _position(self.q, b, q_idx)
        kv_position, kv_in_range = _position(self.kv, b, kv_idx)
        visible = self.mask(b, h, q_position, kv_position)
        for in_range in (q_in_range, kv_in_range):
            if in_range is not None:
                visible = visible & in_range
        if self.valid is not None:
            visible = visible & is_set(self.valid, b, kv_idx)
        return visible

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        if isinstance(self.q, Tensor):
            check_table_sizes(self, self.q, B, q_len, "q_len")
        if isinstance(self.kv, Tensor):
            check_table_sizes(self, self.kv, B, kv_len, "kv_len")
        if self.valid is not None:
            check_table_sizes(self, self.valid, B, kv_len, "kv_len")
        self.mask.check(B, H, q_len if self.q is None else None, kv_len if self.kv is None else None)

    def __repr__(self) -> str:
        maps = (("q", self.q), ("kv", self.kv), ("valid", self.valid))
        written = (f", {name}={getattr(m, '__qualname__', None) or spell(m)}" for name, m in maps if m is not None)
        return f"remap({self.mask!r}{''.join(written)})"


def remap(
    mask: MaskMod,
    *,
    q: Tensor | IndexMap | None = None,
    kv: Tensor | IndexMap | None = None,
    valid: Tensor | None = None,
) -> Mask:
    """The mask read through index maps: row i stands for position ``q[i]``, column j for position ``kv[j]``.

    One operation for ring buffers, pages, permutations, tiles and shards. ``valid`` is over columns, not positions,
    and is ANDed last: a slot that was never written is hidden whatever the mask says of its stale position.

    Args:
        q, kv: integer tables (n,) or (B, n), or functions ``(b, idx) -> idx``; None leaves the index alone. An index
            outside a table is hidden.
        valid: bool or integers (nonzero is valid), shape (n,) or (B, n).

    >>> import torch
    >>> from maskmod import causal
    >>> ring = torch.tensor([4, 5, 2, 3])  # slots of a ring buffer that holds positions 2..5
    >>> [slot for slot in range(4) if remap(causal(), kv=ring)(0, 0, 4, slot)]
    [0, 2, 3]
    """
    return Remap(as_mask(mask), q, kv, valid)


def at_positions(mask: MaskMod, cache_position: int | Tensor, q_len: int) -> Mask:
    """The mask whose q_len rows are the queries at ``cache_position``: this step's part of a longer sequence.

    Args:
        cache_position: int, 0-d or (1,): the first query, the others follow it; (q_len,): every query, shared by the
            batch; (B, 1): the first query of each row; (B, q_len): every query of each row.

    Raises:
        MaskShapeError: a tensor of any other shape.

    >>> import torch
    >>> from maskmod import causal
    >>> step = at_positions(causal(), torch.tensor([7]), q_len=2)
    >>> step(0, 0, 1, 8), step(0, 0, 1, 9)
    (tensor(True), tensor(False))
    """
    mask = as_mask(mask)
    if not isinstance(cache_position, Tensor) or cache_position.dim() == 0:
        return shift(mask, q_offset=cache_position)
    rank, last = cache_position.dim(), cache_position.shape[-1]
    if rank == 1 and known_true(last == 1):
        return shift(mask, q_offset=cache_position)
    if rank == 2 and known_true(last == 1):
        return shift(mask, q_offset=cache_position[:, 0])
    if rank > 2 or known_true(last != q_len):
        raise MaskShapeError(
            f"cache_position={spell(cache_position)} with q_len={q_len}",
            "this shape says neither where the first query is nor where every query is",
            f"Pass an int, or a tensor of shape (), (1,), ({q_len},), (B, 1) or (B, {q_len}).",
        )
    return remap(mask, q=cache_position)


def _position(index_map: Tensor | IndexMap | None, b: Index, idx: Index):
    """``(position, in_range)``; in_range is None where the map has no end."""
    if isinstance(index_map, Tensor):
        position, in_range = look_up(index_map, b, idx)
        return wide(position, index_map), in_range
    return (idx if index_map is None else index_map(b, idx)), None


def _end(length: int | None, offset: int | Tensor) -> int | None:
    return None if length is None or isinstance(offset, Tensor) else length + offset


def _moved(idx: Index, offset: int | Tensor, b: Index) -> Index:
    # An index that does not move stays the index itself: readers take slices of tables for it.
    return idx if _is_zero(offset) else idx + row_scalar(offset, b)


def _is_zero(offset: int | Tensor) -> bool:
    return not isinstance(offset, Tensor) and known_true(offset == 0)
