"""`python -m benchmarks.transformers_models`: a model's forward pass and training step, by attention implementation.

Random weights, CPU time of one thread, every implementation in one process, one after another within each round, the
fastest round of each. ``attention`` is the time inside the attention function and the mask function, the rest of the
step is the model's own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

import maskmod.compat.transformers as compat

__all__ = ["rows"]

WINDOW, DOCUMENT = 512, 1024
SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 1 << 15,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "window": ("MistralConfig", {"sliding_window": WINDOW}),
    "gemma3": (
        "Gemma3TextConfig",
        {"sliding_window": WINDOW, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
    ),
}
BATCHES = ("packed", "plain", "padded")


def model(name: str) -> Any:
    import transformers

    kind, extra = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**SIZES, **extra)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def inputs(batch: str, n: int) -> dict[str, Tensor]:
    """Packed documents of 1024 tokens, one sequence, or two rows of which one is padded on the left by a quarter."""
    if batch == "padded":
        mask = torch.ones(2, n, dtype=torch.long)
        mask[1, : n // 4] = 0
        return {"input_ids": torch.randint(0, 512, (2, n)), "attention_mask": mask}
    ids: dict[str, Tensor] = {"input_ids": torch.randint(0, 512, (1, n))}
    return ids | ({"position_ids": torch.arange(n)[None] % DOCUMENT} if batch == "packed" else {})


class Clock:
    """CPU seconds spent inside the functions it wraps."""

    def __init__(self) -> None:
        self.spent = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent += time.process_time() - start

        return timed


def forward(net: Any, batch: dict[str, Tensor]) -> None:
    with torch.no_grad():
        net.model(**batch, use_cache=False)


def train(net: Any, batch: dict[str, Tensor]) -> None:
    net.zero_grad()
    net.model(**batch, use_cache=False).last_hidden_state.float().pow(2).mean().backward()


def rows(name: str, batch: str, n: int, step: str, implementations: list[str], rounds: int) -> dict[str, Any]:
    """``{implementation: (step ms, attention ms)}``; attention of a backward pass cannot be told apart, so 0 there."""
    from transformers import AttentionInterface, AttentionMaskInterface

    net, arguments = model(name), inputs(batch, n)
    run = forward if step == "forward" else train
    best: dict[str, tuple[float, float]] = {}
    tables = (AttentionInterface._global_mapping, AttentionMaskInterface._global_mapping)
    for _ in range(rounds + 1):
        for implementation in implementations:
            kind = "sdpa" if implementation == "install" else implementation
            with compat.install() if implementation == "install" else nullcontext():
                net.set_attn_implementation(kind)
                clock, before = Clock(), [table[kind] for table in tables]
                for table in tables:
                    table[kind] = clock.around(table[kind])
                try:
                    start = time.process_time()
                    run(net, arguments)
                    spent = (time.process_time() - start) * 1e3
                finally:
                    for table, function in zip(tables, before, strict=True):
                        table[kind] = function
            attention = clock.spent * 1e3
            old = best.get(implementation, (float("inf"), float("inf")))
            best[implementation] = (min(old[0], spent), min(old[1], attention))
    return best


def decode(name: str, n: int, implementations: list[str], steps: int = 24) -> dict[str, float]:
    """Milliseconds of a decode step after a prompt of n tokens, dynamic cache; the fastest of three runs."""
    import transformers

    net = model(name).eval()
    best: dict[str, float] = {}
    token = torch.zeros(1, 1, dtype=torch.long)
    for _ in range(3):
        for implementation in implementations:
            net.set_attn_implementation(implementation)
            cache = transformers.DynamicCache(config=net.config)
            states = torch.randn(1, 2, n, 64)
            for layer in range(SIZES["num_hidden_layers"]):
                cache.update(states, states, layer)
            with torch.no_grad():
                start = time.process_time()
                for _ in range(steps):
                    net(input_ids=token, past_key_values=cache)
                spent = (time.process_time() - start) * 1e3 / steps
            best[implementation] = min(best.get(implementation, spent), spent)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transformers_models")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--batches", nargs="+", default=list(BATCHES), choices=BATCHES)
    parser.add_argument("--steps", nargs="+", default=["forward", "train"], choices=("forward", "train"))
    parser.add_argument("--implementations", nargs="+", default=["sdpa", "install", "maskmod"])
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    compat.register_attention()
    for n in options.tokens:
        for name in options.models:
            for batch in options.batches:
                for step in options.steps:
                    found = rows(name, batch, n, step, options.implementations, options.rounds)
                    base = found["sdpa"]
                    told = ", ".join(
                        f"{who} {ms:.0f} (attention {attention:.0f}; x{base[0] / ms:.2f}, x{base[1] / attention:.2f})"
                        for who, (ms, attention) in found.items()
                    )
                    print(f"{n} {name} {batch} {step}: {told}", flush=True)
            steps = decode(name, n, [who for who in options.implementations if who != "install"])
            print(f"{n} {name} decode step: " + ", ".join(f"{who} {ms:.2f}" for who, ms in steps.items()), flush=True)


if __name__ == "__main__":
    main()
