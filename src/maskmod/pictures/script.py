"""A recorded predicate as a JavaScript function of four numbers, exact or refused.

Whatever depends on the query alone, or on the key alone, is shipped as a table of its values, computed here by the
user's own torch functions. Only the steps where queries meet keys are translated, and only those whose integers stay
below 2**53, where JavaScript's numbers are exact. This module knows no page and draws nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskmod.analyser.expression import BOTH, Node
from maskmod.pictures.tables import encoded, runs_of

__all__ = ["NotScriptable", "Script"]

_EXACT = 1 << 53
_INT32 = 1 << 31
_WRAPS = {torch.int8: 7, torch.int16: 15, torch.int32: 31}
_MOST_ENTRIES = 1 << 24  # of one table


class NotScriptable(Exception):
    """A step with no exact equivalent in JavaScript; the message names it. Not an error of the user's."""


class Script:
    """Tables shared by the functions of one page; `function` adds to them."""

    def __init__(self) -> None:
        self.tables: list[dict[str, Any]] = []  # encoded; the page decodes each once
        self._known: dict[tuple, int] = {}

    def function(self, root: Node) -> str:
        """The source of ``(b, h, q, k) => 0 or 1``.

        Raises:
            NotScriptable: with the step that JavaScript cannot do exactly.
        """
        return _Function(self, root).source()

    def table(self, values: Tensor) -> int:
        """The number of a table that holds these values, in order."""
        if values.numel() > _MOST_ENTRIES:
            raise NotScriptable(f"a table of {values.numel()} entries")
        entry = encoded(values)
        data = entry["data"]
        key = (entry["kind"], entry["n"], data if isinstance(data, str) else tuple(data))
        if key not in self._known:
            self._known[key] = len(self.tables)
            self.tables.append(entry)
        return self._known[key]


_INDICES = ("b", "h", "q", "k")
_Bounds = tuple[float, float]


class _Function:
    """One function's statements: a constant for each scalar step, an arrow function for each step with a shape."""

    def __init__(self, script: Script, root: Node):
        self.script, self.root = script, root
        self.lines: list[str] = []
        self.names: dict[int, str] = {}
        self.known: dict[int, _Bounds] = {}
        self.loops = 0

    def source(self) -> str:
        answer = self.scalar(self.root)
        return f"(b,h,q,k)=>{{{''.join(self.lines)}return {answer};}}"

    # A node of shape () is an expression; one with a shape is an expression of its indices.

    def scalar(self, node: Any) -> str:
        return self.at(node, ())

    def at(self, node: Any, index: tuple[str, ...]) -> str:
        """The value at an index of the node's own shape, aligned from the right as broadcasting does."""
        if not isinstance(node, Node):
            return _number(node)
        own = len(node.shape)
        index = (
            tuple("0" if n == 1 else i for i, n in zip(index[len(index) - own :], node.shape, strict=True))
            if own
            else ()
        )
        if node.number not in self.names:
            self.names[node.number] = self.define(node)
        name = self.names[node.number]
        return f"{name}({','.join(index)})" if own else name

    def define(self, node: Node) -> str:
        index = tuple(f"i{d}" for d in range(len(node.shape)))
        if node.axes != BOTH:
            body = self.leaf(node, index)
        elif node.op == "gather":
            body = self.gather(node, index)
        elif node.op in ("any", "all"):
            body = self.reduction(node, index)
        elif node.op == "reshape":
            body = self.at(node.args[0], _reshaped(index, node.shape, node.args[0].shape))
        elif node.op == "select":
            body = self.at(node.args[0], _selected(index, node.options, node.args[0].shape))
        else:
            body = self.step(node, index)
        if not node.shape and (body.isidentifier() or body.lstrip("-").isdigit()):
            return body
        name = f"n{node.number}"
        self.lines.append(f"const {name}=({','.join(index)})=>{body};" if node.shape else f"const {name}={body};")
        return name

    def leaf(self, node: Node, index: tuple[str, ...]) -> str:
        if node.op == "index":
            return _INDICES[node.args[0]]
        value = node.value
        if value.is_floating_point() and value.dtype not in (torch.float32, torch.float64):
            raise NotScriptable(f"numbers of {node.dtype}")
        if not value.is_floating_point():
            self.check(self.bounds(node), node)
        if value.numel() == 1:
            return _number(value.item())
        lanes = [d for d in range(4) if value.shape[d] > 1]
        if len(lanes) == 1 and not node.shape and value.dtype != torch.bool and not value.is_floating_point():
            runs = runs_of(value.reshape(-1).long())
            if runs is not None and len(runs) == 3:
                start, step, _ = runs
                return f"({start}+{step}*{_INDICES[lanes[0]]})"
        strides = _strides(tuple(value.shape))
        places = [f"{_INDICES[d]}*{strides[d]}" for d in lanes]
        places += [f"{i}*{strides[4 + d]}" for d, i in enumerate(index) if node.shape[d] > 1]
        return f"T[{self.script.table(value)}][{'+'.join(places) or 0}]"

    def gather(self, node: Node, index: tuple[str, ...]) -> str:
        table, *entries = node.args
        if table.is_floating_point() and table.dtype not in (torch.float32, torch.float64):
            raise NotScriptable(f"numbers of {table.dtype}")
        shown = tuple(i if isinstance(i, slice) else slice(None) for i in entries)
        table = table[shown]
        strides, places, free = _strides(tuple(table.shape)), [], list(index)
        for d, (entry, stride) in enumerate(zip(entries, strides, strict=True)):
            if isinstance(entry, slice):
                places.append(f"{free.pop(0)}*{stride}")
                continue
            n = table.shape[d]
            where = self.scalar(entry)
            low, high = self.bounds(entry)
            if low < -n or high >= n:
                where = f"clip({where},{n})"
            elif low < 0:
                where = f"wrap({where},{n})"
            places.append(f"{where}*{stride}")
        return f"T[{self.script.table(table)}][{'+'.join(places)}]"

    def reduction(self, node: Node, index: tuple[str, ...]) -> str:
        (inner,), (dims, keepdim) = node.args, node.options
        loops, places, own = "", [], list(index)
        for d, n in enumerate(inner.shape):
            if d in dims:
                self.loops += 1
                loops += f"for(let j{self.loops}=0;j{self.loops}<{n};j{self.loops}++)"
                places.append(f"j{self.loops}")
                if keepdim:
                    own.pop(0)
            else:
                places.append(own.pop(0))
        found = 1 if node.op == "any" else 0
        test = self.at(inner, tuple(places))
        return f"(()=>{{{loops}if({'' if found else '!'}({test}))return {found};return {1 - found};}})()"

    def step(self, node: Node, index: tuple[str, ...]) -> str:
        options = dict(node.options) if node.op != "cast" else {}
        rounding = options.pop("rounding_mode", None)
        if options:
            raise NotScriptable(f"{node.op} with {', '.join(options)}")
        op = {"floor": "floor_divide", "trunc": "divide_trunc"}.get(rounding, node.op) if node.op == "div" else node.op
        if not node.dtype.is_floating_point:
            self.check(self.bounds(node), node)
        a = [self.at(x, index) for x in node.args]
        real = any(_is_real(x) for x in node.args)
        if op in _COMPARISONS:
            a = self.promoted(node.args, a)
            return f"({a[0]}{_COMPARISONS[op]}{a[1]}?1:0)"
        if op == "where":
            return f"({a[0]}?{a[1]}:{a[2]})"
        if op == "cast":
            return _cast(node.args[0], a[0], node.dtype)
        if op.startswith("logical"):
            return _LOGICAL[op](*a)
        if op.startswith("bitwise"):
            return self.bits(op, node, a)
        if node.dtype == torch.bool:
            if op in ("add", "maximum"):
                return f"({a[0]}|{a[1]})"
            if op in ("mul", "minimum"):
                return f"({a[0]}&{a[1]})"
            raise NotScriptable(f"{op} of booleans")
        written = _REAL.get(op) if node.dtype.is_floating_point or real else _WHOLE.get(op)
        if written is None:
            raise NotScriptable(f"{op} of {node.dtype}")
        if op == "clamp":
            a = [
                f"Math.min({'Infinity' if len(a) < 3 or node.args[2] is None else a[2]},Math.max("
                f"{'-Infinity' if len(a) < 2 or node.args[1] is None else a[1]},{a[0]}))"
            ]
        elif node.dtype == torch.float32:
            a = [f"Math.fround({x})" for x in a]
        text = written(*a)
        return f"Math.fround({text})" if node.dtype == torch.float32 else text

    def promoted(self, args: tuple, texts: list[str]) -> list[str]:
        samples = [x.sample if isinstance(x, Node) else x for x in args]
        common = (samples[0] * samples[1]).dtype
        if common == torch.float32:
            return [f"Math.fround({x})" for x in texts]
        if common in (torch.half, torch.bfloat16):
            raise NotScriptable(f"a comparison in {common}")
        return texts

    def bits(self, op: str, node: Node, a: list[str]) -> str:
        if op == "bitwise_not":
            return f"({a[0]}^1)" if node.dtype == torch.bool else f"(-1-{a[0]})"
        if op == "bitwise_right_shift":
            return f"Math.floor({a[0]}/2**{a[1]})"
        if op == "bitwise_left_shift":
            return f"({a[0]}*2**{a[1]})"
        for x in node.args:
            low, high = self.bounds(x)
            if low < -_INT32 or high >= _INT32:
                raise NotScriptable(f"{op} of numbers past 32 bits")
        return f"({a[0]}{ {'and': '&', 'or': '|', 'xor': '^'}[op.removeprefix('bitwise_')] }{a[1]})"

    def check(self, bounds: _Bounds, node: Node) -> None:
        limit = 1 << _WRAPS[node.dtype] if node.dtype in _WRAPS else 256 if node.dtype == torch.uint8 else _EXACT
        if not -limit <= bounds[0] <= bounds[1] < limit or (node.dtype == torch.uint8 and bounds[0] < 0):
            raise NotScriptable(f"{node.op} of {node.dtype} that may pass {limit}")

    def bounds(self, x: Any) -> _Bounds:
        """Smallest and largest value, roughly: what keeps integers exact."""
        if not isinstance(x, Node):
            return (-math.inf, math.inf) if x is None else (float(x), float(x))
        if x.number not in self.known:
            self.known[x.number] = self._bounds(x)
        return self.known[x.number]

    def _bounds(self, node: Node) -> _Bounds:
        if node.dtype == torch.bool:
            return 0, 1
        if node.axes != BOTH:
            value = node.value
            return (float(value.min()), float(value.max())) if value.numel() else (0, 0)
        if node.op == "gather":
            table = node.args[0]
            return (float(table.min()), float(table.max())) if table.numel() else (0, 0)
        if node.op in ("reshape", "select"):
            return self.bounds(node.args[0])
        if node.op == "cast":
            return self.bounds(node.args[0])
        rule = _BOUNDS.get(node.op)
        if rule is None:
            return -math.inf, math.inf
        return rule(*(self.bounds(a) for a in node.args))


def _is_real(x: Any) -> bool:
    return x.dtype.is_floating_point if isinstance(x, Node) else isinstance(x, float)


def _number(x: Any) -> str:
    if x is None:
        return "null"
    if isinstance(x, (bool, int)):
        if abs(int(x)) >= _EXACT:
            raise NotScriptable(f"the number {x}")
        return f"({int(x)})" if int(x) < 0 else str(int(x))
    if math.isnan(x):
        return "NaN"
    return f"({x!r})" if math.isfinite(x) else f"({'-' if x < 0 else ''}Infinity)"


def _cast(source: Node, text: str, dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return f"({text}!=0?1:0)"
    if dtype == torch.float32:
        return f"Math.fround({text})"
    if dtype == torch.float64 or not source.dtype.is_floating_point:
        return text
    if dtype.is_floating_point:
        raise NotScriptable(f"numbers of {dtype}")
    return f"Math.trunc({text})"


def _strides(shape: tuple[int, ...]) -> list[int]:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return strides[::-1]


def _reshaped(index: tuple[str, ...], shape: tuple[int, ...], source: tuple[int, ...]) -> tuple[str, ...]:
    if [n for n in shape if n > 1] == [n for n in source if n > 1]:  # only ones come or go
        kept = iter(i for i, n in zip(index, shape, strict=True) if n > 1)
        return tuple(next(kept) if n > 1 else "0" for n in source)
    flat = "+".join(f"{i}*{s}" for i, s in zip(index, _strides(shape), strict=True)) or "0"
    return tuple(f"Math.floor(({flat})/{s})%{n}" for n, s in zip(source, _strides(source), strict=True))


def _selected(index: tuple[str, ...], entries: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[str, ...]:
    free, places, d = list(index), [], 0
    real = sum(e is not None and e is not Ellipsis for e in entries)
    every: list[Any] = [*entries, *([] if Ellipsis in entries else [Ellipsis])]
    for entry in every:
        if entry is None:
            free.pop(0)
        elif entry is Ellipsis:
            for _ in range(len(shape) - real):
                places.append(free.pop(0))
                d += 1
        elif isinstance(entry, slice):
            start, _, step = entry.indices(shape[d])
            places.append(f"({start}+{step}*{free.pop(0)})")
            d += 1
        else:
            places.append(str(entry % shape[d]))
            d += 1
    return tuple(places)


_COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_LOGICAL: dict[str, Callable[..., str]] = {
    "logical_and": lambda a, b: f"({a}&&{b}?1:0)",
    "logical_or": lambda a, b: f"({a}||{b}?1:0)",
    "logical_xor": lambda a, b: f"(!{a}!=!{b}?1:0)",
    "logical_not": lambda a: f"({a}?0:1)",
}
_BASIC: dict[str, Callable[..., str]] = {
    "abs": lambda a: f"Math.abs({a})",
    "add": lambda a, b: f"({a}+{b})",
    "sub": lambda a, b: f"({a}-{b})",
    "mul": lambda a, b: f"({a}*{b})",
    "neg": lambda a: f"(-{a})",
    "square": lambda a: f"({a}*{a})",
    "sign": lambda a: f"Math.sign({a})",
    "clamp": lambda a: a,
}
_WHOLE: dict[str, Callable[..., str]] = {
    **_BASIC,
    "maximum": lambda a, b: f"Math.max({a},{b})",
    "minimum": lambda a, b: f"Math.min({a},{b})",
    "floor_divide": lambda a, b: f"Math.floor({a}/{b})",
    "divide_trunc": lambda a, b: f"Math.trunc({a}/{b})",
    "remainder": lambda a, b: f"rest({a},{b})",
    "fmod": lambda a, b: f"({a}%{b})",
}
_REAL: dict[str, Callable[..., str]] = {
    **_BASIC,
    "div": lambda a, b: f"({a}/{b})",
    "sqrt": lambda a: f"Math.sqrt({a})",
    "reciprocal": lambda a: f"(1/{a})",
    "maximum": lambda a, b: f"Math.max({a},{b})",
    "minimum": lambda a, b: f"Math.min({a},{b})",
    "floor": lambda a: f"Math.floor({a})",
    "ceil": lambda a: f"Math.ceil({a})",
    "trunc": lambda a: f"Math.trunc({a})",
}


def _corners(a: _Bounds, b: _Bounds, function: Callable[[float, float], float]) -> _Bounds:
    values = [function(x, y) for x in a for y in b]
    return min(values), max(values)


def _quotient(a: _Bounds, b: _Bounds) -> _Bounds:
    most = max(abs(a[0]), abs(a[1]))
    return -most, most


_BOUNDS: dict[str, Callable[..., _Bounds]] = {
    "add": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "sub": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "mul": lambda a, b: _corners(a, b, lambda x, y: x * y),
    "neg": lambda a: (-a[1], -a[0]),
    "abs": lambda a: (0, max(abs(a[0]), abs(a[1]))),
    "square": lambda a: (0, max(abs(a[0]), abs(a[1])) ** 2),
    "sign": lambda a: (-1, 1),
    "minimum": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "maximum": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "clamp": lambda a, low=(-math.inf,) * 2, high=(math.inf,) * 2: (
        min(max(a[0], low[0]), high[1]) if low[0] > -math.inf else min(a[0], high[1]),
        max(min(a[1], high[1]), low[1]) if low[1] > -math.inf else min(a[1], high[1]),
    ),
    "where": lambda c, a, b: (min(a[0], b[0]), max(a[1], b[1])),
    "floor_divide": _quotient,
    "div": _quotient,
    "remainder": lambda a, b: (min(0, b[0]), max(0, b[1])),
    "fmod": lambda a, b: _quotient(b, a),
    "bitwise_not": lambda a: (-1 - a[1], -1 - a[0]),
    "bitwise_and": lambda a, b: (-_INT32, _INT32 - 1),
    "bitwise_or": lambda a, b: (-_INT32, _INT32 - 1),
    "bitwise_xor": lambda a, b: (-_INT32, _INT32 - 1),
    "bitwise_right_shift": lambda a, b: _quotient(a, b) if b[0] >= 0 and b[1] < 53 else (-math.inf, math.inf),
    "bitwise_left_shift": lambda a, b: (
        _corners(a, b, lambda x, y: x * 2**y) if b[0] >= 0 and b[1] < 53 else (-math.inf, math.inf)
    ),
}
