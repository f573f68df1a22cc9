"""Compressed rows of the visible keys, over tokens or over whole blocks: for sparse matrix kernels, DGL, DeepSpeed.

``crow_indices`` int64 (rows + 1,) and ``col_indices`` int64 (nnz,), ascending in each row. The rows of all lanes lie
end to end: row ``(b * H + h) * q_len + q`` with B and H those of `lanes`, 1 where one mask serves all. `attend` runs
them in plain torch on any device, in memory that follows the visible pairs: slow, exact, differentiable.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskmod.algebra import Sizes
from maskmod.analyser.reading import Reading
from maskmod.backends.empty_rows import fill_empty_rows
from maskmod.backends.protocol import Backend, Bid, Call, Request
from maskmod.backends.refusals import check_outside_a_trace, refusal
from maskmod.backends.strips import few_spans, strips
from maskmod.facts.proofs import Element
from maskmod.facts.tiles import checked_block_size, tiles_of

__all__ = ["Csr", "CsrArgs"]


class CsrArgs(NamedTuple):
    """Compressed rows of all lanes (B|1, H|1) end to end; a column is a key, or a block of keys with block_size."""

    crow_indices: Tensor
    col_indices: Tensor
    lanes: tuple[int, int]
    block_size: tuple[int, int] | None
    why: str
    sizes: Sizes

    def kwargs(self) -> dict[str, Any]:
        """For ``torch.sparse_csr_tensor(values=..., **kwargs)``."""
        _, _, q_len, kv_len = self.sizes
        bq, bkv = self.block_size or (1, 1)
        size = (self.lanes[0] * self.lanes[1] * -(-q_len // bq), -(-kv_len // bkv))
        return {"crow_indices": self.crow_indices, "col_indices": self.col_indices, "size": size}


class Csr(Backend):
    name = "csr"
    options = ("block_size",)

    def lower(
        self,
        reading: Reading,
        *,
        dtype: torch.dtype,
        empty_rows: str = "keep",
        block_size: int | tuple[int, int] | None = None,
    ) -> CsrArgs:
        """Rows of tokens, or with `block_size` rows of blocks, each of which is visible throughout or not at all.

        Raises:
            UnsupportedMask: a block holds a visible and a hidden token.
        """
        check_outside_a_trace(reading, self.name, empty_rows)
        B, H = reading.lanes[:2]
        if block_size is None:
            counts, columns = _tokens(reading)
            size, why = None, "each row's visible keys"
        else:
            size = checked_block_size(block_size)
            counts, columns = _blocks(reading, size)
            why = f"each row's visible blocks of {size[0]} x {size[1]}"
        crow = torch.nn.functional.pad(counts.reshape(-1).cumsum(0), (1, 0))
        return CsrArgs(crow, columns, (B, H), size, why, reading.sizes)

    def read_back(self, args: CsrArgs) -> Tensor:
        (bq, bkv), (B, H, q_len, kv_len) = args.block_size or (1, 1), args.sizes
        rows, columns = -(-q_len // bq), -(-kv_len // bkv)
        table = torch.zeros(
            args.lanes[0] * args.lanes[1] * rows, columns, dtype=torch.bool, device=args.col_indices.device
        )
        begin = args.crow_indices.tolist()
        for row, (start, end) in enumerate(itertools.pairwise(begin)):
            table[row, args.col_indices[start:end]] = True
        seen = table.view(*args.lanes, rows, columns).repeat_interleave(bq, 2).repeat_interleave(bkv, 3)
        return seen[:, :, :q_len, :kv_len].expand(B, H, q_len, kv_len)

    def bid(self, reading: Reading, request: Request) -> Bid | str:
        if reading.traced:
            return "how many keys are visible depends on values, and a graph has static shapes"
        return Bid(math.inf, "gathers every visible pair: for memory, not for speed")

    def attend(self, q: Tensor, k: Tensor, v: Tensor, args: CsrArgs, call: Call) -> Tensor:
        """Softmax over each row's own keys, gathered; differentiable."""
        B, Hq, q_len, D = q.shape
        group = Hq // k.shape[1]
        factor = D**-0.5 if call.scale is None else call.scale
        wide = torch.promote_types(q.dtype, torch.float32)
        counts = args.crow_indices.diff().view(*args.lanes, q_len)
        rows = torch.repeat_interleave(args.crow_indices.diff())
        lane, query, key = rows // q_len, rows % q_len, args.col_indices
        out = q.new_zeros((B, Hq, q_len, v.shape[-1]), dtype=wide)
        parts = []
        for b in range(B):
            for h in range(Hq):
                own = (b if args.lanes[0] > 1 else 0) * args.lanes[1] + (h if args.lanes[1] > 1 else 0)
                at = lane == own
                where, what = query[at], key[at]
                scores = (q[b, h, where] * k[b, h // group, what]).sum(-1).to(wide) * factor
                parts.append(_softmax_rows(scores, where, v[b, h // group, what].to(wide), q_len))
        if parts:
            out = torch.stack(parts).view(B, Hq, q_len, v.shape[-1])
        return fill_empty_rows(out.to(q.dtype), (counts > 0).unsqueeze(-1), v, call.empty_rows)


def _softmax_rows(scores: Tensor, row: Tensor, values: Tensor, rows: int) -> Tensor:
    """The mean of values (n, Dv) of each row, weighted by the softmax of its scores (n,); zeros where it has none."""
    top = torch.full((rows,), -torch.inf, dtype=scores.dtype, device=scores.device)
    top = top.scatter_reduce(0, row, scores.detach(), "amax")
    weight = (scores - top[row]).exp()
    total = torch.zeros(rows, dtype=scores.dtype, device=scores.device).index_add(0, row, weight)
    summed = torch.zeros((rows, values.shape[-1]), dtype=values.dtype, device=values.device)
    return summed.index_add(0, row, values * (weight / total[row]).unsqueeze(-1))


def _tokens(reading: Reading) -> tuple[Tensor, Tensor]:
    """How many keys each row sees, (B|1, H|1, q_len), and which, all rows end to end."""
    B, H, q_len = reading.lanes[:3]
    nothing = torch.zeros((B, H, q_len), dtype=torch.long, device=reading.device)
    if reading.is_empty:
        return nothing, nothing.reshape(-1)[:0]
    spans = few_spans(reading)
    if spans is None:
        found = [seen.nonzero()[:, 1] for b in range(B) for h in range(H) for _, seen in strips(reading, b, h)]
        counts = [seen.sum(1) for b in range(B) for h in range(H) for _, seen in strips(reading, b, h)]
        return torch.cat(counts).view(B, H, q_len), torch.cat(found)
    length = (spans.ends - spans.starts).reshape(-1)
    which = torch.repeat_interleave(length)
    before = length.cumsum(0) - length
    keys = torch.arange(which.shape[0], device=which.device) + (spans.starts.reshape(-1) - before)[which]
    return spans.visible().expand(nothing.shape), keys


def _blocks(reading: Reading, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The same over blocks that are visible throughout; a block cut short by the lengths counts by what there is."""
    B, H, q_len, kv_len = reading.lanes
    rows, columns = -(-q_len // size[0]), -(-kv_len // size[1])
    table = torch.zeros((B, H, rows, columns), dtype=torch.bool, device=reading.device)
    if not reading.is_empty:
        tiles = tiles_of(reading, size, exact=True)
        if tiles.partial.q.shape[0]:
            raise _partial(reading, tiles.partial, size)
        full = tiles.full
        for count in torch.stack([full.q_count, full.kv_count]).unique(dim=1).T.tolist():
            some = (full.q_count == count[0]) & (full.kv_count == count[1])
            b, h, q, kv = (x[some].view(-1, 1, 1) for x in full[:4])
            steps = [torch.arange(n, device=reading.device) for n in count]
            table[b, h, q + steps[0].view(1, -1, 1), kv + steps[1]] = True
    return table.sum(-1), table.nonzero()[:, 3]


def _partial(reading: Reading, partial, size: tuple[int, int]) -> Exception:
    b, h, q, kv = (int(x[0]) for x in partial[:4])
    for first, seen in strips(reading, b, h):
        rows = slice(max(q * size[0] - first, 0), max((q + 1) * size[0] - first, 0))
        hidden = (~seen[rows, kv * size[1] : (kv + 1) * size[1]]).nonzero()
        if hidden.shape[0]:
            element = Element(b, h, first + rows.start + int(hidden[0, 0]), kv * size[1] + int(hidden[0, 1]))
            return refusal(
                reading,
                "csr",
                element,
                f"a block of {size[0]} x {size[1]} is visible in part, and whole blocks are all that is listed",
                'Leave block_size out, or use backend="flex".',
            )
    raise AssertionError("a partial block has a hidden token")
