"""What each rank of a test of compiled context parallelism runs."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh

from maskmod.distributed import HeadTail, context_parallel_attention, context_parallel_plan
from maskmod.testing import watch_graphs
from sharded import LAYOUTS, LENGTH, MASKS, H, one_process, taken, tensors

CALLS = [  # method, mask, layout, length: None is left to the call
    ("all_gather", "packed causal", "head-tail", 36),
    ("all_gather", "per head", "balanced", 37),
    ("ring", "causal", "striped", 36),
    ("all_to_all", "packed causal", "per document", 37),
]
PLANS = ["all_gather", "ring", "all_to_all"]


def compiled_cases(rank: int, world: int) -> dict[str, dict[str, Any]]:
    """Graphs, breaks and the greatest difference to one process, forward and backward, of each case."""
    mesh, found = init_device_mesh("cpu", (world,)), {}
    for method, mask_name, layout_name, length in CALLS:
        mask, layout = MASKS[mask_name](), LAYOUTS[layout_name]()
        layout.prepare(world, length)
        given = {} if length == 36 else {"length": length}

        def call(q, k, v, mask=mask, layout=layout, method=method, given=given):
            return context_parallel_attention(q * 1.0, k, v, mask, mesh=mesh, layout=layout, method=method, **given)

        found[f"{method}, {mask_name}, {layout_name}"] = _compiled(call, mask, layout, rank, world, length)
    for method in PLANS:
        mask, layout = MASKS["packed causal"](), HeadTail()
        plan = context_parallel_plan(
            mask, mesh=mesh, layout=layout, B=2, H=H, length=LENGTH, kv_heads=2, method=method, block=4
        )

        def planned(q, k, v, plan=plan):
            return plan(q * 1.0, k, v)

        found[f"a plan, {method}"] = _compiled(planned, mask, layout, rank, world, LENGTH)
    return found


def _compiled(function, mask, layout, rank: int, world: int, length: int) -> dict[str, Any]:
    torch._dynamo.reset()
    q, k, v, grad = tensors(length=length)
    truth = one_process(mask, q, k, v, grad)
    mine = layout.positions(rank, world, length)
    local = [taken(x, mine).requires_grad_() for x in (q, k, v)]
    with watch_graphs() as report:
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        out = compiled(*local)
        out.backward(taken(grad, mine))
        compiled(*local)
    have = [out.detach(), *(x.grad for x in local)]
    off = [(a - taken(b, mine)).abs().max().item() for a, b in zip(have, truth, strict=True)]
    return {"graphs": report.graphs, "breaks": len(report.breaks), "off": max(off)}
