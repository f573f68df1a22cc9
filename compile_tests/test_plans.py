"""Decode plans, compiled: inside the function that runs attention, by themselves, exported, captured on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from maskmod import DecodePlan, causal, dense_mask, key_padding, lower, prefix, sliding_window, tree
from maskmod.caches import PagedCache, RingCache, StaticCache, on_cache
from maskmod.testing import count_graphs, watch_graphs

B, H, D, LENGTH = 2, 4, 16, 300
VALID = torch.arange(LENGTH) >= torch.tensor([[0], [3]])
LAYOUTS = {
    "static": lambda: StaticCache(LENGTH),
    "ring": lambda: RingCache(6, 4),
    "paged": lambda: PagedCache(torch.arange(38).view(2, 19).flip(1), 16, num_pages=38),
}
MASK = causal() & sliding_window(5) & key_padding(VALID)


def qkv(layout, q_len, step):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(B, H, n, D, generator=generator) for n in (q_len, layout.kv_len, layout.kv_len)]


def oracle(q, k, v, mask, layout, position):
    q_len = q.shape[2]
    visible = dense_mask(on_cache(mask, layout, position, q_len), B, H, q_len, layout.kv_len, method="vmap")
    return F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=visible).float()


@pytest.mark.parametrize(("layout", "q_len"), [("static", 1), ("ring", 5), ("paged", 5)])
def test_flex_kernels_compiled_around_the_plan(layout, q_len):
    """inductor's own kernels; one graph, the tables rewritten in it."""
    layout = LAYOUTS[layout]()
    plan = DecodePlan(MASK, layout, B, H, q_len, backend="flex")

    def attend(q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Tensor:
        return flex_attention(q, k, v, **plan.step_(position).kwargs())  # type: ignore[return-value]

    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, dynamic=False)
    with watch_graphs() as report, torch.no_grad():
        for step in range(0, 64, 9):
            position = torch.tensor([[step + 3], [step * 2 + 4]])
            q, k, v = qkv(layout, q_len, step)
            want = oracle(q, k, v, MASK, layout, position)
            torch.testing.assert_close(compiled(q, k, v, position), want, rtol=1e-5, atol=2e-6)
    assert report.graphs == 1


@pytest.mark.parametrize("backend", ["sdpa", "eager", "flex", "flash"])
@pytest.mark.parametrize("q_len", [1, 4])
def test_a_step_by_itself(backend, q_len):
    """Outside the user's graph: one graph over 64 steps, the same buffers at the same addresses."""
    mask = causal() & sliding_window(5) if backend == "flash" else MASK
    plan, other = (DecodePlan(mask, StaticCache(LENGTH), B, H, q_len, backend=backend) for _ in range(2))

    def tensors(args: Any) -> list[Tensor]:
        parts = args[0].as_tuple() if backend == "flex" else args[:1]
        return [t for t in parts if isinstance(t, Tensor)]

    before = [t.data_ptr() for t in tensors(plan.args)]
    torch._dynamo.reset()
    step_ = torch.compile(plan.step_, backend="eager", fullgraph=True)
    with watch_graphs() as report, torch.no_grad():
        for step in range(64):
            position = torch.tensor([[step], [step * 3]])
            step_(position)
            if step % 21 == 0:
                other.step_(position)
                for mine, theirs in zip(tensors(plan.args), tensors(other.args), strict=True):
                    if mine.dim() != 4 or backend != "flex":  # entries past a row's count are undefined
                        assert torch.equal(mine, theirs)
                if backend == "flex":
                    ours, want = (p.args.kwargs()["block_mask"].to_dense() for p in (plan, other))
                    assert torch.equal(ours, want)
    assert report.graphs == 1
    assert [t.data_ptr() for t in tensors(plan.args)] == before


def test_two_plans_of_one_structure_share_a_graph():
    plans = [DecodePlan(MASK, StaticCache(LENGTH), B, H, 1, backend="sdpa") for _ in range(2)]

    def step(plan: DecodePlan, position: Tensor) -> Tensor:
        return plan.step_(position).kwargs()["attn_mask"].sum()

    calls = [(plan, torch.tensor([[n], [n + 1]])) for n in range(3) for plan in plans]
    assert count_graphs(step, calls).graphs == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_int_in_the_graph(layout):
    """One graph for all of them once symbolic, the check against the end of the cache included."""
    plan, other = (DecodePlan(MASK, LAYOUTS[layout](), B, H, 3, backend="sdpa") for _ in range(2))

    def step(position: int) -> Tensor:
        return plan.step_(position).kwargs()["attn_mask"].sum()

    torch._dynamo.reset()
    compiled = torch.compile(step, backend="eager", fullgraph=True, dynamic=True)
    with watch_graphs() as report, torch.no_grad():
        for position in range(2, 20, 3):
            assert compiled(position) == other.step_(position).kwargs()["attn_mask"].sum()
    assert report.graphs == 1


def test_trees_change_from_step_to_step():
    """Drafts of another shape, behind another prefix, in one graph."""
    parents, start = torch.zeros(B, 4, dtype=torch.int64), torch.zeros(B, dtype=torch.int64)
    mask, layout = prefix(start) | tree(parents, depth=3, start=start), LAYOUTS["paged"]()
    plan = DecodePlan(mask, layout, B, H, 4, backend="sdpa")

    def attend(q: Tensor, k: Tensor, v: Tensor, position: Tensor, drafts: Tensor) -> Tensor:
        parents.copy_(drafts)
        start.copy_(position[:, 0])
        return F.scaled_dot_product_attention(q, k, v, **plan.step_(position).kwargs())

    torch._dynamo.reset()
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    with watch_graphs() as report, torch.no_grad():
        for step, drafts in enumerate([[-1, 0, 1, 2], [-1, 0, 0, 0], [-1, -1, 0, 1], [-1, 0, 0, 1]] * 4):
            position, (q, k, v) = torch.tensor([[step + 1], [40 + step]]), qkv(layout, 4, step)
            out = compiled(q, k, v, position, torch.tensor([drafts, drafts[::-1] if step % 2 else drafts]).clamp(max=3))
            torch.testing.assert_close(out, oracle(q, k, v, mask, layout, position), rtol=1e-5, atol=2e-6)
    assert report.graphs == 1


class Step(torch.nn.Module):
    """A decode step over a ring, as a pure function: what is exported holds no plan."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, position: Tensor, valid: Tensor) -> Tensor:
        mask = on_cache(causal() & key_padding(valid), RingCache(6, 4), position, 1)
        args = lower(mask, "sdpa", q.shape[0], None, 1, k.shape[2], device=q.device)
        return F.scaled_dot_product_attention(q, k, v, **args.kwargs())


@pytest.fixture(scope="module")
def step_inputs():
    return [(*qkv(RingCache(6, 4), 1, n), torch.tensor([[n + 3], [2 * n + 4]]), VALID) for n in range(6)]


# Strict export counts the fields of masks built in the graph as side effects; inductor's loader warns of its own calls.
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")
@pytest.mark.parametrize("strict", [True, False])
def test_export(strict, step_inputs):
    program = torch.export.export(Step(), step_inputs[0], strict=strict)
    for inputs in step_inputs:
        torch.testing.assert_close(program.module()(*inputs), Step()(*inputs))


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_aot_inductor(step_inputs, tmp_path):
    program = torch.export.export(Step(), step_inputs[0])
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "step.pt2"))
    loaded = torch._inductor.aoti_load_package(package)
    for inputs in step_inputs:
        torch.testing.assert_close(loaded(*inputs), Step()(*inputs), rtol=1e-5, atol=2e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["sdpa", "eager", "flex", "flash"])
def test_a_step_is_captured_and_replayed(backend):
    """No host sync, and a CUDA graph that follows the positions."""
    mask = causal() & sliding_window(5)
    plan, other = (DecodePlan(mask, StaticCache(LENGTH), B, H, 1, backend=backend, device="cuda") for _ in range(2))
    position = torch.zeros(B, 1, dtype=torch.int64, device="cuda")
    step_ = torch.compile(plan.step_, fullgraph=True)
    for _ in range(3):
        step_(position)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan.step_(position)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in (5, 130, 7):
            position.fill_(step)
            graph.replay()
            other.step_(position)
            step_(position)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for mine, theirs in zip(
        *((p.args.kwargs()["block_mask"].as_tuple() if backend == "flex" else p.args[:1]) for p in (plan, other)),
        strict=True,
    ):
        if isinstance(mine, Tensor) and (mine.dim() != 4 or backend != "flex"):
            assert torch.equal(mine, theirs)
