"""Tables indexed by position: how they are checked, and how they are read without going out of range.

A table holds integers or booleans: ``(n,)``, shared by the batch, or ``(B, n)``, one row per batch element. Offsets and
other per-row scalars are an int, a 0-d tensor, ``(1,)`` or ``(B,)``. This module does not know what the numbers mean.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskmod._torch.tracing import known_true
from maskmod.algebra import Index, spell
from maskmod.errors import MaskShapeError, MaskTypeError, MaskValueError

__all__ = [
    "check_count",
    "check_row_count",
    "check_row_scalar",
    "check_size",
    "check_table",
    "check_table_sizes",
    "is_set",
    "look_up",
    "row_scalar",
    "wide",
]


def look_up(table: Tensor, b: Index, idx: Index) -> tuple[Any, Any]:
    """``(value, in_range)`` of a table at ``idx``; out of range the value is that of entry 0, to be ANDed away.

    The product keeps the read in bounds without a branch and without a clamp, which plain ints do not have.
    """
    in_range = (idx >= 0) & (idx < table.shape[-1])
    safe = idx * in_range
    if known_true(table.shape[-1] == 0):  # no entry 0 to read
        return safe, in_range
    return (table[b, safe] if table.dim() == 2 else table[safe]), in_range


def is_set(table: Tensor, b: Index, idx: Index) -> Any:
    """Whether a table of validity is nonzero at ``idx``; out of range it is not."""
    value, in_range = look_up(table, b, idx)
    return (value if table.dtype == torch.bool else value != 0) & in_range


def wide(value: Any, table: Tensor) -> Any:
    """``value``, read from ``table``, in a dtype fit for arithmetic: int8 overflows, and -1 is 255 in uint8."""
    if isinstance(value, int) or table.dtype in (torch.int64, torch.int32):
        return value
    return value.to(torch.int64)


def row_scalar(value: int | Tensor, b: Index) -> Any:
    """The scalar that belongs to batch row ``b``: the value itself, the one entry of ``(1,)``, or entry ``b``."""
    if not isinstance(value, Tensor):
        return value
    if value.dim() == 0:
        return wide(value, value)
    return wide(value[0] if value.shape[0] == 1 else value[b], value)


def check_count(written: object, value: Any, *, least: int = 1, unit: str = "keys") -> None:
    """A static number of at least ``least``, or a 0-d integer tensor, whose value is nobody's business."""
    if isinstance(value, Tensor):
        if value.dim() or not _is_integer(value):
            raise MaskTypeError(
                written, f"{spell(value)} is not one integer", f"Pass an int or a 0-d tensor of {unit}."
            )
    else:
        check_size(written, value, least=least, unit=unit)


def check_size(written: object, value: Any, *, least: int = 1, unit: str = "keys") -> None:
    """A static number of at least ``least``: what shapes are made of, so no tensor."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise MaskTypeError(written, f"a {type(value).__name__} is not a number of {unit}", "Pass an int.")
    if value < least:
        raise MaskValueError(written, f"{value} {unit}", f"Pass {least} or more.")


def check_row_scalar(written: object, value: Any) -> None:
    """An int, or an integer tensor of shape (), (1,) or (B,)."""
    if isinstance(value, Tensor):
        if value.dim() > 1:
            raise MaskShapeError(
                written, f"a {value.dim()}-d tensor", "Pass an int, or a tensor of shape (), (1,) or (B,)."
            )
        if not _is_integer(value):
            raise MaskTypeError(written, f"{spell(value)} holds no integers", "Pass an integer tensor.")
    elif isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise MaskTypeError(written, f"a {type(value).__name__}", "Pass an int or an integer tensor.")


def check_row_count(written: object, value: Any, B: int | None) -> None:
    """A per-row tensor ``(B,)`` against the batch size it is read at."""
    if isinstance(value, Tensor) and value.dim() == 1 and B is not None:
        rows = value.shape[0]
        if not known_true(rows == 1) and known_true(rows != B):
            raise MaskShapeError(written, f"{rows} rows, {B} needed", f"Pass one value, or B={B} of them.")


def check_table(written: object, table: Any, *, holds: str = "ids", booleans: bool = False) -> None:
    """A tensor of shape (n,) or (B, n) that holds integers, or booleans where these have a meaning."""
    if not isinstance(table, Tensor):
        raise MaskTypeError(written, f"a {type(table).__name__}", f"Pass a tensor of {holds}, shape (n,) or (B, n).")
    if not (_is_integer(table) or (booleans and table.dtype == torch.bool)):
        kinds = "bool or integer" if booleans else "integer"
        raise MaskTypeError(written, f"{spell(table)} holds no {holds}", f"Pass a tensor of {kinds} dtype.")
    if table.dim() not in (1, 2):
        raise MaskShapeError(written, f"a {table.dim()}-d tensor", f"Pass {holds} of shape (n,) or (B, n).")


def check_table_sizes(written: object, table: Tensor, B: int | None, length: int | None, name: str) -> None:
    """A table against the batch size and the length it is read at; lengths that are not static are let through."""
    if length is not None and known_true(table.shape[-1] < length):
        raise MaskShapeError(
            f"{written} on {name}={length}",
            f"the table has {table.shape[-1]} columns, {length} needed",
            f"Pad it to {length}, or pass {name}={table.shape[-1]}.",
        )
    if table.dim() == 2 and B is not None and known_true(table.shape[0] != B):
        raise MaskShapeError(
            f"{written} on B={B}",
            f"the table has {table.shape[0]} rows, {B} needed",
            f"Pass (n,), or (B, n) with B={B}.",
        )


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex())
