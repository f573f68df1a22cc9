"""Random calls of transformers' mask functions, each one written as the line that repeats it."""

from __future__ import annotations

import inspect
import random
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, LlamaConfig, StaticCache
from transformers.masking_utils import create_causal_mask

HEADS, HIDDEN = 2, 4
CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"
"""What the installed release calls the cache."""

FUNCTIONS = {
    "create_causal_mask": "full_attention",
    "create_sliding_window_causal_mask": "sliding_attention",
    "create_chunked_causal_mask": "chunked_attention",
    "create_bidirectional_mask": "full_attention",
    "create_bidirectional_sliding_window_mask": "sliding_attention",
}


class Call(NamedTuple):
    """One call of a ``create_*`` function; its repr is Python that makes it again."""

    function: str
    implementation: str = "sdpa"
    batch: int = 1
    past: int = 0
    q_len: int = 4
    cache: str | None = None  # "dynamic", "static", "lazy", "encoder-decoder"
    hybrid: bool = False
    local: int = 4  # the window, or the chunk
    padding: str | None = None  # "ones", "left", "right", "holes", "ints", "4d"
    positions: str | None = None  # "plain", "packed", "one row", "mixed"
    or_mask: str | None = None  # "prefix", "table"
    and_mask: str | None = None
    spans: bool = False
    skip: bool = True
    is_causal: bool = True
    layer_idx: int | None = None
    encoder: int | None = None  # keys of an encoder
    dtype: str = "float32"
    seed: int = 0

    @property
    def two_sided(self) -> bool:
        return "bidirectional" in self.function

    def config(self) -> Any:
        other = {"sliding_attention": "full_attention", "chunked_attention": "full_attention"}
        kind = FUNCTIONS[self.function]
        kinds = [other.get(kind, "sliding_attention"), kind, kind] if self.hybrid else [kind] * 3
        sizes = {"vocab_size": 8, "hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_key_value_heads": HEADS}
        local = {"sliding_window": self.local, "attention_chunk_size": self.local}
        layers: dict[str, Any] = {"num_hidden_layers": 3, "layer_types": kinds}
        config: Any = LlamaConfig(**sizes, **local, **layers)
        config.is_causal = self.is_causal
        config._attn_implementation_internal = self.implementation
        return config

    def filled_cache(self, config: Any) -> Any:
        if self.cache is None:
            return None
        if self.cache == "static":
            cache = StaticCache(config=config, max_cache_len=self.past + self.q_len + self.seed % 3)
        else:
            cache = DynamicCache() if self.cache == "lazy" else DynamicCache(config=config)
        if self.past:
            states = torch.zeros(self.batch, HEADS, self.past, HIDDEN // HEADS)
            for layer in range(3):
                cache.update(states, states, layer)
        return EncoderDecoderCache(cache, DynamicCache()) if self.cache == "encoder-decoder" else cache

    def arguments(self) -> dict[str, Any]:
        """Fresh arguments: caches and tensors are made anew for each of the two libraries."""
        generator = torch.Generator().manual_seed(self.seed)
        config = self.config()
        embeds = torch.zeros(self.batch, self.q_len, HIDDEN, dtype=getattr(torch, self.dtype))
        total = self.past + self.q_len if self.encoder is None or self.cache else self.encoder
        arguments: dict[str, Any] = {
            "config": config,
            "inputs_embeds": embeds,
            "attention_mask": self._attention_mask(total, generator),
            CACHE: self.filled_cache(config),
            "or_mask_function": _overlay(self.or_mask, self.batch, total, generator),
            "and_mask_function": _overlay(self.and_mask, self.batch, total, generator),
        }
        if self.two_sided:
            arguments["allow_is_bidirectional_skip"] = self.skip
            if self.encoder is not None:
                arguments["encoder_hidden_states"] = torch.zeros(self.batch, self.encoder, HIDDEN, dtype=embeds.dtype)
            return arguments
        arguments["allow_is_causal_skip"] = self.skip
        arguments["layer_idx"] = self.layer_idx
        arguments["position_ids"] = self._position_ids(generator)
        if self.spans:
            arguments["block_sequence_ids"] = torch.randint(-2, 3, (self.batch, total), generator=generator)
        return arguments

    def _attention_mask(self, total: int, generator: torch.Generator) -> Tensor | None:
        if self.padding is None:
            return None
        if self.padding == "4d":
            return torch.zeros(self.batch, 1, self.q_len, total)
        mask = torch.ones(self.batch, total, dtype=torch.bool)
        keys = torch.arange(total)
        if self.padding in ("left", "right"):
            pads = torch.randint(0, total + 1, (self.batch, 1), generator=generator)
            mask = keys >= pads if self.padding == "left" else keys < total - pads
        elif self.padding == "holes":
            mask = torch.rand(self.batch, total, generator=generator) < 0.7
        return mask.long() if self.seed % 2 else mask

    def _position_ids(self, generator: torch.Generator) -> Tensor | None:
        if self.positions is None:
            return None
        plain = torch.arange(self.past, self.past + self.q_len).expand(self.batch, -1)
        if self.positions == "plain":
            return plain
        if self.positions == "one row":
            return plain[:1] if self.seed % 2 else (plain[:1] - self.past) % 3
        begins = torch.rand(self.batch, self.q_len, generator=generator) < 0.3
        begins[:, 0] = True
        tokens = torch.arange(self.q_len)
        packed = tokens - torch.where(begins, tokens, 0).cummax(-1).values
        return (
            torch.where(torch.arange(self.batch)[:, None] == 0, plain, packed) if self.positions == "mixed" else packed
        )


def _overlay(name: str | None, batch: int, total: int, generator: torch.Generator) -> Any:
    table = torch.rand(batch, total + 64, generator=generator) < 0.6
    return {
        None: None,
        "prefix": lambda b, h, q_idx, kv_idx: kv_idx < 2,
        "table": lambda b, h, q_idx, kv_idx: table[b, kv_idx],
        "stripes": lambda b, h, q_idx, kv_idx: (q_idx + kv_idx) % 3 > 0,
    }[name]


def random_call(seed: int, implementation: str) -> Call:
    """The call that a seed stands for."""
    draw = random.Random(f"{implementation} {seed}")
    function = draw.choice([*FUNCTIONS, *list(FUNCTIONS)[:3]])
    two_sided = "bidirectional" in function
    cache = draw.choice([None, None, "dynamic", "static", "lazy", "encoder-decoder"])
    rare = lambda value, otherwise=None, odds=0.15: value if draw.random() < odds else otherwise  # noqa: E731
    return Call(
        function=function,
        implementation=implementation,
        batch=draw.choice([1, 1, 2, 3]),
        past=draw.choice([0, 0, 1, 3, 7]) if cache else 0,
        q_len=draw.choice([1, 1, 2, 5, 9]),
        cache=cache,
        hybrid=draw.random() < 0.4,
        local=draw.choice([1, 2, 3, 5, 8, 40]),
        padding=draw.choice([None, None, "ones", "left", "right", "holes", rare("4d")]),
        positions=None if two_sided else draw.choice([None, "plain", "packed", "one row", "mixed"]),
        or_mask=rare(draw.choice(["prefix", "table", "stripes"])),
        and_mask=rare(draw.choice(["prefix", "table", "stripes"])),
        spans=not two_sided and draw.random() < 0.15,
        skip=draw.random() < 0.8,
        is_causal=draw.random() < 0.9,
        layer_idx=None if two_sided else rare(draw.choice([0, 1, 2])),
        encoder=rare(draw.choice([1, 4, 6]), odds=0.4) if two_sided else None,
        dtype=draw.choice(["float32", "float32", "bfloat16", "float16"]),
        seed=seed,
    )
