"""`python -m benchmarks`: print the tables, write JSON, a plot and, on request, profiler traces.

python -m benchmarks                      # everything; several minutes
python -m benchmarks --quick              # short lengths only
python -m benchmarks --only dense
python -m benchmarks --trace traces       # for TensorBoard's PyTorch plugin (extra "profile")
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask, create_mask

from benchmarks import transformers_masks
from benchmarks.masks import MASKS, documents_of
from benchmarks.pairs import alternate
from benchmarks.production import PRODUCTION
from benchmarks.ragged import graph_rows, ragged_rows
from benchmarks.serving import recompile_rows, step_rows
from maskmod import block_mask, classify_tiles, dense_mask

PEERS_UP_TO = 1 << 14  # they evaluate n * n tokens: 1 GiB of booleans at 32k
SECONDS = 10.0
Row = dict[str, Any]


def block_rows(lengths: list[int]) -> list[Row]:
    """`block_mask` against `create_block_mask`, eager and compiled."""
    rows = []
    compiled = torch.compile(create_block_mask)
    for n in lengths:
        for name, make in MASKS.items():
            mask = make(n)
            functions: dict[str, Callable[[], object]] = {"maskmod": lambda m=mask, n=n: block_mask(m, 1, 1, n, n)}
            if n <= PEERS_UP_TO:
                functions["eager"] = lambda m=mask, n=n: create_block_mask(m, 1, 1, n, n, device="cpu")
                torch._dynamo.reset()  # every mask its own graph, as in a program that uses one
                functions["compiled"] = lambda m=mask, n=n: compiled(m, 1, 1, n, n, device="cpu")
            failures: dict[str, str] = {}
            rows.append(_row("block_mask", name, n, alternate(functions, 7, SECONDS, failures)))
            rows[-1]["failed"] = failures
            _show(rows[-1])
    return rows


def dense_rows(lengths: list[int]) -> list[Row]:
    """`dense_mask` against transformers, torch's `create_mask`, and allocating and filling; compiled too."""
    from transformers import masking_utils as hf

    rows = []
    for n in lengths:
        ids = documents_of(n)
        peers = {
            "window": hf.sliding_window_causal_mask_function(n // 8),
            "documents": hf.and_masks(hf.packed_sequence_mask_function(ids[None]), hf.causal_mask_function),
        }
        for name, peer in peers.items():
            mask = MASKS[name](n)
            functions: dict[str, Callable[[], object]] = {
                "maskmod": lambda m=mask, n=n: dense_mask(m, 1, 1, n, n),
                "transformers": lambda p=peer, n=n: hf.sdpa_mask(1, n, n, mask_function=p, allow_is_causal_skip=False),
                "allocate and fill": lambda n=n: torch.empty(1, 1, n, n, dtype=torch.bool).fill_(True),
            }
            if n <= PEERS_UP_TO // 4:
                functions["create_mask"] = lambda m=mask, n=n: create_mask(m, 1, 1, n, n, device="cpu")
            rows.append(_row("dense_mask", name, n, alternate(functions, 7, SECONDS)))
            _show(rows[-1])
            torch._dynamo.reset()
            compiled = {who: torch.compile(functions[who], fullgraph=True) for who in ("maskmod", "transformers")}
            rows.append(_row("compiled", name, n, alternate(compiled, 7, SECONDS)))
            _show(rows[-1])
    return rows


def long_rows(lengths: list[int]) -> list[Row]:
    """Long sequences, where no peer fits: time; alone in a process, time, peak memory, growth from half the length."""
    rows = []
    for n in lengths:
        for name, make in MASKS.items():
            mask = make(n)
            functions: dict[str, Callable[[], object]] = {"tiles": lambda m=mask, n=n: classify_tiles(m, 1, 1, n, n)}
            if name not in ("causal", "prefix", "block diffusion") or n < 1 << 20:  # tables of a GiB: alone, below
                functions["block_mask"] = lambda m=mask, n=n: block_mask(m, 1, 1, n, n)
            row = _row("long", name, n, alternate(functions, 5, SECONDS))
            row["alone"] = _alone(name, n)
            half = next((r for r in rows if (r["mask"], r["n"]) == (name, n // 2)), None)
            if half is not None:
                row["growth"] = round(row["alone"]["ms"] / half["alone"]["ms"], 1)
            rows.append(row)
            _show(row)
    return rows


def production_rows() -> list[Row]:
    """`block_mask` against eager `create_block_mask` for the predicates of systems in production."""
    rows = []
    for make in PRODUCTION.values():
        name, mask, sizes = make()
        functions: dict[str, Callable[[], object]] = {
            "maskmod": lambda m=mask, s=sizes: block_mask(m, *s),
            "eager": lambda m=mask, s=sizes: create_block_mask(m, *s, device="cpu"),
        }
        rows.append(_row("production", name, sizes[2], alternate(functions, 3, SECONDS)))
        _show(rows[-1])
    return rows


def serving_rows() -> list[Row]:
    """A decode step's and a flat step's mask in place against peers, and the graphs that 256 steps take."""
    rows = []
    for row in (*step_rows(), *ragged_rows()):
        rows.append(_row(row["kind"], row["mask"], row["n"], row["ms"]))
        _show(rows[-1])
    for row in (*recompile_rows(), *graph_rows()):
        rows.append(row)
        print(f"{row['kind']:10} {row['n']:>8} {row['mask']:16} " + "  ".join(map(": ".join, row["graphs"].items())))
    return rows


def _alone(name: str, n: int) -> dict[str, float]:
    """`block_mask` once in a process of its own, after a short one: milliseconds, and MiB beyond what was held before,
    at its highest; Linux forgets the peak on request.
    """
    code = (
        "import torch, time\n"
        "from maskmod import block_mask\n"
        "from benchmarks.masks import MASKS\n"
        "status = lambda key: next(int(x.split()[1]) for x in open('/proc/self/status') if x.startswith(key))\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        f"block_mask(MASKS[{name!r}](8192), 1, 1, 8192, 8192); mask = MASKS[{name!r}]({n})\n"
        "open('/proc/self/clear_refs', 'w').write('5'); before = status('VmRSS'); begin = time.perf_counter()\n"
        f"held = block_mask(mask, 1, 1, {n}, {n})\n"
        "print(1000 * (time.perf_counter() - begin), (status('VmHWM') - before) / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ms, peak = map(float, done.stdout.split())
    return {"ms": round(ms, 1), "peak MiB": round(peak, 1)}


def _row(kind: str, name: str, n: int, timings: dict) -> Row:
    ours = next(iter(timings))
    ratios = {peer: round(t.median / timings[ours].median, 2) for peer, t in timings.items() if peer != ours}
    return {"kind": kind, "mask": name, "n": n, "ms": {k: t._asdict() for k, t in timings.items()}, "ratio": ratios}


def _show(row: Row) -> None:
    ms = "  ".join(
        f"{name} {t['median']:.2f} ({t['least']:.2f}-{t['most']:.2f}, first {t['first']:.1f})"
        for name, t in row["ms"].items()
    )
    ratios = "  ".join(f"{peer} x{ratio}" for peer, ratio in row["ratio"].items())
    alone = f"  alone {row['alone']['ms']}, +{row['alone']['peak MiB']} MiB" if "alone" in row else ""
    alone += f", growth x{row['growth']}" if "growth" in row else ""
    failed = "".join(f"  {name} fails ({reason})" for name, reason in row.get("failed", {}).items())
    print(f"{row['kind']:10} {row['n']:>8} {row['mask']:16} {ms}{alone}   {ratios}{failed}", flush=True)


def plot(rows: list[Row], path: Path) -> None:
    """Cost against length, one panel a mask, both axes logarithmic."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names = [name for name in MASKS if any(r["mask"] == name for r in rows)]
    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), 3.2), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for row in rows:
            if row["mask"] == name and row["kind"] in ("block_mask", "long"):
                for who, t in row["ms"].items():
                    label = "maskmod" if who == "block_mask" else who
                    lines.setdefault(label, []).append((row["n"], t["median"]))
        for who, points in lines.items():
            axis.loglog(*zip(*sorted(points), strict=True), marker="o", label=who)
        axis.set_title(name)
        axis.set_xlabel("tokens")
    axes[0][0].set_ylabel("ms")
    if len(axes[0][0].lines):
        axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def trace(directory: Path) -> None:
    """Profiler traces that TensorBoard's PyTorch plugin opens."""
    from torch.profiler import ProfilerActivity, profile, tensorboard_trace_handler

    for name, make in MASKS.items():
        mask = make(1 << 14)
        block_mask(mask, 1, 1, 1 << 14, 1 << 14)
        handler = tensorboard_trace_handler(str(directory), worker_name=name.replace(" ", "-"))
        with profile(activities=[ProfilerActivity.CPU], on_trace_ready=handler):
            block_mask(mask, 1, 1, 1 << 14, 1 << 14)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--quick", action="store_true", help="short lengths only")
    parser.add_argument("--only", choices=("blocks", "dense", "production", "transformers", "long", "serving"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--trace", type=Path, metavar="DIR")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.trace is not None:
        trace(options.trace)
        return
    rows: list[Row] = []
    if options.only in (None, "blocks"):
        rows += block_rows([1024, 4096] if options.quick else [1024, 4096, 16384, 131072])
    if options.only in (None, "dense"):
        rows += dense_rows([2048] if options.quick else [2048, 4096, 8192])
    if options.only in (None, "production"):
        rows += production_rows()
    if options.only in (None, "transformers"):
        rows += transformers_masks.time_rows() + transformers_masks.time_rows("eager") + transformers_masks.graph_rows()
    if options.only in (None, "long") and not options.quick:
        rows += long_rows([1 << 17, 1 << 18, 1 << 19, 1 << 20])
    if options.only in (None, "serving"):
        rows += serving_rows()
    options.out.mkdir(parents=True, exist_ok=True)
    about = {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "peak of this process, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    (options.out / "results.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1))
    if any(row["kind"] in ("block_mask", "long") for row in rows):
        plot(rows, options.out / "cost.png")
    print(f"wrote {options.out}/results.json and {options.out}/cost.png")


if __name__ == "__main__":
    main()
