"""Packed documents and padding: masks read from tables of ids, of validity, of lengths."""

from __future__ import annotations

import torch
from torch import Tensor

from maskmod.algebra import Mask, spell
from maskmod.algebra.lookup import (
    check_row_count,
    check_table,
    check_table_sizes,
    is_set,
    look_up,
    row_scalar,
)
from maskmod.errors import MaskTypeError

__all__ = ["Document", "KeyLengths", "KeyPadding", "document", "key_padding"]


class Document(Mask):
    """See `document`."""

    q_ids: Tensor
    kv_ids: Tensor | None  # None: the queries' ids serve both sides

    _name = "document"

    def __post_init__(self):
        check_table(self, self.q_ids)
        if self.kv_ids is not None:
            check_table(self, self.kv_ids)

    def __call__(self, b, h, q_idx, kv_idx):
        q_id, q_in_range = look_up(self.q_ids, b, q_idx)
        kv_id, kv_in_range = look_up(self.q_ids if self.kv_ids is None else self.kv_ids, b, kv_idx)
        return (q_id == kv_id) & q_in_range & kv_in_range

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_table_sizes(self, self.q_ids, B, q_len, "q_len")
        check_table_sizes(self, self.q_ids if self.kv_ids is None else self.kv_ids, B, kv_len, "kv_len")

    def __repr__(self) -> str:
        if self.kv_ids is None:
            return f"document({spell(self.q_ids)})"
        return f"document({spell(self.q_ids)}, {spell(self.kv_ids)})"


def document(q_ids: Tensor, kv_ids: Tensor | None = None) -> Mask:
    """Each query sees the keys that carry its own id: as many as its document has. Equality, nothing more.

    ``document(ids)`` serves both sides; ``document(q_ids, kv_ids)`` gives each its own. Packed causal training is
    ``causal() & document(ids)``. Ids need not be sorted. An index outside the table is hidden.

    Args:
        q_ids: integer ids, shape (n,) or (B, n), n at least the length it is read at.
        kv_ids: the same for keys; None takes ``q_ids``.

    >>> ids = torch.tensor([0, 0, 0, 1, 1])
    >>> [kv for kv in range(5) if document(ids)(0, 0, 3, kv)]
    [3, 4]
    """
    return Document(q_ids, kv_ids)


class KeyPadding(Mask):
    """See `key_padding`."""

    valid: Tensor

    _name = "key_padding"

    def __post_init__(self):
        check_table(self, self.valid, holds="validity", booleans=True)

    def __call__(self, b, h, q_idx, kv_idx):
        return is_set(self.valid, b, kv_idx)

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_table_sizes(self, self.valid, B, kv_len, "kv_len")


class KeyLengths(Mask):
    """See `key_padding`."""

    lengths: Tensor

    _name = "key_padding"

    def __post_init__(self):
        if self.lengths.dtype == torch.bool:
            seen = "a 1-D bool could be one row of validity or B flags"
            raise MaskTypeError(self, seen, "Pass validity as (B, n): x[None] for one row.")
        check_table(self, self.lengths, holds="lengths")

    def __call__(self, b, h, q_idx, kv_idx):
        return (kv_idx >= 0) & (kv_idx < row_scalar(self.lengths, b))

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_row_count(self, self.lengths, B)


def key_padding(x: Tensor) -> Mask:
    """Every query sees the valid keys of its row, and no others.

    Args:
        x: validity, shape (B, n), bool or integers (nonzero is valid, as in tokenizers' attention masks); or lengths,
            integers of shape (B,): keys 0..length - 1 are valid (flash-attention's ``seqused_k``).

    Raises:
        MaskTypeError: a float tensor, or a 1-D bool, which could be one row of validity or B flags.

    >>> lengths = torch.tensor([1, 3])
    >>> [kv for kv in range(4) if key_padding(lengths)(1, 0, 0, kv)]
    [0, 1, 2]
    """
    return KeyLengths(x) if isinstance(x, Tensor) and x.dim() == 1 else KeyPadding(x)
