"""jax splash attention's ``MaskInfo``: for each block whether it is visited, what to fetch next, the partial blocks.

``block_mask`` (heads|1, n_q, n_kv) is 0 for an empty block, 1 for a partial one, 2 for a full one; ``data_next`` names
the block of keys to fetch there or, for a block that is skipped, the next one that is not; ``mask_next`` the same in
``partial_mask_blocks``, bool (n, block_q, block_kv), each different block once. Integers are as narrow as they can be:
the kernel keeps them in scalar memory. With one head the forward's tables are shrunk to as many columns as the widest
row visits; ``data_next`` then still names the block of keys. The backward for keys and values reads `dkv`: the same
tables in the order of blocks of keys, its partial blocks transposed.

There is no batch: jax users map over it. Source: ``jax.experimental.pallas.ops.tpu.splash_attention``; its own kernel
runs on these tables in interpret mode in our tests, where jax is installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskmod.algebra import Sizes
from maskmod.analyser.reading import Reading
from maskmod.analyser.settle import TileList
from maskmod.backends.protocol import Backend
from maskmod.backends.refusals import check_outside_a_trace, check_same, refusal
from maskmod.blocks.classify import classes_of
from maskmod.facts.proofs import Element
from maskmod.facts.tiles import checked_block_size

__all__ = ["MaskTables", "Splash", "SplashArgs"]


class MaskTables(NamedTuple):
    """The fields of ``MaskInfo`` that hold a mask; mask_next and the blocks are None where no block is partial."""

    data_next: Tensor
    mask_next: Tensor | None
    block_mask: Tensor
    partial_mask_blocks: Tensor | None


class SplashArgs(NamedTuple):
    """Tables for the forward (and for the gradient of queries), and for the gradient of keys and values."""

    forward: MaskTables
    dkv: MaskTables
    block_size: tuple[int, int]
    why: str
    sizes: Sizes

    def kwargs(self) -> dict[str, Any]:
        """``MaskInfo(**kwargs["fwd_mask_info"])`` and ``MaskInfo(**kwargs["dkv_mask_info"])``, as numpy arrays."""
        return {"fwd_mask_info": _numpy(self.forward), "dkv_mask_info": _numpy(self.dkv)}


class Splash(Backend):
    name = "splash"
    options = ("block_size", "shrink")

    def lower(
        self,
        reading: Reading,
        *,
        dtype: torch.dtype,
        empty_rows: str = "keep",
        block_size: int | tuple[int, int] = 128,
        shrink: bool = True,
    ) -> SplashArgs:
        """Tables for blocks of (queries, keys) = block_size, which divide the lengths.

        Raises:
            UnsupportedMask: batch rows differ, or blocks do not divide the lengths.
        """
        check_outside_a_trace(reading, self.name, empty_rows)
        check_same(reading, self.name, "b", 'Lower each batch row by itself, or use backend="flex".')
        size = checked_block_size(block_size)
        for length, step, name in zip(reading.sizes[2:], size, ("queries", "keys"), strict=True):
            if length % step or not length:
                place = Element(0, 0, max(reading.sizes.q_len - 1, 0), max(reading.sizes.kv_len - 1, 0))
                seen = f"blocks of {step} {name} do not divide {length}"
                raise refusal(
                    reading, self.name, place, seen, 'Pad the lengths, pass a block_size, or use backend="flex".'
                )
        full, partial = (x[0] for x in classes_of(reading, size, exact=True))
        classes = partial.int() + 2 * full.int()  # (H|1, n_q, n_kv)
        blocks, number = _partial_blocks(reading, partial, size)
        forward = _tables(classes, number, blocks, order=(0, 1, 2))
        dkv = _tables(classes, number, None if blocks is None else blocks.mT.contiguous(), order=(2, 0, 1))
        if shrink and classes.shape[0] == 1:
            forward = _shrunk(forward)
        kinds = 0 if blocks is None else blocks.shape[0]
        why = f"{int((classes > 0).sum())} blocks of {size[0]} x {size[1]}, {kinds} different partial ones"
        return SplashArgs(_narrow(forward), _narrow(dkv), size, why, reading.sizes)

    def read_back(self, args: SplashArgs) -> Tensor:
        B, H, q_len, kv_len = args.sizes
        seen = _read(args.forward, args, by_key=False)
        if not torch.equal(seen, _read(args.dkv, args, by_key=True)):
            raise AssertionError("the forward's tables and the backward's say different masks")
        return seen.expand(B, H, q_len, kv_len)


def _partial_blocks(reading: Reading, partial: Tensor, size: tuple[int, int]) -> tuple[Tensor | None, Tensor]:
    """Each different partial block once, (n, bq, bkv), and its number at each place of `partial`; 0 elsewhere."""
    number = torch.zeros(partial.shape, dtype=torch.long, device=partial.device)
    head, q, kv = partial.nonzero().unbind(1)
    if not head.shape[0]:
        return None, number
    analysis = reading.analysis(size, looks=True)
    tiles = TileList(torch.zeros_like(head), head, q, kv)
    at_once = analysis.at_once(size[0] * size[1])

    def opened(tiles: TileList) -> Iterator[Tensor]:
        for start in range(0, tiles.count, at_once):
            part = TileList(*(x[start : start + at_once] for x in tiles))
            yield analysis.tokens(part, *analysis.inside(part))

    kinds, which = torch.cat([_words(tokens.flatten(1)) for tokens in opened(tiles)]).unique(dim=0, return_inverse=True)
    number[partial] = which
    first = torch.full((kinds.shape[0],), tiles.count, device=partial.device)
    first.scatter_reduce_(0, which, torch.arange(tiles.count, device=partial.device), "amin")
    return torch.cat(list(opened(tiles.take(first)))), number


def _words(bits: Tensor) -> Tensor:
    """Rows of bits (n, m) as rows of int64, 62 bits each: equal where the bits are."""
    padded = torch.nn.functional.pad(bits, (0, -bits.shape[1] % 62)).unflatten(1, (-1, 62))
    return (padded.long() << torch.arange(62, device=bits.device)).sum(-1)


def _tables(classes: Tensor, number: Tensor, blocks: Tensor | None, order: tuple[int, int, int]) -> MaskTables:
    """What to fetch at each place: its own block or, where that is skipped, the next in the order of the grid."""
    walk = classes.permute(order)
    fetched = order[-1]  # the axis that the innermost loop of the grid runs over
    data = torch.arange(classes.shape[fetched], device=classes.device)
    place = _next(walk > 0)
    data_next = data[place % walk.shape[-1]].view(walk.shape)
    back = tuple(order.index(d) for d in range(3))
    mask_next = None
    if blocks is not None:
        mask_next = number.permute(order).reshape(-1)[_next(walk == 1)].view(walk.shape).permute(back)
    return MaskTables(data_next.permute(back), mask_next, classes, blocks)


def _next(here: Tensor) -> Tensor:
    """For each place, counted in order, the first one from there on that is True; the first of all after the last."""
    flat = here.reshape(-1)
    some = flat.nonzero().squeeze(1)
    if not some.shape[0]:
        return torch.zeros_like(flat, dtype=torch.long)
    at = torch.searchsorted(some, torch.arange(flat.shape[0], device=flat.device))
    return some[at % some.shape[0]]


def _shrunk(tables: MaskTables) -> MaskTables:
    """Only the columns that a row visits, in order, as many as the widest row needs (at least one)."""
    visited = tables.block_mask > 0
    width = max(int(visited.sum(-1).max()), 1)
    order = (~visited).int().argsort(dim=-1, stable=True)[..., :width]
    used = visited.gather(-1, order)

    def pick(table: Tensor) -> Tensor:
        return torch.where(used, table.gather(-1, order), 0)

    mask_next = None if tables.mask_next is None else pick(tables.mask_next)
    return MaskTables(pick(tables.data_next), mask_next, pick(tables.block_mask), tables.partial_mask_blocks)


def _narrow(tables: MaskTables) -> MaskTables:
    """Integers as narrow as their largest value allows."""

    def narrow(table: Tensor) -> Tensor:
        largest = int(table.max()) if table.numel() else 0
        dtype = torch.int8 if largest < 1 << 7 else torch.int16 if largest < 1 << 15 else torch.int32
        return table.to(dtype).contiguous()

    mask_next = None if tables.mask_next is None else narrow(tables.mask_next)
    return tables._replace(
        data_next=narrow(tables.data_next), mask_next=mask_next, block_mask=narrow(tables.block_mask)
    )


def _numpy(tables: MaskTables) -> dict[str, Any]:
    fields = {name: None if table is None else table.cpu().numpy() for name, table in tables._asdict().items()}
    return {**fields, "q_sequence": None}


def _read(tables: MaskTables, args: SplashArgs, *, by_key: bool) -> Tensor:  # (1, H|1, q_len, kv_len)
    """What a kernel computes that visits every place with a block_mask, and fetches what the tables say."""
    (bq, bkv), (_, _, q_len, kv_len) = args.block_size, args.sizes
    heads = tables.block_mask.shape[0]
    seen = torch.zeros((heads, q_len, kv_len), dtype=torch.bool, device=tables.block_mask.device)
    for head, i, j in tables.block_mask.nonzero().tolist():
        fetched = int(tables.data_next[head, i, j])
        q, kv = (fetched, j) if by_key else (i, fetched)
        block = torch.ones((bq, bkv), dtype=torch.bool, device=seen.device)
        if int(tables.block_mask[head, i, j]) == 1:
            assert tables.mask_next is not None
            assert tables.partial_mask_blocks is not None
            block = tables.partial_mask_blocks[int(tables.mask_next[head, i, j])]
            block = block.T if by_key else block
        seen[head, q * bq : (q + 1) * bq, kv * bkv : (kv + 1) * bkv] = block
    return seen.unsqueeze(0)
