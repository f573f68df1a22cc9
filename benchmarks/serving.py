"""A decode step: the plan's mask against transformers', tables rewritten in place against rebuilt, and recompiles.

B = 8 rows, 8192 keys, left padding; one query. The mask of the step is what is measured, and, compiled into one graph
with the attention that reads it, how much of the step it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from benchmarks.pairs import Timing, alternate
from maskmod import DecodePlan, at_positions, causal, key_padding
from maskmod.caches import StaticCache
from maskmod.testing import count_graphs

__all__ = ["recompile_rows", "step_rows"]

B, H, D, KV_LEN, STEPS = 8, 8, 64, 8192, 256
REPEATS, SECONDS = 200, 20.0


def step_rows() -> list[dict[str, Any]]:
    """Milliseconds of one decode step's mask, for (kind, peers)."""
    valid = _valid()
    positions = torch.full((B, 1), KV_LEN // 2)
    plan = DecodePlan(causal() & key_padding(valid), StaticCache(KV_LEN), B, 1, 1, backend="sdpa")
    theirs = _transformers(valid, positions)
    ours_compiled = torch.compile(lambda position: plan.step_(position).kwargs()["attn_mask"], fullgraph=True)
    theirs_compiled = torch.compile(theirs, fullgraph=True)
    flex = DecodePlan(causal() & key_padding(valid), StaticCache(KV_LEN), B, 1, 1, backend="flex")
    step = at_positions(causal() & key_padding(valid), positions, 1)
    flex_compiled = torch.compile(lambda position: flex.step_(position).kwargs()["block_mask"].kv_num_blocks)

    def rebuild() -> Tensor:  # a plain function around the mask: torch takes no other object in a graph
        return create_block_mask(lambda b, h, q, kv: step(b, h, q, kv), B, 1, 1, KV_LEN, device="cpu").kv_num_blocks

    rebuild_compiled = torch.compile(rebuild)
    assert torch.equal(plan.step_(positions).kwargs()["attn_mask"], theirs(positions))
    pairs = {
        "eager": {"plan": lambda: plan.step_(positions), "transformers": lambda: theirs(positions)},
        "compiled": {"plan": lambda: ours_compiled(positions), "transformers": lambda: theirs_compiled(positions)},
        "flex eager": {
            "plan in place": lambda: flex.step_(positions),
            "create_block_mask": lambda: create_block_mask(step, B, 1, 1, KV_LEN, device="cpu"),  # pyright: ignore
        },
        "flex compiled": {"plan in place": lambda: flex_compiled(positions), "create_block_mask": rebuild_compiled},
        "with attention": _attention_steps(plan, theirs, positions),
    }
    return [{"kind": "decode step", "mask": name, "n": KV_LEN, "ms": _timed(pair)} for name, pair in pairs.items()]


def _attention_steps(plan: DecodePlan, theirs: Any, positions: Tensor) -> dict[str, Callable[[], Tensor]]:
    """One layer's attention in one compiled graph: with the step's mask made in it, and with a mask that is there."""
    q, k, v = torch.randn(B, H, 1, D), torch.randn(B, H, KV_LEN, D), torch.randn(B, H, KV_LEN, D)
    ready = theirs(positions).clone()

    def attend(mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    steps = {
        "plan": lambda position: attend(plan.step_(position).kwargs()["attn_mask"]),
        "transformers": lambda position: attend(theirs(position)),
        "no mask made": lambda position: attend(ready),
    }
    compiled = {name: torch.compile(step, fullgraph=True) for name, step in steps.items()}
    return {name: lambda step=step: step(positions) for name, step in compiled.items()}


def recompile_rows() -> list[dict[str, Any]]:
    """Graphs over 256 decode steps: positions in a tensor, as an int, and transformers' mask for its static cache."""
    valid = _valid()
    plan = DecodePlan(causal() & key_padding(valid), StaticCache(KV_LEN), B, 1, 1, backend="sdpa")
    theirs = _transformers(valid, torch.zeros(B, 1, dtype=torch.int64))

    def ours(position: Tensor) -> Tensor:
        return plan.step_(position).kwargs()["attn_mask"]

    def rebuilt(position: Tensor) -> object:
        mask = at_positions(causal() & key_padding(valid), position, 1)
        return create_block_mask(lambda b, h, q, kv: mask(b, h, q, kv), B, 1, 1, KV_LEN, device="cpu").kv_num_blocks

    calls = [(torch.full((B, 1), 64 + step),) for step in range(STEPS)]
    counts: dict[str, str] = {}
    for name, function in {"plan": ours, "transformers": theirs, "create_block_mask": rebuilt}.items():
        try:
            report = count_graphs(function, calls)
            counts[name] = f"{report.graphs} graphs, {len(report.eager_calls)} eager calls"
        except Exception as error:  # a peer that does not compile is a result
            counts[name] = f"does not compile: {type(error).__name__}"
    return [{"kind": "recompiles", "mask": f"{STEPS} steps", "n": KV_LEN, "graphs": counts}]


def _valid() -> Tensor:
    return torch.arange(KV_LEN) >= torch.arange(0, 100 * B, 100)[:, None]


def _timed(functions: dict[str, Any]) -> dict[str, Timing]:
    functions = {name: function for name, function in functions.items() if _runs(name, function)}
    with torch.no_grad():
        return alternate(functions, REPEATS, SECONDS)


def _runs(name: str, function: Any) -> bool:
    try:
        function()
    except Exception as error:  # torch 2.13's compiled create_block_mask, with this mask on CPU, is bad C++
        print(f"{name}: {type(error).__name__}, left out")
        return False
    return True


def _transformers(valid: Tensor, positions: Tensor) -> Any:
    """``create_causal_mask`` for a static cache that stands at these positions."""
    from transformers import LlamaConfig
    from transformers import StaticCache as TheirCache
    from transformers.masking_utils import create_causal_mask

    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, num_hidden_layers=1, intermediate_size=64, vocab_size=32
    )
    config._attn_implementation = "sdpa"
    cache = TheirCache(config=config, max_cache_len=KV_LEN)
    cache.early_initialization(B, 4, 16, torch.float32, torch.device("cpu"))
    prompt = torch.zeros(B, 4, int(positions[0, 0]), 16)
    cache.update(prompt, prompt, 0)  # the cache itself says where the query stands
    embeds, attention_mask = torch.zeros(B, 1, 64), valid.long()

    def step(position: Tensor) -> Any:
        return create_causal_mask(
            config=config,
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            past_key_values=cache,
            position_ids=position,
        )

    return step
