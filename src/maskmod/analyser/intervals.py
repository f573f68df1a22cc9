"""Intervals: what is known of an integer or float expression over a rectangle of indices.

`Bounds(lo, hi, bits, ok)` says: wherever `ok` (everywhere if None), every value lies in [lo, hi], and no value, lo or
hi needs more than `bits` bits. A rule takes bounds of the arguments to bounds of the result, one short function per
operation; an operation without a rule has no bounds (None), which the reader must take as "any value".

Sound because each rule is monotone in every bound it uses, and because arithmetic that could leave its dtype is
never trusted: statically, by counting bits, and for dtypes narrower than int64 by checking the result. Floats are
trusted only where finite; there, rounding is monotone, so rounded bounds bound rounded values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["BITS", "RULES", "WIDE", "Bounds", "as_dtype", "both", "number"]

# Magnitudes (in bits) that values of a dtype cannot pass. int64 is taken up to WIDE bits; beyond, it is not trusted.
WIDE = 46
BITS = {torch.bool: 1, torch.uint8: 8, torch.int8: 8, torch.int16: 16, torch.int32: 32, torch.int64: 64}
_MOST = 61  # sums of two bounds below 2**61 stay inside int64


class Bounds(NamedTuple):
    lo: Any  # Tensor, or a number
    hi: Any
    bits: int  # 0 for floats
    ok: Tensor | None = None


def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a & b


def number(x: float, device: torch.device) -> Bounds | None:
    """The bounds of a Python number."""
    if isinstance(x, bool):
        x = int(x)
    if isinstance(x, int):
        if not -(1 << WIDE) < x < (1 << WIDE):
            return None
        whole = torch.full((), x, dtype=torch.int64, device=device)
        return Bounds(whole, whole, WIDE)
    real = torch.full((), x, dtype=torch.float64, device=device)
    return Bounds(real, real, 0, torch.isfinite(real))


def as_dtype(b: Bounds | None, dtype: torch.dtype) -> Bounds | None:
    """The bounds after a conversion to `dtype`, as torch does it before an operation of mixed dtypes."""
    if b is None:
        return None
    if dtype.is_floating_point:
        if b.lo.dtype == dtype:
            return b
        return _finite(Bounds(b.lo.to(dtype), b.hi.to(dtype), 0, b.ok))
    if b.lo.dtype.is_floating_point or dtype not in BITS:
        return None
    return _inside(b, dtype)


def _inside(b: Bounds, dtype: torch.dtype) -> Bounds | None:
    if dtype == torch.int64:
        return b if b.bits <= _MOST else None
    if b.bits < BITS[dtype] and dtype != torch.uint8:  # a byte has no negative values to hold
        return b
    info = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    fits = (b.lo >= info[0]) & (b.hi <= info[1])
    return Bounds(b.lo, b.hi, BITS[dtype], both(b.ok, fits)) if b.bits <= _MOST else None


def _finite(b: Bounds) -> Bounds:
    return b._replace(ok=both(b.ok, torch.isfinite(b.lo) & torch.isfinite(b.hi)))


def _ints(*bounds: Bounds) -> bool:
    return not any(b.lo.dtype.is_floating_point for b in bounds)


def _add(a: Bounds, b: Bounds) -> Bounds:
    return Bounds(a.lo + b.lo, a.hi + b.hi, max(a.bits, b.bits) + 1, both(a.ok, b.ok))


def _neg(a: Bounds) -> Bounds:
    return a._replace(lo=-a.hi, hi=-a.lo)


def _sub(a: Bounds, b: Bounds) -> Bounds:
    return _add(a, _neg(b))


def _mul(a: Bounds, b: Bounds) -> Bounds | None:
    if a.bits + b.bits > _MOST:
        return None
    corners = a.lo * b.lo, a.lo * b.hi, a.hi * b.lo, a.hi * b.hi
    return Bounds(_least(corners), _most(corners), a.bits + b.bits, both(a.ok, b.ok))


def _least(x: tuple) -> Tensor:
    return torch.minimum(torch.minimum(x[0], x[1]), torch.minimum(x[2], x[3]))


def _most(x: tuple) -> Tensor:
    return torch.maximum(torch.maximum(x[0], x[1]), torch.maximum(x[2], x[3]))


def _abs(a: Bounds) -> Bounds:
    hi = torch.maximum(a.hi.abs(), a.lo.abs())
    lo = torch.maximum(torch.maximum(a.lo, -a.hi), torch.zeros_like(a.lo))
    return a._replace(lo=lo, hi=hi)


def _floor_divide(a: Bounds, b: Bounds) -> Bounds | None:
    # For a positive divisor the quotient is monotone in each argument, so its extremes are at the corners.
    if not _ints(a, b):
        return None
    low, high = b.lo.clamp(min=1), b.hi.clamp(min=1)
    corners = tuple(torch.div(x, y, rounding_mode="floor") for x in (a.lo, a.hi) for y in (low, high))
    return Bounds(_least(corners), _most(corners), a.bits, both(both(a.ok, b.ok), b.lo > 0))


def _remainder(a: Bounds, b: Bounds) -> Bounds | None:
    # Inside one period the remainder is monotone; across periods it is anything below the divisor.
    if not _ints(a, b):
        return None
    d = b.hi.clamp(min=1)
    first, last = torch.div(a.lo, d, rounding_mode="floor"), torch.div(a.hi, d, rounding_mode="floor")
    same = (first == last) & (b.lo == b.hi)
    lo, hi = torch.where(same, a.lo - first * d, 0), torch.where(same, a.hi - last * d, d - 1)
    return Bounds(lo, hi, b.bits, both(both(a.ok, b.ok), b.lo > 0))


def _minimum(a: Bounds, b: Bounds) -> Bounds:
    return Bounds(torch.minimum(a.lo, b.lo), torch.minimum(a.hi, b.hi), max(a.bits, b.bits), both(a.ok, b.ok))


def _maximum(a: Bounds, b: Bounds) -> Bounds:
    return Bounds(torch.maximum(a.lo, b.lo), torch.maximum(a.hi, b.hi), max(a.bits, b.bits), both(a.ok, b.ok))


def _clamp(a: Bounds, low: Bounds | None, high: Bounds | None) -> Bounds:
    a = a if low is None else _maximum(a, low)
    return a if high is None else _minimum(a, high)


def _where(condition: Bounds, a: Bounds, b: Bounds) -> Bounds:
    always, never = condition.lo == 1, condition.hi == 0
    lo = torch.where(always, a.lo, torch.where(never, b.lo, torch.minimum(a.lo, b.lo)))
    hi = torch.where(always, a.hi, torch.where(never, b.hi, torch.maximum(a.hi, b.hi)))
    return Bounds(lo, hi, max(a.bits, b.bits), both(both(a.ok, b.ok), condition.ok))


def _shift_right(a: Bounds, b: Bounds) -> Bounds | None:
    if not _ints(a, b):
        return None
    inside = (b.lo >= 0) & (b.hi < 63)
    low, high = b.lo.clamp(0, 62), b.hi.clamp(0, 62)
    corners = tuple(torch.bitwise_right_shift(x, y) for x in (a.lo, a.hi) for y in (low, high))
    return Bounds(_least(corners), _most(corners), a.bits, both(both(a.ok, b.ok), inside))


def _bitwise_and(a: Bounds, b: Bounds) -> Bounds | None:
    # With a mask that is never negative the result lies between 0 and the mask.
    if not _ints(a, b):
        return None
    return Bounds(torch.zeros_like(b.hi), b.hi, b.bits, both(both(a.ok, b.ok), b.lo >= 0))


def _monotone(function: Callable) -> Callable:
    return lambda a: a._replace(lo=function(a.lo), hi=function(a.hi))


# Each rule gets one Bounds per argument, already of the operation's own dtype, and returns Bounds or None.
RULES: dict[str, Callable] = {
    "abs": _abs,
    "add": _add,
    "bitwise_and": _bitwise_and,
    "bitwise_not": lambda a: a._replace(lo=-1 - a.hi, hi=-1 - a.lo, bits=a.bits + 1) if _ints(a) else None,
    "bitwise_right_shift": _shift_right,
    "ceil": _monotone(torch.ceil),
    "clamp": _clamp,
    "floor": _monotone(torch.floor),
    "floor_divide": _floor_divide,
    "maximum": _maximum,
    "minimum": _minimum,
    "mul": _mul,
    "neg": _neg,
    "remainder": _remainder,
    "round": _monotone(torch.round),
    "sub": _sub,
    "trunc": _monotone(torch.trunc),
    "where": _where,
}
