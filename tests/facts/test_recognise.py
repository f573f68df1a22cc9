"""What a mask turns out to be: never a band or documents that it is not, and found however it is written."""

import pytest
import torch
from hypothesis import given

from maskmod import causal, document, full, key_padding, mask_mod, prefix, shift, sliding_window, vmap_mask
from maskmod.analyser.reading import read
from maskmod.facts.recognise import band_mask, packed_mask, proven_band, proven_packed
from maskmod.facts.structure import Band
from random_masks import Case, Expression, masks

IDS = torch.tensor([4] * 5 + [2] * 1 + [9] * 6 + [4] * 4)  # an id comes back: another document all the same
START = torch.tensor([0] * 5 + [5] + [6] * 6 + [12] * 4)
POSITION = torch.arange(16) - START
RUNS = torch.tensor([0] * 5 + [1] + [2] * 6 + [3] * 4)


@pytest.mark.parametrize(
    ("mask", "band"),
    [
        (lambda b, h, q, k: k <= q, Band(None, 0)),
        (lambda b, h, q, k: ~(k > q), Band(None, 0)),
        (lambda b, h, q, k: (q - k).abs() <= 3, Band(-3, 3)),
        (lambda b, h, q, k: (q - k >= 0) & (q - k < 4), Band(-3, 0)),
        (lambda b, h, q, k: k == q, Band(0, 0)),
        (lambda b, h, q, k: k == q + 2, Band(2, 2)),
        (lambda b, h, q, k: k < 99, Band(None, None)),
        (shift(causal(), q_offset=torch.tensor(3)), Band(None, 3)),
        (sliding_window(torch.tensor(5)), Band(-4, 0)),
        (causal() & (sliding_window(3) | sliding_window(6)), Band(-5, 0)),
        (lambda b, h, q, k: (k <= q) & (b >= 0) & (h < 7), Band(None, 0)),
        (~full(), None),
        (causal() | prefix(4), None),
        (lambda b, h, q, k: (k <= q) ^ ((q == 9) & (k == 2)), None),
        (lambda b, h, q, k: (k <= q) ^ ((b == 1) & (q == 9) & (k == 2)), None),
        (lambda b, h, q, k: (k <= q) ^ ((h == 1) & (k == 15) & (q == 15)), None),
    ],
)
def test_bands(mask, band: Band | None):
    assert proven_band(read(mask, 2, 2, 16, 16)) == band


@pytest.mark.parametrize(("q_len", "kv_len"), [(4, 16), (16, 4), (1, 9), (9, 1), (1, 1)])
def test_bands_of_rectangles(q_len: int, kv_len: int):
    for low, high in ((-2, 1), (None, 0), (0, None), (None, kv_len - q_len), (-3, 0)):
        mask = mask_mod(band_mask(Band(low, high)))
        found = proven_band(read(mask, 1, 1, q_len, kv_len))
        if found is None:
            assert low == high == 0 or not vmap_mask(mask, 1, 1, q_len, kv_len).any(-1).all()
            continue
        assert torch.equal(vmap_mask(band_mask(found), 1, 1, q_len, kv_len), vmap_mask(mask, 1, 1, q_len, kv_len))


@pytest.mark.parametrize(
    "inner", [None, lambda b, h, q, k: k <= q, sliding_window(3), lambda b, h, q, k: (q - k).abs() < 3]
)
def test_documents_however_they_are_written(inner):
    inner = full() if inner is None else mask_mod(inner)
    ways = [
        document(RUNS) & inner,
        mask_mod(lambda b, h, q, k: START[q] == START[k]) & inner,
        mask_mod(lambda b, h, q, k: q - POSITION[q] == k - POSITION[k]) & inner,
    ]
    found = [proven_packed(read(way, 2, 2, 16, 16)) for way in ways]
    bands = set()
    for packed in found:
        assert packed is not None
        assert packed.ids.tolist() == [RUNS.tolist()]
        bands.add(packed.band)
        assert torch.equal(vmap_mask(packed_mask(packed), 1, 1, 16, 16), vmap_mask(ways[0], 1, 1, 16, 16))
    assert len(bands) == 1


def test_packed_causal_by_starts():
    packed = proven_packed(read(lambda b, h, q, k: (k <= q) & (k >= START[q]), 1, 1, 16, 16))
    assert packed is not None
    assert (packed.ids.tolist(), packed.band) == ([RUNS.tolist()], Band(None, 0))


def test_documents_that_differ_between_rows():
    ids = torch.stack([RUNS, torch.zeros(16).long()])
    packed = proven_packed(read(lambda b, h, q, k: (ids[b, q] == ids[b, k]) & (q >= k), 2, 1, 16, 16))
    assert packed is not None
    assert packed.ids.tolist() == ids.tolist()


@pytest.mark.parametrize(
    "mask",
    [
        document(IDS) & causal(),  # id 4 sees its first run again
        causal() & document(RUNS) & key_padding(torch.tensor([12])),
        lambda b, h, q, k: ((RUNS[q] == RUNS[k]) & (q >= k)) ^ ((q == 3) & (k == 1)),
        lambda b, h, q, k: ((RUNS[q] == RUNS[k]) & (q >= k)) | (k == 0),
    ],
)
def test_what_is_no_packing(mask):
    assert proven_packed(read(mask, 1, 1, 16, 16)) is None


@given(masks(depth=2))
def test_what_is_found_is_what_the_mask_is(drawn: Expression):
    never_false(drawn.build(), drawn.size)


@pytest.mark.parametrize("seed", range(20))
def test_random_predicates(seed: int):
    case = Case(seed)
    if case.truth is not None:
        never_false(case.mask, (case.B, case.H, case.q_len, case.kv_len))


def never_false(mask, sizes: tuple[int, int, int, int]) -> None:
    reading, truth = read(mask, *sizes), vmap_mask(mask, *sizes)
    band = proven_band(reading)
    if band is not None:
        assert torch.equal(vmap_mask(band_mask(band), *sizes), truth)
    packed = proven_packed(reading)
    if packed is not None:
        assert torch.equal(vmap_mask(packed_mask(packed), *sizes), truth)


def test_a_million_tokens():
    n = 1 << 20
    start = torch.arange(n) // 3001 * 3001
    assert proven_band(read(lambda b, h, q, k: (q - k).abs() <= 2048, 1, 1, n, n)) == Band(-2048, 2048)
    packed = proven_packed(read(lambda b, h, q, k: (k <= q) & (k >= start[q]), 1, 1, n, n))
    assert packed is not None
    assert packed.band == Band(None, 0)
    assert int(packed.ids[0, -1]) == (n - 1) // 3001


def test_nothing_is_looked_at_in_a_trace():
    answers = []

    @torch.compile(backend="eager", fullgraph=True)
    def inside(x):
        reading = read(causal(), 1, 1, 4, 4)
        answers.append(proven_band(reading) is None and proven_packed(reading) is None)
        return x + 1

    inside(torch.ones(1))
    assert answers == [True]
