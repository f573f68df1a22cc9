"""Masks by position alone: bands, chunks, prefixes, sinks. Every docstring counts the keys a query sees."""

from __future__ import annotations

from torch import Tensor

from maskmod._torch.tracing import known_true
from maskmod.algebra import Mask, spell
from maskmod.algebra.lookup import (
    check_count,
    check_row_count,
    check_row_scalar,
    row_scalar,
)

__all__ = [
    "Causal",
    "Chunked",
    "Full",
    "Prefix",
    "Sinks",
    "SlidingWindow",
    "Window",
    "causal",
    "chunked",
    "full",
    "prefix",
    "sinks",
    "sliding_window",
    "window",
]


class Full(Mask):
    """See `full`."""

    _name = "full"

    def __call__(self, b, h, q_idx, kv_idx):
        return kv_idx == kv_idx  # a comparison, not `True`: torch's vmap takes tensors only


def full() -> Mask:
    """Every query sees every key: kv_len keys.

    >>> full()(0, 0, 0, 7)
    True
    """
    return Full()


class Causal(Mask):
    """See `causal`."""

    _name = "causal"

    def __call__(self, b, h, q_idx, kv_idx):
        return kv_idx <= q_idx


def causal() -> Mask:
    """Query q sees keys 0..q: q + 1 of them. Aligned top-left, as in flex and SDPA's ``is_causal``.

    Flash-attention 2.1 and later, and transformers, align bottom-right where lengths differ; that is
    ``shift(causal(), q_offset=kv_len - q_len)``.

    >>> causal()(0, 0, 3, 2), causal()(0, 0, 2, 3)
    (True, False)
    """
    return Causal()


class SlidingWindow(Mask):
    """See `sliding_window`."""

    size: int | Tensor

    _name = "sliding_window"

    def __post_init__(self):
        check_count(self, self.size)

    def __call__(self, b, h, q_idx, kv_idx):
        return (kv_idx <= q_idx) & (q_idx - kv_idx < self.size)


def sliding_window(n: int | Tensor) -> Mask:
    """Each query sees n keys, itself included: ``0 <= q_idx - kv_idx < n`` (Longformer; Mistral).

    The same n in transformers (``sliding_window=n``), vLLM and torchtitan. Flash-attention spells it
    ``window_size=(n - 1, 0)``; attention-gym's ``generate_sliding_window(n - 1)`` and the legacy transformers converter
    with ``sliding_window=n - 1`` see the same n keys.

    Args:
        n: number of keys, at least 1; a 0-d integer tensor keeps it out of the compiled graph.

    >>> [kv for kv in range(6) if sliding_window(3)(0, 0, 4, kv)]
    [2, 3, 4]
    """
    return SlidingWindow(n)


class Window(Mask):
    """See `window`."""

    left: int | Tensor | None
    right: int | Tensor | None

    _name = "window"

    def __post_init__(self):
        for side in (self.left, self.right):
            if side is not None:
                check_count(self, side, least=0, unit="neighbours")

    def __call__(self, b, h, q_idx, kv_idx):
        if self.left is None:
            return kv_idx == kv_idx if self.right is None else kv_idx - q_idx <= self.right
        reaches_left = q_idx - kv_idx <= self.left
        return reaches_left if self.right is None else reaches_left & (kv_idx - q_idx <= self.right)


def window(left: int | Tensor | None, right: int | Tensor | None) -> Mask:
    """Each query sees ``left`` neighbours before it, itself, and ``right`` after it: left + right + 1 keys.

    Counts are inclusive, as in flash-attention's ``window_size=(left, right)``, whose -1 is None here: unbounded.
    Unlike there, position 0 of queries meets position 0 of keys; flash aligns the last ones (see `shift`). xformers'
    ``LocalAttention`` and transformers' bidirectional window of w are ``window(w, w)``.

    >>> [kv for kv in range(9) if window(2, 1)(0, 0, 4, kv)]
    [2, 3, 4, 5]
    """
    return Window(left, right)


class Chunked(Mask):
    """See `chunked`."""

    size: int | Tensor
    start: int | Tensor = 0

    _name = "chunked"

    def __post_init__(self):
        check_count(self, self.size)
        check_row_scalar(self, self.start)

    def __call__(self, b, h, q_idx, kv_idx):
        start = row_scalar(self.start, b)
        return (q_idx - start) // self.size == (kv_idx - start) // self.size

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_row_count(self, self.start, B)

    def __repr__(self) -> str:
        start = self.start
        written = "" if not isinstance(start, Tensor) and known_true(start == 0) else f", start={spell(start)}"
        return f"chunked({spell(self.size)}{written})"


def chunked(size: int | Tensor, *, start: int | Tensor = 0) -> Mask:
    """Each query sees the ``size`` keys of its own chunk: ``(q_idx - start) // size == (kv_idx - start) // size``.

    Bidirectional, as in torchtitan's fixed-block mask; Llama 4's chunked attention is ``causal() & chunked(size)``,
    where a query sees at most ``size`` keys.

    Args:
        size: keys in a chunk, at least 1.
        start: position where a chunk begins (left padding, say): int, or a tensor of shape (), (1,) or (B,).

    >>> [kv for kv in range(8) if chunked(3, start=1)(0, 0, 5, kv)]
    [4, 5, 6]
    """
    return Chunked(size, start)


class Prefix(Mask):
    """See `prefix`."""

    n: int | Tensor

    _name = "prefix"

    def __post_init__(self):
        if isinstance(self.n, Tensor):
            check_row_scalar(self, self.n)
        else:
            check_count(self, self.n, least=0)

    def __call__(self, b, h, q_idx, kv_idx):
        return kv_idx < row_scalar(self.n, b)

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_row_count(self, self.n, B)


def prefix(n: int | Tensor) -> Mask:
    """Every query sees the first n keys: ``kv_idx < n``. A prefix language model is ``causal() | prefix(n)`` (T5,
    PaliGemma).

    Args:
        n: keys in the prefix, zero or more: int, or an integer tensor of shape (), (1,) or (B,), one per batch row.

    >>> (causal() | prefix(3))(0, 0, 0, 2)
    True
    """
    return Prefix(n)


class Sinks(Mask):
    """See `sinks`."""

    n: int | Tensor

    _name = "sinks"

    def __post_init__(self):
        check_count(self, self.n, least=0)

    def __call__(self, b, h, q_idx, kv_idx):
        return kv_idx < self.n


def sinks(n: int | Tensor) -> Mask:
    """The first n keys, kept visible beside a window: ``causal() & (sliding_window(w) | sinks(n))`` (StreamingLLM).

    There a query sees at most w + n keys. Without ``causal()`` it shows the future to the first n - 1 queries. It
    hides and shows keys; it is not the learned softmax sink of gpt-oss.

    >>> [kv for kv in range(9) if (causal() & (sliding_window(2) | sinks(1)))(0, 0, 6, kv)]
    [0, 5, 6]
    """
    return Sinks(n)
