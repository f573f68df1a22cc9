"""The parts of a mask that a picture names: its boolean tree, and recorded expressions spelled as text."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from maskmod.algebra import And, Mask, Not, Or, Xor, spell
from maskmod.analyser.expression import Node

__all__ = ["Part", "and_terms", "parts_of", "spelled"]


class Part(NamedTuple):
    """A node of the boolean tree: "and", "or", "xor", "not" over parts, or a "leaf", which is a mask."""

    kind: str
    mask: Mask
    parts: tuple[Part, ...] = ()


_KINDS: dict[type[Mask], str] = {And: "and", Or: "or", Xor: "xor"}


def parts_of(mask: Mask) -> Part:
    """The boolean tree of a mask; chains of one operator are one level.

    >>> from maskmod import causal, sinks, sliding_window
    >>> tree = parts_of(causal() & (sliding_window(4) | sinks(1)))
    >>> tree.kind, [part.kind for part in tree.parts]
    ('and', ['leaf', 'or'])
    """
    kind = _KINDS.get(type(mask))  # exact types: a subclass may say something else
    if kind is not None:
        parts: list[Part] = []
        for side in (mask.left, mask.right):  # pyright: ignore[reportAttributeAccessIssue]
            part = parts_of(side)
            parts += part.parts if part.kind == kind and kind != "xor" else (part,)
        return Part(kind, mask, tuple(parts))
    if type(mask) is Not:
        return Part("not", mask, (parts_of(mask.mask),))
    return Part("leaf", mask)


_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "floor_divide": "//", "remainder": "%", "pow": "**",
    "bitwise_and": "&", "bitwise_or": "|", "bitwise_xor": "^", "bitwise_left_shift": "<<", "bitwise_right_shift": ">>",
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=",
    "logical_and": "&", "logical_or": "|", "logical_xor": "^",
}  # fmt: skip
_NAMES = ("b", "h", "q_idx", "kv_idx")


def spelled(node: Any, room: int = 120) -> str:
    """A recorded expression as text; what does not fit the room is written as ``...``.

    >>> import torch
    >>> from maskmod.analyser.reading import read
    >>> ids = torch.zeros(4, dtype=torch.long)
    >>> spelled(read(lambda b, h, q, k: (ids[q] == ids[k]) & (k <= q), 1, 1, 4, 4).root)
    '(int64[4][q_idx] == int64[4][kv_idx]) & (kv_idx <= q_idx)'
    """
    text = _spelled(node, 12)
    text = text[1:-1] if _wrapped(text) else text
    return text if len(text) <= room else text[: room - 3] + "..."


def _spelled(node: Any, depth: int) -> str:
    if not isinstance(node, Node):
        return ":" if isinstance(node, slice) else repr(node)
    if node.op == "index":
        return _NAMES[node.args[0]]
    if node.op == "constant":
        value = node.args[0]
        return repr(value.item()) if value.numel() == 1 else spell(value)
    if depth == 0:
        return "..."
    args = [_spelled(a, depth - 1) for a in node.args if not (node.op == "gather" and a is node.args[0])]
    if node.op == "gather":
        return f"{spell(node.args[0])}[{', '.join(args)}]"
    if node.op in _INFIX and len(args) == 2:
        return f"({args[0]} {_INFIX[node.op]} {args[1]})"
    if node.op in ("bitwise_not", "logical_not"):
        return f"~{args[0]}"
    if node.op == "neg":
        return f"-{args[0]}"
    if node.op in ("reshape", "cast", "select"):
        return args[0]
    name = getattr(node.options[0], "__name__", "function") if node.op == "lifted" else node.op
    return f"{name}({', '.join(args)})"


def _wrapped(text: str) -> bool:
    """Whether one pair of parentheses holds the whole text."""
    if not text.startswith("("):
        return False
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return place == len(text) - 1
    return False


def and_terms(root: Node) -> list[Node]:
    """The conjuncts of a recorded expression, left to right."""
    if root.op in ("bitwise_and", "logical_and", "mul") and root.dtype == torch.bool and not root.options:
        nodes = [a for a in root.args if isinstance(a, Node)]
        if len(nodes) == len(root.args) and all(a.dtype == torch.bool for a in nodes):
            return [term for a in nodes for term in and_terms(a)]
    return [root]
