"""One rank's keys at a time: each step exchanges with one partner, attends, and merges by log-sum-exp.

At step i a rank hears from the rank i places before it, directly: the traffic is that of a ring, and what a rank cannot
see skips it. The backward asks for the keys again, so that no more than two ranks' keys are held at any time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from maskmod._torch.tracing import tracing
from maskmod.distributed.exchange import exchange, finish, start
from maskmod.distributed.gathered import from_rows, to_rows
from maskmod.distributed.local import Local
from maskmod.distributed.partial import merge
from maskmod.distributed.routes import Route

__all__ = ["Ring", "Step"]


class Step(NamedTuple):
    """The keys of one rank."""

    route: Route
    take: Tensor | None
    local: Local

    @property
    def rows(self) -> Tensor:
        """Local rows that go out."""
        return self.route.give

    def columns(self, have: Tensor, D: int) -> tuple[Tensor, Tensor]:
        """Own or received rows as keys and values in the mask's order."""
        return from_rows(have if self.take is None else have.index_select(0, self.take), D)


class Ring(NamedTuple):
    """Attention step by step; the first step is over the rank's own keys and exchanges nothing."""

    group: ProcessGroup
    steps: tuple[Step, ...]

    @property
    def received(self) -> int:
        return sum(sum(step.route.received) for step in self.steps)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        if tracing(q, k, v):
            return self._traced(q, k, v, scale)
        return _RingAttention.apply(q, k, v, self, scale)  # pyright: ignore[reportReturnType]

    def _traced(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        rows = to_rows(k, v)
        result = None
        for number, step in enumerate(self.steps):
            if number == 0:
                have = rows.index_select(0, step.route.own)
            else:
                have = exchange(rows.index_select(0, step.rows), step.route.sent, step.route.received, self.group)
            part = step.local.partial(q, *step.columns(have, k.shape[-1]), scale)
            result = part if result is None else merge(result, part)
        assert result is not None
        return result[0].to(q.dtype)

    def in_turn(self, rows: Tensor):
        """The rows of each step in turn; the next exchange is under way while one is looked at."""
        coming = None
        for number, step in enumerate(self.steps):
            have = rows.index_select(0, step.route.own) if number == 0 else finish(_some(coming), self.group)
            if number + 1 < len(self.steps):
                after = self.steps[number + 1]
                coming = start(rows.index_select(0, after.rows), after.route.sent, after.route.received, self.group)
            yield step, have


def _some(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


class _RingAttention(torch.autograd.Function):
    """Saves the rank's own tensors and its result; partial results are computed again, their gradients sent home."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, ring: Ring, scale: float | None) -> Tensor:
        result = None
        for step, have in ring.in_turn(to_rows(k, v)):
            part = step.local.partial(q, *step.columns(have, k.shape[-1]), scale)
            result = part if result is None else merge(result, part)
        out, lse = _some_pair(result)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.ring, ctx.scale = ring, scale
        return out.to(q.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        q, k, v, out, lse = ctx.saved_tensors
        ring, scale, D = ctx.ring, ctx.scale, k.shape[-1]
        grad = grads[0].to(out.dtype)
        rows = to_rows(k, v)
        grad_q, grad_rows = torch.zeros_like(q, dtype=out.dtype), torch.zeros_like(rows, dtype=out.dtype)
        for number, (step, have) in enumerate(ring.in_turn(rows)):
            with torch.enable_grad():
                here, come = q.detach().requires_grad_(), have.detach().requires_grad_()
                part, part_lse = step.local.partial(here, *step.columns(come, D), scale)
                # d out / d part and d out / d part_lse of the merged result, row by row.
                share = torch.where(part_lse == -torch.inf, 0.0, (part_lse - lse).exp()).detach().unsqueeze(-1)
                upper = (grad * (part.detach() - out)).sum(-1) * share.squeeze(-1)
                some = part_lse.detach() > -torch.inf
                total = (part * (grad * share)).sum() + (torch.where(some, part_lse, 0.0) * upper).sum()
                to_q, to_come = torch.autograd.grad(total, (here, come))
            grad_q += to_q
            if number == 0:
                grad_rows.index_add_(0, step.route.own, to_come.to(out.dtype))
            else:
                home = start(to_come, step.route.received, step.route.sent, ring.group)
                grad_rows.index_add_(0, step.rows, finish(home, ring.group).to(out.dtype))
        grad_k, grad_v = from_rows(grad_rows, D)
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), None, None


def _some_pair(x: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    assert x is not None
    return x
