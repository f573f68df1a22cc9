"""Exact attention from fused calls on just the keys that blocks of queries can see: no compiler, and no dense mask.

Forward and backward, any mask whose rows are a few intervals (and others, where their boundary is small), one for each
head or row where the mask says so, every dtype and device. On CPU this is the fast way without a compile; elsewhere it
is plain torch, exact and slow.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskmod._torch.tracing import tracing
from maskmod.algebra import Sizes
from maskmod.analyser.reading import Reading
from maskmod.analyser.solve import Intervals, solved
from maskmod.backends.costs import pairs, rates
from maskmod.backends.empty_rows import fill_empty_rows
from maskmod.backends.protocol import Backend, Bid, Call, Request, moved
from maskmod.backends.span_kernel import (
    Calls,
    Packing,
    Shape,
    attend_in_graph,
    attend_rectangles,
    packed,
    unpacked,
)
from maskmod.errors import UnsupportedMask
from maskmod.facts.span_blocks import Group, TooOpen, cut, cut_tiles, hulls
from maskmod.facts.tiles import tiles_of

__all__ = ["Spans", "SpansArgs", "spans_attention"]

_ROWS = {64: 0.75, 128: 0.82, 256: 0.94, 512: 0.97, 1024: 1.0}
"""Queries of a block, and how fast the fused kernel is with so many against long queries: a CPU thread, heads of 64."""

_HELD = 1 << 8  # tokens of tables held for each query and key; more are made from intervals at each call
_OPEN = 1 << 10  # tokens of opened blocks for each query and key, where there are no intervals to make them from
_PLAIN = 10.0  # how much slower plain torch is than a fused kernel
_SOLVE = 2.5  # milliseconds to solve a mask for its intervals, for each interval of a row
_CUT = 0.12  # milliseconds to cut out one rectangle
_TILES = 20.0  # the same for descending tiles


class SpansArgs(NamedTuple):
    """For `spans_attention`. packing: what to compute, as tensors. calls: the same as Python values, views of them.

    sees: bool (B|1, H|1, q_len, 1), which queries see anything; None where all do.
    """

    packing: Packing
    calls: Calls
    sees: Tensor | None
    sizes: Sizes
    why: str

    def kwargs(self) -> dict[str, Any]:
        """For `spans_attention` (q, k, v, **kwargs)."""
        return {"args": self}

    def __reduce__(self):  # views would each be stored with all that they are views of
        return _made, (self.packing, self.sees, self.sizes, self.why)


def _made(packing: Packing, sees: Tensor | None, sizes: Sizes, why: str) -> SpansArgs:
    return SpansArgs(packing, unpacked(packing), sees, sizes, why)


def spans_attention(
    q: Tensor, k: Tensor, v: Tensor, *, args: SpansArgs, scale: float | None = None, sink_logits: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention over the rectangles of `args`: the output (B, Hq, q_len, Dv), zero for queries that see nothing, and
    the log-sum-exp of each query's scores, (B, Hq, q_len)."""
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    if tracing(q, k, v):
        return attend_in_graph(q, k, v, sink_logits, args.packing, factor)
    return attend_rectangles(q, k, v, sink_logits, args.calls, factor)


class Spans(Backend):
    name = "spans"
    takes = frozenset({"return_lse", "sink_logits"})

    def lower(self, reading: Reading, *, dtype: torch.dtype, empty_rows: str = "keep") -> SpansArgs:
        written = f'lower({reading.mask!r}, "spans")'
        if reading.traced:
            raise UnsupportedMask(written, _IN_GRAPH, "Make a plan outside the graph and call it inside.")
        if empty_rows != "keep":
            raise UnsupportedMask(
                written,
                "queries that see nothing are in none of its calls",
                'Use attention(..., empty_rows="uniform").',
            )
        B, H, q_len, kv_len = reading.lanes
        tokens = B * H * (q_len + kv_len)
        if reading.is_empty:
            calls = Calls((), (B, H), uncovered=True)
            sees = torch.zeros((B, H, q_len, 1), dtype=torch.bool, device=reading.device)
            packing = packed(calls, dtype, reading.device)
            return _made(packing, sees, reading.sizes, "there is nothing to attend to")
        found = solved(reading)
        if found is not None:
            rows = _best(found, 1.0, 0.0)[0]
            rectangles, how = cut(found, rows, _HELD * tokens), "its rows are intervals, solved without opening a block"
            sees = (found.start < found.end).any(-1)
        else:
            rows = 128
            try:
                rectangles, how = cut_tiles(reading, rows, _OPEN * tokens), "its tiles were descended"
            except TooOpen as reason:
                raise UnsupportedMask(written, _too_open(reason), 'Use backend="sdpa" or "flex".') from None
            sees = _seen(rectangles.groups, (B, H, q_len), reading.device)
        calls = Calls(tuple(_shape(g, dtype) for g in rectangles.groups), rectangles.lanes, rectangles.uncovered)
        part = rectangles.pairs / max(B * H * q_len * kv_len, 1)
        why = f"{rectangles.count} calls of {rows} queries meet {part:.1%} of all pairs: {how}"
        packing = packed(calls, dtype, reading.device)
        return _made(packing, None if bool(sees.all()) else sees.unsqueeze(-1), reading.sizes, why)

    def read_back(self, args: SpansArgs) -> Tensor:
        q_len, kv_len = args.sizes[2:]
        seen = torch.zeros((*args.calls.lanes, q_len, kv_len), dtype=torch.bool, device=args.packing.hidden.device)
        for shape in args.calls.shapes:
            visible = torch.ones(shape.rows, shape.keys, dtype=torch.bool)
            if shape.bias is not None:
                visible = shape.bias == 0
            elif shape.begin is not None and shape.stop is not None:
                key = torch.arange(shape.keys)
                spans = zip(shape.begin.unbind(-1), shape.stop.unbind(-1), strict=True)
                visible = sum(((key >= a[:, None]) & (key < z[:, None])).int() for a, z in spans) > 0
            for b, h, q, kv in shape.places:
                seen[b, h, q : q + shape.rows, kv : kv + shape.keys] |= visible
        return seen.expand(args.sizes)

    def bid(self, reading: Reading, request: Request) -> Bid | str:
        if reading.traced:
            return _IN_GRAPH
        if reading.is_empty:
            return Bid(rates(request.device).launch, "there is nothing to attend to")
        B, H, q_len, kv_len = reading.lanes
        every = request.B * request.H * q_len * kv_len
        lanes = request.B * request.H / (B * H)
        if request.device.type != "cpu":
            launches = rates(request.device).launch * 8 * -(-q_len // 128)
            cost = pairs(request, every) * _PLAIN + launches
            return Bid(cost, "off the CPU its calls are plain torch: exact, and slow")
        read = rates(request.device).read
        if pairs(request, every) * request.calls < _SOLVE:
            return Bid(
                pairs(request, every) + (read + _SOLVE) / request.calls,
                "so few pairs take less time than finding out which of them are visible",
            )
        found = solved(reading)
        launch = rates(request.device).launch * (1 + 2 * request.requires_grad)
        if found is not None:
            # An item of a lane that all heads share is one call for all of them.
            one = pairs(request, lanes)
            each = launch * (request.B if B == 1 else 1) + _CUT / request.calls
            rows, cost = _best(found, one, each)
            why = f"blocks of {rows} queries meet just the keys they see"
            return Bid(cost + (read + _SOLVE * found.start.shape[-1]) / request.calls, why)
        if pairs(request, every) * request.calls < 4 * _TILES:
            return Bid(
                pairs(request, every) + _TILES / request.calls,
                "its rows are not a few intervals, and so few pairs do not pay for a descent of tiles",
            )
        tiles = tiles_of(reading, (128, 64), exact=False)
        opened = int(tiles.partial.q.shape[0]) * 128 * 64
        if opened > _OPEN * B * H * (q_len + kv_len):
            return _too_open(TooOpen(opened))
        full = int((tiles.full.q_count * tiles.full.kv_count).sum()) * 128 * 64
        cost = pairs(request, (full + 1.5 * opened) * lanes) / _ROWS[128]
        entry = rates(request.device).entry * 20 * opened
        return Bid(cost + (_TILES + entry) / request.calls, "blocks of 128 queries meet the tiles that they can see")

    def move(self, args: SpansArgs, device: torch.device) -> SpansArgs:
        packing = moved(args.packing, device)._replace(table=args.packing.table)
        return _made(packing, moved(args.sees, device), args.sizes, args.why)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, args: SpansArgs, call: Call) -> Tensor | tuple[Tensor, Tensor]:
        out, lse = spans_attention(q, k, v, args=args, scale=call.scale, sink_logits=call.sink_logits)
        if call.empty_rows == "uniform" and args.sees is not None:
            out = fill_empty_rows(out, args.sees, v, "uniform")
        return (out, lse) if call.return_lse else out


_IN_GRAPH = "how it cuts a mask depends on values, which a graph may not look at"


def _too_open(reason: TooOpen) -> str:
    return f"its rows are no few intervals, and its partial blocks hold {reason.args[0]} tokens, too many to keep"


def _best(found: Intervals, one: float, call: float) -> tuple[int, float]:
    """The block of queries that costs least, and that cost, where a pair takes `one` and a call `call`."""
    q_len = found.start.shape[-2]
    costs: dict[int, float] = {}
    for rows, speed in _ROWS.items():
        low, high, *_ = hulls(found, rows)
        keys = (high - low).clamp(min=0)
        last = keys[:, -1].sum() * (q_len - (keys.shape[1] - 1) * rows)
        number = int(keys[:, :-1].sum()) * rows + int(last)
        costs[rows] = one * number / speed + call * int((keys > 0).sum())
        if rows >= q_len:
            break
    rows = min(costs, key=costs.__getitem__)
    return rows, costs[rows]


def _shape(group: Group, dtype: torch.dtype) -> Shape:
    bias = None
    if group.visible is not None:
        bias = torch.zeros(group.visible.shape, dtype=dtype, device=group.visible.device)
        bias = bias.masked_fill_(~group.visible, -torch.inf)
    hidden = None if group.sees is None else ~group.sees.unsqueeze(-1)
    return Shape(group.rows, group.keys, group.first, bias, group.begin, group.stop, hidden, group.places)


def _seen(groups: tuple[Group, ...], shape: tuple[int, int, int], device: torch.device) -> Tensor:
    sees = torch.zeros(shape, dtype=torch.bool, device=device)
    for group in groups:
        for b, h, q, _ in group.places:
            here = sees[b, h, q : q + group.rows]
            here |= True if group.sees is None else group.sees
    return sees
