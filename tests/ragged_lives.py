"""Requests that come, grow, are cut back and leave, simulated slot by slot in plain Python.

The second oracle of flat serving. It shares no code with the library: pages are lists, a pool is a list of cells, and a
mask is a predicate on ints about one request.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import maskmod
from maskmod import (
    causal,
    chunked,
    document,
    full,
    key_padding,
    per_head,
    prefix,
    sinks,
    sliding_window,
    where,
    window,
)
from maskmod.trees import dfs_tree, tree

LENGTH = 40  # tokens of a request, at most
HEADS = 2


@dataclass
class Life:
    """One request, with what its mask says of it: drawn once, read through by predicates and by tables alike."""

    number: int
    rng: random.Random
    pages: list[int] = field(default_factory=list)
    held: int = 0  # tokens whose keys are in the cache
    count: int = 0  # tokens of this step

    def __post_init__(self):
        draw = self.rng
        self.pad = draw.randint(0, 4)
        self.few = draw.randint(0, 7)
        self.shift = draw.randint(0, 5)
        self.ids = [draw.randint(0, 3) for _ in range(LENGTH)]
        self.ids.sort()
        self.spans = [draw.choice([-1, -1, 0, 0, 1]) for _ in range(LENGTH)]
        self.shown = [draw.random() < 0.8 for _ in range(LENGTH)]
        self.parents = [-1 if i == 0 else draw.randint(-1, i - 1) for i in range(LENGTH)]
        self.depth_first, path = [-1], [0]  # a new node hangs on the last one or one above it, or is a root
        for node in range(1, LENGTH):
            keep = draw.randint(0, len(path))
            del path[keep:]
            self.depth_first.append(path[-1] if path else -1)
            path.append(node)

    @property
    def length(self) -> int:
        return self.held + self.count

    def above(self, parents: list[int], node: int) -> set[int]:
        """A node and those on its path from the root."""
        path = set()
        while node >= 0:
            path.add(node)
            node = parents[node]
        return path

    def first_behind(self, node: int) -> int:
        """One past the last node below ``node``, of the depth-first tree."""
        return max(i for i in range(LENGTH) if node in self.above(self.depth_first, i)) + 1


@dataclass
class Case:
    """A mask whose tables have a row for each request of a step, and what it says on ints of one request."""

    build: Callable[..., Any]
    says: Callable[[Life, int, int, int], bool]  # (request, h, q, kv)
    tables: tuple[Callable[[Life], Any], ...] = ()
    is_band: bool = False


def _in_tree(parents: str) -> Callable[[Life, int, int, int], bool]:
    def says(life: Life, h: int, q: int, kv: int) -> bool:
        if kv < life.held:
            return True
        return q >= life.held and kv - life.held in life.above(getattr(life, parents), q - life.held)

    return says


CASES = {
    "causal": Case(causal, lambda r, h, q, kv: kv <= q, is_band=True),
    "full": Case(full, lambda r, h, q, kv: True, is_band=True),
    "window": Case(lambda: causal() & sliding_window(4), lambda r, h, q, kv: 0 <= q - kv < 4, is_band=True),
    "two-sided": Case(lambda: window(2, 1), lambda r, h, q, kv: -2 <= kv - q <= 1, is_band=True),
    "window in a tensor": Case(lambda: sliding_window(torch.tensor(5)), lambda r, h, q, kv: 0 <= q - kv < 5),
    "sinks": Case(
        lambda: causal() & (sliding_window(3) | sinks(2)), lambda r, h, q, kv: kv <= q and (q - kv < 3 or kv < 2)
    ),
    "chunked": Case(
        lambda start: causal() & chunked(6, start=start),
        lambda r, h, q, kv: kv <= q and (q - r.shift) // 6 == (kv - r.shift) // 6,
        (lambda r: r.shift,),
    ),
    "prefix": Case(lambda n: causal() | prefix(n), lambda r, h, q, kv: kv <= q or kv < r.few, (lambda r: r.few,)),
    "documents": Case(
        lambda ids: causal() & document(ids),
        lambda r, h, q, kv: kv <= q and r.ids[q] == r.ids[kv],
        (lambda r: r.ids,),
    ),
    "image spans": Case(
        lambda ids: (causal() & sliding_window(5)) | maskmod.blockwise(ids),
        lambda r, h, q, kv: 0 <= q - kv < 5 or (r.spans[q] >= 0 and r.spans[q] == r.spans[kv]),
        (lambda r: r.spans,),
    ),
    "padded": Case(
        lambda valid: causal() & key_padding(valid), lambda r, h, q, kv: kv <= q and r.shown[kv], (lambda r: r.shown,)
    ),
    "lengths": Case(lambda n: key_padding(n), lambda r, h, q, kv: kv < r.few, (lambda r: r.few,)),
    "negated": Case(
        lambda: causal() & (sliding_window(3) ^ True), lambda r, h, q, kv: q - kv >= 3, is_band=True
    ),
    "either, not both": Case(
        lambda n: causal() ^ prefix(n), lambda r, h, q, kv: (kv <= q) != (kv < r.few), (lambda r: r.few,)
    ),
    "where": Case(
        lambda n: where(lambda b, h, q_idx, kv_idx: q_idx < n[b], full(), causal()),
        lambda r, h, q, kv: q < r.few or kv <= q,
        (lambda r: r.few,),
    ),
    "per head": Case(
        lambda: per_head([causal(), causal() & sliding_window(3)]),
        lambda r, h, q, kv: kv <= q and (h == 0 or q - kv < 3),
    ),
    "tree": Case(
        lambda parents, start: prefix(start) | tree(parents, depth=9, start=start),
        _in_tree("parents"),
        (lambda r: r.parents[:10], lambda r: r.held),
    ),
    "depth-first tree": Case(
        lambda ends, start: prefix(start) | dfs_tree(ends, start=start),
        _in_tree("depth_first"),
        (lambda r: [r.first_behind(node) for node in range(10)], lambda r: r.held),
    ),
    "lambda": Case(
        lambda n: lambda b, h, q_idx, kv_idx: (q_idx + kv_idx) % (n[b] + 1) == 0,
        lambda r, h, q, kv: (q + kv) % (r.few + 1) == 0,
        (lambda r: r.few,),
    ),
}  # fmt: skip
"""Trees are read at steps of at most ten tokens, which then are the drafts."""


class Rows:
    """A case's tables, with a row for each request of the step; rewritten in place."""

    def __init__(self, case: Case, max_requests: int):
        blank = Life(-1, random.Random(0))
        self.case = case
        self.tensors = [torch.tensor([table(blank)] * max_requests) for table in case.tables]
        self.mask = case.build(*self.tensors)

    def write(self, lives: list[Life]) -> None:
        for tensor, table in zip(self.tensors, self.case.tables, strict=True):
            for row, life in enumerate(lives):
                tensor[row] = torch.tensor(table(life))


class Lives:
    """A server's requests from step to step, and what lies in each slot.

    Args:
        pages: of the pool; a request takes them one by one, and may begin with those of another that runs.
    """

    def __init__(self, seed: int, *, pages: int, page_size: int, max_tokens: int, max_requests: int, most: int = 9):
        self.rng = random.Random(seed)
        self.page_size, self.max_tokens, self.max_requests, self.most = page_size, max_tokens, max_requests, most
        self.users = [0] * pages
        self.running: list[Life] = []
        self.met = 0

    def steps(self, number: int) -> Iterator[list[Life]]:
        """The requests of each step, in a new order; ``count`` and ``length`` are this step's."""
        for _ in range(number):
            self._arrivals()
            room, chosen = self.max_tokens, []
            self.rng.shuffle(self.running)
            for life in self.running[: self.max_requests]:
                life.count = 0
                count = min(self.rng.choice([0, 1, 1, 1, 2, self.rng.randint(1, self.most)]), room)
                count = min(count, LENGTH - life.held, self._reach(life, life.held + count) - life.held)
                life.count = max(count, 0)
                room -= life.count
                chosen.append(life)
            yield chosen
            for life in chosen:
                # Drafts that are rejected were written all the same: the next step writes over them.
                life.held += self.rng.randint(min(1, life.count), life.count) if life.count else 0
                life.count = 0
            for life in list(self.running):
                if life.held >= LENGTH or self.rng.random() < 0.1:
                    self._leave(life)

    def _arrivals(self) -> None:
        while len(self.running) < self.max_requests + 1 and self.rng.random() < 0.6:
            life = Life(self.met, random.Random(self.rng.random()))
            self.met += 1
            if self.running and self.rng.random() < 0.5:  # a prefix in common: whole pages, which nobody writes again
                other = self.rng.choice(self.running)
                shared = self.rng.randint(0, other.held // self.page_size)
                life.pages = other.pages[:shared]
                life.held = shared * self.page_size
                for page in life.pages:
                    self.users[page] += 1
            self.running.append(life)

    def _reach(self, life: Life, length: int) -> int:
        """Map pages for ``length`` tokens if the pool has them; how many tokens fit."""
        while len(life.pages) * self.page_size < length:
            free = [page for page, users in enumerate(self.users) if not users]
            if not free:
                break
            page = self.rng.choice(free)
            self.users[page] += 1
            life.pages.append(page)
        return min(length, len(life.pages) * self.page_size)

    def _leave(self, life: Life) -> None:
        for page in life.pages:
            self.users[page] -= 1
        self.running.remove(life)


def arguments(lives: list[Life], max_requests: int, columns: int, *, fill: bool) -> tuple[Tensor, Tensor, Tensor]:
    """``query_start_loc``, ``seq_lens``, ``block_table``; filled up to ``max_requests``, or as many as there are."""
    starts, lengths, table = [0], [], []
    for life in lives:
        starts.append(starts[-1] + life.count)
        lengths.append(life.length)
        table.append(life.pages + [-1] * (columns - len(life.pages)))
    while fill and len(lengths) < max_requests:
        starts.append(starts[-1])
        lengths.append(0)
        table.append([-1] * columns)
    as_ints = (torch.tensor(values, dtype=torch.int64) for values in (starts, lengths, table))
    starts, lengths, table = as_ints
    return starts, lengths, table.view(-1, columns)


def tokens(lives: list[Life]) -> list[tuple[Life, int]]:
    """The request and position of each token of the step."""
    return [(life, life.held + i) for life in lives for i in range(life.count)]


def seen_over_pages(case: Case, lives: list[Life], lives_server: Lives, max_tokens: int) -> list:
    """Lists [h][token][slot] of bools."""
    size = lives_server.page_size
    slots = len(lives_server.users) * size
    out = [[[False] * slots for _ in range(max_tokens)] for _ in range(HEADS)]
    for number, (life, q) in enumerate(tokens(lives)):
        for kv in range(life.length):
            slot = life.pages[kv // size] * size + kv % size
            for h in range(HEADS):
                out[h][number][slot] = bool(case.says(life, h, q, kv))
    return out


def seen_over_keys(case: Case, lives: list[Life], kept: list[int], max_tokens: int, slots: int) -> list:
    """The same over keys end to end, of which each request keeps its last ``kept``."""
    out = [[[False] * slots for _ in range(max_tokens)] for _ in range(HEADS)]
    begins, at = [], 0
    for keys in kept:
        begins.append(at)
        at += keys
    for number, (life, q) in enumerate(tokens(lives)):
        row = next(i for i, other in enumerate(lives) if other is life)
        for i in range(kept[row]):
            kv, slot = life.length - kept[row] + i, begins[row] + i
            if slot < slots:
                for h in range(HEADS):
                    out[h][number][slot] = bool(case.says(life, h, q, kv))
    return out
