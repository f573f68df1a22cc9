"""The work of each query: how many keys it sees. The one place that asks the library for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from maskmod.algebra import MaskMod
from maskmod.analyser.reading import Reading, read
from maskmod.facts.spans import NotSpans, Spans, spans_of
from maskmod.facts.tiles import tiles_of

__all__ = ["RowWork", "row_work"]

BLOCK = 128  # tokens of a block, where a mask has to be opened
MOST_SPANS = 4  # intervals of a query that are asked for; masks in more pieces are counted by tiles


class RowWork(NamedTuple):
    """Visible pairs of each query (q_len,), over all heads and batch rows; its first and last key where asked for.

    A query that sees nothing has a first key past its last.
    """

    work: Tensor
    first: Tensor | None
    last: Tensor | None


def row_work(
    mask: MaskMod,
    B: int | None,
    H: int | None,
    q_len: int,
    kv_len: int,
    *,
    hulls: bool = False,
    by_row: bool = False,
) -> RowWork:
    """How many keys each query sees, exactly.

    Args:
        hulls: whether the first and the last visible key are wanted too.
        by_row: keep batch rows apart: (B, q_len).
    """
    reading = read(mask, B, H, q_len, kv_len)
    spans = None if reading.root is None else _spans(reading)  # what was not recorded is opened in tiles either way
    if spans is None:
        count, first, last = tiles_of(reading, (BLOCK, BLOCK), exact=True)._rows()
    else:
        single = spans.ends.shape[-1] == 1
        count = spans.ends[..., 0] - spans.starts[..., 0] if single else spans.visible()
        first, last = spans.starts[..., 0], spans.ends[..., -1] - 1
        if hulls and not (single and count.numel() and int(count.min()) > 0):
            last = (spans.ends * (spans.starts < spans.ends)).amax(-1) - 1
    lanes = (
        reading.sizes.B // count.shape[0],
        reading.sizes.H // count.shape[1],
    )  # a lane that is not read counts for all
    if by_row:
        return RowWork((count.sum(1) * lanes[1]).expand(reading.sizes.B, -1).cpu(), None, None)
    work = _over_lanes(count, torch.sum)
    if lanes != (1, 1):
        work = work * (lanes[0] * lanes[1])
    if not hulls:
        return RowWork(work.cpu(), None, None)
    return RowWork(work.cpu(), _over_lanes(first, torch.amin).cpu(), _over_lanes(last, torch.amax).cpu())


def _spans(reading: Reading) -> Spans | None:
    """The intervals of each query, one if one is enough, or None where a few are not."""
    for most in (1, MOST_SPANS):
        with contextlib.suppress(NotSpans):
            return spans_of(reading, max_spans=most)
    return None


def _over_lanes(x: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """(B, H, q_len) reduced to (q_len,); a view where there is one lane."""
    return x[0, 0] if x.shape[:2] == (1, 1) else reduce(x, (0, 1))
