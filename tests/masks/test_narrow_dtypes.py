"""Tables in narrow and unsigned dtypes mean what they mean in int64."""

import pytest
import torch

from maskmod import blockwise, causal, chunked, dense_mask, key_padding, prefix, remap, shift, window
from maskmod.packing import (
    document_ids_from_cu_seqlens,
    document_ids_from_position_ids,
    lengths_from_cu_seqlens,
    lengths_from_document_ids,
)

DTYPES = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64)
MASKS = {
    "an offset over the dtype's range": lambda t: remap(shift(causal(), q_offset=1000), q=t),
    "a difference below zero": lambda t: remap(window(1, None), q=t, kv=t),
    "a chunk before its start": lambda t: remap(chunked(2, start=3), q=t, kv=t),
    "a row's offset": lambda t: shift(causal(), q_offset=t),
    "a row's chunk start": lambda t: chunked(2, start=t),
    "a row's prefix": prefix,
    "a row's length": key_padding,
    "spans": blockwise,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("build", MASKS.values(), ids=MASKS)
def test_a_mask_of_a_narrow_table_equals_that_of_int64(build, dtype):
    table = torch.tensor([0, 1, 1, 3])
    expected = dense_mask(build(table), 4, 1, 4, 4)
    assert torch.equal(dense_mask(build(table.to(dtype)), 4, 1, 4, 4), expected)


def test_the_largest_unsigned_id_is_a_span_like_any_other():
    assert dense_mask(blockwise(torch.tensor([255, 255], dtype=torch.uint8)), 1, 1, 2, 2).all()
    assert lengths_from_document_ids(torch.tensor([255, 255, 1], dtype=torch.uint8)).tolist() == [2, 1]


def test_packing_in_narrow_dtypes_does_not_wrap():
    ends = torch.tensor([0, 100], dtype=torch.int8)
    assert document_ids_from_cu_seqlens(ends, total=300).tolist() == [0] * 100 + [-1] * 200
    assert lengths_from_cu_seqlens(torch.tensor([-100, 100], dtype=torch.int8)).tolist() == [200]
    positions = torch.tensor([254, 255, 0, 1], dtype=torch.uint8)
    assert document_ids_from_position_ids(positions).tolist() == [0, 0, 1, 1]
