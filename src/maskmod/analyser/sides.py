"""Comparisons of integer sums, taken apart by axis: queries on the left, keys on the right."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from maskmod.analyser.expression import BOTH, KV, NEITHER, Node, Q
from maskmod.analyser.normal_form import Compare

__all__ = ["Sides", "extra_of", "falls", "is_plain", "sides", "total_of"]


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
    constant: Any = 0
    open_ = [(arg, sign)]
    while open_:
        arg, sign = open_.pop()
        if not isinstance(arg, Node):
            if not isinstance(arg, int):
                return None
            constant = constant + sign * arg
        elif arg.dtype == torch.int64 and not arg.options and arg.op in ("add", "sub", "neg"):
            if arg.op == "neg":
                open_.append((arg.args[0], -sign))
            else:
                open_ += [(arg.args[1], sign if arg.op == "add" else -sign), (arg.args[0], sign)]
        elif arg.axes == BOTH or arg.dtype not in _INTEGERS:
            return None
        else:
            terms.append((sign, arg))
    return constant


def is_plain(apart: Sides) -> bool:
    """Whether a comparison is of q_idx and kv_idx themselves: ids say nothing new about those."""
    return all(node.is_position for _, node in (*apart.q, *apart.kv))


def falls(terms: tuple[tuple[int, Node], ...]) -> bool:
    positions = [sign for sign, node in terms if node.is_position]
    return (positions or [terms[0][0]])[0] < 0


def total_of(terms: tuple[tuple[int, Node], ...]) -> Node | None:
    """The sum of signed terms as a node."""
    total: Node | None = None
    for sign, node in terms:
        if node.dtype != torch.int64:
            node = node.tape.node("cast", (node,), node.sample.long())
        if total is None:
            total = node if sign > 0 else node.tape.node("neg", (node,), -node.sample)
        elif sign > 0:
            total = node.tape.node("add", (total, node), total.sample + node.sample)
        else:
            total = node.tape.node("sub", (total, node), total.sample - node.sample)
    return total


def extra_of(apart: Sides) -> Any:
    """What a comparison adds to its keys' side that depends on neither axis."""
    extra: Any = apart.constant
    for sign, node in apart.free:
        extra = extra + sign * node.value.long()
    return extra
