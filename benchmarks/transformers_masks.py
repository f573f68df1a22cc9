"""`python -m benchmarks.transformers_masks`: a step's masks and their graphs, against transformers in the same run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import maskmod.compat.transformers as ours
from benchmarks.pairs import alternate
from maskmod.testing import count_graphs

__all__ = ["graph_rows", "time_rows"]

N, WINDOW = 4096, 1024
Row = dict[str, Any]


def config(implementation: str, **extra: Any) -> Any:
    from transformers import LlamaConfig

    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 2}
    made: Any = LlamaConfig(**sizes, **extra)
    made._attn_implementation_internal = implementation
    return made


def filled(made: Any, static: bool, seen: int) -> Any:
    from transformers import DynamicCache, StaticCache

    cache = StaticCache(config=made, max_cache_len=N) if static else DynamicCache(config=made)
    for layer in range(2):
        cache.update(torch.zeros(2, 4, seen, 8), torch.zeros(2, 4, seen, 8), layer)
    return cache


def padding(length: int) -> Tensor:
    mask = torch.ones(2, length, dtype=torch.long)
    mask[0, :7] = 0
    return mask


def calls(implementation: str) -> dict[str, tuple[str, tuple[Any, ...]]]:
    """Each mask by name: the function and its arguments, two rows; decode steps at 4000 of 4096 positions."""
    full, sliding = config(implementation), config(implementation, sliding_window=WINDOW)
    step, prompt, seen = torch.zeros(2, 1, 32), torch.zeros(2, N, 32), 4000
    documents = torch.cat([torch.arange(1000), torch.arange(2000), torch.arange(N - 3000)]).expand(2, -1)
    causal, window = "create_causal_mask", "create_sliding_window_causal_mask"
    return {
        "decode, static cache": (causal, (full, step, None, filled(full, True, seen))),
        "decode, static cache, padded": (causal, (full, step, padding(seen + 1), filled(full, True, seen))),
        "decode, dynamic cache, padded": (causal, (full, step, padding(seen + 1), filled(full, False, seen))),
        "decode, sliding cache, padded": (window, (sliding, step, padding(seen + 1), filled(sliding, False, seen))),
        "prefill, padded": (causal, (full, prompt, padding(N), None)),
        "prefill, sliding": (window, (sliding, prompt, None, None)),
        "prefill, sliding, padded": (window, (sliding, prompt, padding(N), None)),
        "prefill, packed": (causal, (full, prompt, None, None, documents)),
        "prefill, sliding, packed": (window, (sliding, prompt, None, None, documents)),
    }


def time_rows(implementation: str = "sdpa") -> list[Row]:
    """Eager calls. The ratio is transformers' time over maskmod's, of medians and of fastest runs."""
    from transformers import masking_utils as theirs

    rows = []
    for name, (function, arguments) in calls(implementation).items():
        often = 200 if name.startswith("decode") else 1
        functions: dict[str, Callable[[], object]] = {
            who: repeated(getattr(library, function), arguments, often)
            for who, library in (("maskmod", ours), ("transformers", theirs))
        }
        timings = alternate(functions, 15, 8.0)
        own, other = timings["maskmod"], timings["transformers"]
        us = {who: round(t.median * 1e3 / often, 1) for who, t in timings.items()}
        ratio = {"median": round(other.median / own.median, 2), "fastest": round(other.least / own.least, 2)}
        rows.append({"kind": "transformers", "mask": f"{implementation}: {name}", "n": N, "us": us, "ratio": ratio})
        print(
            f"{rows[-1]['mask']:38} {us['maskmod']:>10} us  transformers {us['transformers']:>10} us  "
            f"x{ratio['median']} (fastest x{ratio['fastest']})",
            flush=True,
        )
    return rows


def repeated(function: Callable[..., object], arguments: tuple[Any, ...], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            function(*arguments)

    return run


def graph_rows() -> list[Row]:
    """Graphs and breaks under `torch.compile` of eight decode steps and of one prefill with padding."""
    from transformers import masking_utils as theirs

    rows = []
    for implementation in ("sdpa", "eager", "flash_attention_2", "flex_attention"):
        made = config(implementation)
        for name, length, static in (("prefill", 16, False), ("decode, static cache", 1, True)):
            row: Row = {"kind": "graphs", "mask": f"{implementation}: {name}"}
            for who, library in (("maskmod", ours), ("transformers", theirs)):
                row[who] = _graphs(library, made, length, static)
            rows.append(row)
            print(f"{row['mask']:40} maskmod {row['maskmod']}, transformers {row['transformers']}", flush=True)
    return rows


def _graphs(library: Any, made: Any, length: int, static: bool) -> str:
    cache = filled(made, True, 8) if static else None
    embeds, mask = torch.zeros(2, length, 32), padding(64 if static else length)

    def step(mask: Tensor) -> object:
        created = library.create_causal_mask(made, embeds, mask, cache)
        return created if created is None or isinstance(created, Tensor) else created.kv_num_blocks

    try:
        report = count_graphs(step, [(mask.clone(),) for _ in range(8 if static else 1)])
    except Exception as error:  # a compiled call that fails has no count
        return f"fails: {type(error).__name__}"
    return f"{report.graphs} graphs, {len(report.breaks)} breaks"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transformers_masks")
    parser.add_argument("--only", choices=("time", "graphs"))
    parser.add_argument("--implementation", choices=("sdpa", "eager"), default="sdpa")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only != "graphs":
        time_rows(options.implementation)
    if options.only != "time":
        graph_rows()


if __name__ == "__main__":
    main()
