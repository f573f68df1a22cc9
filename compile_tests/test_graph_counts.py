"""What makes another graph and what does not: masks passed in, captured and built inside, new objects, new numbers."""

import pytest
import torch
from torch import Tensor

from maskmod import (
    Mask,
    additive_bias,
    at_positions,
    attention,
    blockwise,
    causal,
    chunked,
    dense_mask,
    document,
    full,
    key_padding,
    lower,
    mask_mod,
    packing,
    per_head,
    prefix,
    remap,
    shift,
    sinks,
    sliding_window,
    where,
    window,
)
from maskmod.testing import assert_max_graphs, assert_no_graph_breaks, count_graphs
from one_graph import assert_compiles

IDS = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2], [0, 1, 1, 1, 2, 2, 3, 3]])


def same_parity(b, h, q_idx, kv_idx):
    return (q_idx - kv_idx) % 2 == 0


# ------------------------------------------------------------------------------------------------- built in the graph


@pytest.mark.parametrize(
    "build",
    [
        lambda ids, t: causal() & sliding_window(3) & document(ids),
        lambda ids, t: causal() & (sliding_window(t[0]) | sinks(2)),
        lambda ids, t: (causal() ^ True) | full(),
        lambda ids, t: window(2, t[0]) ^ chunked(3, start=t),
        lambda ids, t: where(prefix(t), full(), causal()) & key_padding(ids != 0),
        lambda ids, t: per_head([causal(), blockwise(ids)]) & key_padding(t),
        lambda ids, t: remap(causal(), q=ids, kv=ids, valid=ids > 0),
        lambda ids, t: shift(shift(document(ids, ids + 0), q_offset=t[:1]), kv_offset=t),
        lambda ids, t: mask_mod(same_parity) | causal(),
        lambda ids, t: causal() & (lambda b, h, q_idx, kv_idx: q_idx - kv_idx < t[0]),
        lambda ids, t: at_positions(causal(), t[:, None], 8),
        lambda ids, t: document(packing.document_ids_from_position_ids(ids)),
    ],
)
def test_built_in_the_graph(build):
    def read(ids: Tensor, t: Tensor) -> Tensor:
        return dense_mask(build(ids, t), 2, 2, 8, 8)

    calls = [(IDS, torch.tensor([3, 5])), (IDS.flip(0), torch.tensor([1, 2])), (IDS + 1, torch.tensor([4, 4]))]
    assert_compiles(read, calls, dynamic=None)


def test_negation_by_xor():
    def read(mask: Mask, x: Tensor) -> Tensor:
        return dense_mask(mask ^ True, 1, 1, x.shape[0], x.shape[0])

    assert_compiles(read, [(causal(), torch.zeros(4)), (causal(), torch.zeros(6))])


# ---------------------------------------------------------------------------------------------------- captured, passed


def test_captured_masks():
    mask = causal() & document(IDS)

    def read(x: Tensor) -> Tensor:
        return dense_mask(shift(mask, q_offset=x.to(torch.int64)), 2, 1, 4, 8)

    assert_compiles(read, [(torch.tensor(t),) for t in range(5)], dynamic=None)


def test_a_mask_in_a_module():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mask = causal() & sliding_window(3)

        def forward(self, q: Tensor, position: Tensor) -> Tensor:
            return attention(q[:, :, -1:], q, q, shift(self.mask, q_offset=position))

    q = torch.randn(1, 2, 8, 4)
    assert_no_graph_breaks(Layer(), q, torch.tensor(7))
    assert_max_graphs(Layer(), [(q, torch.tensor(t)) for t in range(8)])


@pytest.mark.parametrize(
    "fresh",
    [
        lambda t: causal() & document(IDS + t),
        lambda t: shift(causal() & sliding_window(4), q_offset=torch.tensor([t, t])),
        lambda t: key_padding(t != IDS) & causal(),
        lambda t: per_head([causal(), prefix(torch.tensor(t))]),
        lambda t: remap(causal(), kv=(IDS + t) % 8),
        lambda t: sliding_window(torch.tensor(t + 1)),
    ],
)
def test_new_objects_of_one_structure_share_a_graph(fresh):
    def read(mask: Mask, x: Tensor) -> tuple[Tensor, Tensor]:
        return dense_mask(mask, 2, 2, 8, 8), additive_bias(mask, 2, 2, 8, 8, dtype=x.dtype)

    assert_compiles(read, [(fresh(t), torch.zeros(1)) for t in range(5)], dynamic=None)


def test_one_graph_for_a_hundred_offsets():
    def read(x: Tensor, t: Tensor) -> Tensor:
        return dense_mask(shift(causal() & sliding_window(32), q_offset=t), 1, 1, x.shape[0], 64)

    assert_compiles(read, [(torch.zeros(3), torch.tensor(t)) for t in range(100)], dynamic=None)


def test_one_graph_for_lengths():
    def read(q: Tensor, k: Tensor) -> Tensor:
        return attention(q, k, k, causal() & sliding_window(4))

    calls = [(torch.randn(2, 2, q, 4), torch.randn(2, 2, kv, 4)) for q, kv in ((5, 7), (9, 6), (3, 12), (11, 5))]
    assert_compiles(read, calls, exact=False)


def test_another_number_is_another_graph():
    # What the counts above would show if numbers leaked into graphs.
    def read(x: Tensor, n: int) -> Tensor:
        return dense_mask(sliding_window(n), 1, 1, 4, 4) & (x > 0)

    calls = [(torch.ones(1), n) for n in (1, 2, 3)]
    assert count_graphs(read, calls, dynamic=False).graphs == 3
    with pytest.raises(AssertionError, match="3 graphs"):
        assert_max_graphs(read, calls, dynamic=False)


# --------------------------------------------------------------------------------------------------- proofs in graphs


@pytest.mark.parametrize(
    ("mask", "flag", "dense"),
    [
        (causal(), True, False),
        (causal() & window(99, 99), True, False),
        (full(), False, False),
        (sliding_window(4), False, True),
        (shift(causal(), q_offset=torch.tensor(0)), False, True),
    ],
    ids=str,
)
def test_is_causal_is_kept_under_compile(mask: Mask, flag: bool, dense: bool):
    seen = []

    def read(x: Tensor) -> Tensor:
        args = lower(mask, "sdpa", 1, 1, 8, 8).kwargs()
        seen.append((args["is_causal"], args["attn_mask"] is not None))
        return x + 1

    torch.compile(read, fullgraph=True, backend="eager")(torch.zeros(2))
    assert seen == [(flag, dense)]


def test_the_flag_reaches_the_kernel_with_dynamic_lengths():
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def run(q: Tensor, k: Tensor) -> Tensor:
        return attention(q, k, k, causal())

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=keep)
    for q_len, kv_len in ((5, 7), (9, 4)):
        q, k = torch.randn(2, 2, q_len, 4), torch.randn(2, 2, kv_len, 4)
        torch.testing.assert_close(compiled(q, k), run(q, k))
    assert len(graphs) == 1
    calls = [node for node in graphs[0].graph.nodes if "scaled_dot_product" in str(node.target)]
    assert [call.kwargs["is_causal"] for call in calls] == [True]
    assert calls[0].kwargs.get("attn_mask") is None


@pytest.mark.parametrize(
    "position",
    [
        torch.tensor(3),
        torch.tensor([3]),
        torch.tensor([3, 4, 5]),
        torch.tensor([[3], [1]]),
        torch.tensor([[0, 1, 2]] * 2),
    ],
    ids=["0-d", "(1,)", "(q_len,)", "(B, 1)", "(B, q_len)"],
)
def test_every_form_of_a_cache_position(position: Tensor):
    def step(q: Tensor, k: Tensor, position: Tensor) -> Tensor:
        return attention(q, k, k, at_positions(causal() & sliding_window(4), position, q.shape[2]))

    q, k = torch.randn(2, 2, 3, 4), torch.randn(2, 2, 8, 4)
    assert_compiles(step, [(q, k, position + t) for t in range(4)], dynamic=None, exact=False)


def test_packing_with_sizes_given():
    def convert(lengths: Tensor) -> list[Tensor]:
        cu_seqlens = packing.cu_seqlens_from_lengths(lengths)
        ids = packing.document_ids_from_cu_seqlens(cu_seqlens, total=12)
        return [
            ids,
            packing.position_ids_from_document_ids(ids),
            packing.lengths_from_document_ids(ids, num_documents=4),
            packing.cu_seqlens_from_position_ids(packing.position_ids_from_lengths(lengths, total=12), num_documents=5),
            packing.lengths_from_cu_seqlens(cu_seqlens),
        ]

    calls = [(torch.tensor([[3, 0, 4], [5, 1, 2]]),), (torch.tensor([[1, 1, 1], [0, 0, 12]]),)]
    assert_compiles(convert, calls, dynamic=None)
