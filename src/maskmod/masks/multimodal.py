"""Spans that see each other whole: images, audio, anything that is not read from left to right."""

from __future__ import annotations

from torch import Tensor

from maskmod.algebra import Mask, MaskMod
from maskmod.algebra.lookup import (
    check_table,
    check_table_sizes,
    look_up,
    wide,
)
from maskmod.masks.inner import periodic
from maskmod.masks.positional import prefix, query_prefix, window

__all__ = ["Blockwise", "Isolated", "blockwise", "isolated", "svg_spatial", "svg_temporal"]


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


class Isolated(Mask):
    """See `isolated`."""

    ids: Tensor

    _name = "isolated"

    def __post_init__(self):
        check_table(self, self.ids)

    def __call__(self, b, h, q_idx, kv_idx):
        q_id, q_in_range = look_up(self.ids, b, q_idx)
        kv_id, kv_in_range = look_up(self.ids, b, kv_idx)
        open_to_all = wide(kv_id, self.ids) == -1
        return (open_to_all | ((q_id == kv_id) & q_in_range)) & kv_in_range

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_table_sizes(self, self.ids, B, q_len, "q_len")
        check_table_sizes(self, self.ids, B, kv_len, "kv_len")


def isolated(ids: Tensor) -> Mask:
    """Every key is seen but those of other spans: a span is seen from inside alone, -1 by all.

    To be combined. Noised images that later tokens must not see are ``isolated(noise_ids)``; the mask of BAGEL is
    ``(causal() | blockwise(span_ids)) & isolated(noise_ids) & document(ids)``.

    Args:
        ids: integer span ids, -1 for none, shape (n,) or (B, n).

    >>> ids = torch.tensor([-1, 7, 7, -1])
    >>> [kv for kv in range(4) if isolated(ids)(0, 0, 1, kv)], [kv for kv in range(4) if isolated(ids)(0, 0, 3, kv)]
    ([0, 1, 2, 3], [0, 3])
    """
    return Isolated(ids)


def svg_spatial(text: int | Tensor, width: int, *, sink: int | Tensor | None = None) -> Mask:
    """A spatial head of Sparse VideoGen: text sees all and is seen by all, video sees ``width - 1`` tokens each way.

    At most ``text + 2 * width - 1`` keys a token of video. attention-gym's ``generate_spatial_head_mask_mod`` rounds
    its width, two frames say, down to a multiple of a block.

    Args:
        text: tokens before the video.
        width: tokens, at least 1; a multiple of those of a frame.
        sink: the first keys that every query sees; None is the text. Text and the first frame is the paper's sink.

    >>> [kv for kv in range(9) if svg_spatial(1, 2)(0, 0, 5, kv)]
    [0, 4, 5, 6]
    """
    return _beside_text(text, sink, window(width - 1, width - 1))


def svg_temporal(text: int | Tensor, frame: int | Tensor, width: int) -> Mask:
    """A temporal head of Sparse VideoGen: a token sees, in every frame, the places near its own; text is as in
    `svg_spatial`.

    At most ``text + frames * (2 * width - 1)`` keys. attention-gym's ``generate_temporal_head_mask_mod``.

    Args:
        text: tokens before the video.
        frame: tokens of a frame, at least 1.
        width: places, at least 1: those closer than ``width`` are seen.

    >>> [kv for kv in range(9) if svg_temporal(1, 4, 1)(0, 0, 2, kv)]  # one token of text, two frames of four
    [0, 2, 6]
    """
    return _beside_text(text, None, periodic(window(width - 1, width - 1), frame, start=text))


def _beside_text(text: int | Tensor, sink: int | Tensor | None, video: MaskMod) -> Mask:
    return query_prefix(text) | prefix(text if sink is None else sink) | video
