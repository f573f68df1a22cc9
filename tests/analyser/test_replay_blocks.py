"""A plan's blocks follow what is written to its tensors, and the predicate is not called again for them."""

from __future__ import annotations

import pytest
import torch

from maskmod import (
    DecodePlan,
    causal,
    classify_blocks,
    document,
    key_padding,
    prefix,
    remap,
    sliding_window,
)
from maskmod.algebra import Sizes
from maskmod.analyser.replay_blocks import blocks_replay_of
from maskmod.blocks.classify import cut_short
from maskmod.caches import RingCache, StaticCache

CPU = torch.device("cpu")


def held(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 3, (2, 600), generator=generator).sort(-1)[0].to(dtype)
    n, rows, lengths = (torch.tensor(x, dtype=dtype) for x in (5, [3, 90], [80, 120]))
    pages = torch.randperm(100, generator=generator).to(dtype)
    return {
        "documents": (document(ids) & causal(), [ids]),
        "prefix": (causal() | prefix(n), [n]),
        "window": (sliding_window(n) & key_padding(lengths), [n, lengths]),
        "rows": (prefix(rows) | (causal() & document(ids)), [rows, ids]),
        "pages": (remap(causal() & sliding_window(20), q=pages, kv=pages), [pages]),
        "not": (~(document(ids) | prefix(rows)), [ids, rows]),
    }


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8], ids=str)
@pytest.mark.parametrize("name", held(torch.int64))
def test_blocks_follow(name, dtype) -> None:
    mask, tensors = held(dtype)[name]
    sizes, block_size = Sizes(2, 1, 100, 100), (16, 16)
    replay = blocks_replay_of(mask, sizes, CPU, block_size)
    assert replay is not None
    generator = torch.Generator().manual_seed(1)
    steps = len(replay._tape.nodes)
    for _ in range(3):
        full, partial = cut_short(*replay.read(), sizes, block_size)
        fresh = classify_blocks(mask, *sizes, block_size=block_size, exact=False)
        assert torch.equal(full.expand(fresh.full.shape), fresh.full)
        assert torch.equal(partial.expand(fresh.full.shape), fresh.partial)
        for tensor in tensors:
            tensor.copy_(torch.randint(0, 120, tensor.shape, generator=generator))
    assert len(replay._tape.nodes) <= steps + 64  # nothing grows from step to step


def test_a_step_calls_no_predicate(monkeypatch) -> None:
    lengths = torch.tensor([300, 200])
    plan = DecodePlan(causal() & key_padding(lengths), StaticCache(400), 2, 2, 1, backend="flex")
    calls = []
    original = type(causal()).__call__
    monkeypatch.setattr(type(causal()), "__call__", lambda *args: (calls.append(args), original(*args))[1])
    seen = []
    for at, length in ((0, 300), (150, 300), (399, 300), (399, 129)):
        lengths[0] = length
        blocks = plan.step_(at).kwargs()["block_mask"]
        seen.append(int((blocks.kv_num_blocks + blocks.full_kv_num_blocks)[0, 0, 0]))
    assert not calls
    assert seen == [1, 2, 3, 2]
    assert "recorded once" in str(plan.explain())


@pytest.mark.parametrize("layout", [StaticCache(512), RingCache(256)], ids=repr)
def test_a_plans_tables_step_by_step(layout) -> None:
    mask = causal() & sliding_window(200)
    plan = DecodePlan(mask, layout, 2, 1, 1, backend="flex")
    for at in (0, 1, 130, 255, 256, 300, 511):
        blocks = plan.step_(at).kwargs()["block_mask"]
        fresh = classify_blocks(plan.mask, *plan.sizes, exact=False)
        assert torch.equal(blocks.kv_num_blocks, fresh.partial.sum(-1, dtype=torch.int32))
        assert torch.equal(blocks.full_kv_num_blocks, fresh.full.sum(-1, dtype=torch.int32))
