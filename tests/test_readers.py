"""Readers: sizes, devices, methods, what functions may return, and the additive bias."""

import functools

import pytest
import torch
from hypothesis import given

from cases import CASES, Case
from looks import Looks
from maskmod import additive_bias, causal, dense_mask, document, full, vmap_mask
from maskmod.oracle import reads_b_and_h
from random_masks import Expression, masks

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def test_none_for_batch_and_heads_means_one():
    assert dense_mask(causal(), None, None, 2, 3).shape == (1, 1, 2, 3)
    assert additive_bias(causal(), None, 2, 2, 3, dtype=torch.float32).shape == (1, 2, 2, 3)


@given(masks())
def test_methods_agree(drawn: Expression):
    lifted = vmap_mask(drawn.build(), *drawn.size)
    for method in ("auto", "vmap"):
        assert torch.equal(dense_mask(drawn.build(), *drawn.size, method=method), lifted)


def test_no_value_is_looked_at_while_a_cuda_graph_is_captured(monkeypatch: pytest.MonkeyPatch):
    mask = causal() & document(torch.arange(1024) // 100)
    with Looks() as free:
        painted = dense_mask(mask, 1, 1, 1024, 1024)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with Looks() as captured:
        lifted = dense_mask(mask, 1, 1, 1024, 1024)
    assert free.found
    assert not captured.found
    assert torch.equal(painted, lifted)


@pytest.mark.parametrize(
    "fn",
    [
        lambda b, h, q_idx, kv_idx: True,
        lambda *idx: idx[3] <= idx[2],
        functools.partial(lambda limit, b, h, q_idx, kv_idx: kv_idx < limit, 2),
        lambda b, h, q_idx, kv_idx: torch.logical_and(q_idx >= kv_idx, kv_idx > 0),
        lambda b, h, q_idx, kv_idx, extra=3: q_idx + kv_idx < extra,
        torch.compiler.disable(lambda b, h, q_idx, kv_idx: q_idx.new_ones((), dtype=torch.bool)),
    ],
    ids=["python bool", "*args", "partial", "logical_and", "default", "new_ones"],
)
def test_any_callable_of_four_indices_is_read(fn):
    seen = dense_mask(fn, 2, 2, 3, 4)
    for b, h, q, kv in [(0, 0, 0, 0), (1, 1, 2, 1), (0, 1, 2, 3)]:
        assert seen[b, h, q, kv] == fn(*map(torch.tensor, (b, h, q, kv)))


def test_a_callable_object_is_read():
    class Bounded:
        def __call__(self, b, h, q_idx, kv_idx):
            return kv_idx < 2

    assert dense_mask(Bounded(), 1, 1, 1, 4)[0, 0, 0].tolist() == [True, True, False, False]


def test_a_captured_table_is_read_by_traced_indices():
    table = torch.rand(5, 6) < 0.5
    assert torch.equal(dense_mask(lambda b, h, q_idx, kv_idx: table[q_idx, kv_idx], 1, 1, 5, 6)[0, 0], table)


@pytest.mark.parametrize(
    ("mask", "reads"),
    [
        (causal(), (False, False)),
        (full(), (False, False)),
        (document(torch.zeros(1, dtype=torch.int64)), (False, False)),
        (document(torch.zeros((1, 1), dtype=torch.int64)), (True, False)),
        (lambda b, h, q_idx, kv_idx: kv_idx < h, (False, True)),
        (lambda b, h, q_idx, kv_idx: (kv_idx < h) & (q_idx > b), (True, True)),
        (lambda b, h, q_idx, kv_idx: True, (False, False)),
    ],
)
def test_the_indices_that_a_predicate_reads(mask, reads: tuple[bool, bool]):
    assert reads_b_and_h(mask) == reads


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_index_that_is_not_read_makes_no_difference(case: Case):
    B, H = 3, 3
    mask = case.build(B, H, 9, 9)
    reads_b, reads_h = reads_b_and_h(mask)
    seen = dense_mask(mask, B, H, 9, 9)
    if not reads_b:
        assert torch.equal(seen, seen[:1].expand_as(seen))
    if not reads_h:
        assert torch.equal(seen, seen[:, :1].expand_as(seen))
    specs_differ = any(
        case.spec(b, 0, q, kv) != case.spec(0, 0, q, kv) for b in (1, 2) for q in range(9) for kv in range(9)
    )
    assert reads_b or not specs_differ


# -------------------------------------------------------------------------------------------------------------- bias


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("hidden", [None, float("-inf"), -1e4])
def test_a_bias_is_zero_or_hidden(dtype: torch.dtype, hidden: float | None):
    bias = additive_bias(causal(), 2, 1, 3, 4, dtype=dtype, hidden=hidden)
    assert bias.dtype == dtype
    value = torch.finfo(dtype).min if hidden is None else torch.tensor(hidden, dtype=dtype).item()
    assert bias.tolist() == [[[[0.0 if kv <= q else value for kv in range(4)] for q in range(3)]]] * 2


@given(masks())
def test_a_bias_is_zero_exactly_where_visible(drawn: Expression):
    bias = additive_bias(drawn.build(), *drawn.size, dtype=torch.float32)
    assert torch.equal(bias == 0, dense_mask(drawn.build(), *drawn.size))
    assert set(bias.unique().tolist()) <= {0.0, torch.finfo(torch.float32).min}
