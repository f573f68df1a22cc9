"""Which keys travel where: what the analyser proves invisible to a rank is left out, on both sides alike.

A route is made of row numbers and counts. It knows nothing of heads, values or kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from maskmod._torch.groups import all_gather
from maskmod.algebra import Mask
from maskmod.blocks.classify import classify_blocks
from maskmod.distributed.checks import guarded
from maskmod.distributed.layouts import Layout, offsets
from maskmod.distributed.shard import shard

__all__ = ["Route", "counts", "full_route", "needed", "proven_route", "who_needs"]


class Route(NamedTuple):
    """One exchange as this rank sees it, its own rows apart.

    Attributes:
        give: (sum(sent),) local rows to send, by the rank they go to.
        sent, received: rows to and from each rank; 0 for itself.
        own: (n,) local rows that this rank's own queries may see.
        places: (n + sum(received),) where in `Layout.order` the rows stand: its own, then those received.
    """

    give: Tensor
    sent: tuple[int, ...]
    received: tuple[int, ...]
    own: Tensor
    places: Tensor


def needed(mask: Mask, layout: Layout, rank: int, world: int, B: int, H: int, length: int, block: int) -> Tensor:
    """Which blocks of `Layout.order` a rank's queries may see: bool (n_blocks,), from its own shard of the mask."""
    q_len = layout.lengths(world, length)[rank]
    if not (B and H and q_len and length):
        return torch.zeros(-(-length // block), dtype=torch.bool)
    own = shard(mask, layout, rank, world, length)
    classes = classify_blocks(own, B, H, q_len, length, block_size=block, exact=False)
    return ~classes.empty.flatten(0, 2).all(0).cpu()


def who_needs(mine: Tensor, group: ProcessGroup, device: torch.device) -> Tensor:
    """What every rank needs, (world, n_blocks) bool, from each rank's own (n_blocks,)."""
    if group.size() == 1 or not mine.shape[0]:
        return mine.expand(group.size(), -1)
    table = torch.empty(group.size() * mine.shape[0], dtype=torch.uint8, device=device)
    with guarded(group, "telling the other ranks which keys are needed"):
        all_gather(table, mine.to(device, torch.uint8), group=group)
    return table.view(group.size(), -1).bool().cpu()


def proven_route(
    needs: Tensor, lengths: Sequence[int], rank: int, block: int, sources: Sequence[int] | None = None
) -> Route:
    """What this rank sends and receives, by the blocks that every rank may see.

    Args:
        needs: (world, n_blocks) bool, of `who_needs`.
        sources: the one rank that each rank hears from, itself for its own rows; None is all of them.
    """
    begin = offsets(lengths)

    def rows(reader: int, holder: int) -> Tensor:
        """Local rows of the holder that the reader takes from it now."""
        first, last = begin[holder] // block, -(-begin[holder + 1] // block)
        if sources is not None and sources[reader] != holder:
            last = first
        tokens = needs[reader, first:last].repeat_interleave(block)
        return tokens[begin[holder] - first * block :][: lengths[holder]].nonzero().squeeze(1)

    others = [other for other in range(len(lengths)) if other != rank]
    give = {other: rows(other, rank) for other in others}
    take = {other: rows(rank, other) for other in others}
    own = rows(rank, rank)
    return Route(
        torch.cat([own[:0], *give.values()]),
        tuple(give[other].shape[0] if other != rank else 0 for other in range(len(lengths))),
        tuple(take[other].shape[0] if other != rank else 0 for other in range(len(lengths))),
        own,
        torch.cat([own + begin[rank], *(take[other] + begin[other] for other in others)]),
    )


def counts(needs: Tensor, lengths: Sequence[int], block: int) -> Tensor:
    """How many keys each rank (first axis) may see of each rank: (world, world) int64."""
    edges = torch.tensor(offsets(lengths))
    before = torch.nn.functional.pad(needs.long().cumsum(1) * block, (1, 0))  # whole blocks, the last one too
    place = edges // block
    inside = torch.nn.functional.pad(needs.long(), (0, 1))[:, place] * (edges - place * block)
    return (before[:, place] + inside).diff(dim=1)


def full_route(lengths: Sequence[int], rank: int, sources: Sequence[int] | None = None) -> Route:
    """Every row to every rank, or to the one that hears from it now; no value is looked at, so that it traces."""
    begin = offsets(lengths)
    world = len(lengths)
    hears = [other != rank and (sources is None or sources[other] == rank) for other in range(world)]
    told = [other != rank and (sources is None or sources[rank] == other) for other in range(world)]
    own = torch.arange(lengths[rank] if sources is None or sources[rank] == rank else 0)
    return Route(
        torch.cat([own[:0], *(torch.arange(lengths[rank]) for other in range(world) if hears[other])]),
        tuple(lengths[rank] if hears[other] else 0 for other in range(world)),
        tuple(lengths[other] if told[other] else 0 for other in range(world)),
        own,
        torch.cat([own + begin[rank], *(torch.arange(begin[o], begin[o + 1]) for o in range(world) if told[o])]),
    )
