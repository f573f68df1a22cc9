"""Position is substitution: ``mask(b, h, pi(q_idx), sigma(kv_idx))``, one node, the predicate intact.

Offsets, caches, paging, packing and shards are all written with `shift` and `remap`. This module does not know what a
cache is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
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
from maskmod.errors import MaskShapeError, MaskTypeError

__all__ = ["IndexMap", "Remap", "Shift", "at_positions", "read_cache_position", "remap", "shift"]

IndexMap: TypeAlias = Callable[[Index, Index], Index]
"""A function ``(b, idx) -> idx`` from rows or columns to positions."""


class Shift(Mask):
    """See `shift`."""

    mask: Mask
    q_offset: int | Tensor
    kv_offset: int | Tensor
    b_offset: int | Tensor | None = None
    h_offset: int | Tensor | None = None

    def __post_init__(self):
        for offset in self._offsets():
            check_row_scalar(self, offset)

    def _offsets(self) -> list[int | Tensor]:
        offsets = (self.b_offset, self.h_offset, self.q_offset, self.kv_offset)
        return [offset for offset in offsets if offset is not None]

    def __call__(self, b, h, q_idx, kv_idx):
        # Every offset is read at the row that the reader names; only the mask inside sees the moved one.
        row, has_row = _moved_lane(b, self.b_offset, b)
        head, has_head = _moved_lane(h, self.h_offset, b)
        visible = self.mask(row, head, _moved(q_idx, self.q_offset, b), _moved(kv_idx, self.kv_offset, b))
        for exists in (has_row, has_head):
            if exists is not None:
                visible = visible & exists
        return visible

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        for offset in self._offsets():
            check_row_count(self, offset, B)
        rows, heads = B if self.b_offset is None else None, H if self.h_offset is None else None
        self.mask.check(rows, heads, _end(q_len, self.q_offset), _end(kv_len, self.kv_offset))

    def __repr__(self) -> str:
        lanes = [(name, getattr(self, name)) for name in ("b_offset", "h_offset") if getattr(self, name) is not None]
        axes = [(name, getattr(self, name)) for name in ("q_offset", "kv_offset") if not _is_zero(getattr(self, name))]
        written = (f", {name}={spell(offset)}" for name, offset in lanes + axes)
        return f"shift({self.mask!r}{''.join(written)})"


def shift(
    mask: MaskMod,
    *,
    b_offset: int | Tensor | None = None,
    h_offset: int | Tensor | None = None,
    q_offset: int | Tensor = 0,
    kv_offset: int | Tensor = 0,
) -> Mask:
    """The mask with its indices counted from other places: row i of the result is position ``q_offset + i``, and so on.

    Decoding at step t is ``shift(mask, q_offset=t)``; a bottom-right causal mask is
    ``shift(causal(), q_offset=kv_len - q_len)`` (flash-attention; xformers' ``LowerTriangularFromBottomRightMask``).
    A microbatch of a pipeline is ``shift(mask, b_offset=first_row)``, the heads of one rank of tensor parallelism
    ``shift(mask, h_offset=first_head)``. With offsets in tensors one compiled graph, or one captured CUDA graph, serves
    every microbatch.

    Args:
        b_offset, h_offset: the batch row and the head that row 0 and head 0 stand for. What lands below 0 is hidden;
            the mask's own tables must have the rows that it lands on. None: the rows and heads are all there are, which
            is checked; 0: they are the first of more.
        q_offset, kv_offset: the position of query 0 and of key 0.

    Each is an int, or an integer tensor of shape (), (1,) or (B,), one for each row that the result is read at. A
    tensor stays dynamic: new values never recompile.

    >>> from maskmod import causal, key_padding
    >>> [kv for kv in range(6) if shift(causal(), q_offset=3)(0, 0, 0, kv)]
    [0, 1, 2, 3]
    >>> import torch
    >>> lengths = torch.tensor([4, 1, 2, 3])  # of a batch of four, of which this microbatch is the second half
    >>> [sum(shift(key_padding(lengths), b_offset=2)(b, 0, 0, kv) for kv in range(4)).item() for b in range(2)]
    [2, 3]
    """
    return Shift(as_mask(mask), q_offset, kv_offset, b_offset, h_offset)


class Remap(Mask):
    """See `remap`."""

    mask: Mask
    q: Tensor | IndexMap | None
    kv: Tensor | IndexMap | None
    valid: Tensor | None
    b: Tensor | IndexMap | None = None

    def __post_init__(self):
        for table, holds in ((self.q, "positions"), (self.kv, "positions"), (self.b, "rows")):
            if table is not None and (isinstance(table, Tensor) or not callable(table)):
                check_table(self, table, holds=holds)
        if self.valid is not None:
            check_table(self, self.valid, holds="validity", booleans=True)

    def __call__(self, b, h, q_idx, kv_idx):
        q_position, q_in_range = _position(self.q, b, q_idx)
        row, has_row = self._row(b, q_idx)
        kv_position, kv_in_range = _position(self.kv, row, kv_idx)
        visible = self.mask(row, h, q_position, kv_position)
        for in_range in (has_row, q_in_range, kv_in_range):
            if in_range is not None:
                visible = visible & in_range
        if self.valid is not None:
            visible = visible & is_set(self.valid, row, kv_idx)
        return visible

    def _row(self, b: Index, q_idx: Index):
        """``(row, exists)``: the row that a query belongs to, 0 where it belongs to none."""
        if self.b is None:
            return b, None
        row, exists = _position(self.b, b, q_idx)
        exists = row >= 0 if exists is None else exists & (row >= 0)
        for rows in self._rows_of_keys():
            exists = exists & (row < rows)
        return row * exists, exists

    def _rows_of_keys(self) -> list[int]:
        """How many rows the tables over keys have, where they have rows at all."""
        return [t.shape[0] for t in (self.kv, self.valid) if isinstance(t, Tensor) and t.dim() == 2]

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        for table in (self.q, self.b):
            if isinstance(table, Tensor):
                check_table_sizes(self, table, B, q_len, "q_len")
        rows = B
        if self.b is not None:  # rows of its own, which need not be those that it is read at
            rows = next(iter(self._rows_of_keys()), None)
        for table in (self.kv, self.valid):
            if isinstance(table, Tensor):
                check_table_sizes(self, table, rows, kv_len, "kv_len")
        self.mask.check(rows, H, q_len if self.q is None else None, kv_len if self.kv is None else None)

    def __repr__(self) -> str:
        maps = (("b", self.b), ("q", self.q), ("kv", self.kv), ("valid", self.valid))
        written = (f", {name}={getattr(m, '__qualname__', None) or spell(m)}" for name, m in maps if m is not None)
        return f"remap({self.mask!r}{''.join(written)})"


def remap(
    mask: MaskMod,
    *,
    b: Tensor | IndexMap | None = None,
    q: Tensor | IndexMap | None = None,
    kv: Tensor | IndexMap | None = None,
    valid: Tensor | None = None,
) -> Mask:
    """The mask read through index maps: row i stands for position ``q[i]``, column j for position ``kv[j]``.

    One operation for ring buffers, pages, permutations, tiles, shards and flat batches. ``valid`` is over columns, not
    positions, and is ANDed last: a slot that was never written is hidden whatever the mask says of its stale position.

    ``b`` says which batch row query i belongs to, so that the queries of many requests can stand end to end in one row:
    ``kv``, ``valid`` and the mask are read at row ``b[i]``. A query of a negative row, or of one that ``kv`` and
    ``valid`` do not have, sees nothing; the mask's own tables must have the other rows.

    Args:
        q, kv: integer tables (n,) or (B, n), or functions ``(b, idx) -> idx``; None leaves the index alone. An index
            outside a table is hidden.
        b: rows by query: an integer table (n,) or (B, n), or a function ``(b, q_idx) -> b``.
        valid: bool or integers (nonzero is valid), shape (n,) or (B, n).

    >>> import torch
    >>> from maskmod import causal, key_padding
    >>> ring = torch.tensor([4, 5, 2, 3])  # slots of a ring buffer that holds positions 2..5
    >>> [slot for slot in range(4) if remap(causal(), kv=ring)(0, 0, 4, slot)]
    [0, 2, 3]
    >>> flat = remap(key_padding(torch.tensor([2, 3])), b=torch.tensor([0, 1, 1, -1]))
    >>> [sum(flat(0, 0, i, kv) for kv in range(4)).item() for i in range(4)]
    [2, 3, 3, 0]
    """
    return Remap(as_mask(mask), q, kv, valid, b)


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
    position, is_first = read_cache_position(cache_position, q_len)
    if not is_first:
        assert isinstance(position, Tensor)
        return remap(mask, q=position)
    if isinstance(position, Tensor) and position.dim() == 2:
        position = position[:, 0]
    return shift(mask, q_offset=position)


def read_cache_position(cache_position: int | Tensor, q_len: int) -> tuple[int | Tensor, bool]:
    """``(position, is_first)``: the one reading of a cache position.

    An int or a tensor of shape (), (1,) or (B, 1) says where the first query stands, and the others follow; (q_len,) or
    (B, q_len) says it of each. Where ``q_len`` is 1 the two are the same, and ``is_first`` is True.

    Raises:
        MaskTypeError: a tensor that holds no integers.
        MaskShapeError: a tensor of any other shape.
    """
    if not isinstance(cache_position, Tensor):
        return cache_position, True
    dtype, rank = cache_position.dtype, cache_position.dim()
    if dtype == torch.bool or dtype.is_floating_point or dtype.is_complex:
        raise MaskTypeError("cache_position", f"{spell(cache_position)} holds no positions", "Pass an integer tensor.")
    if rank == 0 or (rank <= 2 and known_true(cache_position.shape[-1] == 1)):
        return cache_position, True
    if rank > 2 or known_true(cache_position.shape[-1] != q_len):
        raise MaskShapeError(
            f"cache_position={spell(cache_position)} with q_len={q_len}",
            "this shape says neither where the first query is nor where every query is",
            f"Pass an int, or a tensor of shape (), (1,), ({q_len},), (B, 1) or (B, {q_len}).",
        )
    return cache_position, False


def _position(index_map: Tensor | IndexMap | None, b: Index, idx: Index):
    """``(position, in_range)``; in_range is None where the map has no end."""
    if isinstance(index_map, Tensor):
        position, in_range = look_up(index_map, b, idx)
        return wide(position, index_map), in_range
    return (idx if index_map is None else index_map(b, idx)), None


def _moved_lane(lane: Index, offset: int | Tensor | None, b: Index):
    """``(lane, exists)`` of a batch row or a head that moves; below 0, where Python counts from the end, is none."""
    if offset is None or _is_zero(offset):
        return lane, None
    moved = lane + row_scalar(offset, b)
    if not isinstance(offset, Tensor) and known_true(offset > 0):
        return moved, None
    exists = moved >= 0
    return moved * exists, exists


def _end(length: int | None, offset: int | Tensor) -> int | None:
    return None if length is None or isinstance(offset, Tensor) else length + offset


def _moved(idx: Index, offset: int | Tensor, b: Index) -> Index:
    # An index that does not move stays the index itself: readers take slices of tables for it.
    return idx if _is_zero(offset) else idx + row_scalar(offset, b)


def _is_zero(offset: int | Tensor) -> bool:
    return not isinstance(offset, Tensor) and known_true(offset == 0)
