"""Everything that wants a GPU, in one command, under eight minutes, without a network: `make gpu`.

    python tools/gpu.py                 # on a machine with CUDA and any torch from 2.11
    python tools/gpu.py --dry-run       # the same parts, small, on a CPU: so that the first real run wastes nothing
    python tools/gpu.py --only blocks

Each part has a share of the time and fails alone. What was seen goes to `benchmarks/results/gpu.json` and `gpu.md`.
Times are the fastest of several runs, in milliseconds, with the device waited for; ratios are of one run on one device.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from maskmod import DecodePlan, attention, block_mask, causal, document, lower, sliding_window  # noqa: E402
from maskmod.caches import StaticCache  # noqa: E402

Rows = list[dict[str, Any]]
SECONDS = {"tests": 180, "blocks": 60, "attention": 90, "decode": 40, "varlen": 20, "model": 60}
MSLK_1M_MS = 4.15  # published for 16 selected blocks a row on another machine; no predicate is read there


class Bench:
    """The device, how long lengths may be, and a clock that waits for the device."""

    def __init__(self, dry: bool):
        self.dry, self.device = dry, "cpu" if dry else "cuda"
        self.dtype = torch.float32 if dry else torch.bfloat16

    def lengths(self, *real: int) -> list[int]:
        return [512, 1024] if self.dry else list(real)

    def ms(self, call: Callable[[], object], seconds: float = 1.0, most: int = 20) -> float:
        """The fastest of up to `most` calls within `seconds`, after two that warm up."""
        for _ in range(2):
            call()
        best, end = math.inf, time.perf_counter() + (0.05 if self.dry else seconds)
        for _ in range(most):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            best = min(best, time.perf_counter() - start)
            if time.perf_counter() > end:
                break
        return round(best * 1000, 4)

    def wait(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()

    def qkv(self, n: int, heads: int = 8, size: int = 64, grad: bool = False) -> list[torch.Tensor]:
        return [
            torch.randn(1, heads, n, size, device=self.device, dtype=self.dtype, requires_grad=grad) for _ in range(3)
        ]

    def masks(self, n: int) -> dict[str, Any]:
        ids = (torch.arange(n, device=self.device) * 8) // n
        return {
            "causal": causal(),
            "window 512": causal() & sliding_window(min(512, n // 4)),
            "8 documents": causal() & document(ids),
        }


def blocks(bench: Bench) -> Rows:
    """Block tables, ours against `create_block_mask`, eager and compiled."""
    rows: Rows = []
    for n in bench.lengths(8192, 65536, 1 << 20):
        for name, mask in bench.masks(n).items():
            if name == "causal" and n > 1 << 17:
                continue  # a table of 33 million full blocks: the format's own size
            row: dict[str, Any] = {"mask": name, "n": n}
            row["maskmod"] = bench.ms(
                lambda m=mask, n=n: block_mask(m, 1, 1, n, n, device=bench.device, q_blocks=False)
            )
            if n <= 65536:
                build = torch.compile(block_mask, fullgraph=True, dynamic=True)
                row["maskmod, compiled"] = bench.ms(partial(build, mask, 1, 1, n, n, device=bench.device))
                peer = torch.compile(create_block_mask)
                row["create_block_mask, compiled"] = bench.ms(partial(peer, mask, 1, 1, n, n, bench.device))
            if n <= 8192:
                row["create_block_mask"] = bench.ms(partial(create_block_mask, mask, 1, 1, n, n, bench.device))
            if n == 1 << 20:
                row["MSLK, as published"] = MSLK_1M_MS
            rows.append(row)
    return rows


def attended(bench: Bench) -> Rows:
    """Attention under a mask, forward and backward: what `attention` takes, flex, SDPA with a dense mask, no mask."""
    rows: Rows = []
    for n in bench.lengths(2048, 8192, 16384):
        for name, mask in bench.masks(n).items():
            q, k, v = bench.qkv(n, grad=not bench.dry)
            row: dict[str, Any] = {"mask": name, "n": n}
            dense = lower(mask, "sdpa", 1, 1, n, n, device=bench.device).kwargs()
            sdpa = F.scaled_dot_product_attention
            calls: dict[str, Callable[[], torch.Tensor]] = {
                "attention": partial(attention, q, k, v, mask),
                "SDPA, dense mask": partial(sdpa, q, k, v, **dense),
                "SDPA, causal flag": partial(sdpa, q, k, v, is_causal=True),
            }
            if not bench.dry:
                table = block_mask(mask, 1, 1, n, n, device=bench.device)
                calls["flex"] = partial(torch.compile(flex_attention), q, k, v, block_mask=table)
            for who, call in calls.items():
                row[f"{who}, forward"] = bench.ms(lambda c=call: c().detach(), 0.4)
                if not bench.dry:
                    row[f"{who}, backward too"] = bench.ms(lambda c=call: c().sum().backward(), 0.4)
            reference = attention(q, k, v, mask, backend="sdpa").float()
            error = max(
                float((call().float() - reference).abs().max())
                for who, call in calls.items()
                if who != "SDPA, causal flag"
            )
            rows.append(row | {"largest difference": round(error, 5)})
    return rows


def decode(bench: Bench) -> Rows:
    """A decode plan's step: eager, captured in a CUDA graph, under sync debug mode."""
    rows: Rows = []
    B, H, slots = 8, 8, bench.lengths(8192)[0]
    for backend in ("sdpa", "eager", "flex"):
        plan = DecodePlan(causal(), StaticCache(slots), B, H, 1, backend=backend, device=bench.device)
        position = torch.full((B, 1), 5, device=bench.device)
        row: dict[str, Any] = {"backend": backend, "slots": slots, "eager": bench.ms(partial(plan.step_, position))}
        if not bench.dry:
            torch.cuda.set_sync_debug_mode("error")  # a wait for the device raises
            try:
                plan.step_(position)
                row["syncs"] = 0
            finally:
                torch.cuda.set_sync_debug_mode("default")
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                plan.step_(position)
            row["CUDA graph"] = bench.ms(graph.replay)
            position.fill_(9)
            graph.replay()
            fresh = DecodePlan(causal(), StaticCache(slots), B, H, 1, backend=backend, device=bench.device)
            fresh.step_(9)
            row["replayed equals fresh"] = all(
                torch.equal(a, b) for a, b in zip(_tensors(plan.args), _tensors(fresh.args), strict=True)
            )
        rows.append(row)
    return rows


def _tensors(args: Any) -> list[torch.Tensor]:
    """What of a plan's arguments is data: of a block table's rows, the entries that count."""
    found = []
    for value in args.kwargs().values():
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif value is not None and hasattr(value, "kv_num_blocks"):
            for count, index in (
                (value.kv_num_blocks, value.kv_indices),
                (value.full_kv_num_blocks, value.full_kv_indices),
            ):
                used = torch.arange(index.shape[-1], device=index.device) < count[..., None]
                found += [count, torch.where(used, index, -1)]
    return found


def varlen(bench: Bench) -> Rows:
    """Packed documents as cumulative lengths: torch's own kernel on a GPU, segments by SDPA elsewhere."""
    n = bench.lengths(8192)[0]
    mask, (q, k, v) = bench.masks(n)["8 documents"], bench.qkv(n)
    row: dict[str, Any] = {"n": n, "varlen": bench.ms(lambda: attention(q, k, v, mask, backend="varlen"))}
    row["SDPA, dense mask"] = bench.ms(lambda: attention(q, k, v, mask, backend="sdpa"))
    difference = attention(q, k, v, mask, backend="varlen") - attention(q, k, v, mask, backend="sdpa")
    return [row | {"largest difference": round(float(difference.float().abs().max()), 5)}]


def model(bench: Bench) -> Rows:
    """The demo's transformer on packed rows: prefill and a training step, under each backend's mask."""
    from maskmod.demo.model import Config, Model
    from maskmod.packing import position_ids_from_document_ids

    rows: Rows = []
    net = Model(Config()).to(bench.device)
    for n in bench.lengths(4096, 16384):
        ids = ((torch.arange(n, device=bench.device) * 8) // n)[None]
        tokens, positions = torch.randint(0, 256, (1, n), device=bench.device), position_ids_from_document_ids(ids)
        row: dict[str, Any] = {"n": n}
        for backend in ("auto", "sdpa") if bench.dry else ("auto", "sdpa", "flex"):

            def attend(layer: int, q: Any, k: Any, v: Any, backend: str = backend, ids: Any = ids) -> Any:
                return attention(q, k, v, causal() & document(ids), backend=backend, enable_gqa=True)

            def step(attend: Any = attend, tokens: Any = tokens, positions: Any = positions) -> None:
                net(tokens, positions, attend).sum().backward()
                net.zero_grad(set_to_none=True)

            with torch.no_grad():
                row[f"{backend}, prefill"] = bench.ms(lambda a=attend, t=tokens, p=positions: net(t, p, a), 0.5)
            row[f"{backend}, training step"] = bench.ms(step, 0.5)
        rows.append(row)
    return rows


def tests(bench: Bench) -> Rows:
    """Every test that is marked for a GPU; without one, that they are collected."""
    chosen = ["--collect-only"] if bench.dry else []
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *chosen, "tests", "compile_tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS["tests"])
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return [{"exit": done.returncode, "summary": lines[-1] if lines else done.stderr[-300:], "failed": failed}]


PARTS: dict[str, Callable[[Bench], Rows]] = {
    "tests": tests,
    "blocks": blocks,
    "attention": attended,
    "decode": decode,
    "varlen": varlen,
    "model": model,
}


def report(about: dict[str, Any], found: dict[str, Any]) -> str:
    """The same as the JSON, to be read."""
    lines = [f"# GPU report, {about['date']}", "", ", ".join(f"{k} {v}" for k, v in about.items() if k != "date"), ""]
    for name, part in found.items():
        lines += [f"## {name} ({part['seconds']} s)", "", (PARTS[name].__doc__ or "").splitlines()[0], ""]
        if "error" in part:
            lines += ["```text", part["error"], "```", ""]
        for row in part.get("rows", []):
            lines.append("- " + ", ".join(f"{key}: {value}" for key, value in row.items()))
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tools/gpu.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="every part on a CPU, small")
    parser.add_argument("--only", choices=sorted(PARTS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        print("No CUDA device: nothing was run. `--dry-run` goes through every part on a CPU.", file=sys.stderr)
        return 2
    bench = Bench(options.dry_run)
    about = {
        "date": str(datetime.date.today()),
        "torch": torch.__version__,
        "device": "cpu (dry run)" if options.dry_run else torch.cuda.get_device_name(),
    }
    found: dict[str, Any] = {}
    for name, part in PARTS.items():
        if options.only not in (None, name):
            continue
        start = time.perf_counter()
        try:
            found[name] = {"rows": part(bench)}
        except Exception as error:
            found[name] = {"error": "".join(traceback.format_exception(error, limit=-3))}
        found[name]["seconds"] = round(time.perf_counter() - start, 1)
        over = " (over its share)" if found[name]["seconds"] > SECONDS[name] else ""
        print(f"{name}: {'failed' if 'error' in found[name] else 'done'}, {found[name]['seconds']} s{over}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu.json").write_text(json.dumps({"about": about, "parts": found}, indent=1))
    (options.out / "gpu.md").write_text(report(about, found))
    print(f"wrote {options.out / 'gpu.md'} and gpu.json")
    failed = [name for name, part in found.items() if "error" in part or any(row.get("exit") for row in part["rows"])]
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
