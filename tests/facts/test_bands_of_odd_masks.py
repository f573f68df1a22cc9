"""SDPA goes without a mask only where that is right: chunks met before position 0, masks that override another."""

import itertools

import pytest
import torch

from maskmod import chunked, lower, shift, vmap_mask
from maskmod.algebra import And
from maskmod.masks import Causal, Full


def hides_nothing(mask, q_len, kv_len):
    args = lower(mask, "sdpa", 1, 1, q_len, kv_len).kwargs()
    return args["attn_mask"] is None and not args["is_causal"]


@pytest.mark.parametrize("offsets", list(itertools.product((-9, -2, 0, 3), repeat=2)), ids=str)
def test_a_shifted_chunk_is_full_only_where_it_is(offsets):
    q_offset, kv_offset = offsets
    mask = shift(chunked(8), q_offset=q_offset, kv_offset=kv_offset)
    for q_len, kv_len in itertools.product((1, 2, 4, 6), repeat=2):
        if hides_nothing(mask, q_len, kv_len):
            assert vmap_mask(mask, 1, 1, q_len, kv_len).all(), (mask, q_len, kv_len)
    assert hides_nothing(mask, 4, 4) == (min(offsets) >= 0)


def test_shifts_add_up_before_a_chunk_is_judged():
    assert hides_nothing(shift(shift(chunked(8), q_offset=-2), q_offset=2), 4, 4)
    assert not hides_nothing(shift(shift(chunked(8), q_offset=2), q_offset=-4), 4, 4)


class StrictlyCausal(Causal):
    def __call__(self, b, h, q_idx, kv_idx):
        return kv_idx < q_idx


class Nothing(Full):
    def __call__(self, b, h, q_idx, kv_idx):
        return kv_idx != kv_idx


class Neither(And):
    def __call__(self, b, h, q_idx, kv_idx):
        return kv_idx != kv_idx


@pytest.mark.parametrize("mask", [StrictlyCausal(), Nothing(), Neither(Full(), Full())], ids=repr)
def test_a_subclass_is_judged_by_its_own_predicate(mask):
    assert torch.equal(lower(mask, "sdpa", 1, 1, 4, 4).kwargs()["attn_mask"], vmap_mask(mask, 1, 1, 4, 4))
