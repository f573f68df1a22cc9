"""A recorded predicate: its steps as nodes, their values, and how they are evaluated on a frame of points.

A node knows which of the two long axes it depends on. One that depends on at most one of them can be evaluated for all
indices at once (`Node.value`, with the user's own torch functions, hence exact); one that depends on both is only ever
bounded, or evaluated on a few tiles (`evaluate`). How a predicate becomes nodes is told in `record`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskmod.analyser.torch_ops import ELEMENTWISE, REDUCTIONS

__all__ = ["BOTH", "KV", "LANES", "NEITHER", "Node", "Q", "Tape", "cast", "evaluate", "lanes_read", "needed"]

# Which long axes a node depends on, as bits. Batch and head are lanes: every value carries them.
NEITHER, Q, KV, BOTH = 0, 1, 2, 3
LANES = 4  # leading dimensions of a value: (B|1, H|1, q_len|1, kv_len|1); the node's own shape follows


class Tape:
    """The nodes of one recorded predicate, and the lengths it is read at."""

    def __init__(self, B: int, H: int, q_len: int, kv_len: int, device: torch.device, traced: bool):
        self.lengths = (B, H, q_len, kv_len)
        self.device, self.traced = device, traced
        self.nodes: list[Node] = []
        self.made: dict[int, tuple] = {}  # id of a tensor computed while recording: (it, function, args, kwargs)
        self.normal: Any = None  # what `normal_form` has made of the nodes
        self._seen: dict[tuple, Node] = {}

    def node(self, op: str, args: tuple, sample: Tensor, options: tuple = ()) -> Node:
        """Record one step; the same step twice is one node (outside a trace, where the compiler does it)."""
        if self.traced:
            return Node(self, op, args, sample, options)
        key = (op, options, tuple(_identity(a) for a in args))
        if key not in self._seen:
            self._seen[key] = Node(self, op, args, sample, options)
        return self._seen[key]

    def positions(self, dim: int) -> Tensor:  # (n,) on its own lane
        shape = [1] * LANES
        shape[dim] = self.lengths[dim]
        return torch.arange(self.lengths[dim], device=self.device).view(shape)


def _identity(arg: Any) -> Any:
    if isinstance(arg, Node):
        return ("node", arg.number)
    if isinstance(arg, slice):
        return ("slice", arg.start, arg.stop, arg.step)
    if isinstance(arg, Tensor):
        return ("tensor", id(arg))  # the node keeps the tensor alive, so the id stays its own
    return (type(arg), arg.hex() if isinstance(arg, float) else arg)  # 0.0 == -0.0


class Node:
    """One step of the recorded predicate.

    `op` is the canonical name of the function, or "index" (one of the four scalars), "constant" (a captured tensor),
    "gather" (table[...]) or "lifted" (any other function, of one axis only). `args` holds nodes, Python numbers,
    None and, for gathers, a tensor and slices. `sample` is the value at the recorded point.
    """

    def __init__(self, tape: Tape, op: str, args: tuple, sample: Tensor, options: tuple = ()):
        self.tape, self.op, self.args, self.options = tape, op, args, options
        self.dtype, self.shape, self.sample = sample.dtype, tuple(sample.shape), sample
        self.axes, self.reads_index = NEITHER, op == "index"
        for a in args:
            if isinstance(a, Node):
                self.axes |= a.axes
                self.reads_index |= a.reads_index
        if op == "index":
            self.axes = (NEITHER, NEITHER, Q, KV)[args[0]]
        self.number = len(tape.nodes)
        tape.nodes.append(self)
        self._value: Tensor | None = None

    def __repr__(self) -> str:
        return f"Node({self.number}: {self.op} {[a.number if isinstance(a, Node) else a for a in self.args]})"

    @property
    def value(self) -> Tensor:  # (B|1, H|1, q_len|1, kv_len|1, *shape), for nodes of at most one axis
        """The node at every index of its axis, computed once."""
        if self._value is None:
            for node in needed(self, lambda n: n._value is None):
                node._value = node.apply([a._value if isinstance(a, Node) else a for a in node.args])
        assert self._value is not None
        return self._value

    @property
    def is_position(self) -> bool:
        """Whether this is q_idx or kv_idx itself."""
        return self.op == "index" and self.axes != NEITHER

    def apply(self, args: list) -> Tensor:
        """Carry the operation out on values (lanes first)."""
        if self.op == "index":
            return self.tape.positions(args[0])
        if self.op == "constant":
            return args[0].reshape((1,) * LANES + self.shape)
        if self.op == "gather":
            return _gather(self, args)
        if self.op == "select":
            return args[0][(slice(None),) * LANES + self.options]
        if self.op in REDUCTIONS:
            dims, keepdim = self.options
            x = args[0]
            for d in sorted(dims, reverse=True):
                x = getattr(torch, self.op)(x, LANES + d, keepdim=keepdim)
            return x
        if self.op == "reshape":
            return args[0].reshape(args[0].shape[:LANES] + self.shape)
        if self.op == "cast":
            return args[0].to(self.dtype)
        if self.op == "lifted":
            return _lifted(self.options[0], args, self.options[1], self.args)
        return ELEMENTWISE[self.op](*args, **dict(self.options))


def _gather(node: Node, args: list) -> Tensor:
    table, *index = args
    table = table[tuple(i if isinstance(i, slice) else slice(None) for i in index)]
    if node.axes != BOTH and not node.tape.traced and (view := _slice_of(table, node, index)) is not None:
        return view
    picked = [d for d, i in enumerate(index) if not isinstance(i, slice)]
    rest = [d for d in range(table.dim()) if d not in picked]
    return table.permute(picked + rest)[tuple(index[d] for d in picked)]


def _slice_of(table: Tensor, node: Node, index: list) -> Tensor | None:
    """The gather as a view, when each index is one of the four scalars itself, in order."""
    lanes, selection, nodes = [], [], node.args[1:]
    for i, n in zip(index, nodes, strict=True):
        if isinstance(n, Node):
            if n.op != "index" or (lanes and n.args[0] <= lanes[-1]) or len(selection) != len(lanes):
                return None
            length = node.tape.lengths[n.args[0]]
            if table.shape[len(lanes)] < length:
                return None
            lanes.append(n.args[0])
            selection.append(slice(0, length))
        elif not isinstance(i, slice):
            return None
        else:
            selection.append(slice(None))
    placed = [selection[lanes.index(lane)] if lane in lanes else None for lane in range(LANES)]
    return table[(*placed, ...)]


def _lifted(function: Callable, args: list, kwargs: tuple, nodes: tuple) -> Tensor:
    """Any function of values of one axis: torch's own vmap over their lanes."""
    values = [a for a, n in zip(args, nodes, strict=True) if isinstance(n, Node)]
    lanes = torch.broadcast_shapes(*(v.shape[:LANES] for v in values))
    flat = [v.expand(lanes + v.shape[LANES:]).reshape((-1,) + v.shape[LANES:]) for v in values]

    def call(*points: Tensor) -> Tensor:
        remaining = iter(points)
        return function(*(next(remaining) if isinstance(n, Node) else n for n in nodes), **dict(kwargs))

    out = torch.vmap(call)(*flat)
    return out.reshape(lanes + out.shape[1:])


def cast(node: Node, dtype: torch.dtype) -> Node:
    """The node as `dtype`: itself if it is."""
    if node.dtype == dtype:
        return node
    return node.tape.node("cast", (node,), node.sample.to(dtype), (dtype,))


def needed(root: Node, wanted: Callable[[Node], bool] = lambda node: True) -> list[Node]:
    """The root and every wanted node that it depends on, through wanted ones, each after those it needs."""
    seen: dict[int, Node] = {}
    open_ = [root]
    while open_:
        node = open_.pop()
        if node.number not in seen and wanted(node):
            seen[node.number] = node
            open_ += [a for a in node.args if isinstance(a, Node)]
    return [seen[number] for number in sorted(seen)]


def evaluate(root: Node, take: Callable[[Node], Tensor]) -> Tensor:
    """The node on a frame of points: `take` gives the values there of a node of at most one axis."""
    if root.axes != BOTH:
        return take(root)
    steps = needed(root, lambda node: node.axes == BOTH)
    leaves: dict[int, Tensor] = {}
    last: dict[int, int] = {}  # after which step a value is not needed any more
    for step in steps:
        for a in step.args:
            if isinstance(a, Node):
                last[a.number] = step.number
    values: dict[int, Tensor] = {}
    for step in steps:
        args = []
        for a in step.args:
            if isinstance(a, Node) and a.axes != BOTH and a.number not in leaves:
                leaves[a.number] = take(a)
            args.append(a if not isinstance(a, Node) else leaves[a.number] if a.axes != BOTH else values[a.number])
        values[step.number] = step.apply(args)
        for a in step.args:
            if isinstance(a, Node) and last[a.number] == step.number:
                leaves.pop(a.number, None)
                values.pop(a.number, None)
    return values[root.number]


def lanes_read(root: Node) -> set[int]:
    """Which of the batch (0) and head (1) index the expression depends on."""
    read, seen, stack = set(), set(), [root]
    while stack:
        node = stack.pop()
        if node.number in seen:
            continue
        seen.add(node.number)
        if node.op == "index":
            read.add(node.args[0])
        stack += [a for a in node.args if isinstance(a, Node)]
    return read
