"""What each rank of a test of torch's own parallelisms runs: its context parallel, pipelines, tensor parallel."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from maskmod import attention, causal, document, per_head, shift, sliding_window
from maskmod.distributed import (
    Balanced,
    Striped,
    load_balancer_of,
)
from sharded import LENGTH, H, one_process, taken, tensors

MICROBATCHES, ROWS, WIDTH = 4, 8, 16  # microbatches of two rows


def torch_shards_and_unshards(rank: int, world: int) -> list[str]:
    """What differs between torch's own sharding by a load balancer of ours, and ours."""
    from torch.distributed.tensor.experimental._attention import _context_parallel_shard, context_parallel_unshard

    mesh, length, wrong = init_device_mesh("cpu", (world,)), 64, []
    for layout in (Striped(), Balanced(causal() & sliding_window(9), block=4)):
        balancer = load_balancer_of(layout, world, length)
        x = torch.randn(2, 3, length, 4, generator=torch.Generator().manual_seed(0))
        mine: Any = _context_parallel_shard(mesh, [x.clone()], [2], load_balancer=balancer)[0]
        if not torch.equal(mine, taken(x, layout.positions(rank, world, length))):
            wrong.append(f"{layout!r} shards otherwise")
        (whole,) = context_parallel_unshard(mesh, [mine], [2], load_balancer=balancer)
        if not torch.equal(whole, x):
            wrong.append(f"{layout!r} is not undone")
    return wrong


def rows_of_ids() -> Tensor:
    """Documents of their own in each of ROWS batch rows."""
    return torch.stack([torch.arange(WIDTH) // (2 + row) for row in range(ROWS)])


class Stage(nn.Module):
    """A layer that attends under a mask over the whole batch; its rows begin at ``first_row`` of each microbatch."""

    def __init__(self, ids: Tensor):
        super().__init__()
        self.project = nn.Linear(WIDTH, 3 * WIDTH, dtype=torch.float64)
        self.ids = ids

    def forward(self, x: Tensor, first_row: Tensor) -> Any:  # x (rows, length, WIDTH), first_row (1,)
        mask = shift(causal() & document(self.ids), b_offset=first_row)
        q, k, v = self.project(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return x + attention(q, k, v, mask).transpose(1, 2).flatten(2)


def stage(number: int) -> Stage:
    torch.manual_seed(number)
    return Stage(rows_of_ids())


def pipelined(rank: int, world: int, schedule: str, compiles: bool) -> dict[str, Any]:
    """The loss and the gradients of this rank's stages under one of torch's schedules, and the same without it."""
    from torch.distributed.pipelining import PipelineStage, schedules

    interleaved = schedule in ("ScheduleInterleaved1F1B", "ScheduleLoopedBFS", "ScheduleInterleavedZeroBubble")
    numbers = [rank, rank + world] if interleaved else [rank]
    total = world * (2 if interleaved else 1)
    modules = {number: stage(number) for number in numbers}
    run: dict[int, Any] = {
        n: torch.compile(m, backend="aot_eager", fullgraph=True) if compiles else m for n, m in modules.items()
    }
    x = torch.randn(ROWS, WIDTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    stages = [PipelineStage(run[n], n, total, torch.device("cpu")) for n in numbers]
    loss = lambda out, target: (out * target).sum()  # noqa: E731
    kind = getattr(schedules, schedule)
    plan = kind(stages if interleaved else stages[0], MICROBATCHES, loss_fn=loss, scale_grads=False)
    first_rows = torch.arange(0, ROWS, ROWS // MICROBATCHES)
    losses: list[Tensor] = []
    given: dict[str, Any] = {"first_row": first_rows}
    if rank == world - 1:
        given |= {"target": x.cos(), "losses": losses}
    plan.step(*([x] if rank == 0 else []), **given)

    whole = [stage(number) for number in range(total)]
    y = x
    for module in whole:
        y = module(y, torch.zeros(1).long())
    value = loss(y, x.cos())
    value.backward()
    off = [
        (have.grad - want.grad).abs().max().item() if have.grad is not None and want.grad is not None else float("nan")
        for number in numbers
        for have, want in zip(modules[number].parameters(), whole[number].parameters(), strict=True)
    ]
    value = value.detach()
    summed = torch.stack(losses).detach().sum() if losses else value
    return {"gradients": max(off), "loss": (summed - value).abs().item()}


def heads_as_dtensors(rank: int, world: int) -> dict[str, float]:
    """Attention on DTensors sharded by heads, with each rank's mask shifted to its heads, against one process."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.experimental import local_map

    mesh = init_device_mesh("cpu", (world,))
    masks = [causal(), sliding_window(4), causal() & document(torch.arange(LENGTH) // 8), sliding_window(9)]
    mask = per_head(masks[:H])
    q, k, v, grad = tensors(kv_heads=H)
    truth = one_process(mask, q, k, v, grad)
    local = H // world

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, shift(mask, h_offset=mesh.get_local_rank() * local))

    sharded = [distribute_tensor(x.clone(), mesh, [Shard(1)]).requires_grad_() for x in (q, k, v)]
    on_heads: Any = local_map(attend, out_placements=[Shard(1)], in_placements=([Shard(1)],) * 3, device_mesh=mesh)
    out: Any = on_heads(*sharded)
    out.backward(distribute_tensor(grad, mesh, [Shard(1)]))
    found = [out, *(x.grad for x in sharded)]
    whole = [x.redistribute(placements=[Replicate()]).to_local() for x in found]
    return {
        name: (have - want).abs().max().item()
        for name, have, want in zip(("out", "dq", "dk", "dv"), whole, truth, strict=True)
    }


def every_parallelism(rank: int, world: int) -> dict[str, Any]:
    """All of the above but torch's sharding, in one group."""
    found: dict[str, Any] = {}
    for name, compiles in PIPELINES:
        found[f"{name}, {'compiled' if compiles else 'eager'}"] = pipelined(rank, world, name, compiles)
        dist.barrier()
    found["heads"] = heads_as_dtensors(rank, world)
    return found


PIPELINES = [
    ("ScheduleGPipe", False),
    ("Schedule1F1B", False),
    ("ScheduleInterleaved1F1B", False),
    ("ScheduleGPipe", True),
    ("Schedule1F1B", True),
]
