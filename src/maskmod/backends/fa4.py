"""FlashAttention 4's block lists: for each tile of queries the tiles of keys it visits, partial ones and full ones.

The layout of ``BlockSparseTensorsTorch``: ``mask_block_cnt`` (B|1, H|1, M) and ``mask_block_idx`` (B|1, H|1, M, N'),
the same for full blocks, all int32, ascending, N' as wide as the widest row; a lane of 1 serves all. A backward wants
the transposed lists, and for deterministic gradients the order in which a tile of queries is written. Partial blocks
are masked by a ``mask_mod`` in the kernel's own language, which cannot be derived from a torch predicate; ``bits``
holds what such a function would read: int32 words (B|1, q_len, words), 32 keys each, the lowest bit first, a multiple
of four.

A block cut short by the lengths is never called full, as in torch. Source: flash-attention's ``cute/block_sparsity``.
The kernel needs a GPU; it is not called here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskmod.algebra import MaskMod, Sizes
from maskmod.analyser.reading import Reading
from maskmod.backends.protocol import Backend
from maskmod.backends.refusals import check_outside_a_trace, check_same
from maskmod.backends.strips import few_spans, packed_bits, strips
from maskmod.blocks.classify import classes_of
from maskmod.facts.tiles import checked_block_size
from maskmod.oracle import vmap_mask

__all__ = ["BlockLists", "Fa4", "Fa4Args"]

_WORD, _WORDS = 32, 4  # keys of a word; words of a row come in fours


class BlockLists(NamedTuple):
    """The fields of ``BlockSparseTensorsTorch`` by their names; None where they are not asked for."""

    mask_block_cnt: Tensor
    mask_block_idx: Tensor
    full_block_cnt: Tensor
    full_block_idx: Tensor
    block_size: tuple[int, int]
    dq_write_order: Tensor | None = None
    dq_write_order_full: Tensor | None = None
    spt: bool | None = None


class Fa4Args(NamedTuple):
    """Lists for the forward, for the backward (keys by queries) or None, and the bits or None; mask_mod as written."""

    forward: BlockLists
    backward: BlockLists | None
    bits: Tensor | None
    mask_mod: MaskMod
    why: str
    sizes: Sizes

    def kwargs(self) -> dict[str, Any]:
        """``BlockSparseTensorsTorch(**kwargs["block_sparse_tensors"])``, and the bits as the one aux tensor."""
        lists = {"block_sparse_tensors": self.forward._asdict()}
        if self.backward is not None:
            lists["block_sparse_tensors_bwd"] = self.backward._asdict()
        return lists if self.bits is None else {**lists, "aux_tensors": [self.bits]}


class Fa4(Backend):
    name = "fa4"
    options = ("backward", "bits", "block_size")

    def lower(
        self,
        reading: Reading,
        *,
        dtype: torch.dtype,
        empty_rows: str = "keep",
        block_size: int | tuple[int, int] = (256, 128),
        backward: bool = False,
        bits: bool = False,
    ) -> Fa4Args:
        """Lists of blocks of (queries, keys) = block_size; any mask has them.

        Raises:
            UnsupportedMask: `bits` of a mask that differs between heads: the words have none.
        """
        check_outside_a_trace(reading, self.name, empty_rows)
        size = checked_block_size(block_size)
        full, partial = classes_of(reading, size, exact=True)
        forward = BlockLists(*_listed(partial), *_listed(full), size)
        transposed = None
        if backward:
            # The place of a tile of keys among all that write to a tile of queries, in ascending order.
            rank = ((partial | full).cumsum(-1) - 1).int()
            lists = BlockLists(*_listed(partial.mT), *_listed(full.mT), size)
            orders = [rank.mT.gather(-1, idx.long()) for idx in (lists.mask_block_idx, lists.full_block_idx)]
            transposed = lists._replace(dq_write_order=orders[0], dq_write_order_full=orders[1], spt=False)
        words = None
        if bits:
            check_same(reading, self.name, "h", 'Pass bits=False, or use backend="flex".')
            words = _words(reading)
        why = f"lists of {size[0]} x {size[1]} blocks; partial ones need a mask_mod of the kernel's own"
        return Fa4Args(forward, transposed, words, reading.written, why, reading.sizes)

    def read_back(self, args: Fa4Args) -> Tensor:
        B, H, q_len, kv_len = args.sizes
        lists = args.forward
        kinds = []
        for cnt, idx in (
            (lists.mask_block_cnt, lists.mask_block_idx),
            (lists.full_block_cnt, lists.full_block_idx),
        ):
            columns = -(-kv_len // lists.block_size[1])
            table = torch.zeros((*cnt.shape, columns), dtype=torch.bool, device=cnt.device)
            for b, h, row in torch.ones_like(cnt).nonzero().tolist():
                table[b, h, row, idx[b, h, row, : int(cnt[b, h, row])].long()] = True
            tokens = table.repeat_interleave(lists.block_size[0], 2).repeat_interleave(lists.block_size[1], 3)
            kinds.append(tokens[:, :, :q_len, :kv_len])
        partial, full = kinds
        if args.bits is None:
            inside = vmap_mask(args.mask_mod, B, H, q_len, kv_len, device=partial.device)
        else:
            place = torch.arange(kv_len, device=partial.device)
            inside = ((args.bits.long()[:, :, place // _WORD] >> (place % _WORD)) & 1).bool().unsqueeze(1)
        return (full | (partial & inside)).expand(B, H, q_len, kv_len)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Counts (B|1, H|1, n) and ascending columns (B|1, H|1, n, widest), int32; 0 past a row's count."""
    cnt = blocks.sum(-1, dtype=torch.int32)
    width = int(cnt.max()) if cnt.numel() else 0
    idx = torch.zeros((*cnt.shape, width), dtype=torch.int32, device=blocks.device)
    entry = blocks.nonzero()
    rank = (blocks.cumsum(-1) - 1)[blocks]
    idx[entry[:, 0], entry[:, 1], entry[:, 2], rank] = entry[:, 3].int()
    return cnt, idx


def _words(reading: Reading) -> Tensor:
    """The rows as words of 32 keys: int32 (B|1, q_len, a multiple of four)."""
    _, _, q_len, kv_len = reading.sizes
    rows = reading.lanes[0]
    width = -(-kv_len // (_WORD * _WORDS)) * _WORDS
    out = torch.zeros((rows, q_len, width * 4), dtype=torch.uint8, device=reading.device)
    if reading.is_empty:
        return torch.zeros((rows, q_len, width), dtype=torch.int32, device=reading.device)
    spans = few_spans(reading) if kv_len % 8 == 0 else None
    for b in range(rows):
        if spans is not None:  # rows begin with a byte
            out[b, :, : kv_len // 8] = packed_bits(reading, b, 0, kv_len, spans).view(q_len, kv_len // 8)
            continue
        for first, seen in strips(reading, b, 0):
            bits = torch.nn.functional.pad(seen, (0, -kv_len % 8)).unflatten(1, (-1, 8))
            place = torch.arange(8, device=reading.device)
            packed = (bits.int() << place).sum(-1).to(torch.uint8)
            out[b, first : first + seen.shape[0], : packed.shape[1]] = packed
    return out.view(torch.int32)
