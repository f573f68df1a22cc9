"""A selection of the catalog, one for each kind of node: one graph for all lengths and contents, equal to eager."""

from __future__ import annotations

import functools
import operator

import pytest
import torch
from torch import Tensor

from maskmod import Mask, attention, dense_mask, masks, shift
from one_graph import assert_compiles
from truths import TRUTHS

# One truth for each class of node that the catalog adds, tables of (B, H, ...) among them; three to a graph.
CHOSEN = (
    ("bi-causal band", "streaming chunks", "vertical-slash"),
    ("block-causal", "mini-causal", "random"),
    ("window of each query", "lengths", "documents over any mask"),
    ("gappy keys", "FlashMask", "attention slices"),
    ("BAGEL", "Flamingo", "teacher forcing"),
    ("neighborhood with stride, dilation and causal axes", "LongNet", "Longformer"),
    ("HSTU", "NSA, selected", "NSA, compressed"),
    ("EAGLE-3 training", "P-EAGLE training", "DFlash training"),
)
BY_NAME = {truth.name: truth for truth in reversed(TRUTHS)}
NODES = {
    name
    for name in masks.__all__
    if name[0].isupper() and getattr(masks, name).__module__.split(".")[-1] not in ("trees",)
}


def classes_in(mask: Mask) -> set[str]:
    found = {type(mask).__name__}
    for part in mask._parts():
        if isinstance(part, Mask):
            found |= classes_in(part)
    return found


def test_every_node_of_the_vocabulary_is_compiled_somewhere():
    from cases import CASES

    seen = {name for case in CASES for name in classes_in(case.build(2, 2, 8, 8))}
    for name in (name for names in CHOSEN for name in names):
        seen |= classes_in(BY_NAME[name].build(*BY_NAME[name].sizes[0]))
    assert seen >= NODES


def read(mask: Mask, rows: Tensor, columns: Tensor, offset: Tensor) -> Tensor:
    return dense_mask(shift(mask, q_offset=offset), 2, 2, rows.shape[0], columns.shape[0])


def several(names: tuple[str, ...], q_len: int, kv_len: int) -> Mask:
    parts = [BY_NAME[name].build(2, 2, q_len, kv_len) for name in names]
    return functools.reduce(operator.xor, parts)  # each of them counts everywhere


@pytest.mark.parametrize("names", CHOSEN, ids=", ".join)
def test_one_graph(names: tuple[str, ...]):
    q_len, kv_len = (16, 35) if "P-EAGLE training" in names else (37, 53)
    mask = several(names, q_len, kv_len)
    calls = [
        (mask, torch.zeros(q_len - cut - 3), torch.zeros(kv_len - 2 * cut), torch.tensor(cut % 2)) for cut in (1, 3, 4)
    ]
    assert_compiles(read, calls)


def test_flex_takes_tables_of_heads():
    """Captured tables with axes of batch and head, inside compiled flex attention."""
    mask = BY_NAME["FlashMask"].build(2, 2, 37, 53) | BY_NAME["NSA, selected"].build(2, 2, 37, 53)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, n, 16, generator=generator) for n in (37, 53, 53))

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, mask, backend="flex")

    expected = attention(q, k, v, mask, backend="sdpa")
    torch.testing.assert_close(torch.compile(run, fullgraph=True)(q, k, v), expected)
