"""One meaning: the lift by vmap, plain ints and torch's own readers against four nested loops."""

import pytest
import torch
from hypothesis import example, given
from torch.nn.attention.flex_attention import create_block_mask, create_mask

from cases import CASES, Case
from maskmod import causal, dense_mask, vmap_mask
from oracle import loop_table
from random_masks import Expression, Size, masks

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)

SIZES = [(2, 3, 17, 23), (1, 1, 9, 9), (3, 1, 1, 19), (2, 2, 0, 5), (1, 2, 5, 0)]


@every_case
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_vmap_says_what_the_loops_say(case: Case, size: tuple[int, int, int, int]):
    seen = vmap_mask(case.build(*size), *size)
    assert seen.dtype == torch.bool
    assert seen.shape == size
    assert seen.tolist() == loop_table(case.spec, *size)


@given(masks())
def test_vmap_says_what_the_loops_say_of_random_masks(drawn: Expression):
    assert vmap_mask(drawn.build(), *drawn.size).tolist() == loop_table(drawn.spec, *drawn.size)


@every_case
def test_plain_ints_say_what_the_loops_say(case: Case):
    size = (2, 2, 6, 9)
    mask = case.build(*size)
    assert loop_table(lambda *idx: bool(mask(*idx)), *size) == loop_table(case.spec, *size)


@given(masks())
def test_plain_ints_say_what_the_loops_say_of_random_masks(drawn: Expression):
    mask = drawn.build()
    assert loop_table(lambda *idx: bool(mask(*idx)), *drawn.size) == loop_table(drawn.spec, *drawn.size)


def test_masks_without_tensors_answer_plain_ints_with_a_plain_bool():
    for case in CASES:
        mask = case.build(2, 2, 8, 8)
        if not list(mask.tensors()):
            assert type(mask(1, 1, 3, 2)) is bool, case.name


@every_case
def test_torch_reads_the_same_object_alike(case: Case):
    B, H, n, block = 2, 2, 300, 64
    mask = case.build(B, H, n, n)
    dense = dense_mask(mask, B, H, n, n)
    assert torch.equal(dense, create_mask(mask, B, H, n, n, device="cpu"))

    blocks = create_block_mask(mask, B, H, n, n, device="cpu", BLOCK_SIZE=block)
    assert blocks.mask_mod is mask
    partial, full = _block_classes(dense, block)
    assert torch.equal(_listed(blocks.kv_num_blocks, blocks.kv_indices), partial)
    assert torch.equal(_listed(blocks.full_kv_num_blocks, blocks.full_kv_indices), full)


@given(masks())
@example(
    Expression(
        "causal() & (lambda b, h, q_idx, kv_idx: h > b)", lambda b, h, q, kv: kv <= q and h > b, Size(2, 2, 5, 7)
    )
)
def test_torch_create_mask_agrees_on_random_masks(drawn: Expression):
    B, H, q_len, kv_len = drawn.size
    mask = drawn.build()
    if q_len and kv_len:  # torch's vmap takes no empty dimension
        seen = dense_mask(mask, *drawn.size)
        assert torch.equal(seen, create_mask(mask, B, H, q_len, kv_len, device="cpu"))


def _block_classes(dense: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which blocks hold both answers, and which hold True alone; past the end of a ragged tail is hidden."""
    pad = -dense.shape[-1] % block
    padded = torch.nn.functional.pad(dense, (0, pad, 0, pad))
    tiles = padded.unfold(-2, block, block).unfold(-2, block, block).flatten(-2)
    return tiles.any(-1) & ~tiles.all(-1), tiles.all(-1)


def _listed(counts: torch.Tensor | None, indices: torch.Tensor | None) -> torch.Tensor:
    """The blocks that a table of a BlockMask lists, as booleans; entries past a row's count mean nothing."""
    assert counts is not None
    assert indices is not None
    listed = torch.zeros(indices.shape, dtype=torch.bool)
    for where in torch.ones_like(counts).nonzero().tolist():
        row = tuple(where)
        listed[row][indices[row][: counts[row]].long()] = True
    return listed


def test_a_reader_leaves_the_mask_unwrapped():
    mask = causal()
    assert create_block_mask(mask, 1, 1, 64, 64, device="cpu", BLOCK_SIZE=64).mask_mod is mask
