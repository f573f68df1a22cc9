"""The three ways to bring queries and keys together, chosen by what they move, and built from a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from maskmod.algebra import Mask
from maskmod.analyser.reading import read
from maskmod.distributed.gathered import Gathered, meeting
from maskmod.distributed.heads import Heads, heads_divide, kv_heads_of
from maskmod.distributed.layouts import Layout, offsets
from maskmod.distributed.local import Local
from maskmod.distributed.ring import Ring, Step
from maskmod.distributed.routes import Route, counts, full_route, needed, proven_route, who_needs
from maskmod.errors import MaskTypeError, MaskValueError
from maskmod.positions import shift

__all__ = ["METHODS", "Place", "Task", "build"]

METHODS = ("auto", "all_gather", "ring", "all_to_all")
MOST_ROWS = 1 << 22  # rows of keys, times kv heads and batch, beyond which "auto" goes rank by rank to save memory


class Place(NamedTuple):
    """This process among the ranks."""

    group: ProcessGroup
    rank: int
    world: int
    device: torch.device

    @classmethod
    def of(cls, mesh: DeviceMesh | ProcessGroup) -> Place:
        if isinstance(mesh, DeviceMesh):
            if mesh.ndim != 1:
                names = mesh.mesh_dim_names or tuple(range(mesh.ndim))
                raise MaskTypeError(
                    f"mesh of {mesh.ndim} dimensions", f"{names}", 'Pass the one the sequence lies on: mesh["cp"], say.'
                )
            group, kind = mesh.get_group(), mesh.device_type
        elif isinstance(mesh, ProcessGroup):
            group, kind = mesh, "cpu" if "gloo" in torch.distributed.get_backend(mesh) else "cuda"
        else:
            raise MaskTypeError(f"mesh={mesh!r}", f"a {type(mesh).__name__}", "Pass a DeviceMesh or a ProcessGroup.")
        device = torch.device(kind) if kind == "cpu" else torch.device(kind, torch.cuda.current_device())
        return cls(group, group.rank(), group.size(), device)


class Task(NamedTuple):
    """What is asked for."""

    mask: Mask
    layout: Layout
    B: int
    H: int
    length: int
    kv_heads: int
    lengths: tuple[int, ...]
    backend: str
    block: int


def build(place: Place, task: Task, method: str, *, proves: bool) -> tuple[Gathered | Ring | Heads, str]:
    """The way to run a task, and why that way. `proves`: read the mask, so that only what may be seen travels."""
    if method == "all_to_all":
        return _heads(place, task), "asked for"
    needs = None
    if proves:
        mine = needed(task.mask, task.layout, place.rank, place.world, task.B, task.H, task.length, task.block)
        needs = who_needs(mine, place.group, place.device)
    why = "asked for"
    if method == "auto":
        method, why = _choose(place, task, needs)
        if method == "all_to_all":
            return _heads(place, task), why
    order = task.layout.order(place.world, task.length).to(place.device)
    begin = offsets(task.lengths)
    q = order[..., begin[place.rank] : begin[place.rank + 1]]
    if method == "all_gather":
        route = _route(place, task, needs)
        take, local = meeting(task.mask, q, order, route, task.backend, every=needs is None)
        return Gathered(place.group, route, take, local), why
    steps = []
    table = None if needs is None else counts(needs, task.lengths, task.block)
    for behind in range(place.world):
        sources = [(rank - behind) % place.world for rank in range(place.world)]
        if behind and table is not None and not any(int(table[rank, sources[rank]]) for rank in range(place.world)):
            continue  # nobody may see anything of the rank that many places before it
        route = _route(place, task, needs, sources)
        steps.append(Step(route, *meeting(task.mask, q, order, route, task.backend)))
    return Ring(place.group, tuple(steps)), why


def _choose(place: Place, task: Task, needs: Tensor | None) -> tuple[str, str]:
    """By what a rank has to receive at most, in rows of one head; the same on every rank."""
    if needs is None:
        return "all_gather", "inside a trace nothing is proven"
    if place.world == 1:
        return "all_gather", "one rank holds everything"
    table = counts(needs, task.lengths, task.block)
    fetched = int((table.sum(1) - table.diagonal()).max())
    keys = 2 * fetched * task.kv_heads
    if heads_divide(place.world, task.H, task.kv_heads):
        width = len(kv_heads_of(0, place.world, task.H, task.kv_heads))
        heads = (task.length - min(task.lengths)) * 2 * (task.H // place.world + width)
        reading = read(task.mask, task.B, task.H, task.length, task.length, device=place.device)
        if heads < keys and reading.lanes.H == 1:  # heads that see unlike amounts would leave ranks idle
            return "all_to_all", f"heads move {heads} rows of one head a rank, keys and values {keys}"
    if fetched * task.kv_heads * task.B > MOST_ROWS:
        return "ring", f"{fetched} keys of other ranks at once would take much memory"
    return "all_gather", f"one exchange brings a rank {fetched} of {task.length} keys at most"


def _route(place: Place, task: Task, needs: Tensor | None, sources: Sequence[int] | None = None) -> Route:
    if needs is None:
        route = full_route(task.lengths, place.rank, sources)
    else:
        route = proven_route(needs, task.lengths, place.rank, task.block, sources)
    return route._replace(**{name: getattr(route, name).to(place.device) for name in ("give", "own", "places")})


def _heads(place: Place, task: Task) -> Heads:
    world = place.world
    if not heads_divide(world, task.H, task.kv_heads):
        raise MaskValueError(
            f'method="all_to_all" with H={task.H}, kv_heads={task.kv_heads}',
            f"{world} ranks cannot share them equally",
            'Use method="all_gather" or "ring".',
        )
    order: Tensor | None = None
    restore: Tensor | None = None
    if task.layout.start(0, world, task.length) is None:
        order = task.layout.order(world, task.length).to(place.device)
        restore = task.layout.restore(world, task.length).to(place.device)
    width = task.H // world
    mask = task.mask if world == 1 else shift(task.mask, h_offset=place.rank * width)
    return Heads(place.group, task.lengths, order, restore, Local(mask, task.backend))
