"""Spans that see each other whole: images, audio, anything that is not read from left to right."""

from __future__ import annotations

from torch import Tensor

from maskmod.algebra import Mask
from maskmod.algebra.lookup import (
    check_table,
    check_table_sizes,
    look_up,
    wide,
)

__all__ = ["Blockwise", "blockwise"]


class Blockwise(Mask):
    """See `blockwise`."""

    ids: Tensor

    _name = "blockwise"

    def __post_init__(self):
        check_table(self, self.ids)

    def __call__(self, b, h, q_idx, kv_idx):
        q_id, q_in_range = look_up(self.ids, b, q_idx)
        kv_id, kv_in_range = look_up(self.ids, b, kv_idx)
        return (q_id == kv_id) & (wide(q_id, self.ids) != -1) & q_in_range & kv_in_range

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_table_sizes(self, self.ids, B, q_len, "q_len")
        check_table_sizes(self, self.ids, B, kv_len, "kv_len")


def blockwise(ids: Tensor) -> Mask:
    """Each query sees the keys of its own span; -1 is in no span, and sees and shows nothing.

    Image spans in a causal text are ``causal() | blockwise(image_ids)`` (Gemma 3; transformers calls the ids
    ``block_sequence_ids``).

    Args:
        ids: integer span ids, -1 for none, shape (n,) or (B, n).

    >>> ids = torch.tensor([-1, 7, 7, -1])
    >>> [kv for kv in range(4) if blockwise(ids)(0, 0, 1, kv)], [kv for kv in range(4) if blockwise(ids)(0, 0, 0, kv)]
    ([1, 2], [])
    """
    return Blockwise(ids)
