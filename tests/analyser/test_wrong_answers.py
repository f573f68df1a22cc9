"""Answers that were once wrong, or errors that told nothing: each of these failed before it was mended."""

from __future__ import annotations

import operator
import warnings

import pytest
import torch

from maskmod import (
    DecodePlan,
    block_mask,
    causal,
    classify_blocks,
    classify_tiles,
    dense_mask,
    key_padding,
    mask_mod,
    prefix,
    same_structure,
    select_backend,
    sinks,
    tree,
    vmap_mask,
)
from maskmod.caches import StaticCache
from maskmod.errors import MaskTypeError
from nested_conditions import Nested

READERS = [vmap_mask, dense_mask, classify_blocks, classify_tiles, block_mask]
NARROW = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


def assert_same(mask, q_len=64, kv_len=64, B=1, size=8) -> None:
    """The dense mask and the blocks against the lift."""
    truth = vmap_mask(mask, B, 1, q_len, kv_len)
    assert torch.equal(dense_mask(mask, B, 1, q_len, kv_len), truth)
    blocks = truth.unflatten(3, (-1, size)).unflatten(2, (-1, size))
    classes = classify_blocks(mask, B, 1, q_len, kv_len, block_size=size)
    assert torch.equal(classes.full, blocks.all(5).all(3))
    assert torch.equal(classes.empty, ~blocks.any(5).any(3))


# ---------------------------------------------------------------------------------------------------- random numbers

TABLE = torch.arange(64) // 8
DRAWS = [
    lambda b, h, q, k: (q >= k) & (torch.rand(()) < 0.5),
    lambda b, h, q, k: (q >= k) & (torch.randint(0, 2, ()) == 0),
    lambda b, h, q, k: (q >= k) & torch.bernoulli(torch.tensor(0.5)).bool(),
    lambda b, h, q, k: (q >= k) & (torch.empty(()).uniform_() < 0.5),
    lambda b, h, q, k: torch.nn.functional.dropout((q >= k).float(), 0.5).bool(),
    lambda b, h, q, k: torch.rand_like((q - k).float()) < 0.5,
]


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
@pytest.mark.parametrize("mask", DRAWS)
def test_random_numbers_are_refused_in_words(mask, read) -> None:
    with pytest.raises(MaskTypeError, match="draws random numbers") as error:
        read(mask, 1, 1, 6, 6)
    assert "Draw a table once, outside" in str(error.value)


# -------------------------------------------------------------------------------------------------- what replays follow


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (2,)], ids=str)
def test_a_replay_follows_narrow_tensors(dtype, shape) -> None:
    n = torch.full(shape, 2, dtype=dtype)
    plan = DecodePlan(causal() & prefix(n), StaticCache(8), 2, 1, 1, backend="sdpa")
    n.fill_(6)
    assert plan.step_(7).kwargs()["attn_mask"].sum(-1).flatten().tolist() == [6, 6]
    n.fill_(1)
    assert plan.step_(7).kwargs()["attn_mask"].sum(-1).flatten().tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("end", ["min", "max"])
@pytest.mark.parametrize("make", [prefix, sinks, lambda n: key_padding(n.view(1))])
def test_the_ends_of_a_dtype_do_not_wrap(make, end, dtype) -> None:
    n = torch.tensor(getattr(torch.iinfo(dtype), end), dtype=dtype)
    plan = DecodePlan(make(n), StaticCache(8), 1, 1, 1, backend="sdpa")
    assert int(plan.step_(7).kwargs()["attn_mask"].sum()) == (0 if end == "min" else 8)


@pytest.mark.parametrize("dtype", NARROW[1:], ids=str)
def test_narrow_parents_of_a_tree(dtype) -> None:
    parents = torch.tensor([-1, 0, 0, 1])
    expected = vmap_mask(tree(parents), 1, 1, 4, 4)
    for read in (vmap_mask, dense_mask):
        assert torch.equal(read(tree(parents.to(dtype)), 1, 1, 4, 4), expected)


# ---------------------------------------------------------------------------------------------- unknown, never a crash


def test_operations_in_place_are_unknown() -> None:
    mask = lambda b, h, q, k: (TABLE[q] == b).clone().bitwise_xor_(k * 2 <= q)  # noqa: E731
    truth = vmap_mask(mask, 1, 1, 1, 1)  # torch's vmap takes it at lengths of 1 alone
    assert torch.equal(dense_mask(mask, 1, 1, 1, 1), truth)
    assert bool(classify_blocks(mask, 1, 1, 1, 1, block_size=16).empty.all()) is not bool(truth.any())
    fresh = lambda b, h, q, k: (q + k).clone().sub_(3).bitwise_and_(1) == 0  # noqa: E731
    assert_same(fresh)


@pytest.mark.parametrize("read", [dense_mask, classify_tiles, block_mask], ids=lambda read: read.__name__)
def test_warnings_as_errors_while_recording(read) -> None:
    bytes_ = TABLE.to(torch.uint8)
    mask = lambda b, h, q, k: TABLE[bytes_[q]] > k  # noqa: E731  # torch warns of a uint8 index: it is a mask
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        errors = []
        for reader in (vmap_mask, read):
            with pytest.raises(Exception) as error:  # noqa: PT011  # whatever torch says, the readers say
                reader(mask, 1, 1, 64, 64)
            errors.append(error.type)
    assert SystemError not in errors


# ------------------------------------------------------------------------------------------------- long and deep ones


def chain(terms: int, nested: bool = False):
    mask = causal()
    for i in range(terms):
        span = mask_mod(lambda b, h, q, k, i=i: (q >= 3 * i) & (k < 3 * i + 2))
        mask = mask & (span | causal()) if nested and i % 2 else mask | span
    return mask


def sums(terms: int):
    def mask(b, h, q, k):
        total = q >= k
        for i in range(terms):
            total = total | ((q >= 3 * i) & (k < 3 * i + 2))
        return total

    return mask


@pytest.mark.parametrize("nested", [False, True])
def test_thousands_of_terms(nested: bool) -> None:
    mask, other = chain(1200, nested), causal() | prefix(3)
    truth = vmap_mask(mask, 1, 1, 64, 64)
    assert torch.equal(dense_mask(mask, 1, 1, 64, 64), truth)
    assert classify_tiles(mask, 1, 1, 64, 64, block_size=16).visible() == int(truth.sum())
    assert block_mask(mask, 1, 1, 64, 64).mask_mod is mask
    assert bool(mask(0, 0, 5, 1)) is bool(truth[0, 0, 5, 1])
    assert select_backend(mask, 1, 1, 64, 64).backend == "sdpa"
    assert mask == mask.to("cpu")
    assert mask != chain(1200, nested)  # other functions
    assert hash(mask) == hash(mask.to("cpu"))
    assert repr(mask).count("<lambda>") == 1200
    assert same_structure(mask, mask.to("cpu"))
    assert not same_structure(mask, other)


def test_thousands_of_terms_inside_one_function() -> None:
    assert torch.equal(dense_mask(sums(2000), 1, 1, 96, 96), vmap_mask(sums(2000), 1, 1, 96, 96))


def test_a_plan_of_thousands_of_terms() -> None:
    mask = causal()
    for i in range(1200):
        mask = mask & ~prefix(i % 3)
    plan = DecodePlan(mask, StaticCache(8), 1, 1, 1, backend="sdpa")
    assert plan.step_(7).kwargs()["attn_mask"][0, 0, 0].tolist() == [False] * 2 + [True] * 6


def test_xor_chains_cost_what_they_say() -> None:
    import time

    def xors(terms: int):
        def mask(b, h, q, k):
            total = q >= k
            for i in range(terms):
                total = total ^ ((q >= 3 * i) & (k < 3 * i + 2))
            return total

        return mask

    assert_same(xors(9), 32, 32)
    assert_same(lambda b, h, q, k: torch.where(xors(12)(b, h, q, k), q > 3, k > 5) == (q - k < 4), 32, 32)
    start = time.process_time()
    classify_blocks(xors(60), 1, 1, 256, 256, exact=False)  # doubling with each term, it would never end
    assert time.process_time() - start < 5


# ---------------------------------------------------------------------------------------- conditions inside conditions


@pytest.mark.parametrize("part", range(4))
def test_nested_conditions(part: int) -> None:
    for seed in range(part, 240, 4):
        Nested(seed).check()


@pytest.mark.slow
def test_nested_conditions_long() -> None:
    for seed in range(240, 8000):
        Nested(seed).check()


def test_two_views_of_one_row_are_two_values() -> None:
    rows = torch.randint(0, 4, (64, 3), generator=torch.Generator().manual_seed(0))
    down, along = (lambda x: x.unsqueeze(-1)), (lambda x: x.unsqueeze(0))
    assert_same(
        lambda b, h, q, k: (
            (down(rows[q]) == along(rows[k])).any(-1).all(-1) & (along(rows[q]) == down(rows[k])).any(-1).all(-1)
        )
    )


def test_a_fact_beside_an_equality_of_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, ends = (torch.randint(0, 4, (64, 3), generator=generator) for _ in range(2))
    flag = torch.arange(64) % 3 == 0
    assert_same(
        lambda b, h, q, k: flag[k] & ((rows[q][:, None] == rows[k][None]) & (rows[k][:, None] < ends[q][None])).any()
    )


# ------------------------------------------------------------------------------------------- captured, wider scalars


@pytest.mark.parametrize("compare", [operator.eq, operator.ne, operator.lt, operator.ge])
@pytest.mark.parametrize("narrow", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.float16, torch.float32])
@pytest.mark.parametrize("wide", [torch.int32, torch.int64, torch.float32, torch.float64])
def test_a_captured_scalar_of_a_wider_dtype(narrow, wide, compare) -> None:
    table = torch.arange(64).remainder(8).to(narrow)
    for value in (3, 3 + 256, 3 + 65536, 3 + 2**-9):
        scalar = torch.tensor(value).to(wide)
        assert_same(lambda b, h, q, k, s=scalar: compare(table[q], s) & (k >= 0), 16, 16)
        assert_same(lambda b, h, q, k, s=scalar: compare(s + 1, table[q]) | (k > q), 16, 16)
