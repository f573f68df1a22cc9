"""The cost of an exact answer is told, and can be bounded."""

from __future__ import annotations

import pytest
import torch

from maskmod import causal, classify_tiles, document
from maskmod.errors import MaskValueError

N = 1024
NOISE = torch.rand(N, generator=torch.Generator().manual_seed(0)) < 0.5


def scattered(b, h, q_idx, kv_idx):
    """Nothing of a block can be said: a table is looked up by a mixture of both indices."""
    return NOISE[(q_idx * 7 + kv_idx * 13) % N] | (q_idx < 0)


def hard(b, h, q_idx, kv_idx):
    """Always True, which no interval shows."""
    return (q_idx * kv_idx) % 2 + (q_idx * kv_idx + 1) % 2 == 1


def test_what_the_analyser_knows_opens_nothing() -> None:
    ids = torch.arange(N) // 100
    for mask in (causal(), causal() & document(ids)):
        tiles = classify_tiles(mask, 1, 1, N, N)
        assert tiles.exact
        assert tiles.opened == 0


def test_what_it_does_not_know_is_counted() -> None:
    tiles = classify_tiles(hard, 1, 1, N, N)
    assert tiles.opened == N * N
    assert tiles.full.q.shape[0] == (N // 128) ** 2
    sound = classify_tiles(hard, 1, 1, N, N, exact=False)
    assert not sound.exact
    assert sound.opened == 0
    assert classify_tiles(scattered, 1, 1, N, N).opened == 0  # witnesses prove each block partial


def test_a_bound_ends_in_an_error_or_in_a_sound_answer() -> None:
    with pytest.raises(MaskValueError, match="leaves more tokens open"):
        classify_tiles(hard, 1, 1, N, N, exact=True, max_opened=N)
    tiles = classify_tiles(hard, 1, 1, N, N, max_opened=N)
    assert not tiles.exact
    assert tiles.opened == 0
    assert tiles.visible() == N * N  # counted exactly, whatever the blocks are called
    assert classify_tiles(hard, 1, 1, N, N, exact=True, max_opened=N * N).exact
    with pytest.raises(MaskValueError, match="not a number of tokens"):
        classify_tiles(hard, 1, 1, N, N, max_opened=-1)
