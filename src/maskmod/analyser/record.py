"""Record a predicate as an expression by running it once on recording scalars.

The predicate runs on one real point, (b, h, q_idx, kv_idx) = (0, 0, 0, 0), whose scalars are `Scalar` tensors:
every torch function applied to them is carried out on the point (so shapes and dtypes are torch's own, promotion
included) and recorded as a `Node`. A node knows which of the two long axes it depends on. One that depends on at
most one of them can be evaluated for all indices at once (`Node.value`, with the user's own torch functions, hence
exact); one that depends on both is only ever bounded, or evaluated on a few tiles (`evaluate`).

This module refuses to guess: a truth value, a conversion to a Python number, or a function it does not list where
queries meet keys raise `Unknown`, and the caller evaluates the predicate token by token instead.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode

from maskmod.analyser.torch_ops import (
    CASTS,
    CONSTANTS,
    ELEMENTWISE,
    IDENTITIES,
    INFORMATION,
    REDUCTIONS,
    RESHAPES,
    canonical_name,
)
from maskmod.oracle import scalar_bool

__all__ = [
    "BOTH",
    "KV",
    "NEITHER",
    "Node",
    "Q",
    "Scalar",
    "Tape",
    "Unknown",
    "cast",
    "evaluate",
    "lanes_read",
    "record",
]

# Which long axes a node depends on, as bits. Batch and head are lanes: every value carries them.
NEITHER, Q, KV, BOTH = 0, 1, 2, 3
LANES = 4  # leading dimensions of a value: (B|1, H|1, q_len|1, kv_len|1); the node's own shape follows
_no_dispatch = torch._C.DisableTorchFunctionSubclass


class Unknown(Exception):
    """The predicate does something the analyser has no meaning for; not an error of the user's."""


class Tape:
    """The nodes of one recorded predicate, and the lengths it is read at."""

    def __init__(self, B: int, H: int, q_len: int, kv_len: int, device: torch.device, traced: bool):
        self.lengths = (B, H, q_len, kv_len)
        self.device, self.traced = device, traced
        self.nodes: list[Node] = []
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
            self._value = self.apply([a.value if isinstance(a, Node) else a for a in self.args])
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


class Scalar(torch.Tensor):
    """What a predicate sees while it is recorded: a tensor that also knows the node it stands for."""

    node: Node

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.node.tape.device

    @property
    def dtype(self) -> torch.dtype:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.node.dtype

    @property
    def shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.node.shape

    @property
    def ndim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.node.shape)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return _dispatch(func, args, kwargs or {})


class _Sealed(Scalar):
    """A scalar whose point nobody can compute with: what slips past `__torch_function__` is refused, not believed.

    Scripted functions do, and a `torch.vmap` inside a predicate. In a trace the meta device serves instead, since
    Dynamo does not trace this class.
    """

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise Unknown(f"{func} of a recording scalar's point")


class _Indexing(TorchFunctionMode):
    # `table[..., scalar]` reaches a subclass outside a trace only; Dynamo needs the mode.
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__getitem__ and not isinstance(args[0], Scalar):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            for i in index:
                if isinstance(i, Scalar):
                    return _dispatch(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _scalar(node: Node) -> Scalar:
    scalar = node.sample.as_subclass(Scalar if node.tape.traced else _Sealed)
    scalar.node = node
    return scalar


def _tape(args: tuple) -> Tape:
    for a in args:
        if isinstance(a, Scalar):
            return a.node.tape
        if isinstance(a, tuple):
            for i in a:
                if isinstance(i, Scalar):
                    return i.node.tape
    raise Unknown("a recording scalar inside a container")


def _dispatch(func: Callable, args: tuple, kwargs: dict) -> Any:
    name, args = canonical_name(func, args)
    if name == "in_place" or "out" in kwargs:
        raise Unknown(f"{func} changes a recording scalar in place")
    if name in INFORMATION or (not torch.compiler.is_compiling() and func.__name__ == "__get__"):
        with _no_dispatch():
            answer = func(*(a.node.sample if isinstance(a, Scalar) else a for a in args), **kwargs)
        if isinstance(answer, Tensor):
            raise Unknown(f"{func} of a recording scalar")
        return answer
    if name in IDENTITIES:
        return args[0]
    tape = _tape((*args, *kwargs.values()))
    if name == "getitem":
        return _scalar(_record_getitem(tape, args[0], args[1]))
    if name in CONSTANTS:
        with _no_dispatch():
            value = func(_sample(tape, args[0]), *args[1:], **{**kwargs, "device": tape.device})
        return _scalar(tape.node("constant", (value,), _sample(tape, value)))
    if name in CASTS:
        node, dtype = args[0].node, _cast_target(tape, name, args, kwargs)
        return args[0] if dtype == node.dtype else _scalar(cast(node, dtype))
    with _no_dispatch():
        on_point = [_sample(tape, a) if isinstance(a, Tensor) else a for a in args]
        sample = ELEMENTWISE.get(name or "", func)(*on_point, **kwargs)
    if not isinstance(sample, Tensor):
        raise Unknown(f"{name or func} asks a recording scalar for a Python value")
    if sample is args[0]:  # `x.long()` of an int64 is x
        return sample
    if name in RESHAPES and sample.dtype == args[0].dtype:  # `x.view(dtype)` is another thing
        return _scalar(tape.node("reshape", (args[0].node,), sample))
    if name in REDUCTIONS:
        return _scalar(_record_reduction(tape, name, args, kwargs, sample))
    if name in ELEMENTWISE:
        if name == "clamp":
            args = (*args, *(kwargs.get(k) for k in ("min", "max")[len(args) - 1 :]))
            kwargs = {}
        nodes = _aligned(tape, name, [_argument(tape, a) for a in args])
        if (simpler := _simpler(tape, name, nodes, sample)) is not None:
            return _scalar(simpler)
        return _scalar(tape.node(name, tuple(nodes), sample, tuple(kwargs.items())))
    return _scalar(_record_lifted(tape, func, args, kwargs, sample))


_CAST_DTYPES = {
    "bool": torch.bool,
    "byte": torch.uint8,
    "char": torch.int8,
    "short": torch.int16,
    "int": torch.int32,
    "long": torch.int64,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "float": torch.float32,
    "double": torch.float64,
}


def _cast_target(tape: Tape, name: str, args: tuple, kwargs: dict) -> torch.dtype:
    if name in _CAST_DTYPES:
        return _CAST_DTYPES[name]
    dtype = args[0].node.dtype
    for option in (*args[1:], *kwargs.values()):
        if isinstance(option, torch.dtype):
            dtype = option
        elif isinstance(option, Tensor):
            dtype = option.dtype
        elif isinstance(option, (str, torch.device)) and torch.device(option).type != tape.device.type:
            raise Unknown("a move to another device")
    return dtype


def _sample(tape: Tape, tensor: Tensor) -> Tensor:
    """A tensor as it takes part in operations on the recorded point."""
    if isinstance(tensor, Scalar):
        return tensor.node.sample
    if tape.traced:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    if is_functorch_wrapped_tensor(tensor):
        raise Unknown("a tensor that a transform inside the predicate wraps")
    return tensor


def _argument(tape: Tape, arg: Any) -> Any:
    if isinstance(arg, Scalar):
        return arg.node
    if isinstance(arg, Tensor):
        if arg.device.type == "meta":
            raise Unknown("an operation that this trace does not record")
        return tape.node("constant", (arg,), _sample(tape, arg))
    return arg


def _simpler(tape: Tape, name: str, args: list, sample: Tensor) -> Node | None:
    """A position inside static limits is known to be: `0 <= idx < n` and `idx * True` cost nothing, and stay `idx`."""
    if tape.traced or len(args) != 2:
        return None
    a, b = args
    if name in _COMPARISONS:
        low, high = _range(a), _range(b)
        if low is not None and high is not None:
            for answer in (True, False):
                if all(_COMPARISONS[name](x, y) is answer for x in low for y in high):
                    known = torch.full((), answer, device=sample.device)
                    return Node(tape, "constant", (known,), known, (answer,))
    elif name == "mul" or (name in ("bitwise_and", "logical_and") and sample.dtype == torch.bool):
        for node, other in ((a, b), (b, a)):
            if isinstance(other, Node) and other.op == "constant" and other.options == (True,):
                return node if isinstance(node, Node) and node.dtype == sample.dtype else None
    return None


_COMPARISONS = {"lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge}


def _range(arg: Any) -> tuple[int, int] | None:
    if isinstance(arg, Node):
        return (0, arg.tape.lengths[arg.args[0]] - 1) if arg.op == "index" else None
    return (arg, arg) if isinstance(arg, int) else None


def cast(node: Node, dtype: torch.dtype) -> Node:
    """The node as `dtype`: itself if it is."""
    if node.dtype == dtype:
        return node
    return node.tape.node("cast", (node,), node.sample.to(dtype), (dtype,))


def _aligned(tape: Tape, name: str, args: list) -> list:
    """Give all nodes one rank, as broadcasting would.

    vmap, which defines what a predicate means, promotes values of different rank and dtype unlike torch does on the
    values themselves, and `where` and `clamp` even those of one rank; such mixtures are refused. So are scalars that
    vmap narrows first (torch 2.13): a captured one in an order comparison with a narrower dtype, a Python number in
    half-precision arithmetic.
    """
    nodes = [a for a in args if isinstance(a, Node)]
    halves = any(a.dtype in (torch.half, torch.bfloat16) for a in nodes)
    if halves and name not in _COMPARISONS and any(isinstance(a, (int, float)) for a in args):
        raise Unknown(f"{name} of half precision and a Python number")
    rank = max(len(a.shape) for a in nodes)
    same_rank = all(len(a.shape) == rank for a in nodes)
    operands = nodes[1:] if name == "where" else nodes
    if (not same_rank or name in ("where", "clamp")) and len({a.dtype for a in operands}) > 1:
        raise Unknown(f"{name} of values whose promotion depends on their rank")
    if name in _COMPARISONS and len(nodes) == 2 and nodes[0].dtype != nodes[1].dtype:
        for a, other in (nodes, nodes[::-1]):
            if not a.reads_index and torch.promote_types(a.dtype, other.dtype) != other.dtype:
                raise Unknown(f"{name} with a captured scalar of a wider dtype")
    if same_rank:
        return args
    aligned = []
    for a in args:
        if isinstance(a, Node) and len(a.shape) < rank:
            shape = (1,) * (rank - len(a.shape)) + a.shape
            a = tape.node("reshape", (a,), a.sample.reshape(shape), shape)
        aligned.append(a)
    return aligned


def _record_reduction(tape: Tape, name: str, args: tuple, kwargs: dict, sample: Tensor) -> Node:
    node = args[0].node
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    keepdim = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
    rank = len(node.shape)
    if node.dtype == torch.uint8 or dims == ():
        raise Unknown(f"{name} of uint8, or over no dimension, has a meaning of its own")
    if dims is None:
        dims = tuple(range(rank))
    elif isinstance(dims, int):
        dims = (dims,)
    if node.dtype != torch.bool:
        node = cast(node, torch.bool)
    if rank == 0:
        return node
    return tape.node(name, (node,), sample, (tuple(d % rank for d in dims), keepdim))


def _record_getitem(tape: Tape, table: Tensor, index: Any) -> Node:
    index = list(index) if isinstance(index, tuple) else [index]
    recorded = any(isinstance(i, Scalar) for i in index)
    if not recorded:
        assert isinstance(table, Scalar)
        node = table.node
        sample = node.sample[tuple(index)]
        if any(isinstance(i, bool) for i in index):
            raise Unknown("a truth value as an index")
        if not all(i is None or i is Ellipsis or isinstance(i, (int, slice)) for i in index):
            return _record_lifted(tape, torch.Tensor.__getitem__, (table, tuple(index)), {}, sample)
        return Node(tape, "select", (node,), sample, tuple(index))  # slices do not hash
    earlier: list = []
    if isinstance(table, Scalar):
        node = table.node
        if node.op != "gather":
            raise Unknown("indexing a computed value with a scalar")
        free = [i for i in node.args[1:] if isinstance(i, slice)]
        if any(i != slice(None) for i in free) or any(isinstance(i, slice) for i in node.args[1 : 1 + _picked(node)]):
            raise Unknown("indexing a slice of a table with a scalar")
        earlier, table = list(node.args[1 : 1 + _picked(node)]), node.args[0]
    index = earlier + index
    if Ellipsis in [i for i in index if not isinstance(i, (Tensor, Node))]:
        at = next(k for k, i in enumerate(index) if i is Ellipsis)
        index[at : at + 1] = [slice(None)] * (table.dim() - len(index) + 1)
    index += [slice(None)] * (table.dim() - len(index))
    entries = []
    for i in index:
        if isinstance(i, (Node, slice)) or (isinstance(i, int) and not isinstance(i, bool)):
            entries.append(i)
            continue
        if not isinstance(i, Tensor) or i.dim() or i.dtype not in (torch.int64, torch.int32):
            raise Unknown("a table indexed by something other than scalars, ints and slices")
        entries.append(_argument(tape, i))
    # Any index will do for the shape and dtype, and a static one asks no tensor for its value.
    sample = table[tuple(i if isinstance(i, slice) else 0 for i in entries)]
    return tape.node("gather", (table, *entries), _sample(tape, sample))


def _picked(node: Node) -> int:
    return sum(not isinstance(i, slice) for i in node.args[1:])


def _record_lifted(tape: Tape, func: Callable, args: tuple, kwargs: dict, sample: Tensor) -> Node:
    if tape.traced or any(isinstance(a, Scalar) for a in kwargs.values()):
        raise Unknown(f"{func} of a recording scalar")
    nodes = tuple(a.node if isinstance(a, Scalar) else a for a in args)
    axes = NEITHER
    for n in nodes:
        if isinstance(n, Node):
            axes |= n.axes
    if axes == BOTH or not any(isinstance(n, Node) for n in nodes):
        raise Unknown(f"{func} where queries meet keys")
    # Not through `Tape.node`: arguments of unlisted functions need not be hashable.
    return Node(tape, "lifted", nodes, sample, (func, tuple(kwargs.items())))


def record(mask: Callable, B: int, H: int, q_len: int, kv_len: int, device: torch.device, traced: bool) -> Node:
    """The predicate as an expression.

    Raises:
        Unknown: it does something that has no meaning for the analyser.
        MaskError: as the vmap lift does, where it returns anything but one bool.
    """
    if traced and not torch.compiler.is_compiling():
        raise Unknown("fake tensors outside a compiler cannot carry a recording")
    tape = Tape(B, H, q_len, kv_len, device, traced)
    # In a trace the point is on the meta device: should Dynamo carry an operation out without showing it to
    # `Scalar`, the result can then be told from a captured tensor, and is refused.
    zero = torch.zeros((), dtype=torch.long, device="meta" if traced else device)
    scalars = [_scalar(tape.node("index", (lane,), zero)) for lane in range(LANES)]
    try:
        with _Indexing():
            answer = mask(*scalars)
    except Unknown:
        raise
    except Exception as error:
        if traced:
            raise
        raise Unknown(f"{type(error).__name__}: {error}") from error
    if isinstance(answer, Scalar):
        scalar_bool(mask, answer.node.sample, device)
        return answer.node
    constant = _argument(tape, scalar_bool(mask, answer, device))
    assert isinstance(constant, Node)
    return constant


def evaluate(node: Node, take: Callable[[Node], Tensor]) -> Tensor:
    """The node on a frame of points: `take` gives the values there of a node of at most one axis."""
    done: dict[int, Tensor] = {}

    def values(n: Any) -> Any:
        if not isinstance(n, Node):
            return n
        if n.number not in done:
            done[n.number] = take(n) if n.axes != BOTH else n.apply([values(a) for a in n.args])
        return done[n.number]

    return values(node)


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
