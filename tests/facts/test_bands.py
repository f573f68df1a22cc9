"""Bands: everything that is claimed holds, and what fused kernels live on is claimed."""

import pytest
import torch
from hypothesis import given

from maskmod import causal, chunked, dense_mask, document, full, per_head, prefix, shift, sinks, sliding_window, window
from maskmod.algebra import as_mask
from maskmod.facts.structure import Band, band_of
from random_masks import Expression, masks

CAUSAL, FULL = Band(None, 0), Band(None, None)


@pytest.mark.parametrize(
    ("mask", "band"),
    [
        (full(), FULL),
        (causal(), CAUSAL),
        (sliding_window(4), Band(-3, 0)),
        (window(2, 1), Band(-2, 1)),
        (window(None, 0), CAUSAL),
        (window(None, None), FULL),
        (causal() & window(5, 5), Band(-5, 0)),
        (causal() & full(), CAUSAL),
        (sliding_window(8) & sliding_window(3), Band(-2, 0)),
        (causal() | sliding_window(3), CAUSAL),
        (causal() | full(), FULL),
        (~window(None, 3), Band(4, None)),
        (~window(3, None), Band(None, -4)),
        (~~causal(), CAUSAL),
        (shift(causal(), q_offset=3), Band(None, 3)),
        (shift(causal(), q_offset=3, kv_offset=3), CAUSAL),
        (shift(shift(causal(), q_offset=2), kv_offset=2), CAUSAL),
        (per_head([causal(), window(None, 0)]), CAUSAL),
        (prefix(8), FULL),
        (sinks(8), FULL),
        (chunked(8), FULL),
        # not proven
        (per_head([causal(), full()]), None),
        (prefix(7), None),
        (chunked(7), None),
        (chunked(8, start=1), None),
        (chunked(8, start=torch.tensor(0)), None),
        (~sliding_window(3), None),
        (window(1, None) | window(None, -0), None),
        (sliding_window(torch.tensor(9)), None),
        (shift(causal(), q_offset=torch.tensor(0)), None),
        (document(torch.zeros(8).long()), None),
        (causal() ^ full(), None),
        (as_mask(lambda b, h, q_idx, kv_idx: kv_idx <= q_idx), None),
    ],
    ids=str,
)
def test_bands_at_eight_tokens(mask, band: Band | None):
    assert band_of(mask, 8, 8) == band


@given(masks())
def test_a_band_is_what_the_mask_is(drawn: Expression):
    q_len, kv_len = drawn.size[2:]
    mask = as_mask(drawn.build())
    band = band_of(mask, q_len, kv_len)
    if band is None:
        return
    distance = torch.arange(kv_len) - torch.arange(q_len)[:, None]
    low = -99 if band.low is None else band.low
    high = 99 if band.high is None else band.high
    seen = dense_mask(mask, *drawn.size)
    assert torch.equal(seen, ((low <= distance) & (distance <= high)).expand(drawn.size))
    if band.is_full(q_len, kv_len):
        assert seen.all()
    if band.is_causal(q_len):
        assert torch.equal(seen, (distance <= 0).expand(drawn.size))


@pytest.mark.parametrize("q_len", range(1, 6))
@pytest.mark.parametrize("kv_len", range(1, 6))
def test_full_and_causal_at_these_lengths_are_proven(q_len: int, kv_len: int):
    distance = torch.arange(kv_len) - torch.arange(q_len)[:, None]
    for low in [None, *range(-5, 2)]:
        for high in [None, *range(-2, 6)]:
            visible = (distance >= (-99 if low is None else low)) & (distance <= (99 if high is None else high))
            band = Band(low, high)
            assert band.is_full(q_len, kv_len) == bool(visible.all())
            assert not band.is_causal(q_len) or torch.equal(visible, distance <= 0)
            assert high != 0 or band.is_causal(q_len) == torch.equal(visible, distance <= 0)
