"""KV cache layouts: which position each slot of a cache holds, and whether it holds it, after this step's write.

A layout is sizes and arithmetic. It owns no keys and no values, moves nothing, and does not know which mask reads it:
`on_cache` puts any mask on any layout by index substitution.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from maskmod._torch.tracing import known_true
from maskmod.algebra import Mask, MaskMod, as_mask, device_of, spell
from maskmod.algebra.lookup import check_row_scalar, check_size, check_table
from maskmod.errors import MaskShapeError, MaskValueError
from maskmod.positions import at_positions, read_cache_position, remap

__all__ = [
    "CacheLayout",
    "ChunkedCache",
    "PagedCache",
    "RingCache",
    "SlidingCache",
    "Slots",
    "StaticCache",
    "device_for",
    "on_cache",
    "positions_of",
]


class Slots(NamedTuple):
    """What a cache holds: kv_positions, int64, and valid, bool; both (kv_len,), or (B, kv_len) where rows differ.

    A slot that is not valid carries position 0, so that a table read at it stays in range.
    """

    kv_positions: Tensor
    valid: Tensor


@runtime_checkable
class CacheLayout(Protocol):
    """A map from slots to positions. Its methods are tensor functions: they trace, and nothing asks for a value.

    ``cache_position`` says where this step's q_len tokens stand, one after the other: an int, 0-d or (1,) for the
    first of them; (q_len,) for each, shared by the batch; (B, 1) or (B, q_len), the same for every row.
    """

    @property
    def kv_len(self) -> int:
        """Slots that a query may look at: static."""
        ...

    def slots(self, cache_position: int | Tensor, q_len: int, *, device: torch.device | str | None = None) -> Slots:
        """What each slot holds once this step's q_len tokens are written.

        A valid slot holds its position's key even if earlier steps wrote more tokens than were kept (drafts that were
        rejected): what such tokens may have overwritten is not valid.

        Args:
            device: where the answer lives; None takes that of ``cache_position``, else torch's default.

        Raises:
            MaskValueError: the cache has no room for q_len tokens; the message says how much is missing.
            MaskShapeError: ``cache_position`` has none of the shapes above.
        """
        ...

    def write_slots(
        self, cache_position: int | Tensor, q_len: int, *, device: torch.device | str | None = None
    ) -> Tensor:
        """The slot that each of this step's tokens goes to, int64 (q_len,) or (B, q_len); -1 where it has none.

        Python reads -1 as the last slot: send it to a slot that no query looks at, or leave it out. A position below 0
        has none in any layout; what else has none is each layout's own to say.
        """
        ...


def on_cache(mask: MaskMod, layout: CacheLayout, cache_position: int | Tensor, q_len: int) -> Mask:
    """The mask of one step: its q_len rows are the queries at ``cache_position``, its columns the slots of a cache.

    Read it at ``q_len`` and ``layout.kv_len``. The mask itself sees positions, as everywhere.

    >>> from maskmod import dense_mask, sliding_window
    >>> step = on_cache(sliding_window(3), RingCache(3), 7, 1)  # slots hold positions 6, 7, 5
    >>> dense_mask(step, 1, 1, 1, 3).tolist()
    [[[[True, True, True]]]]
    """
    mask = as_mask(mask)
    device = None if isinstance(cache_position, Tensor) else device_for(mask, None)
    kv_positions, valid = layout.slots(cache_position, q_len, device=device)
    return remap(at_positions(mask, cache_position, q_len), kv=kv_positions, valid=valid)


def device_for(mask: Mask, device: torch.device | str | None) -> torch.device | None:
    """``device``, or that of the mask's tensors; None, so that the layout decides, if it holds none."""
    return None if device is None and not list(mask.tensors()) else device_of(mask, device)


class Layout:
    """What layouts share: a repr that traces."""

    def __repr__(self) -> str:
        fields = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))  # pyright: ignore[reportArgumentType]
        return f"{type(self).__name__}({', '.join(f'{name}={spell(value)}' for name, value in fields)})"


@dataclasses.dataclass(frozen=True, repr=False)
class StaticCache(Layout):
    """Slot i holds position i: ``max_len`` slots, nothing is evicted (transformers' ``StaticCache``, gpt-fast).

    >>> StaticCache(6).slots(3, 1).valid.tolist()
    [True, True, True, True, False, False]
    """

    max_len: int

    def __post_init__(self):
        check_size(self, self.max_len, unit="slots")

    @property
    def kv_len(self) -> int:
        return self.max_len

    def slots(self, cache_position: int | Tensor, q_len: int, *, device: torch.device | str | None = None) -> Slots:
        _, last = first_and_last(cache_position, q_len, device)
        _check_room(self, cache_position, q_len, self.max_len, "max_len")
        position = torch.arange(self.max_len, device=last.device)
        return slots_of(position, position <= last)

    def write_slots(
        self, cache_position: int | Tensor, q_len: int, *, device: torch.device | str | None = None
    ) -> Tensor:
        """Slot p for position p; -1 past the end."""
        position = positions_of(cache_position, q_len, device=device)
        return torch.where(position < self.max_len, position, -1).clamp(min=-1)


@dataclasses.dataclass(frozen=True, repr=False)
class _Evicting(Layout):
    """A cache of ``window + headroom`` slots that forgets the oldest positions.

    q_len tokens push out q_len - 1 keys that the first of them still sees, hence the headroom. Valid are the positions
    after ``first - window``: those that the first query's window holds, and what came later. Whatever a rejected draft
    overwrote was older than that, because no step writes more than ``headroom`` past its first token.
    """

    window: int
    headroom: int = 0

    def __post_init__(self):
        check_size(self, self.window)
        check_size(self, self.headroom, least=0, unit="slots")

    @property
    def kv_len(self) -> int:
        return self.window + self.headroom


class SlidingCache(_Evicting):
    """Fills from slot 0; once full, shifts left so that the newest key is last (transformers' static sliding layer).

    The caller shifts, before it writes: by as much as `begins` grows from step to step; after drafts that were rejected
    it may shrink, and the contents go back.

    >>> SlidingCache(4).slots(2, 1)[0].tolist(), SlidingCache(4).slots(9, 1)[0].tolist()
    ([0, 1, 2, 0], [6, 7, 8, 9])
    """

    def slots(self, cache_position: int | Tensor, q_len: int, *, device: torch.device | str | None = None) -> Slots:
        first, last = first_and_last(cache_position, q_len, device)
        check_headroom(self, q_len)
        position = torch.arange(self.kv_len, device=last.device) + self._shift(last)
        return slots_of(position, (position <= last) & (position > first - self.window))

    def write_slots(
        self, cache_position: int | Tensor, q_len: int, *, device: torch.device | str | None = None
    ) -> Tensor:
        """After the shift, so that the newest token is last; no position of a step is without a slot."""
        position = positions_of(cache_position, q_len, device=device)
        check_headroom(self, q_len)
        return (position - self._shift(position[..., -1:])).clamp(min=-1)

    def begins(self, cache_position: int | Tensor, q_len: int, *, device: torch.device | str | None = None) -> Tensor:
        """The position of slot 0 in this step, whether it is held or not: int64 (), (1,) or (B, 1).

        >>> SlidingCache(4, headroom=1).begins(9, 1)
        tensor(5)
        """
        return self._shift(first_and_last(cache_position, q_len, device)[1])

    def _shift(self, last: Tensor) -> Tensor:
        return (last - (self.kv_len - 1)).clamp(min=0)


class RingCache(_Evicting):
    """Position p lives in slot ``p % (window + headroom)``: nothing ever moves (Mistral's rolling buffer, gpt-oss).

    >>> RingCache(4).slots(9, 1).kv_positions.tolist()
    [8, 9, 6, 7]
    """

    def slots(self, cache_position: int | Tensor, q_len: int, *, device: torch.device | str | None = None) -> Slots:
        first, last = first_and_last(cache_position, q_len, device)
        check_headroom(self, q_len)
        position = newest_in_ring(last, self.kv_len)
        return slots_of(position, (position >= 0) & (position > first - self.window))

    def write_slots(
        self, cache_position: int | Tensor, q_len: int, *, device: torch.device | str | None = None
    ) -> Tensor:
        """Position p to slot ``p % (window + headroom)``; no position of a step is without a slot."""
        position = positions_of(cache_position, q_len, device=device)
        check_headroom(self, q_len)
        return _slot_in_ring(position, self.kv_len)


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class ChunkedCache(Layout):
    """Holds the chunk of the current query: for ``causal() & chunked(chunk)`` (Llama 4).

    Position p lives in slot ``p % (chunk + headroom)``; valid are the positions from the beginning of the first
    query's chunk. Tokens that cross into the next chunk push out keys that the first of them still sees, hence the
    headroom.

    Args:
        start: position where a chunk begins, as in `chunked`: int, or a tensor of shape (), (1,) or (B,).

    >>> ChunkedCache(4).slots(5, 1)
    Slots(kv_positions=tensor([4, 5, 0, 0]), valid=tensor([ True,  True, False, False]))
    """

    chunk: int
    headroom: int = 0
    start: int | Tensor = 0

    def __post_init__(self):
        check_size(self, self.chunk)
        check_size(self, self.headroom, least=0, unit="slots")
        check_row_scalar(self, self.start)

    @property
    def kv_len(self) -> int:
        return self.chunk + self.headroom

    def slots(self, cache_position: int | Tensor, q_len: int, *, device: torch.device | str | None = None) -> Slots:
        first, last = first_and_last(cache_position, q_len, device)
        check_headroom(self, q_len)
        start = self.start
        if isinstance(start, Tensor) and start.dim() == 1 and not known_true(start.shape[0] == 1):
            _check_rows(self, first, start.shape[0], "starts")
            start = start[:, None]
        begins = first - (first - start) % self.chunk
        position = newest_in_ring(last, self.kv_len)
        return slots_of(position, (position >= 0) & (position >= begins))

    def write_slots(
        self, cache_position: int | Tensor, q_len: int, *, device: torch.device | str | None = None
    ) -> Tensor:
        """Position p to slot ``p % (chunk + headroom)``; no position of a step is without a slot."""
        position = positions_of(cache_position, q_len, device=device)
        check_headroom(self, q_len)
        return _slot_in_ring(position, self.kv_len)


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class PagedCache(Layout):
    """One pool of pages for all rows: page i of row b is the physical page ``block_table[b, i]`` (vLLM).

    Slot ``page * page_size + offset`` of the pool holds position ``i * page_size + offset`` for the rows that map it,
    nothing for the others. Rows may share pages, a common prefix say. Rewriting the block table in place, to hand out
    pages or to take them back, changes no shape.

    Args:
        block_table: int (B, max_pages): physical page numbers, -1 where no page is mapped. A page that a row names
            again, as one that pads its table with zeros may, holds what the first entry says.
        page_size: positions in a page.
        num_pages: pages in the pool, ``k_cache.shape[0]``: a table does not say how large the pool is. An entry outside
            it maps nothing.

    >>> PagedCache(torch.tensor([[2, 0]]), page_size=2, num_pages=3).slots(2, 1).kv_positions.tolist()
    [[2, 0, 0, 0, 0, 1]]
    """

    block_table: Tensor
    page_size: int
    num_pages: int

    def __post_init__(self):
        check_table(self, self.block_table, holds="page numbers")
        if self.block_table.dim() != 2:
            raise MaskShapeError(self, "a 1-d block table", "Pass page numbers of shape (B, max_pages).")
        check_size(self, self.page_size, unit="positions")
        check_size(self, self.num_pages, unit="pages")

    @property
    def kv_len(self) -> int:
        return self.num_pages * self.page_size

    @property
    def max_len(self) -> int:
        """Positions that one row can hold."""
        return self.block_table.shape[1] * self.page_size

    def slots(self, cache_position: int | Tensor, q_len: int, *, device: torch.device | str | None = None) -> Slots:
        _, last = first_and_last(cache_position, q_len, self._device(device))
        _check_room(self, cache_position, q_len, self.max_len, "columns of the block table times page_size")
        rows, pages = self.block_table.shape
        _check_rows(self, last, rows, "a block table")
        table = self.block_table.to(torch.int64)
        # One more column takes the entries that map nothing, and is cut off.
        column = torch.where((table >= 0) & (table < self.num_pages), table, self.num_pages)
        page = torch.full((rows, self.num_pages + 1), -1, dtype=torch.int64, device=last.device)
        numbers = torch.arange(pages, device=last.device).expand(rows, pages)
        page = page.scatter_reduce(1, column, numbers, "amin", include_self=False)
        page = page[:, : self.num_pages, None]
        position = page * self.page_size + torch.arange(self.page_size, device=last.device)
        position = position.reshape(rows, self.kv_len)
        return slots_of(position, (position >= 0) & (position <= last))

    def write_slots(
        self, cache_position: int | Tensor, q_len: int, *, device: torch.device | str | None = None
    ) -> Tensor:
        """A slot of the pool, (B, q_len); -1 past the table, where no page is mapped, or one outside the pool."""
        position = positions_of(cache_position, q_len, device=self._device(device))
        rows, pages = self.block_table.shape
        _check_rows(self, position, rows, "a block table")
        position = position.expand(rows, q_len)
        number = position // self.page_size
        in_range = (number >= 0) & (number < pages)
        page = self.block_table.gather(1, torch.where(in_range, number, 0)).to(torch.int64)
        mapped = in_range & (page >= 0) & (page < self.num_pages)
        return torch.where(mapped, page * self.page_size + position % self.page_size, -1)

    def _device(self, device: torch.device | str | None) -> torch.device | str:
        return self.block_table.device if device is None else device


# ------------------------------------------------------------------------------------------------------- positions


def newest_in_ring(last: Tensor, size: int) -> Tensor:
    """The greatest position up to ``last`` that falls into each slot; negative where there is none yet."""
    return last - (last - torch.arange(size, device=last.device)) % size


def _slot_in_ring(position: Tensor, size: int) -> Tensor:
    return torch.where(position < 0, -1, position % size)


def slots_of(position: Tensor, valid: Tensor) -> Slots:
    return Slots(torch.where(valid, position, 0), valid)


def first_and_last(
    cache_position: int | Tensor, q_len: int, device: torch.device | str | None
) -> tuple[Tensor, Tensor]:
    """The positions of this step's first and last token: (), (1,) or (B, 1), to be broadcast over slots."""
    position, is_first = _checked(cache_position, q_len, device)
    if is_first:
        return position, position + (q_len - 1)
    return position[..., :1], position[..., -1:]


def positions_of(cache_position: int | Tensor, q_len: int, *, device: torch.device | str | None = None) -> Tensor:
    """The position of every token of this step: (q_len,) or (B, q_len)."""
    position, is_first = _checked(cache_position, q_len, device)
    if is_first:
        return position + torch.arange(q_len, device=position.device)
    return position


def _checked(cache_position: int | Tensor, q_len: int, device: torch.device | str | None) -> tuple[Tensor, bool]:
    """The position as int64, and whether it is the first query's alone."""
    check_size("q_len", q_len, unit="queries")
    position, is_first = read_cache_position(cache_position, q_len)
    if isinstance(position, Tensor):
        return position.to(device=device, dtype=torch.int64), is_first
    check_size("cache_position", position, least=0, unit="positions before the first query")
    return torch.full((), position, dtype=torch.int64, device=device), is_first


def _check_rows(written: object, position: Tensor, rows: int, table: str) -> None:
    given = position.shape[0] if position.dim() == 2 else 1
    if known_true(given != rows) and known_true(given != 1):
        raise MaskShapeError(written, f"positions of {given} rows, {table} of {rows}", "Pass one a row.")


def check_headroom(layout: _Evicting | ChunkedCache | Any, q_len: int) -> None:
    headroom: int = layout.headroom
    # A guard on a symbolic q_len is wanted here: one graph for every length that fits, an error for the others.
    if q_len > headroom + 1:
        raise MaskValueError(
            f"{layout!r} with q_len={q_len}",
            f"writing {q_len} tokens at once pushes out {q_len - 1} keys that the first of them may still see; "
            f"headroom is {headroom}, {q_len - 1 - headroom} too little",
            f"Pass headroom={q_len - 1} or more, or write at most {headroom + 1} tokens a step.",
        )


def _check_room(layout: object, cache_position: int | Tensor, q_len: int, held: int, name: str) -> None:
    """Positions in tensors are nobody's business; then at least the tokens of one step must fit."""
    in_tensor = isinstance(cache_position, Tensor)
    needed = q_len if in_tensor else cache_position + q_len
    if needed > held:  # nothing is spelled out before: strings of symbolic ints do not trace
        how = "at once" if in_tensor else f"from position {cache_position}"
        raise MaskValueError(
            repr(layout),
            f"{needed} slots needed {how}, {held} there, {needed - held} too few",
            f"Make {name} at least {needed}, or write fewer tokens.",
        )
