"""A boolean mask at a fixed address, rewritten in place: what plans of dense backends share."""

from __future__ import annotations

import torch
from torch import Tensor

from maskmod._torch.tracing import tracing
from maskmod.analyser.replay import replay_of
from maskmod.backends.protocol import Step
from maskmod.oracle import vmap_mask

__all__ = ["DenseHolder"]


class DenseHolder:
    """A boolean (B, H|1, q_len, kv_len)."""

    def __init__(self, step: Step):
        self.mask, self.sizes = step.mask, step.sizes
        self.visible = torch.zeros(step.sizes, dtype=torch.bool, device=step.device)
        self.replay = replay_of(step.mask, step.sizes, step.device)

    def buffers(self) -> list[Tensor]:
        return [self.visible]

    def lines(self) -> list[str]:
        how = "recorded once and replayed" if self.replay else "evaluated by vmap, since it holds a user's function"
        return [f"boolean {list(self.sizes)}; outside a graph the mask is {how}"]

    def read(self) -> Tensor:
        if self.replay is None or tracing(self.visible):
            return vmap_mask(self.mask, *self.sizes, device=self.visible.device)
        return self.replay.read()

    def write_(self) -> None:
        self.visible.copy_(self.read())
