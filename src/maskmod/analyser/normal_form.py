"""Negation normal form: a recorded predicate as AND and OR over facts, so that one transfer function is enough.

NOT, xor, implication and boolean `where` disappear here; what remains never negates, so "may it be True somewhere"
can be answered bottom up, and "must it be True everywhere" is "may its negation not be True anywhere".

This module knows no tensors' values; it only rearranges.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple, TypeAlias

import torch

from maskmod.analyser.record import BOTH, KV, NEITHER, Node, Q, cast

__all__ = ["And", "Compare", "Every", "Fact", "Formula", "Opaque", "Or", "Sides", "Some", "Table", "normal", "sides"]


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


Formula: TypeAlias = "Fact | Compare | Table | And | Or | Some | Every | Opaque"

_NEGATED = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}
_AND, _OR = ("bitwise_and", "logical_and", "mul"), ("bitwise_or", "logical_or", "add")
_NOT, _XOR = ("bitwise_not", "logical_not"), ("bitwise_xor", "logical_xor", "ne")


def normal(node: Any, sign: bool = True) -> Formula:
    """The node (or its negation) without any NOT. Numbers and integers mean their truth value."""
    if not isinstance(node, Node):
        return And(()) if bool(node) == sign else Or(())
    if node.axes != BOTH:
        return Fact(cast(node, torch.bool), sign)
    if node.dtype != torch.bool:
        return _compare("ne", node, 0, sign)
    op, args = node.op, node.args
    boolean = op.startswith("logical") or (not node.options and all(_is_boolean(a) for a in args))
    if op in _NOT and boolean:
        return normal(args[0], not sign)
    if op == "cast":
        return normal(args[0], sign)
    if op in _AND and boolean:
        return _join(And if sign else Or, [normal(a, sign) for a in args])
    if op in _OR and boolean:
        return _join(Or if sign else And, [normal(a, sign) for a in args])
    if (op in _XOR or op == "eq") and boolean:
        differ = (op != "eq") == sign
        a, b = args
        return Or((And((normal(a), normal(b, not differ))), And((normal(a, False), normal(b, differ)))))
    if op == "where":
        condition, a, b = args
        return Or((And((normal(condition), normal(a, sign))), And((normal(condition, False), normal(b, sign)))))
    if op in _NEGATED:
        left, right = args
        return _compare(op, left, right, sign)
    if op in ("any", "all"):
        return (Some if (op == "any") == sign else Every)(normal(args[0], sign), *node.options)
    if (looked_up := _table(node)) is not None:
        return Table(*looked_up, sign)
    return Opaque()


def _is_boolean(arg: Any) -> bool:
    return arg.dtype == torch.bool if isinstance(arg, Node) else isinstance(arg, bool)


def _join(kind: type, parts: list) -> Formula:
    flat: list = []
    for p in parts:
        flat += p.parts if isinstance(p, kind) else (p,)
    return kind(tuple(flat))


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
    if node.op == "gather" and not node.shape and node.axes == BOTH:
        return node.args[0], node.args[1:]
    if node.op in ("index", "constant", "select", "lifted", "reshape", "any", "all") or node.shape:
        return None
    inner = [a for a in node.args if isinstance(a, Node)]
    if len(inner) != 1 or (found := _table(inner[0])) is None:
        return None
    table, index = found
    if node.op == "cast":
        return table.to(node.dtype), index
    return node.apply([table if isinstance(a, Node) else a for a in node.args]), index


class Sides(NamedTuple):
    """A comparison with its queries on the left and its keys on the right: sum(q) op sum(kv) + sum(free) + constant."""

    op: str
    q: tuple[tuple[int, Node], ...]  # (sign, node)
    kv: tuple[tuple[int, Node], ...]
    free: tuple[tuple[int, Node], ...]
    constant: int


def sides(compare: Compare) -> Sides | None:
    """The comparison of two integer sums taken apart by axis; None when it does not come apart."""
    terms: list[tuple[int, Node]] = []
    constant = _collect(compare.left, 1, terms)
    other = _collect(compare.right, -1, terms)
    if constant is None or other is None:
        return None
    return Sides(
        compare.op,
        tuple((s, n) for s, n in terms if n.axes == Q),
        tuple((-s, n) for s, n in terms if n.axes == KV),
        tuple((-s, n) for s, n in terms if n.axes == NEITHER),
        -(constant + other),
    )


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _collect(arg: Any, sign: int, terms: list) -> int | None:
    """Append the signed one-axis terms of an integer sum and return its constant part; None if it is no such sum."""
    if not isinstance(arg, Node):
        return sign * arg if isinstance(arg, int) else None
    if arg.dtype == torch.int64 and not arg.options:
        if arg.op in ("add", "sub"):
            left = _collect(arg.args[0], sign, terms)
            right = _collect(arg.args[1], sign if arg.op == "add" else -sign, terms)
            return None if left is None or right is None else left + right
        if arg.op == "neg":
            return _collect(arg.args[0], -sign, terms)
    if arg.axes == BOTH or arg.dtype not in _INTEGERS:
        return None
    terms.append((sign, arg))
    return 0
