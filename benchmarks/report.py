"""`make bench-report`: the headline figures of one bounded run, written to docs/benchmarks.md, its SVG, and dated JSON.

Each row is a pair measured in turns in one process on one thread, in milliseconds of CPU time (`time.process_time`),
which other load on the machine moves less than wall time; the fastest call of each is compared. The README's table is
written from the same.

    python -m benchmarks.report              # a few minutes
    python -m benchmarks.report --quick      # small sizes, nothing is written into docs
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask

from benchmarks.masks import documents_of
from maskmod import DecodePlan, attention, block_mask, causal, dense_mask, document, key_padding, sinks, sliding_window
from maskmod.caches import StaticCache

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- headline table, written by benchmarks/report.py -->", "<!-- end of headline table -->"


class Row(NamedTuple):
    """One pair: what was done, at what size, by whom, and milliseconds of CPU time."""

    group: str
    what: str
    n: int
    peer: str
    ours_ms: float
    peer_ms: float

    @property
    def times(self) -> float:
        return self.peer_ms / self.ours_ms


def cpu_ms(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """The fastest of several calls each, in turns, after one that warms up."""
    for call in calls.values():
        call()
    best = dict.fromkeys(calls, float("inf"))
    end = time.perf_counter() + seconds
    while True:
        for name, call in calls.items():
            start, count = time.process_time(), 0
            while not count or time.process_time() - start < 0.005:
                call()
                count += 1
            best[name] = min(best[name], (time.process_time() - start) * 1e3 / count)
        if time.perf_counter() > end:
            return best


def pair(group: str, what: str, n: int, peer: str, calls: dict[str, Callable[[], object]], seconds: float) -> Row:
    ours, theirs = cpu_ms(calls, seconds).values()
    row = Row(group, what, n, peer, ours, theirs)
    print(f"{group:10} {what:34} {n:>8}  {ours:10.3f}  {peer}: {theirs:10.3f}  x{row.times:.1f}", flush=True)
    return row


def mask_rows(lengths: list[int], seconds: float) -> list[Row]:
    """Block tables from an unmodified predicate."""
    rows = []
    compiled = torch.compile(create_block_mask)
    for n in lengths:
        ids = documents_of(n)
        predicates = {
            "causal": lambda b, h, q, k: q >= k,
            "causal, window of 1/8": lambda b, h, q, k, w=n // 8: (q >= k) & (q - k < w),
            "packed causal documents": lambda b, h, q, k, ids=ids: (ids[q] == ids[k]) & (q >= k),
        }
        for name, fn in predicates.items():
            torch._dynamo.reset()

            def ours(fn=fn, n=n):
                return block_mask(fn, 1, 1, n, n)

            def eager(fn=fn, n=n):
                return create_block_mask(fn, 1, 1, n, n, device="cpu")

            def by_inductor(fn=fn, n=n):
                return compiled(fn, 1, 1, n, n, device="cpu")

            rows.append(pair("masks", name, n, "create_block_mask, eager", {"o": ours, "p": eager}, seconds))
            rows.append(pair("masks", name, n, "create_block_mask, compiled", {"o": ours, "p": by_inductor}, seconds))
    return rows


def attention_rows(lengths: list[int], seconds: float) -> list[Row]:
    """Attention under a mask, nothing compiled: what `attention` takes against SDPA with its dense mask ready."""
    rows = []
    for n in lengths:
        ids = torch.arange(n) * 8 // n
        masks = {
            "causal, window 512": causal() & sliding_window(512),
            "causal, 8 documents": causal() & document(ids),
            "causal, window 512 and 4 sinks": causal() & (sliding_window(512) | sinks(4)),
        }
        for name, mask in masks.items():
            for grad in (False, True):
                q, k, v = (torch.randn(1, 4, n, 64, requires_grad=grad) for _ in range(3))
                dense = dense_mask(mask, 1, 1, n, n)

                def ours(q=q, k=k, v=v, mask=mask, grad=grad):
                    out = attention(q, k, v, mask)
                    return torch.autograd.grad(out.sum(), (q, k, v)) if grad else out

                def theirs(q=q, k=k, v=v, dense=dense, grad=grad):
                    out = F.scaled_dot_product_attention(q, k, v, attn_mask=dense)
                    return torch.autograd.grad(out.sum(), (q, k, v)) if grad else out

                what = f"{name}, {'with backward' if grad else 'forward'}"
                rows.append(pair("attention", what, n, "SDPA, dense mask ready", {"o": ours, "p": theirs}, seconds))
    return rows


def decode_rows(slots: int, seconds: float) -> list[Row]:
    """The mask of one decode step, 8 rows, padded, against what transformers builds for it."""
    if importlib.util.find_spec("transformers") is None:
        return []
    from transformers import masking_utils as hf

    valid = torch.ones(8, slots, dtype=torch.bool)
    valid[::2, :100] = False
    position = torch.full((8, 1), slots // 2)
    plan = DecodePlan(causal() & key_padding(valid), StaticCache(slots), 8, 1, 1, backend="sdpa")

    def theirs():
        return hf.sdpa_mask(8, 1, slots, q_offset=slots // 2, attention_mask=valid, allow_is_causal_skip=False)

    calls = {"o": lambda: plan.step_(position), "p": theirs}
    return [pair("decode", "mask of a padded step, 8 rows", slots, "transformers", calls, seconds)]


def model_rows(lengths: list[int], seconds: float) -> list[Row]:
    """A small Llama with random weights: whole forward passes, stock sdpa against `attn_implementation="maskmod"`."""
    if importlib.util.find_spec("transformers") is None:
        return []
    import transformers

    from maskmod.compat.transformers import register_attention

    register_attention()
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=256, intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1 << 17,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    rows = []
    for n in lengths:
        tokens = torch.randint(0, 64, (1, n))
        positions = (torch.arange(n) % 1024)[None]

        def forward(implementation: str, tokens=tokens, positions=positions):
            model.set_attn_implementation(implementation)
            with torch.no_grad():
                return model.model(tokens, position_ids=positions, use_cache=False)  # a cache ends the packing

        calls = {"o": lambda: forward("maskmod"), "p": lambda: forward("sdpa")}
        rows.append(pair("models", "Llama, packed documents of 1k, forward", n, "stock sdpa", calls, seconds))
    return rows


def machine() -> dict[str, str]:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in info if "model name" in line), platform.machine())
    return {
        "date": str(datetime.date.today()),
        "cpu": f"{cpu}, one thread of {os.cpu_count()} cores",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def table(rows: list[Row]) -> list[str]:
    lines = ["| what | tokens | maskmod, ms | peer, ms | times less |", "|---|---|---|---|---|"]
    for row in rows:
        peer, ours = f"{row.peer}: {row.peer_ms:.3g}", f"{row.ours_ms:.3g}"
        lines.append(f"| {row.group}: {row.what} | {row.n} | {ours} | {peer} | {row.times:.3g} |")
    return lines


def page(about: dict[str, str], rows: list[Row]) -> str:
    """docs/benchmarks.md: every row, those in which the peer wins named."""
    wins = [row for row in rows if row.times < 1]
    lines = [
        "# Benchmarks",
        "",
        f"Written by `make bench-report` on {about['date']}: {about['cpu']}, torch {about['torch']}, Python",
        f"{about['python']}. Milliseconds of CPU time of one thread, the fastest call of each, measured in turns in",
        "one process. No GPU has been measured yet; `make gpu` does that.",
        "",
        "![Block tables: time against length](benchmarks.svg)",
        "",
        *table(rows),
        "",
        "## Where the peer wins",
        "",
    ]
    lines += [f"- {row.what}, {row.n} tokens: {row.peer} takes {row.times:.2f} of our time." for row in wins]
    if not wins:
        lines.append("In none of these rows.")
    return "\n".join(lines) + "\n"


def plot(rows: list[Row], path: Path) -> None:
    """Block tables: CPU time against length, both axes logarithmic."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row.what for row in rows if row.group == "masks"))
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3.2), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        chosen = [row for row in rows if row.group == "masks" and row.what == name]
        lengths = sorted({row.n for row in chosen})
        axis.loglog(lengths, [min(r.ours_ms for r in chosen if r.n == n) for n in lengths], marker="o", label="maskmod")
        for peer in dict.fromkeys(row.peer for row in chosen):
            points = sorted((row.n, row.peer_ms) for row in chosen if row.peer == peer)
            axis.loglog(*zip(*points, strict=True), marker="s", label=peer)
        axis.set_title(name)
        axis.set_xlabel("tokens")
    axes[0][0].set_ylabel("ms of CPU time")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def write_readme(about: dict[str, str], rows: list[Row]) -> None:
    """The README's table: the longest row of each kind."""
    best = {(row.group, row.what, row.peer): row for row in sorted(rows, key=lambda row: row.n)}
    path = ROOT / "README.md"
    text = path.read_text()
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    said = f"CPU time of one thread: {about['cpu']}, {about['date']}, torch {about['torch']}."
    path.write_text(text[:begin] + "\n" + "\n".join([said, "", *table(list(best.values()))]) + "\n" + text[end:])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes; prints, writes nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    quick = options.quick
    rows = mask_rows([1024] if quick else [1024, 4096, 16384], 0.2 if quick else 1.0)
    rows += attention_rows([1024] if quick else [2048, 8192], 0.2 if quick else 2.0)
    rows += decode_rows(1024 if quick else 8192, 0.2 if quick else 1.0)
    rows += model_rows([1024] if quick else [8192], 0.2 if quick else 4.0)
    if quick:
        return
    about = machine()
    kept = ROOT / "docs" / "benchmarks.json"
    kept.write_text(json.dumps({"about": about, "rows": [row._asdict() for row in rows]}, indent=1) + "\n")
    (ROOT / "docs" / "benchmarks.md").write_text(page(about, rows))
    plot(rows, ROOT / "docs" / "benchmarks.svg")
    write_readme(about, rows)
    print(f"wrote {kept}, benchmarks.md, benchmarks.svg and the README's table")


if __name__ == "__main__":
    main()
