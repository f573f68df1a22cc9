"""FlashMask's column vectors: for each key, the rows that may NOT see it, as at most two intervals of rows.

The layout of ``paddle.nn.functional.flashmask_attention``: ``startend_row_indices``, int32 (B, H|1, kv_len, 1, 2 or 4).
With ``causal=True`` the kernel hides the upper triangle itself, aligned bottom-right, and the columns are LTS, or
LTS and LTE. Without, they are LTS and UTE, or LTS, LTE, UTS and UTE: rows ``[LTS, LTE)`` and ``[UTS, UTE)`` are hidden.
Mind the polarity: everywhere else here True, or an interval, is what is visible.

Source: arXiv 2410.01359, and Paddle's documentation of the function. The kernel is Paddle's and needs a GPU; it is not
called here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskmod.algebra import Sizes
from maskmod.analyser.reading import Reading
from maskmod.backends.protocol import Backend
from maskmod.backends.refusals import check_outside_a_trace, refusal
from maskmod.backends.strips import hidden_interval_of_column
from maskmod.facts.proofs import Element
from maskmod.facts.spans import NotSpans, Spans, spans_of

__all__ = ["Flashmask", "FlashmaskArgs"]


class FlashmaskArgs(NamedTuple):
    """For ``flashmask_attention``: startend_row_indices is int32 (B, H|1, kv_len, columns), True nowhere: it hides."""

    startend_row_indices: Tensor
    causal: bool
    why: str
    sizes: Sizes

    def kwargs(self) -> dict[str, Any]:
        """For ``flashmask_attention(q, k, v, **kwargs)``, as torch tensors."""
        return {"startend_row_indices": self.startend_row_indices, "causal": self.causal}


class _Hidden(NamedTuple):
    """Hidden rows of each key, ``[start, end)``, up to four intervals (B|1, H|1, kv_len, 4); unused ones are empty."""

    start: Tensor
    end: Tensor


class Flashmask(Backend):
    name = "flashmask"
    options = ("causal", "columns")

    def lower(
        self,
        reading: Reading,
        *,
        dtype: torch.dtype,
        empty_rows: str = "keep",
        causal: bool | None = None,
        columns: int | None = None,
    ) -> FlashmaskArgs:
        """The fewest columns that say the mask; `causal` and `columns` ask for a form of their own.

        Raises:
            UnsupportedMask: some key is hidden from three or more intervals of rows.
        """
        check_outside_a_trace(reading, self.name, empty_rows)
        q_len = reading.sizes.q_len
        try:
            spans = spans_of(reading, max_spans=3, columns=True)
        except NotSpans as found:
            raise self._three(reading, found.place) from found
        hidden = _hidden(spans, q_len)
        forms = [(True, 1), (True, 2), (False, 2), (False, 4)]
        asked = [f for f in forms if causal in (None, f[0]) and columns in (None, f[1])]
        for is_causal, count in asked:
            table = _causal(hidden, reading.sizes, count) if is_causal else _free(hidden, q_len, count)
            if table is not None:
                lanes = (reading.sizes.B, table.shape[1])
                table = table.int().expand(*lanes, *table.shape[2:]).contiguous()
                return FlashmaskArgs(
                    table,
                    is_causal,
                    f"{count} column{'s' * (count > 1)} of hidden rows, {'' if is_causal else 'not '}causal",
                    reading.sizes,
                )
        if asked == forms:
            b, h, kv_idx = ((hidden.start < hidden.end).sum(-1) > 2).nonzero()[0].tolist()
            raise self._three(reading, (b, h, kv_idx))
        place, seen = _outside(hidden, reading.sizes, asked)
        raise refusal(reading, self.name, place, seen, 'Leave causal and columns to it, or use backend="flex".')

    def _three(self, reading: Reading, place: tuple[int, int, int]) -> Exception:
        """The refusal of a key with three intervals of hidden rows; the element begins the third."""
        return refusal(
            reading,
            self.name,
            hidden_interval_of_column(reading, place, 2),
            f"key {place[2]} is hidden from more than two intervals of rows",
            'Use backend="flex", or "hstu", which counts intervals of keys.',
        )

    def read_back(self, args: FlashmaskArgs) -> Tensor:
        B, H, q_len, kv_len = args.sizes
        table = args.startend_row_indices.long().unsqueeze(-1)  # (B, H|1, kv_len, columns, 1)
        row = torch.arange(q_len, device=table.device)
        if args.causal:
            hidden = (row >= table[..., 0, :]) & (row < (table[..., 1, :] if table.shape[3] == 2 else q_len))
            key = torch.arange(kv_len, device=table.device).view(-1, 1)
            hidden = hidden | (key > row + (kv_len - q_len))
        elif table.shape[3] == 2:
            hidden = (row >= table[..., 0, :]) | (row < table[..., 1, :])
        else:
            lower = (row >= table[..., 0, :]) & (row < table[..., 1, :])
            hidden = lower | ((row >= table[..., 2, :]) & (row < table[..., 3, :]))
        return (~hidden).mT.expand(B, H, q_len, kv_len)


def _hidden(spans: Spans, q_len: int) -> _Hidden:
    start = torch.nn.functional.pad(spans.ends, (1, 0))
    end = torch.nn.functional.pad(spans.starts, (0, 1), value=q_len)
    return _Hidden(start, end)


def _compact(hidden: _Hidden, most: int, q_len: int) -> _Hidden | None:
    """The intervals that are not empty, first; None where some key has more than `most`."""
    some = hidden.start < hidden.end
    if some.numel() and int(some.sum(-1).max()) > most:
        return None
    order = (~some).int().argsort(dim=-1, stable=True)[..., :most]
    used = some.gather(-1, order)
    start, end = (torch.where(used, x.gather(-1, order), q_len) for x in hidden)
    return _Hidden(start, end)


def _causal(hidden: _Hidden, sizes: Sizes, count: int) -> Tensor | None:
    """LTS, or LTS and LTE, beside the upper triangle that the kernel hides; None where that does not say it."""
    q_len, kv_len = sizes.q_len, sizes.kv_len
    key = torch.arange(kv_len, device=hidden.start.device)
    diagonal = (key - (kv_len - q_len)).clamp(0, q_len).unsqueeze(-1)  # the first row that sees the key
    if bool((hidden.end[..., :1] < diagonal).any()):  # something above the diagonal is visible
        return None
    below = _compact(_Hidden(torch.maximum(hidden.start, diagonal), hidden.end), 1, q_len)
    if below is None:
        return None
    if count == 1:
        return below.start if bool((below.end == q_len).all()) else None
    return torch.cat([below.start, below.end], -1)


def _free(hidden: _Hidden, q_len: int, count: int) -> Tensor | None:
    """LTS and UTE, or LTS, LTE, UTS and UTE; None where two intervals do not say it."""
    two = _compact(hidden, 2, q_len)
    if two is None:
        return None
    (upper_start, lower_start), (upper_end, lower_end) = (x.unbind(-1) for x in two)
    # A single interval that does not begin with the first row is a lower one.
    is_lower = (upper_start > 0) & (lower_start == lower_end)
    lower_start, lower_end = (
        torch.where(is_lower, a, b) for a, b in ((upper_start, lower_start), (upper_end, lower_end))
    )
    upper_start, upper_end = (torch.where(is_lower, 0, x) for x in (upper_start, upper_end))
    if count == 4:
        nothing = upper_start >= upper_end
        upper_start, upper_end = (torch.where(nothing, 0, x) for x in (upper_start, upper_end))
        return torch.stack([lower_start, lower_end, upper_start, upper_end], -1)
    upper_end = torch.where(upper_start < upper_end, upper_end, 0)
    if bool(((upper_start > 0) & (upper_end > 0)).any() | ((lower_end < q_len) & (lower_start < lower_end)).any()):
        return None
    return torch.stack([lower_start, upper_end], -1)


def _outside(hidden: _Hidden, sizes: Sizes, asked: list[tuple[bool, int]]) -> tuple[Element, str]:
    """An element that shows why none of the forms asked for says the mask."""
    q_len, kv_len = sizes.q_len, sizes.kv_len
    some = hidden.start < hidden.end
    if all(is_causal for is_causal, _ in asked) and asked:
        key = torch.arange(kv_len, device=hidden.start.device)
        diagonal = (key - (kv_len - q_len)).clamp(0, q_len).unsqueeze(-1)
        above = (hidden.end[..., :1] < diagonal).nonzero()
        if above.shape[0]:
            b, h, k = above[0, :3].tolist()
            return Element(
                b, h, int(hidden.end[b, h, k, 0]), k
            ), "it is visible above the diagonal that the kernel hides"
    # The last hidden interval of a key that has one too many.
    crowded = some.sum(-1)
    place = (crowded == crowded.max()).nonzero()[0].tolist()
    b, h, k = place
    last = int(some[b, h, k].nonzero()[-1])
    return Element(b, h, int(hidden.start[b, h, k, last]), k), f"key {k} is hidden from more rows than {asked} can say"
