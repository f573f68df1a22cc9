"""Packed sequences end to end: cumulative lengths read off the mask and verified, one window in every document.

On a GPU torch's ``varlen_attn`` takes the arguments; on CPU the same arguments are run document by document, by SDPA.
flash-attention's ``flash_attn_varlen_func`` takes the same `kwargs`. Which documents there are is found in the mask's
own intervals, whatever it is written as, and every query is then checked against what the arguments would show it.
Tokens that see nothing (padding) are left out.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maskmod.algebra import Sizes
from maskmod.analyser.reading import Reading
from maskmod.analyser.solve import solved
from maskmod.backends.costs import pairs, rates
from maskmod.backends.empty_rows import fill_empty_rows
from maskmod.backends.protocol import Backend, Bid, Call, Request
from maskmod.errors import UnsupportedMask

__all__ = ["Varlen", "VarlenArgs"]

_TODO = 'Use backend="spans", "flex" or "sdpa".'
_SOLVE = 3.4  # milliseconds to read a mask, to solve it for its intervals and to check the documents
_HALVES = (torch.float16, torch.bfloat16)


class VarlenArgs(NamedTuple):
    """For kernels that take packed sequences, (tokens, heads, size): documents of all rows, end to end.

    Attributes:
        cu_seqlens: int32 (documents + 1,). max_seqlen: tokens of the longest document, read once when lowering.
        causal, window_size: in each document; neighbours to the left and right, -1 unbounded.
        tokens: int64 (total,), which of the B * q_len tokens are in a document; None where all are.
        lengths: tokens of each document, as ints, for the CPU.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    causal: bool
    window_size: tuple[int, int]
    tokens: Tensor | None
    lengths: tuple[int, ...]
    sizes: Sizes
    why: str

    def kwargs(self) -> dict[str, Any]:
        """For ``flash_attn_varlen_func(q, k, v, **kwargs)``, q, k and v being (total, heads, size)."""
        ends, longest = self.cu_seqlens, self.max_seqlen
        return {
            "cu_seqlens_q": ends,
            "cu_seqlens_k": ends,
            "max_seqlen_q": longest,
            "max_seqlen_k": longest,
            "causal": self.causal,
            "window_size": self.window_size,
        }


class _Documents(NamedTuple):
    """What a mask's intervals amount to. first, end: of each token's document, (B|1, n); sees: whether it has one."""

    first: Tensor
    end: Tensor
    sees: Tensor
    left: int
    right: int


def _documents(reading: Reading) -> _Documents | str:
    """The documents and the one window that a mask is, verified for every query; or why it is not that."""
    if reading.traced:
        return "its documents are read from values, which a graph may not look at"
    B, H, n, kv_len = reading.lanes
    if n != kv_len:
        return "queries and keys are not the same packed tokens"
    if reading.is_empty:
        return "there is nothing to attend to"
    if H != 1:
        return "heads differ"
    found = solved(reading)
    if found is None:
        return "its rows are not solved for intervals"
    if found.start.shape[-1] > 1:
        return "a query sees more than one interval"
    start, end = found.start[:, 0, :, 0], found.end[:, 0, :, 0]
    sees, at = start < end, torch.arange(n, device=start.device)
    # A document begins where two neighbours do not see each other.
    apart = torch.ones((B, n + 1), dtype=torch.bool, device=start.device)
    apart[:, 1:n] = (start[:, 1:] >= at[1:]) & (end[:, :-1] <= at[1:])
    apart[:, 1:n] |= sees[:, 1:] != sees[:, :-1]
    begins = torch.where(apart[:, :n], at, 0).cummax(1).values
    stops = torch.where(apart[:, 1:], at + 1, n).flip(1).cummin(1).values.flip(1)
    left = _reach(torch.where(sees, at - start, 0), torch.where(sees, at - begins, 0))
    right = _reach(torch.where(sees, end - 1 - at, 0), torch.where(sees, stops - 1 - at, 0))
    low = begins if left < 0 else torch.maximum(begins, at - left)
    high = stops if right < 0 else torch.minimum(stops, at + right + 1)
    wrong = sees & ((low != start) | (high != end))
    if bool(wrong.any()):
        b, q = wrong.nonzero()[0].tolist()
        row = f" of batch row {b}" if B > 1 else ""
        shown = f"where documents with one window would show it {int(low[b, q])} to {int(high[b, q]) - 1}"
        return f"query {q}{row} sees keys {int(start[b, q])} to {int(end[b, q]) - 1}, {shown}"
    return _Documents(begins, stops, sees, left, right)


def _reach(seen: Tensor, whole: Tensor) -> int:
    """How many neighbours are seen on one side: -1 where all of the document are, else the most that anyone sees."""
    return -1 if torch.equal(seen, whole) and int(seen.max()) > 0 else int(seen.max())


class Varlen(Backend):
    name = "varlen"

    def lower(self, reading: Reading, *, dtype: torch.dtype, empty_rows: str = "keep") -> VarlenArgs:
        written = f'lower({reading.mask!r}, "varlen")'
        if empty_rows != "keep":
            raise UnsupportedMask(written, "queries that see nothing are in no document", 'Pass empty_rows="keep".')
        found = _documents(reading)
        if isinstance(found, str):
            raise UnsupportedMask(written, found, _TODO)
        B, n = reading.sizes.B, reading.sizes.q_len
        first, end, sees = (x.expand(B, n).reshape(-1) for x in (found.first, found.end, found.sees))
        at = torch.arange(n, device=first.device).repeat(B)
        lengths = (end - first)[(first == at) & sees]
        ends = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        counts = tuple(lengths.tolist())
        tokens = None if bool(sees.all()) else sees.nonzero().squeeze(1)
        causal = found.right == 0
        why = f"{len(counts)} documents end to end, verified for every query: no mask"
        window = (found.left, found.right)
        return VarlenArgs(ends, max(counts, default=0), causal, window, tokens, counts, reading.sizes, why)

    def read_back(self, args: VarlenArgs) -> Tensor:
        B, H, n, _ = args.sizes
        seen = torch.zeros((B * n, B * n), dtype=torch.bool, device=args.cu_seqlens.device)
        tokens = list(range(B * n)) if args.tokens is None else args.tokens.tolist()
        left, right = args.window_size
        for begin, end in itertools.pairwise(args.cu_seqlens.tolist()):
            for i in range(begin, end):
                low = begin if left < 0 else max(begin, i - left)
                high = end if right < 0 else min(end, i + right + 1)
                seen[tokens[i], tokens[low:high]] = True
        rows = [seen[b * n : (b + 1) * n, b * n : (b + 1) * n] for b in range(B)]
        return torch.stack(rows)[:, None].expand(B, H, n, n)

    def bid(self, reading: Reading, request: Request) -> Bid | str:
        if request.device.type != "cpu" and request.dtype not in _HALVES:
            return "varlen_attn takes half precision only"
        every = (
            0 if reading.traced else pairs(request, request.B * request.H * reading.sizes.q_len * reading.sizes.kv_len)
        )
        if not reading.traced and every * request.calls < _SOLVE:
            return Bid(every + _SOLVE / request.calls, "so few pairs take less time than finding out the documents")
        found = _documents(reading)
        if isinstance(found, str):
            return found
        rate, each = rates(request.device), request.B // reading.sizes.B * request.H
        rows = reading.sizes.B // found.first.shape[0]
        squares = float(((found.end - found.first) * found.sees).sum()) * rows * each
        if request.device.type == "cpu":
            windowed = found.left >= 0 or found.right > 0
            squares *= rate.masked if windowed else rate.causal if found.right == 0 else 1.0
        number = int(((found.first == torch.arange(reading.sizes.q_len, device=found.first.device)) & found.sees).sum())
        launches = 2 * rate.launch * (number * rows * (1 + 2 * request.requires_grad) if rate is rates(_CPU) else 1)
        return Bid(pairs(request, squares) + launches + 3 * rate.read / request.calls, "documents end to end, no mask")

    def prepare(self, reading: Reading, request: Request, **options: Any) -> VarlenArgs:
        args = self.lower(reading, dtype=request.dtype, **options)
        if reading.sizes.B == request.B:
            return args
        B, n = request.B, reading.sizes.q_len  # one mask for all rows: its documents, once for each
        tokens = args.tokens
        if tokens is not None:
            tokens = (tokens + n * torch.arange(B, device=tokens.device)[:, None]).reshape(-1)
        lengths = args.lengths * B
        ends = F.pad(torch.tensor(lengths, device=args.cu_seqlens.device).cumsum(0), (1, 0)).to(torch.int32)
        return args._replace(cu_seqlens=ends, tokens=tokens, lengths=lengths, sizes=args.sizes._replace(B=B))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, args: VarlenArgs, call: Call) -> Tensor:
        B, Hq, n, _ = q.shape
        run = _on_cpu if q.device.type == "cpu" else _on_gpu
        out = run(_packed(q, args.tokens), _packed(k, args.tokens), _packed(v, args.tokens), args, call)
        sees = None
        if args.tokens is not None:
            whole = out.new_zeros((B * n, Hq, v.shape[-1]))
            sees = torch.zeros(B * n, dtype=torch.bool, device=q.device).index_fill(0, args.tokens, True)
            out, sees = whole.index_copy(0, args.tokens, out), sees.view(B, 1, n, 1)
        out = out.view(B, n, Hq, v.shape[-1]).transpose(1, 2)
        return out if sees is None else fill_empty_rows(out, sees, v, call.empty_rows)


_CPU = torch.device("cpu")


def _packed(x: Tensor, tokens: Tensor | None) -> Tensor:  # (total, heads, size)
    x = x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3])
    return x if tokens is None else x.index_select(0, tokens)


def _on_gpu(q: Tensor, k: Tensor, v: Tensor, args: VarlenArgs, call: Call) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    ends, longest = args.cu_seqlens, args.max_seqlen
    out = varlen_attn(
        q,
        k,
        v,
        ends,
        ends,
        longest,
        longest,
        scale=call.scale,
        window_size=args.window_size,
        enable_gqa=call.enable_gqa,
    )
    assert isinstance(out, Tensor)
    return out


def _on_cpu(q: Tensor, k: Tensor, v: Tensor, args: VarlenArgs, call: Call) -> Tensor:
    """One SDPA call for each document: (total, heads, size)."""
    left, right = args.window_size
    parts, begin = [], 0
    for length in args.lengths:
        own = [x[begin : begin + length].transpose(0, 1).unsqueeze(0) for x in (q, k, v)]
        mask = None
        if left >= 0 or right > 0:
            distance = torch.arange(length) - torch.arange(length)[:, None]
            mask = torch.ones((length, length), dtype=torch.bool)
            mask = mask if left < 0 else mask & (distance >= -left)
            mask = mask if right < 0 else mask & (distance <= right)
        is_causal = mask is None and args.causal
        out = F.scaled_dot_product_attention(
            *own, attn_mask=mask, is_causal=is_causal, scale=call.scale, enable_gqa=call.enable_gqa
        )
        parts.append(out.squeeze(0).transpose(0, 1))
        begin += length
    return torch.cat(parts) if parts else q[:0, :, :1].expand(0, q.shape[1], v.shape[2])  # not cut off from q
