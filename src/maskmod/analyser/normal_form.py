"""Negation normal form: a recorded predicate as AND and OR over facts, so that one transfer function is enough.

NOT, xor, implication and boolean `where` disappear here; what remains never negates, so "may it be True somewhere"
can be answered bottom up, and "must it be True everywhere" is "may its negation not be True anywhere".

This module knows no tensors' values; it only rearranges.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple, TypeAlias

import torch

from maskmod.analyser.expression import BOTH, Node, cast

__all__ = [
    "And",
    "Compare",
    "Every",
    "Fact",
    "Formula",
    "Normal",
    "Opaque",
    "Or",
    "Shared",
    "Some",
    "Table",
    "normal",
    "shared_in",
]


class Fact(NamedTuple):
    """A boolean node of at most one axis, or its negation."""

    node: Node
    sign: bool


class Compare(NamedTuple):
    """`left op right` where queries meet keys; op is lt, le, eq or ne."""

    op: str
    left: Any  # Node or number
    right: Any


class Table(NamedTuple):
    """A boolean table looked up at indices that depend on both axes together, or its negation."""

    table: torch.Tensor
    index: tuple
    sign: bool


class And(NamedTuple):
    parts: tuple


class Or(NamedTuple):
    parts: tuple


class Some(NamedTuple):
    """True where `part` is, for at least one entry along `dims` of its own shape."""

    part: Formula
    dims: tuple[int, ...]
    keepdim: bool


class Every(NamedTuple):
    part: Formula
    dims: tuple[int, ...]
    keepdim: bool


class Opaque(NamedTuple):
    """A step without a rule: it may be True anywhere, and so may its negation."""


class Shared:
    """A part that is asked about once, apart from what stands around it: it occurs often, or lies deep.

    `needs` are the shared parts inside it, made earlier.
    """

    def __init__(self, part: Formula, number: int):
        self.part, self.number = part, number
        self.needs = shared_in(part)


Formula: TypeAlias = "Fact | Compare | Table | And | Or | Some | Every | Opaque | Shared"

DEEPEST = 40  # levels of AND and OR inside each other; what lies deeper is shared
DOUBLINGS = 3  # xors inside each other that are written out; what lies deeper is shared

_NEGATED = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}
_AND, _OR = ("bitwise_and", "logical_and", "mul"), ("bitwise_or", "logical_or", "add")
_NOT, _XOR = ("bitwise_not", "logical_not"), ("bitwise_xor", "logical_xor", "ne")
_Operand: TypeAlias = "tuple[Any, bool]"  # a node or number, and whether it is asserted or denied


class Normal:
    """The normal forms of one tape's nodes, each made once."""

    def __init__(self):
        self.forms: dict[tuple[int, bool], Formula] = {}
        self._depth: dict[tuple[int, bool], tuple[int, int]] = {}  # levels, and xors written out
        self._shared: dict[tuple[int, bool], Shared] = {}

    def form(self, node: Node, sign: bool) -> Formula:
        """Without recursion: a predicate may be thousands of terms deep."""
        open_, operands = [(node, sign)], {}
        while open_:
            node, sign = open_[-1]
            key = (node.number, sign)
            if key in self.forms:
                open_.pop()
                continue
            if key not in operands:
                operands[key] = _operands(node, sign)
                missing = [
                    x for x in operands[key][1] if isinstance(x[0], Node) and (x[0].number, x[1]) not in self.forms
                ]
                if missing:
                    open_ += missing[::-1]
                    continue
            open_.pop()
            self.forms[key] = self._assembled(node, sign, *operands[key])
        return self.forms[(node.number, sign)]

    def _assembled(self, node: Node, sign: bool, kind: str, operands: list[_Operand]) -> Formula:
        key = (node.number, sign)
        if kind == "leaf":
            self._depth[key] = (0, 0)
            return _leaf(node, sign)
        depths = [self._depth[(a.number, s)] if isinstance(a, Node) else (0, 0) for a, s in operands]
        levels, doublings = max(d[0] for d in depths), max(d[1] for d in depths)
        if kind == "same":
            self._depth[key] = (levels, doublings)
            return self._part(operands[0], False)
        doubled = kind in ("differ", "choose")
        shares = levels >= DEEPEST or (doubled and doublings >= DOUBLINGS)
        self._depth[key] = (1 + doubled, int(doubled)) if shares else (levels + 1 + doubled, doublings + doubled)
        parts = [self._part(x, shares) for x in operands]
        if kind == "differ":
            a, b, not_a, not_b = parts
            return Or((And((a, b)), And((not_a, not_b))))
        if kind == "choose":
            condition, a, otherwise, b = parts
            return Or((And((condition, a)), And((otherwise, b))))
        if kind == "gather":
            return (Some if (node.op == "any") == sign else Every)(parts[0], *node.options)
        return (And if kind == "and" else Or)(tuple(parts))

    def _part(self, operand: _Operand, shared: bool) -> Formula:
        a, sign = operand
        if not isinstance(a, Node):
            return And(()) if bool(a) == sign else Or(())
        key = (a.number, sign)
        form = self.forms[key]
        if not shared or not self._depth[key][0] or isinstance(form, Shared):
            return form
        if key not in self._shared:
            self._shared[key] = Shared(form, len(self._shared))
        return self._shared[key]


def normal(node: Any, sign: bool = True) -> Formula:
    """The node (or its negation) without any NOT. Numbers and integers mean their truth value."""
    if not isinstance(node, Node):
        return And(()) if bool(node) == sign else Or(())
    if node.tape.normal is None:
        node.tape.normal = Normal()
    return node.tape.normal.form(node, sign)


def shared_in(formula: Formula) -> list[Shared]:
    """The shared parts of a formula, those inside them left out."""
    found, open_ = {}, [formula]
    while open_:
        part = open_.pop()
        if isinstance(part, Shared):
            found[part.number] = part
        elif isinstance(part, (And, Or)):
            open_ += part.parts
        elif isinstance(part, (Some, Every)):
            open_.append(part.part)
    return list(found.values())


def _operands(node: Node, sign: bool) -> tuple[str, list[_Operand]]:
    """How the node is put together, and from what."""
    if node.axes != BOTH or node.dtype != torch.bool:
        return "leaf", []
    op, args = node.op, node.args
    boolean = _of_booleans(node)
    if op in _NOT and boolean:
        return "same", [(args[0], not sign)]
    if op == "cast":
        return "same", [(args[0], sign)]
    if op in (*_AND, *_OR) and boolean:
        kind = "and" if (op in _AND) == sign else "or"
        return kind, _joined(node, sign, kind)
    if (op in _XOR or op == "eq") and boolean:
        differ = (op != "eq") == sign
        a, b = args
        return "differ", [(a, True), (b, not differ), (a, False), (b, differ)]
    if op == "where":
        condition, a, b = args
        return "choose", [(condition, True), (a, sign), (condition, False), (b, sign)]
    if op in ("any", "all"):
        return "gather", [(args[0], sign)]
    return "leaf", []


def _joined(node: Node, sign: bool, kind: str) -> list[_Operand]:
    """The operands of an AND (or OR) of ANDs (or ORs), from left to right, each once."""
    found: dict[tuple, _Operand] = {}
    met: set[tuple[int, bool]] = set()
    open_: list[_Operand] = [(node, sign)]
    while open_:
        a, s = open_.pop()
        if not isinstance(a, Node):
            found[("number", bool(a) == s)] = (a, s)
            continue
        if (a.number, s) in met:
            continue
        met.add((a.number, s))
        inner = a.axes == BOTH and a.dtype == torch.bool and a.op in (*_AND, *_OR) and _of_booleans(a)
        if inner and ("and" if (a.op in _AND) == s else "or") == kind:
            open_ += [(x, s) for x in a.args[::-1]]
        elif a.axes == BOTH and a.op in _NOT and _of_booleans(a):
            open_.append((a.args[0], not s))
        else:
            found[(a.number, s)] = (a, s)
    return list(found.values())


def _of_booleans(node: Node) -> bool:
    return node.op.startswith("logical") or (not node.options and all(_is_boolean(a) for a in node.args))


def _is_boolean(arg: Any) -> bool:
    return arg.dtype == torch.bool if isinstance(arg, Node) else isinstance(arg, bool)


def _leaf(node: Node, sign: bool) -> Formula:
    if node.axes != BOTH:
        return Fact(cast(node, torch.bool), sign)
    if node.dtype != torch.bool:
        return _compare("ne", node, 0, sign)
    if node.op in _NEGATED:
        left, right = node.args
        return _compare(node.op, left, right, sign)
    if (looked_up := _table(node)) is not None:
        return Table(*looked_up, sign)
    return Opaque()


def _compare(op: str, left: Any, right: Any, sign: bool) -> Formula:
    for node, number in ((left, right), (right, left)):
        # A table compared with a number is another table: look that one up.
        if isinstance(node, Node) and not isinstance(number, Node) and (found := _table(node)) is not None:
            table, index = found
            compared = getattr(operator, op)(*((table, number) if node is left else (number, table)))
            return Table(compared, index, sign)  # not `op` negated, which NaN is False for as well
    if not sign:
        op = _NEGATED[op]
    if op in ("gt", "ge"):
        op, left, right = ("lt" if op == "gt" else "le"), right, left
    if op in ("lt", "le"):
        # |x| < y is x < y and -x < y: two comparisons that separate, so that facts about ids can sharpen them.
        if (inside := _absolute(left)) is not None:
            return And((Compare(op, inside, right), Compare(op, _negative(inside), right)))
        if (inside := _absolute(right)) is not None:
            return Or((Compare(op, left, inside), Compare(op, left, _negative(inside))))
    return Compare(op, left, right)


def _absolute(arg: Any) -> Node | None:
    if isinstance(arg, Node) and arg.op == "abs" and arg.axes == BOTH and arg.dtype == torch.int64:
        return arg.args[0]
    return None


def _negative(node: Node) -> Node:
    return node.tape.node("neg", (node,), -node.sample)


def _table(node: Node) -> tuple[torch.Tensor, tuple] | None:
    """The node as one table looked up at indices, if it is that, or a function of that and of numbers."""
    steps: list[Node] = []
    while not (node.op == "gather" and not node.shape and node.axes == BOTH):
        inner = [a for a in node.args if isinstance(a, Node)]
        known = ("index", "constant", "select", "lifted", "reshape", "any", "all", "gather")
        if node.op in known or node.shape or len(inner) != 1:
            return None
        steps.append(node)
        node = inner[0]
    table, index = node.args[0], node.args[1:]
    for step in reversed(steps):
        if step.op == "cast":
            table = table.to(step.dtype)
        else:
            table = step.apply([table if isinstance(a, Node) else a for a in step.args])
    return table, index
