"""What a layer's queries meet: keys of this call alone, or a static cache of every call so far.

The masks arrive lowered, so that a mask is read once for all layers. This module knows nothing about the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from maskmod import Mask
from maskmod.backends import Lowered
from maskmod.backends.eager import eager_attention
from maskmod.backends.flex import FlexArgs
from maskmod.demo.model import Attend, Config

__all__ = ["KERNELS", "KVCache", "cached", "cacheless", "undecided_blocks"]

KERNELS: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {"sdpa": F.scaled_dot_product_attention, "eager": eager_attention, "flex": flex_attention}
)
"""Whose arguments ``lower(mask, backend, ...)`` gives."""


class KVCache:
    """Keys and values of every layer at fixed addresses, (B, kv_heads, max_len, D) each."""

    def __init__(self, config: Config, B: int, max_len: int):
        shape = (B, config.kv_heads, max_len, config.head_dim)
        self.keys = [torch.zeros(shape) for _ in range(config.layers)]
        self.values = [torch.zeros(shape) for _ in range(config.layers)]

    def write_(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep this step's k and v, (B, kv_heads, q_len, D), in ``slots`` (q_len,); return the whole layer."""
        keys, values = self.keys[layer], self.values[layer]
        return keys.index_copy_(2, slots, k), values.index_copy_(2, slots, v)


def cacheless(backend: str, args: Lowered) -> Attend:
    """Queries meet the keys of their own call."""

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return KERNELS[backend](q, k, v, enable_gqa=True, **args.kwargs())

    return attend


def cached(cache: KVCache, slots: Tensor, backend: str, args: Lowered) -> Attend:
    """Keys and values go to ``slots`` (q_len,) of the cache; queries meet every slot, and the mask hides some."""

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = cache.write_(layer, slots, k, v)
        return KERNELS[backend](q, keys, values, enable_gqa=True, **args.kwargs())

    return attend


def undecided_blocks(mask: Mask, B: int, q_len: int, kv_len: int, *, block_size: int = 128) -> FlexArgs:
    """Flex's arguments for a mask whose tensors change from step to step: tables that stay right whatever they hold.

    Every block is listed as partial, so the kernel asks the predicate about every key. Nothing is skipped, which a
    cache of a few blocks does not miss. torch's ``create_block_mask`` inside a graph would do the same and decide; on
    CPU (2.13) its C++ does not compile where a length is no multiple of the block size.
    """
    q_blocks, kv_blocks = -(-q_len // block_size), -(-kv_len // block_size)
    counts = torch.full((B, 1, q_blocks), kv_blocks, dtype=torch.int32)
    indices = torch.arange(kv_blocks, dtype=torch.int32).repeat(B, 1, q_blocks, 1)
    blocks = BlockMask.from_kv_blocks(
        counts, indices, BLOCK_SIZE=block_size, mask_mod=mask, seq_lengths=(q_len, kv_len), compute_q_blocks=False
    )
    return FlexArgs(blocks, "every block partial: the predicate decides, key by key")
