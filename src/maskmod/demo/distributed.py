"""``python -m maskmod demo distributed``: packed documents trained over several ranks, held against one process.

Every rank holds a part of each row of text and plans each step once; rank 0 also trains the same model alone. Started
by hand it spawns its own ranks; started by ``torchrun`` it takes the ranks it is given.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from maskmod import Mask, attention, causal, document
from maskmod.demo.model import Attend, Config, Model
from maskmod.demo.progress import progress
from maskmod.demo.text import VOCABULARY, documents, packed
from maskmod.distributed import (
    Balanced,
    ContextPlan,
    Contiguous,
    HeadTail,
    Layout,
    PerDocumentHeadTail,
    Striped,
    context_parallel_plan,
    load,
)
from maskmod.packing import position_ids_from_document_ids

__all__ = ["Figures", "run"]

SEED = 0
ROW_LEN = 1024  # tokens of a row, some six documents
ROWS = 2
STEPS = 12
BLOCK = 16  # short rows want small blocks: what a rank cannot see then shows
NEAR = 1e-9  # float64: what remains is the order of sums
TIMEOUT = timedelta(seconds=60)


@dataclass(frozen=True)
class LayoutFigures:
    """One layout on the first batch."""

    layout: str
    work_imbalance: float  # the largest number of visible pairs over the mean
    keys_fetched: int  # of other ranks, by all ranks, for one layer and row
    keys_of_all_gather: int


@dataclass(frozen=True)
class Figures:
    """What the demo found; `ok` decides its exit code."""

    torch: str
    ranks: int
    launcher: str
    steps: int
    row_len: int
    method: str
    layouts: list[LayoutFigures]
    losses: list[float]  # in nats a byte, of the ranks together
    loss_difference: float  # the largest to one process
    gradient_difference: float
    bytes_sent: int  # of keys and values, by all ranks, over all layers and steps, forward
    bytes_of_all_gather: int
    seconds: float

    @property
    def ok(self) -> bool:
        return self.loss_difference < NEAR and self.gradient_difference < NEAR

    def to_json(self) -> str:
        return json.dumps({"ok": self.ok, **asdict(self)}, indent=2)

    def table(self) -> Iterator[str]:
        """A line for each layout."""
        yield f"{'layout':<22}{'max/mean work':>14}{'keys fetched':>14}{'of all-gather':>15}"
        for row in self.layouts:
            share = row.keys_fetched / max(row.keys_of_all_gather, 1)
            yield f"{row.layout:<22}{row.work_imbalance:>14.4f}{row.keys_fetched:>14,}{share:>15.0%}"


def run(say: Callable[[str], None], ranks: int, steps: int = STEPS) -> Figures | None:
    """Train over ``ranks`` processes, or those that torchrun started; None on every rank but the first."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo", timeout=TIMEOUT)
        try:
            figures = _train(dist.get_rank(), dist.get_world_size(), "torchrun", say, steps)
            dist.barrier()
        finally:
            dist.destroy_process_group()
        return figures
    with tempfile.TemporaryDirectory() as folder:
        answer = os.path.join(folder, "figures.pt")
        torch.multiprocessing.spawn(_rank, (ranks, folder, answer, say, steps), nprocs=ranks)
        return torch.load(answer, weights_only=False)


def _rank(rank: int, ranks: int, folder: str, answer: str, say: Callable[[str], None], steps: int) -> None:
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=TIMEOUT)
    figures = _train(rank, ranks, "spawn", say, steps)
    if figures is not None:
        torch.save(figures, answer)
    dist.barrier()
    dist.destroy_process_group()


def _train(rank: int, ranks: int, launcher: str, say: Callable[[str], None], steps: int) -> Figures | None:
    torch.set_num_threads(1)
    start = time.perf_counter()
    say = say if rank == 0 else _silent
    mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("cp",))
    config, rows = Config(), packed(documents(), ROW_LEN, seed=SEED)
    model, alone = _model(config), _model(config)
    optimizers = [torch.optim.AdamW(each.parameters(), lr=3e-3) for each in (model, alone)]
    batches = torch.randperm(len(rows.tokens), generator=torch.Generator().manual_seed(SEED))[: STEPS * ROWS].view(
        -1, ROWS
    )
    layouts = _compared(rows.document_ids[batches[0]], ranks) if rank == 0 else []
    say(f"{ranks} gloo ranks ({launcher}); {steps} steps of {ROWS} rows of {ROW_LEN} bytes, packed, in float64.\n")

    losses, off, bytes_sent, bytes_of_all_gather, method = [], [0.0, 0.0], 0, 0, ""
    with progress("training over ranks", steps) if rank == 0 else _quiet() as advance:
        for batch in batches:
            tokens, ids = rows.tokens[batch], rows.document_ids[batch]
            mask = causal() & document(ids)
            plan = _plan(mask, ids, mesh, config)  # once a step; every layer calls it
            method = plan.method
            loss = _loss_of_part(model, tokens, ids, plan, rank)
            loss.backward()
            total = loss.detach().clone()
            dist.all_reduce(total)
            for weight in model.parameters():
                dist.all_reduce(weight.grad)
            if rank == 0:
                whole = _loss(alone, tokens, ids, torch.arange(ROW_LEN), _attend_alone(mask))
                whole.backward()
                off[0] = max(off[0], abs(float(total) - float(whole.detach())))
                off[1] = max(off[1], *map(_off, model.parameters(), alone.parameters()))
                optimizers[1].step()
                optimizers[1].zero_grad()
            optimizers[0].step()
            optimizers[0].zero_grad()
            moved = torch.tensor([plan.received, plan.gathered])
            dist.all_reduce(moved)
            row = config.layers * ROWS * config.kv_heads * config.head_dim * 2 * 8
            bytes_sent += int(moved[0]) * row
            bytes_of_all_gather += int(moved[1]) * row
            losses.append(float(total))
            advance(f"loss {losses[-1]:.2f}")
            say(f"  step {len(losses):>3}   loss {losses[-1]:.4f}")
    if rank:
        return None
    figures = Figures(
        torch=torch.__version__,
        ranks=ranks,
        launcher=launcher,
        steps=steps,
        row_len=ROW_LEN,
        method=method,
        layouts=layouts,
        losses=losses,
        loss_difference=off[0],
        gradient_difference=off[1],
        bytes_sent=bytes_sent,
        bytes_of_all_gather=bytes_of_all_gather,
        seconds=time.perf_counter() - start,
    )
    say("")
    for line in figures.table():
        say(f"  {line}")
    say(f"\nOne process differs by {off[0]:.1e} in the loss and {off[1]:.1e} in a gradient.")
    say(
        f"Keys and values sent: {bytes_sent / 2**20:.1f} MiB; a plain all-gather {bytes_of_all_gather / 2**20:.1f} MiB."
    )
    say(f"\n{'Passed' if figures.ok else 'FAILED'}, in {figures.seconds:.0f} seconds.")
    return figures


def _model(config: Config) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return Model(config).double()


def _plan(mask: Mask, ids: Tensor, mesh, config: Config) -> ContextPlan:
    layout = Balanced(mask, block=BLOCK, B=ROWS)
    return context_parallel_plan(
        mask,
        mesh=mesh,
        layout=layout,
        B=ROWS,
        H=config.q_heads,
        kv_heads=config.kv_heads,
        length=ids.shape[1],
        method="all_gather",
        block=BLOCK,
    )


def _loss_of_part(model: Model, tokens: Tensor, ids: Tensor, plan: ContextPlan, rank: int) -> Tensor:
    mine = plan.task.layout.positions(rank, len(plan.lengths), ids.shape[1])
    return _loss(model, tokens, ids, mine, lambda layer, q, k, v: plan(q, k, v))


def _loss(model: Model, tokens: Tensor, ids: Tensor, mine: Tensor, attend: Attend) -> Tensor:
    """This part's share of the mean loss of the batch: targets are the bytes that follow in the same document."""
    follows = F.pad(ids[:, 1:] == ids[:, :-1], (0, 1))
    targets = torch.where(follows, F.pad(tokens[:, 1:], (0, 1)), -100)
    logits = model(tokens[:, mine], position_ids_from_document_ids(ids)[:, mine], attend)
    loss = F.cross_entropy(logits.reshape(-1, VOCABULARY), targets[:, mine].reshape(-1), reduction="sum")
    return loss / follows.sum()


def _attend_alone(mask: Mask) -> Attend:
    return lambda layer, q, k, v: attention(q, k, v, mask, enable_gqa=True)


def _off(a: Tensor, b: Tensor) -> float:
    assert a.grad is not None
    assert b.grad is not None
    return float((a.grad - b.grad).abs().max())


def _compared(ids: Tensor, ranks: int) -> list[LayoutFigures]:
    mask = causal() & document(ids)
    balanced = Balanced(mask, block=BLOCK, B=ROWS)
    layouts: list[Layout] = [Contiguous(), Striped(), HeadTail(), PerDocumentHeadTail(ids), balanced]
    found = []
    for layout in layouts:
        figures = load(mask, layout, ranks, ROWS, length=ids.shape[1], block=BLOCK)
        gathered = sum(ids.shape[1] - own for own in figures.tokens)
        name = type(layout).__name__
        found.append(LayoutFigures(name, figures.imbalance, sum(figures.keys or ()), gathered))
    return found


class _quiet:
    """No progress bar: the ranks but the first."""

    def __enter__(self) -> Callable[[str], None]:
        return _silent

    def __exit__(self, *_: object) -> None: ...


def _silent(words: str) -> None: ...
