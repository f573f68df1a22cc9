"""A rank that disagrees, dies or is late: every other rank ends with an error that names it, within its timeout."""

from __future__ import annotations

import re

import pytest

from ranks import on_ranks, values
from sharded_faults import every_disagreement, plan_and_call

SEEN = {
    "a window": "mask is sliding_window(5) on rank 1, sliding_window(4) on ranks 0, 2",
    "another kind of mask": "mask is causal() on rank 1, sliding_window(4) on ranks 0, 2",
    "a number that a lambda captured": "mask is captured.<locals>.<lambda> (detail ",
    "the body of a lambda": "mask is other_body.<locals>.<lambda> on rank 1, captured.<locals>.<lambda> on ranks 0, 2",
    "the size of a table": "mask is document(int64[38]) on rank 1, document(int64[37]) on ranks 0, 2",
    "contents": "the contents of the mask's tensors is ",
    "a layout": "layout is Contiguous() on rank 1, HeadTail() on ranks 0, 2",
    "what a layout balances": "layout is Balanced(causal(), block=4) on rank 1, Balanced(sliding_window(4), bl",
    "contents of a layout": "the contents of the layout's tensors is ",
    "a method": "method is ring on rank 1, auto on ranks 0, 2",
    "tokens": "rank 1 with other tokens than its own: the ranks hold [13, 11, 12] tokens, HeadTail() deals",
    "keys": "rank 1 has 12 queries, 11 keys and 12 values",
    "heads": "the shape of q without its tokens is [2, 2, 8] on rank 1, [2, 4, 8] on ranks 0, 2",
    "dtype": "the dtype of q, k, v is float32, float32, float32 on rank 1, float64, float64, float64 on ranks 0, 2",
    "gradients": "who wants gradients is qkv on rank 1, nobody on ranks 0, 2",
}


@pytest.fixture(scope="module")
def disagreements():
    return values(on_ranks(3, every_disagreement))


@pytest.mark.parametrize("fault", SEEN)
def test_every_rank_names_the_one_that_disagrees(disagreements, fault):
    for errors in disagreements:
        assert SEEN[fault] in errors[fault]
        assert errors[fault].startswith("context_parallel_attention: ")


FAULTS = {
    "dies": r"rank 1 did not come to it: late, or gone after collective \d+ of \d+",
    "is late": r"rank 1 did not come to it: late, or gone after collective \d+ of \d+",
    "dies in an exchange": r"rank 1 came to it and then gave no sign of life",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_rank_that_is_gone_or_late_is_named(fault):
    answers = on_ranks(3, plan_and_call, fault, collective=3.0, timeout=40)
    for rank in (0, 2):
        assert answers[rank].error is None, answers[rank].error
        seconds, text = answers[rank].value.split(" ", 1)
        assert re.search(FAULTS[fault], text), text
        assert float(seconds) < 8  # the group's three, and three to see who is alive
