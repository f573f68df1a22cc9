"""The flat form inside a graph: one graph for all lengths, offsets in tensors, tables equal to torch's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import and_masks, create_block_mask

from maskmod import block_mask, causal, classify_blocks, document, shift, sliding_window

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from random_masks import assert_same_tables

TABLES = (
    "kv_num_blocks",
    "kv_indices",
    "full_kv_num_blocks",
    "full_kv_indices",
    "q_num_blocks",
    "q_indices",
    "full_q_num_blocks",
    "full_q_indices",
)

# Each makes a mask from ids (B, n) and an offset (), inside the graph.
MASKS = {
    "causal": lambda ids, offset: lambda b, h, q, k: q >= k,
    "offset": lambda ids, offset: lambda b, h, q, k: q + offset >= k,
    "documents": lambda ids, offset: lambda b, h, q, k: (ids[b, q] == ids[b, k]) & (q >= k),
    "vocabulary": lambda ids, offset: shift(causal() & sliding_window(64), q_offset=offset) & document(ids),
    "torch's and": lambda ids, offset: and_masks(lambda b, h, q, k: q >= k, lambda b, h, q, k: ids[b, q] == ids[b, k]),
    "negation": lambda ids, offset: lambda b, h, q, k: ~((k > q) | (ids[b, k] != ids[b, q])),
    "method abs": lambda ids, offset: lambda b, h, q, k: (q - k).abs() < 50,
    "builtin abs": lambda ids, offset: lambda b, h, q, k: abs(q - k) < 50,
    "arithmetic": lambda ids, offset: lambda b, h, q, k: (q // 100 == k // 100) & (k % 7 < 3),
    "where": lambda ids, offset: lambda b, h, q, k: torch.where(h == 0, q >= k, k > q - 5),
    "moved": lambda ids, offset: lambda b, h, q, k: (q >= k).to(q.device) & q.new_ones((), dtype=torch.bool),
    "not understood": lambda ids, offset: lambda b, h, q, k: torch.stack([q, k]).amax() < 300,
}


def inputs(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    return torch.zeros(n), torch.randint(0, 5, (2, n + 32), generator=generator).sort()[0], torch.tensor(n % 7)


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", MASKS)
def test_one_graph_for_all_lengths(name: str) -> None:
    counter = CompileCounter()

    def tables(x, ids, offset):
        made = block_mask(MASKS[name](ids, offset), 2, 3, x.shape[0], x.shape[0] + 32, device="cpu")
        return tuple(getattr(made, table) for table in TABLES)

    compiled = torch.compile(tables, fullgraph=True, dynamic=True, backend=counter)
    for n in (600, 777):
        x, ids, offset = inputs(n)
        theirs = create_block_mask(MASKS[name](ids, offset), 2, 3, n, n + 32, device="cpu")
        ours = type(theirs)((n, n + 32), *compiled(x, ids, offset), mask_mod=theirs.mask_mod)
        assert_same_tables(ours, theirs, f"{name} at {n}")
    assert counter.frame_count == 1


def test_inductor_agrees() -> None:
    def classes(x, ids, offset):
        mask = shift(causal(), q_offset=offset) & document(ids[0])
        return tuple(classify_blocks(mask, 1, 1, x.shape[0], x.shape[0], block_size=(32, 64), device="cpu"))

    compiled = torch.compile(classes, fullgraph=True, dynamic=True)
    for n in (300, 513):
        for got, wanted in zip(compiled(*inputs(n)), classes(*inputs(n)), strict=True):
            assert torch.equal(got, wanted)


def test_exact_in_a_graph_evaluates_tokens() -> None:
    def hashed(b, h, q, k):
        return (q * 7919 + k * 104729) % 1000 < 990

    def classes(x):
        return tuple(classify_blocks(hashed, 1, 1, x.shape[0], x.shape[0], block_size=8, exact=True, device="cpu"))

    compiled = torch.compile(classes, fullgraph=True, dynamic=True, backend="eager")
    for n in (64, 100):
        for got, wanted in zip(compiled(torch.zeros(n)), classes(torch.zeros(n)), strict=True):
            assert torch.equal(got, wanted)


def test_sound_in_a_graph_without_looking_at_values() -> None:
    """Fake tensors: any look at a value would raise."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        ids = torch.zeros(512, dtype=torch.long)
        made = block_mask(causal() & document(ids), 1, 1, 512, 512, device="cpu")
        assert made.kv_indices.shape == (1, 1, 4, 4)
