"""Layouts: every token on one rank, whatever the length and the world; restore undoes them; torch's own agree."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskmod import causal, dense_mask, document, full, sliding_window, vmap_mask
from maskmod.distributed import (
    Balanced,
    Contiguous,
    HeadTail,
    Ordered,
    PerDocumentHeadTail,
    Striped,
    load,
    shard,
)
from maskmod.errors import MaskShapeError, MaskTypeError, MaskValueError
from sharded import LAYOUTS, LENGTH, MASKS, B, H, rows_of_ids


def documents(lengths: list[int]) -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


@given(st.integers(1, 9), st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_every_token_is_on_one_rank(world, lengths):
    ids = documents(lengths)
    length, mask = len(ids), causal() & document(documents(lengths))
    layouts = [Contiguous(), Striped(), HeadTail(), PerDocumentHeadTail(ids), Ordered(torch.randperm(length))]
    layouts += [Balanced(mask, block=4), Balanced(mask, block=3, locality=0), Balanced(mask, block=4, even=False)]
    for layout in layouts:
        parts = [layout.positions(rank, world, length) for rank in range(world)]
        assert [len(part) for part in parts] == list(layout.lengths(world, length))
        assert sorted(torch.cat(parts).tolist()) == list(range(length))
        assert torch.equal(torch.cat(parts), layout.order(world, length))
        assert torch.equal(layout.order(world, length)[layout.restore(world, length)], torch.arange(length))
        if not isinstance(layout, Ordered):
            assert all(part.tolist() == sorted(part.tolist()) for part in parts)
        if not (isinstance(layout, Balanced) and not layout.even):
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_no_tokens_at_all():
    for layout in (Contiguous(), Striped(), HeadTail(), Balanced(full())):
        assert [layout.positions(rank, 3, 0).shape[0] for rank in range(3)] == [0, 0, 0]


def test_head_tail_is_per_document_head_tail_of_one_document():
    for world in range(1, 9):
        for length in range(1, 40):
            one = PerDocumentHeadTail(torch.zeros(length).long())
            assert torch.equal(HeadTail().order(world, length), one.order(world, length))


def test_batch_rows_with_documents_of_their_own():
    layout = PerDocumentHeadTail(rows_of_ids())
    for rank in range(3):
        part = layout.positions(rank, 3, LENGTH)
        for row, ids in enumerate(rows_of_ids()):
            assert torch.equal(part[row], PerDocumentHeadTail(ids).positions(rank, 3, LENGTH))
    order, restore = layout.order(3, LENGTH), layout.restore(3, LENGTH)
    assert torch.equal(order.gather(1, restore), torch.arange(LENGTH).expand(B, -1))


def test_one_rank_holds_everything():
    for layout in (Contiguous(), Striped(), HeadTail(), Balanced(causal()), PerDocumentHeadTail(torch.zeros(9).long())):
        assert torch.equal(layout.positions(0, 1, 9), torch.arange(9))


# ------------------------------------------------------------------------------------------------------------ balance


def heaviest_over_mean(layout, mask, world: int, length: int) -> float:
    work = vmap_mask(mask, 1, 1, length, length).sum((0, 1, 3)).double()
    loads = [float(work[layout.positions(rank, world, length)].sum()) for rank in range(world)]
    return max(loads) * world / sum(loads)


def allowed(mask, world: int, length: int) -> float:
    """1.003, or what one query weighs: nobody can deal less than a token."""
    work = vmap_mask(mask, 1, 1, length, length).sum((0, 1, 3)).double()
    return max(1.003, 1 + float(work.max()) * world / float(work.sum()))


@pytest.mark.parametrize("world", [2, 3, 8])
@pytest.mark.parametrize("length", [1024, 1000, 1531])
def test_balanced_to_a_few_thousandths_on_any_mask(world, length):
    rng = random.Random(length)
    lengths = [rng.randint(1, 400) for _ in range(20)]
    ids = documents(lengths)[:length]
    masks = {
        "causal": causal(),
        "full": full(),
        "window": sliding_window(100),
        "packed": causal() & document(ids),
        "documents": document(ids),
        "few heavy rows": lambda b, h, q_idx, kv_idx: (q_idx < 40) | (kv_idx == q_idx),
        "heads": lambda b, h, q_idx, kv_idx: q_idx // 10 % 3 == 0,
    }
    for name, mask in masks.items():
        for even in (True, False):
            layout = Balanced(mask, block=16, even=even)
            assert heaviest_over_mean(layout, mask, world, length) <= allowed(mask, world, length), (name, even)


def test_several_weighted_masks_are_balanced_by_their_sum():
    masks, weights = [causal(), sliding_window(16)], [1, 5]
    layout = Balanced(masks, weights, block=16)
    works = [vmap_mask(mask, 1, 1, 512, 512).sum((0, 1, 3)).double() for mask in masks]
    work = works[0] * weights[0] + works[1] * weights[1]
    loads = [float(work[layout.positions(rank, 4, 512)].sum()) for rank in range(4)]
    assert max(loads) * 4 / sum(loads) <= 1.004


def test_work_of_all_heads_and_rows_counts():
    mask = MASKS["per head"]()
    layout = Balanced(mask, block=1, H=4)
    work = vmap_mask(mask, 1, 4, LENGTH, LENGTH).sum((0, 1, 3)).double()
    loads = [float(work[layout.positions(rank, 2, LENGTH)].sum()) for rank in range(2)]
    assert max(loads) * 2 / sum(loads) <= 1.003


def test_locality_keeps_documents_together():
    mask = causal() & document(documents([96, 32, 160, 64, 128, 224, 320, 96, 416, 512]))
    fetched = [
        sum(load(mask, Balanced(mask, block=16, locality=w), 4, block=16, length=2048).keys or ()) for w in (0, 256)
    ]
    assert fetched[1] < fetched[0] / 2


def test_blocks_stay_whole_but_for_a_few():
    mask = causal() & document(documents([300, 500, 1248]))
    order = Balanced(mask, block=32).order(4, 2048)
    breaks = (order[1:] != order[:-1] + 1).nonzero().squeeze(1) + 1
    inside = [int(place) for place in breaks if order[place] % 32]
    assert len(inside) <= 2 * 4


# -------------------------------------------------------------------------------------------------------------- shard


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_shard_is_rows_and_columns_of_the_whole(mask, layout):
    mask, layout, world = MASKS[mask](), LAYOUTS[layout](), 3
    whole = vmap_mask(mask, B, H, LENGTH, LENGTH)
    order = layout.order(world, LENGTH).expand(B, -1)
    for rank in range(world):
        mine = layout.positions(rank, world, LENGTH).expand(B, -1)
        rows = whole.gather(2, mine[:, None, :, None].expand(-1, H, -1, LENGTH))
        for keys in ("gathered", "global", 1):
            columns = order if keys == "gathered" else torch.arange(LENGTH).expand(B, -1)
            columns = layout.positions(1, world, LENGTH).expand(B, -1) if keys == 1 else columns
            want = rows.gather(3, columns[:, None, None, :].expand(-1, H, mine.shape[1], -1))
            have = shard(mask, layout, rank, world, LENGTH, keys=keys)
            assert torch.equal(dense_mask(have, B, H, mine.shape[1], columns.shape[1]), want), (rank, keys)


def test_a_contiguous_shard_is_a_shift():
    assert repr(shard(causal(), Contiguous(), 1, 2, 8)) == "shift(causal(), q_offset=4)"
    assert repr(shard(causal(), Contiguous(), 1, 2, 8, keys=1)) == "shift(causal(), q_offset=4, kv_offset=4)"
    assert shard(causal(), Contiguous(), 0, 2, 8) == causal()


# --------------------------------------------------------------------------------------------------------------- load


@pytest.mark.parametrize("layout", LAYOUTS)
def test_load_counts_what_a_dense_mask_shows(layout):
    mask, layout, world = MASKS["per head"](), LAYOUTS[layout](), 3
    found = load(mask, layout, world, B, H, LENGTH, block=4, kv_heads=2, head_dim=8, itemsize=4)
    for rank in range(world):
        mine = layout.positions(rank, world, LENGTH)
        dense = dense_mask(shard(mask, layout, rank, world, LENGTH, keys="global"), B, H, mine.shape[-1], LENGTH)
        assert found.tokens[rank] == mine.shape[-1]
        assert found.area[rank] == int(dense.sum())
        padded = torch.nn.functional.pad(dense, (0, -LENGTH % 4, 0, -dense.shape[2] % 4))
        blocks = padded.view(B, H, padded.shape[2] // 4, 4, -1, 4).any(5).any(3)
        assert found.blocks is not None
        assert found.blocks[rank] == int(blocks.sum())
    assert found.imbalance == max(found.area) * world / sum(found.area)
    assert found.bytes is not None
    assert all(some <= every for some, every in zip(found.bytes, found.gathered, strict=True))
    assert found.gathered[0] == (LENGTH - found.tokens[0]) * 2 * B * 8 * 2 * 4
    assert '"imbalance": ' in found.to_json()
    assert str(found).count("\n") == world + 1


def test_a_window_fetches_no_more_than_its_neighbours():
    found = load(sliding_window(33), Contiguous(), 8, length=1024, block=16)
    assert found.keys == (0, *(32,) * 7)


# ------------------------------------------------------------------------------------------------------------- errors

BAD = {
    "no such rank": (lambda: HeadTail().positions(4, 4, 16), MaskValueError, "Pass a rank from 0 to 3."),
    "no ranks": (lambda: HeadTail().positions(0, 0, 16), MaskValueError, "Pass one rank or more."),
    "no length": (lambda: shard(causal(), HeadTail(), 0, 2), MaskValueError, "Pass the length of the sequence."),
    "no columns": (lambda: shard(causal(), HeadTail(), 0, 2, 8, keys="local"), MaskValueError, 'Pass "gathered"'),
    "float ids": (lambda: PerDocumentHeadTail(torch.zeros(4)), MaskTypeError, "Pass integers"),
    "cube of ids": (lambda: PerDocumentHeadTail(torch.zeros(1, 1, 4).long()), MaskShapeError, "Pass (length,)"),
    "other length": (
        lambda: PerDocumentHeadTail(torch.zeros(4).long()).positions(0, 2, 5),
        MaskShapeError,
        "Pass ids of the whole sequence.",
    ),
    "weights": (lambda: Balanced([causal()], [1, 2]), MaskValueError, "each with a weight"),
    "block": (lambda: Balanced(causal(), block=0), MaskValueError, "Pass block >= 1."),
    "float block": (lambda: Balanced(causal(), block=1.5), MaskTypeError, "Pass a number of tokens."),  # type: ignore
}


@pytest.mark.parametrize("name", BAD)
def test_errors_say_what_to_do(name):
    call, kind, todo = BAD[name]
    with pytest.raises(kind) as caught:
        call()
    assert todo in str(caught.value)
