"""Random predicates as source text: one line reproduces any of them.

    from random_masks import Case; Case(seed=17).check()

The expressions use every atom of the vocabulary and the operators between them, over tables of several dtypes.
"""

from __future__ import annotations

import functools
import random

import torch
from torch.nn.attention.flex_attention import (
    _convert_mask_to_block_mask,
    _create_sparse_block_from_block_mask,
    create_mask,
)

from maskmod.algebra import as_mask
from maskmod.analyser.may import may
from maskmod.analyser.normal_form import normal
from maskmod.analyser.record import Unknown, record
from maskmod.analyser.summaries import Blocks, Grid, Selection
from maskmod.blocks.block_mask import block_mask
from maskmod.blocks.classify import classify_blocks
from random_masks.vocabulary import Size, expressions

LENGTHS = (1, 2, 7, 31, 32, 40, 64, 65, 96)
BLOCKS = (1, 3, 8, 16, (8, 16), (32, 4), (5, 7), 64)


class Case:
    """One random predicate at random sizes, entirely determined by its seed."""

    def __init__(self, seed: int):
        self.seed = seed
        self.rng = random.Random(seed)
        generator = torch.Generator().manual_seed(seed)
        pick = self.rng.choice
        self.B, self.H = pick((1, 1, 2, 3)), pick((1, 1, 2))
        self.q_len, self.kv_len, self.block_size = pick(LENGTHS), pick(LENGTHS), pick(BLOCKS)
        n = max(self.q_len, self.kv_len) + 8

        def ints(low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.randint(low, high, shape, generator=generator).to(dtype)

        many = pick((2, 4, 9))
        self.names = {
            "torch": torch,
            "ids": ints(0, many, n).sort()[0],
            "mixed": ints(0, many, n),
            "batched": ints(-1, many, self.B, n).sort(-1)[0],
            "short": ints(-100, 100, n, dtype=torch.int32),
            "tiny": ints(-120, 120, n, dtype=torch.int8),
            "byte": ints(0, 250, n, dtype=torch.uint8),
            "huge": ints(0, 2, n) * (2**62) - 2**61,
            "real": torch.randn(n, generator=generator) * 20,
            "odd": torch.where(ints(0, 5, n) == 0, torch.nan, torch.randn(n, generator=generator)),
            "flag": ints(0, 2, n).bool(),
            "flags": ints(0, 3, self.B, n).bool(),
            "per_head": ints(0, 12, self.H, n),
            "grid": ints(0, 4, n, n) == 0,
            "coarse": ints(0, 3, self.H, n // 4 + 1, n // 4 + 1) == 0,
            "counts": ints(0, 5, n, n),
            "top": ints(0, n // 4, self.B, n, 3),
            "diagonals": ints(0, 2, 2 * n).bool(),
            "offset": ints(-5, 9),
            "starts": ints(-5, 9, self.B),
            "window": ints(0, 20, n),
        }
        self.source = self.boolean(self.rng.randint(0, 3))
        if seed % 4 == 3:  # one in four has a mask of the vocabulary in it
            size = Size(self.B, self.H, self.q_len, self.kv_len)
            drawn = expressions(size, self.rng.randint(0, 2))(self.rng)
            self.names["vocabulary"], self.drawn = as_mask(drawn.build()), drawn
            self.source = f"({self.source}) {pick('&|^')} vocabulary(b, h, q, k)"
        self.mask = eval(f"lambda b, h, q, k: {self.source}", self.names)

    def __repr__(self) -> str:
        where = f", vocabulary = {self.drawn.source}" if "vocabulary" in self.names else ""
        return f"Case(seed={self.seed}).check()  # {self.source}{where}"

    # Grammar

    def boolean(self, depth: int) -> str:
        pick = self.rng.choice
        if depth == 0:
            return self.atom()
        a, b = self.boolean(depth - 1), self.boolean(self.rng.randint(0, depth - 1))
        return pick(
            (
                f"({a} & {b})",
                f"({a} & {b})",
                f"({a} | {b})",
                f"({a} ^ {b})",
                f"~({a})",
                f"(({a}) ^ True)",
                f"torch.where({a}, {b}, {self.atom()})",
                f"torch.logical_and({a}, {b})",
                f"(({a}) == ({b}))",
                f"(({a}) != ({b}))",
                f"(({a}) * ({b}))",
                f"torch.where({a}, {self.integer(1)}, {self.integer(1)}) {pick(('<', '==', '>='))} {self.integer(1)}",
                f"(({a}).int() + ({b}).long() {pick(('<', '>=', '=='))} {self.rng.randint(0, 2)})",
            )
        )

    def atom(self) -> str:
        pick, n = self.rng.choice, self.rng.randint
        compare = pick(("<", "<=", ">", ">=", "==", "!="))
        return pick(
            (
                "(q >= k)",
                "(k <= q + offset)",
                f"(q - k < {n(0, 30)})",
                f"(k < {n(-2, 40)})",
                f"(q < {n(-2, 40)})",
                "flag[q]",
                "flags[b, k]",
                "(h > 0)",
                "(ids[q] == ids[k])",
                "(batched[b, q] == batched[b, k])",
                "(mixed[q] == mixed[k])",
                "(mixed[q] != ids[k])",
                "(batched[b, q] >= 0)",
                f"(q // {n(1, 9)} == k // {n(1, 9)})",
                f"(q % {n(1, 9)} {compare} k % {n(1, 9)})",
                f"((q - k) % {n(1, 9)} == {n(0, 3)})",
                f"((q - k).abs() {compare} {n(0, 20)})",
                f"(abs(k - q) {compare} window[q])",
                "(q - k < window[q])",
                "grid[q, k]",
                "coarse[h, q // 4, k // 4]",
                f"(counts[q, k] {compare} {n(0, 4)})",
                f"(counts[k, q] {compare} window[k])",
                "(top[b, q] == (k // 4).unsqueeze(-1)).any(-1)",
                "(top[b, q] != (k // 4).unsqueeze(-1)).all(dim=-1)",
                "diagonals[q - k]",
                f"grid[q, (k - {n(0, 9)}).clamp(min=0, max=7)]",
                "(window[q] >= starts[b] + k)",
                "((ids[q] == ids[k]) & (q - window[ids[q]] >= k - window[ids[k]]))",
                "((ids[q] == ids[k]) & (window[q] > window[k]))",
                "((mixed[k] == mixed[q]) & (short[q] - q <= k - short[k]))",
                "((batched[b, q] == batched[b, k]) & (abs(window[q] - window[k]) < 4))",
                "(torch.searchsorted(ids, q) >= k)",
                f"(byte[q] - byte[k] {compare} {n(0, 200)})",
                f"(tiny[q] + tiny[k] {compare} {n(-100, 100)})",
                f"(tiny[q] * tiny[k] {compare} short[k])",
                f"(huge[q] + huge[k] + huge[k] {compare} q)",
                f"(huge[q] {compare} huge[k] + k)",
                f"(real[q] {compare} real[k])",
                f"(odd[q] {compare} odd[k])",
                f"(odd[q] - real[k] {compare} {n(-3, 3)}.5)",
                f"(q * {n(-3, 3)} {compare} k * {n(-3, 3)} + {n(-9, 9)})",
                f"({self.integer(2)} {compare} {self.integer(2)})",
                f"(torch.minimum(q, k + 3) {compare} torch.maximum(k, q - {n(0, 9)}))",
                f"((q & k) {compare} {n(0, 9)})",
                f"((q ^ k) < {n(0, 40)})",
                f"((q - k) >> {n(0, 3)} {compare} {n(-3, 3)})",
                "torch.ones((), dtype=torch.bool)",
                "True",
            )
        )

    def integer(self, depth: int) -> str:
        pick, n = self.rng.choice, self.rng.randint
        if depth == 0:
            return pick(
                ("q", "k", "h", "b", str(n(-9, 40)), "ids[q]", "window[k]", "short[q]", "tiny[k]", "byte[q]", "offset")
            )
        a, b = self.integer(depth - 1), self.integer(depth - 1)
        return pick(
            (
                f"({a} + {b})",
                f"({a} - {b})",
                f"({a} * {n(-3, 3)})",
                f"({a} // {n(1, 9)})",
                f"({a} // {-n(1, 9)})",
                f"({a} % {n(1, 9)})",
                f"(-({a}) if True else 0)",
                f"abs({a})",
                f"({a} - {b})",
                f"({a} * {b})",
            )
        )

    # Checks

    def check(self) -> int:
        """Soundness over blocks and tiles, equality of tables; the number of blocks needlessly called partial."""
        truth = self.truth
        if truth is None:  # the predicate is an error; whatever it is, torch says so
            return 0
        sizes = (self.B, self.H, self.q_len, self.kv_len)
        pair = _pair(self.block_size)
        full, seen = _by_blocks(truth, pair)
        spare = 0
        try:
            root = record(as_mask(self.mask), *sizes, torch.device("cpu"), False)
        except Unknown:
            root = None
        if root is not None:
            blocks = Blocks(root.tape, pair, looks=True)
            yes, no = normal(root), normal(root, False)
            grid = Grid(blocks)
            could, must = may(yes, grid), ~may(no, grid)
            assert not (seen & ~could).any(), f"may is unsound: {self!r}"
            assert not (must & ~full).any(), f"must is unsound: {self!r}"
            spare = int((could & ~must).sum() - (seen & ~full).sum())
            coarse = _by_blocks(truth, (pair[0] * 2, pair[1] * 2))
            where = coarse[0].nonzero().new_tensor(torch.ones_like(coarse[0]).nonzero().tolist()).view(-1, 4)
            chosen = Selection(blocks, 2, *where.unbind(1))
            assert not (coarse[1].flatten() & ~may(yes, chosen)).any(), f"may is unsound on tiles: {self!r}"
            assert not (~may(no, chosen) & ~coarse[0].flatten()).any(), f"must is unsound on tiles: {self!r}"
        classes = classify_blocks(self.mask, *sizes, block_size=self.block_size)
        cut = torch.ones_like(full)
        for dim, size in ((2, pair[0]), (3, pair[1])):
            if sizes[dim] % size:
                cut.select(dim, -1).fill_(False)
        assert torch.equal(classes.full, full & cut), f"full blocks differ: {self!r}"
        assert torch.equal(classes.empty, ~seen), f"empty blocks differ: {self!r}"
        return spare

    def check_tables(self) -> None:
        """The whole BlockMask, against torch's."""
        truth = self.truth
        if truth is None:
            return
        sizes = (self.B, self.H, self.q_len, self.kv_len)
        ours = block_mask(self.mask, *sizes, block_size=self.block_size, compact=self.rng.choice((None, True)))
        pair = _pair(self.block_size)
        theirs = _create_sparse_block_from_block_mask(
            _convert_mask_to_block_mask(truth, *pair, separate_full_blocks=True), self.mask, sizes[2:], *pair
        )
        assert ours.mask_mod is self.mask
        assert_same_tables(ours, theirs, repr(self))

    @functools.cached_property
    def truth(self) -> torch.Tensor | None:
        """What the predicate means, by torch's own vmap; None where it is an error."""

        def whole(b, h, q, k):
            answer = self.mask(b, h, q, k)
            return torch.full((), answer) if isinstance(answer, bool) else answer

        try:
            return create_mask(whole, self.B, self.H, self.q_len, self.kv_len, device="cpu").contiguous()
        except Exception:
            return None


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _by_blocks(truth: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(all visible, some visible) for each block, of the tokens inside the lengths."""
    rows, columns = (-(-n // s) for n, s in zip(truth.shape[2:], size, strict=True))
    padding = (0, columns * size[1] - truth.shape[3], 0, rows * size[0] - truth.shape[2])
    answers = []
    for value in (True, False):
        x = torch.nn.functional.pad(truth, padding, value=value).unflatten(3, (columns, size[1]))
        x = x.unflatten(2, (rows, size[0]))
        answers.append(x.all(5).all(3) if value else x.any(5).any(3))
    return answers[0], answers[1]


def assert_same_tables(ours, theirs, what: str = "") -> None:
    """Equality of BlockMasks: counts, and the entries that the counts say are there."""
    assert ours.seq_lengths == theirs.seq_lengths, what
    assert ours.BLOCK_SIZE == theirs.BLOCK_SIZE, what
    for name in ("kv", "full_kv", "q", "full_q"):
        count, expected = (getattr(m, f"{name}_num_blocks") for m in (ours, theirs))
        assert count.dtype == torch.int32, what
        assert torch.equal(count, expected), f"{name}_num_blocks: {what}"
        indices, wanted = (getattr(m, f"{name}_indices") for m in (ours, theirs))
        assert indices.shape == wanted.shape, f"{name}_indices: {what}"
        assert indices.dtype == torch.int32, what
        there = torch.arange(wanted.shape[-1]) < count.unsqueeze(-1)
        assert torch.equal(indices[there], wanted[there]), f"{name}_indices: {what}"
