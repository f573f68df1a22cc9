"""Ragged plans, compiled: one graph for every step, whoever joins or leaves, by itself and around attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from maskmod.backends.eager import eager_attention
from maskmod.caches import Gathered, Paged
from maskmod.serving import RaggedPlan
from maskmod.testing import watch_graphs
from ragged_lives import CASES, HEADS, LENGTH, Lives, Rows, arguments, seen_over_keys, seen_over_pages

TOKENS, REQUESTS, PAGES, PAGE, D = 14, 4, 23, 4, 16
COLUMNS = -(-LENGTH // PAGE)
LAYOUTS = {"paged": Paged(PAGES, PAGE, max_pages=COLUMNS), "gathered": Gathered(90)}
KERNELS = {"sdpa": F.scaled_dot_product_attention, "eager": eager_attention, "flex": flex_attention}


def lives(seed: int) -> Lives:
    return Lives(seed, pages=PAGES, page_size=PAGE, max_tokens=TOKENS, max_requests=REQUESTS)


def steps(seed: int, number: int, layout: str):
    """The requests of each step, and ``step_``'s arguments, always of the same shapes."""
    server = lives(seed)
    for running in server.steps(number):
        starts, lengths, table = arguments(running, REQUESTS, COLUMNS, fill=True)
        yield server, running, (starts, lengths, table) if layout == "paged" else (starts, lengths)


def wanted(name: str, layout: str, server: Lives, running) -> Tensor:
    if layout == "paged":
        return torch.tensor(seen_over_pages(CASES[name], running, server, TOKENS))
    kept = [life.length for life in running]
    return torch.tensor(seen_over_keys(CASES[name], running, kept, TOKENS, LAYOUTS[layout].kv_len))


def buffers(plan: RaggedPlan) -> list[Tensor]:
    return [*plan._where.buffers(), *plan._holder.buffers()]


CELLS = [
    ("causal", "gathered", "sdpa"),
    ("documents", "gathered", "flex"),
    ("causal", "paged", "varlen"),
    ("tree", "paged", "sdpa"),
    ("per head", "paged", "eager"),
    ("causal", "paged", "flex"),
    ("documents", "paged", "flashinfer"),
]


@pytest.mark.parametrize(("name", "layout", "backend"), CELLS)
def test_a_step_by_itself(name, layout, backend):
    """Compiled and not, the same buffers; one graph over steps in which requests come, leave and change places."""
    rows = Rows(CASES[name], REQUESTS)
    plan, other = (RaggedPlan(rows.mask, LAYOUTS[layout], TOKENS, REQUESTS, HEADS, backend=backend) for _ in range(2))
    before = [t.data_ptr() for t in buffers(plan)]
    torch._dynamo.reset()
    step_ = torch.compile(plan.step_, backend="eager", fullgraph=True)
    with watch_graphs() as report, torch.no_grad():
        for _, running, args in steps(1, 16, layout):
            rows.write(running)
            step_(*args)
            other.step_(*args)
            if backend == "flex":  # entries past a row's count are undefined, and a block in doubt may be partial
                mine, theirs = (p.args.kwargs()["block_mask"].to_dense() for p in (plan, other))
                assert torch.equal(mine, theirs)
                continue
            for mine, theirs in zip(buffers(plan), buffers(other), strict=True):
                assert torch.equal(mine, theirs)
    assert report.graphs == 1
    assert [t.data_ptr() for t in buffers(plan)] == before


@pytest.mark.parametrize(
    ("name", "layout", "backend"),
    [("causal", "paged", "sdpa"), ("image spans", "gathered", "flex")],
)
def test_around_attention(name, layout, backend):
    """The plan moves inside the function that attends; inductor's own kernels."""
    rows, slots = Rows(CASES[name], REQUESTS), LAYOUTS[layout].kv_len
    plan = RaggedPlan(rows.mask, LAYOUTS[layout], TOKENS, REQUESTS, HEADS, backend=backend)
    q, k, v = (torch.randn(1, HEADS, n, D, generator=torch.Generator().manual_seed(n)) for n in (TOKENS, slots, slots))

    def attend(q: Tensor, k: Tensor, v: Tensor, *args: Tensor) -> Tensor:
        return KERNELS[backend](q, k, v, **plan.step_(*args).kwargs())

    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, dynamic=False)
    with watch_graphs() as report, torch.no_grad():
        for server, running, args in steps(2, 8, layout):
            rows.write(running)
            out: Any = compiled(q, k, v, *args)
            visible = wanted(name, layout, server, running)[None]
            sees = visible.any(-1, keepdim=True)
            want = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=visible | ~sees)
            torch.testing.assert_close(
                torch.where(sees, out, 0.0), torch.where(sees, want, 0.0).float(), rtol=1e-5, atol=5e-6
            )
    assert report.graphs == 1


def test_fewer_requests_cost_graphs_and_no_answer():
    """Without filling up, the number of requests is a shape: a few graphs where it is dynamic."""
    rows = Rows(CASES["causal"], REQUESTS)
    plan, other = (RaggedPlan(rows.mask, LAYOUTS["paged"], TOKENS, REQUESTS, HEADS, backend="sdpa") for _ in range(2))
    torch._dynamo.reset()
    step_ = torch.compile(plan.step_, backend="eager", fullgraph=True, dynamic=True)
    with watch_graphs() as report, torch.no_grad():
        for running in lives(3).steps(30):
            if len(running) < 2:
                continue
            starts, lengths, table = arguments(running, REQUESTS, COLUMNS, fill=False)
            step_(starts, lengths, table)
            other.step_(starts, lengths, table)
            for mine, theirs in zip(buffers(plan), buffers(other), strict=True):
                assert torch.equal(mine, theirs)
    assert 1 < report.graphs <= 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("name", "layout", "backend"), CELLS)
def test_a_step_is_captured_and_replayed(name, layout, backend):
    """No host sync, and a CUDA graph that follows requests as they come and leave."""
    mask = CASES[name].build(*(t.cuda() for t in Rows(CASES[name], REQUESTS).tensors))
    plan, other = (
        RaggedPlan(mask, LAYOUTS[layout], TOKENS, REQUESTS, HEADS, backend=backend, device="cuda") for _ in range(2)
    )
    static = [t.cuda() for t in next(steps(1, 1, layout))[2]]
    for _ in range(3):
        plan.step_(*static)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan.step_(*static)
    for _, _, args in steps(1, 8, layout):
        for held, new in zip(static, args, strict=True):
            held.copy_(new)
        torch.cuda.set_sync_debug_mode("error")
        try:
            graph.replay()
            other.step_(*static)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        if backend == "flex":
            assert torch.equal(*(p.args.kwargs()["block_mask"].to_dense() for p in (plan, other)))
        else:
            for mine, theirs in zip(buffers(plan), buffers(other), strict=True):
                assert torch.equal(mine, theirs)
