"""Trees of drafted tokens for speculative decoding: a query sees itself and its ancestors, never another branch.

A node is a token; where nodes are kept, and who drafted them, is not known here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskmod._torch.tracing import known_true, readable
from maskmod.algebra import Mask, spell
from maskmod.algebra.lookup import (
    check_row_count,
    check_row_scalar,
    check_size,
    check_table,
    check_table_sizes,
    look_up,
    row_scalar,
    wide,
)
from maskmod.errors import MaskValueError

__all__ = ["DfsTree", "Tree", "dfs_tree", "ends_from_parents", "tree"]


class Tree(Mask):
    """See `tree`."""

    parents: Tensor
    depth: int
    start: int | Tensor = 0

    _name = "tree"

    def __post_init__(self):
        check_table(self, self.parents, holds="parents")
        check_size(self, self.depth, least=0, unit="edges")
        check_row_scalar(self, self.start)

    def __call__(self, b, h, q_idx, kv_idx):
        start, nodes = row_scalar(self.start, b), self.parents.shape[-1]
        node, key = q_idx - start, kv_idx - start
        sees = node == key
        for _ in range(self.depth):
            parent, known = look_up(self.parents, b, node)
            node = wide(parent, self.parents) * known + known - 1  # the parent's number, or -1 above the roots
            sees = sees | (node == key)
        first = q_idx - start
        return sees & (key >= 0) & (key < nodes) & (first >= 0) & (first < nodes)

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_row_count(self, self.start, B)
        check_table_sizes(self, self.parents, B, None, "q_len")


def tree(parents: Tensor, *, depth: int | None = None, start: int | Tensor = 0) -> Mask:
    """Each query sees itself and its ancestors: as many keys as its path from the root has nodes.

    Verifying a tree of drafts behind a committed prefix is ``prefix(start) | tree(parents, start=start)`` (SpecInfer,
    Medusa, EAGLE; xformers' ``TreeAttentionBias``). Node i stands at position ``start + i``; positions outside the tree
    see and show nothing here. The table is read as it stands: write the next tree into it in place.

    Args:
        parents: the number of each node's parent, -1 for a root, in any order; integers (n,) or (B, n).
        depth: edges on the longest path, at most; None allows n - 1. Fewer cost less.
        start: the position of node 0: int, or a tensor of shape (), (1,) or (B,).

    >>> parents = torch.tensor([-1, 0, 0, 1])  # 0 has the children 1 and 2, and 1 has 3
    >>> [kv for kv in range(4) if tree(parents)(0, 0, 3, kv)]
    [0, 1, 3]
    """
    if depth is None:
        depth = max(0, parents.shape[-1] - 1) if isinstance(parents, Tensor) and parents.dim() else 0
    return Tree(parents, depth, start)


class DfsTree(Mask):
    """See `dfs_tree`."""

    ends: Tensor
    start: int | Tensor = 0

    _name = "dfs_tree"

    def __post_init__(self):
        check_table(self, self.ends, holds="ends")
        check_row_scalar(self, self.start)

    def __call__(self, b, h, q_idx, kv_idx):
        start = row_scalar(self.start, b)
        end, known = look_up(self.ends, b, kv_idx - start)
        return (kv_idx <= q_idx) & (q_idx - start < wide(end, self.ends)) & known

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_row_count(self, self.start, B)
        check_table_sizes(self, self.ends, B, None, "kv_len")


def dfs_tree(ends: Tensor, *, start: int | Tensor = 0) -> Mask:
    """`tree` for nodes numbered depth first: a query sees key k when ``k <= q < ends[k]``, the span of k's subtree.

    The same keys as `tree`, two comparisons for each whatever the depth (AReaL's packed trees; FlashMask's evictions).

    Args:
        ends: one past the last node of each node's subtree, integers (n,) or (B, n); see `ends_from_parents`.
        start: the position of node 0, as in `tree`.

    >>> dfs = dfs_tree(torch.tensor([4, 3, 3, 4]))  # 0 has the children 1 and 3, and 1 has 2
    >>> [kv for kv in range(4) if dfs(0, 0, 3, kv)]
    [0, 3]
    """
    return DfsTree(ends, start)


def ends_from_parents(parents: Tensor) -> Tensor:
    """For nodes numbered depth first, one past the last node of each node's subtree: int64 (n,) or (B, n).

    Where a value may be looked at, the numbering is checked: a node must stand behind its parent, with nothing between
    them but the parent's own descendants. In a graph, or while a CUDA graph is captured, it is taken on trust.

    Args:
        parents: the number of each node's parent, -1 for a root; integers (n,) or (B, n).

    Raises:
        MaskValueError: the nodes are not numbered depth first; the message names one.

    >>> ends_from_parents(torch.tensor([-1, 0, 1, 0])).tolist()
    [4, 3, 3, 4]
    """
    check_table("ends_from_parents(parents)", parents, holds="parents")
    wide = parents.to(torch.int64)
    ends = _first_behind(wide)
    if readable(parents):
        _check_depth_first(parents, wide, ends)
    return ends


def _first_behind(parents: Tensor) -> Tensor:
    """The first node behind each whose parent stands before it: there its subtree is over. n log n, no loop over nodes.

    ``lowest[k]`` holds the least parent among 2**k nodes from each on; a node skips as many of them as are its own.
    """
    nodes = parents.shape[-1]
    node = torch.arange(nodes, device=parents.device)
    if known_true(nodes == 0):
        return parents.clone()
    lowest = [torch.nn.functional.pad(parents, (0, 1), value=-2)]  # past the end every subtree is over
    for k in range((nodes - 1).bit_length()):
        here = lowest[-1]
        there = torch.nn.functional.pad(here[..., 1 << k :], (0, min(1 << k, nodes + 1)), value=-2)
        lowest.append(torch.minimum(here, there[..., : nodes + 1]))
    end = (node + 1).expand(parents.shape).contiguous()
    for k in reversed(range(len(lowest))):
        skips = lowest[k].gather(-1, end.clamp(max=nodes)) >= node
        end = torch.where(skips, end + (1 << k), end)
    return end


def _check_depth_first(parents: Tensor, wide: Tensor, ends: Tensor) -> None:
    node = torch.arange(wide.shape[-1], device=wide.device)
    before = (wide >= -1) & (wide < node)
    ends_later = ends.gather(-1, torch.where(before, wide, 0).clamp(min=0)) > node
    good = before & ((wide < 0) | ends_later)
    if bool(good.all()):
        return
    *row, at = (~good).nonzero()[0].tolist()
    where = f"node {at}" + (f" of row {row[0]}" if row else "")
    raise MaskValueError(
        f"ends_from_parents({spell(parents)})",
        f"{where} has the parent {int(wide[(*row, at)])}, which is not the node before it or one above that",
        "Number the nodes depth first, each subtree in one run, or use tree(parents), which takes any order.",
    )
