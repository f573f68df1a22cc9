"""What each rank of a test of context parallelism runs: every case in one process group."""

from __future__ import annotations

import traceback

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from maskmod.distributed import context_parallel_attention
from sharded import LAYOUTS, MASKS, one_process, taken, tensors

METHODS = ("all_gather", "ring", "all_to_all")
TOLERANCE = 1e-11


def cases() -> list[tuple[str, str, str]]:
    """Every mask with every method on two layouts in turn, every layout with every method on three masks."""
    found = []
    for place, mask in enumerate(MASKS):
        for turn, method in enumerate(METHODS):
            layouts = list(LAYOUTS)
            found += [(mask, layouts[(place + turn * 2 + i * 3) % len(layouts)], method) for i in range(2)]
    for layout in LAYOUTS:
        found += [(mask, layout, method) for mask in ("causal", "packed causal", "per head") for method in METHODS]
    return list(dict.fromkeys(found))


def difference(rank: int, world: int, mesh, mask_name: str, layout_name: str, method: str) -> str | None:
    """What is wrong on this rank, or None."""
    mask, layout = MASKS[mask_name](), LAYOUTS[layout_name]()
    q, k, v, grad = tensors(kv_heads=2 if world <= 2 else 4)
    truth = one_process(mask, q, k, v, grad)
    mine = layout.positions(rank, world, q.shape[2])
    q, k, v = (taken(x, mine).requires_grad_() for x in (q, k, v))
    out = context_parallel_attention(q, k, v, mask, mesh=mesh, layout=layout, method=method, block=4)
    out.backward(taken(grad, mine))
    found = (out.detach(), *(x.grad for x in (q, k, v)))
    for name, have, whole in zip(("out", "dq", "dk", "dv"), found, truth, strict=True):
        want = taken(whole, mine)
        if have is None or have.shape != want.shape or not torch.allclose(have, want, rtol=TOLERANCE, atol=TOLERANCE):
            off = "missing" if have is None else f"{(have - want).abs().max().item():.2e}"
            return f"{name} differs on rank {rank}: {off}"
    return None


def every_case(rank: int, world: int) -> dict[tuple, str | None]:
    mesh = init_device_mesh("cpu", (world,))
    answers: dict[tuple, str | None] = {}
    for case in cases():
        try:
            answers[case] = difference(rank, world, mesh, *case)
        except Exception:
            answers[case] = traceback.format_exc()
        if not _same_everywhere(answers[case] is None) and answers[case] is None:
            answers[case] = "another rank failed"
    return answers


def _same_everywhere(good: bool) -> bool:
    flag = torch.tensor([int(good)])
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag)
