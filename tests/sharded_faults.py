"""What each rank of a test of faults runs: rank 1 disagrees with the others, dies, or is late."""

from __future__ import annotations

import os
import time
import traceback

import torch
from torch.distributed.device_mesh import init_device_mesh

from maskmod import causal, document, sliding_window
from maskmod.distributed import (
    Balanced,
    Contiguous,
    HeadTail,
    PerDocumentHeadTail,
    context_parallel_attention,
    context_parallel_plan,
)
from maskmod.distributed import exchange as exchanges
from maskmod.errors import RankError
from sharded import LENGTH, H, ids, taken, tensors


def captured(size):
    return lambda b, h, q_idx, kv_idx: q_idx - kv_idx < size


def other_body(size):
    return lambda b, h, q_idx, kv_idx: q_idx - kv_idx <= size


def odd(rank: int, world: int) -> dict[str, dict]:
    """What rank 1 passes in place of what the others pass, by the fault's name."""
    q, k, v, _ = tensors()
    wrong = HeadTail().positions(rank, world, LENGTH)[:-1]
    changed_ids = ids().clone()
    changed_ids[3] = 9
    return {
        "a window": {"mask": sliding_window(5)},
        "another kind of mask": {"mask": causal()},
        "a number that a lambda captured": {"mask": captured(3)},
        "the body of a lambda": {"mask": other_body(2)},
        "the size of a table": {"mask": document(torch.zeros(LENGTH + 1).long())},
        "contents": {"mask": document(changed_ids)},
        "a layout": {"layout": Contiguous()},
        "what a layout balances": {"layout": Balanced(causal(), block=4)},
        "contents of a layout": {"layout": PerDocumentHeadTail(changed_ids)},
        "a method": {"method": "ring"},
        "tokens": {"tensors": [taken(x, wrong) for x in (q, k, v)]},
        "keys": {"k": 1},
        "heads": {"tensors": [taken(x[:, :2], HeadTail().positions(rank, world, LENGTH)) for x in (q, k, v)]},
        "dtype": {"dtype": torch.float32},
        "gradients": {"requires_grad": True},
    }


COMMON = {
    "a number that a lambda captured": {"mask": captured(2)},
    "the body of a lambda": {"mask": captured(2)},
    "the size of a table": {"mask": document(torch.zeros(LENGTH).long())},
    "tokens": {"length": LENGTH},
    "contents": {"mask": document(ids()), "check_contents": True},
    "what a layout balances": {"layout": Balanced(sliding_window(4), block=4)},
    "contents of a layout": {"layout": PerDocumentHeadTail(ids()), "check_contents": True},
}


def every_disagreement(rank: int, world: int) -> dict[str, str]:
    """The error that each fault brings on this rank; the group serves them all."""
    mesh, errors = init_device_mesh("cpu", (world,)), {}
    for name, oddity in odd(rank, world).items():
        given = {"mask": sliding_window(4), "layout": HeadTail(), "method": "auto"} | COMMON.get(name, {})
        if rank == 1:
            given |= oddity
        q, k, v, _ = tensors()
        mine = HeadTail().positions(rank, world, LENGTH)
        local = given.pop("tensors", [taken(x, mine) for x in (q, k, v)])
        if given.pop("k", None):
            local[1] = local[1][:, :, 1:]
        local = [x.to(given.get("dtype", x.dtype)) for x in local]
        given.pop("dtype", None)
        if given.pop("requires_grad", None):
            local = [x.requires_grad_() for x in local]
        mask = given.pop("mask")
        try:
            context_parallel_attention(local[0], local[1], local[2], mask, mesh=mesh, **given)
            errors[name] = "no error"
        except RankError as error:
            errors[name] = str(error)
        except Exception:
            errors[name] = traceback.format_exc()
    return errors


def plan_and_call(rank: int, world: int, fault: str) -> str:
    """Two layers of one plan; rank 1 fails in its own way before the second."""
    mesh = init_device_mesh("cpu", (world,))
    plan = context_parallel_plan(
        causal(), mesh=mesh, layout=HeadTail(), B=2, H=H, length=LENGTH, kv_heads=2, method="all_gather", block=4
    )
    q, k, v, _ = tensors()
    mine = HeadTail().positions(rank, world, LENGTH)
    q, k, v = (taken(x, mine) for x in (q, k, v))
    plan(q, k, v)
    if rank == 1 and fault == "dies":
        os._exit(1)
    if rank == 1 and fault == "is late":
        time.sleep(5)
    if rank == 1 and fault == "dies in an exchange":
        exchanges.funcol.all_to_all_single = lambda *_, **__: os._exit(1)
    start = time.monotonic()
    try:
        plan(q, k, v)
    except RankError as error:
        return f"{time.monotonic() - start:.1f} {error}"
    return "no error"
