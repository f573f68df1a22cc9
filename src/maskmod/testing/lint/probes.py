"""Runs a predicate in every way that it will be run, and says what went wrong, with the user's own line.

Nothing is assumed from its source: a probe either failed or it did not. Which rewrite cures a failure is looked up in
`source`, by the line that failed.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from maskmod.algebra import Mask, Sizes, device_of
from maskmod.analyser.expression import Node, evaluate, lanes_read, needed
from maskmod.analyser.record import Unknown, record
from maskmod.errors import MaskError, MaskShapeError
from maskmod.oracle import vmap_mask
from maskmod.testing.lint.places import Place, place_at

__all__ = [
    "Recording",
    "Trouble",
    "failing_place",
    "gathers_out_of_range",
    "is_users",
    "limits",
    "narrow_overflows",
    "quietly",
    "recording",
    "sizes_that_fit",
]

_MASKMOD = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(__file__))), "")
_TORCH = os.path.join(os.path.dirname(torch.__file__), "")
_STDLIB = os.path.join(sysconfig.get_paths()["stdlib"], "")
_SITE = os.path.join(sysconfig.get_paths()["purelib"], "")
LENGTH = 192  # where nothing limits it: more than a block of 128, and not a multiple of one
LANES = 2


def is_users(file: str) -> bool:
    """Whether a file is neither torch's, nor ours, nor Python's."""
    if file.startswith("<") and not file.startswith(("<ipython", "<stdin", "<doctest")):
        return False
    if file.startswith((_MASKMOD, _TORCH)):
        return False
    return not file.startswith(_STDLIB) or file.startswith(_SITE)


def failing_place(error: BaseException | None) -> Place | None:
    """The innermost line of the user's in a traceback, or in those of its causes."""
    while error is not None:
        found, trace = None, error.__traceback__
        while trace is not None:
            file = trace.tb_frame.f_code.co_filename
            if is_users(file):
                found = place_at(file, trace.tb_lineno)
            trace = trace.tb_next
        if found is not None and error.__cause__ is None:
            return found
        deeper = failing_place(error.__cause__) if error.__cause__ is not None else None
        return deeper or found
    return None


@contextmanager
def quietly() -> Iterator[None]:
    """Without Dynamo's own warnings, and without what a predicate prints each time that it is run."""
    logger = logging.getLogger("torch._dynamo")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


class Recording(NamedTuple):
    """A recorded predicate, with the user's line of each step."""

    root: Node | None
    why: str  # where there is no recording
    place: Place | None  # of the step that ended it
    places: dict[int, Place]


class _Lines(TorchFunctionMode):
    """Notes which line of the user's made each node."""

    def __init__(self, places: dict[int, Place]):
        super().__init__()
        self.places = places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        node = getattr(answer, "node", None)
        if isinstance(node, Node) and node.number not in self.places:
            frame = sys._getframe(1)
            while frame is not None and not is_users(frame.f_code.co_filename):
                frame = frame.f_back
            if frame is not None:
                self.places[node.number] = place_at(frame.f_code.co_filename, frame.f_lineno)
        return answer


def recording(mask: Mask, sizes: Sizes) -> Recording:
    """The mask recorded at these sizes."""
    places: dict[int, Place] = {}

    def noted(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        with _Lines(places):
            return mask(b, h, q_idx, kv_idx)

    try:
        root = record(noted, *sizes, device_of(mask, None), traced=False)
    except Unknown as reason:
        return Recording(None, str(reason), failing_place(reason), places)
    except MaskError as error:
        return Recording(None, str(error), failing_place(error), places)
    return Recording(root, "", None, places)


def limits(root: Node) -> list[int | None]:
    """How large each of b, h, q_idx, kv_idx may be: the shortest table that one of them indexes as it is."""
    found: list[int | None] = [None] * 4
    for node in needed(root):
        if node.op != "gather":
            continue
        table, *index = node.args
        for size, entry in zip(table.shape, index, strict=True):
            if isinstance(entry, Node) and entry.op == "index":
                lane = entry.args[0]
                found[lane] = size if found[lane] is None else min(size, found[lane])
    return found


def sizes_that_fit(mask: Mask, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> Sizes:
    """The sizes asked for; where none were, those that every table of the mask reaches."""
    noted = recording(mask, Sizes(LANES, LANES, 1 << 20, 1 << 20))
    at_most: list[int | None] = [None] * 4
    wanted = [LANES, LANES, LENGTH, LENGTH]
    if noted.root is not None:
        at_most = limits(noted.root)
        read = lanes_read(noted.root)
        wanted[:2] = [LANES if lane in read else 1 for lane in (0, 1)]
    wanted = [
        w if most is None else min(most, w) if lane > 1 else most
        for lane, (w, most) in enumerate(zip(wanted, at_most, strict=True))
    ]
    asked = (B, H, q_len, kv_len)
    dims = sorted({d for t in mask.tensors() for d in t.shape}, reverse=True)
    lengths = [None, *(min(d, LENGTH) for d in dims), 1]
    rows = [None, *(d for d in dims if d <= 64), 1]
    for length in lengths:
        for row in rows:
            tried = [row, wanted[1], length, length]
            sizes = Sizes(
                *(
                    a if a is not None else t if t is not None else w
                    for a, t, w in zip(asked, tried, wanted, strict=True)
                )
            )
            if _fits(mask, sizes, noted.root is None):
                return sizes
    return Sizes(*(a if a is not None else w for a, w in zip(asked, wanted, strict=True)))


def _fits(mask: Mask, sizes: Sizes, by_running: bool) -> bool:
    try:
        mask.check(*sizes)
        if by_running:
            vmap_mask(mask, *sizes)
    except MaskShapeError:
        return False
    except IndexError:
        return False
    except Exception:  # another fault, which a probe will name
        return True
    return True


class Trouble(NamedTuple):
    """A step of a recording that goes wrong at one element."""

    node: Node
    at: tuple[int, int, int, int]  # b, h, q_idx, kv_idx
    text: str


_POSITIONS = 256  # queries, and keys, that a step where both meet is tried at


class _Frame:
    """Values of nodes at some queries and keys, and all rows and heads: (B|1, H|1, nq|1, nkv|1, *shape)."""

    def __init__(self, root: Node):
        B, H, q_len, kv_len = root.tape.lengths
        self.places = [torch.arange(B), torch.arange(H), _spread(q_len), _spread(kv_len)]

    def take(self, node: Node) -> Tensor:
        value = node.value
        for dim in (2, 3):
            if value.shape[dim] > 1:
                value = value.index_select(dim, self.places[dim].to(value.device))
        return value

    def of(self, node: Node) -> Tensor:
        return evaluate(node, self.take)

    def element(self, found: Tensor) -> tuple[int, int, int, int] | None:
        """The first place where a boolean of the frame is True."""
        where = found.reshape(*found.shape[:4], -1).any(-1).nonzero()
        if not where.shape[0]:
            return None
        picked = where[0].tolist()
        return tuple(int(p[i]) if len(p) > i else i for p, i in zip(self.places, picked, strict=True))  # type: ignore[return-value]


def _spread(length: int) -> Tensor:
    if length <= _POSITIONS:
        return torch.arange(length)
    ends = torch.arange(32)
    return torch.cat([ends, torch.linspace(32, length - 33, _POSITIONS - 64).long(), length - 32 + ends]).unique()


def gathers_out_of_range(root: Node) -> Iterator[tuple[str, Trouble]]:
    """("out-of-range" or "wraps", where) for every table that is read past its end, or before its start with effect."""
    frame = _Frame(root)
    for node in needed(root):
        if node.op != "gather":
            continue
        table, *index = node.args
        for dim, (size, entry) in enumerate(zip(table.shape, index, strict=True)):
            if not isinstance(entry, Node):
                continue
            value = frame.of(entry)
            name = f"a table of shape {list(table.shape)}"
            past = (value >= size) | (value < -size)
            if (at := frame.element(past)) is not None:
                read = int(value.masked_select(past)[0])
                yield "out-of-range", Trouble(node, at, f"reads entry {read} of dimension {dim} of {name}")
                return  # what reads it cannot be evaluated
            before = value < 0
            if (at := frame.element(before)) is not None and _matters(root, node, before, frame):
                read = int(value.masked_select(before)[0])
                yield (
                    "wraps",
                    Trouble(
                        node, at, f"reads entry {read} of dimension {dim} of {name}: that is the last but {-read - 1}"
                    ),
                )


def _matters(root: Node, gather: Node, where: Tensor, frame: _Frame) -> bool:
    """Whether the answer changes with what a table gives at these elements."""

    def answer(other: Tensor | None) -> Tensor:
        values: dict[int, Tensor] = {}
        for node in needed(root):
            if node.op in ("index", "constant"):
                values[node.number] = frame.take(node)
            else:
                values[node.number] = node.apply([values[a.number] if isinstance(a, Node) else a for a in node.args])
            if node is gather and other is not None:
                spread = where.reshape(*where.shape, *(1,) * len(node.shape))
                value = values[node.number]
                values[node.number] = torch.where(spread, other.to(value.dtype), value)
        return values[root.number]

    table = gather.args[0]
    if table.dtype == torch.bool:
        others = [torch.tensor(True), torch.tensor(False)]
    else:
        others = [table.min(), table.max(), table.reshape(-1)[0]]
    plain = answer(None)
    return any(bool((answer(other) != plain).any()) for other in others)


_ARITHMETIC: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "neg": torch.neg,
    "square": torch.square,
    "bitwise_left_shift": torch.bitwise_left_shift,
}
_NARROW = (torch.int8, torch.int16, torch.int32, torch.uint8)


def narrow_overflows(root: Node) -> Iterator[Trouble]:
    """Integer steps that leave their dtype. In flex's kernels the four indices are int32, whatever they are here."""
    frame = _Frame(root)
    kernel: dict[int, torch.dtype] = {}
    for node in needed(root):
        dtype = _kernel_dtype(node, kernel)
        kernel[node.number] = dtype
        operation = _ARITHMETIC.get(node.op)
        if operation is None or dtype not in _NARROW or node.options:
            continue
        try:
            args = [frame.of(a).long() if isinstance(a, Node) else a for a in node.args]
        except IndexError:  # a table read out of range, which is a finding of its own
            return
        value, info = operation(*args), torch.iinfo(dtype)
        if (at := frame.element((value < info.min) | (value > info.max))) is not None:
            where = "in flex's kernels, whose indices are int32" if node.dtype != dtype else "here"
            most = int(value.max()) if int(value.max()) > info.max else int(value.min())
            yield Trouble(node, at, f"reaches {most}, past {str(dtype).removeprefix('torch.')}, {where}")


def _kernel_dtype(node: Node, known: dict[int, torch.dtype]) -> torch.dtype:
    """A node's dtype where the four indices are int32."""
    if node.op == "index":
        return torch.int32
    if node.dtype.is_floating_point or node.dtype == torch.bool or node.op in ("gather", "constant", "cast", "lifted"):
        return node.dtype
    dtypes = [known[a.number] for a in node.args if isinstance(a, Node) and a.number in known]
    if node.op == "where":
        dtypes = dtypes[1:] or dtypes
    if not dtypes or any(d.is_floating_point for d in dtypes):
        return node.dtype
    found = dtypes[0]
    for dtype in dtypes[1:]:
        found = torch.promote_types(found, dtype)
    return node.dtype if found == torch.bool else found
