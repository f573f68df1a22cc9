"""What the constructors of the catalog refuse, and in which words."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from maskmod import causal, dense_mask
from maskmod.errors import MaskError, MaskShapeError, MaskTypeError, MaskValueError
from maskmod.masks import (
    attention_slices,
    bernoulli,
    block_layout,
    dflash,
    fixed,
    flashmask,
    key_flags,
    layout_from_indices,
    neighborhood,
    parents_from_paths,
    per_axis,
    query_padding,
    sliding_tile,
    tile_order,
    vsa,
)

FLAGS = torch.ones(2, 3, 8, dtype=torch.bool)
RANGES = torch.tensor([[0, 4]])


@pytest.mark.parametrize(
    ("build", "error", "seen"),
    [
        (lambda: key_flags(torch.ones(4)), MaskTypeError, "holds no flags"),
        (lambda: key_flags(torch.ones(1, 1, 1, 4).bool()), MaskShapeError, "a 4-d tensor"),
        (
            lambda: dense_mask(key_flags(FLAGS), 2, 2, 4, 8),
            MaskShapeError,
            "axis 1 of the table has length 3, 2 needed",
        ),
        (lambda: dense_mask(key_flags(FLAGS), 2, 3, 4, 9), MaskShapeError, "has 8 entries, 9 needed"),
        (lambda: dense_mask(block_layout(FLAGS[0], 2), 1, 3, 8, 16), MaskShapeError, "has 3 entries, 4 needed"),
        (lambda: dense_mask(block_layout(FLAGS[0], 2), 1, 3, 6, 17), MaskShapeError, "on kv_len=17"),
        (lambda: query_padding(torch.ones(4).bool()), MaskTypeError, "one row of validity or B flags"),
        (lambda: flashmask(torch.zeros(1, 1, 4, 3).long()), MaskShapeError, "shape [1, 1, 4, 3]"),
        (lambda: flashmask(torch.zeros(1, 1, 4, 1)), MaskTypeError, "no integer tensor"),
        (lambda: attention_slices(RANGES, RANGES, torch.tensor([0, 1])), MaskShapeError, "[1, 2] slices"),
        (lambda: neighborhood((4,), 5), MaskValueError, "a kernel of 5 tokens 1 apart on an axis of 4"),
        (lambda: neighborhood((8,), 3, stride=4), MaskValueError, "a stride of 4"),
        (lambda: neighborhood((8, 8), (3,)), MaskShapeError, "1 values"),
        (lambda: per_axis([causal()], (2, 3)), MaskShapeError, "1 masks, 2 axes"),
        (lambda: per_axis(causal(), (2, 3)), MaskTypeError, "a Causal"),  # pyright: ignore[reportArgumentType]
        (lambda: sliding_tile((5, 4), (2, 2), (2, 2)), MaskValueError, "does not divide"),
        (lambda: tile_order((5, 4), (2, 2)), MaskValueError, "does not divide"),
        (lambda: bernoulli(1.5), MaskValueError, "not a share"),
        (lambda: fixed(4, 5), MaskValueError, "more summary than block"),
        (lambda: vsa(FLAGS[0], 2, torch.ones(2, 2)), MaskShapeError, "sizes of another shape"),
        (lambda: layout_from_indices(torch.ones(2, 2), 3), MaskTypeError, "no integer tensor"),
        (lambda: parents_from_paths([(0, 1)]), MaskValueError, "no path (0,)"),
        (
            lambda: dflash(torch.tensor([1, 2]), torch.tensor([1]), block=2, start=4),
            MaskShapeError,
            "anchors [2], keep [1]",
        ),
    ],
)
def test_refusals_say_what_was_seen(build: Callable[[], object], error: type[MaskError], seen: str):
    with pytest.raises(error) as raised:
        build()
    assert seen in str(raised.value)
