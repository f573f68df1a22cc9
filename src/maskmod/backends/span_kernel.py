"""Attention over rectangles of queries and keys: one fused call for each, or for many that lie at even distances.

What several rectangles say about one query is merged by log-sum-exp, and the backward takes each rectangle by itself
with the merged answer. In a graph the whole is one operator, so that no length of a rectangle becomes a part of the
graph. This module does not know what a mask is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from maskmod._torch.fused import attend, attend_backward
from maskmod.facts.span_blocks import Rectangle, inside

__all__ = ["Calls", "Packing", "Shape", "attend_in_graph", "attend_rectangles", "packed", "unpacked"]


class Shape(NamedTuple):
    """Rectangles of one shape; see `maskmod.facts.span_blocks.Group`.

    bias: (rows, keys), 0 or -inf, or None where all is visible or `begin`, `stop` say what is.
    """

    rows: int
    keys: int
    first: bool
    bias: Tensor | None
    begin: Tensor | None
    stop: Tensor | None
    hidden: Tensor | None  # bool (rows, 1), rows that see nothing here; None where there are none
    places: tuple[Rectangle, ...]


class Calls(NamedTuple):
    """All rectangles of a mask, for lanes (B|1, H|1); uncovered: some queries are in none."""

    shapes: tuple[Shape, ...]
    lanes: tuple[int, int]
    uncovered: bool


# ------------------------------------------------------------------------------------------------------ one fused call


class _Place:
    """Where one call stands in q (and all that has its shape) and in k and v."""

    def __init__(self, shape: Shape, place: Rectangle, lanes: tuple[int, int], group: int):
        self.rows, self.keys, self.place = shape.rows, shape.keys, place
        self.own_row, self.own_head, self.group = lanes[0] > 1, lanes[1] > 1, group

    def of_q(self, x: Tensor) -> Tensor:
        x = x.narrow(0, self.place.b, 1) if self.own_row else x
        x = x.narrow(1, self.place.h, 1) if self.own_head else x
        return x.narrow(2, self.place.q, self.rows)

    def of_kv(self, x: Tensor) -> Tensor:
        x = x.narrow(0, self.place.b, 1) if self.own_row else x
        x = x.narrow(1, self.place.h // self.group, 1) if self.own_head else x
        return x.narrow(2, self.place.kv, self.keys)

    def add_to_kv(self, x: Tensor, part: Tensor) -> None:
        self.of_kv(x).add_(part)


class _Even:
    """Places at even distances, as one batch: overlapping views, nothing is copied."""

    def __init__(self, shape: Shape, b: int, steps: tuple[int, int], first: Rectangle, count: int):
        self.q = (first.q, steps[0], shape.rows)
        self.kv = (first.kv, steps[1], shape.keys)
        self.b, self.count = b, count

    def _view(self, x: Tensor, start: int, step: int, length: int) -> Tensor:  # (count, H, length, D)
        along_b, along_h, along_n, along_d = x.stride()
        offset = x.storage_offset() + self.b * along_b + start * along_n
        return x.as_strided(
            (self.count, x.shape[1], length, x.shape[3]), (step * along_n, along_h, along_n, along_d), offset
        )

    def of_q(self, x: Tensor) -> Tensor:
        return self._view(x, *self.q)

    def of_kv(self, x: Tensor) -> Tensor:
        return self._view(x, *self.kv)

    def add_to_kv(self, x: Tensor, part: Tensor) -> None:
        start, step, length = self.kv
        for i in range(self.count):  # they overlap
            x[self.b : self.b + 1, :, start + i * step : start + i * step + length].add_(part[i : i + 1])


def _places(shape: Shape, lanes: tuple[int, int], B: int, group: int) -> Iterator[_Place | _Even]:
    if lanes[1] == 1 and len(shape.places) > 1:
        for b in range(lanes[0]):
            own = [p for p in shape.places if p.b == b]
            steps = _steps(own)
            if steps is None:
                yield from (_Place(shape, p, lanes, group) for p in own)
                continue
            for row in (b,) if lanes[0] > 1 else range(B):
                yield _Even(shape, row, steps, own[0], len(own))
        return
    for place in shape.places:
        yield _Place(shape, place, lanes, group)


def _steps(places: Sequence[Rectangle]) -> tuple[int, int] | None:
    """The distances (of queries, of keys) between places, where they are even."""
    if len(places) < 2:
        return None
    q, kv = places[1].q - places[0].q, places[1].kv - places[0].kv
    if q <= 0 or kv < 0:
        return None
    even = all(b.q - a.q == q and b.kv - a.kv == kv for a, b in itertools.pairwise(places))
    return (q, kv) if even else None


def _bias(shape: Shape, dtype: torch.dtype) -> Tensor | None:  # (1, 1, rows, keys)
    bias = shape.bias
    if shape.begin is not None and shape.stop is not None:
        visible = inside(shape.begin, shape.stop, shape.keys)
        bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)
    return None if bias is None else bias.to(dtype).view(1, 1, shape.rows, shape.keys)


# ------------------------------------------------------------------------------------------------------- all the calls


def _forward(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, calls: Calls, scale: float
) -> tuple[Tensor, Tensor]:
    """Output (B, Hq, n, D) and log-sum-exp (B, Hq, n), -inf where a query sees nothing."""
    B, H, n, D = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    if calls.uncovered:
        out = q.new_zeros((B, n, H, D)).transpose(1, 2)
        lse = torch.full((B, H, n, 1), -torch.inf, dtype=wide, device=q.device)
    else:
        out, lse = q.new_empty((B, n, H, D)).transpose(1, 2), q.new_empty((B, H, n, 1), dtype=wide)
    for shape in calls.shapes:
        bias = _bias(shape, q.dtype)
        for at in _places(shape, calls.lanes, B, H // k.shape[1]):
            queries = at.of_q(q)
            table = None if bias is None else bias.expand(queries.shape[0], 1, -1, -1)
            part, part_lse = attend(queries, at.of_kv(k), at.of_kv(v), table, scale)
            part_lse = part_lse.unsqueeze(-1)
            if shape.hidden is not None:
                part, part_lse = part.masked_fill(shape.hidden, 0), part_lse.masked_fill(shape.hidden, -torch.inf)
            here, here_lse = at.of_q(out), at.of_q(lse)
            if shape.first:
                here.copy_(part)
                here_lse.copy_(part_lse)
                continue
            total = torch.logaddexp(here_lse, part_lse)
            here.lerp_(part, torch.exp(part_lse - total).nan_to_num_(0.0).to(q.dtype))
            here_lse.copy_(total)
    lse = lse.squeeze(-1)
    if sinks is not None:  # one more score, without a value
        total = torch.logaddexp(lse, sinks.to(wide).view(1, -1, 1))
        out = out * torch.exp(lse - total).unsqueeze(-1).to(q.dtype)
        lse = total
    return out, lse


def _backward(
    grad: Tensor | None,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    out: Tensor,
    lse: Tensor,
    calls: Calls,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    grad = torch.zeros_like(out) if grad is None else grad
    hidden = torch.isneginf(lse)
    lse = lse.masked_fill(hidden, 0)
    d_sinks = None
    if sinks is not None:
        along = (grad.to(lse.dtype) * out.to(lse.dtype)).sum(-1)
        along = -along if grad_lse is None else grad_lse - along
        d_sinks = (torch.exp(sinks.to(lse.dtype).view(1, -1, 1) - lse) * along).sum((0, 2)).to(sinks.dtype)
    D = q.shape[-1]
    if grad_lse is not None:
        # The kernel subtracts the sum of grad * out from each row; a column of ones against -grad_lse adds to it.
        ones = torch.ones_like(grad[..., :1])
        grad = torch.cat([grad, ones], -1)
        out = torch.cat([out, -grad_lse.masked_fill(hidden, 0).unsqueeze(-1).to(out.dtype)], -1)
        q, k, v = (torch.nn.functional.pad(x, (0, 1)) for x in (q, k, v))
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    lse = lse.unsqueeze(-1)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for shape in calls.shapes:
        bias = _bias(shape, q.dtype)
        for at in _places(shape, calls.lanes, q.shape[0], q.shape[1] // k.shape[1]):
            queries = at.of_q(q)
            table = None if bias is None else bias.expand(queries.shape[0], 1, -1, -1)
            parts = attend_backward(
                at.of_q(grad), queries, at.of_kv(k), at.of_kv(v), at.of_q(out), at.of_q(lse).squeeze(-1), table, scale
            )
            at.of_q(dq).add_(parts[0])
            at.add_to_kv(dk, parts[1])
            at.add_to_kv(dv, parts[2])
    return dq[..., :D], dk[..., :D], dv[..., :D], d_sinks


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(q, k, v, sinks, calls, scale):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _forward(q, k, v, sinks, calls, scale)

    @staticmethod
    def setup_context(ctx, inputs, output):
        q, k, v, sinks, ctx.calls, ctx.scale = inputs
        ctx.save_for_backward(q, k, v, sinks, *output)
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_lse):  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, sinks, out, lse = ctx.saved_tensors
        return *_backward(grad, grad_lse, q, k, v, sinks, out, lse, ctx.calls, ctx.scale), None, None


def attend_rectangles(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, calls: Calls, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention over all rectangles: output (B, Hq, n, Dv) and log-sum-exp (B, Hq, n), -inf where nothing is seen.

    Args:
        q: (B, Hq, n, D). k: (B, Hkv, m, D). v: (B, Hkv, m, Dv).
        sinks: (Hq,), one more score for every query of a head, without a value; or None.
    """
    q, k, wide = _one_size(q, k, v)
    q, k, wide = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, wide))
    needs_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, wide, sinks))
    out, lse = (_Attend.apply if needs_grad else _forward)(q, k, wide, sinks, calls, scale)
    return (out if wide is v else out[..., : v.shape[-1]]), lse


def attend_in_graph(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, packing: Packing, scale: float
) -> tuple[Tensor, Tensor]:
    """`attend_rectangles` as one operator, for a trace."""
    q, k, wide = _one_size(q, k, v)
    out, lse = _operator(q, k, wide, sinks, *packing, scale)
    return out[..., : v.shape[-1]], lse


def _one_size(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys as wide as values, or values as wide as they: the fused kernel takes one head size."""
    D, Dv = q.shape[-1], v.shape[-1]
    if Dv < D:
        v = torch.nn.functional.pad(v, (0, D - Dv))
    elif Dv > D:
        q, k = (torch.nn.functional.pad(x, (0, Dv - D)) for x in (q, k))
    return q, k, v


# ------------------------------------------------------------------------------------------ one operator for any graph


class Packing(NamedTuple):
    """Calls as four tensors, whatever their number: so they are inputs of a graph and never a part of it.

    table: int64, on CPU. biases: every bias, end to end. ends: every `begin` and `stop`. hidden: every `hidden`.
    """

    table: Tensor
    biases: Tensor
    ends: Tensor
    hidden: Tensor


def packed(calls: Calls, dtype: torch.dtype, device: torch.device) -> Packing:
    """Calls as tensors."""
    biases, ends, hidden = [], [], []
    table = [*calls.lanes, int(calls.uncovered), len(calls.shapes)]
    for shape in calls.shapes:
        spans = -1 if shape.begin is None else shape.begin.shape[-1]
        kinds = (int(shape.bias is not None), spans, int(shape.hidden is not None))
        table += [shape.rows, shape.keys, int(shape.first), *kinds, len(shape.places)]
        table += [x for place in shape.places for x in place]
        biases += [] if shape.bias is None else [shape.bias.flatten()]
        ends += [x.flatten() for x in (shape.begin, shape.stop) if x is not None]
        hidden += [] if shape.hidden is None else [shape.hidden.flatten()]
    flat = [
        torch.cat(x) if x else torch.empty(0, dtype=kind, device=device)
        for x, kind in ((biases, dtype), (ends, torch.int64), (hidden, torch.bool))
    ]
    return Packing(torch.tensor(table, dtype=torch.int64), *flat)


def unpacked(packing: Packing) -> Calls:
    """What `packed` packed, as views of its tensors."""
    numbers = iter(packing.table.tolist())
    at = [0, 0, 0]

    def take(kind: int, *shape: int) -> Tensor:
        length = math.prod(shape)
        at[kind] += length
        return packing[1 + kind][at[kind] - length : at[kind]].view(shape)

    B, H, uncovered, count = (next(numbers) for _ in range(4))
    shapes = []
    for _ in range(count):
        rows, keys, first, has_bias, spans, has_hidden, places = (next(numbers) for _ in range(7))
        where = tuple(Rectangle(*(next(numbers) for _ in range(4))) for _ in range(places))
        bias = take(0, rows, keys) if has_bias else None
        begin, stop = (take(1, rows, spans), take(1, rows, spans)) if spans >= 0 else (None, None)
        hidden = take(2, rows, 1) if has_hidden else None
        shapes.append(Shape(rows, keys, bool(first), bias, begin, stop, hidden, where))
    return Calls(tuple(shapes), (B, H), bool(uncovered))


@torch.library.custom_op("maskmod::attend_rectangles", mutates_args=())
def _operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    table: Tensor,
    biases: Tensor,
    ends: Tensor,
    hidden: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    return _forward(q, k, v, sinks, unpacked(Packing(table, biases, ends, hidden)), scale)


@_operator.register_fake
def _(q, k, v, sinks, table, biases, ends, hidden, scale):
    B, H, n, D = q.shape
    out = q.new_empty((B, n, H, D)).transpose(1, 2)
    out = out if sinks is None else out.clone()
    return out, q.new_empty((B, H, n), dtype=torch.promote_types(q.dtype, torch.float32))


@torch.library.custom_op("maskmod::attend_rectangles_backward", mutates_args=())
def _operator_backward(
    grad: Tensor | None,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    out: Tensor,
    lse: Tensor,
    table: Tensor,
    biases: Tensor,
    ends: Tensor,
    hidden: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    calls = unpacked(Packing(table, biases, ends, hidden))
    *found, d_sinks = _backward(grad, grad_lse, q, k, v, sinks, out, lse, calls, scale)
    dq, dk, dv = (x.contiguous() for x in found)
    return dq, dk, dv, q.new_empty(0) if d_sinks is None else d_sinks


@_operator_backward.register_fake
def _(grad, grad_lse, q, k, v, sinks, out, lse, table, biases, ends, hidden, scale):
    like = [x.new_empty(x.shape) for x in (q, k, v)]
    return *like, q.new_empty(0) if sinks is None else sinks.new_empty(sinks.shape)


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad, grad_lse):
    q, k, v, sinks, *packing, out, lse = ctx.saved_tensors
    dq, dk, dv, d_sinks = _operator_backward(grad, grad_lse, q, k, v, sinks, out, lse, *packing, ctx.scale)
    return dq, dk, dv, None if sinks is None else d_sinks, None, None, None, None, None


_operator.register_autograd(_differentiate, setup_context=_save)
