"""Tables that may differ by head: how they are checked and read. They hold flags of tokens, or layouts of blocks.

    flags    (n,), (B, n) or (B, H, n)                       one axis of tokens
    layouts  (q, kv), (H, q, kv) or (B, H, q, kv)            two axes of blocks

A batch or head axis of length 1 serves all. This module does not know what the entries mean.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import torch
from torch import Tensor

from maskmod._torch.tracing import known_true
from maskmod.algebra import Index, spell
from maskmod.errors import MaskShapeError, MaskTypeError

__all__ = ["check_flags", "check_layout", "check_lead", "check_length", "entry", "flag_set"]


def entry(table: Tensor, lead: tuple[Index, ...], *indices: Index) -> tuple[Any, Any]:
    """``(value, in_range)`` of a table at ``indices``, its last axes; ``lead`` are the indices of the axes before.

    Out of range the value is that of entry 0, to be ANDed away.
    """
    own = table.dim() - len(indices)
    lead = lead[len(lead) - own :]
    for axis in reversed(range(own)):
        if known_true(table.shape[axis] == 1):  # one for all: the index is not read
            table, lead = table.select(axis, 0), (*lead[:axis], *lead[axis + 1 :])
    inside = [(idx >= 0) & (idx < size) for size, idx in zip(table.shape[len(lead) :], indices, strict=True)]
    safe = [idx * here for idx, here in zip(indices, inside, strict=True)]
    in_range = functools.reduce(operator.and_, inside)
    if any(known_true(size == 0) for size in table.shape):  # no entry 0 to read
        return in_range & (in_range ^ True), in_range
    return table[(*lead, *safe)], in_range


def flag_set(flags: Tensor, b: Index, h: Index, idx: Index) -> Any:
    """Whether ``flags`` are nonzero at ``idx``; out of range they are not."""
    # (B, n) has a batch axis alone: the head is not read.
    value, inside = entry(flags, (b,) if flags.dim() == 2 else (b, h), idx)
    return (value if value is inside or flags.dtype == torch.bool else value != 0) & inside


def check_flags(written: object, flags: Any) -> None:
    """A tensor of booleans or integers of shape (n,), (B, n) or (B, H, n)."""
    _check_kind(written, flags, "flags, shape (n,), (B, n) or (B, H, n)", (1, 2, 3))


def check_layout(written: object, layout: Any) -> None:
    """A tensor of booleans or integers of shape (q, kv), (H, q, kv) or (B, H, q, kv)."""
    _check_kind(written, layout, "a layout, shape (q, kv), (H, q, kv) or (B, H, q, kv)", (2, 3, 4))


def check_lead(written: object, table: Tensor, B: int | None, H: int | None, axes: int) -> None:
    """The batch and head axes of a table whose last ``axes`` axes are tokens or blocks."""
    own = table.dim() - axes
    names = (("B", B),) if axes == 1 and own == 1 else (("B", B), ("H", H))[2 - own :]
    for axis, (name, size) in enumerate(names):
        have = table.shape[axis]
        if size is not None and not known_true(have == 1) and known_true(have != size):
            raise MaskShapeError(
                f"{written} on {name}={size}",
                f"axis {axis} of the table has length {have}, {size} needed",
                f"Pass one for all, or {name}={size} of them.",
            )


def check_length(written: object, table: Tensor, axis: int, length: int | None, name: str, size: int = 1) -> None:
    """An axis of tokens, or of blocks of ``size`` tokens, against the length that it must serve; None is not known."""
    if length is not None and known_true(table.shape[axis] * size < length):
        # Spelled here and not before: a symbolic length in a string would be made a constant.
        needed = -(-length // size)
        raise MaskShapeError(
            f"{written} on {name}={length}",
            f"axis {axis} of the table has {table.shape[axis]} entries, {needed} needed",
            f"Pad it to {needed}.",
        )


def _check_kind(written: object, table: Any, wanted: str, dims: tuple[int, ...]) -> None:
    if not isinstance(table, Tensor):
        raise MaskTypeError(written, f"a {type(table).__name__}", f"Pass a tensor of {wanted}.")
    if table.is_floating_point() or table.is_complex():
        raise MaskTypeError(written, f"{spell(table)} holds no flags", "Pass a tensor of bool or integer dtype.")
    if table.dim() not in dims:
        raise MaskShapeError(written, f"a {table.dim()}-d tensor", f"Pass {wanted}.")
