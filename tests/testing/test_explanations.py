"""Explanations of graph breaks with cures; attention compared over backends."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from maskmod import causal, document, register_backend, sliding_window
from maskmod.backends.sdpa import Sdpa
from maskmod.errors import MaskValueError, UnsupportedMask
from maskmod.testing import assert_no_graph_breaks, assert_same_attention, explain_graph_breaks

X = torch.ones(3)


def branch(x):
    if x.sum() > 0:  # breaks here
        return x * 2
    return x


def read_item(x):
    return x * x.max().item()


@pytest.mark.parametrize(
    ("fn", "cure"),
    [
        (branch, "compute both sides and pick: torch.where(condition, a, b)"),
        (read_item, "keep the number in a 0-d tensor"),
        (lambda x: torch._dynamo.graph_break() or x + 1, "take the graph_break() out"),
    ],
)
def test_each_break_has_its_reason_its_line_and_a_cure(fn, cure):
    text = str(explain_graph_breaks(fn, X))
    assert f"{__file__}:{fn.__code__.co_firstlineno}" in text or f"{__file__}:{fn.__code__.co_firstlineno + 1}" in text
    assert f"likely cure: {cure}" in text
    with pytest.raises(AssertionError) as caught:
        assert_no_graph_breaks(fn, X)
    assert f"likely cure: {cure}" in str(caught.value)


def test_each_recompile_has_its_guard_and_a_cure():
    text = str(explain_graph_breaks(lambda x, n: x * n, X, 2, calls=[(X, 3), (torch.ones(5), 3)], dynamic=False))
    assert "recompile: call 2" in text
    assert "likely cure: a number differs: hold it in a tensor, or compile with dynamic=True" in text
    assert "likely cure: lengths differ: compile with dynamic=True" in text
    clean = explain_graph_breaks(lambda x: x + 1, X)
    assert (clean.report.graphs, clean.report.breaks) == (1, [])


def qkv(dtype=torch.float32, requires_grad=False) -> Any:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 2, 16, 8, generator=generator).to(dtype).requires_grad_(requires_grad) for _ in range(3)]


def same(tensors, mask, backends) -> None:
    q, k, v = tensors
    assert_same_attention(q, k, v, mask, backends)


MASK = causal() & document(torch.arange(16) // 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_backends_that_agree_pass(dtype, requires_grad):
    same(qkv(dtype, requires_grad), MASK, ["eager", "sdpa"])


class Leaky(Sdpa):
    """A backend that forgets the documents."""

    name = "leaky"

    def attend(self, q, k, v, reading, args, **options):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def test_a_backend_that_differs_is_named_with_its_query():
    register_backend("leaky", Leaky())
    with pytest.raises(AssertionError) as caught:
        same(qkv(), MASK, ["sdpa", "leaky"])
    text = str(caught.value)
    assert "backend='leaky'): the output differs by " in text
    assert "is allowed: " in text
    row = int(text.partition("Query ")[2].partition(" sees")[0])
    keys = MASK(0, 0, torch.tensor(row), torch.arange(16)).nonzero().flatten().tolist()
    assert f"Query {row} sees {len(keys)} keys: {keys}" in text


def test_what_is_refused_is_refused_and_names_must_be_a_list():
    with pytest.raises(UnsupportedMask):
        same(qkv(), lambda b, h, q, k: (q * k) % 3 == 0, ["flash"])
    with pytest.raises(MaskValueError, match="no list of names"):
        same(qkv(), sliding_window(3), "sdpa")
