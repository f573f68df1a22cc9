"""Balance and traffic of sharded sequences: our layouts beside torch's load balancers, on three mixes of documents.

python -m benchmarks.distributed            # 131k and 1M tokens, 8, 16, 64 ranks
python -m benchmarks.distributed --quick    # 131k alone
python -m benchmarks.distributed --calculate  # 64, 256 and 1024 ranks, 1M to 16M tokens: by calculation, nothing runs

Work is the exact number of visible pairs of a rank's queries; its imbalance is the largest over the mean. Traffic is
keys of other ranks in whole blocks against what an all-gather brings. Times are CPU time of one thread, best of five.
torch's balancers refuse lengths that their rules do not divide; there the row says so.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor.experimental._context_parallel import _load_balancer as torch_lb

from maskmod import Mask, block_mask, causal, document, sliding_window
from maskmod.distributed import Balanced, Contiguous, HeadTail, Layout, PerDocumentHeadTail, Striped, layout_of
from maskmod.distributed.work import row_work

BLOCK = 128


def lengths_of(mix: str, length: int) -> list[int]:
    """Lengths of documents that fill a sequence, seeded."""
    rng, found = random.Random(0), []
    while sum(found) < length:
        if mix == "short":  # web text: most of a few hundred tokens
            size = int(rng.lognormvariate(6.2, 0.8)) + 16
        elif mix == "heavy":  # a heavy tail: a few documents hold most of the tokens
            size = int(rng.paretovariate(1.1) * 200)
        else:  # agents: short calls and a few long trajectories
            size = rng.choice([512] * 40 + [4096] * 6 + [32768, 65536])
        found.append(min(size, length - sum(found)))
    return found


def ids_of(lengths: list[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


def imbalance(layout: Layout, work: Tensor, world: int) -> float:
    parts = work[layout.order(world, work.shape[0])].split(list(layout.lengths(world, work.shape[0])))
    sums = [float(part.sum()) for part in parts]
    return max(sums) * world / sum(sums)


def fetched(layout: Layout, first: Tensor, last: Tensor, world: int) -> float:
    """Keys of other ranks between the first and the last that a block of queries sees, over an all-gather's."""
    length = first.shape[0]
    owner = torch.empty(length, dtype=torch.long)
    lengths = layout.lengths(world, length)
    order = layout.order(world, length)
    owner[order] = torch.repeat_interleave(torch.arange(world), torch.tensor(lengths))
    total = 0
    for rank, part in enumerate(order.split(list(lengths))):
        some = last[part] >= first[part]
        steps = torch.zeros(length + 1, dtype=torch.long)
        steps.index_add_(0, first[part][some], torch.ones(int(some.sum()), dtype=torch.long))
        steps.index_add_(0, last[part][some] + 1, -torch.ones(int(some.sum()), dtype=torch.long))
        needed = (steps.cumsum(0)[:-1] > 0) & (owner != rank)
        touched = needed.view(-1, BLOCK).any(1).repeat_interleave(BLOCK)
        total += int((touched & (owner != rank)).sum())
    return total / (length * (world - 1))


def layouts_of(mask: Mask, lengths: list[int], world: int) -> Iterator[tuple[str, Callable[[], Layout]]]:
    """Ours, then torch's, by name; made when called, since some refuse."""
    length, ids = sum(lengths), ids_of(lengths)
    yield "contiguous", Contiguous
    yield "striped", Striped
    yield "head-tail", HeadTail
    yield "per document", lambda: PerDocumentHeadTail(ids)
    yield "balanced", lambda: Balanced(mask, block=BLOCK)
    yield "balanced by work alone", lambda: Balanced(mask, block=BLOCK, locality=0)
    yield "torch head-tail", lambda: layout_of(torch_lb._HeadTailLoadBalancer(length, world, "cpu"))
    sizes = [_divisible(lengths, world)]
    yield "torch per document", lambda: layout_of(torch_lb._PerDocumentHeadTailLoadBalancer(sizes, world, "cpu"))
    yield "torch PTRR", lambda: layout_of(torch_lb._PTRRLoadBalancer(_blocks(mask, length), world))


def _blocks(mask: Mask, length: int) -> Any:
    """What PTRR reads; built by us, since evaluating every token takes minutes at these lengths."""
    return block_mask(mask, 1, 1, length, length, q_blocks=False)


def _divisible(lengths: list[int], world: int) -> list[int]:
    """The lengths as torch's rule wants them: rounded to multiples of 2 * world, the last takes the rest."""
    unit, total = 2 * world, sum(lengths)
    rounded = [max(unit, round(size / unit) * unit) for size in lengths]
    while sum(rounded) > total:
        rounded[-1] -= min(rounded[-1], sum(rounded) - total)
        if rounded[-1] == 0:
            rounded.pop()
    rounded[-1] += total - sum(rounded)
    return rounded


def rows(lengths: list[int], worlds: list[int]) -> list[dict[str, Any]]:
    found = []
    for length in lengths:
        for mix in ("short", "heavy", "agents"):
            sizes = lengths_of(mix, length)
            mask = causal() & document(ids_of(sizes))
            read = row_work(mask, None, None, length, length, hulls=True)
            assert read.first is not None
            assert read.last is not None
            about = {"tokens": length, "mix": mix, "documents": len(sizes)}
            for world in worlds:
                for name, make in layouts_of(mask, sizes, world):
                    row: dict[str, Any] = {**about, "ranks": world, "layout": name}
                    try:
                        layout, seconds = make(), []
                        for _ in range(5 if name.startswith("balanced") else 1):
                            start = time.process_time()
                            layout = make()
                            layout.lengths(world, length)
                            seconds.append(time.process_time() - start)
                        row |= {
                            "max/mean": round(imbalance(layout, read.work, world), 4),
                            "fetched/all-gather": round(fetched(layout, read.first, read.last, world), 4),
                            "ms": round(min(seconds) * 1e3, 1),
                        }
                    except (AssertionError, NotImplementedError) as refusal:
                        row["refuses"] = type(refusal).__name__
                    found.append(row)
                    print("  ".join(f"{value}" for value in row.values()), flush=True)
    return found


def several_masks(length: int, worlds: list[int]) -> list[dict[str, Any]]:
    """A model of one full layer for each five with a window: balanced by the weighted sum."""
    masks, found = [causal() & document(ids_of(lengths_of("heavy", length)))], []
    masks.append(masks[0] & sliding_window(1024))
    work = sum(w * row_work(m, None, None, length, length).work for w, m in zip((1, 5), masks, strict=True))
    assert isinstance(work, Tensor)
    for world in worlds:
        for name, layout in (("balanced by the sum", Balanced(masks, [1, 5])), ("head-tail", HeadTail())):
            row = {"tokens": length, "mix": "heavy, 1 full and 5 windows", "ranks": world, "layout": name}
            found.append({**row, "max/mean": round(imbalance(layout, work, world), 4)})
            print("  ".join(map(str, found[-1].values())), flush=True)
    return found


def calculated() -> list[dict[str, Any]]:
    """Balance at sizes that nobody ran here: counted from the masks, by the same code."""
    found = []
    for length in (1 << 20, 1 << 22, 1 << 24):
        mask = causal() & document(ids_of(lengths_of("heavy", length)))
        work = row_work(mask, None, None, length, length).work
        for world in (64, 256, 1024):
            for name, layout in (("head-tail", HeadTail()), ("balanced", Balanced(mask, block=BLOCK))):
                start = time.process_time()
                layout.lengths(world, length)
                row = {"by": "calculation", "tokens": length, "ranks": world, "layout": name}
                ms = round((time.process_time() - start) * 1e3)
                found.append({**row, "max/mean": round(imbalance(layout, work, world), 4), "ms": ms})
                print("  ".join(map(str, found[-1].values())), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distributed")
    parser.add_argument("--quick", action="store_true", help="131k tokens alone")
    parser.add_argument("--calculate", action="store_true", help="larger worlds and lengths, by calculation")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.calculate:
        found = calculated()
    else:
        lengths, worlds = [1 << 17] if options.quick else [1 << 17, 1 << 20], [8, 16, 64]
        found = rows(lengths, worlds) + several_masks(1 << 17, worlds)
    options.out.mkdir(parents=True, exist_ok=True)
    name = "distributed_calculated.json" if options.calculate else "distributed.json"
    about = {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    (options.out / name).write_text(json.dumps({"about": about, "rows": found}, indent=1))


if __name__ == "__main__":
    main()
