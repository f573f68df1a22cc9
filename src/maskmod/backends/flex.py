"""torch's flex attention: a `BlockMask` that skips empty blocks; the predicate goes to torch unmodified."""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from maskmod._torch.tracing import known_true, tracing
from maskmod._torch.workarounds import isolated
from maskmod.algebra import structure
from maskmod.analyser.reading import Reading
from maskmod.analyser.replay_blocks import blocks_replay_of
from maskmod.backends.empty_rows import fill_empty_rows
from maskmod.backends.protocol import Backend, Bid, Holder, Request, Step
from maskmod.blocks.block_mask import block_mask_of
from maskmod.blocks.classify import classify_blocks, cut_short
from maskmod.blocks.index_tables import from_classes
from maskmod.dense import dense_of
from maskmod.errors import UnsupportedMask

__all__ = ["Flex", "FlexArgs"]

_BLOCK_SIZE = 128  # flex's own default
_WRAPPERS = 64  # compiled wrappers kept, one for each structure of mask; the least recently used goes first


class FlexArgs(NamedTuple):
    """The ``block_mask`` of ``flex_attention``."""

    block_mask: BlockMask
    why: str

    def kwargs(self) -> dict[str, Any]:
        """For ``flex_attention(q, k, v, **kwargs)``."""
        return {"block_mask": self.block_mask}


class Flex(Backend):
    name = "flex"

    def lower(self, reading: Reading, *, dtype: torch.dtype, empty_rows: str = "keep") -> FlexArgs:
        if empty_rows == "uniform":
            raise UnsupportedMask(
                f'lower({reading.mask!r}, "flex", empty_rows="uniform")',
                "a BlockMask holds booleans, and uniform weights need a bias",
                'Use backend="sdpa" or "eager", or attention(..., empty_rows="uniform").',
            )
        blocks = block_mask_of(reading, (_BLOCK_SIZE, _BLOCK_SIZE))
        return FlexArgs(blocks, f"a table of blocks of {blocks.BLOCK_SIZE}")

    def read_back(self, args: FlexArgs) -> Tensor:
        """Tokens of the blocks that the forward tables name: all of a full one, those of the predicate of a partial."""
        blocks = args.block_mask
        B, H, q_len, kv_len = blocks.shape
        seen = torch.zeros((B, H, q_len, kv_len), dtype=torch.bool, device=blocks.kv_indices.device)
        tables = (
            (blocks.kv_num_blocks, blocks.kv_indices, False),
            (blocks.full_kv_num_blocks, blocks.full_kv_indices, True),
        )
        bq, bkv = blocks.BLOCK_SIZE
        for count, index, full in tables:
            if count is None or index is None:
                continue
            for b, h, row in itertools.product(range(B), range(H), range(count.shape[-1])):
                for column in index[b, h, row, : int(count[b, h, row])].tolist():
                    for q in range(row * bq, min((row + 1) * bq, q_len)):
                        for kv in range(column * bkv, min((column + 1) * bkv, kv_len)):
                            point = (torch.tensor(i) for i in (b, h, q, kv))
                            seen[b, h, q, kv] = True if full else blocks.mask_mod(*point)
        return seen

    def bid(self, reading: Reading, request: Request) -> Bid | str:
        sizes = reading.sizes
        if request.device.type == "cpu":
            if request.requires_grad:
                return "flex attention has no backward on CPU"
            if request.dtype == torch.float64:
                return "compiled flex attention has no float64 on CPU"
        if known_true(sizes.q_len == 0) or known_true(sizes.kv_len == 0):
            return "flex attention takes no empty sequences"
        if request.device.type == "cuda" and not known_true(sizes.q_len < 128):
            return Bid(1.0, "on a GPU it skips the empty blocks of a long query")
        return Bid(3.0, "it skips empty blocks, by a kernel that is compiled first")

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        reading: Reading,
        args: FlexArgs,
        *,
        scale: float | None,
        enable_gqa: bool,
        empty_rows: str,
    ) -> Tensor:
        run = flex_attention if tracing(q) else _compiled(_by_code(structure(reading.mask)), q.device.type)
        out = run(q, k, v, block_mask=args.block_mask, scale=scale, enable_gqa=enable_gqa)
        if empty_rows == "zero":  # flex's own answer
            return out
        return fill_empty_rows(out, dense_of(reading).any(-1, keepdim=True), v, empty_rows)

    def holder(self, step: Step) -> Holder:
        return _BlocksHolder(step)


def _by_code(part: Any) -> Any:
    """A structure with code in place of functions: a lambda written in a loop is a new function each time around."""
    return tuple(map(_by_code, part)) if isinstance(part, tuple) else getattr(part, "__code__", part)


@functools.lru_cache(maxsize=_WRAPPERS)
def _compiled(structure: tuple, device_type: str):
    """A compiled flex_attention for one structure of mask: uncompiled, flex materialises the scores, and says so.

    A wrapper serves one structure because Dynamo keeps eight graphs a code object and then runs eagerly; with fullgraph
    it raises instead. CPU compiles for static shapes: its code generator corrupts symbolic ones.
    """
    return torch.compile(
        flex_attention,
        fullgraph=True,
        dynamic=False if device_type == "cpu" else None,
        **isolated(256),
    )


class _BlocksHolder:
    """A BlockMask whose tables have full width, so that any step fits; the predicate itself reads the buffers."""

    def __init__(self, step: Step):
        mask, sizes, device = step.mask, step.sizes, step.device
        self.mask, self.sizes, self.device = mask, sizes, device
        self.replay = blocks_replay_of(mask, sizes, device, (_BLOCK_SIZE, _BLOCK_SIZE))
        n_q, n_kv = (-(-n // _BLOCK_SIZE) for n in (sizes.q_len, sizes.kv_len))
        lanes = (sizes.B, sizes.H)
        count, indices = (*lanes, n_q), (*lanes, n_q, n_kv)
        self.tables = [torch.zeros(s, dtype=torch.int32, device=device) for s in (count, indices, count, indices)]
        lengths, block_size = (sizes.q_len, sizes.kv_len), (_BLOCK_SIZE, _BLOCK_SIZE)
        no_q_blocks = (None,) * 4  # only a backward needs them
        block_mask = BlockMask(lengths, *self.tables, *no_q_blocks, BLOCK_SIZE=block_size, mask_mod=mask)  # pyright: ignore
        self.args = FlexArgs(block_mask, "a BlockMask whose full-width tables are rewritten in place each step")

    def buffers(self) -> list[Tensor]:
        return self.tables

    def lines(self) -> list[str]:
        how = "recorded once" if self.replay else "recorded at each step, since it holds a user's function"
        return [f"tables of {list(self.tables[1].shape)} blocks of {_BLOCK_SIZE}; outside a graph the mask is {how}"]

    def write_(self) -> None:
        # Not exact: static shapes and no look at values; a block called partial in doubt changes no result.
        if self.replay is None or tracing(self.tables[0]):
            found = classify_blocks(self.mask, *self.sizes, block_size=_BLOCK_SIZE, exact=False, device=self.device)
            full, partial = found.full, found.partial
        else:
            full, partial = cut_short(*self.replay.read(), self.sizes, (_BLOCK_SIZE, _BLOCK_SIZE))
        for tables, blocks in ((self.tables[:2], partial), (self.tables[2:], full)):
            for table, new in zip(tables, from_classes(blocks), strict=True):
                table.copy_(new)
