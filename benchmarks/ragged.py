"""A flat step of many requests: the plan's mask against transformers' and vLLM's, eager and compiled, and recompiles.

16 requests, 256 tokens, 8192 keys: ten decode, six are in chunks of their prompts. transformers' continuous batching
loops over requests into a bias that was reset before; vLLM's flex backend hands a predicate over its pages to
`create_block_mask` (transcribed here as a predicate: its own builder needs vLLM).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from benchmarks.pairs import Timing, alternate
from maskmod import RaggedPlan, causal
from maskmod.caches import Gathered, Paged
from maskmod.testing import count_graphs

__all__ = ["graph_rows", "ragged_rows"]

REQUESTS, TOKENS, KEYS, PAGE, STEPS = 16, 256, 8192, 16, 256
REPEATS, SECONDS = 100, 20.0


def _step(number: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """``query_start_loc``, ``seq_lens``, ``block_table`` of a mixed step."""
    generator = torch.Generator().manual_seed(number)
    counts = torch.tensor([1] * 10 + [41] * 6)
    counts = counts[torch.randperm(REQUESTS, generator=generator)]
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    lengths = torch.full((REQUESTS,), KEYS // REQUESTS)
    return starts, lengths, torch.randperm(KEYS // PAGE, generator=generator).view(REQUESTS, -1)


def _transformers(starts: Tensor, lengths: Tensor) -> Callable[[], Tensor]:
    from transformers.generation.continuous_batching.utils import build_attention_mask

    bias = torch.empty(1, 1, TOKENS, KEYS)
    least = torch.finfo(bias.dtype).min
    cu_q, cu_k = starts.tolist(), [0, *lengths.cumsum(0).tolist()]

    def build() -> Tensor:
        bias.fill_(least)  # as its inputs are reset before each step
        build_attention_mask(bias, cu_q, cu_k)
        return bias

    return build


def _vllm(starts: Tensor, lengths: Tensor, table: Tensor) -> Callable[[], Tensor]:
    """The predicate of vLLM's flex backend over physical slots, causal, and its tables made for each step."""

    def build() -> Tensor:
        request_of = torch.repeat_interleave(torch.arange(REQUESTS), starts.diff(), output_size=TOKENS)
        logical = torch.full((REQUESTS, KEYS // PAGE), -1)
        logical.scatter_(1, table, torch.arange(table.shape[1]).expand_as(table))
        ends = starts[1:]

        def visible(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            request = request_of[q_idx]
            block = logical[request, kv_idx // PAGE]
            position = block * PAGE + kv_idx % PAGE
            query = q_idx - ends[request] + lengths[request]
            return (block >= 0) & (position >= 0) & (position < lengths[request]) & (query >= position)

        return create_block_mask(visible, None, None, TOKENS, KEYS, device="cpu").kv_num_blocks

    return build


def ragged_rows() -> list[dict[str, Any]]:
    """Milliseconds of one mixed step's mask, for (kind, peers)."""
    starts, lengths, table = _step()
    sdpa = RaggedPlan(causal(), Gathered(KEYS), TOKENS, REQUESTS, 1, backend="sdpa")
    flex = RaggedPlan(causal(), Paged(KEYS // PAGE, PAGE), TOKENS, REQUESTS, 1, backend="flex")
    flash = RaggedPlan(causal(), Paged(KEYS // PAGE, PAGE), TOKENS, REQUESTS, 1, backend="flash")
    theirs, vllm = _transformers(starts, lengths), _vllm(starts, lengths, table)
    args: Any = sdpa.step_(starts, lengths)
    assert torch.equal(args.attn_mask[:, :, :TOKENS], theirs() == 0)
    blocks: Any = flex.step_(starts, lengths, table)
    assert torch.equal((blocks.block_mask.kv_num_blocks + blocks.block_mask.full_kv_num_blocks), vllm())
    plans = {"sdpa": sdpa, "flex": flex, "flash": flash}
    compiled = {name: torch.compile(plan.step_, fullgraph=True) for name, plan in plans.items()}
    vllm_compiled = torch.compile(vllm)
    pairs: dict[str, dict[str, Callable[[], object]]] = {
        "eager": {
            "plan, sdpa, gathered": lambda: sdpa.step_(starts, lengths),
            "plan, flash, pages": lambda: flash.step_(starts, lengths, table),
            "transformers": theirs,
        },
        "compiled": {
            "plan, sdpa, gathered": lambda: compiled["sdpa"](starts, lengths),
            "plan, flash, pages": lambda: compiled["flash"](starts, lengths, table),
            "transformers, which is a loop": theirs,
        },
        "blocks, eager": {"plan, flex, pages": lambda: flex.step_(starts, lengths, table), "vLLM's predicate": vllm},
        "blocks, compiled": {
            "plan, flex, pages": lambda: compiled["flex"](starts, lengths, table),
            "vLLM's predicate": vllm_compiled,
        },
    }
    return [{"kind": "flat step", "mask": name, "n": KEYS, "ms": _timed(pair)} for name, pair in pairs.items()]


def graph_rows() -> list[dict[str, Any]]:
    """Graphs over 256 mixed steps, each of other requests."""
    plan = RaggedPlan(causal(), Gathered(KEYS), TOKENS, REQUESTS, 1, backend="sdpa")

    def step(starts: Tensor, lengths: Tensor) -> object:
        return plan.step_(starts, lengths).kwargs()["attn_mask"]

    calls = [_step(number)[:2] for number in range(STEPS)]
    report = count_graphs(step, calls)
    counts = f"{report.graphs} graphs, {len(report.eager_calls)} eager calls"
    return [{"kind": "recompiles", "mask": f"{STEPS} flat steps", "n": KEYS, "graphs": {"plan": counts}}]


def _timed(functions: dict[str, Callable[[], object]]) -> dict[str, Timing]:
    failures: dict[str, str] = {}
    with torch.no_grad():
        timings = alternate(functions, REPEATS, SECONDS, failures)
    for name, reason in failures.items():  # torch 2.13's compiled create_block_mask can be bad C++ on CPU
        print(f"{name}: {reason}, left out")
    return timings
