"""FlashInfer's forms of a mask: packed bits for each request, a block-sparse matrix, or pages with flags or bits.

- ``form="bits"``: `packed_custom_mask`, uint8: for each request its ``q_len * kv_len`` bits laid end to end, the lowest
  bit of a byte first, each request beginning with a new byte; `mask_indptr` int32 (B + 1,) counts bytes. Bit
  ``q * kv_len + k`` is True where visible.
- ``form="bsr"``: `indptr` int32 (rows + 1,), `indices` int32 (nnz,), blocks of R queries and C keys; `mask` bool
  (nnz, R, C) for the tokens inside, or None where all listed blocks are visible throughout. Batch rows are laid end to
  end, and R and C divide the lengths.
- ``form="paged"``: `kv_indptr` int32 (B + 1,), `kv_indices` int32 (pages,), `kv_last_page_len` int32 (B,); then
  `causal` and `window_left` where that is proven to be all that the mask says about the keys in the pages, else bits.

One mask serves all heads. Source: flashinfer's ``prefill``, ``quantization`` and ``sparse``. The kernels need a GPU;
they are not called here.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskmod.algebra import Index, Sizes
from maskmod.algebra.lookup import check_size
from maskmod.analyser.reading import Reading
from maskmod.analyser.settle import TileList
from maskmod.backends.protocol import Backend
from maskmod.backends.refusals import check_outside_a_trace, check_same, refusal
from maskmod.backends.strips import few_spans, packed_bits, row_of, strips
from maskmod.blocks.classify import classes_of
from maskmod.errors import MaskShapeError, MaskValueError
from maskmod.facts.proofs import Element
from maskmod.facts.recognise import band_mask, difference
from maskmod.facts.structure import Band
from maskmod.facts.tiles import checked_block_size

__all__ = ["BitsArgs", "BsrArgs", "Flashinfer", "PagedArgs"]


class BitsArgs(NamedTuple):
    """For ``BatchPrefillWithRaggedKVCacheWrapper.plan``: bits of each request, and where its bytes begin."""

    packed_custom_mask: Tensor
    mask_indptr: Tensor
    qo_indptr: Tensor
    kv_indptr: Tensor
    why: str
    sizes: Sizes

    def kwargs(self) -> dict[str, Any]:
        """For ``plan``, which finds `mask_indptr` itself."""
        return {name: getattr(self, name) for name in ("qo_indptr", "kv_indptr", "packed_custom_mask")}


class BsrArgs(NamedTuple):
    """For ``BlockSparseAttentionWrapper.plan``: blocks of R queries and C keys over M queries and N keys."""

    indptr: Tensor
    indices: Tensor
    M: int
    N: int
    R: int
    C: int
    mask: Tensor | None
    why: str
    sizes: Sizes

    def kwargs(self) -> dict[str, Any]:
        return {name: value for name, value in self._asdict().items() if name not in ("why", "sizes")}


class PagedArgs(NamedTuple):
    """For ``BatchPrefillWithPagedKVCacheWrapper.plan``; window_left -1 is no window; no bits where flags will do."""

    qo_indptr: Tensor
    kv_indptr: Tensor
    kv_indices: Tensor
    kv_last_page_len: Tensor
    page_size: int
    causal: bool
    window_left: int
    packed_custom_mask: Tensor | None
    mask_indptr: Tensor | None
    why: str
    sizes: Sizes

    def kwargs(self) -> dict[str, Any]:
        names = {"kv_indptr": "paged_kv_indptr", "kv_indices": "paged_kv_indices"}
        names |= {"kv_last_page_len": "paged_kv_last_page_len"}
        left_out = ("why", "sizes", "mask_indptr")
        return {names.get(name, name): value for name, value in self._asdict().items() if name not in left_out}


class Flashinfer(Backend):
    name = "flashinfer"
    options = ("block_size", "block_table", "form", "page_size")

    def lower(
        self,
        reading: Reading,
        *,
        dtype: torch.dtype,
        empty_rows: str = "keep",
        form: str = "bits",
        block_size: int | tuple[int, int] = 16,
        page_size: int = 16,
        block_table: Tensor | None = None,
    ) -> BitsArgs | BsrArgs | PagedArgs:
        """One of the three forms.

        Args:
            form: "bits", "bsr" or "paged".
            block_size: (R, C), for "bsr".
            page_size, block_table: for "paged": keys of a page, and the pages of each request, int (B, pages); None
                numbers them one request after the other.

        Raises:
            UnsupportedMask: heads differ; for "bsr", blocks do not divide the lengths.
        """
        check_outside_a_trace(reading, self.name, empty_rows)
        if form not in ("bits", "bsr", "paged"):
            raise MaskValueError(
                f'lower(mask, "flashinfer", form={form!r})', "no such form", 'Pass "bits", "bsr" or "paged".'
            )
        check_same(reading, self.name, "h")
        if form == "bits":
            return self._bits(reading)
        if form == "bsr":
            return self._bsr(reading, checked_block_size(block_size))
        check_size(f"page_size={page_size!r}", page_size, unit="keys")
        return self._paged(reading, page_size, block_table)

    def _bits(self, reading: Reading) -> BitsArgs:
        B, _, q_len, kv_len = reading.sizes
        packed, mask_indptr = _packed(reading, [kv_len] * B)
        qo_indptr, kv_indptr = (_steps([n] * B, reading.device) for n in (q_len, kv_len))
        return BitsArgs(packed, mask_indptr, qo_indptr, kv_indptr, "a bit for each query and key", reading.sizes)

    def _bsr(self, reading: Reading, size: tuple[int, int]) -> BsrArgs:
        B, _, q_len, kv_len = reading.sizes
        R, C = size
        for length, step, name in ((q_len, R, "queries"), (kv_len, C, "keys")):
            if length % step:
                place = Element(0, 0, max(q_len - 1, 0), max(kv_len - 1, 0))
                seen = f"blocks of {step} {name} do not divide {length}"
                raise refusal(reading, self.name, place, seen, 'Pass a block_size that does, or form="bits".')
        full, partial = classes_of(reading, size, exact=True)
        some = (full | partial)[:, 0].expand(B, -1, -1)
        entry = some.nonzero()
        columns = some.shape[-1]
        indptr = torch.nn.functional.pad(some.sum(-1).view(-1).cumsum(0), (1, 0)).int()
        indices = (entry[:, 2] + entry[:, 0] * columns).int()
        inside = None
        if bool(partial.any()):
            lane = entry[:, 0] if reading.lanes[0] > 1 else torch.zeros_like(entry[:, 0])
            inside = _opened(reading, TileList(lane, torch.zeros_like(lane), entry[:, 1], entry[:, 2]), size)
        why = f"{indices.shape[0]} blocks of {R} x {C}" + (", some visible in part" if inside is not None else "")
        return BsrArgs(indptr, indices, B * q_len, B * kv_len, R, C, inside, why, reading.sizes)

    def _paged(self, reading: Reading, page_size: int, block_table: Tensor | None) -> PagedArgs:
        B, _, q_len, _ = reading.sizes
        lengths = _lengths(reading)
        pages = [-(-length // page_size) for length in lengths]
        if block_table is None:
            indices = torch.arange(sum(pages), device=reading.device)
        else:
            if block_table.shape[0] != B or block_table.shape[1] < max(pages, default=0):
                raise MaskShapeError(
                    f"block_table={list(block_table.shape)}",
                    f"{B} requests need up to {max(pages, default=0)} pages",
                    "Pass int (B, pages).",
                )
            indices = (
                torch.cat([block_table[b, :count] for b, count in enumerate(pages)]) if B else block_table.view(-1)
            )
        last = torch.tensor([n - (p - 1) * page_size if p else 0 for n, p in zip(lengths, pages, strict=True)])
        causal, window_left = _flags(reading, lengths) or (False, None)
        bits = mask_indptr = None
        why = "pages" + (", causal" if causal else "")
        if window_left is None:
            bits, mask_indptr = _packed(reading, lengths)
            why = "pages, and a bit for each query and key in them"
        return PagedArgs(
            _steps([q_len] * B, reading.device),
            _steps(pages, reading.device),
            indices.to(reading.device, torch.int32),
            last.to(reading.device, torch.int32),
            page_size,
            causal,
            -1 if window_left is None else window_left,
            bits,
            mask_indptr,
            why,
            reading.sizes,
        )

    def read_back(self, args: BitsArgs | BsrArgs | PagedArgs) -> Tensor:
        B, H, q_len, kv_len = args.sizes
        if isinstance(args, BsrArgs):
            seen = _read_bsr(args)
        elif isinstance(args, BitsArgs):
            seen = _read_bits(args.packed_custom_mask, args.mask_indptr, [kv_len] * B, args.sizes)
        else:
            pages, last = args.kv_indptr.diff().tolist(), args.kv_last_page_len.tolist()
            lengths = [(p - 1) * args.page_size + n if p else 0 for p, n in zip(pages, last, strict=True)]
            if args.packed_custom_mask is not None:
                assert args.mask_indptr is not None
                seen = _read_bits(args.packed_custom_mask, args.mask_indptr, lengths, args.sizes)
            else:
                seen = torch.zeros((B, q_len, kv_len), dtype=torch.bool, device=args.kv_indptr.device)
                for b, length in enumerate(lengths):
                    query = torch.arange(q_len, device=seen.device).view(-1, 1) + (length - q_len)
                    key = torch.arange(length, device=seen.device)
                    own = torch.ones((q_len, length), dtype=torch.bool, device=seen.device)
                    if args.causal:
                        own &= key <= query
                    if args.window_left >= 0:
                        own &= key >= query - args.window_left
                    seen[b, :, :length] = own
        return seen[:, None].expand(B, H, q_len, kv_len)


def _steps(lengths: list[int], device: torch.device) -> Tensor:
    steps = torch.tensor([0, *lengths], device=device)
    return steps.cumsum(0).int()


def _packed(reading: Reading, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Bits of every request over its first keys, and where its bytes begin."""
    spans = None if reading.is_empty else few_spans(reading)
    parts: list[Tensor] = []
    for b, length in enumerate(lengths):
        if b and reading.lanes[0] == 1 and length == lengths[0]:
            parts.append(parts[0])
        else:
            parts.append(packed_bits(reading, b, 0, length, spans))
    sizes = [part.shape[0] for part in parts]
    nothing = torch.zeros(0, dtype=torch.uint8, device=reading.device)
    return torch.cat([nothing, *parts]), _steps(sizes, reading.device)


def _read_bits(packed: Tensor, mask_indptr: Tensor, lengths: list[int], sizes: Sizes) -> Tensor:
    B, _, q_len, kv_len = sizes
    seen = torch.zeros((B, q_len, kv_len), dtype=torch.bool, device=packed.device)
    for b, length in enumerate(lengths):
        own = packed[int(mask_indptr[b]) : int(mask_indptr[b + 1])]
        for q_idx in range(q_len):
            bit = q_idx * length + torch.arange(length, device=packed.device)
            seen[b, q_idx, :length] = (own[bit // 8] >> (bit % 8)) & 1 == 1
    return seen


def _read_bsr(args: BsrArgs) -> Tensor:
    B, _, q_len, kv_len = args.sizes
    dense = torch.zeros((args.M, args.N), dtype=torch.bool, device=args.indptr.device)
    begin = args.indptr.tolist()
    for row, (start, end) in enumerate(itertools.pairwise(begin)):
        for at in range(start, end):
            kv = int(args.indices[at]) * args.C
            block = dense[row * args.R : (row + 1) * args.R, kv : kv + args.C]
            block[:] = True if args.mask is None else args.mask[at]
    own = (
        torch.stack([dense.view(B, q_len, B, kv_len)[b, :, b] for b in range(B)]) if B else dense.view(0, q_len, kv_len)
    )
    assert int(own.sum()) == int(dense.sum()), "a block crosses from one request into another"
    return own


def _opened(reading: Reading, tiles: TileList, size: tuple[int, int]) -> Tensor:
    """The tokens of blocks, bool (n, R, C)."""
    analysis = reading.analysis(size, looks=True)
    at_once = analysis.at_once(size[0] * size[1])
    parts = [TileList(*(x[i : i + at_once] for x in tiles)) for i in range(0, tiles.count, at_once)]
    return torch.cat([analysis.tokens(part, *analysis.inside(part)) for part in parts])


def _lengths(reading: Reading) -> list[int]:
    """For each request, one past the last key that any of its queries sees."""
    B, _, _, kv_len = reading.sizes
    if reading.is_empty:
        return [kv_len] * B
    spans = few_spans(reading)
    if spans is not None:
        ends = torch.where(spans.starts < spans.ends, spans.ends, 0).amax((1, 2, 3))
        return ends.expand(B).tolist()
    lengths = []
    for b in range(reading.lanes[0]):
        seen = torch.zeros(kv_len, dtype=torch.bool, device=reading.device)
        for _, strip in strips(reading, b, 0):
            seen |= strip.any(0)
        lengths.append(int(seen.nonzero()[-1]) + 1 if bool(seen.any()) else 0)
    return lengths if len(lengths) == B else lengths * B


def _flags(reading: Reading, lengths: list[int]) -> tuple[bool, int] | None:
    """(causal, window_left) that say the mask over the pages' keys, proven; None where flags do not."""
    B, _, q_len, _ = reading.sizes
    if reading.is_empty:
        return False, -1
    length = torch.tensor(lengths, device=reading.device)
    # The only candidates: all keys of the pages; causal, the last query on the last key; the same with a window.
    candidates = [(False, -1), (True, -1)]
    bottom = row_of(reading, 0, 0, q_len - 1).nonzero()
    if bottom.shape[0] and int(bottom[0]) > 0:
        candidates.append((True, lengths[0] - 1 - int(bottom[0])))
    for causal, window in candidates:
        inside = band_mask(Band(-window if window >= 0 else None, 0 if causal else None))

        def candidate(b: Index, h: Index, q_idx: Index, kv_idx: Index, inside=inside) -> Index:
            own = length[b] if B > 1 else length[0]
            return (kv_idx < own) & inside(b, h, q_idx + own - q_len, kv_idx)

        if difference(reading, candidate) is None:
            return causal, window
    return None
