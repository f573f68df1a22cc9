"""Proofs against the dense truth: the answer, and the counterexample by calling the predicate on its numbers."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.exc import TorchDynamoException

from maskmod import (
    Element,
    Proof,
    causal,
    disjoint,
    document,
    equal,
    implies,
    is_empty,
    is_full,
    leaks_future,
    prefix,
    shift,
    sliding_window,
    vmap_mask,
    window,
)
from maskmod.analyser.reading import read
from maskmod.errors import MaskTypeError, MaskValueError, TruthValueError
from maskmod.facts import proofs
from random_masks import Case, masks, shapes

LONG = 1 << 20


@pytest.fixture(params=["tiles", "tokens"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of searching: through tiles from the top, several levels of them, and every token."""
    if request.param == "tiles":
        monkeypatch.setattr(proofs, "_SMALL", 0)
        monkeypatch.setattr(proofs, "_TOP_TILES", 4)
        monkeypatch.setattr(proofs, "_TILES_AT_ONCE", 40)
    return request.param


def agrees(proof: Proof, violations: torch.Tensor) -> None:
    """The proof against a table of the elements that would refute it."""
    assert proof.holds == (not violations.any())
    if proof.holds:
        assert proof.counterexample is None
    else:
        assert proof.counterexample is not None
        assert violations[tuple(proof.counterexample)]


def check_pair(a, b, sizes: tuple[int, int, int, int]) -> None:
    A, B = vmap_mask(a, *sizes), vmap_mask(b, *sizes)
    agrees(equal(a, b, *sizes), A ^ B)
    agrees(implies(a, b, *sizes), A & ~B)
    agrees(disjoint(a, b, *sizes), A & B)
    agrees(is_empty(a, *sizes), A)
    agrees(is_full(a, *sizes), ~A)


@given(st.data())
def test_pairs_of_expressions(data: st.DataObject):
    size = data.draw(shapes(longest=9))
    a, b = data.draw(masks(size=size, depth=2)), data.draw(masks(size=size, depth=2))
    check_pair(a.build(), b.build(), size)


def _one_element(mask, place: tuple[int, int, int, int]):
    def differs(b, h, q_idx, kv_idx):
        here = (b == place[0]) & (h == place[1]) & (q_idx == place[2]) & (kv_idx == place[3])
        return mask(b, h, q_idx, kv_idx) ^ here

    return differs


@pytest.mark.parametrize("seed", range(24))
def test_random_predicates(seed: int, path: str):
    check_random(seed)


@pytest.mark.slow
def test_more_random_predicates(path: str):
    for seed in range(24, 1000):
        check_random(seed)


def check_random(seed: int) -> None:
    case = Case(seed)
    if case.truth is None:
        return
    sizes = (case.B, case.H, case.q_len, case.kv_len)
    other = eval(f"lambda b, h, q, k: {case.boolean(1)}", case.names)
    try:
        vmap_mask(other, *sizes)
    except Exception:
        return
    check_pair(case.mask, other, sizes)
    again = eval(f"lambda b, h, q, k: {case.source}", case.names)
    assert equal(case.mask, again, *sizes) == Proof(True, None), case
    rng = random.Random(seed)
    place = (rng.randrange(case.B), rng.randrange(case.H), rng.randrange(case.q_len), rng.randrange(case.kv_len))
    if isinstance(case.mask(*(torch.tensor(0),) * 4), bool):
        return
    assert equal(case.mask, _one_element(case.mask, place), *sizes) == Proof(False, Element(*place)), case
    assert implies(lambda *idx: False, case.mask, *sizes).holds


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (causal(), lambda b, h, q, k: q - k >= 0),
        (causal(), lambda b, h, q, k: ~(k > q)),
        (causal(), lambda b, h, q, k: -q <= -k),
        (sliding_window(512), lambda b, h, q, k: (q >= k) & (k > q - 512)),
        (sliding_window(512), causal() & window(511, 99)),
        (window(512, 512), lambda b, h, q, k: (q - k).abs() <= 512),
        (sliding_window(torch.tensor(512)), lambda b, h, q, k: (q - k < 512) & (q >= k)),
        (lambda b, h, q, k: (q >= k) & ((q - k) % 4 == 0), causal() & (lambda b, h, q, k: (q - k) % 4 == 0)),
        (~(~causal() | ~sliding_window(9)), sliding_window(9)),
    ],
)
def test_a_million_tokens_said_twice(a, b):
    assert equal(a, b, 1, 1, LONG, LONG) == Proof(True, None)
    assert not equal(a, causal() & sliding_window(7), 1, 1, LONG, LONG).holds


def test_packed_causal_three_ways_at_a_million():
    ids = (torch.arange(LONG) % 3001 == 0).cumsum(0)
    position = torch.arange(LONG) - torch.searchsorted(ids, ids)
    start = torch.searchsorted(ids, ids)
    ways = [
        causal() & document(ids),
        lambda b, h, q, k: (k <= q) & (k >= start[q]),
        lambda b, h, q, k: (k <= q) & (k >= q - position[q]),
    ]
    for way in ways[1:]:
        assert equal(ways[0], way, 1, 1, LONG, LONG).holds
    start[123456] -= 1
    found = equal(ways[0], ways[1], 1, 1, LONG, LONG).counterexample
    assert found == Element(0, 0, 123456, int(start[123456]))


def test_one_element_of_a_million_squared():
    flag = torch.zeros(LONG, dtype=torch.bool)
    flag[777_777] = True
    found = leaks_future(lambda b, h, q, k: (k <= q) | (flag[q] & (k == 900_000)), 1, 1, LONG, LONG)
    assert found == Proof(True, Element(0, 0, 777_777, 900_000))


def test_leaks():
    assert leaks_future(causal(), 1, 1, 8, 8) == Proof(False, None)
    assert leaks_future(causal() | prefix(3), 1, 1, 8, 8) == Proof(True, Element(0, 0, 0, 1))
    decode = shift(causal(), q_offset=5)
    assert leaks_future(decode, 1, 1, 3, 8).holds
    assert not leaks_future(decode, 1, 1, 3, 8, q_offset=5).holds
    rows = torch.tensor([5, 4])
    assert leaks_future(decode, 2, 1, 3, 8, q_offset=rows).counterexample == Element(1, 0, 0, 5)


def test_lanes_that_the_predicate_reads():
    found = equal(causal(), lambda b, h, q, k: (k <= q) | ((b == 2) & (h == 1) & (k == q + 1)), 3, 2, 512, 512)
    assert not found.holds
    assert found.counterexample is not None
    b, h, q_idx, kv_idx = found.counterexample
    assert (b, h, kv_idx) == (2, 1, q_idx + 1)


def test_zero_lengths_hold_everything():
    assert is_empty(causal(), 1, 1, 0, 4).holds
    assert is_full(~causal(), 1, 1, 4, 0).holds
    assert equal(causal(), ~causal(), 0, 1, 4, 4).holds


def test_a_predicate_that_cannot_be_recorded_is_evaluated():
    def fancy(b, h, q_idx, kv_idx):
        return torch.stack([kv_idx <= q_idx, kv_idx == 0]).any()

    assert read(fancy, 1, 1, 8, 8).root is None
    assert equal(fancy, causal() | prefix(1), 1, 1, 300, 300).holds
    assert equal(fancy, causal(), 1, 1, 300, 300).holds
    assert equal(fancy, sliding_window(290), 1, 1, 300, 300).counterexample is not None


def test_what_would_take_minutes_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(proofs, "_MOST_TOKENS", 1 << 20)
    with pytest.raises(MaskValueError, match=r"the analyser leaves too much open .* Prove it at smaller lengths"):
        is_empty(lambda b, h, q, k: ((q * 7 + k * 13) % 5 == 4) & ((q * 14 + k * 26) % 5 == 2), 1, 1, 4096, 4096)


def test_floating_point_with_nan_is_not_reasoned_about():
    x = torch.tensor([0.0, float("nan"), 2.0] * 40)
    sizes = (1, 1, 120, 120)
    check_pair(lambda b, h, q, k: x[q] < x[k], lambda b, h, q, k: ~(x[k] <= x[q]), sizes)
    assert not equal(lambda b, h, q, k: x[q] < x[k], lambda b, h, q, k: ~(x[k] <= x[q]), *sizes).holds


def test_sums_that_overflow_are_not_reasoned_about(path: str):
    huge = torch.tensor([2**62, -(2**62), 5, 2**63 - 1, 0, 1, 2, 3])
    sizes = (1, 1, 8, 8)
    check_pair(lambda b, h, q, k: huge[q] + huge[k] < 3, lambda b, h, q, k: huge[q] < 3 - huge[k], sizes)
    check_pair(lambda b, h, q, k: huge[q] - huge[k] < 0, lambda b, h, q, k: huge[q] < huge[k], sizes)


def test_a_proof_has_no_truth_value():
    with pytest.raises(TruthValueError, match=r"a proof has an answer and a counterexample.*Ask for `.holds`"):
        bool(is_empty(causal(), 1, 1, 4, 4))


def test_not_inside_a_trace():
    @torch.compile(backend="eager", fullgraph=True)
    def proved(x):
        return x + is_empty(causal(), 1, 1, 4, 4).holds

    with pytest.raises((MaskTypeError, TorchDynamoException), match="it looks at values"):
        proved(torch.ones(1))
