"""Record a predicate as an expression by running it once on recording scalars.

The predicate runs on one real point, (b, h, q_idx, kv_idx) = (0, 0, 0, 0), whose scalars are `Scalar` tensors:
every torch function applied to them is carried out on the point (so shapes and dtypes are torch's own, promotion
included) and recorded as a `Node`.

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

from maskmod.analyser.expression import BOTH, LANES, NEITHER, Node, Tape, cast
from maskmod.analyser.torch_ops import (
    CASTS,
    CONSTANTS,
    ELEMENTWISE,
    IDENTITIES,
    INFORMATION,
    RANDOM,
    REDUCTIONS,
    RESHAPES,
    canonical_name,
)
from maskmod.errors import MaskError
from maskmod.oracle import randomness, scalar_bool

__all__ = ["Scalar", "Unknown", "record"]

_no_dispatch = torch._C.DisableTorchFunctionSubclass


class Unknown(Exception):
    """The predicate does something the analyser has no meaning for; not an error of the user's."""


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


class _Watching(TorchFunctionMode):
    """Sees what a predicate does beside its scalars: tables indexed by them, tensors computed from tensors."""

    def __init__(self, tape: Tape, mask: object):
        super().__init__()
        self.tape, self.mask = tape, mask

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.__getitem__ and not isinstance(args[0], Scalar):
            # `table[..., scalar]` reaches a subclass outside a trace only; Dynamo needs the mode.
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            for i in index:
                if isinstance(i, Scalar):
                    return _dispatch(func, args, kwargs)
            if self.tape.traced and any(isinstance(i, Tensor) and not i.dim() for i in index):
                return _index_of_graph(args[0], index)
        if _draws(func, self.tape.traced):
            raise randomness(self.mask)
        result = func(*args, **kwargs)
        if not self.tape.traced and isinstance(result, Tensor) and not isinstance(result, Scalar):
            self.tape.made[id(result)] = (result, func, args, kwargs)
        return result


def _draws(function: Callable, traced: bool) -> bool:
    if not traced:
        return function in _DRAWING
    return any(function is draws for draws in RANDOM)  # Dynamo cannot look Python functions up in a set


_DRAWING = frozenset(RANDOM)


def _index_of_graph(table: Tensor, index: tuple) -> Tensor:
    """A table of the graph looked up at numbers of the graph: `table[0-d]` would ask the index for its value."""
    if not all(isinstance(i, (int, Tensor)) and not isinstance(i, bool) for i in index):
        return table[index]
    return torch.ops.aten.index(
        table, [i if isinstance(i, Tensor) else torch.tensor(i, device=table.device) for i in index]
    )


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
        return _scalar(tape.node("reshape", (args[0].node,), sample, tuple(sample.shape)))
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


def _aligned(tape: Tape, name: str, args: list) -> list:
    """Give all nodes one rank, as broadcasting would.

    vmap, which defines what a predicate means, promotes values of different rank and dtype unlike torch does on the
    values themselves, and `where` and `clamp` even those of one rank; such mixtures are refused, and so is a Python
    number in half-precision arithmetic. In a comparison vmap converts a captured scalar to a narrower dtype of the same
    kind, so 259 equals an int8 of 3 (torch 2.13); so does this.
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
    if not rank and name in (*_COMPARISONS, "eq", "ne") and len(nodes) == 2:
        for k, (a, other) in enumerate((nodes, nodes[::-1])):
            if not a.reads_index and other.reads_index and _is_narrower(other.dtype, a.dtype):
                args = [cast(a, other.dtype), other] if k == 0 else [other, cast(a, other.dtype)]
    if same_rank:
        return args
    aligned = []
    for a in args:
        if isinstance(a, Node) and len(a.shape) < rank:
            shape = (1,) * (rank - len(a.shape)) + a.shape
            a = tape.node("reshape", (a,), a.sample.reshape(shape), shape)
        aligned.append(a)
    return aligned


def _is_narrower(a: torch.dtype, b: torch.dtype) -> bool:
    """Whether `a` holds less than `b` of the same kind of number."""
    if torch.bool in (a, b) or a.is_floating_point != b.is_floating_point:
        return False
    return torch.promote_types(a, b) != a


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
    if traced and not torch.compiler.is_dynamo_compiling():  # a non-strict export compiles without Dynamo
        raise Unknown("fake tensors outside a compiler cannot carry a recording")
    tape = Tape(B, H, q_len, kv_len, device, traced)
    # In a trace the point is on the meta device: should Dynamo carry an operation out without showing it to
    # `Scalar`, the result can then be told from a captured tensor, and is refused.
    zero = torch.zeros((), dtype=torch.long, device="meta" if traced else device)
    scalars = [_scalar(tape.node("index", (lane,), zero)) for lane in range(LANES)]
    try:
        with _Watching(tape, mask):
            answer = mask(*scalars)
    except (Unknown, MaskError):
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
