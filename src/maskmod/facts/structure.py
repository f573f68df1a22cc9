"""Recognise the masks that are one diagonal band: what a fused kernel can do without a table.

The answer comes from structure and static numbers alone, so it is the same under compile; tensors and symbolic
lengths that decide nothing give None, never a guess. This module does not know which kernel asks.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from torch import Tensor

from maskmod._torch.tracing import known_true
from maskmod.algebra import And, Mask, Not, Or, fold
from maskmod.choose import PerHead
from maskmod.masks import Causal, Chunked, Full, Prefix, Sinks, SlidingWindow, Window
from maskmod.positions import Shift

__all__ = ["Band", "band_of", "made_of"]

_KNOWN = (Full, Causal, SlidingWindow, Window, Prefix, Sinks, Chunked, Shift, PerHead)


class Band(NamedTuple):
    """Visible where ``low <= kv_idx - q_idx <= high``; None is unbounded."""

    low: int | None
    high: int | None

    def is_full(self, q_len: int, kv_len: int) -> bool:
        """Whether it hides nothing at these lengths."""
        return self._open_below(q_len) and (self.high is None or known_true(self.high >= kv_len - 1))

    def is_causal(self, q_len: int) -> bool:
        """Whether it is ``kv_idx <= q_idx`` at this length: top-left causal, SDPA's ``is_causal``."""
        return self._open_below(q_len) and self.high is not None and known_true(self.high == 0)

    def shows_the_past(self, q_len: int) -> bool:
        """Whether every query sees the keys up to its own position."""
        return self._open_below(q_len) and (self.high is None or known_true(self.high >= 0))

    def _open_below(self, q_len: int) -> bool:
        return self.low is None or known_true(self.low <= 1 - q_len)


def band_of(mask: Mask, q_len: int, kv_len: int) -> Band | None:
    """The band that a mask is at these lengths, or None where its structure does not prove one.

    >>> from maskmod import causal, shift, sliding_window
    >>> band_of(causal() & shift(sliding_window(4), q_offset=2), 8, 8)
    Band(low=-1, high=0)
    """
    return _band(mask, _Span(0, q_len), _Span(0, kv_len))


def made_of(mask: Mask, kinds: tuple[type[Mask], ...]) -> bool:
    """Whether every node of the expression is exactly of these types: a subclass may say something else.

    >>> from maskmod import causal, document
    >>> import torch
    >>> made_of(causal() & document(torch.zeros(4, dtype=torch.int64)), (And, Causal))
    False
    """
    if type(mask) not in kinds:
        return False
    inner = (getattr(mask, name) for name in mask._fields)
    return all(made_of(value, kinds) for value in inner if isinstance(value, Mask))


class _Span(NamedTuple):
    """The positions ``begin <= idx < end`` at which a mask is read."""

    begin: int
    end: int

    def moved(self, offset: int) -> _Span:
        return _Span(self.begin + offset, self.end + offset)

    def is_within(self, size: int) -> bool:
        """Whether ``0 <= idx < size`` holds throughout."""
        return known_true(self.begin >= 0) and known_true(self.end <= size)


def _band(mask: Mask, q: _Span, kv: _Span) -> Band | None:
    return fold(mask, lambda leaf: _band_of_atom(leaf, q, kv), _joined)


def _joined(kind: type, bands: list[Band | None]) -> Band | None:
    if kind is Not:
        return _complement(bands[0])
    join = _intersection if kind is And else _union if kind is Or else _unknown
    return join(bands[0], bands[1])


def _unknown(a: Band | None, b: Band | None) -> None:
    """Where exactly one of two bands is visible is no band that anybody asks for."""


def _band_of_atom(mask: Mask, q: _Span, kv: _Span) -> Band | None:
    if type(mask) not in _KNOWN:  # a subclass may say something else than its base
        return None
    match mask:
        case Full():
            return Band(None, None)
        case Causal():
            return Band(None, 0)
        case SlidingWindow(size=int(size)):
            return Band(1 - size, 0)
        case Window(left=left, right=right) if not isinstance(left, Tensor) and not isinstance(right, Tensor):
            return Band(None if left is None else -left, right)
        case Prefix(n=int(n)) | Sinks(n=int(n)) if known_true(n >= kv.end):
            return Band(None, None)
        case Chunked(size=int(size), start=int(0)) if q.is_within(size) and kv.is_within(size):
            return Band(None, None)
        case Shift(mask=inner, q_offset=int(q_offset), kv_offset=int(kv_offset), b_offset=None, h_offset=None):
            return _shifted(_band(inner, q.moved(q_offset), kv.moved(kv_offset)), q_offset - kv_offset)
        case PerHead(masks=masks):
            return functools.reduce(_same, (_band(inner, q, kv) for inner in masks))
    return None


def _shifted(band: Band | None, offset: int) -> Band | None:
    if band is None:
        return None
    low, high = band
    return Band(None if low is None else low + offset, None if high is None else high + offset)


def _intersection(a: Band | None, b: Band | None) -> Band | None:
    if a is None or b is None:
        return None
    if _within(b, a):
        return b
    if _within(a, b):
        return a
    if _at_most(a.low, b.low, lower=True) and _at_most(a.high, b.high, lower=False):
        return Band(b.low, a.high)
    if _at_most(b.low, a.low, lower=True) and _at_most(b.high, a.high, lower=False):
        return Band(a.low, b.high)
    return None


def _union(a: Band | None, b: Band | None) -> Band | None:
    if a is None or b is None:
        return None
    if _within(b, a):
        return a
    return b if _within(a, b) else None


def _same(a: Band | None, b: Band | None) -> Band | None:
    return a if a is not None and b is not None and _within(a, b) and _within(b, a) else None


def _complement(band: Band | None) -> Band | None:
    if band is None:
        return None
    match band:
        case Band(None, int(high)):
            return Band(high + 1, None)
        case Band(int(low), None):
            return Band(None, low - 1)
    return None


def _within(inner: Band, outer: Band) -> bool:
    return _at_most(outer.low, inner.low, lower=True) and _at_most(inner.high, outer.high, lower=False)


def _at_most(a: int | None, b: int | None, *, lower: bool) -> bool:
    """``a <= b`` for certain, where None is minus infinity as a lower bound and plus infinity as an upper one."""
    if lower:
        return a is None or (b is not None and known_true(a <= b))
    return b is None or (a is not None and known_true(a <= b))
