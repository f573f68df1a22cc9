"""Truths: documents, padding, intervals."""

from __future__ import annotations

import itertools

import torch

from maskmod import (
    blockwise,
    causal,
    document,
    key_padding,
    prefix,
    remap,
    sliding_window,
)
from maskmod.masks import (
    attention_slices,
    column_intervals,
    eviction,
    flashmask,
    multi_item,
    query_flags,
    query_padding,
    row_intervals,
    shared_prefix,
    within,
)
from maskmod.packing import document_ids_from_position_ids
from truths.common import Truth, heads, row, rows

__all__ = ["PACKED"]

STARTS = (0, 11, 14, 31, 44, 58, 400)  # where documents begin; row b begins b tokens earlier


def doc(b: int, i: int) -> int:
    return max(d for d, start in enumerate(STARTS) if start <= i + b)


def in_doc(b: int, i: int) -> int:
    """The position of token i in its document, as far as the row has it."""
    return i - max(0, STARTS[doc(b, i)] - b)


def same(b: int, q: int, k: int) -> bool:
    return any(lo <= q + b < hi and lo <= k + b < hi for lo, hi in itertools.pairwise(STARTS))


def scattered(b: int, i: int) -> int:
    return (i * i + b) % 3


def is_valid(b: int, k: int) -> bool:
    return (k + 2 * b) % 7 != 0 and k > 2


def length(b: int) -> int:
    return 30 - 13 * b


# Queries and keys of the same documents, queries the last of each.
Q_LENGTHS, KV_LENGTHS = (9, 13, 4, 11), (20, 13, 9, 11)
Q_OF = [(d, i) for d, n in enumerate(Q_LENGTHS) for i in range(n)]
KV_OF = [(d, i) for d, n in enumerate(KV_LENGTHS) for i in range(n)]


def bottom_right(B: int, H: int, Q: int, K: int):
    positions = torch.tensor([i + KV_LENGTHS[d] - Q_LENGTHS[d] for d, i in Q_OF])
    q_ids, kv_ids = torch.tensor([d for d, _ in Q_OF]), torch.tensor([d for d, _ in KV_OF])
    return within(q_ids, causal(), kv_ids=kv_ids, q_positions=positions)


def from_the_end(b: int, h: int, q: int, k: int) -> bool:
    (q_doc, q_at), (kv_doc, kv_at) = Q_OF[q], KV_OF[k]
    return q_doc == kv_doc and KV_LENGTHS[kv_doc] - kv_at >= Q_LENGTHS[q_doc] - q_at


def gap(b: int, q: int) -> tuple[int, int]:
    """The keys of query q: some of each 16 places, for every 12 queries."""
    return q // 12 * 16 + b, q // 12 * 16 + 3 + q // 12 * 4


def slot(b: int, k: int) -> int:
    """The position of a slot, pages of four in an order of their own."""
    return (5, 2, 9, 0, 7, 1, 13, 4, 3, 11, 6, 8, 12, 10, 15, 14, 17, 16)[(k // 4 + 3 * b) % 18] * 4 + k % 4


def span(b: int, i: int) -> int:
    return -1 if (i + b) // 5 % 2 else (i + b) // 10


def prefix_of(b: int, i: int) -> int:
    return (-1, 0, 0, -1, 3, 3, -1)[doc(b, i)]


ITEMS = [0] * 12 + [j for n in (9, 4, 15, 30, 30) for j in range(1, n + 1)]


def end(b: int, k: int) -> int:
    return k + 1 + (k * 5 + b) % 17


def hidden(b: int, h: int, k: int, which: int) -> int:
    """FlashMask's four rows of a key: below the diagonal from the first to the second, above from the third."""
    return (k + 4 + k % 5 + h, k + 12, max(0, k - 20 - b), max(0, k - 3 - k % 4))[which]


def interval(q: int) -> tuple[int, int, int]:
    return q // 3, q // 3 + 5, q // 3 + 5 + q % 9


SLICES = (((0, 20), (0, 20), 1), ((20, 37), (0, 8), 0), ((20, 37), (12, 48), 3), ((40, 70), (2, 9), 2))


def in_slices(b: int, h: int, q: int, k: int) -> bool:
    for (q0, q1), (k0, k1), kind in SLICES:
        if q in range(q0, q1) and k in range(k0, k1):
            causally = k1 - k >= q1 - q or kind in (0, 2)  # measured from the last corner
            inversely = k - k0 >= q - q0 or kind in (0, 1)  # measured from the first
            if causally and inversely:
                return True
    return False


PACKED = (
    Truth("key padding", lambda B, H, Q, K: key_padding(rows(is_valid, B, K)), lambda b, h, q, k: is_valid(b, k)),
    Truth(
        "lengths",
        lambda B, H, Q, K: key_padding(row(length, B)) & query_padding(row(lambda b: 40 - 20 * b, B)),
        lambda b, h, q, k: k < (30, 17)[b] and q in range((40, 20)[b]),
    ),
    Truth("documents", lambda B, H, Q, K: document(rows(doc, B, max(Q, K))), lambda b, h, q, k: same(b, q, k)),
    Truth(
        "packed causal",
        lambda B, H, Q, K: causal() & document(rows(doc, B, max(Q, K))),
        lambda b, h, q, k: k <= q and same(b, q, k),
    ),
    Truth(
        "documents over any mask",
        lambda B, H, Q, K: within(rows(doc, B, max(Q, K)), causal() & (sliding_window(4) | prefix(2))),
        lambda b, h, q, k: k <= q and same(b, q, k) and (k > q - 4 or in_doc(b, k) in (0, 1)),
    ),
    Truth("documents, bottom-right", bottom_right, from_the_end, ((1, 1, 37, 53), (2, 3, 37, 53), (1, 1, 20, 30))),
    Truth(
        "gappy keys",
        lambda B, H, Q, K: row_intervals(rows(lambda b, q: gap(b, q)[0], B, Q), rows(lambda b, q: gap(b, q)[1], B, Q)),
        lambda b, h, q, k: k in range(*gap(b, q)),
    ),
    Truth(
        "paged",
        lambda B, H, Q, K: remap(causal(), kv=rows(slot, B, K), valid=rows(lambda b, k: slot(b, k) < 40, B, K)),
        lambda b, h, q, k: slot(b, k) <= min(q, 39),
    ),
    Truth(
        "documents by positions",
        lambda B, H, Q, K: causal() & document(document_ids_from_position_ids(rows(in_doc, B, max(Q, K)))),
        lambda b, h, q, k: k <= q and same(b, q, k),
    ),
    Truth(
        "documents of queries and keys",
        lambda B, H, Q, K: document(rows(doc, B, Q), rows(scattered, B, K)),
        lambda b, h, q, k: STARTS[scattered(b, k)] <= q + b < STARTS[scattered(b, k) + 1],
    ),
    Truth(
        "groups with a sentinel",
        lambda B, H, Q, K: blockwise(rows(span, B, max(Q, K))),
        lambda b, h, q, k: (q + b) // 10 == (k + b) // 10 and max((q + b) % 10, (k + b) % 10) < 5,
    ),
    Truth(
        "causal blockwise",
        lambda B, H, Q, K: (
            causal() & (document(rows(doc, B, max(Q, K))) | query_flags(rows(lambda b, q: doc(b, q) == 3, B, Q)))
        ),
        lambda b, h, q, k: k <= q and (same(b, q, k) or 31 <= q + b < 44),
    ),
    Truth(
        "shared prefix",
        lambda B, H, Q, K: shared_prefix(rows(doc, B, max(Q, K)), rows(prefix_of, B, max(Q, K))),
        lambda b, h, q, k: (k <= q and same(b, q, k)) or doc(b, k) == {1: 0, 2: 0, 4: 3, 5: 3}.get(doc(b, q)),
    ),
    Truth(
        "multi-item scoring",
        lambda B, H, Q, K: multi_item(12, torch.tensor(ITEMS)),
        lambda b, h, q, k: k <= q and (k < 12 or q - k < ITEMS[q]),
    ),
    Truth(
        "eviction",
        lambda B, H, Q, K: eviction(rows(end, B, K)),
        lambda b, h, q, k: q in range(k, end(b, k)),
    ),
    Truth(
        "FlashMask",
        lambda B, H, Q, K: flashmask(heads(hidden, B, H, K, 4).int(), causal=False),
        lambda b, h, q, k: (
            q not in range(hidden(b, h, k, 0), hidden(b, h, k, 1))
            and q not in range(hidden(b, h, k, 2), hidden(b, h, k, 3))
        ),
    ),
    Truth(
        "FlashMask",
        lambda B, H, Q, K: flashmask(heads(hidden, B, H, K, 4)[..., [0, 3]].int(), causal=False),
        lambda b, h, q, k: q in range(hidden(b, h, k, 3), hidden(b, h, k, 0)),
    ),
    Truth(
        "FlashMask",
        lambda B, H, Q, K: flashmask(heads(hidden, B, 1, K, 4)[..., :2]),
        lambda b, h, q, k: k <= q and q not in range(hidden(b, 0, k, 0), hidden(b, 0, k, 1)),
    ),
    Truth(
        "FlashMask",
        lambda B, H, Q, K: flashmask(heads(hidden, 1, 1, K, 4)[..., :1]),
        lambda b, h, q, k: q in range(k, hidden(0, 0, k, 0)),
    ),
    Truth(
        "row intervals",
        lambda B, H, Q, K: (
            row_intervals(None, row(lambda q: interval(q)[0], Q))
            | row_intervals(row(lambda q: interval(q)[1], Q), row(lambda q: interval(q)[2], Q))
        ),
        lambda b, h, q, k: k in range(q // 3) or k in range(q // 3 + 5, q // 3 + 5 + q % 9),
    ),
    Truth(
        "Flamingo",
        lambda B, H, Q, K: column_intervals(
            rows(lambda b, k: k // 8 * 3 + b, B, K), rows(lambda b, k: k // 8 * 9 + 12, B, K)
        ),
        lambda b, h, q, k: q in range(k // 8 * 3 + b, k // 8 * 9 + 12),
    ),
    Truth(
        "attention slices",
        lambda B, H, Q, K: attention_slices(
            torch.tensor([q for q, _, _ in SLICES]),
            torch.tensor([k for _, k, _ in SLICES]),
            torch.tensor([kind for _, _, kind in SLICES]),
        ),
        in_slices,
    ),
)
