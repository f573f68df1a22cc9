"""SGLang's masks of drafted trees, request by request, and intervals of keys for each query.

A request has `seq_lens[b]` keys before its drafts; its q_len queries are the drafts, whose own keys come last.
- ``form="full_mask"``: bool, for each request ``q_len * (seq_lens[b] + q_len)`` entries laid end to end, True = seen.
- ``form="qlen_only"``: bool (B, q_len, q_len), the drafts' own keys; all keys before them are visible.
- ``form="bitpacking"``: the same, each row one unsigned integer (B * q_len,) of 8, 16 or 32 bits, the lowest bit first.
- ``form="spans"``: int32 (B, q_len, n) starts and ends of the visible keys, for kernels that mask by intervals.

One mask serves all heads. Keys past a request's own are not in the layout, and must be hidden. Source: SGLang's
``TreeMaskMode`` and its tree builder. The kernels are its server's own, and are not called here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskmod.algebra import Index, Sizes
from maskmod.analyser.reading import Reading, read
from maskmod.backends.protocol import Backend
from maskmod.backends.refusals import check_outside_a_trace, check_same, refusal
from maskmod.backends.strips import interval_of_row, spans_up_to, strips
from maskmod.errors import MaskShapeError, MaskValueError
from maskmod.facts.proofs import Element, first_visible
from maskmod.facts.spans import NotSpans

__all__ = ["Sglang", "SglangArgs"]

_FORMS = ("full_mask", "qlen_only", "bitpacking", "spans")
_MOST_SPANS = 16


class SglangArgs(NamedTuple):
    """One of the forms; `seq_lens` int32 (B,) counts the keys before the drafts."""

    form: str
    custom_mask: Tensor | None
    starts: Tensor | None
    ends: Tensor | None
    seq_lens: Tensor
    why: str
    sizes: Sizes

    def kwargs(self) -> dict[str, Any]:
        names = ("starts", "ends") if self.form == "spans" else ("custom_mask",)
        return {name: getattr(self, name) for name in names}


class Sglang(Backend):
    name = "sglang"
    options = ("form", "seq_lens")

    def lower(
        self,
        reading: Reading,
        *,
        dtype: torch.dtype,
        empty_rows: str = "keep",
        form: str = "full_mask",
        seq_lens: Tensor | None = None,
    ) -> SglangArgs:
        """One of the forms.

        Args:
            form: "full_mask", "qlen_only", "bitpacking" or "spans".
            seq_lens: int (B,), keys before the drafts of each request; None is kv_len - q_len for all.

        Raises:
            UnsupportedMask: heads differ; a key past a request's own is visible; for "qlen_only" and "bitpacking", a
                key before the drafts is hidden, or there are more than 32 drafts to pack.
        """
        check_outside_a_trace(reading, self.name, empty_rows)
        if form not in _FORMS:
            raise MaskValueError(
                f'lower(mask, "sglang", form={form!r})', "no such form", f"Pass one of {list(_FORMS)}."
            )
        check_same(reading, self.name, "h")
        B, _, q_len, kv_len = reading.sizes
        lengths = self._lengths(reading, seq_lens)
        before = torch.tensor(lengths, dtype=torch.int32, device=reading.device)
        if form == "spans":
            return self._spans(reading, before)
        own = torch.tensor([*lengths, 0], device=reading.device)  # one more, so that a batch of none can be indexed
        self._all_hidden(
            reading,
            lambda b, h, q, k, seen: seen & (k >= own[b] + q_len),
            f"a key past a request's own, seq_lens[b] + {q_len}, is visible",
        )
        rows = [self._row(reading, b) for b in range(B)]
        if form == "full_mask":
            parts = [rows[b][:, : length + q_len].reshape(-1) for b, length in enumerate(lengths)]
            flat = torch.cat([torch.zeros(0, dtype=torch.bool, device=reading.device), *parts])
            return SglangArgs(form, flat, None, None, before, "every key of each request", reading.sizes)
        self._all_hidden(
            reading,
            lambda b, h, q, k, seen: (seen ^ True) & (k < own[b]),
            "a key before the drafts is hidden, and this form shows them all",
        )
        drafts = torch.zeros((B, q_len, q_len), dtype=torch.bool, device=reading.device)
        for b, length in enumerate(lengths):
            drafts[b] = rows[b][:, length : length + q_len]
        if form == "qlen_only":
            return SglangArgs(form, drafts, None, None, before, "the drafts' own keys", reading.sizes)
        if q_len > 32:
            seen = f"{q_len} drafts, and a row holds 32 bits"
            raise refusal(reading, self.name, Element(0, 0, q_len - 1, kv_len - 1), seen, 'Pass form="qlen_only".')
        bits = (drafts.long() << torch.arange(q_len, device=reading.device)).sum(-1).view(-1)
        dtype = torch.uint8 if q_len <= 8 else torch.uint16 if q_len <= 16 else torch.uint32
        return SglangArgs(form, bits.to(dtype), None, None, before, f"a row's {q_len} bits", reading.sizes)

    def _lengths(self, reading: Reading, seq_lens: Tensor | None) -> list[int]:
        B, _, q_len, kv_len = reading.sizes
        if seq_lens is None:
            lengths = [kv_len - q_len] * B
        else:
            if seq_lens.shape != (B,):
                raise MaskShapeError(f"seq_lens={list(seq_lens.shape)}", f"{B} requests", "Pass int (B,).")
            lengths = seq_lens.tolist()
        if any(not 0 <= length <= kv_len - q_len for length in lengths):
            raise MaskValueError(
                f"seq_lens={lengths}", f"{q_len} drafts follow them, and kv_len={kv_len}", "Pass 0 to kv_len - q_len."
            )
        return lengths

    def _all_hidden(self, reading: Reading, wrong: Any, seen: str) -> None:
        """Refuse where `wrong`, of the indices and what the mask says there, holds anywhere."""
        mask = reading.mask

        def wrongly(b: Index, h: Index, q_idx: Index, kv_idx: Index) -> Index:
            return wrong(b, h, q_idx, kv_idx, mask(b, h, q_idx, kv_idx))

        found = first_visible(read(wrongly, *reading.sizes, device=reading.device))
        if found is not None:
            raise refusal(reading, self.name, found, seen)

    def _row(self, reading: Reading, b: int) -> Tensor:  # bool (q_len, kv_len)
        q_len, kv_len = reading.sizes[2:]
        lane = b if reading.lanes[0] > 1 else 0
        parts = [seen for _, seen in strips(reading, lane, 0)] if q_len * kv_len else []
        return torch.cat([torch.zeros((0, kv_len), dtype=torch.bool, device=reading.device), *parts]).view(
            q_len, kv_len
        )

    def _spans(self, reading: Reading, before: Tensor) -> SglangArgs:
        try:
            spans = spans_up_to(reading, _MOST_SPANS)
        except NotSpans as found:
            seen = f"query {found.place[2]} sees more than {_MOST_SPANS} intervals of keys"
            raise refusal(
                reading, self.name, interval_of_row(reading, found.place, _MOST_SPANS), seen, 'Pass form="full_mask".'
            ) from found
        most = int(spans.counts.max()) if spans.counts.numel() else 0
        B, _, q_len, _ = reading.sizes
        starts, ends = (x[:, 0, :, :most].expand(B, q_len, most).int() for x in (spans.starts, spans.ends))
        return SglangArgs("spans", None, starts, ends, before, f"{most} intervals a query", reading.sizes)

    def read_back(self, args: SglangArgs) -> Tensor:
        B, H, q_len, kv_len = args.sizes
        key = torch.arange(kv_len, device=args.seq_lens.device)
        seen = torch.zeros((B, q_len, kv_len), dtype=torch.bool, device=args.seq_lens.device)
        if args.form == "spans":
            assert args.starts is not None
            assert args.ends is not None
            for j in range(args.starts.shape[2]):
                seen |= (key >= args.starts[:, :, j : j + 1]) & (key < args.ends[:, :, j : j + 1])
            return seen[:, None].expand(B, H, q_len, kv_len)
        assert args.custom_mask is not None
        at = 0
        for b, length in enumerate(args.seq_lens.tolist()):
            for q_idx in range(q_len):
                if args.form == "full_mask":
                    row = args.custom_mask[at : at + length + q_len]
                    at += length + q_len
                elif args.form == "qlen_only":
                    row = torch.cat([key[:length] >= 0, args.custom_mask[b, q_idx]])
                else:
                    bits = int(args.custom_mask[b * q_len + q_idx])
                    row = torch.tensor([True] * length + [bool(bits >> j & 1) for j in range(q_len)])
                seen[b, q_idx, : length + q_len] = row.to(seen.device)
        return seen[:, None].expand(B, H, q_len, kv_len)
