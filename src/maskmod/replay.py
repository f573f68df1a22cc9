"""A mask recorded once and read again and again: what a server does with every step.

Recording costs Python; replaying costs the torch operations alone, with tables read as views where an index is a
position itself. Tensors are held by reference, so that contents rewritten in place are seen. For this reason only
masks made of the library's own nodes are replayed: a user's function may have computed something from a tensor while
it was recorded, and that would go stale. It never asks a tensor for its value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskmod.abstract import Node, Unknown, record
from maskmod.abstract.names import ELEMENTWISE
from maskmod.algebra import Func, Mask, Sizes

__all__ = ["Replay", "replay_of"]


class Replay:
    """The steps of a recorded mask, in order. Done once and kept: what follows from positions and numbers alone, and
    views of tables, which show what is written to them later.
    """

    def __init__(self, root: Node):
        self._root, self._kept = root.number, {}
        self._steps: list[tuple[int, Callable[..., Tensor], list]] = []
        settled: set[int] = set()
        for node in _needed(root):
            needs = [a.number for a in node.args if isinstance(a, Node)]
            if all(number in self._kept for number in needs):
                value = node.apply([_value(a, self._kept) for a in node.args])
                held = [a for a in node.args if isinstance(a, Tensor)]  # a table, or a tensor that the mask captured
                if not held and settled.issuperset(needs):
                    settled.add(node.number)
                    self._kept[node.number] = value
                    continue
                if held and _shares_storage(value, held[0]):
                    self._kept[node.number] = value
                    continue
            self._steps.append((node.number, _bound(node), list(node.args)))

    def read(self) -> Tensor:
        """Bool, broadcastable to (B, H, q_len, kv_len): the mask as its tensors stand now."""
        values = dict(self._kept)
        for number, apply, args in self._steps:
            values[number] = apply(*[values[a.number] if isinstance(a, Node) else a for a in args])
        return values[self._root]


def replay_of(mask: Mask, sizes: Sizes, device: torch.device) -> Replay | None:
    """A replay of ``mask``, or None where it holds a user's function, or one that cannot be recorded."""
    if 0 in sizes or not _is_ours(mask):
        return None
    try:
        root = record(mask, *sizes, device, traced=False)
    except Unknown:
        return None
    return Replay(root) if root.dtype == torch.bool and not root.shape else None


def _is_ours(mask: Mask) -> bool:
    if isinstance(mask, Func) or not type(mask).__module__.startswith("maskmod."):
        return False
    values = (getattr(mask, name) for name in mask._fields)
    parts = (part for value in values for part in (value if isinstance(value, tuple) else (value,)))
    return all(
        _is_ours(part) if isinstance(part, Mask) else not callable(part) or isinstance(part, Tensor) for part in parts
    )


def _needed(root: Node) -> list[Node]:
    """Every node that the root depends on, each after those it needs."""
    seen: dict[int, Node] = {}
    open_ = [root]
    while open_:
        node = open_.pop()
        if node.number not in seen:
            seen[node.number] = node
            open_ += [a for a in node.args if isinstance(a, Node)]
    return [seen[number] for number in sorted(seen)]


def _bound(node: Node) -> Callable[..., Tensor]:
    if node.op in ELEMENTWISE and not node.options:
        return ELEMENTWISE[node.op]
    return lambda *args: node.apply(list(args))


def _shares_storage(value: Tensor, table: Tensor) -> bool:
    return value.untyped_storage().data_ptr() == table.untyped_storage().data_ptr()


def _value(arg: Any, values: dict[int, Tensor]) -> Any:
    return values[arg.number] if isinstance(arg, Node) else arg
