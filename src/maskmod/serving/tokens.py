"""Where the queries and keys of a flat step stand, in buffers of fixed shapes at fixed addresses."""

from __future__ import annotations

import torch
from torch import Tensor

from maskmod._torch.tracing import known_true
from maskmod._torch.workarounds import fill_
from maskmod.algebra import Mask, spell
from maskmod.caches.flat import FlatLayout, Gathered, OnPages, Paged
from maskmod.errors import MaskShapeError, MaskTypeError
from maskmod.masks import document, key_padding
from maskmod.positions import remap

__all__ = ["OfGathered", "OfPages", "Tokens", "tokens_of"]

NOBODY = -1  # the request of an unused token
NO_KEY = -2  # of an unused key, so that the two never meet


class Tokens:
    """The queries: which request each belongs to and its position there. What keys there are is for the two below."""

    def __init__(self, max_tokens: int, max_requests: int, device: torch.device):
        self.max_tokens, self.max_requests, self.device = max_tokens, max_requests, device

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        self.starts = zeros(max_requests + 1)
        self.lengths = zeros(max_requests)
        self.which = zeros(max_tokens) + max_requests  # each token's request; max_requests where it is not used
        self.requests = zeros(max_tokens) + NOBODY  # the same, for predicates
        self.positions = zeros(max_tokens)
        self._token = torch.arange(max_tokens, device=device)
        self._names = _names(max_requests, NOBODY, device)
        self._zero = zeros(1)

    def buffers(self) -> list[Tensor]:
        return [self.starts, self.lengths, self.which, self.requests, self.positions]

    def _checked(self, query_start_loc: Tensor, seq_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Starts (max_requests + 1,) and lengths (max_requests,), whatever number of requests was passed."""
        starts = self._starts("query_start_loc", query_start_loc)
        requests = _requests(seq_lens, "seq_lens", 1)
        if known_true(requests != query_start_loc.shape[0] - 1):
            raise MaskShapeError(
                f"step_(query_start_loc={spell(query_start_loc)}, seq_lens={spell(seq_lens)})",
                "one says how many requests there are, the other says otherwise",
                "Pass query_start_loc (requests + 1,) and seq_lens (requests,).",
            )
        return starts, _longer(seq_lens.to(self.device, torch.int64), self.max_requests, 0)

    def _write_(self, starts: Tensor, lengths: Tensor) -> None:
        which = torch.searchsorted(starts[1:], self._token, right=True)  # requests that end at or before each token
        fill_(self.starts, starts)
        fill_(self.lengths, lengths)
        fill_(self.which, which)
        fill_(self.requests, self._names.index_select(0, which))
        shift = torch.cat((lengths - starts[1:], self._zero))  # position minus token, for each request
        fill_(self.positions, self._token + shift.index_select(0, which))

    def _starts(self, name: str, starts: Tensor) -> Tensor:
        """(max_requests + 1,): requests that are not there begin and end where the last one ends."""
        requests = _requests(starts, name, 1) - 1
        if known_true(requests < 0) or known_true(requests > self.max_requests):
            raise MaskShapeError(
                f"step_({name}={spell(starts)})",
                f"it describes {requests} requests, the plan holds {self.max_requests}",
                f"Pass between 1 and {self.max_requests + 1} of them, the first 0.",
            )
        starts = starts.to(self.device, torch.int64)
        return _longer(starts, self.max_requests + 1, starts[-1:])


class OfPages(Tokens):
    """Keys in pages of one pool."""

    def __init__(self, layout: Paged, max_tokens: int, max_requests: int, device: torch.device):
        super().__init__(max_tokens, max_requests, device)
        self.layout = layout
        shape = (max_requests, layout.num_pages)
        self.table = torch.full((max_requests, layout.columns), -1, dtype=torch.int32, device=device)
        self.logical = torch.full(shape, -1, dtype=torch.int64, device=device)
        self._columns = torch.arange(layout.columns, device=device).expand(max_requests, layout.columns)
        self.why = "a table of the pages that each request maps"

    def buffers(self) -> list[Tensor]:
        return [*super().buffers(), self.table, self.logical]

    def of(self, mask: Mask) -> Mask:
        """The mask over tokens and slots."""
        inner = OnPages(mask & key_padding(self.lengths), self.logical, self.layout.page_size)
        return remap(inner, b=self.requests, q=self.positions)

    def in_order(self, mask: Mask) -> Mask:
        """The mask over tokens and each token's own request's positions."""
        return remap(mask & key_padding(self.lengths), b=self.requests, q=self.positions)

    def write_(self, query_start_loc: Tensor, seq_lens: Tensor, block_table: Tensor) -> None:
        layout, tokens = self.layout, self._checked(query_start_loc, seq_lens)
        requests, columns = _requests(block_table, "block_table", 2), block_table.shape[-1]
        if known_true(requests > self.max_requests) or known_true(columns > layout.columns):
            raise MaskShapeError(
                f"step_(block_table={spell(block_table)})",
                f"the plan holds {self.max_requests} requests of {layout.columns} pages",
                "Pass (requests, pages), or make a plan that holds more.",
            )
        table = block_table.to(self.device, torch.int64)
        table = torch.nn.functional.pad(table, (0, layout.columns - columns, 0, self.max_requests - requests), value=-1)
        mapped = (table >= 0) & (table < layout.num_pages)
        # One more column takes the entries that map nothing, and is cut off.
        place = torch.where(mapped, table, layout.num_pages)
        logical = table.new_full((self.max_requests, layout.num_pages + 1), -1)
        logical = logical.scatter_reduce(1, place, self._columns, "amin", include_self=False)
        self._write_(*tokens)
        fill_(self.table, table.to(torch.int32))
        fill_(self.logical, logical[:, :-1])

    def write_slots(self) -> Tensor:
        size, rows = self.layout.page_size, self.requests.clamp(min=0)
        page = self.positions // size
        there = (self.requests >= 0) & (self.positions >= 0) & (page < self.layout.columns)
        page = self.table[rows, torch.where(there, page, 0)].to(torch.int64)
        there = there & (page >= 0) & (page < self.layout.num_pages)
        return torch.where(there, page * size + self.positions % size, -1)


class OfGathered(Tokens):
    """Keys end to end."""

    def __init__(self, layout: Gathered, max_tokens: int, max_requests: int, device: torch.device):
        super().__init__(max_tokens, max_requests, device)
        self.layout = layout
        keys = layout.max_keys
        self.key_starts = torch.zeros(max_requests + 1, dtype=torch.int64, device=device)
        self.key_requests = torch.full((keys,), NO_KEY, dtype=torch.int64, device=device)
        self.key_positions = torch.zeros(keys, dtype=torch.int64, device=device)
        self.reads_keys = True
        self._key = torch.arange(keys, device=device)
        self._key_names = _names(max_requests, NO_KEY, device)
        self.why = "a table of the request and position in each slot"

    def buffers(self) -> list[Tensor]:
        return [*super().buffers(), self.key_starts, self.key_requests, self.key_positions]

    def of(self, mask: Mask) -> Mask:
        """The mask over tokens and slots."""
        flat = remap(mask, b=self.requests, q=self.positions, kv=self.key_positions)
        return flat & document(self.requests, self.key_requests)

    def write_(self, query_start_loc: Tensor, seq_lens: Tensor, key_start_loc: Tensor | None) -> None:
        begins, lengths = self._checked(query_start_loc, seq_lens)
        if key_start_loc is None:
            starts = torch.cat((self._zero, lengths.cumsum(0)))
        else:
            starts = self._starts("key_start_loc", key_start_loc)
        self._write_(begins, lengths)
        fill_(self.key_starts, starts)
        if self.reads_keys:
            self.write_keys_()

    def write_keys_(self) -> None:
        """What lies in each slot, from the buffers; most bands do without."""
        starts = self.key_starts
        which = torch.searchsorted(starts[1:], self._key, right=True)
        shift = torch.cat((self.lengths - starts[1:], self._zero))
        positions = self._key + shift.index_select(0, which)
        names = self._key_names.index_select(0, which)
        fill_(self.key_positions, positions)
        fill_(self.key_requests, torch.where(positions < 0, NO_KEY, names))

    def write_slots(self) -> Tensor:
        rows = self.requests.clamp(min=0)
        slot = self.positions + (self.key_starts[1:] - self.lengths).index_select(0, rows)
        there = (self.requests >= 0) & (slot >= self.key_starts.index_select(0, rows)) & (slot < self.layout.max_keys)
        return torch.where(there, slot, -1)


def tokens_of(layout: FlatLayout, max_tokens: int, max_requests: int, device: torch.device) -> OfPages | OfGathered:
    if isinstance(layout, Paged):
        return OfPages(layout, max_tokens, max_requests, device)
    return OfGathered(layout, max_tokens, max_requests, device)


def _names(requests: int, nobody: int, device: torch.device) -> Tensor:
    """The number of each request, and one more entry for what belongs to none."""
    return torch.cat((torch.arange(requests, device=device), torch.full((1,), nobody, device=device)))


def _longer(values: Tensor, length: int, rest: Tensor | int) -> Tensor:
    """``values`` at the front of ``length`` entries, ``rest`` in the others."""
    missing = length - values.shape[0]
    if known_true(missing == 0):
        return values
    rest = rest.expand(missing) if isinstance(rest, Tensor) else values.new_full((missing,), rest)
    return torch.cat((values, rest))


def _requests(numbers: Tensor, name: str, rank: int) -> int:
    """The first length of an integer tensor of this rank."""
    if not isinstance(numbers, Tensor):
        raise MaskTypeError(f"step_({name}=...)", f"a {type(numbers).__name__}", "Pass an integer tensor.")
    if numbers.dtype == torch.bool or numbers.is_floating_point() or numbers.is_complex():
        raise MaskTypeError(f"step_({name}={spell(numbers)})", "it holds no integers", "Pass an integer tensor.")
    if numbers.dim() != rank:
        shape = "(requests, pages)" if rank == 2 else "(requests,) or (requests + 1,)"
        raise MaskShapeError(f"step_({name}={spell(numbers)})", f"a {numbers.dim()}-d tensor", f"Pass {shape}.")
    return numbers.shape[0]
