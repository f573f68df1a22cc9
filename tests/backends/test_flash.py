"""flash-attention's arguments, read back as its documentation has it, against the mask's own predicate on ints."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from maskmod import attention, causal, document, full, key_padding, lower, prefix, shift, sliding_window, window
from maskmod.backends.flash import FlashArgs, VarlenArgs
from maskmod.errors import UnsupportedMask


def banded(args, q_len, kv_len):
    """``window_size`` and ``causal``: the last query stands on the last key."""
    left, right = args.window_size
    table = torch.zeros(q_len, kv_len, dtype=torch.bool)
    for q in range(q_len):
        own = q + kv_len - q_len
        for kv in range(kv_len):
            near = (left < 0 or kv >= own - left) and (right < 0 or kv <= own + right)
            table[q, kv] = near and not (args.causal and kv > own)
    return table


def by_ints(mask, q_len, kv_len, b=0):
    return torch.tensor([[bool(mask(b, 0, q, kv)) for kv in range(kv_len)] for q in range(q_len)])


@pytest.mark.parametrize(
    ("mask", "q_len", "kv_len", "causal_flag"),
    [
        (causal(), 6, 6, True),
        (full(), 4, 7, False),
        (causal() & sliding_window(3), 6, 6, True),
        (window(2, 1), 6, 6, False),
        (window(None, 2), 6, 6, False),
        (shift(causal(), q_offset=3), 4, 7, True),
        (shift(sliding_window(2), q_offset=3), 4, 7, True),
        (causal(), 6, 4, False),
    ],
)
def test_bands(mask, q_len, kv_len, causal_flag):
    args: Any = lower(mask, "flash", 1, 1, q_len, kv_len)
    assert isinstance(args, FlashArgs)
    assert args.causal is causal_flag
    assert torch.equal(banded(args, q_len, kv_len), by_ints(mask, q_len, kv_len))
    assert set(args.kwargs()) == {"causal", "window_size"}


@pytest.mark.parametrize("inner", [causal(), full(), causal() & sliding_window(2), window(1, 1)])
@pytest.mark.parametrize("ids", [[[5, 5, 5, 2, 2, 9], [-1, -1, 3, 3, 3, 3]], [[0, 0, 1, 1, 1, 2]], [4, 4, 4, 1, 1, 1]])
def test_packed_documents(inner, ids):
    ids = torch.tensor(ids)
    rows, n = (ids.shape[0], ids.shape[1]) if ids.dim() == 2 else (2, ids.shape[0])
    mask = inner & document(ids)
    args: Any = lower(mask, "flash", rows, 1, n, n)
    assert isinstance(args, VarlenArgs)
    assert args.cu_seqlens_q.dtype == torch.int32
    assert args.max_seqlen_q == int(args.cu_seqlens_q.diff().max())
    table = torch.zeros(rows * n, rows * n, dtype=torch.bool)
    ends = args.cu_seqlens_q.tolist()
    for begin, end in itertools.pairwise(ends):
        table[begin:end, begin:end] = banded(args, end - begin, end - begin)
    want = torch.block_diag(*(by_ints(mask, n, n, b).int() for b in range(rows))).bool()
    assert torch.equal(table, want)


@pytest.mark.parametrize(
    ("mask", "lengths", "why"),
    [
        (causal() | prefix(2), (6, 6), "not prove"),
        (causal() & key_padding(torch.tensor([3])), (6, 6), "not prove"),
        (document(torch.tensor([0, 1, 0, 0, 0, 0])), (6, 6), "not next to each other"),
        (document(torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 1, 1, 1, 1])), (6, 6), "one document"),
        (document(torch.tensor([0, 0, 1, 1, 1, 1])), (4, 6), "one document"),
        (causal(), (4, 6), "-2"),
        (shift(causal(), q_offset=-1), (6, 6), "-1"),
    ],
)
def test_what_flash_cannot_express_is_refused(mask, lengths, why):
    with pytest.raises(UnsupportedMask, match=why):
        lower(mask, "flash", 1, 1, *lengths)
    with pytest.raises(UnsupportedMask, match="zeros"):
        lower(causal(), "flash", 1, 1, 6, 6, empty_rows="uniform")


def test_attention_does_not_call_it():
    q = torch.ones(1, 1, 4, 8)
    with pytest.raises(UnsupportedMask, match="does not call it"):
        attention(q, q, q, causal(), backend="flash")
