"""Keys and values of other ranks brought together, only those a rank's queries may see, and one local attention."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from maskmod._torch.tracing import known_true, readable
from maskmod.algebra import Mask
from maskmod.distributed.exchange import exchange
from maskmod.distributed.local import Local
from maskmod.distributed.routes import Route
from maskmod.distributed.shard import placed

__all__ = ["Gathered", "from_rows", "meeting", "to_rows"]


class Gathered(NamedTuple):
    """Attention after one exchange."""

    group: ProcessGroup
    route: Route
    take: Tensor | None  # the order in which own and received rows become columns
    local: Local

    @property
    def received(self) -> int:
        return sum(self.route.received)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        rows = to_rows(k, v)
        have = rows.index_select(0, self.route.own)
        come = exchange(rows.index_select(0, self.route.give), self.route.sent, self.route.received, self.group)
        if self.group.size() > 1:
            have = torch.cat([have, come])
        if self.take is not None:
            have = have.index_select(0, self.take)
        return self.local.attend(q, *from_rows(have, k.shape[-1]), scale)


def meeting(
    mask: Mask, q: Tensor, order: Tensor, route: Route, backend: str, *, every: bool = False
) -> tuple[Tensor | None, Local]:
    """The order in which a route's rows become columns, and the mask that meets them: by position, where one order is
    good for all batch rows, since neighbours that stay neighbours are what kernels skip by.

    Args:
        q: positions of the queries, (q_len,) or (B, q_len).
        order: `Layout.order`.
        every: that all keys of the sequence are there.
    """
    positions = order[..., route.places]
    take = None
    if positions.dim() == 1:
        take = torch.argsort(positions)
        positions = positions[take]
    return take, Local(
        placed(mask, _first(q), 0 if every and take is not None else _first(positions), q.device), backend
    )


def _first(positions: Tensor) -> int | Tensor:
    """The first of consecutive positions where these are, as far as can be seen; else the positions."""
    if positions.dim() == 1 and readable(positions) and not known_true(positions.shape[0] == 0):
        first = int(positions[0])
        if torch.equal(positions, torch.arange(first, first + positions.shape[0], device=positions.device)):
            return first
    return positions


def to_rows(k: Tensor, v: Tensor) -> Tensor:
    """Keys and values (B, Hkv, n, D), (B, Hkv, n, Dv) as rows (n, B, Hkv, D + Dv) that travel together."""
    return torch.cat([k, v], dim=-1).permute(2, 0, 1, 3)


def from_rows(rows: Tensor, D: int) -> tuple[Tensor, Tensor]:
    """The keys and values of `to_rows` again."""
    kv = rows.permute(1, 2, 0, 3)
    return kv[..., :D].contiguous(), kv[..., D:].contiguous()
