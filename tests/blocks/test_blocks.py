"""Blocks: equal to torch's tables at any size, small in memory, and readable by every reader of a BlockMask."""

from __future__ import annotations

import resource
import subprocess
import sys
import textwrap

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, create_mask
from torch.utils import _pytree as pytree

from maskmod import (
    block_mask,
    causal,
    classify_blocks,
    classify_tiles,
    dense_mask,
    document,
    full,
    key_padding,
    per_head,
    prefix,
    shift,
    sinks,
    sliding_window,
    vmap_mask,
)
from maskmod.analyser import settle
from maskmod.blocks import classify
from maskmod.blocks.paint import paint
from maskmod.errors import MaskError, MaskShapeError, MaskTypeError, MaskValueError, TruthValueError
from random_masks import assert_same_tables

IDS = torch.arange(700) // 97
BATCHED = torch.stack([IDS, torch.arange(700) // 333])
LAYOUT = torch.rand(3, 44, 44, generator=torch.Generator().manual_seed(0)) < 0.3


def hashed(b, h, q_idx, kv_idx):
    return (q_idx * 7919 + kv_idx * 104729) % 1000 < 300


def waves(b, h, q_idx, kv_idx):
    return torch.sin(q_idx * 1.0 + kv_idx) > 0


def not_understood(b, h, q_idx, kv_idx):
    return torch.stack([q_idx, kv_idx + 40]).amax() == kv_idx + 40


MASKS = {
    "full": full(),
    "causal": causal(),
    "window": causal() & sliding_window(100),
    "sinks": causal() & (sliding_window(60) | sinks(4)),
    "documents": causal() & document(IDS),
    "documents of each row": causal() & document(BATCHED),
    "heads": per_head([causal(), sliding_window(7), full()]),
    "prefix": prefix(130) | causal(),
    "padding": causal() & key_padding(torch.tensor([100, 700])),
    "offset": shift(causal(), q_offset=torch.tensor([5, 90])),
    "layout": lambda b, h, q, k: LAYOUT[h, q // 16, k // 16] & (q >= k),
    "nothing": lambda b, h, q, k: False,
    "only batch and head": lambda b, h, q, k: (b + h) % 2 == 0,
    "hashed": hashed,
    "waves": waves,
    "not understood": not_understood,
}


def reference(mask, B, H, q_len, kv_len, block_size):
    def tensor_mask(b, h, q, k):  # torch takes no Python bool
        answer = mask(b, h, q, k)
        return torch.full((), answer) if isinstance(answer, bool) else answer

    return create_block_mask(tensor_mask, B, H, q_len, kv_len, device="cpu", BLOCK_SIZE=block_size)


@pytest.fixture(params=["grid", "tiles"])
def route(request, monkeypatch) -> str:
    """All blocks at once, or big tiles first, at any length."""
    if request.param == "tiles":
        monkeypatch.setattr(classify, "GRID_BLOCKS", 0)
    return request.param


@pytest.mark.parametrize("compact", [None, True])
@pytest.mark.parametrize("block_size", [128, (64, 32), (48, 80)])
@pytest.mark.parametrize("name", MASKS)
def test_tables_are_torchs(name: str, block_size, compact, route: str) -> None:
    for q_len, kv_len in ((512, 512), (500, 333), (1, 512)):
        ours = block_mask(MASKS[name], 2, 3, q_len, kv_len, block_size=block_size, compact=compact)
        assert ours.mask_mod is MASKS[name]
        assert_same_tables(ours, reference(MASKS[name], 2, 3, q_len, kv_len, block_size), f"{q_len} x {kv_len}")


def test_lanes_that_are_not_read_are_still_there() -> None:
    ours = block_mask(causal(), 2, 3, 256, 256)
    assert ours.kv_indices.shape == (2, 3, 2, 2)
    assert_same_tables(block_mask(causal(), None, None, 256, 256), reference(causal(), 1, 1, 256, 256, 128))


@pytest.mark.parametrize(("q_len", "kv_len"), [(0, 5), (5, 0), (0, 0)])
def test_zero_lengths(q_len: int, kv_len: int) -> None:
    for q_blocks in (True, False):
        empty = block_mask(causal(), 2, 1, q_len, kv_len, block_size=4, q_blocks=q_blocks)
        assert empty.kv_indices.shape == (2, 1, -(-q_len // 4), -(-kv_len // 4))
        assert int(empty.kv_num_blocks.sum()) == 0
    tiles = classify_tiles(causal(), 2, 1, q_len, kv_len)
    assert tiles.visible() == 0
    assert tiles.density == 0
    assert tiles.empty_rows().shape == (2, 1, q_len)
    assert tiles.empty_rows().all()
    assert dense_mask(causal(), 2, 1, q_len, kv_len).shape == (2, 1, q_len, kv_len)


def test_without_q_blocks() -> None:
    ours = block_mask(causal(), 1, 1, 512, 512, q_blocks=False)
    assert ours.q_indices is None
    assert ours.full_q_indices is None


def test_classes_are_one_of_three() -> None:
    for exact in (True, False):
        classes = classify_blocks(MASKS["sinks"], 1, 1, 500, 500, block_size=32, exact=exact)
        assert torch.equal(torch.stack(classes).sum(0).int(), torch.ones(1, 1, 16, 16, dtype=torch.int32))


# --------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("name", MASKS)
def test_answers_of_tiles(name: str) -> None:
    truth = vmap_mask(MASKS[name], 2, 3, 500, 333)
    for block_size in (64, (48, 80)):
        tiles = classify_tiles(MASKS[name], 2, 3, 500, 333, block_size=block_size)
        assert tiles.visible() == int(truth.sum())
        assert tiles.density == pytest.approx(truth.double().mean().item(), rel=1e-12)
        assert torch.equal(tiles.row_counts(), truth.sum(-1))
        assert torch.equal(tiles.empty_rows(), ~truth.any(-1))
        first = tiles.first_empty_row()
        if first is None:
            assert truth.any(-1).all()
        else:
            assert not truth[first].any()
        runs = truth.int().diff(dim=-1, prepend=torch.zeros(2, 3, 500, 1, dtype=torch.int32)).eq(1).sum(-1)
        assert torch.equal(tiles.contiguous_rows(), runs <= 1)


def test_tiles_of_a_long_sequence() -> None:
    n = 1 << 20
    tiles = classify_tiles(causal(), 1, 1, n, n)
    assert tiles.visible() == n * (n + 1) // 2
    assert tiles.first_empty_row() is None
    assert tiles.partial.q.shape[0] == n // 128


# --------------------------------------------------------------------------------------------------------- compact


@pytest.mark.parametrize("compact", [True, False])
def test_every_reader_of_a_block_mask(compact: bool) -> None:
    mask = causal() & sliding_window(100)
    ours = block_mask(mask, 1, 1, 1024, 1024, compact=compact)
    theirs = reference(mask, 1, 1, 1024, 1024, 128)
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    assert ours.to_string() == theirs.to_string()
    assert ours.sparsity() == theirs.sparsity()
    assert torch.equal(ours[:, :, 2:5].to_dense(), theirs[:, :, 2:5].to_dense())
    assert torch.equal(ours.to("cpu").to_dense(), theirs.to_dense())
    assert (ours.kv_indices.untyped_storage().nbytes() < 4 * 8 * 8) is compact
    if not compact:  # torch reads the entries past a row's count here
        cropped, wanted = causal(), reference(causal(), 1, 1, 1024, 1024, 128)._adjust(512, 300)
        cropped = block_mask(cropped, 1, 1, 1024, 1024, compact=False)._adjust(512, 300)
        assert torch.equal(cropped.kv_num_blocks, wanted.kv_num_blocks)
        assert torch.equal(cropped.kv_indices, wanted.kv_indices)
    leaves, spec = pytree.tree_flatten(ours)
    assert torch.equal(pytree.tree_unflatten(leaves, spec).to_dense(), theirs.to_dense())


def test_compact_above_64_mib_only() -> None:
    n = 128 * 4097
    small = block_mask(causal() & sliding_window(100), 1, 1, n, n, q_blocks=False)
    assert small.kv_indices.shape == (1, 1, 4097, 4097)
    assert small.kv_indices.untyped_storage().nbytes() < 1 << 17
    wide = block_mask(causal() & sliding_window(100), 1, 1, 16384, 16384, q_blocks=False)
    assert wide.kv_indices.is_contiguous()


# -------------------------------------------------------------------------------------------------------- painting


@pytest.mark.parametrize("name", [n for n in MASKS if n != "not understood"])
@pytest.mark.parametrize("sizes", [(2, 3, 500, 333), (2, 3, 1, 700), (2, 3, 64, 640), (2, 3, 20, 30)])
def test_painted_is_the_lift(name: str, sizes) -> None:
    painted = dense_mask(MASKS[name], *sizes, method="blocks")
    assert painted.dtype == torch.bool
    assert torch.equal(painted, vmap_mask(MASKS[name], *sizes))


def test_what_is_not_understood_is_lifted() -> None:
    with pytest.raises(MaskValueError, match="cannot be painted"):
        dense_mask(not_understood, 1, 1, 500, 500, method="blocks")
    assert torch.equal(dense_mask(not_understood, 1, 1, 500, 500), vmap_mask(not_understood, 1, 1, 500, 500))
    assert paint.__module__.startswith("maskmod.blocks")


# ---------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("block_size", [0, -1, (16, 0), (1, 2, 3), "128", True, 2.0])
def test_block_sizes_that_are_none(block_size) -> None:
    with pytest.raises(MaskError, match="block_size"):
        block_mask(causal(), 1, 1, 8, 8, block_size=block_size)


def test_results_that_are_no_bool() -> None:
    with pytest.raises(MaskTypeError, match="compare"):
        block_mask(lambda b, h, q, k: q - k, 1, 1, 8, 8)
    with pytest.raises(MaskShapeError, match="any"):
        block_mask(lambda b, h, q, k: torch.ones(3, dtype=torch.bool) & (q >= k), 1, 1, 8, 8)


def test_and_in_a_predicate_is_explained() -> None:
    with pytest.raises(TruthValueError, match="&"):
        block_mask(lambda b, h, q, k: q >= k and q - k < 4, 1, 1, 8, 8)


# ---------------------------------------------------------------------------------------------------------- memory


def peak_growth(code: str) -> float:
    """How far a fresh process's peak memory rises, in MiB, while `code` runs after a warm-up at a small length."""
    script = textwrap.dedent(
        """
        import resource, torch
        torch.set_num_threads(1)
        from maskmod import *
        def run(n):
            %s
        run(4096)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run(1 << 20)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
        """
    )
    done = subprocess.run([sys.executable, "-c", script % code], capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(not hasattr(resource, "RUSAGE_SELF"), reason="needs the resource module")
def test_memory_at_a_million_tokens() -> None:
    # 40 to 80 MiB when measured; the dense mask would be 1 TiB, three tables of block classes 192 MiB.
    assert peak_growth("block_mask(causal() & sliding_window(4096), 1, 1, n, n)") < 200


def test_memory_of_evaluation_is_bounded(monkeypatch) -> None:
    seen = []
    original = settle.Analysis.tokens

    def watched(self, tiles, q, kv):
        seen.append(q.shape[0] * q.shape[1] * kv.shape[1])
        return original(self, tiles, q, kv)

    monkeypatch.setattr(settle.Analysis, "tokens", watched)
    for mask in (hashed, not_understood):
        assert torch.equal(classify_blocks(mask, 1, 1, 4096, 4096).full.sum(), create_mask_full(mask, 4096))
    assert sum(seen) >= 4096 * 4096
    assert max(seen) <= settle.TOKENS_AT_ONCE
    seen.clear()
    rows = torch.arange(1024).view(-1, 1) + torch.arange(64) * 2
    assert not classify_blocks(lambda b, h, q, k: (rows[q] == k * 2 - q % 2).any(-1), 1, 1, 1024, 1024).full.any()
    assert max(seen) <= settle.TOKENS_AT_ONCE // 64


def create_mask_full(mask, n: int) -> torch.Tensor:
    truth = create_mask(mask, 1, 1, n, n, device="cpu")
    return truth.unflatten(3, (-1, 128)).unflatten(2, (-1, 128)).all(5).all(3).sum()
