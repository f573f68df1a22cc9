"""Trees against paths enumerated in plain Python, alone and behind a committed prefix in every cache layout."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from maskmod import DecodePlan, dense_mask, dfs_tree, prefix, tree
from maskmod.caches import ChunkedCache, PagedCache, RingCache, SlidingCache, StaticCache
from maskmod.errors import MaskShapeError, MaskTypeError, MaskValueError
from maskmod.masks.trees import ends_from_parents


def random_parents(rng, nodes, roots=0.2, ordered=True):
    parents = [-1 if i == 0 or rng.random() < roots else rng.randrange(i) for i in range(nodes)]
    if ordered:
        return parents
    name = list(range(nodes))
    rng.shuffle(name)
    renamed = [0] * nodes
    for i, parent in enumerate(parents):
        renamed[name[i]] = -1 if parent < 0 else name[parent]
    return renamed


def path(parents, node):
    nodes = []
    while node >= 0:
        nodes.append(node)
        node = parents[node]
    return nodes


@pytest.mark.parametrize("seed", range(12))
def test_a_node_sees_its_path(seed):
    rng = random.Random(seed)
    nodes = rng.randint(1, 12)
    rows = [random_parents(rng, nodes, ordered=bool(seed % 2)) for _ in range(2)]
    longest = max(len(path(row, node)) for row in rows for node in range(nodes)) - 1
    for depth in (None, longest):
        mask = tree(torch.tensor(rows), depth=depth)
        visible = dense_mask(mask, 2, 1, nodes + 1, nodes + 2, method="vmap")[:, 0]
        for b, row in enumerate(rows):
            want = [[kv in path(row, q) if q < nodes else False for kv in range(nodes + 2)] for q in range(nodes + 1)]
            assert visible[b].tolist() == want, f"seed={seed} parents={row}"
            assert [[bool(mask(b, 0, q, kv)) for kv in range(nodes)] for q in range(nodes)] == [
                w[:nodes] for w in want[:nodes]
            ]


def test_too_little_depth_hides_the_roots():
    chain = torch.tensor([-1, 0, 1, 2])
    assert [kv for kv in range(4) if tree(chain, depth=2)(0, 0, 3, kv)] == [1, 2, 3]


def depth_first(parents):
    """The same tree with its nodes renumbered depth first."""
    children = {i: [j for j, p in enumerate(parents) if p == i] for i in range(-1, len(parents))}
    order: list = []

    def visit(node):
        order.append(node)
        for child in children[node]:
            visit(child)

    for root in children[-1]:
        visit(root)
    return [-1 if parents[i] < 0 else order.index(parents[i]) for i in order]


@pytest.mark.parametrize("seed", range(12))
def test_depth_first_numbers_need_two_comparisons(seed):
    rng = random.Random(seed)
    nodes = rng.randint(1, 14)
    rows = [depth_first(random_parents(rng, nodes)) for _ in range(2)]
    parents = torch.tensor(rows)
    ends = ends_from_parents(parents)
    subtrees = [[max(i for i in range(nodes) if k in path(row, i)) + 1 for k in range(nodes)] for row in rows]
    assert ends.tolist() == subtrees
    assert torch.equal(ends_from_parents(parents[1]), ends[1])
    for start in (0, 3, torch.tensor([1, 4])):
        got, want = (dense_mask(m, 2, 1, 20, 22) for m in (dfs_tree(ends, start=start), tree(parents, start=start)))
        # Behind the last node the depth-first form is causal to nothing: the same rows must be empty.
        assert torch.equal(got, want), f"seed={seed} start={start}"


LAYOUTS = {
    "static": lambda: StaticCache(40),
    "sliding": lambda: SlidingCache(8, 4),
    "ring": lambda: RingCache(8, 4),
    "chunked": lambda: ChunkedCache(8, 4),
    "paged": lambda: PagedCache(torch.tensor([[4, 1, 7, 3, 9], [4, 0, 2, 8, 5]]), 8, num_pages=10),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_a_tree_behind_a_committed_prefix(layout, backend):
    nodes, rng = 5, random.Random(layout)
    layout = LAYOUTS[layout]()
    parents, start = torch.zeros(2, nodes, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    plan = DecodePlan(prefix(start) | tree(parents, start=start), layout, 2, 1, nodes, backend=backend)
    for firsts in [(0, 2), (4, 9), (13, 21)]:
        rows = [random_parents(rng, nodes, roots=0.4) for _ in range(2)]
        parents.copy_(torch.tensor(rows))
        start.copy_(torch.tensor(firsts))
        args: Any = plan.step_(start[:, None])
        value = args[0]
        visible = value if value.dtype == torch.bool else value == 0
        kv_positions, valid = layout.slots(start[:, None], nodes)
        for b, first in enumerate(firsts):
            for node in range(nodes):
                seen = visible[b, 0, node]
                assert not (seen & ~valid[b]).any()
                tail = {first + i for i in path(rows[b], node)}
                held = set(kv_positions[b][valid[b]].tolist())
                want = held & (set(range(first)) | tail)
                assert set(kv_positions[b][seen].tolist()) == want
                assert seen.sum() == len(want)


def test_errors():
    with pytest.raises(MaskTypeError, match="holds no parents"):
        tree(torch.tensor([0.5]))
    with pytest.raises(MaskValueError, match="-1 edges"):
        tree(torch.tensor([-1, 0]), depth=-1)
    with pytest.raises(MaskTypeError, match="a Tensor is not a number of edges"):
        tree(torch.tensor([-1, 0]), depth=torch.tensor(1))  # pyright: ignore[reportArgumentType]
    with pytest.raises(MaskShapeError, match="2 rows, 3 needed"):
        dense_mask(tree(torch.zeros(2, 4, dtype=torch.long)), 3, 1, 4, 4)
    with pytest.raises(MaskShapeError, match="2 rows, 3 needed"):
        dense_mask(dfs_tree(torch.tensor([2, 2]), start=torch.tensor([0, 1])), 3, 1, 4, 4)
