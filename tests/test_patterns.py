"""Every pattern of the survey: sound, exact, and mostly without opening a block."""

from __future__ import annotations

import pytest
import torch
from patterns import BLOCK, PATTERNS, Pattern

from maskmod import block_mask, classify_blocks, classify_tiles, dense_mask
from random_masks import assert_same_tables

NAMES = [p.name for p in PATTERNS]


def dense_truth(p: Pattern) -> torch.Tensor:
    return torch.tensor(
        [
            [[[bool(p.rule(b, h, q, k)) for k in range(p.kv_len)] for q in range(p.q_len)] for h in range(p.H)]
            for b in range(p.B)
        ]
    )


def blocks_of(truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(all visible, some visible) for each block; lengths here are multiples of the block."""
    x = truth.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    return x.all(5).all(3), x.any(5).any(3)


@pytest.fixture(scope="module")
def truths() -> dict[str, torch.Tensor]:
    return {}


@pytest.mark.parametrize("pattern", PATTERNS, ids=NAMES)
def test_pattern(pattern: Pattern, truths: dict[str, torch.Tensor]) -> None:
    p = pattern
    truth = truths[p.name] = dense_truth(p)
    sizes = (p.B, p.H, p.q_len, p.kv_len)
    assert torch.equal(dense_mask(p.mask, *sizes), truth)
    assert classify_tiles(p.mask, *sizes, block_size=BLOCK).visible() == int(truth.sum())
