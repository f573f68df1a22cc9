"""Every pattern of the survey: its dense mask, its blocks, its tables; and most of them without opening a block."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask

from maskmod import block_mask, classify_blocks, classify_tiles, dense_mask
from patterns import BLOCK, PATTERNS, Pattern

NAMES = [p.name for p in PATTERNS]


@functools.cache
def dense_truth(p: Pattern) -> torch.Tensor:
    """Four nested loops over Python ints."""
    return torch.tensor(
        [
            [[[bool(p.rule(b, h, q, k)) for k in range(p.kv_len)] for q in range(p.q_len)] for h in range(p.H)]
            for b in range(p.B)
        ]
    )


def blocks_of(truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(all visible, some visible) for each block, cut short blocks never being full."""
    rows, columns = -truth.shape[2] % BLOCK, -truth.shape[3] % BLOCK
    padded = torch.nn.functional.pad(truth, (0, columns, 0, rows))
    x = padded.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    return x.all(5).all(3), x.any(5).any(3)


def sizes_of(p: Pattern) -> tuple[int, int, int, int]:
    return p.B, p.H, p.q_len, p.kv_len


@pytest.mark.parametrize("pattern", PATTERNS, ids=NAMES)
def test_dense_mask_is_the_definition(pattern: Pattern) -> None:
    assert torch.equal(dense_mask(pattern.mask, *sizes_of(pattern)), dense_truth(pattern))


@pytest.mark.parametrize("pattern", PATTERNS, ids=NAMES)
def test_blocks_are_exact(pattern: Pattern) -> None:
    truth = dense_truth(pattern)
    full, seen = blocks_of(truth)
    classes = classify_blocks(pattern.mask, *sizes_of(pattern), block_size=BLOCK)
    assert torch.equal(classes.full, full)
    assert torch.equal(classes.empty, ~seen)
    assert torch.equal(classes.partial, seen & ~full)
    tables = block_mask(pattern.mask, *sizes_of(pattern), block_size=BLOCK)
    assert torch.equal(dense_blocks(tables), seen)
    tiles = classify_tiles(pattern.mask, *sizes_of(pattern), block_size=BLOCK)
    assert tiles.visible() == int(truth.sum())
    assert torch.equal(tiles.row_counts(), truth.sum(-1))


def dense_blocks(tables: BlockMask) -> torch.Tensor:
    return tables.to_dense().bool()


@pytest.mark.parametrize("pattern", PATTERNS, ids=NAMES)
def test_blocks_are_sound_without_tokens(pattern: Pattern) -> None:
    full, seen = blocks_of(dense_truth(pattern))
    classes = classify_blocks(pattern.mask, *sizes_of(pattern), block_size=BLOCK, exact=False)
    assert not (classes.full & ~full).any()
    assert not (classes.empty & seen).any()


def test_most_patterns_need_no_block_opened() -> None:
    needy = []
    for p in PATTERNS:
        full, seen = blocks_of(dense_truth(p))
        if classify_blocks(p.mask, *sizes_of(p), block_size=BLOCK, exact=False).partial.sum() != (seen & ~full).sum():
            needy.append(p.name)
    # Row intervals that change within a block, and a table of single tokens: intervals cannot tell.
    assert needy == ["29 gappy keys", "35 shared prefix", "64 tree by pre and post order", "74 DSA"]
    assert len(needy) <= 0.1 * len(PATTERNS)
