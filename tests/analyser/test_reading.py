"""A mask is read once at each entrance: its predicate called, its sizes checked, its device asked for at most once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from maskmod import (
    Mask,
    additive_bias,
    attention,
    block_mask,
    classify_blocks,
    classify_tiles,
    dense_mask,
    lower,
    select_backend,
)
from maskmod.analyser.reading import read

IDS = torch.arange(300) // 100
Q = torch.randn(2, 4, 300, 8)
COUNTS: dict[str, int] = {}


class Counted(Mask):
    """Packed causal text; it counts what is asked of it."""

    ids: Tensor

    def __call__(self, b, h, q_idx, kv_idx):
        COUNTS["calls"] += 1
        return (q_idx >= kv_idx) & (self.ids[q_idx] == self.ids[kv_idx])

    def check(self, B, H, q_len, kv_len) -> None:
        COUNTS["checks"] += 1


ENTRANCES: dict[str, Any] = {
    "dense_mask": lambda mask: dense_mask(mask, 2, 4, 300, 300),
    "additive_bias": lambda mask: additive_bias(mask, 2, 4, 300, 300, dtype=torch.float32),
    "classify_blocks": lambda mask: classify_blocks(mask, 2, 4, 300, 300),
    "classify_tiles": lambda mask: classify_tiles(mask, 2, 4, 300, 300).row_counts(),
    "block_mask": lambda mask: block_mask(mask, 2, 4, 300, 300),
    "select_backend": lambda mask: select_backend(mask, 2, 4, 300, 300),
    "lower eager": lambda mask: lower(mask, "eager", 2, 4, 300, 300),
    "lower sdpa": lambda mask: lower(mask, "sdpa", 2, 4, 300, 300),
    "lower flex": lambda mask: lower(mask, "flex", 2, 4, 300, 300),
    "attention": lambda mask: attention(Q, Q, Q, mask),
    "attention eager": lambda mask: attention(Q, Q, Q, mask, backend="eager"),
    "attention sdpa": lambda mask: attention(Q, Q, Q, mask, backend="sdpa", empty_rows="uniform"),
}


PROVES = ("select_backend", "lower sdpa", "attention", "attention sdpa")


@pytest.mark.parametrize("name", ENTRANCES)
def test_each_entrance_reads_once(name: str) -> None:
    COUNTS.update(calls=0, checks=0)
    ENTRANCES[name](Counted(IDS))
    # SDPA asks whether the mask is proven causal, or full: each question records the mask beside its candidate.
    most = 3 if name in PROVES else 1
    assert COUNTS["calls"] <= most
    assert 1 <= COUNTS["checks"] <= most


def test_a_reading_at_fewer_lanes_keeps_the_recording() -> None:
    COUNTS.update(calls=0, checks=0)
    reading = read(Counted(IDS), 2, 4, 300, 300)
    assert reading.root is not None
    one = reading.at(1, 1)
    assert one.root is reading.root
    assert tuple(one.sizes) == (1, 1, 300, 300)
    assert one.at(1, 1) is one
    assert torch.equal(
        one.analysis((100, 100), looks=True).grid()[0], reading.analysis((100, 100), looks=True).grid()[0]
    )
    assert COUNTS == {"calls": 1, "checks": 1}
