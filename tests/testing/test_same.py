"""Assertions about masks: they pass where a proof holds, and say what a person needs where it does not."""

import pytest
import torch

from maskmod import causal, document, key_padding, prefix, shift, sliding_window
from maskmod.errors import MaskShapeError
from maskmod.testing import assert_hidden, assert_no_leak, assert_same_mask

LONG = 1 << 20


def failure(call, *args, **options) -> str:
    with pytest.raises(AssertionError) as raised:
        call(*args, **options)
    return str(raised.value)


def test_the_same_mask_at_a_million():
    assert_same_mask(sliding_window(9), lambda b, h, q, k: (k <= q) & (k > q - 9), 1, 1, LONG, LONG)
    text = failure(assert_same_mask, sliding_window(9), sliding_window(10), 1, 1, LONG, LONG)
    assert "they differ at b=0, h=0, q_idx=" in text
    assert "a: hidden there  sliding_window(9)\n  b: visible there sliding_window(10)" in text
    assert "[b]" in text
    assert len(text.splitlines()) <= 11


def test_the_picture_is_around_the_element():
    text = failure(assert_same_mask, causal(), lambda b, h, q, k: (k <= q) ^ ((q == 500) & (k == 70)), 2, 3, 900, 900)
    assert text.splitlines() == [
        "assert_same_mask on B=2, H=3, q_len=900, kv_len=900: they differ at b=0, h=0, q_idx=500, kv_idx=70",
        "  a: visible there causal()",
        "  b: hidden there  test_the_picture_is_around_the_element.<locals>.<lambda>",
        "keys 64 to 76  (# both, a or b one of them, . neither)",
        *(f"query {q}  {' # ' * 6}{'[a]' if q == 500 else ' # '}{' # ' * 6}".rstrip() for q in range(497, 504)),
    ]


def test_what_must_be_hidden():
    future = ~causal()
    assert_hidden(causal() & sliding_window(4), future, 1, 1, LONG, LONG)
    text = failure(assert_hidden, causal() | prefix(2), future, 1, 1, 8, 8)
    assert "the mask shows what must be hidden at b=0, h=0, q_idx=0, kv_idx=1" in text
    assert "mask: visible there   causal() | prefix(2)\n  region: visible there ~causal()" in text
    assert "query 0   m [#]" in text
    # Padding on the left: the first keys of row 1.
    padding = key_padding(torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]]))
    assert_hidden(causal() & padding, lambda b, h, q, k: (b == 1) & (k < 2), 2, 1, 4, 4)
    assert "b=1" in failure(assert_hidden, causal(), lambda b, h, q, k: (b == 1) & (k < 2), 2, 1, 4, 4)


def test_documents_do_not_leak():
    ids = torch.arange(LONG) // 3001
    assert_no_leak(causal() & document(ids), ids)
    text = failure(assert_no_leak, causal() & sliding_window(3), ids)
    assert "of document" in text
    assert "mask: visible there    causal() & sliding_window(3)" in text


def test_leaks_of_rows_heads_and_keys_of_their_own():
    ids = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    assert_no_leak(document(ids), ids)
    text = failure(assert_no_leak, lambda b, h, q, k: document(ids)(b, h, q, k) | ((h == 1) & (q == k + 3)), ids, H=2)
    assert "query 3 of document 1 sees key 0 of document 0" in text
    assert "h=1" in text
    assert "query 0 of document 0 sees key 1 of document 1 at b=1" in failure(assert_no_leak, document(ids[0]), ids)
    assert_no_leak(shift(causal(), q_offset=2) & document(ids[0, 2:], ids[0]), ids[0, 2:], kv_ids=ids[0], B=3)
    with pytest.raises(MaskShapeError, match="ids are one row for all, or a row each"):
        assert_no_leak(causal(), ids, B=3)


@pytest.mark.parametrize("wrong", [1, 4])
def test_a_window_that_is_off_by_one_is_told(wrong: int):
    assert "they differ" in failure(assert_same_mask, sliding_window(3), sliding_window(3 + wrong), 1, 1, 16, 16)
