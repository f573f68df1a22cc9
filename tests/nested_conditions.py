"""Random predicates whose conditions have a dimension of their own, inside one another, as source text.

    from nested_conditions import Nested; Nested(seed=17).check()

Rows of tables are compared entry by entry under `.any(-1)` and `.all(-1)`; such conditions are joined, negated, and put
beside conditions without one. What they mean is torch's own nested vmap.
"""

from __future__ import annotations

import random

import torch

from maskmod.blocks.classify import classify_blocks
from maskmod.dense import dense_mask
from maskmod.oracle import vmap_mask

LENGTHS = (1, 3, 8, 17, 32, 40)
BLOCKS = (1, 4, 8, 16, (8, 4), (5, 7))
_DOWN = ("[:, None]", ".unsqueeze(-1)", ".unsqueeze(1)", ".view(-1, 1)", ".reshape(3, 1)")  # a column
_ALONG = ("[None, :]", "[None]", ".unsqueeze(0)", ".unsqueeze(-2)", ".view(1, -1)", ".reshape(1, 3)")  # a row


class Nested:
    """One random predicate at random sizes, entirely determined by its seed."""

    def __init__(self, seed: int):
        self.seed, self.rng = seed, random.Random(seed)
        generator = torch.Generator().manual_seed(seed)
        pick = self.rng.choice
        self.sizes = (pick((1, 1, 2)), pick((1, 1, 2)), pick(LENGTHS), pick(LENGTHS))
        self.block_size = pick(BLOCKS)
        n = max(self.sizes[2:]) + 4

        def ints(high: int, *shape: int) -> torch.Tensor:
            return torch.randint(0, high, shape, generator=generator)

        self.many = pick((2, 4, 12))
        self.names = {
            "torch": torch,
            "three": ints(self.many, n, 3),
            "other": ints(self.many, n, 3),
            "batched": ints(self.many, self.sizes[0], n, 3).sort(-2)[0],
            "marks": ints(3, n, 3) == 0,
            "bounds": ints(n, n, 3),
            "grid": ints(self.many, 3, 3),
            "line": ints(self.many, 3),
            "ids": ints(self.many, n).sort()[0],
            "flag": ints(2, n).bool(),
        }
        self.source = self.scalar(self.rng.randint(1, 3))
        self.mask = eval(f"lambda b, h, q, k: {self.source}", self.names)

    def __repr__(self) -> str:
        return f"Nested(seed={self.seed}).check()  # {self.source} on {self.sizes}, blocks of {self.block_size}"

    def scalar(self, depth: int) -> str:
        """A condition without a dimension of its own."""
        pick = self.rng.choice
        if depth == 0:
            return pick(
                ("(q >= k)", "flag[q]", "flag[k]", "(ids[q] == ids[k])", "(h > 0)", "(ids[k] <= q)", "(b == 0)")
            )
        inner = depth - 1
        return pick(
            (
                f"({self.scalar(inner)} & {self.scalar(inner)})",
                f"({self.scalar(inner)} | {self.scalar(inner)})",
                f"({self.scalar(inner)} ^ {self.scalar(inner)})",
                f"~({self.scalar(inner)})",
                f"({self.vector(inner)}).any(-1)",
                f"({self.vector(inner)}).all(-1)",
                f"({self.vector(inner)}).all(dim=0)",
                f"({self.vector(inner)}).any(-1, keepdim=True).all(-1)",
                f"({self.matrix(inner)}).any(-1).all(-1)",
                f"({self.matrix(inner)}).all(-2).any(-1)",
                f"({self.matrix(inner)}).any()",
            )
        )

    def vector(self, depth: int) -> str:  # (3,)
        pick = self.rng.choice
        value = (
            "three[q]", "three[k]", "batched[b, q]", "batched[b, k]", "bounds[q]", "bounds[k]", "line",
            "q.unsqueeze(-1)", "k[None]", "ids[k].view(1)", "(three[q] + q)", "(bounds[k] - k)",
        )  # fmt: skip
        compare = f"({pick(value)} {pick(('==', '!=', '<', '>='))} {pick(value)})"
        if depth == 0:
            return pick((compare, compare, "marks[q]", "marks[k]"))
        inner = depth - 1
        return pick(
            (
                compare,
                f"({self.vector(inner)} & {self.vector(inner)})",
                f"({self.vector(inner)} | {self.vector(inner)})",
                f"({self.vector(inner)} & {self.scalar(inner)})",
                f"({self.scalar(inner)} | {self.vector(inner)})",
                f"({self.vector(inner)} ^ {self.scalar(inner)})",
                f"~({self.vector(inner)})",
                f"({self.matrix(inner)}).any(-1)",
                f"({self.matrix(inner)}).all(1)",
                f"torch.where({self.vector(inner)}, {self.vector(0)}, marks[q])",
            )
        )

    def matrix(self, depth: int) -> str:  # (3, 3)
        pick = self.rng.choice
        values = ("three[q]", "three[k]", "other[k]", "batched[b, q]", "bounds[k]", "(three[k] + k)")
        rows, columns = pick(values) + pick(_DOWN), pick(values) + pick(_ALONG)
        compare = f"({rows} {pick(('==', '<', '>=', '!='))} {columns})"
        table = f"(grid {pick(('==', '<='))} {rows})"
        if depth == 0:
            return pick((compare, compare, table))
        inner = depth - 1
        return pick(
            (
                compare,
                f"({self.matrix(inner)} & {self.matrix(inner)})",
                f"({self.matrix(inner)} | {self.scalar(inner)})",
                f"({self.matrix(inner)} & ({self.vector(inner)})[:, None])",
                f"({self.matrix(inner)} | ({self.vector(inner)}).unsqueeze(-1))",
                f"~({self.matrix(inner)})",
            )
        )

    def check(self) -> None:
        """Blocks and the dense mask against the lift."""
        try:
            truth = vmap_mask(self.mask, *self.sizes)
        except Exception:  # the predicate is an error; whatever it is, torch says so
            return
        assert torch.equal(dense_mask(self.mask, *self.sizes), truth), repr(self)
        pair = (self.block_size, self.block_size) if isinstance(self.block_size, int) else self.block_size
        classes = classify_blocks(self.mask, *self.sizes, block_size=pair)
        rows, columns = (-(-n // s) for n, s in zip(self.sizes[2:], pair, strict=True))
        padding = (0, columns * pair[1] - self.sizes[3], 0, rows * pair[0] - self.sizes[2])
        blocks = torch.nn.functional.pad(truth, padding).unflatten(3, (columns, pair[1])).unflatten(2, (rows, pair[0]))
        assert torch.equal(classes.empty, ~blocks.any(5).any(3)), repr(self)
        assert torch.equal(classes.full, blocks.all(5).all(3)), repr(self)
