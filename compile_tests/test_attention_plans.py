"""A plan passes through a compiled function's arguments: one graph for all plans of a backend, equal to eager."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from maskmod import causal, document, plan, sinks, sliding_window

N = 256
MASKS = [
    causal() & sliding_window(40),
    causal() & document(torch.arange(N) // 60),
    causal() & (sliding_window(20) | sinks(4)),
]


def attend(layer, q, k, v):
    return layer(q, k, v) * 2


@pytest.mark.parametrize("backend", ["sdpa", "spans", "eager"])
def test_one_graph_for_all_plans(backend: str):
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend=counter)
    for mask in MASKS:
        layer = plan(mask, 1, 4, N, N, backend=backend)
        q, k, v = (torch.randn(1, 4, N, 16) for _ in range(3))
        torch.testing.assert_close(compiled(layer, q, k, v), layer(q, k, v) * 2)
    assert counter.frame_count == 1


def test_gradients_through_the_operator():
    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for mask in MASKS[:2]:
        layer = plan(mask, 1, 4, N, N, backend="spans")
        q, k, v = (torch.randn(1, 4, N, 16, requires_grad=True) for _ in range(3))
        ours = torch.autograd.grad(compiled(layer, q, k, v).sum(), (q, k, v))
        for grad, eager in zip(ours, torch.autograd.grad((layer(q, k, v) * 2).sum(), (q, k, v)), strict=True):
            torch.testing.assert_close(grad, eager)


def test_inductor_runs_the_operator():
    torch._dynamo.reset()
    layer = plan(MASKS[0], 1, 4, N, N, backend="spans", return_lse=True)
    q, k, v = (torch.randn(1, 4, N, 16) for _ in range(3))
    compiled = torch.compile(lambda layer, q, k, v: layer(q, k, v)[0].relu(), fullgraph=True)
    torch.testing.assert_close(compiled(layer, q, k, v), layer(q, k, v)[0].relu())


def test_operators_are_what_torch_expects():
    from maskmod.backends import span_kernel

    layer = plan(MASKS[2], 1, 4, 64, 64, backend="spans")
    q, k, v = (torch.randn(1, 4, 64, 16, requires_grad=True) for _ in range(3))
    for sink in (None, torch.randn(4, requires_grad=True)):
        arguments = (q, k, v, sink, *layer.args.packing, 0.25)
        torch.library.opcheck(span_kernel._operator, arguments)
