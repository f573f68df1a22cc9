"""What a layer's queries meet: keys of this call alone, or a static cache of every call so far.

The masks arrive lowered, so that a mask is read once for all layers. This module knows nothing about the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from maskmod.backends.eager import eager_attention
from maskmod.backends.protocol import Lowered
from maskmod.demo.model import Attend, Config

__all__ = ["KERNELS", "KVCache", "cached", "cacheless"]

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
