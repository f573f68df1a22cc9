"""Index substitution: every form of a cache position, maps and their ends, choices between masks."""

import pytest
import torch

from maskmod import (
    at_positions,
    causal,
    dense_mask,
    document,
    full,
    key_padding,
    per_head,
    remap,
    same_structure,
    shift,
    sliding_window,
    where,
)
from maskmod.errors import MaskShapeError
from oracle import loop_table

B, Q_LEN, KV_LEN = 2, 3, 12


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("position", "meaning"),
    [
        (4, lambda b, q: 4 + q),
        ([], lambda b, q: 5 + q),
        ([5], lambda b, q: 5 + q),
        ([2, 7, 8], lambda b, q: [2, 7, 8][q]),
        ([[3], [6]], lambda b, q: [3, 6][b] + q),
        ([[1, 2, 3], [9, 4, 0]], lambda b, q: [[1, 2, 3], [9, 4, 0]][b][q]),
    ],
    ids=["int", "0-d", "(1,)", "(q_len,)", "(B, 1)", "(B, q_len)"],
)
def test_every_form_of_a_cache_position(position, meaning, dtype: torch.dtype):
    if position == []:
        position = torch.tensor(5, dtype=dtype)
    elif isinstance(position, list):
        position = torch.tensor(position, dtype=dtype)
    mask = at_positions(causal() & sliding_window(4), position, Q_LEN)
    expected = loop_table(lambda b, h, q, kv: 0 <= meaning(b, q) - kv < 4, B, 1, Q_LEN, KV_LEN)
    assert dense_mask(mask, B, 1, Q_LEN, KV_LEN).tolist() == expected


def test_one_query_with_a_row_of_one():
    mask = at_positions(causal(), torch.tensor([[3], [1]]), 1)
    assert dense_mask(mask, 2, 1, 1, 5).int().tolist() == [[[[1, 1, 1, 1, 0]]], [[[1, 1, 0, 0, 0]]]]


@pytest.mark.parametrize("shape", [(2,), (4,), (2, 2), (2, 3, 1)], ids=str)
def test_other_shapes_of_a_cache_position_mean_nothing(shape: tuple[int, ...]):
    with pytest.raises(MaskShapeError) as caught:
        at_positions(causal(), torch.zeros(shape, dtype=torch.int64), Q_LEN)
    assert str(caught.value) == (
        f"cache_position=int64{list(shape)} with q_len=3: this shape says neither where the first query is nor where "
        "every query is. Pass an int, or a tensor of shape (), (1,), (3,), (B, 1) or (B, 3)."
    )


def test_new_positions_keep_the_structure():
    first, second = torch.tensor([3]), torch.tensor([4])
    assert same_structure(at_positions(causal(), first, 1), at_positions(causal(), second, 1))


def test_validity_is_over_slots_and_comes_last():
    slots = torch.tensor([0, 0, 1])  # two slots claim position 0; the first was never written
    mask = remap(full(), kv=slots, valid=torch.tensor([False, True, True]))
    assert dense_mask(mask, 1, 1, 1, 3)[0, 0, 0].tolist() == [False, True, True]
    assert dense_mask(~mask, 1, 1, 1, 3)[0, 0, 0].tolist() == [True, False, False]
    inside = remap(~full() ^ True, kv=slots, valid=torch.tensor([0, 2, 1]))
    assert dense_mask(inside, 1, 1, 1, 3)[0, 0, 0].tolist() == [False, True, True]


def test_an_index_outside_a_table_is_hidden():
    table = torch.tensor([0, 1])
    for mask in (remap(full(), kv=table), remap(full(), q=table), remap(full(), valid=table == table)):
        for index in (-1, 2, 99):
            assert not bool(mask(0, 0, index, index))
        assert bool(mask(0, 0, 1, 1))


def test_positions_beyond_a_table_of_the_mask_are_hidden():
    ids = torch.zeros(4, dtype=torch.int64)
    mask = shift(document(ids), q_offset=torch.tensor(2))
    assert dense_mask(mask, 1, 1, 4, 4)[0, 0].any(-1).tolist() == [True, True, False, False]


def test_a_static_shift_asks_for_longer_tables():
    ids = torch.zeros(4, dtype=torch.int64)
    assert dense_mask(shift(document(ids), q_offset=1), 1, 1, 3, 4).all()
    with pytest.raises(MaskShapeError, match=r"on q_len=5: the table has 4 columns, 5 needed"):
        dense_mask(shift(document(ids), q_offset=1), 1, 1, 4, 4)


def test_a_map_frees_the_inner_mask_from_the_lengths():
    lengths = key_padding(torch.ones(1, 4, dtype=torch.bool))
    assert dense_mask(remap(lengths, kv=torch.tensor([3, 3, 2, 9, 0])), 1, 1, 1, 5).tolist() == [
        [[[True, True, True, False, True]]]
    ]


def test_where_and_per_head_take_plain_functions():
    mask = where(
        lambda b, h, q_idx, kv_idx: h == 0,
        lambda b, h, q_idx, kv_idx: kv_idx == q_idx,
        per_head([causal(), lambda b, h, q_idx, kv_idx: kv_idx > q_idx]),
    )
    expected = loop_table(lambda b, h, q, kv: kv == q if h == 0 else kv > q, 1, 2, 4, 4)
    assert dense_mask(mask, 1, 2, 4, 4).tolist() == expected


def test_each_distinct_mask_of_per_head_is_evaluated_once():
    calls = []

    def spy(b, h, q_idx, kv_idx):
        calls.append(h)
        return kv_idx <= q_idx

    per_head([spy, causal(), spy, spy])(0, 2, 1, 0)
    assert len(calls) == 1
