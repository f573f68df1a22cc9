"""The compile contract, cell by cell: mask x cache layout x backend x form of position, decoding 64 steps in one graph.

A cell compiles one function with ``fullgraph=True`` and runs it over 64 steps, with new tensors of the same shapes at
every step; it holds if that took one graph and the results are those of the oracle. Three ways to hand over the mask
(a `DecodePlan`; the mask rebuilt inside the graph; a new mask object as an argument) and two query lengths are dealt
out over the cells by lot. Prefill cells have no cache and a dynamic length.

``python -m compile_tests.matrix`` runs every cell and writes docs/compile_matrix.md; the tests run a pairwise cover.
"""

from __future__ import annotations

import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

import maskmod
from maskmod import DecodePlan, dense_mask, lower
from maskmod.backends.eager import eager_attention
from maskmod.caches import (
    CacheLayout,
    ChunkedCache,
    PagedCache,
    PrefixRingCache,
    RingCache,
    SlidingCache,
    StaticCache,
    on_cache,
)
from maskmod.masks.trees import ends_from_parents
from maskmod.testing import watch_graphs

B, H, D, LENGTH, STEPS = 2, 2, 16, 72, 64

KERNELS = {"sdpa": F.scaled_dot_product_attention, "eager": eager_attention, "flex": flex_attention}

LAYOUTS: dict[str, Callable[[], CacheLayout]] = {
    "static": lambda: StaticCache(LENGTH),
    "sliding": lambda: SlidingCache(8, 4),
    "ring": lambda: RingCache(8, 4),
    "prefix ring": lambda: PrefixRingCache(4, 8, 4),
    "chunked": lambda: ChunkedCache(8, 4),
    "paged": lambda: PagedCache(torch.tensor([[7, 0, 3, 5, 2], [7, 1, 4, 8, 6]]), 16, num_pages=9),
}


HOLDS: dict[str, Callable[[], maskmod.Mask]] = {
    "sliding": lambda: maskmod.sliding_window(8),
    "ring": lambda: maskmod.sliding_window(8),
    "prefix ring": lambda: maskmod.causal() & (maskmod.sliding_window(8) | maskmod.sinks(4)),
    "chunked": lambda: maskmod.causal() & maskmod.chunked(8),
}
"""What a cache that forgets can hold: a plan refuses a mask that shows more, so there masks are cut to it."""


class MaskCase(NamedTuple):
    """``build(*tensors(rng))`` is a mask; each step draws new tensors of the same shapes."""

    build: Callable[..., maskmod.Mask]
    tensors: Callable[[random.Random], tuple[Tensor, ...]] = lambda rng: ()


def _ints(shape: tuple[int, ...], low: int, high: int) -> Callable[[random.Random], tuple[Tensor, ...]]:
    def draw(rng: random.Random) -> tuple[Tensor, ...]:
        return (torch.randint(low, high, shape, generator=torch.Generator().manual_seed(rng.randrange(1 << 30))),)

    return draw


def _ids(rng: random.Random) -> tuple[Tensor, ...]:
    (steps,) = _ints((B, LENGTH), 0, 5)(rng)
    return ((steps == 0).cumsum(-1),)


def _valid(rng: random.Random) -> tuple[Tensor, ...]:
    (pads,) = _ints((B, 1), 0, 9)(rng)
    return (torch.arange(LENGTH) >= pads,)


def _tree(rng: random.Random) -> tuple[Tensor, ...]:
    return torch.tensor([[-1, *(rng.randrange(-1, i) for i in range(1, 4))] for _ in range(B)]), _ints((B,), 0, 60)(
        rng
    )[0]


def _dfs_tree(rng: random.Random) -> tuple[Tensor, ...]:
    rows = []
    for _ in range(B):
        parents, path = [-1], [-1, 0]  # a new node hangs on the last one, or on one of that one's ancestors
        for node in range(1, 4):
            path = path[: rng.randrange(1, len(path) + 1)]
            parents.append(path[-1])
            path.append(node)
        rows.append(parents)
    return ends_from_parents(torch.tensor(rows)), _ints((B,), 0, 60)(rng)[0]


def _multiples(n: Tensor) -> maskmod.Mask:
    return maskmod.causal() & (lambda b, h, q_idx, kv_idx: (q_idx - kv_idx) % n[b] == 0)


MASKS = {
    "full": MaskCase(maskmod.full),
    "causal": MaskCase(maskmod.causal),
    "sliding_window": MaskCase(lambda: maskmod.sliding_window(5)),
    "sliding_window, 0-d": MaskCase(maskmod.sliding_window, _ints((), 1, 9)),
    "window": MaskCase(lambda: maskmod.window(4, 1)),
    "chunked": MaskCase(lambda start: maskmod.causal() & maskmod.chunked(5, start=start), _ints((B,), 0, 5)),
    "prefix": MaskCase(lambda n: maskmod.causal() | maskmod.prefix(n), _ints((B,), 0, 9)),
    "sinks": MaskCase(lambda: maskmod.causal() & (maskmod.sliding_window(3) | maskmod.sinks(2))),
    "document": MaskCase(lambda ids: maskmod.causal() & maskmod.document(ids), _ids),
    "blockwise": MaskCase(lambda ids: maskmod.causal() | maskmod.blockwise(ids), _ints((B, LENGTH), -1, 2)),
    "key_padding, table": MaskCase(lambda valid: maskmod.causal() & maskmod.key_padding(valid), _valid),
    "key_padding, lengths": MaskCase(maskmod.key_padding, _ints((B,), 1, LENGTH)),
    "not, xor": MaskCase(lambda: (maskmod.causal() ^ maskmod.sliding_window(3)) ^ True),
    "where": MaskCase(
        lambda n: maskmod.where(lambda b, h, q_idx, kv_idx: h < n, maskmod.causal(), maskmod.full()), _ints((), 0, 3)
    ),
    "per_head": MaskCase(lambda: maskmod.per_head([maskmod.causal(), maskmod.causal() & maskmod.sliding_window(3)])),
    "tree": MaskCase(lambda parents, at: maskmod.prefix(at) | maskmod.tree(parents, start=at), _tree),
    "dfs_tree": MaskCase(lambda ends, at: maskmod.prefix(at) | maskmod.dfs_tree(ends, start=at), _dfs_tree),
    "lambda": MaskCase(_multiples, _ints((B,), 1, 4)),
}

FORMS: dict[str, Callable[[int], int | Tensor]] = {
    "int": lambda p: p,
    "0-d": torch.tensor,
    "(1,)": lambda p: torch.tensor([p]),
    "(B, 1)": lambda p: torch.tensor([[p], [p // 2]]),
}

WAYS = ("plan", "rebuilt", "argument")
Q_LENS = (1, 3)


class Cell(NamedTuple):
    """One cell; `way` and `q_len` are dealt out over the others."""

    mask: str
    layout: str
    backend: str
    form: str
    way: str
    q_len: int

    def __str__(self) -> str:
        return "-".join(map(str, self)).replace(" ", "")


def cells() -> list[Cell]:
    """Every mask, layout, backend and form. The forms of each meet every way and length, by lot: taken in turns they
    would follow the form and the backend.
    """
    rng, all_cells = random.Random(0), []
    for names in itertools.product(MASKS, LAYOUTS, KERNELS):
        ways = [*rng.sample(WAYS, len(WAYS)), rng.choice(WAYS)]
        q_lens = [*Q_LENS, *Q_LENS]
        rng.shuffle(ways)
        rng.shuffle(q_lens)
        all_cells += [Cell(*names, *rest) for rest in zip(FORMS, ways, q_lens, strict=True)]
    rng.shuffle(all_cells)
    return all_cells


def pairwise() -> list[Cell]:
    """Few cells that hold every pair of two factors' values: greedily the cell with most new pairs."""
    factors = (tuple(MASKS), tuple(LAYOUTS), tuple(KERNELS), tuple(FORMS), WAYS, Q_LENS)
    rng, missing, chosen = random.Random(0), set(), []
    for (i, a), (j, b) in itertools.combinations(enumerate(factors), 2):
        missing |= {(i, x, j, y) for x in a for y in b}
    while missing:
        candidates = []
        for _ in range(200):
            i, x, j, y = rng.choice(sorted(missing, key=str))
            values = [rng.choice(factor) for factor in factors]
            values[i], values[j] = x, y
            candidates.append(tuple(values))
        best = max(candidates, key=lambda values: (len(missing & set(_pairs(values))), -_cost(Cell(*values))))
        missing -= set(_pairs(best))
        chosen.append(Cell(*best))
    return chosen


def _cost(cell: Cell) -> int:
    """Seconds to trace, roughly: flex records the mask in the graph, and more so with symbolic ints."""
    return (4 if cell.backend == "flex" else 1) * (2 if cell.form == "int" else 1)


def _pairs(values: tuple) -> Iterator[tuple]:
    for (i, x), (j, y) in itertools.combinations(enumerate(values), 2):
        yield i, x, j, y


def run(cell: Cell, steps: int = STEPS) -> None:
    """Decode; raises where a cell does not hold."""
    layout, (wide, draw), kernel = LAYOUTS[cell.layout](), MASKS[cell.mask], KERNELS[cell.backend]

    def build(*tensors: Tensor) -> maskmod.Mask:
        return HOLDS[cell.layout]() & wide(*tensors) if cell.layout in HOLDS else wide(*tensors)

    rng, q_len, sizes = random.Random(str(cell)), cell.q_len, (B, H, cell.q_len, layout.kv_len)
    held = draw(rng)
    plan = DecodePlan(build(*held), layout, B, H, q_len, backend=cell.backend)

    def with_plan(q: Tensor, k: Tensor, v: Tensor, position: int | Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
        return kernel(q, k, v, **plan.step_(position).kwargs())

    def with_mask(q: Tensor, k: Tensor, v: Tensor, position: int | Tensor, mask: maskmod.Mask) -> Tensor:
        return kernel(q, k, v, **lower(on_cache(mask, layout, position, q_len), cell.backend, *sizes).kwargs())

    def rebuilt(q: Tensor, k: Tensor, v: Tensor, position: int | Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
        return with_mask(q, k, v, position, build(*tensors))

    function = {"plan": with_plan, "rebuilt": rebuilt, "argument": with_mask}[cell.way]
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="eager", fullgraph=True, dynamic=True if cell.form == "int" else None)
    q, k, v = (torch.randn(B, H, n, D, generator=torch.Generator().manual_seed(n)) for n in (q_len, *sizes[3:] * 2))
    with watch_graphs() as report, torch.no_grad():
        for step in range(2, 2 + steps):  # Dynamo compiles the ints 0 and 1 as constants
            tensors = draw(rng)
            for old, new in zip(held, tensors, strict=True):
                old.copy_(new)
            mask = build(*tensors)
            position = FORMS[cell.form](step)
            out = compiled(q, k, v, position, mask if cell.way == "argument" else tensors)
            if step % 9 == 2:
                _compare(out, q, k, v, dense_mask(on_cache(mask, layout, position, q_len), *sizes, method="vmap"))
    assert report.graphs == 1, f"{report.graphs} graphs\n{report}"


def run_prefill(mask: str, backend: str) -> None:
    """Three lengths in one dynamic graph, the mask rebuilt each time."""
    (build, draw), kernel, rng = MASKS[mask], KERNELS[backend], random.Random(mask)

    def prefill(q: Tensor, k: Tensor, v: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
        return kernel(q, k, v, **lower(build(*tensors), backend, B, H, q.shape[2], k.shape[2]).kwargs())

    torch._dynamo.reset()
    compiled = torch.compile(prefill, backend="eager", fullgraph=True, dynamic=True)
    with watch_graphs() as report, torch.no_grad():
        for length in (17, 33, 64):
            tensors = draw(rng)
            q, k, v = (torch.randn(B, H, length, D) for _ in range(3))
            visible = dense_mask(build(*tensors), B, H, length, length, method="vmap")
            _compare(compiled(q, k, v, tensors), q, k, v, visible)
    assert report.graphs == 1, f"{report.graphs} graphs\n{report}"


def _compare(out: Tensor, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> None:
    """Rows that see something; a kernel may do as it likes with the others."""
    sees = visible.any(-1, keepdim=True)
    want = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=visible | ~sees)
    torch.testing.assert_close(torch.where(sees, out, 0.0), torch.where(sees, want, 0.0).float(), rtol=1e-5, atol=2e-6)


# ------------------------------------------------------------------------------------------------------- the page


def _attempt(run_cell: Callable[..., None], *args: object) -> str:
    """Empty if the cell holds, else the reason, on one line."""
    try:
        run_cell(*args)
    except Exception as error:  # a failing cell is a result
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""


def _table(results: dict[tuple[str, str, str], list[str]], columns: list[str]) -> Iterator[str]:
    yield f"| mask | {' | '.join(f'{c} {b}' for c in columns for b in KERNELS)} |"
    yield f"|---|{'---|' * len(columns) * len(KERNELS)}"
    for mask in MASKS:
        counts = []
        for column, backend in itertools.product(columns, KERNELS):
            reasons = results.get((mask, column, backend), [])
            counts.append(f"{sum(not reason for reason in reasons)}/{len(reasons)}")
        yield f"| {mask} | {' | '.join(counts)} |"


def _about() -> Iterator[str]:
    yield f"A decode cell is one function under `torch.compile(fullgraph=True)` over {STEPS} steps, with new tensor"
    yield "contents at each, and results compared with the oracle; it holds with exactly one graph. An entry counts the"
    yield f"cells that hold, over the forms of position {', '.join(FORMS)}. The ways to hand over the mask"
    yield f"({', '.join(WAYS)}) and the query lengths {' and '.join(map(str, Q_LENS))} are dealt out over the cells. A"
    yield "prefill cell is one dynamic graph for three lengths. Graphs are traced, and run by torch's own kernels;"
    yield "compiled kernels are tested beside them."


def page(workers: int) -> str:
    """Run everything and write it down."""
    begin = time.perf_counter()
    decode, prefills = cells(), list(itertools.product(MASKS, KERNELS))
    results: dict[tuple[str, str, str], list[str]] = {}
    with torch.multiprocessing.get_context("spawn").Pool(
        workers, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        jobs = [(cell, pool.apply_async(_attempt, (run, cell))) for cell in decode]
        jobs += [((m, "prefill", b), pool.apply_async(_attempt, (run_prefill, m, b))) for m, b in prefills]
        failed = []
        for number, (cell, job) in enumerate(jobs, 1):
            reason = job.get()
            results.setdefault((cell[0], cell[1], cell[2]), []).append(reason)
            if reason:
                failed.append(f"- {cell if isinstance(cell, Cell) else '-'.join(cell)}: {reason}")
                print(failed[-1], flush=True)
            if number % 50 == 0:
                print(f"{number} of {len(jobs)} cells, {time.perf_counter() - begin:.0f} s", flush=True)
    held = len(jobs) - len(failed)
    return "\n".join(
        [
            "# The compile matrix",
            "",
            f"Written by `make matrix` with torch {torch.__version__}: {held} of {len(jobs)} cells hold, in "
            f"{(time.perf_counter() - begin) / 60:.0f} minutes.",
            "",
            *_about(),
            "",
            *_table(results, [*LAYOUTS, "prefill"]),
            "",
            *(["## Cells that do not hold", "", *failed, ""] if failed else []),
        ]
    )


if __name__ == "__main__":
    target = Path(__file__).parent.parent / "docs" / "compile_matrix.md"
    target.write_text(page(int(sys.argv[1]) if len(sys.argv) > 1 else 2))
    print(target)
