"""Attention to blocks or tokens that were chosen by content: NSA, MoBA, DSA, VSA. The choice is a table.

Who chooses, an indexer or a router, is not known here; the table may be written anew in place at each step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskmod.algebra import Mask
from maskmod.algebra.lookup import check_size
from maskmod.errors import MaskShapeError, MaskTypeError
from maskmod.masks.packed import key_flags
from maskmod.masks.positional import causal, chunked
from maskmod.masks.sparse import block_layout

__all__ = ["Compressed", "dsa", "layout_from_indices", "moba", "nsa_compressed", "nsa_selected", "vsa"]


def nsa_selected(layout: Tensor, size: int) -> Mask:
    """The selected branch of native sparse attention: a query's own block and the blocks chosen for it, causally.

    At most ``size * (chosen + 1)`` keys. Its other branches are `nsa_compressed` and ``sliding_window(n)``, each an
    attention of its own.

    Args:
        layout: whether each query sees each block, bool or integers (q_len, blocks), (H, ...) or (B, H, ...); see
            `layout_from_indices`.
        size: tokens of a block.

    >>> chosen = torch.zeros(8, 4, dtype=torch.bool).index_fill(1, torch.tensor([0]), True)
    >>> [kv for kv in range(8) if nsa_selected(chosen, 2)(0, 0, 6, kv)]
    [0, 1, 6]
    """
    return causal() & (chunked(size) | block_layout(layout, (1, size)))


class Compressed(Mask):
    """See `nsa_compressed`."""

    size: int
    stride: int

    _name = "nsa_compressed"

    def __post_init__(self):
        check_size(self, self.size, unit="tokens")
        check_size(self, self.stride, unit="tokens")

    def __call__(self, b, h, q_idx, kv_idx):
        return kv_idx * self.stride + self.size - 1 < q_idx


def nsa_compressed(size: int, stride: int | None = None) -> Mask:
    """The compressed branch of native sparse attention: keys stand for blocks, seen once the whole block is past.

    Key k stands for tokens ``k * stride .. k * stride + size - 1``; query q sees about ``q // stride`` keys, none in
    the first block, where it has an empty row.

    Args:
        size: tokens that a key stands for.
        stride: tokens between one block and the next; None is ``size``, blocks end to end.

    >>> [kv for kv in range(4) if nsa_compressed(4)(0, 0, 9, kv)]
    [0, 1]
    """
    return Compressed(size, size if stride is None else stride)


def moba(layout: Tensor, size: int) -> Mask:
    """Mixture of block attention: a query's own block and the blocks that its router chose, causally.

    At most ``size * (chosen + 1)`` keys. The same mask as `nsa_selected`, whose queries share a choice by groups of
    heads.

    Args:
        layout: whether each query sees each block, bool or integers (q_len, blocks), (H, ...) or (B, H, ...).
        size: tokens of a block.

    >>> [kv for kv in range(8) if moba(torch.ones(8, 4, dtype=torch.bool), 2)(0, 0, 3, kv)]
    [0, 1, 2, 3]
    """
    return nsa_selected(layout, size)


def dsa(layout: Tensor) -> Mask:
    """DeepSeek sparse attention: the tokens that the indexer chose for each query, causally: at most top-k keys.

    Args:
        layout: whether each query sees each token, bool or integers (q_len, kv_len), or (B, 1, q_len, kv_len): the
            indexer chooses for all heads alike.

    >>> [kv for kv in range(4) if dsa(torch.tensor([[1, 0, 0, 1]] * 4))(0, 0, 2, kv)]
    [0]
    """
    return causal() & block_layout(layout, 1)


def vsa(layout: Tensor, tile: int, sizes: Tensor | None = None) -> Mask:
    """Video sparse attention: each tile of queries sees the tiles chosen for it, without the padding inside them.

    The sum of the chosen tiles' sizes (FastVideo; attention-gym's ``generate_vsa_mask_mod``, from indices).

    Args:
        layout: whether each tile sees each tile, bool or integers (tiles, tiles), (H, ...) or (B, H, ...).
        tile: places in a tile.
        sizes: tokens in each tile, integers (tiles,); None fills them all. Read once, when the mask is made.

    >>> chosen = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 1]])
    >>> [kv for kv in range(9) if vsa(chosen, 3, torch.tensor([3, 3, 2]))(0, 0, 0, kv)]
    [0, 1, 2, 6, 7]
    """
    tiles = block_layout(layout, tile)
    if sizes is None:
        return tiles
    if not isinstance(sizes, Tensor) or sizes.dim() != 1:
        raise MaskShapeError("vsa(layout, tile, sizes)", "sizes of another shape", "Pass integers of shape (tiles,).")
    return tiles & key_flags((torch.arange(tile, device=sizes.device) < sizes[:, None]).flatten())


def layout_from_indices(indices: Tensor, blocks: int) -> Tensor:
    """Top-k indices as a layout for `block_layout`: bool, ``blocks`` in place of the last axis. Negative is no choice.

    >>> layout_from_indices(torch.tensor([[0, 2], [1, -1]]), 3).int().tolist()
    [[1, 0, 1], [0, 1, 0]]
    """
    if not isinstance(indices, Tensor) or indices.is_floating_point() or indices.dtype == torch.bool:
        raise MaskTypeError("layout_from_indices(indices, blocks)", "no integer tensor", "Pass the indices of a top-k.")
    check_size("layout_from_indices(indices, blocks)", blocks, least=0, unit="blocks")
    chosen = torch.where(indices < 0, blocks, indices).long()  # one more block takes what is no choice
    layout = torch.zeros(*indices.shape[:-1], blocks + 1, dtype=torch.bool, device=indices.device)
    return layout.scatter(-1, chosen, True)[..., :blocks]
