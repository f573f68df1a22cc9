"""Which rank holds which token: layouts map a rank and a local index to a global position.

A layout knows lengths and world sizes. It knows no mask (`balance` does), no process group and no tensor but its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from maskmod._torch.tracing import known_true, tracing
from maskmod.algebra import spell
from maskmod.errors import MaskShapeError, MaskTypeError, MaskValueError

__all__ = ["Contiguous", "HeadTail", "Layout", "Ordered", "PerDocumentHeadTail", "Striped"]


class Order(NamedTuple):
    """Every token once, rank after rank: order (length,) or (B, length), and how many tokens each rank holds."""

    world: int
    length: int
    order: Tensor
    lengths: tuple[int, ...]


class Layout:
    """Who holds which token of a sequence of ``length`` tokens, over ``world`` ranks.

    Any length goes with any world: ranks may hold different numbers of tokens, some of them none. A rank's tokens are
    in ascending order of position, unless the layout says otherwise.

    A subclass writes `_order`, or `lengths` and `positions` where these need no table.
    """

    @property
    def known_length(self) -> int | None:
        """The length that the layout was made for, None where it fits any."""
        return None

    def lengths(self, world: int, length: int) -> tuple[int, ...]:
        """How many tokens each rank holds; they add up to ``length``."""
        return self._prepared(world, length).lengths

    def positions(self, rank: int, world: int, length: int) -> Tensor:
        """The global positions of a rank's tokens: int64 (local,), or (B, local) where batch rows differ.

        Raises:
            MaskValueError: no such rank, or a length that the layout was not made for.
        """
        check_rank(self, rank, world)
        prepared = self._prepared(world, length)
        start = sum(prepared.lengths[:rank])
        return prepared.order[..., start : start + prepared.lengths[rank]]

    def order(self, world: int, length: int) -> Tensor:
        """The positions of all ranks' tokens, rank after rank, as an all-gather of the shards brings them."""
        return torch.cat([self.positions(rank, world, length) for rank in range(world)], dim=-1)

    def restore(self, world: int, length: int) -> Tensor:
        """Where each token is in `order`: gathered shards indexed by it are in the sequence's own order again."""
        order = self.order(world, length)
        places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
        return torch.empty_like(order).scatter_(-1, order, places)

    def start(self, rank: int, world: int, length: int) -> int | None:
        """The first position of a rank whose tokens are consecutive whatever the length, else None."""
        return None

    def prepare(self, world: int, length: int) -> Layout:
        """Work out the table now, where the layout has one, so that a compiled graph can read it; returns itself."""
        self.lengths(world, length)
        return self

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that the layout is made of: ranks that hold other contents disagree on who holds what."""
        return ()

    def _prepared(self, world: int, length: int) -> Order:
        kept: Order | None = getattr(self, "_kept", None)
        if kept is not None and kept.world == world and not known_true(kept.length != length):
            return kept
        check_sizes(self, world, length)
        if tracing(*self.tensors()):
            raise MaskValueError(
                f"{self!r} inside a trace",
                f"no table is prepared for world={world} and this length",
                "Call layout.prepare(world, length) before the compiled function.",
            )
        order, lengths = self._order(world, length)
        self._kept = Order(world, length, order, lengths)
        return self._kept

    def _order(self, world: int, length: int) -> tuple[Tensor, tuple[int, ...]]:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Contiguous(Layout):
    """Rank 0 holds the first tokens, rank 1 the next; the first ranks hold one more where the world does not divide.

    >>> [Contiguous().positions(rank, 3, 7).tolist() for rank in range(3)]
    [[0, 1, 2], [3, 4], [5, 6]]
    """

    def lengths(self, world: int, length: int) -> tuple[int, ...]:
        check_sizes(self, world, length)
        return _shares(length, world)

    def positions(self, rank: int, world: int, length: int) -> Tensor:
        start = self.start(rank, world, length)
        return torch.arange(start, start + (length - rank + world - 1) // world)

    def start(self, rank: int, world: int, length: int) -> int:
        check_sizes(self, world, length)
        check_rank(self, rank, world)
        return length // world * rank + _least(rank, length % world)


class Striped(Layout):
    """Tokens are dealt in turn: rank r holds r, r + world, r + 2 world, ... (Striped Attention, arXiv 2311.09431).

    >>> [Striped().positions(rank, 3, 7).tolist() for rank in range(3)]
    [[0, 3, 6], [1, 4], [2, 5]]
    """

    def lengths(self, world: int, length: int) -> tuple[int, ...]:
        check_sizes(self, world, length)
        return _shares(length, world)

    def positions(self, rank: int, world: int, length: int) -> Tensor:
        check_sizes(self, world, length)
        check_rank(self, rank, world)
        return torch.arange((length - rank + world - 1) // world) * world + rank


class HeadTail(Layout):
    """Each rank holds one piece near the head and its mirror near the tail: balanced for a causal mask (torch, zigzag).

    The sequence is cut into ``2 * world`` pieces that differ by at most one token; rank r holds pieces r and
    ``2 * world - 1 - r``.

    >>> [HeadTail().positions(rank, 2, 8).tolist() for rank in range(2)]
    [[0, 1, 6, 7], [2, 3, 4, 5]]
    """

    def lengths(self, world: int, length: int) -> tuple[int, ...]:
        check_sizes(self, world, length)
        return _shares(length, world)

    def positions(self, rank: int, world: int, length: int) -> Tensor:
        check_sizes(self, world, length)
        check_rank(self, rank, world)
        base, rest = length // (2 * world), length % (2 * world)
        more = [(rest - r + world - 1) // world for r in range(world)]  # tokens beyond 2 * base: 0, 1 or 2
        head_start = rank * base + sum(m // 2 for m in more[:rank])
        tail_end = length - rank * base - sum((m + 1) // 2 for m in more[:rank])
        head_end, tail_start = head_start + base + more[rank] // 2, tail_end - base - (more[rank] + 1) // 2
        return torch.cat([torch.arange(head_start, head_end), torch.arange(tail_start, tail_end)])


class PerDocumentHeadTail(Layout):
    """Head and tail within each document: balanced for packed causal documents, however long each of them is.

    A document is a run of equal ids. Its tokens that ``2 * world`` does not divide go to the ranks in turn, one
    document after the other, so that every rank holds its share of the sequence to the token.

    Args:
        ids: integer document ids, (length,) shared by the batch, or (B, length).

    >>> layout = PerDocumentHeadTail(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 1]))
    >>> [layout.positions(rank, 2, 10).tolist() for rank in range(2)]
    [[0, 3, 4, 8, 9], [1, 2, 5, 6, 7]]
    """

    def __init__(self, ids: Tensor):
        if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.dtype == torch.bool:
            raise MaskTypeError(
                f"PerDocumentHeadTail({spell(ids)})",
                "no tensor of document ids",
                "Pass integers, (length,) or (B, length).",
            )
        if ids.dim() not in (1, 2):
            raise MaskShapeError(
                f"PerDocumentHeadTail({spell(ids)})", f"a {ids.dim()}-d tensor", "Pass (length,) or (B, length)."
            )
        self.ids = ids

    @property
    def known_length(self) -> int:
        return self.ids.shape[-1]

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.ids,)

    def lengths(self, world: int, length: int) -> tuple[int, ...]:
        check_sizes(self, world, length)
        return _shares(length, world)

    def _order(self, world: int, length: int) -> tuple[Tensor, tuple[int, ...]]:
        if self.ids.shape[-1] != length:
            raise MaskShapeError(
                f"{self!r} on length={length}",
                f"ids for {self.ids.shape[-1]} tokens",
                "Pass ids of the whole sequence.",
            )
        rows = [_per_document(row, world) for row in self.ids.reshape(-1, length)]
        return torch.stack(rows).view(self.ids.shape), _shares(length, world)

    def __repr__(self) -> str:
        return f"PerDocumentHeadTail({spell(self.ids)})"


class Ordered(Layout):
    """A layout given by its order: the first of equal shares is rank 0's, and so on; what torch's balancers make.

    Args:
        order: a permutation of the positions, (length,), (1, length) or (B, length).

    >>> Ordered(torch.tensor([0, 3, 1, 2])).positions(1, 2, 4).tolist()
    [1, 2]
    """

    def __init__(self, order: Tensor):
        if not isinstance(order, Tensor) or order.is_floating_point() or order.dim() not in (1, 2):
            raise MaskTypeError(f"Ordered({spell(order)})", "no order", "Pass integers, (length,) or (B, length).")
        self.indices = (order[0] if order.dim() == 2 and order.shape[0] == 1 else order).long()

    @property
    def known_length(self) -> int:
        return self.indices.shape[-1]

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.indices,)

    def _order(self, world: int, length: int) -> tuple[Tensor, tuple[int, ...]]:
        if self.indices.shape[-1] != length:
            raise MaskShapeError(
                f"{self!r} on length={length}", f"an order of {self.indices.shape[-1]} tokens", "Pass all of them."
            )
        return self.indices, _shares(length, world)

    def __repr__(self) -> str:
        return f"Ordered({spell(self.indices)})"


def check_rank(layout: Layout, rank: int, world: int) -> None:
    if rank < 0 or rank >= world:
        raise MaskValueError(f"{layout!r} at rank={rank}", f"world={world}", f"Pass a rank from 0 to {world - 1}.")


def check_sizes(layout: Layout, world: int, length: int) -> None:
    if world < 1 or known_true(length < 0):
        raise MaskValueError(f"{layout!r} at world={world}, length={length}", "no such size", "Pass one rank or more.")


def _least(a: int, b: int) -> int:
    """The smaller number; a symbolic one is not compared."""
    return torch.sym_min(a, b)  # pyright: ignore[reportReturnType]


def _shares(length: int, world: int) -> tuple[int, ...]:
    """As equal as can be: the first ranks hold one more where the world does not divide."""
    return tuple((length - rank + world - 1) // world for rank in range(world))


def _per_document(ids: Tensor, world: int) -> Tensor:
    """The order (length,) of one row of ids."""
    device = ids.device
    _, lengths = torch.unique_consecutive(ids, return_counts=True)
    base, rest = lengths // (2 * world), lengths % (2 * world)
    first = (rest.cumsum(0) - rest) % world  # whose turn it is at the beginning of each document
    ranks = torch.arange(world, device=device)
    turn = (ranks - first[:, None]) % world
    more = rest[:, None] // world + (turn < (rest % world)[:, None]).long()  # (documents, world): 0, 1 or 2
    heads, tails = base[:, None] + more // 2, base[:, None] + (more + 1) // 2
    sizes = torch.cat([heads, tails.flip(1)], dim=1).reshape(-1)
    owners = torch.cat([ranks, ranks.flip(0)]).repeat(lengths.shape[0])
    starts = sizes.cumsum(0) - sizes
    return ranges(*(x[torch.argsort(owners, stable=True)] for x in (starts, sizes)))


def ranges(starts: Tensor, sizes: Tensor) -> Tensor:
    """The numbers ``start, start + 1, ...`` of each range, one after the other."""
    total = int(sizes.sum())
    ahead = starts - (sizes.cumsum(0) - sizes)
    return torch.arange(total, device=starts.device) + torch.repeat_interleave(ahead, sizes, output_size=total)


def offsets(lengths: Sequence[int]) -> list[int]:
    """Where each rank's tokens begin in `Layout.order`, and the end."""
    return [0, *itertools.accumulate(lengths)]
