"""`maskmod.compat.flex` is torch's module under another name."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention as theirs

from maskmod import causal, sliding_window
from maskmod.compat import flex as ours
from random_masks import assert_same_tables


def banded(b, h, q_idx, kv_idx):
    return (q_idx >= kv_idx) & (q_idx - kv_idx < 30)


@pytest.mark.parametrize("name", ["create_mask", "create_block_mask", "and_masks", "or_masks"])
def test_signatures(name: str) -> None:
    mine, torchs = (inspect.signature(getattr(module, name)).parameters for module in (ours, theirs))
    assert [(p.name, p.kind) for p in mine.values()] == [(p.name, p.kind) for p in torchs.values()]
    assert [p.default for p in mine.values()] == [p.default for p in torchs.values()]


@pytest.mark.parametrize("mask", [banded, causal() & sliding_window(9)], ids=["function", "mask"])
@pytest.mark.parametrize("sizes", [(None, None, 256, 256), (2, 3, 100, 300), (1, 1, 1, 400)])
@pytest.mark.parametrize("block_size", [128, (64, 32), [32, 64]])
def test_tables(mask, sizes, block_size) -> None:
    a = ours.create_block_mask(mask, *sizes, device="cpu", BLOCK_SIZE=block_size)
    b = theirs.create_block_mask(mask, *sizes, device="cpu", BLOCK_SIZE=block_size)
    assert a.mask_mod is mask
    assert_same_tables(a, b)
    B, H, q_len, kv_len = sizes
    mine = ours.create_mask(mask, B, H, q_len, kv_len, "cpu")
    assert torch.equal(mine, theirs.create_mask(mask, B, H, q_len, kv_len, "cpu"))


def test_other_arguments_are_passed_on() -> None:
    a = ours.create_block_mask(banded, 1, 1, 256, 256, "cpu", 64, separate_full_blocks=False)
    assert a.full_kv_indices is None
    a = ours.create_block_mask(banded, 1, 1, 256, 256, "cpu", 64, compute_dq_write_order=True, dq_kv_order=False)
    b = theirs.create_block_mask(banded, 1, 1, 256, 256, "cpu", 64, compute_dq_write_order=True, dq_kv_order=False)
    assert a.dq_write_order is not None
    assert b.dq_write_order is not None
    assert torch.equal(a.dq_write_order, b.dq_write_order)
    with pytest.raises(ValueError, match="dq_kv_order"):
        ours.create_block_mask(banded, 1, 1, 256, 256, "cpu", dq_kv_order=None)  # pyright: ignore


def test_compile_needs_none(monkeypatch) -> None:
    expected = theirs.create_block_mask(banded, 1, 1, 200, 128, "cpu", 64)
    monkeypatch.setattr(torch, "compile", None)
    assert_same_tables(ours.create_block_mask(banded, 1, 1, 200, 128, "cpu", 64, _compile=True), expected)


def test_ours_in_the_place_of_torchs(monkeypatch) -> None:
    expected = [
        theirs.create_block_mask(banded, 1, 1, 128, 128, "cpu", 64, separate_full_blocks=False),
        theirs.create_mask(lambda score, b, h, q, kv: torch.where(q >= kv, score, -torch.inf), 1, 1, 8, 8, "cpu"),
    ]
    for name in ("create_block_mask", "create_mask"):
        monkeypatch.setattr(theirs, name, getattr(ours, name))
    blocks = theirs.create_block_mask(banded, 1, 1, 128, 128, "cpu", 64, separate_full_blocks=False)
    assert torch.equal(blocks.kv_num_blocks, expected[0].kv_num_blocks)
    scores = theirs.create_mask(lambda score, b, h, q, kv: torch.where(q >= kv, score, -torch.inf), 1, 1, 8, 8, "cpu")
    assert torch.equal(scores, expected[1])
    assert_same_tables(
        theirs.create_block_mask(banded, 1, 1, 128, 128, "cpu", 64),
        ours.create_block_mask(banded, 1, 1, 128, 128, "cpu", 64),
    )


def test_every_name_of_torchs_module() -> None:
    assert set(theirs.__all__) <= set(ours.__all__)
    for name in theirs.__all__:
        if name not in ("create_mask", "create_block_mask"):
            assert getattr(ours, name) is getattr(theirs, name)
    assert ours._DEFAULT_SPARSE_BLOCK_SIZE == theirs._DEFAULT_SPARSE_BLOCK_SIZE
    with pytest.raises(AttributeError, match="no_such_name"):
        ours.no_such_name  # noqa: B018


def test_score_functions_are_torchs() -> None:
    def causal_score(score, b, h, q_idx, kv_idx):
        return torch.where(q_idx >= kv_idx, score, -torch.inf)

    score: Any = causal_score

    assert torch.equal(ours.create_mask(score, 1, 1, 4, 4, "cpu"), theirs.create_mask(score, 1, 1, 4, 4, "cpu"))
    with pytest.raises(AssertionError, match="mask_mod"):
        ours.create_block_mask(score, 1, 1, 4, 4, "cpu")


def test_combinators_are_torchs() -> None:
    both = ours.and_masks(banded, ours.or_masks(causal(), banded))
    assert torch.equal(ours.create_mask(both, 1, 1, 40, 40, "cpu"), theirs.create_mask(banded, 1, 1, 40, 40, "cpu"))


@pytest.mark.parametrize(("q_len", "kv_len"), [(0, 5), (5, 0), (0, 0), (0, 300)])
def test_tables_of_no_tokens(q_len: int, kv_len: int) -> None:
    want, got = (
        library.create_block_mask(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx, 1, 1, q_len, kv_len, "cpu")
        for library in (theirs, ours)
    )
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "q_num_blocks", "q_indices", "full_q_num_blocks"):
        assert torch.equal(getattr(want, name), getattr(got, name)), name
