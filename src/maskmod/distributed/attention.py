"""Attention over a sequence that is sharded over ranks: one call, or a plan that every layer of a step shares.

A plan knows who needs which keys, how they travel and which mask meets them. Kernels are `maskmod.attention`'s.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from maskmod._torch.tracing import known_true, tracing
from maskmod.algebra import Mask, MaskMod, as_mask
from maskmod.distributed.checks import Fact, agree, content_fact, layout_fact, mask_fact, spell_ranks
from maskmod.distributed.gathered import Gathered
from maskmod.distributed.heads import Heads
from maskmod.distributed.layouts import Layout
from maskmod.distributed.methods import METHODS, Place, Task, build
from maskmod.distributed.ring import Ring
from maskmod.errors import MaskShapeError, MaskTypeError, MaskValueError, RankError

__all__ = ["ContextPlan", "context_parallel_attention", "context_parallel_plan"]


class ContextPlan:
    """What `context_parallel_plan` returns: call it in every layer with this rank's own q, k, v.

    Attributes:
        method: "all_gather", "ring" or "all_to_all", and `why`.
        lengths: tokens of each rank.
        received: keys that this rank fetches from others for each layer (0 under "all_to_all", where rows of heads
            travel instead); `gathered` is what a plain all-gather would fetch.
    """

    def __init__(self, place: Place, task: Task, run: Gathered | Ring | Heads, why: str, check: bool):
        self.place, self.task, self.run, self.why, self.check = place, task, run, why, check
        self.lengths = task.lengths
        self.method = {Gathered: "all_gather", Ring: "ring", Heads: "all_to_all"}[type(run)]

    @property
    def received(self) -> int:
        return self.run.received

    @property
    def gathered(self) -> int:
        return sum(self.lengths) - self.lengths[self.place.rank]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
        """Attention of this rank's queries over every rank's keys: (B, H, local, Dv), as `maskmod.attention` has it.

        Args:
            q: (B, H, local, D), this rank's queries. k: (B, Hkv, local, D). v: (B, Hkv, local, Dv).
            scale: None is ``1 / sqrt(D)``.

        Raises:
            MaskShapeError: tensors that do not fit the plan.
            RankError: a rank's tensors differ from the others', or it is late, or gone.
        """
        if self.check and not tracing(q, k, v):
            _same_tensors(self.place.group, "a layer of a ContextPlan", q, k, v, {})
        B, H, length = self.task.B, self.task.H, self.lengths[self.place.rank]
        if any(known_true(a != b) for a, b in zip(q.shape, (B, H, length), strict=False)):
            raise MaskShapeError(
                f"plan(q={list(q.shape)})", f"planned for B={B}, H={H} and {length} local tokens", "Make a plan for it."
            )
        return self.run(q, k, v, scale)

    def __repr__(self) -> str:
        return f"ContextPlan({self.task.mask!r}, {self.task.layout!r}, {self.method}, {self.received} keys received)"


def context_parallel_plan(
    mask: MaskMod,
    *,
    mesh: DeviceMesh | ProcessGroup,
    layout: Layout,
    B: int | None = None,
    H: int | None = None,
    length: int | None = None,
    kv_heads: int | None = None,
    backend: str = "auto",
    method: str = "auto",
    block: int = 128,
    check: bool = True,
    check_contents: bool = False,
) -> ContextPlan:
    """Settle once a step who sends which keys to whom; every layer with this mask then calls the plan.

    Every rank reads its own shard of the mask, and the ranks tell each other what they may see. Each rank must call it.

    Args:
        mask: over the whole sequence, the same on every rank.
        mesh: a device mesh of one dimension, or a process group.
        layout: who holds which token.
        B, H: batch rows and query heads; None is 1. length: tokens of the whole sequence; None where the layout knows.
        kv_heads: None is H.
        backend: of the local attention, as in `maskmod.attention`.
        method: "all_gather" fetches the keys that a rank may see in one exchange. "ring" fetches them rank by rank and
            merges by log-sum-exp: the least memory. "all_to_all" gives every rank some heads of the whole sequence.
            "auto" takes the one that moves the least (`ContextPlan.why`).
        block: tokens at which visibility is proven; what a rank may see travels in such blocks.
        check: compare sizes, layout and the mask's structure across ranks, here and (shapes alone) in each layer.
        check_contents: compare the values of the mask's tensors too, by hash.

    Raises:
        MaskValueError: no such method, or heads that do not divide.
        RankError: a rank disagrees, is late, or is gone.
    """
    mask, place = as_mask(mask), Place.of(mesh)
    length = layout.known_length if length is None else length
    if length is None:
        raise MaskValueError("context_parallel_plan(length=None)", f"{layout!r} fits any length", "Pass length=.")
    _check_method(method)
    B, H = 1 if B is None else B, 1 if H is None else H
    kv_heads = H if kv_heads is None else kv_heads
    traced = tracing(*mask.tensors())
    if check and not traced:
        facts = {"B": B, "H": H, "kv_heads": kv_heads, "length": length, "block": block, "method": method}
        agree(place.group, "context_parallel_plan", facts | _mask_facts(mask, layout, backend, check_contents))
    task = Task(mask, layout, B, H, length, kv_heads, layout.lengths(place.world, length), backend, block)
    run, why = build(place, task, method, proves=not traced)
    return ContextPlan(place, task, run, why, check)


def context_parallel_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: MaskMod,
    *,
    mesh: DeviceMesh | ProcessGroup,
    layout: Layout,
    backend: str = "auto",
    method: str = "auto",
    length: int | None = None,
    scale: float | None = None,
    block: int = 128,
    check: bool = True,
    check_contents: bool = False,
) -> Tensor:
    """Attention of this rank's queries over the keys of all ranks: (B, H, local, Dv); differentiable.

    Every rank calls it with its own tokens, those at ``layout.positions(rank, world, length)``. Layers that share
    a mask share a plan: see `context_parallel_plan`, whose arguments these are.

    Inside a trace nothing is proven and nothing compared: every key travels. There ``length=None`` means that all ranks
    hold equally many tokens.

    Args:
        q: (B, H, local, D). k: (B, Hkv, local, D). v: (B, Hkv, local, Dv), where Hkv divides H.
        mask: over the whole sequence, the same on every rank.
        length: tokens of the whole sequence; None adds up what the ranks hold.

    Raises:
        MaskShapeError: tensors that do not fit each other.
        RankError: a rank disagrees on shapes, dtype, mask or layout, is late, or is gone.
    """
    mask, place = as_mask(mask), Place.of(mesh)
    _check_method(method)
    traced = tracing(q, k, v, *mask.tensors())
    if check and not traced:
        facts = {"method": method, "block": block, "length": -1 if length is None else length}
        facts |= _mask_facts(mask, layout, backend, check_contents)
        held = _same_tensors(place.group, "context_parallel_attention", q, k, v, facts)
        length = sum(held) if length is None else length
        expected = layout.lengths(place.world, length)
        wrong = [rank for rank in range(place.world) if held[rank] != expected[rank]]
        if wrong:
            dealt = f"the ranks hold {held} tokens, {layout!r} deals {length} as {list(expected)}"
            seen = f"{spell_ranks(wrong)} with other tokens than its own: {dealt}"
            raise RankError("context_parallel_attention", seen, "Take layout.positions(rank, world, length) on each.")
    _check_tensors(q, k, v)
    if length is None:
        length = q.shape[2] * place.world if layout.known_length is None else layout.known_length
    B, H = q.shape[:2]
    task = Task(mask, layout, B, H, length, k.shape[1], layout.lengths(place.world, length), backend, block)
    run, _ = build(place, task, method, proves=not traced)
    return run(q, k, v, scale)


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise MaskValueError(f"method={method!r}", "no such method", f"Pass one of {', '.join(METHODS)}.")


def _mask_facts(mask: Mask, layout: Layout, backend: str, contents: bool) -> dict[str, int | str | Fact]:
    facts: dict[str, int | str | Fact] = {"backend": backend, "mask": mask_fact(mask), "layout": layout_fact(layout)}
    if contents:
        facts["the contents of the mask's tensors"] = content_fact(mask.tensors())
        facts["the contents of the layout's tensors"] = content_fact(layout.tensors())
    return facts


def _same_tensors(
    group: ProcessGroup, what: str, q: Tensor, k: Tensor, v: Tensor, facts: dict[str, int | str | Fact]
) -> list[int]:
    """Compare shapes, dtypes and who wants gradients; the number of tokens that each rank holds."""
    grads = torch.is_grad_enabled()
    wanted = "".join(name for name, x in (("q", q), ("k", k), ("v", v)) if grads and x.requires_grad)
    known: dict[str, int | str | Fact] = {
        "own tokens": q.shape[-2],
        "own keys": k.shape[-2],
        "own values": v.shape[-2],
        "the shape of q without its tokens": str([*q.shape[:-2], q.shape[-1]]),
        "the shape of k without its tokens": str([*k.shape[:-2], k.shape[-1]]),
        "the shape of v without its tokens": str([*v.shape[:-2], v.shape[-1]]),
        "the dtype of q, k, v": f"{q.dtype}, {k.dtype}, {v.dtype}".replace("torch.", ""),
        "who wants gradients": wanted or "nobody",
    }
    rows = agree(group, what, known | facts)
    for rank, (tokens, *others) in enumerate(row[:3] for row in rows):
        if others != [tokens, tokens]:
            seen = f"rank {rank} has {tokens} queries, {others[0]} keys and {others[1]} values"
            raise RankError(what, seen, "A rank's keys and values are those of its own tokens.")
    return [row[0] for row in rows]


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    written = f"context_parallel_attention(q={list(q.shape)}, k={list(k.shape)}, v={list(v.shape)})"
    if not (q.dtype == k.dtype == v.dtype and q.dtype.is_floating_point):
        raise MaskTypeError(written, f"dtypes {q.dtype}, {k.dtype}, {v.dtype}", "Pass one floating dtype.")
    if any(x.dim() != 4 for x in (q, k, v)):
        raise MaskShapeError(written, "not all 4-d", "Pass (batch, heads, local tokens, size).")
    if k.shape[:3] != v.shape[:3] or k.shape[2] != q.shape[2] or k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise MaskShapeError(
            written, "they do not fit", "q, k and v hold the same rows and tokens, k and v the same heads."
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise MaskShapeError(written, f"{k.shape[1]} kv heads do not divide {q.shape[1]}", "Group the heads equally.")
