"""Errors of predicates name the line and the slip."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from maskmod import block_mask, causal, classify_blocks, dense_mask, prefix, sliding_window, tree, vmap_mask
from maskmod.errors import MaskError, MaskTypeError, MaskValueError

W, LIST, ARRAY, TABLE = 3, [1, 2, 3, 4, 5, 6, 7, 8], np.arange(8), torch.arange(8)

SLIPS = {
    "chain": (lambda b, h, q, k: 0 <= q - k < W, "asks its first half", "Write `(0 <= q - k) & (q - k < W)`."),
    "parentheses": (lambda b, h, q, k: q >= k & k < 3, "bind tighter", "Write `(q >= k) & (k < 3)`."),
    "max": (lambda b, h, q, k: k >= max(0, q - W), "Python's `max`", "torch.maximum(a, b)"),
    "int": (lambda b, h, q, k: int(q) >= k, "Python's `int`", "Indices stay tensors"),
    "in": (lambda b, h, q, k: k in [0, 3], "`in` asks", "Write `(k == 0) | (k == 3)`."),
    "list": (lambda b, h, q, k: LIST[q] >= k, "`LIST` is a list", "`torch.tensor(LIST)`"),
    "numpy": (lambda b, h, q, k: ARRAY[q] >= k, "`ARRAY` is a numpy array", "`torch.from_numpy(ARRAY)`"),
    "numpy's function": (lambda b, h, q, k: np.logical_and(q >= k, k < 3), "numpy's `logical_and`", "torch's own"),
    "item": (lambda b, h, q, k: TABLE[q].item() >= k, "`.item()` asks", "0-d tensor is a number"),
    "and": (lambda b, h, q, k: q >= k and k < 3, "`and` or `or` asks", "Write `&`"),
    "not": (lambda b, h, q, k: not (q >= k), "`not` asks", "Write `(q >= k) ^ True`."),
    "any": (lambda b, h, q, k: any([q == 3, k == 2]), "Python's `any`", "Join the conditions with `|`."),
}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python tells columns since 3.11")
@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_is_named(name: str) -> None:
    mask, seen, todo = SLIPS[name]
    for read in (vmap_mask, dense_mask, classify_blocks, block_mask):
        with pytest.raises(MaskError) as error:
            read(mask, 1, 1, 8, 8)
        assert f"{__file__}:{mask.__code__.co_firstlineno}, `" in error.value.written
        assert seen in error.value.seen
        assert todo in error.value.todo
        assert isinstance(error.value, TypeError)


def test_the_line_inside_a_function() -> None:
    def mask(b, h, q, k):
        near = q - k < W
        return True if near else k == 0

    with pytest.raises(MaskError) as error:
        dense_mask(mask, 1, 1, 8, 8)
    assert f"{__file__}:{mask.__code__.co_firstlineno + 2}" in error.value.written
    assert "`if` asks" in error.value.seen


def test_an_error_of_the_predicates_own_stays() -> None:
    def mask(b, h, q, k):
        raise TypeError("mine")

    for read in (vmap_mask, dense_mask, block_mask):
        with pytest.raises(TypeError, match=r"^mine$"):
            read(mask, 1, 1, 8, 8)


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8])
def test_numpys_ints_are_ints(integer) -> None:
    n = integer(4)
    assert sliding_window(n) == sliding_window(4)
    assert repr(sliding_window(n)) == "sliding_window(4)"
    assert type(vars(prefix(n))["n"]) is int
    assert repr(tree(torch.tensor([-1, 0]), depth=n)) == repr(tree(torch.tensor([-1, 0]), depth=4))
    assert dense_mask(causal(), integer(1), integer(2), n, n).shape == (1, 2, 4, 4)
    with pytest.raises(MaskTypeError):
        sliding_window(np.float64(4))  # pyright: ignore[reportArgumentType]
    with pytest.raises(MaskTypeError):
        sliding_window(np.bool_(True))  # pyright: ignore[reportArgumentType]
    with pytest.raises(MaskValueError):
        sliding_window(integer(0))
