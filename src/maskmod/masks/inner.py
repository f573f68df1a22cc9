"""Masks inside masks: a mask read at block numbers, or at positions modulo a period. No tables, no new predicates.

``inner(b, h, q // size, kv // size)`` and ``inner(b, h, q % period, kv % period)``; what the inner mask says is its
own.
"""

from __future__ import annotations

from torch import Tensor

from maskmod.algebra import Mask, MaskMod, as_mask, spell
from maskmod.algebra.lookup import check_count, check_row_count, check_row_scalar, row_scalar

__all__ = ["Coarse", "Periodic", "coarse", "periodic"]


class Coarse(Mask):
    """See `coarse`."""

    inner: Mask
    q_size: int | Tensor
    kv_size: int | Tensor

    def __post_init__(self):
        check_count(self, self.q_size, unit="tokens")
        check_count(self, self.kv_size, unit="tokens")

    def __call__(self, b, h, q_idx, kv_idx):
        return self.inner(b, h, q_idx // self.q_size, kv_idx // self.kv_size)

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        self.inner.check(B, H, _blocks(q_len, self.q_size), _blocks(kv_len, self.kv_size))

    def __repr__(self) -> str:
        same = self.q_size is self.kv_size or (type(self.q_size) is int and self.q_size == self.kv_size)
        size = spell(self.q_size) if same else f"({spell(self.q_size)}, {spell(self.kv_size)})"
        return f"coarse({self.inner!r}, {size})"


def coarse(inner: MaskMod, size: int | Tensor | tuple[int | Tensor, int | Tensor]) -> Mask:
    """``inner`` read at blocks of ``size`` tokens: a query sees whole blocks, ``size`` times what inner's query sees.

    ``coarse(causal(), frame)`` is causal from frame to frame (video), ``coarse(sliding_window(n), frame)`` shows the
    last n frames; a layout of blocks (DeepSpeed's sparsity layouts) is `block_layout`.

    Args:
        inner: a mask of block numbers.
        size: tokens in a block, at least 1: one number for both sides, or (queries, keys).

    >>> from maskmod import causal
    >>> [kv for kv in range(9) if coarse(causal(), 3)(0, 0, 4, kv)]
    [0, 1, 2, 3, 4, 5]
    """
    q_size, kv_size = size if isinstance(size, tuple) else (size, size)
    return Coarse(as_mask(inner), q_size, kv_size)


class Periodic(Mask):
    """See `periodic`."""

    inner: Mask
    period: int | Tensor
    start: int | Tensor = 0

    def __post_init__(self):
        check_count(self, self.period, unit="tokens")
        check_row_scalar(self, self.start)

    def __call__(self, b, h, q_idx, kv_idx):
        start = row_scalar(self.start, b)
        return self.inner(b, h, (q_idx - start) % self.period, (kv_idx - start) % self.period)

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_row_count(self, self.start, B)
        reach = None if isinstance(self.period, Tensor) else self.period
        self.inner.check(B, H, reach, reach)

    def __repr__(self) -> str:
        started = type(self.start) is not int or self.start != 0
        return f"periodic({self.inner!r}, {spell(self.period)}{f', start={spell(self.start)}' * started})"


def periodic(inner: MaskMod, period: int | Tensor, *, start: int | Tensor = 0) -> Mask:
    """``inner`` read at positions modulo ``period``: what a query sees in one period, it sees in every other too.

    ``chunked(n) & periodic(inner, n)`` gives each chunk of n tokens its own inner (attention-gym's
    ``batchify_mask_mod``); ``periodic(causal(), n)`` is flash-attention's mini-causal test mask.

    Args:
        inner: a mask of positions 0..period - 1.
        period: tokens, at least 1.
        start: the position where a period begins: int, or a tensor of shape (), (1,) or (B,).

    >>> from maskmod import causal
    >>> [kv for kv in range(8) if periodic(causal(), 4)(0, 0, 5, kv)]
    [0, 1, 4, 5]
    """
    return Periodic(as_mask(inner), period, start)


def _blocks(length: int | None, size: int | Tensor) -> int | None:
    return None if length is None or isinstance(size, Tensor) else -(-length // size)
