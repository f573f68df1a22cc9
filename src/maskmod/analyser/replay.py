"""A mask recorded once and read again and again: what a server does with every step.

Recording costs Python; replaying costs the torch operations alone, with tables read as views where an index is a
position itself. Tensors are held by reference, so that contents rewritten in place are seen, and what the mask computed
from them while it was recorded is computed again at each reading. Only masks made of the library's own nodes are
replayed: a user's function may have looked at a value, or at something that is no tensor. No tensor is asked for its
value here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskmod.algebra import Func, Mask, Sizes
from maskmod.analyser.expression import KV, Node, Tape, needed
from maskmod.analyser.record import Unknown, record
from maskmod.analyser.torch_ops import ELEMENTWISE

__all__ = ["Replay", "again", "is_ours", "now", "replay_of"]


class Replay:
    """The steps of a recorded mask, in order. Done once and kept: what follows from positions and numbers alone, and
    views of tables, which show what is written to them later.
    """

    def __init__(self, root: Node):
        self._root, self._kept = root.number, {}
        self._steps: list[tuple[int, Callable[..., Tensor], list]] = []
        settled: set[int] = set()
        for node in needed(root):
            needs = [a.number for a in node.args if isinstance(a, Node)]
            if all(number in self._kept for number in needs):
                value = node.apply([_value(a, self._kept) for a in node.args])
                held = [a for a in node.args if isinstance(a, Tensor)]  # a table, or a tensor that the mask captured
                made = any(_is_copy(a, node.tape) for a in held)
                if not held and settled.issuperset(needs):
                    settled.add(node.number)
                    self._kept[node.number] = value
                    continue
                if held and not made and _shares_storage(value, held[0]):
                    self._kept[node.number] = value
                    continue
            args = [again(a, node.tape) if isinstance(a, Tensor) else a for a in node.args]
            self._steps.append(_ladder_step(node) or (node.number, _bound(node), args))

    def read(self) -> Tensor:
        """Bool, broadcastable to (B, H, q_len, kv_len): the mask as its tensors stand now. Not for use in a graph."""
        values = dict(self._kept)
        for number, apply, args in self._steps:
            values[number] = apply(*[_value(a, values) for a in args])
        return values[self._root]


def replay_of(mask: Mask, sizes: Sizes, device: torch.device) -> Replay | None:
    """A replay of ``mask``, or None where it holds a user's function, or one that cannot be recorded."""
    if 0 in sizes or not is_ours(mask):
        return None
    try:
        root = record(mask, *sizes, device, traced=False)
    except Unknown:
        return None
    return Replay(root) if root.dtype == torch.bool and not root.shape else None


def is_ours(mask: Mask) -> bool:
    """Whether a mask is made of the library's own nodes alone."""
    open_: list[Any] = [mask]
    while open_:
        part = open_.pop()
        if isinstance(part, Mask):
            if isinstance(part, Func) or not type(part).__module__.startswith("maskmod."):
                return False
            open_ += (getattr(part, name) for name in part._fields)
        elif isinstance(part, tuple):
            open_ += part
        elif callable(part) and not isinstance(part, Tensor):
            return False
    return True


def _is_copy(tensor: Tensor, tape: Tape) -> bool:
    """Whether a tensor was computed while recording, so that what it was computed from may have moved on."""
    if id(tensor) not in tape.made:
        return False
    _, _, args, _ = tape.made[id(tensor)]
    source = args[0] if args else None
    if not isinstance(source, Tensor) or not _shares_storage(tensor, source):
        return True
    return _is_copy(source, tape)  # a view


class _Again:
    """A tensor that is computed anew at each reading, by the functions that made it while recording."""

    def __init__(self, tensor: Tensor, tape: Tape):
        _, self.function, args, kwargs = tape.made[id(tensor)]
        self.args = [again(a, tape) for a in args]
        self.kwargs = {name: again(a, tape) for name, a in kwargs.items()}

    def read(self) -> Tensor:
        return self.function(*map(now, self.args), **{name: now(a) for name, a in self.kwargs.items()})


def again(arg: Any, tape: Tape) -> Any:
    """The argument, with what was computed while recording to be computed again by `now`."""
    if isinstance(arg, (tuple, list)):
        return type(arg)(again(a, tape) for a in arg)
    return _Again(arg, tape) if isinstance(arg, Tensor) and _is_copy(arg, tape) else arg


def now(arg: Any) -> Any:
    """An argument from `again`, as its tensors stand."""
    if isinstance(arg, (tuple, list)):
        return type(arg)(map(now, arg))
    return arg.read() if isinstance(arg, _Again) else arg


def _ladder_step(node: Node) -> tuple[int, Callable[..., Tensor], list] | None:
    """A key position compared with a query's number, by copying rows that are known: True up to a place, then False.

    A comparison writes booleans one by one; a row of this triangle is copied at the speed of memory. The triangle is
    a view of 2 * kv_len booleans, each row starting one later.
    """
    if node.op not in ("le", "lt", "ge", "gt") or not all(isinstance(a, Node) for a in node.args):
        return None
    op, (a, b) = node.op, node.args
    if b.is_position and b.axes == KV:
        op, a, b = {"le": "ge", "lt": "gt", "ge": "le", "gt": "lt"}[op], b, a
    kv_len = node.tape.lengths[-1]
    if not (a.is_position and a.axes == KV) or b.axes & KV or b.shape or b.dtype not in (torch.int64, torch.int32):
        return None
    first = torch.arange(2 * kv_len, device=node.tape.device) < kv_len  # what kv < number is, from some place on
    rows = (first if op in ("le", "lt") else ~first).as_strided((kv_len + 1, kv_len), (1, 1))
    below = kv_len - (op in ("le", "gt"))  # kv <= n is kv < n + 1, and kv > n its opposite

    def compare(number: Tensor) -> Tensor:
        row = (below - number.clamp(-1, kv_len)).clamp(0, kv_len)  # clamped first: the ends of a dtype would wrap
        return rows.index_select(0, row.reshape(-1)).view(*row.shape[:3], kv_len)

    return node.number, compare, [b]


def _bound(node: Node) -> Callable[..., Tensor]:
    if node.op in ELEMENTWISE and not node.options:
        return ELEMENTWISE[node.op]
    return lambda *args: node.apply(list(args))


def _shares_storage(value: Tensor, table: Tensor) -> bool:
    return value.untyped_storage().data_ptr() == table.untyped_storage().data_ptr()


def _value(arg: Any, values: dict[int, Tensor]) -> Any:
    return values[arg.number] if isinstance(arg, Node) else now(arg)
