"""Intervals of rows and columns against the dense mask: random masks, patterns, refusals with a witness, sizes."""

import pickle
import re
import time

import pytest
import torch
from hypothesis import given
from torch import Tensor

import maskmod
from cases import CASES, Case
from maskmod import (
    NotSpans,
    Spans,
    blockwise,
    causal,
    chunked,
    classify_tiles,
    column_spans,
    dfs_tree,
    document,
    full,
    key_padding,
    per_head,
    prefix,
    row_spans,
    shift,
    sinks,
    sliding_window,
    vmap_mask,
    window,
)
from maskmod.analyser import interval_sets
from maskmod.analyser.reading import read
from maskmod.analyser.solve import solved
from maskmod.errors import MaskTypeError, MaskValueError, UnsupportedMask
from oracle import loop_table
from random_masks import Expression, masks

BOTH = ((row_spans, False), (column_spans, True))
N = 40
IDS = torch.arange(N) // 7
POSITION = torch.arange(N) % 7
IMAGES = torch.full((N,), -1)
IMAGES[5:9], IMAGES[20:25] = 3, 4
RESTARTING = torch.full((N,), -1)
RESTARTING[2:5] = RESTARTING[9:12] = RESTARTING[16:19] = 1


def runs(visible: Tensor) -> Tensor:
    """How many runs of True stand in each row."""
    edges = torch.nn.functional.pad(visible.to(torch.int8), (1, 0)).diff(dim=-1)
    return (edges == 1).sum(-1)


def painted(spans: Spans, shape: torch.Size) -> Tensor:
    """The dense rows of spans, by a loop over their entries."""
    at = torch.arange(shape[-1])
    seen = torch.zeros(shape, dtype=torch.bool)
    for place in range(spans.starts.shape[-1]):
        start, end = (x[..., place].expand(shape[:-1]).unsqueeze(-1) for x in (spans.starts, spans.ends))
        seen |= (at >= start) & (at < end)
    return seen


def check(mask, size: tuple[int, int, int, int], visible: Tensor) -> None:
    """Rows and columns at exactly as many places as needed; one fewer is refused with a true witness."""
    for read_spans, transposed in BOTH:
        dense = visible.mT if transposed else visible
        many = runs(dense)
        most = max(1, int(many.max())) if many.numel() else 1
        spans = read_spans(mask, *size, max_spans=most)
        assert torch.equal(painted(spans, dense.shape), dense)
        assert torch.equal(spans.counts.expand(many.shape), many)
        assert torch.equal(spans.visible().expand(many.shape), dense.sum(-1))
        assert (spans.starts <= spans.ends).all()
        assert (spans.ends[..., :-1] <= spans.starts[..., 1:]).all()
        if most > 1:
            with pytest.raises(NotSpans) as refused:
                read_spans(mask, *size, max_spans=most - 1)
            assert many[refused.value.place] >= most
            assert f" {int(many[refused.value.place])} intervals" in refused.value.seen


@given(masks(depth=3))
def test_random_masks(drawn: Expression):
    check(drawn.build(), drawn.size, torch.tensor(loop_table(drawn.spec, *drawn.size)).view(drawn.size))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case(case: Case):
    size = (2, 4, 17, 23)
    check(case.build(*size), size, torch.tensor(loop_table(case.spec, *size)))


SOLVED = {
    "causal": causal(),
    "window": causal() & sliding_window(5),
    "two-sided window": window(3, 4),
    "documents": causal() & document(IDS),
    "a table of ids a row": causal() & document(torch.stack([IDS, torch.arange(N) // 11])),
    "documents in no order": causal() & document(torch.tensor([5] * 10 + [2] * 10 + [9] * 20)),
    "prefix": causal() | prefix(9),
    "a prefix a row": causal() | prefix(torch.tensor([3, 9])),
    "sinks": causal() & (sliding_window(5) | sinks(3)),
    "images": causal() | blockwise(IMAGES),
    "spans that restart in each document": (causal() | blockwise(RESTARTING)) & document(IDS),
    "the recipe": ((causal() & sliding_window(6)) | blockwise(RESTARTING)) & document(IDS),
    "positions in documents": lambda b, h, q_idx, kv_idx: (
        (IDS[q_idx] == IDS[kv_idx]) & (POSITION[kv_idx] <= POSITION[q_idx])
    ),
    "positions in documents, turned": lambda b, h, q_idx, kv_idx: (
        (IDS[q_idx] == IDS[kv_idx]) & (7 - POSITION[kv_idx] <= 7 - POSITION[q_idx])
    ),
    "other documents": lambda b, h, q_idx, kv_idx: IDS[q_idx] != IDS[kv_idx],
    "not causal": (causal() ^ True) & document(IDS),
    "distance": lambda b, h, q_idx, kv_idx: (q_idx - kv_idx).abs() < 4,
    "chunks": chunked(6, start=2) & causal(),
    "padding": causal() & key_padding(torch.tensor([[1] * 20 + [0] * 20, [0] * 5 + [1] * 35])),
    "lengths": causal() & key_padding(torch.tensor([7, 40])),
    "offsets": shift(causal(), q_offset=torch.tensor([0, 10])),
    "xor": causal() ^ sliding_window(3),
    "heads": per_head([causal(), sliding_window(3)]),
    "descending": lambda b, h, q_idx, kv_idx: -kv_idx >= q_idx - 30,
    "nothing": causal() & (causal() ^ True),
    "everything": full(),
}


@pytest.mark.parametrize("name", SOLVED)
def test_orders_and_equalities_open_no_block(name: str, monkeypatch: pytest.MonkeyPatch):
    mask, size = SOLVED[name], (2, 2, N, N)
    visible = vmap_mask(mask, *size)
    monkeypatch.setattr(maskmod.facts.spans, "tiles_of", None)  # pyright: ignore[reportAttributeAccessIssue]
    check(mask, size, visible)
    tiles = classify_tiles(mask, *size, block_size=8)
    monkeypatch.setattr(type(tiles), "_opened", None)
    assert torch.equal(tiles.row_counts(), visible.sum(-1))
    assert tiles.visible() == int(visible.sum())


def test_a_depth_first_tree_is_solved_by_columns(monkeypatch: pytest.MonkeyPatch):
    mask = dfs_tree(torch.tensor([N, 20, 3, *[20] * 17, *[N] * 20]))
    visible = vmap_mask(mask, 1, 1, N, N)
    assert solved(read(mask, 1, 1, N, N)) is None
    tiles = classify_tiles(mask, 1, 1, N, N, block_size=8)
    monkeypatch.setattr(type(tiles), "_opened", None)
    assert torch.equal(tiles.row_counts(), visible.sum(-1))
    spans = column_spans(mask, 1, 1, N, N)
    assert torch.equal(painted(spans, visible.mT.shape), visible.mT)


TABLE = torch.rand(300, 290, generator=torch.Generator().manual_seed(0)) < 0.3


@pytest.mark.parametrize(
    ("mask", "size"),
    [
        (lambda b, h, q_idx, kv_idx: TABLE[q_idx, kv_idx] | (q_idx >= kv_idx), (1, 1, 300, 290)),
        (lambda b, h, q_idx, kv_idx: (q_idx - kv_idx) % 7 == 0, (2, 2, 150, 290)),
        (
            lambda b, h, q_idx, kv_idx: ((q_idx - kv_idx) ** 2 < 900) & (q_idx >= kv_idx) | (kv_idx < b),
            (2, 1, 350, 290),
        ),
        (lambda b, h, q_idx, kv_idx: ((q_idx - kv_idx) ** 2 < 900) & (q_idx >= h * 20), (1, 3, 350, 290)),
        (lambda b, h, q_idx, kv_idx: (q_idx ^ kv_idx) < 128, (1, 1, 300, 290)),
    ],
)
def test_what_is_not_solved_is_descended(mask, size: tuple[int, int, int, int]):
    assert solved(read(mask, *size)) is None
    check(mask, size, vmap_mask(mask, *size))


def test_values_near_the_ends_of_int64_are_not_believed():
    ids = torch.tensor([-(2**63), 2**63 - 1, 0, 5])
    mask = lambda b, h, q_idx, kv_idx: ids[q_idx] - 1 < ids[kv_idx]  # noqa: E731
    assert solved(read(mask, 1, 1, 4, 4)) is None
    check(mask, (1, 1, 4, 4), vmap_mask(mask, 1, 1, 4, 4))


def test_sizes_of_zero():
    for size in ((1, 1, 0, 5), (1, 1, 5, 0), (2, 3, 0, 0)):
        check(causal(), size, torch.zeros(size, dtype=torch.bool))


def test_a_lane_that_is_not_read_comes_once():
    assert row_spans(causal(), 3, 5, 8, 8).starts.shape == (1, 1, 8, 1)
    assert row_spans(per_head([causal(), full()]), 3, 2, 8, 8).starts.shape == (1, 2, 8, 1)
    assert row_spans(causal(), 3, 5, 8, 8).starts.dtype == torch.int64


def test_unused_places_are_empty_and_last():
    spans = row_spans(causal() & (sliding_window(2) | sinks(1)), 1, 1, 5, 5, max_spans=3)
    assert spans.starts[0, 0, 0].tolist() == [0, 5, 5]
    assert spans.ends[0, 0, 0].tolist() == [1, 5, 5]
    assert spans.counts[0, 0].tolist() == [1, 1, 1, 2, 2]


def test_refusals():
    mask = causal() & (sliding_window(2) | sinks(1))
    seen = re.escape("row_spans(causal() & (sliding_window(2) | sinks(1)), max_spans=1): not supported, query 3 has 2")
    with pytest.raises(NotSpans, match=seen) as refused:
        row_spans(mask, 1, 1, 5, 5)
    assert refused.value.place == (0, 0, 3)
    assert isinstance(refused.value, UnsupportedMask)
    assert pickle.loads(pickle.dumps(refused.value)).place == (0, 0, 3)
    with pytest.raises(NotSpans, match="key 1 of batch row 0, head 1, has 2 intervals of queries"):
        column_spans(lambda b, h, q_idx, kv_idx: (q_idx != 3) | (h == 0) | (kv_idx != 1), 1, 2, 5, 5)
    with pytest.raises(MaskValueError, match="max_spans=0"):
        row_spans(causal(), 1, 1, 5, 5, max_spans=0)
    with pytest.raises(MaskTypeError, match="inside a trace"):
        row_spans(causal() & document(torch.zeros(5, dtype=torch.int64, device="meta")), 1, 1, 5, 5)


def test_a_row_with_far_too_many_is_told_without_opening_the_rest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(maskmod.facts.spans, "_MOST_HELD", 64)  # pyright: ignore[reportAttributeAccessIssue]
    mask = lambda b, h, q_idx, kv_idx: TABLE[q_idx, kv_idx]  # noqa: E731
    with pytest.raises(NotSpans, match="has at least") as refused:
        row_spans(mask, 1, 1, 300, 290)
    least = int(re.search(r"at least (\d+)", refused.value.seen)[1])  # pyright: ignore[reportOptionalSubscript]
    assert runs(TABLE[refused.value.place[2]]) >= least > 1


@pytest.mark.slow
def test_a_million_tokens():
    n = 1 << 20
    ids = torch.arange(n) // 1000
    for mask in (causal(), causal() & sliding_window(4096), causal() & document(ids), causal() | prefix(1000)):
        tiles = classify_tiles(mask, 1, 1, n, n, block_size=1024)
        begin = time.process_time()
        tiles.row_counts()
        assert time.process_time() - begin < 1.0  # opening the boundary took longer
    assert interval_sets.MOST >= 2
