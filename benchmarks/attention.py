"""What attention under a mask takes beside what is visible, and whether estimates choose well.

python -m benchmarks.attention                     # the table at 8192 tokens, forward and backward
python -m benchmarks.attention --tokens 32768 --no-flex
python -m benchmarks.attention --cells             # 40 masks and sizes: the backend chosen against the best one
python -m benchmarks.attention --small --calls     # short lengths and single queries; a plan's own cost a call

Times are milliseconds of CPU time (`time.process_time`) of one thread unless `--threads` says otherwise, the least of
several turns, peers in turn within one run: read the ratios.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskmod import (
    Mask,
    attention,
    blockwise,
    causal,
    classify_tiles,
    dense_mask,
    document,
    plan,
    prefix,
    select_backend,
    sinks,
    sliding_window,
)

HEADS, SIZE = 4, 64


def masks(n: int) -> dict[str, Mask]:
    draw = torch.Generator().manual_seed(1)
    cuts = torch.randint(0, n, (7,), generator=draw).sort().values
    images = torch.where(torch.arange(n) % 700 < 130, torch.arange(n) // 700, -1)
    return {
        "window 512": causal() & sliding_window(512),
        "8 documents": causal() & document(torch.arange(n) // max(n // 8, 1)),
        "prefix 512": causal() | prefix(min(512, n)),
        "window 512 and 4 sinks": causal() & (sliding_window(512) | sinks(4)),
        "8 uneven documents": causal() & document(torch.searchsorted(cuts, torch.arange(n), right=True)),
        "images": causal() | blockwise(images),
        "8 documents both ways": document(torch.arange(n) // max(n // 8, 1)),
        "window 64": causal() & sliding_window(64),
    }


TABLE = ("window 512", "8 documents", "prefix 512", "window 512 and 4 sinks")


def cpu_times(functions: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Milliseconds of CPU time of each function, the least of `turns`, taken in turn after one call of each."""
    best = dict.fromkeys(functions, float("inf"))
    for function in functions.values():
        function()
    for _ in range(turns):
        for name, function in functions.items():
            calls, begin = 0, time.process_time()
            while not calls or time.process_time() - begin < 0.02:
                function()
                calls += 1
            best[name] = min(best[name], (time.process_time() - begin) * 1e3 / calls)
    return best


def inputs(n: int, q_len: int | None = None, *, grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, m, SIZE, generator=draw) for m in (q_len or n, n, n))
    return q.requires_grad_(grad), k.requires_grad_(grad), v.requires_grad_(grad)


def backward(attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(attend(q, k, v).sum(), (q, k, v))


def table_rows(n: int, turns: int, flex: bool) -> list[dict[str, Any]]:
    rows = []
    for name in TABLE:
        mask = masks(n)[name]
        density = classify_tiles(mask, 1, 1, n, n).density
        q, k, v = inputs(n)
        layer = plan(mask, 1, HEADS, n, n)
        functions: dict[str, Callable[[], object]] = {
            "unmasked": lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v),
            "attention": lambda q=q, k=k, v=v, m=mask: attention(q, k, v, m),
            "plan": lambda q=q, k=k, v=v, p=layer: p(q, k, v),
        }
        visible = dense_mask(mask, 1, 1, n, n) if n <= 16384 else None
        if visible is not None:
            functions["sdpa, dense ready"] = lambda q=q, k=k, v=v, m=visible: F.scaled_dot_product_attention(
                q, k, v, attn_mask=m
            )
        if flex:
            compiled = plan(mask, 1, HEADS, n, n, backend="flex", allow_compile=True)
            functions["flex"] = lambda q=q, k=k, v=v, p=compiled: p(q, k, v)
        times = cpu_times(functions, turns)
        ideal = times["unmasked"] * density
        row = {"mask": name, "tokens": n, "chosen": layer.backend, "ideal": ideal, **times}
        row |= {f"{who} / ideal": times[who] / ideal for who in ("attention", "plan", "flex") if who in times}
        if visible is not None:
            row["dense / attention"] = times["sdpa, dense ready"] / times["attention"]
            grads = inputs(n, grad=True)
            both = {
                "spans": backward(lambda q, k, v, m=mask: attention(q, k, v, m), *grads),
                "dense": backward(
                    lambda q, k, v, m=visible: F.scaled_dot_product_attention(q, k, v, attn_mask=m), *grads
                ),
            }
            trained = cpu_times(both, max(1, turns - 1))
            row["with backward, dense / attention"] = trained["dense"] / trained["spans"]
        rows.append(row)
        print(json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
    return rows


def cell_rows(turns: int) -> list[dict[str, Any]]:
    """The chosen backend against the fastest of those that bid, and each estimate against its measurement."""
    rows = []
    for n in (256, 512, 1024, 2048, 4096):
        for name, mask in masks(n).items():
            choice = select_backend(mask, 1, HEADS, n, n)
            q, k, v = inputs(n)
            functions: dict[str, Callable[[], object]] = {
                who: lambda q=q, k=k, v=v, m=mask, w=who: attention(q, k, v, m, backend=w)
                for who in ("sdpa", "spans", "varlen")
                if choice.cost.get(who, float("inf")) < float("inf")
            }
            functions["auto"] = lambda q=q, k=k, v=v, m=mask: attention(q, k, v, m)
            times = cpu_times(functions, turns)
            best = min(times, key=times.__getitem__)
            least = min(time for who, time in times.items() if who != "auto")
            row = {
                "mask": name,
                "tokens": n,
                "chosen": choice.backend,
                "best": best,
                "chosen / best": times[choice.backend] / least,
                "auto / best": times["auto"] / least,
                **{f"{who} estimate / measured": choice.cost[who] / times[who] for who in times if who != "auto"},
            }
            rows.append(row)
            print(json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
    worst = max(rows, key=lambda row: row["chosen / best"])
    print(f"worst of {len(rows)}: {worst['chosen / best']:.2f} times the best, {worst['mask']} at {worst['tokens']}")
    return rows


def small_rows(turns: int) -> list[dict[str, Any]]:
    """`attention` against SDPA with a dense mask built each time, at 512 tokens and below and for one query."""
    rows = []
    for n, q_len in ((64, 64), (128, 128), (256, 256), (512, 512), (512, 1), (4096, 1)):
        for name in TABLE:
            mask = masks(n)[name]
            q, k, v = inputs(n, q_len)

            def dense(q: Tensor = q, k: Tensor = k, v: Tensor = v, m: Mask = mask) -> Tensor:
                visible = dense_mask(m, 1, 1, q.shape[2], k.shape[2])
                return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)

            times = cpu_times({"dense": dense, "attention": lambda q=q, k=k, v=v, m=mask: attention(q, k, v, m)}, turns)
            rows.append(
                {"mask": name, "tokens": n, "queries": q_len, "ratio": times["attention"] / times["dense"], **times}
            )
            print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}), flush=True)
    return rows


def call_rows(turns: int) -> list[dict[str, Any]]:
    """What a plan's call takes above the kernel that it calls, in microseconds."""
    q = torch.randn(1, HEADS, 16, SIZE)
    layer = plan(causal() & sliding_window(5), 1, HEADS, 16, 16, backend="sdpa")
    visible = layer.args.attn_mask
    functions: dict[str, Callable[[], object]] = {
        "kernel": lambda: F.scaled_dot_product_attention(q, q, q, attn_mask=visible),
        "plan": lambda: layer(q, q, q),
    }
    times = cpu_times(functions, 10 * turns)
    row = {"backend": "sdpa", "microseconds a call above the kernel": (times["plan"] - times["kernel"]) * 1e3}
    print(json.dumps(row), flush=True)
    return [row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-flex", action="store_true", help="compile nothing")
    parser.add_argument("--cells", action="store_true")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--calls", action="store_true")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    results: dict[str, Any] = {"threads": chosen.threads, "torch": torch.__version__}
    if chosen.cells:
        results["cells"] = cell_rows(chosen.turns)
    if chosen.small:
        results["small"] = small_rows(chosen.turns)
    if chosen.calls:
        results["calls"] = call_rows(chosen.turns)
    if not (chosen.cells or chosen.small or chosen.calls):
        results["table"] = table_rows(chosen.tokens, chosen.turns, not chosen.no_flex)
    if chosen.out:
        chosen.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
