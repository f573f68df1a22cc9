"""A pairwise cover of the compile matrix: every two of mask, layout, backend, position, way and length meet once."""

from __future__ import annotations

import itertools

import pytest
import torch

from compile_tests.matrix import FORMS, KERNELS, LAYOUTS, MASKS, Q_LENS, WAYS, Cell, cells, pairwise, run, run_prefill

COVER = pairwise()


@pytest.mark.parametrize("cell", COVER, ids=str)
def test_decode(cell):
    run(cell, steps=20)


@pytest.mark.parametrize(
    ("mask", "backend"),
    [
        ("document", "sdpa"),
        ("lambda", "sdpa"),
        ("per_head", "eager"),
        ("causal", "flex"),
        ("key_padding, table", "flex"),
    ],
)
def test_prefill(mask, backend):
    run_prefill(mask, backend)


def test_the_cover_covers():
    factors = (MASKS, LAYOUTS, KERNELS, FORMS, WAYS, Q_LENS)
    for (i, a), (j, b) in itertools.combinations(enumerate(factors), 2):
        assert {(cell[i], cell[j]) for cell in COVER} == set(itertools.product(a, b))


def test_an_int_position_that_equals_a_width():
    run(Cell("sliding_window", "static", "flex", "int", "argument", 1), steps=8)  # the window is 5, so is one position


def test_the_whole_matrix_deals_every_way_and_length():
    whole = cells()
    assert len(whole) == len({cell[:4] for cell in whole}) == len(MASKS) * len(LAYOUTS) * len(KERNELS) * len(FORMS)
    for mask, layout, backend in itertools.product(MASKS, LAYOUTS, KERNELS):
        here = [cell for cell in whole if cell[:3] == (mask, layout, backend)]
        assert {cell.q_len for cell in here} == set(Q_LENS)
        assert {cell.way for cell in here} == set(WAYS)
    for backend, form in itertools.product(KERNELS, FORMS):
        here = {cell[4:] for cell in whole if (cell.backend, cell.form) == (backend, form)}
        assert here == set(itertools.product(WAYS, Q_LENS))


def test_a_cell_that_recompiles_does_not_hold(monkeypatch):
    monkeypatch.setitem(FORMS, "0-d", lambda p: torch.tensor(p) if p % 2 else torch.tensor([p]))
    with pytest.raises(AssertionError, match="2 graphs"):
        run(Cell("causal", "static", "sdpa", "0-d", "plan", 1))


def test_a_cell_with_another_mask_does_not_hold(monkeypatch):
    case = MASKS["causal"]
    built = iter([case.build()])  # the plan's mask is right, the masks that it is compared with are not
    monkeypatch.setitem(MASKS, "causal", case._replace(build=lambda: next(built, MASKS["sliding_window"].build())))
    with pytest.raises(AssertionError, match="not close"):
        run(Cell("causal", "static", "sdpa", "0-d", "plan", 1))
