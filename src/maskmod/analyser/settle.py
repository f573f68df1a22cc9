"""A mask at given lengths, ready to be asked about blocks: may, must, and the tokens of a few tiles.

The one place where the analyser's answers meet token-by-token evaluation. What is not understood is evaluated by
vmap, in batches; it is slower, never wrong. Nothing here knows a block table.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from maskmod.analyser.expression import KV, Node, Q, evaluate
from maskmod.analyser.may import may
from maskmod.analyser.normal_form import normal
from maskmod.analyser.summaries import Blocks, Grid, Selection
from maskmod.oracle import vmap_at, vmap_of

if TYPE_CHECKING:
    from maskmod.analyser.reading import Reading

__all__ = ["Analysis", "TileList"]

TOKENS_AT_ONCE = 1 << 21  # tokens evaluated in one batch: bounds memory at a few tens of MB, whatever the mask
# Sampled queries, and as many keys, of a block: first its corners, then the centre and the corners' neighbours too.
WITNESSES = (2, 5)


class TileList(NamedTuple):
    """Tiles by their lane and their place, each (number of tiles,)."""

    b: Tensor
    h: Tensor
    q: Tensor
    kv: Tensor

    @property
    def count(self) -> int:
        return self.q.shape[0]

    def take(self, which: Tensor) -> TileList:
        """The tiles at these places, or where this mask is True."""
        if which.dtype == torch.bool:
            which = which.nonzero().squeeze(1)
        # A lane that is always 0 is one entry, expanded: not worth a gather.
        return TileList(*(x[:1].expand(which.shape[0]) if _is_one(x) else x.index_select(0, which) for x in self))


def _is_one(x: Tensor) -> bool:
    return x.shape[0] > 0 and x.stride(0) == 0


class Analysis:
    """What can be said of a mask that was read, in blocks of `block_size` = (queries, keys).

    `lanes` is (B|1, H|1): a batch or head index that the predicate does not read is looked at once.
    `looks` is that of `Blocks`.
    """

    def __init__(self, reading: Reading, block_size: tuple[int, int], looks: bool):
        self.mask, self.sizes, self.device = reading.mask, reading.sizes, reading.device
        self.traced, self.root, self.lanes = reading.traced, reading.root, reading.lanes[:2]
        self.block_size = block_size
        self.opened = 0  # tokens that were evaluated to settle whole blocks, samples of blocks left out
        self._whole: Tensor | None = None  # the dense mask, where nothing smaller can be evaluated
        if self.root is not None:
            self.blocks = Blocks(self.root.tape, block_size, looks=looks and not self.traced)
        self.counts = tuple(-(-n // s) for n, s in zip(self.sizes[2:], block_size, strict=True))

    def grid(self) -> tuple[Tensor, Tensor]:  # bool (B|1, H|1, n_q, n_kv) each
        """(must, may) for every block: certainly visible everywhere, possibly visible somewhere."""
        shape = (*self.lanes, *self.counts)
        if self.root is None:
            return torch.zeros(shape, dtype=torch.bool, device=self.device), torch.ones(
                shape, dtype=torch.bool, device=self.device
            )
        grid = Grid(self.blocks)
        return ~may(normal(self.root, False), grid), may(normal(self.root), grid)

    def may(self, tiles: TileList, ratio: int, sign: bool = True) -> Tensor:  # (n,)
        """Whether the mask (or its negation) may be True in each of these tiles of `ratio` x `ratio` blocks."""
        if self.root is None:
            return torch.ones_like(tiles.q, dtype=torch.bool)
        return may(normal(self.root, sign), Selection(self.blocks, ratio, *tiles))

    def tokens(self, tiles: TileList, q: Tensor, kv: Tensor) -> Tensor:  # (n, nq, nkv) bool
        """The mask at queries q (n, nq) and keys kv (n, nkv) of each tile."""
        if self.root is None:
            return self._lifted(tiles, q, kv)
        where = (tiles.b.view(-1, 1), tiles.h.view(-1, 1))

        def take(node: Node) -> Tensor:
            if node.is_position:
                return q[:, None, :, None] if node.axes == Q else kv[:, None, None, :]
            value = node.value
            b, h = (w if value.shape[d] > 1 else 0 for d, w in enumerate(where))
            if node.axes == Q:
                picked = value[b, h, q, 0]  # (n, nq, *shape)
                return picked.view(picked.shape[0], 1, picked.shape[1], 1, *node.shape)
            if node.axes == KV:
                picked = value[b, h, 0, kv]
                return picked.view(picked.shape[0], 1, 1, picked.shape[1], *node.shape)
            picked = value[b, h, 0, 0]
            return picked.reshape(-1, 1, 1, 1, *node.shape)

        out = evaluate(self.root, take)  # (n|1, 1, nq|1, nkv|1)
        return out.expand(q.shape[0], 1, q.shape[1], kv.shape[1]).squeeze(1)

    def _lifted(self, tiles: TileList, q: Tensor, kv: Tensor) -> Tensor:
        if self._whole is None:
            try:
                return vmap_at(self.mask, tiles.b, tiles.h, q, kv)
            except Exception:
                # Some predicates fit the whole alone (operations in place at lengths of 1); else the error is torch's.
                self._whole = vmap_of(self.mask, self.sizes, self.device)
        return self._whole[tiles.b.view(-1, 1, 1), tiles.h.view(-1, 1, 1), q.unsqueeze(2), kv.unsqueeze(1)]

    def at_once(self, tokens: int) -> int:
        """How many tiles of so many tokens are evaluated in one batch; a token may hold a row of a table."""
        widest = 1
        if self.root is not None:
            widest = max(math.prod(n.shape) for n in self.root.tape.nodes if n.axes == self.root.axes) or 1
        return max(1, TOKENS_AT_ONCE // (tokens * widest))

    def inside(self, tiles: TileList) -> tuple[Tensor, Tensor]:  # (n, block), (n, block)
        """The queries and the keys of each block, the last ones repeated where a block is cut short."""
        places = []
        for place, size, length in zip((tiles.q, tiles.kv), self.block_size, self.sizes[2:], strict=True):
            tokens = place.view(-1, 1) * size + torch.arange(size, device=self.device)
            places.append(tokens.clamp_(max=length - 1) if length % size else tokens)
        return places[0], places[1]

    def settle(self, tiles: TileList, most: int | None = None) -> tuple[Tensor, Tensor] | None:  # bool (n,), bool (n,)
        """(full, empty) exactly, for blocks that the intervals left open; None where that takes over `most` tokens.

        A few witnesses first: one visible and one hidden token prove a block partial. The rest is evaluated token by
        token in batches.
        """
        full = torch.zeros(tiles.count, dtype=torch.bool, device=self.device)
        empty = torch.zeros_like(full)
        if not tiles.count:
            return full, empty
        unsettled = torch.arange(tiles.count, device=self.device)
        if self.root is not None:
            for per_side in WITNESSES:
                parts = unsettled.split(self.at_once(per_side**2))
                proven = [self._witnessed(tiles.take(part), per_side) for part in parts]
                unsettled = unsettled[~torch.cat(proven)]
                if not unsettled.shape[0]:
                    break
        size = self.block_size[0] * self.block_size[1]
        if most is not None and unsettled.shape[0] * size > most:
            return None
        self.opened += unsettled.shape[0] * size
        for part in unsettled.split(self.at_once(size)):
            chosen = tiles.take(part)
            visible = self.tokens(chosen, *self.inside(chosen)).flatten(1)
            full[part], empty[part] = visible.all(1), ~visible.any(1)
        return full, empty

    def _witnessed(self, tiles: TileList, per_side: int) -> Tensor:  # bool (n,)
        """Whether sampled tokens, `per_side` x `per_side` of each block, show both a visible and a hidden one."""
        places = []
        for place, size, length in zip((tiles.q, tiles.kv), self.block_size, self.sizes[2:], strict=True):
            near = [0, size - 1, size // 2, min(1, size - 1), max(size - 2, 0)]
            offsets = torch.tensor(near[:per_side], device=self.device)
            tokens = place.view(-1, 1) * size + offsets
            places.append(tokens.clamp_(max=length - 1) if length % size else tokens)
        seen = self.tokens(tiles, *places).flatten(1).unbind(1)
        # Column by column: reducing short rows of bools is slower than all the rest here.
        differs = seen[1] ^ seen[0]
        for other in seen[2:]:
            differs = differs | (other ^ seen[0])
        return differs
