"""Every mask of the vocabulary once, next to what it should say on plain ints: the table that generic tests share.

``build(B, H, q_len, kv_len)`` makes the mask for those sizes; ``spec(b, h, q, kv)`` is its meaning, written apart from
the library, and the same for all sizes. Tables are made from formulas, so that both sides read the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from maskmod import (
    Mask,
    at_positions,
    blockwise,
    causal,
    chunked,
    dfs_tree,
    document,
    full,
    key_padding,
    mask_mod,
    per_head,
    prefix,
    remap,
    shift,
    sinks,
    sliding_window,
    tree,
    where,
    window,
    within,
)
from maskmod.algebra import MaskMod
from oracle import Spec

__all__ = ["BY_NAME", "CASES", "Case", "rows", "table"]


class Case(NamedTuple):
    name: str
    build: Callable[[int, int, int, int], Mask]
    spec: Spec


# ------------------------------------------------------------------------------------------ formulas behind the tables


def doc(b: int, i: int) -> int:
    return (i + 3 * b) // 7


def kv_doc(b: int, i: int) -> int:
    return (i + b) // 5


def shared_doc(i: int) -> int:
    return (i // 6) % 3  # ids come back: equality, not order


def span(b: int, i: int) -> int:
    return (i + b) // 4 if (i + b) // 4 % 2 else -1


def span_of_document(b: int, i: int) -> int:
    """Two spans a document, 0 and 1 in each."""
    return (-1, 0, 0, -1, 1, 1, 1)[(i + 3 * b) % 7]


def shared_span(i: int) -> int:
    return i // 3 if i % 5 else -1


def is_valid(b: int, i: int) -> bool:
    return (i + 2 * b) % 4 != 0


def length(b: int) -> int:
    return 3 + 5 * b


def offset(b: int) -> int:
    return 4 + 3 * b


def permuted(b: int, i: int) -> int:
    return (i * 3 + b) % 17


def in_heap(i: int, k: int) -> bool:
    """Whether node k is i or above it, in a binary tree of seven nodes numbered level by level."""
    while i > k >= 0:
        i = (i - 1) // 2
    return 0 <= i == k < 7


ENDS = [5, 3, 3, 5, 5]  # 0 has the children 1, 3 and 4, and 1 has 2


def in_ring(i: int) -> int:
    return 5 + (i - 5) % 8


def table(formula: Callable[[int, int], int], B: int, n: int) -> torch.Tensor:
    """A table (B, n) of ``formula(b, i)``."""
    return torch.tensor([[formula(b, i) for i in range(n)] for b in range(B)]).reshape(B, n).long()


def rows(formula: Callable[[int], int], n: int) -> torch.Tensor:
    """A table (n,) of ``formula(i)``, or one number for each of n batch rows."""
    return torch.tensor([formula(i) for i in range(n)]).reshape(n).long()


def _alternate(first: MaskMod, second: MaskMod, H: int) -> Mask:
    return per_head([(first, second)[h % 2] for h in range(H)])


def _slope(b, h, q_idx, kv_idx):
    return q_idx - kv_idx <= 2 * h


class Strided(Mask):
    """A user's own mask, with one static field and one tensor."""

    stride: int
    phase: torch.Tensor

    def __call__(self, b, h, q_idx, kv_idx):
        return (q_idx - kv_idx + self.phase) % self.stride == 0


CASES = [
    # by position
    Case("full", lambda B, H, q, kv: full(), lambda b, h, q, kv: True),
    Case("causal", lambda B, H, q, kv: causal(), lambda b, h, q, kv: kv <= q),
    Case("sliding_window", lambda B, H, q, kv: sliding_window(5), lambda b, h, q, kv: 0 <= q - kv < 5),
    Case(
        "sliding_window_0d",
        lambda B, H, q, kv: sliding_window(torch.tensor(3)),
        lambda b, h, q, kv: kv in (q, q - 1, q - 2),
    ),
    Case("window", lambda B, H, q, kv: window(2, 1), lambda b, h, q, kv: q - 2 <= kv <= q + 1),
    Case("window_left", lambda B, H, q, kv: window(3, None), lambda b, h, q, kv: kv >= q - 3),
    Case("window_right", lambda B, H, q, kv: window(None, 0), lambda b, h, q, kv: kv <= q),
    Case("window_open", lambda B, H, q, kv: window(None, None), lambda b, h, q, kv: True),
    Case(
        "window_0d",
        lambda B, H, q, kv: window(torch.tensor(1), torch.tensor(4)),
        lambda b, h, q, kv: q - 1 <= kv <= q + 4,
    ),
    Case("chunked", lambda B, H, q, kv: chunked(4), lambda b, h, q, kv: q // 4 == kv // 4),
    Case("chunked_start", lambda B, H, q, kv: chunked(6, start=5), lambda b, h, q, kv: (q - 5) // 6 == (kv - 5) // 6),
    Case(
        "chunked_start_rows",
        lambda B, H, q, kv: chunked(5, start=rows(length, B)),
        lambda b, h, q, kv: (q - length(b)) // 5 == (kv - length(b)) // 5,
    ),
    Case("prefix", lambda B, H, q, kv: prefix(4), lambda b, h, q, kv: kv < 4),
    Case("prefix_0d", lambda B, H, q, kv: prefix(torch.tensor(6)), lambda b, h, q, kv: kv < 6),
    Case("prefix_rows", lambda B, H, q, kv: prefix(rows(length, B)), lambda b, h, q, kv: kv < 3 + 5 * b),
    Case("sinks", lambda B, H, q, kv: sinks(2), lambda b, h, q, kv: kv in (0, 1)),
    # by table
    Case(
        "document",
        lambda B, H, q, kv: document(rows(shared_doc, max(q, kv))),
        lambda b, h, q, kv: shared_doc(q) == shared_doc(kv),
    ),
    Case(
        "document_rows",
        lambda B, H, q, kv: document(table(doc, B, max(q, kv))),
        lambda b, h, q, kv: doc(b, q) == doc(b, kv),
    ),
    Case(
        "document_two_tables",
        lambda B, H, q, kv: document(table(doc, B, q), table(kv_doc, B, kv)),
        lambda b, h, q, kv: doc(b, q) == kv_doc(b, kv),
    ),
    Case(
        "blockwise",
        lambda B, H, q, kv: blockwise(rows(shared_span, max(q, kv))),
        lambda b, h, q, kv: shared_span(q) == shared_span(kv) and shared_span(q) != -1,
    ),
    Case(
        "blockwise_rows",
        lambda B, H, q, kv: blockwise(table(span, B, max(q, kv))),
        lambda b, h, q, kv: span(b, q) == span(b, kv) != -1,
    ),
    Case(
        "key_padding_bool",
        lambda B, H, q, kv: key_padding(table(is_valid, B, kv).bool()),
        lambda b, h, q, kv: is_valid(b, kv),
    ),
    Case(
        "key_padding_int",
        lambda B, H, q, kv: key_padding(table(is_valid, B, kv) * 7),
        lambda b, h, q, kv: is_valid(b, kv),
    ),
    Case("key_lengths", lambda B, H, q, kv: key_padding(rows(length, B)), lambda b, h, q, kv: kv < length(b)),
    Case(
        "within",
        lambda B, H, q, kv: within(table(doc, B, max(q, kv)), causal() & (prefix(2) | sliding_window(3))),
        lambda b, h, q, kv: (
            kv <= q and doc(b, q) == doc(b, kv) and (q - kv < 3 or kv - max(0, 7 * doc(b, kv) - 3 * b) < 2)
        ),
    ),
    Case(
        "tree",
        lambda B, H, q, kv: tree(rows(lambda i: (i - 1) // 2, 7), start=2),
        lambda b, h, q, kv: q - 2 < 7 and in_heap(q - 2, kv - 2),
    ),
    Case(
        "dfs_tree",
        lambda B, H, q, kv: dfs_tree(torch.tensor(ENDS), start=rows(lambda b: b + 1, B)),
        lambda b, h, q, kv: 0 <= kv - b - 1 <= q - b - 1 < 5 and q - b - 1 < ENDS[kv - b - 1],
    ),
    # algebra
    Case(
        "and",
        lambda B, H, q, kv: causal() & document(table(doc, B, max(q, kv))),
        lambda b, h, q, kv: kv <= q and doc(b, q) == doc(b, kv),
    ),
    Case("or", lambda B, H, q, kv: causal() | prefix(6), lambda b, h, q, kv: kv <= q or kv < 6),
    Case(
        "xor",
        lambda B, H, q, kv: window(3, 3) ^ chunked(4),
        lambda b, h, q, kv: (abs(q - kv) < 4) != (q // 4 == kv // 4),
    ),
    Case("not", lambda B, H, q, kv: sliding_window(3) ^ True, lambda b, h, q, kv: not 0 <= q - kv < 3),
    Case(
        "sinks_and_window",
        lambda B, H, q, kv: causal() & (sliding_window(4) | sinks(2)),
        lambda b, h, q, kv: kv <= q and (q - kv < 4 or kv < 2),
    ),
    Case(
        "image_spans",  # packing after the spans: their ids come again in each document
        lambda B, H, q, kv: (
            ((causal() & sliding_window(6)) | blockwise(table(span_of_document, B, max(q, kv))))
            & document(table(doc, B, max(q, kv)))
            & key_padding(table(is_valid, B, kv).bool())
        ),
        lambda b, h, q, kv: (
            (0 <= q - kv < 6 or span_of_document(b, q) == span_of_document(b, kv) != -1)
            and doc(b, q) == doc(b, kv)
            and is_valid(b, kv)
        ),
    ),
    Case("function", lambda B, H, q, kv: mask_mod(_slope), lambda b, h, q, kv: q - kv <= 2 * h),
    Case(
        "lambda_left",
        lambda B, H, q, kv: (lambda b, h, q_idx, kv_idx: (q_idx + kv_idx) % 3 != b) & causal(),
        lambda b, h, q, kv: (q + kv) % 3 != b and kv <= q,
    ),
    Case(
        "own_class",
        lambda B, H, q, kv: Strided(3, torch.tensor(1)),
        lambda b, h, q, kv: (q - kv) % 3 == 2,
    ),
    # index substitution
    Case("shift", lambda B, H, q, kv: shift(causal(), q_offset=3), lambda b, h, q, kv: kv <= q + 3),
    Case(
        "shift_0d",
        lambda B, H, q, kv: shift(sliding_window(4), q_offset=torch.tensor(2)),
        lambda b, h, q, kv: 0 <= q + 2 - kv < 4,
    ),
    Case(
        "shift_1",
        lambda B, H, q, kv: shift(causal(), q_offset=torch.tensor([5])),
        lambda b, h, q, kv: kv <= q + 5,
    ),
    Case(
        "shift_rows",
        lambda B, H, q, kv: shift(causal() & sliding_window(6), q_offset=rows(offset, B)),
        lambda b, h, q, kv: 0 <= q + offset(b) - kv < 6,
    ),
    Case(
        "shift_keys",
        lambda B, H, q, kv: shift(chunked(4), q_offset=-2, kv_offset=rows(offset, B)),
        lambda b, h, q, kv: (q - 2) // 4 == (kv + offset(b)) // 4,
    ),
    Case(
        "shift_document",
        lambda B, H, q, kv: shift(document(table(doc, B, max(q, kv) + 2)), q_offset=torch.tensor(2)),
        lambda b, h, q, kv: doc(b, q + 2) == doc(b, kv),
    ),
    Case(
        "remap_queries",
        lambda B, H, q, kv: remap(causal(), q=table(permuted, B, q)),
        lambda b, h, q, kv: kv <= permuted(b, q),
    ),
    Case(
        "remap_ring",
        lambda B, H, q, kv: remap(
            shift(sliding_window(6), q_offset=7), kv=rows(in_ring, kv), valid=table(is_valid, B, kv).bool()
        ),
        lambda b, h, q, kv: 0 <= q + 7 - in_ring(kv) < 6 and is_valid(b, kv),
    ),
    Case(
        "remap_functions",
        lambda B, H, q, kv: remap(causal(), q=lambda b, idx: idx // 2, kv=lambda b, idx: idx // 3 + b),
        lambda b, h, q, kv: kv // 3 + b <= q // 2,
    ),
    Case(
        "at_positions",
        lambda B, H, q, kv: at_positions(causal() & sliding_window(5), table(lambda b, i: offset(b) + 2 * i, B, q), q),
        lambda b, h, q, kv: 0 <= offset(b) + 2 * q - kv < 5,
    ),
    Case(
        "where",
        lambda B, H, q, kv: where(lambda b, h, q_idx, kv_idx: q_idx < 4, full(), causal()),
        lambda b, h, q, kv: q < 4 or kv <= q,
    ),
    Case(
        "per_head",
        lambda B, H, q, kv: _alternate(causal() & sliding_window(3), full(), H),
        lambda b, h, q, kv: h % 2 == 1 or 0 <= q - kv < 3,
    ),
    Case(
        "nothing",
        lambda B, H, q, kv: causal() & (causal() ^ True),
        lambda b, h, q, kv: False,
    ),
]

BY_NAME = {case.name: case for case in CASES}
