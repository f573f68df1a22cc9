"""The analyser alone: soundness on random predicates, and the places where arithmetic, dtypes and indices deceive."""

from __future__ import annotations

import operator
import warnings

import pytest
import torch

from maskmod.algebra import as_mask
from maskmod.analyser.expression import BOTH
from maskmod.analyser.may import may
from maskmod.analyser.normal_form import normal
from maskmod.analyser.record import Unknown, record
from maskmod.analyser.summaries import Blocks, Grid
from maskmod.blocks.classify import classify_blocks
from maskmod.dense import dense_mask
from maskmod.errors import MaskError
from maskmod.oracle import vmap_mask
from random_masks import Case

CPU = torch.device("cpu")
CASES = 2000  # a case takes about 25 ms
PARTS = 20
LONG = 40_000


def recorded(mask, q_len=64, kv_len=64, B=1, H=1):
    return record(as_mask(mask), B, H, q_len, kv_len, CPU, False)


def classes(mask, q_len=64, kv_len=64, B=1, H=1, size=(16, 16)):
    """(must, may) of every block."""
    root = recorded(mask, q_len, kv_len, B, H)
    grid = Grid(Blocks(root.tape, size, looks=True))
    return ~may(normal(root, False), grid), may(normal(root), grid)


def assert_sound(mask, q_len=64, kv_len=64, B=1, H=1, size=16) -> None:
    must, could = classes(mask, q_len, kv_len, B, H, (size, size))
    truth = vmap_mask(mask, B, H, q_len, kv_len)
    x = truth.unflatten(3, (-1, size)).unflatten(2, (-1, size))
    assert not (must & ~x.all(5).all(3)).any()
    assert not (x.any(5).any(3) & ~could).any()


def run(seeds) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vmap warns of the slow paths that some cases take
        for seed in seeds:
            case = Case(seed)
            try:
                case.check()
                case.check_tables()
            except Exception as error:
                raise AssertionError(f"{case!r}") from error


@pytest.mark.parametrize("part", range(PARTS))
def test_random_predicates(part: int) -> None:
    run(range(part, CASES, PARTS))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_random_predicates_long(part: int) -> None:
    run(range(CASES + part, CASES + LONG, PARTS))


def test_most_random_predicates_are_recorded() -> None:
    refused = 0
    for seed in range(200):
        case = Case(seed)
        try:
            record(as_mask(case.mask), case.B, case.H, case.q_len, case.kv_len, CPU, False)
        except Unknown:
            refused += 1
    assert refused <= 20  # mostly `where` and order comparisons of several dtypes


# --------------------------------------------------------------------------------------- what the rules must not trust


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("op", [operator.add, operator.sub, operator.mul])
@pytest.mark.parametrize("compare", [operator.lt, operator.ge, operator.eq])
def test_arithmetic_wraps(dtype, op, compare) -> None:
    info = torch.iinfo(dtype)
    generator = torch.Generator().manual_seed(0)
    a, c = (torch.randint(0, 8, (64,), generator=generator) for _ in range(2))
    near = torch.tensor([info.min, info.min + 1, -1 if info.min else 2, 0, 1, info.max - 1, info.max, 3], dtype=dtype)
    a, c = near[a], near[c]
    assert_sound(lambda b, h, q, k: compare(op(a[q], c[k]), 1), size=4)
    assert_sound(lambda b, h, q, k: compare(op(a[q], c[k]), c[k]), size=4)


def test_sums_that_leave_int64() -> None:
    table = torch.full((64,), 2**61)
    assert_sound(lambda b, h, q, k: table[q] + table[k] + table[k] + table[k] > 0)
    assert_sound(lambda b, h, q, k: q - table[q] * 4 < k + table[k] * 3)


def test_bitwise_not_of_bools_turned_into_ints() -> None:
    assert_sound(lambda b, h, q, k: (~(q >= k).int()) < -1)
    assert_sound(lambda b, h, q, k: ((q >= k).int() ^ 1) == 1)
    assert_sound(lambda b, h, q, k: -(q >= k).long() < 0)
    assert_sound(lambda b, h, q, k: (q >= k).to(torch.uint8) - 1 > 3)


@pytest.mark.parametrize("divisor", [-7, -1, 1, 5])
def test_division_of_negatives(divisor: int) -> None:
    assert_sound(lambda b, h, q, k: (q - k) // divisor < -2, size=8)
    assert_sound(lambda b, h, q, k: (q - k) % divisor >= 2, size=8)
    assert_sound(lambda b, h, q, k: torch.div(q - k, divisor, rounding_mode="trunc") < -2, size=8)
    assert_sound(lambda b, h, q, k: torch.fmod(q - k, divisor) >= 2, size=8)


def test_division_by_what_may_be_zero_or_negative() -> None:
    by = torch.arange(64) - 20
    by[20] = 3
    assert_sound(lambda b, h, q, k: (q - k) // by[q] > 1, size=8)
    assert_sound(lambda b, h, q, k: (q + k) % by[k] > 1, size=8)


def test_indices_that_wrap_around() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(64, 64, generator=generator) < 0.02
    line = torch.rand(64, generator=generator) < 0.05
    assert_sound(lambda b, h, q, k: table[q - 32, k - 50], size=8)
    assert_sound(lambda b, h, q, k: line[q - k], size=8)
    assert_sound(lambda b, h, q, k: ~line[(q - k) % 64], size=8)
    assert_sound(lambda b, h, q, k: table[-1 - q, k], size=8)


def test_nan_and_infinity() -> None:
    x = torch.linspace(-2, 2, 64)
    x[5], x[20], x[40] = torch.nan, torch.inf, -torch.inf
    for compare in (operator.lt, operator.le, operator.eq, operator.ne, operator.gt):
        assert_sound(lambda b, h, q, k, compare=compare: compare(x[q], x[k]), size=4)
        assert_sound(lambda b, h, q, k, compare=compare: compare(x[q] - x[k], 0.5), size=4)
        assert_sound(lambda b, h, q, k, compare=compare: ~compare(x[q] * x[k], 0.5), size=4)


def test_rounding_to_a_narrower_float() -> None:
    big = 2**24 + torch.arange(64)
    same = torch.tensor(float(2**24))
    assert_sound(lambda b, h, q, k: big[q] + 0 * k == same, size=4)
    assert_sound(lambda b, h, q, k: (big[q] + 0 * k).half() > 1, size=4)
    assert_sound(lambda b, h, q, k: (q - k) * 0.1 < 0.7, size=4)


def test_promotion_that_vmap_decides_otherwise_is_refused() -> None:
    # int8 rows against an int64 scalar, and `where` of two dtypes: vmap and plain torch differ, and vmap is right.
    rows, byte = torch.zeros(64, 3, dtype=torch.int8), torch.arange(64).to(torch.uint8)
    with pytest.raises(Unknown, match="promotion"):
        recorded(lambda b, h, q, k: (rows[q] == k * 16).any(-1))
    with pytest.raises(Unknown, match="promotion"):
        recorded(lambda b, h, q, k: torch.where(q > 3, byte[q], k) < k)


def test_guards_that_hold_nowhere() -> None:
    ids = torch.full((64,), -1)
    must, could = classes(lambda b, h, q, k: (ids[q] == ids[k]) & (ids[q] >= 0) & (q >= k))
    assert not could.any()
    assert not must.any()


def same_as_lifted(mask, n: int = 64, size: int = 8) -> None:
    """Dense masks and exact blocks, for steps that a recording could mistake for others."""
    truth = vmap_mask(mask, 1, 1, n, n)
    assert torch.equal(dense_mask(mask, 1, 1, n, n), truth)
    x = truth.unflatten(3, (-1, size)).unflatten(2, (-1, size))
    found = classify_blocks(mask, 1, 1, n, n, block_size=size)
    assert torch.equal(found.full, x.all(5).all(3))
    assert torch.equal(found.empty, ~x.any(5).any(3))


@torch.jit.script
def scripted(q_idx: torch.Tensor, kv_idx: torch.Tensor) -> torch.Tensor:
    return q_idx >= kv_idx


REAL = torch.randn(64, generator=torch.Generator().manual_seed(0))
RANGES = torch.arange(64).unsqueeze(-1) + torch.tensor([-20, 3, 30])
NAN = torch.full((64, 64), torch.nan)
BYTES = torch.arange(64).byte() % 3
SIXTEEN = torch.arange(64).half()
TENTHS = SIXTEEN * 0.1
DOCUMENTS, OFFSETS = torch.arange(64) // 10, torch.arange(64) % 10
LOWEST = torch.full((64,), -(2**63)) + 5 + torch.arange(64) % 3
HIGHEST = torch.full((64,), 2**63 - 1)
DECEPTIVE = {
    "scripted functions pass torch functions by": lambda b, h, q, k: scripted(q, k),
    "vmap inside": lambda b, h, q, k: torch.vmap(lambda i: (q - i) >= k)(torch.arange(3)).all(),
    "named arguments": lambda b, h, q, k: torch.eq(q, other=k) | torch.sub(q, other=k).gt(other=9),
    "where with names": lambda b, h, q, k: torch.where(q >= k, input=q > 3, other=k > 3),
    "a view of other bits": lambda b, h, q, k: REAL[q].view(torch.int32) > k,
    "and of a bool and an int": lambda b, h, q, k: ((q >= 0) & q) == k,
    "a bool sum that leaves one out": lambda b, h, q, k: torch.add(q >= k, q > 3, alpha=False),
    "two zeros": lambda b, h, q, k: ((q - k) / 0.0 >= 1) & ((q - k) / -0.0 <= -1),
    "number over index": lambda b, h, q, k: 107 / (q + k + 1) >= 1,
    "bytes below zero": lambda b, h, q, k: -(q >= k).byte() > 200,
    "bytes of bools apart": lambda b, h, q, k: ((q >= k).byte() - (k > 3).byte()) > 200,
    "all of bytes": lambda b, h, q, k: (~BYTES[q].all()).bool() & (q >= k),
    "any over no dimension": lambda b, h, q, k: (RANGES[q] < k).any(dim=()),
    "one axis as a truth value": lambda b, h, q, k: torch.logical_xor(q - k > 2, k % 5) | torch.logical_and(q - k, k),
    "a truth value as an index": lambda b, h, q, k: (RANGES[q][True] == k).any(),
    "half precision by a Python float": lambda b, h, q, k: (SIXTEEN[q] - SIXTEEN[k]) * 0.1 == TENTHS[q],
    "NaN in a table": lambda b, h, q, k: ~(NAN[q, k] > 0.5),
    "an order of rows beside an equality": lambda b, h, q, k: (
        (DOCUMENTS[q] == DOCUMENTS[k]) & ((RANGES[q] <= k) & (k < RANGES[q] + 9)).any(-1)
    ),
    "an equality outside any": lambda b, h, q, k: (
        (RANGES[q] // 9 == RANGES[k] // 9) & (RANGES[q] * 3 < RANGES[k] + k).any(-1, keepdim=True)
    ).any(-1),
    "sums apart that wrap together": lambda b, h, q, k: (DOCUMENTS[q] == DOCUMENTS[k]) & (LOWEST[q] - 5 < HIGHEST[k]),
    "constants that do not fit": lambda b, h, q, k: (
        (DOCUMENTS[q] == DOCUMENTS[k]) & (OFFSETS[q] + 2**62 < OFFSETS[k] - 2**62 + 7)
    ),
}


@pytest.mark.parametrize("name", DECEPTIVE)
def test_what_could_be_mistaken(name: str) -> None:
    same_as_lifted(DECEPTIVE[name])


@pytest.mark.parametrize(
    "mask",
    [
        lambda b, h, q, k: None,
        lambda b, h, q, k: 1,
        lambda b, h, q, k: torch.full_like(q, k) <= q,
        lambda b, h, q, k: q.new_full((), k) <= q,
        lambda b, h, q, k: torch.add(q, q, alpha=k) > 3,
    ],
)
def test_what_the_lift_refuses(mask) -> None:
    for read in (vmap_mask, dense_mask, classify_blocks):
        with pytest.raises(MaskError):
            read(mask, 1, 1, 64, 64)


# ------------------------------------------------------------------------------------------------ what it must see


def test_shared_segments_need_no_tokens() -> None:
    ids = torch.arange(64) // 24
    start = torch.tensor([0, 24, 48])
    mask = lambda b, h, q, k: (ids[q] == ids[k]) & (q - start[ids[q]] >= k - start[ids[k]])  # noqa: E731
    _, could = classes(mask)
    x = vmap_mask(mask, 1, 1, 64, 64).unflatten(3, (-1, 16)).unflatten(2, (-1, 16))
    assert torch.equal(could, x.any(5).any(3))


def test_a_position_inside_a_table_costs_no_gather() -> None:
    ids = torch.arange(64)
    root = recorded(lambda b, h, q, k: (ids[q * ((q >= 0) & (q < 64))] == ids[k]) & (q >= k))
    gathers = [n for n in root.tape.nodes if n.op == "gather"]
    assert all(n.value.untyped_storage().data_ptr() == ids.untyped_storage().data_ptr() for n in gathers)


def test_steps_are_recorded_once() -> None:
    ids = torch.arange(64)
    root = recorded(lambda b, h, q, k: (ids[q] == ids[k]) & (ids[q] > 3) & (ids[q] < 9))
    assert sum(n.op == "gather" for n in root.tape.nodes) == 2
    assert root.axes == BOTH


@pytest.mark.parametrize(
    "mask",
    [
        lambda b, h, q, k: q >= k and k > 2,
        lambda b, h, q, k: not (q >= k),
        lambda b, h, q, k: q.item() > 3,
        lambda b, h, q, k: torch.arange(64)[int(q)] > k,
        lambda b, h, q, k: (q >= k).logical_and_(k > 3),
        lambda b, h, q, k: torch.stack([q, k]).amax() > 3,
        lambda b, h, q, k: torch.maximum(q, k, out=torch.empty((), dtype=torch.long)) > 3,
        lambda b, h, q, k: undefined_name,  # noqa: F821  # pyright: ignore
    ],
)
def test_what_is_refused(mask) -> None:
    with pytest.raises(Unknown):
        recorded(mask)


def test_python_answers() -> None:
    for answer in (True, False):
        must, could = classes(lambda b, h, q, k, answer=answer: answer)
        assert bool(must.all()) is answer
        assert bool(could.any()) is answer


def test_any_function_of_one_axis_is_exact() -> None:
    bounds = torch.tensor([10, 30, 31, 50])
    mask = lambda b, h, q, k: torch.searchsorted(bounds, q, right=True) == torch.bucketize(k, bounds, right=True)  # noqa: E731
    must, could = classes(mask)
    x = vmap_mask(mask, 1, 1, 64, 64).unflatten(3, (-1, 16)).unflatten(2, (-1, 16))
    assert torch.equal(must, x.all(5).all(3))
    assert torch.equal(could, x.any(5).any(3))
