"""Every mask of the vocabulary through readers and backends, lengths dynamic, offsets in every form: one graph each.

The full product would take an hour. Here every mask meets `dense_mask`, `additive_bias`, `attention` (which lowers it)
and two forms of offset; a few masks that differ in kind meet every form of offset and every backend.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cases import BY_NAME, CASES, Case
from maskmod import Mask, additive_bias, attention, causal, dense_mask, lower, shift
from one_graph import assert_compiles

B, H = 2, 2
LENGTHS = [(8, 11), (13, 9)]
FORMS = ["int", "0-d", "(1,)", "(B,)"]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
few_cases = pytest.mark.parametrize("name", ["sliding_window", "image_spans", "remap_ring", "per_head", "shift_rows"])


def build(case: Case, q_len: int, kv_len: int) -> Mask:
    # Tables of a length of their own: equal sizes would share a symbol, and so a guard.
    return case.build(B, H, q_len + kv_len, q_len + kv_len)


def offset(form: str, t: int) -> int | Tensor:
    if form == "int":
        return 2
    return {"0-d": torch.tensor(t), "(1,)": torch.tensor([t]), "(B,)": torch.tensor([t, t + 3])}[form]


def read_dense(mask: Mask, rows: Tensor, columns: Tensor, q_offset: int | Tensor) -> Tensor:
    return dense_mask(shift(mask, q_offset=q_offset), B, H, rows.shape[0], columns.shape[0])


def dense_calls(case: Case, form: str) -> list[tuple]:
    return [
        (build(case, q_len, kv_len), torch.zeros(q_len), torch.zeros(kv_len), offset(form, t))
        for t, (q_len, kv_len) in enumerate(LENGTHS, 1)
    ]


def qkv(q_len: int, kv_len: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(B, H, q_len, 4), torch.randn(B, H, kv_len, 4), torch.randn(B, H, kv_len, 6)


@every_case
def test_dense(case: Case):
    assert_compiles(read_dense, dense_calls(case, FORMS[CASES.index(case) % 4]))


@few_cases
@pytest.mark.parametrize("form", FORMS)
def test_dense_under_every_form_of_offset(name: str, form: str):
    assert_compiles(read_dense, dense_calls(BY_NAME[name], form))


def test_booleans_pass_through_int16_once_for_all_rows_and_heads():
    """What inductor on CPU stores ten times faster; before it is expanded, so that nothing is stored twice."""
    converted = []

    def backend(graph: torch.fx.GraphModule, example_inputs: list) -> Callable:
        for node in graph.graph.nodes:
            if node.op == "call_method" and torch.int16 in node.args:
                converted.append(node)
        return graph.forward

    read = torch.compile(lambda q: dense_mask(causal(), B, H, q.shape[0], 9), backend=backend, fullgraph=True)
    assert read(torch.zeros(8)).stride()[:2] == (0, 0)
    assert len(converted) == 1


@every_case
def test_readers_and_backends(case: Case):
    backend = ("sdpa", "eager")[CASES.index(case) % 2]

    def read(mask: Mask, q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> list:
        mask = shift(mask, q_offset=position)
        bias = additive_bias(mask, B, H, q.shape[2], k.shape[2], dtype=torch.float32)
        return [bias, attention(q, k, v, mask, backend=backend)]

    form = FORMS[1 + CASES.index(case) % 3]
    calls = [(build(case, *lengths), *qkv(*lengths), offset(form, t)) for t, lengths in enumerate(LENGTHS, 1)]
    assert_compiles(read, calls, exact=False)


@few_cases
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("empty_rows", ["keep", "uniform"])
def test_lower(name: str, backend: str, empty_rows: str):
    def read(mask: Mask, rows: Tensor, columns: Tensor, q_offset: Tensor) -> dict:
        size = (B, H, rows.shape[0], columns.shape[0])
        return lower(shift(mask, q_offset=q_offset), backend, *size, empty_rows=empty_rows).kwargs()

    assert_compiles(read, dense_calls(BY_NAME[name], "(1,)"))


@few_cases
@pytest.mark.parametrize(("backend", "empty_rows"), [("sdpa", "uniform"), ("eager", "zero"), ("auto", "zero")])
def test_decode_on_every_backend(name: str, backend: str, empty_rows: str):
    """One query over a cache of fixed length: positions and contents change, shapes do not."""

    def step(mask: Mask, q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Tensor:
        return attention(q, k, v, shift(mask, q_offset=position), backend=backend, empty_rows=empty_rows)

    calls = [(build(BY_NAME[name], 1, 12), *qkv(1, 12), torch.tensor([t, t + 1])) for t in range(6)]
    assert_compiles(step, calls, dynamic=None, exact=False)


@few_cases
def test_flex(name: str):
    """Blocks built in the graph from a mask that the graph captures."""

    def step(q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Tensor:
        return attention(q, k, v, shift(mask, q_offset=position), backend="flex")

    mask = build(BY_NAME[name], 130, 130)
    q, k, v = torch.randn(B, H, 9, 16), torch.randn(B, H, 130, 16), torch.randn(B, H, 130, 16)
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    for t in (3, 5):
        position = torch.tensor([t])
        expected = attention(q, k, v, shift(mask, q_offset=position), backend="sdpa")
        torch.testing.assert_close(compiled(q, k, v, position), expected)
