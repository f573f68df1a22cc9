"""torch's context parallelism: block masks equal to those it builds densely, layouts as its load balancers."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch.distributed.tensor.experimental._context_parallel import _attention as torch_cp
from torch.distributed.tensor.experimental._context_parallel import _load_balancer as torch_lb
from torch.nn.attention.flex_attention import create_block_mask

from maskmod import blockwise, causal, document, per_head, prefix, sinks, sliding_window
from maskmod.distributed import Balanced, HeadTail, Striped, layout_of, load_balancer_of, rank_block_mask
from maskmod.errors import MaskValueError
from ranks import on_ranks, values
from sharded_parallel import torch_shards_and_unshards

LENGTH, WORLD = 1024, 2
IDS = torch.repeat_interleave(torch.arange(4), torch.tensor([256, 64, 192, 512]))
SPANS = torch.where(torch.arange(LENGTH) % 300 < 90, torch.arange(LENGTH) // 300, -1)

MASKS = {
    "causal": causal(),
    "window": causal() & sliding_window(200),
    "packed": causal() & document(IDS),
    "sinks": causal() & (sinks(4) | sliding_window(130)),
    "prefix": causal() | prefix(300),
    "image spans": causal() | blockwise(SPANS),
    "per head": per_head([causal(), sliding_window(128)]),
    "function": lambda b, h, q_idx, kv_idx: (q_idx // 100 == kv_idx // 100) & (q_idx >= kv_idx),
}


class Mesh(NamedTuple):
    """As much of a device mesh as torch's builder looks at."""

    rank: int
    device_type: str = "cpu"

    def size(self) -> int:
        return WORLD

    def get_local_rank(self) -> int:
        return self.rank


def balancers() -> dict[str, Any]:
    whole = create_block_mask(MASKS["packed"], 1, 1, LENGTH, LENGTH, device="cpu")
    return {
        "contiguous": None,
        "head-tail": torch_lb._HeadTailLoadBalancer(LENGTH, WORLD, "cpu"),
        "per document": torch_lb._PerDocumentHeadTailLoadBalancer([[256, 64, 192, 512]], WORLD, "cpu"),
        "by row": torch_lb._PerDocumentHeadTailLoadBalancer([[256, 64, 192, 512], [1024]], WORLD, "cpu"),
        "processing time": torch_lb._PTRRLoadBalancer(whole, WORLD),
        "ours, striped": load_balancer_of(Striped(), WORLD, LENGTH),
        "ours, balanced": load_balancer_of(Balanced(MASKS["packed"]), WORLD, LENGTH),
    }


def listed(counts: torch.Tensor | None, indices: torch.Tensor | None) -> list:
    """The first ``counts`` entries of each row: the rest is undefined."""
    assert counts is not None
    assert indices is not None
    rows = zip(counts.flatten().tolist(), indices.flatten(0, 2).tolist(), strict=True)
    return [sorted(row[:count]) for count, row in rows]


@pytest.mark.parametrize("balancer", balancers())
@pytest.mark.parametrize("mask", MASKS)
def test_block_masks_are_those_that_torch_builds_densely(monkeypatch, mask, balancer):
    monkeypatch.setattr(torch_cp, "_compiled_create_block_mask", create_block_mask)  # uncompiled, to be quick
    monkeypatch.setattr(torch_cp._cp_options, "enable_load_balance", False)
    chosen = balancers()[balancer]
    for rank in range(WORLD):
        theirs = torch_cp._create_cp_block_mask(MASKS[mask], 2, 2, LENGTH, LENGTH, Mesh(rank), chosen)  # type: ignore
        ours = rank_block_mask(MASKS[mask], 2, 2, LENGTH, LENGTH, rank=rank, world=WORLD, load_balancer=chosen)
        assert ours.seq_lengths == theirs.seq_lengths
        assert ours.BLOCK_SIZE == theirs.BLOCK_SIZE
        for kind in ("kv", "full_kv", "q", "full_q"):
            have, want = (
                listed(getattr(x, f"{kind}_num_blocks"), getattr(x, f"{kind}_indices")) for x in (ours, theirs)
            )
            assert have == want, (rank, kind)


def test_a_load_balancer_and_its_layout_say_the_same():
    balancer = torch_lb._HeadTailLoadBalancer(LENGTH, 4, "cpu")
    for rank in range(4):
        assert torch.equal(layout_of(balancer).positions(rank, 4, LENGTH), HeadTail().positions(rank, 4, LENGTH))
    ours = load_balancer_of(HeadTail(), 4, LENGTH)
    for restore in (False, True):
        assert torch.equal(ours._generate_indices(restore), balancer._generate_indices(restore))


def test_uneven_layouts_are_refused():
    with pytest.raises(MaskValueError, match=r"ranks hold 2 to 3 tokens.*pad the sequence to a multiple of 2"):
        load_balancer_of(HeadTail(), 2, 5)
    with pytest.raises(MaskValueError, match="Pass one length, a multiple of 2"):
        rank_block_mask(causal(), 1, 1, 129, 129, rank=0, world=2)


def test_torch_shards_and_unshards_by_our_layouts():
    assert values(on_ranks(2, torch_shards_and_unshards)) == [[], []]
