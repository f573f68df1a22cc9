"""A prefix that is kept for good, and a ring behind it."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from maskmod.algebra.lookup import check_size
from maskmod.caches.layouts import Layout, Slots, check_headroom, first_and_last, newest_in_ring, positions_of, slots_of

__all__ = ["PrefixRingCache"]


@dataclasses.dataclass(frozen=True, repr=False)
class PrefixRingCache(Layout):
    """The first ``prefix`` positions are kept; later ones share a ring of ``window + headroom`` slots behind them.

    For ``causal() & (sliding_window(window) | sinks(n))`` with ``n <= prefix``: every token sees the prompt and its own
    window (transformers' layers of a prefill and a ring; StreamingLLM). Below ``prefix`` slot p holds position p; from
    there on position p lives in slot ``prefix + (p - prefix) % (window + headroom)``. Rows whose prompts are shorter
    keep some of their answer as well, which is harmless: the mask says what is seen.

    Args:
        headroom: tokens past the first that a step may write, as in `RingCache`; for chunks of the prompt too.

    >>> PrefixRingCache(2, 3).slots(9, 1)
    Slots(kv_positions=tensor([0, 1, 8, 9, 7]), valid=tensor([True, True, True, True, True]))
    """

    prefix: int
    window: int
    headroom: int = 0

    def __post_init__(self):
        check_size(self, self.prefix, least=0)
        check_size(self, self.window)
        check_size(self, self.headroom, least=0, unit="slots")

    @property
    def kv_len(self) -> int:
        return self.prefix + self._ring

    @property
    def _ring(self) -> int:
        return self.window + self.headroom

    def slots(self, cache_position: int | Tensor, q_len: int, *, device: torch.device | str | None = None) -> Slots:
        first, last = first_and_last(cache_position, q_len, device)
        check_headroom(self, q_len)
        kept = torch.arange(self.prefix, device=last.device)
        kept = kept.expand(*last.shape[:-1], self.prefix) if last.dim() else kept
        behind = newest_in_ring(last - self.prefix, self._ring)
        position = torch.cat((kept, behind + self.prefix), dim=-1)
        in_ring = torch.arange(self.kv_len, device=last.device) >= self.prefix
        fresh = (position >= self.prefix) & (position > first - self.window)
        return slots_of(position, (position <= last) & (fresh | ~in_ring))

    def write_slots(
        self, cache_position: int | Tensor, q_len: int, *, device: torch.device | str | None = None
    ) -> Tensor:
        """Below ``prefix`` slot p, then the ring's; no position of a step is without a slot."""
        position = positions_of(cache_position, q_len, device=device)
        check_headroom(self, q_len)
        in_ring = self.prefix + (position - self.prefix) % self._ring
        return torch.where(position < self.prefix, position, in_ring).clamp(min=-1)
