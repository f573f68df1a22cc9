"""Masks of sequential recommenders: a history of actions, what is known of the user before it, candidates behind it."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from maskmod.algebra import Mask
from maskmod.algebra.lookup import check_row_count, check_row_scalar, check_size, row_scalar

__all__ = ["Hstu", "hstu"]


class Hstu(Mask):
    """See `hstu`."""

    lengths: int | Tensor
    contextual: int = dataclasses.field(kw_only=True)
    targets: int | Tensor = dataclasses.field(kw_only=True)
    max_attn_len: int | None = dataclasses.field(kw_only=True)
    min_full_attn_seq_len: int = dataclasses.field(kw_only=True)

    _name = "hstu"

    def __post_init__(self):
        check_row_scalar(self, self.lengths)
        check_row_scalar(self, self.targets)
        check_size(self, self.contextual, least=0, unit="tokens")
        check_size(self, self.min_full_attn_seq_len, least=0, unit="tokens")
        if self.max_attn_len is not None:
            check_size(self, self.max_attn_len)

    def __call__(self, b, h, q_idx, kv_idx):
        # What is known of the user is one place, 0, and so are the candidates: the last.
        shift = self.contextual - 1 if self.contextual else 0
        last = row_scalar(self.lengths, b) - shift - row_scalar(self.targets, b)
        row, column = _place(q_idx - shift, last), _place(kv_idx - shift, last)
        visible = column < row
        if self.max_attn_len is not None:
            near = row - column <= self.max_attn_len
            if self.min_full_attn_seq_len:
                near = near | (row >= last - self.min_full_attn_seq_len)
            visible = visible & near
        visible = visible | (q_idx == kv_idx)
        return visible | ((row == 0) & (column < last)) if self.contextual else visible

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_row_count(self, self.lengths, B)
        check_row_count(self, self.targets, B)


def hstu(
    lengths: int | Tensor,
    *,
    contextual: int = 0,
    targets: int | Tensor = 0,
    max_attn_len: int | None = None,
    min_full_attn_seq_len: int = 0,
) -> Mask:
    """HSTU's mask: causal over the history, contextual tokens both ways, each candidate alone behind it.

    At most ``lengths - targets + 1`` keys; with ``max_attn_len`` that many, itself, and the last
    ``min_full_attn_seq_len`` places still all. Names are generative-recommenders'; its windows count distances, so that
    ``max_attn_len`` of n shows n earlier places.

    Args:
        lengths: tokens: int, or an integer tensor of shape (), (1,) or (B,).
        contextual: first tokens that describe the user, and see the whole history.
        targets: candidates at the end, which do not see each other: int or tensor.
        max_attn_len: how far back a token sees; None sees all.
        min_full_attn_seq_len: the last places that see all the same.

    >>> mask = hstu(6, contextual=2, targets=2)
    >>> [kv for kv in range(6) if mask(0, 0, 0, kv)], [kv for kv in range(6) if mask(0, 0, 5, kv)]
    ([0, 1, 2, 3], [0, 1, 2, 3, 5])
    """
    return Hstu(
        lengths,
        contextual=contextual,
        targets=targets,
        max_attn_len=max_attn_len,
        min_full_attn_seq_len=min_full_attn_seq_len,
    )


def _place(idx, last):
    """``idx`` clamped to 0..last, as ints and tensors both can."""
    low = idx * (idx > 0)
    return low + (last - low) * (low > last)
