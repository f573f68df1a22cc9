"""Rows to other ranks and back: one differentiable all-to-all with split sizes of its own on every rank.

Everything that crosses ranks is written with it: gathers, rings and head exchanges. It knows rows, not what they hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed._functional_collectives as funcol
from torch import Tensor
from torch.distributed import ProcessGroup

from maskmod._torch.tracing import tracing
from maskmod.distributed.checks import guarded

__all__ = ["exchange", "finish", "start"]


def exchange(rows: Tensor, sent: Sequence[int], received: Sequence[int], group: ProcessGroup) -> Tensor:
    """Send the first ``sent[0]`` rows to rank 0, the next ``sent[1]`` to rank 1, ...; the same way round what arrives.

    Gradients go the other way. Every rank must call it, with counts that fit those of the others.

    Args:
        rows: (sum(sent), ...).

    Returns:
        (sum(received), ...), by the rank it came from.
    """
    if len(sent) == 1:
        return rows
    if tracing(rows):
        return funcol.all_to_all_single_autograd(rows.contiguous(), list(received), list(sent), group)
    return _Exchange.apply(rows, tuple(sent), tuple(received), group)  # pyright: ignore[reportReturnType]


def start(rows: Tensor, sent: Sequence[int], received: Sequence[int], group: ProcessGroup) -> Tensor:
    """`exchange` without gradients that does not wait: `finish` does, and computing goes on meanwhile."""
    with guarded(group, "an exchange of keys and values"):
        return funcol.all_to_all_single(rows.contiguous(), list(received), list(sent), group)


def finish(rows: Tensor, group: ProcessGroup) -> Tensor:
    """The rows that `start` asked for."""
    with guarded(group, "an exchange of keys and values", begins=False):
        return funcol.wait_tensor(rows)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: tuple[int, ...], received: tuple[int, ...], group: ProcessGroup):
        ctx.splits = (sent, received, group)
        return finish(start(rows, sent, received, group), group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        sent, received, group = ctx.splits
        return finish(start(grads[0], received, sent, group), group), None, None, None
