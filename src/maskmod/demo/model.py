"""A small decoder-only transformer: bytes, RoPE, grouped-query attention, RMSNorm.

The model knows nothing about masks, caches or backends. Each layer hands its queries, keys and values to ``attend``,
which decides where keys are kept, which of them a query meets, and in which kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmod.demo.text import VOCABULARY

__all__ = ["Attend", "Config", "Model"]

Attend: TypeAlias = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""``attend(layer, q, k, v) -> out``: q and out (B, q_heads, q_len, D), k and v (B, kv_heads, q_len, D), rotated."""


@dataclass(frozen=True)
class Config:
    """Sizes: about 400 000 parameters, which learn words in seconds on two cores."""

    layers: int = 2  # the fewest that can copy: find an earlier byte, then what followed it
    width: int = 128
    q_heads: int = 4
    kv_heads: int = 2
    hidden: int = 352  # of the gated feed-forward: 8/3 of the width, rounded up to a multiple of 32
    rope_base: float = 10_000.0

    @property
    def head_dim(self) -> int:
        return self.width // self.q_heads


class Model(nn.Module):
    """Bytes in, logits of the next byte out."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(VOCABULARY, config.width)
        nn.init.normal_(self.embed.weight, std=config.width**-0.5)
        self.layers = nn.ModuleList(Layer(config, number) for number in range(config.layers))
        self.norm = nn.RMSNorm(config.width)

    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Logits (B, q_len, VOCABULARY).

        Args:
            tokens: (B, q_len) int64.
            positions: (B, q_len) int64, each token's position in its own document or sequence.
        """
        rotation = rope(positions, self.config.head_dim, self.config.rope_base)
        x = self.embed(tokens)  # (B, q_len, width)
        for layer in self.layers:
            x = layer(x, rotation, attend)
        return F.linear(self.norm(x), self.embed.weight)


class Layer(nn.Module):
    """Attention, then a gated feed-forward (SwiGLU), each on a normalised copy added back."""

    def __init__(self, config: Config, number: int):
        super().__init__()
        self.number, self.config = number, config
        kv_width = config.kv_heads * config.head_dim
        self.attention_norm = nn.RMSNorm(config.width)
        self.to_q = nn.Linear(config.width, config.width, bias=False)
        self.to_k = nn.Linear(config.width, kv_width, bias=False)
        self.to_v = nn.Linear(config.width, kv_width, bias=False)
        self.to_out = nn.Linear(config.width, config.width, bias=False)
        self.feed_norm = nn.RMSNorm(config.width)
        self.gate = nn.Linear(config.width, config.hidden, bias=False)
        self.up = nn.Linear(config.width, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        B, q_len, _ = x.shape
        y = self.attention_norm(x)
        q, k, v = (
            project(y).view(B, q_len, -1, self.config.head_dim).transpose(1, 2)  # (B, heads, q_len, D)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        out = attend(self.number, rotate(q, rotation), rotate(k, rotation), v)
        x = x + self.to_out(out.transpose(1, 2).reshape(B, q_len, -1))
        y = self.feed_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def rope(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, 1, q_len, head_dim / 2) of rotary position embedding (RoFormer)."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[:, None, :, None] * base**-exponents
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Each pair (first half, second half) of the last axis turned by its position's angle."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
