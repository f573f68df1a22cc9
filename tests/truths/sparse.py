"""Truths: static sparsity, and attention to what was chosen by content."""

from __future__ import annotations

from maskmod import causal, document, prefix, remap, sliding_window
from maskmod.masks import (
    bigbird,
    block_layout,
    coarse,
    dsa,
    hstu,
    key_flags,
    layout_from_indices,
    longformer,
    moba,
    nsa_compressed,
    nsa_selected,
    sep_llm,
    vsa,
)
from truths.common import Truth, chance, heads, row, rows

__all__ = ["SPARSE"]


def blocks(n: int, size: int) -> int:
    return -(-n // size)


def tile_size(t: int) -> int:
    return (8, 8, 5, 8, 1)[t % 5]


def top(b: int, h: int, tile: int) -> list[int]:
    """Three tiles of nine, chosen for a tile of queries; the last may be none."""
    return [(tile * 2 + b) % 9, (tile + 4 + h) % 9, -1 if tile % 2 else 0]


def chosen(b: int, h: int, q: int, block: int) -> bool:
    return chance(0.3, b, h, q, block)


def is_global(b: int, i: int) -> bool:
    return i in (b, 30, 31)


def is_separator(i: int) -> bool:
    return i % 11 == 7


def bucket(b: int, i: int) -> int:
    return (i * 7 + i // 5 + b) % 6


def rank(i: int) -> int:
    return (i * 29 + 11) % 71


def kept(b: int, h: int, k: int) -> bool:
    return chance(0.7, b, h, k)


BIG = bigbird(9, 6, n_global=1, n_window=3, n_random=2, heads=2, seed=3)
DRAWN = {
    (h, i, j)
    for h in range(2)
    for i in range(9)
    for j in range(9)
    if BIG(0, h, 6 * i, 6 * j) and not (abs(i - j) <= 1 or i == 0 or j == 0)
}
assert all(sum((h, i, j) in DRAWN for j in range(9)) == 2 for h in range(2) for i in range(2, 8)), "two a row"
assert len({frozenset((i, j) for h, i, j in DRAWN if h == head) for head in range(2)}) == 2, "each head its own"


def actions(b: int) -> int:
    return 40 - 12 * b


def recommended(b: int, h: int, q: int, k: int) -> bool:
    """HSTU with 4 contextual tokens, 5 candidates, a window of 9, the last 6 places full."""
    if q == k:
        return True
    n = actions(b)
    user, candidates = range(4), range(n - 5 + 1, 1000)
    if q in user:
        return k < n - 5 and (k < 4 or k - 3 < n - 8)
    q_at = n - 8 if q in candidates else q - 3
    k_at = 0 if k in user else n - 8 if k in candidates else k - 3
    return k_at < q_at and (q_at - k_at <= 9 or q_at >= n - 8 - 6)


SPARSE = (
    Truth(
        "VSA",
        lambda B, H, Q, K: vsa(
            layout_from_indices(heads(lambda b, h, t, j: top(b, h, t)[j], B, H, blocks(Q, 8), 3), 9),
            8,
            row(tile_size, 9),
        ),
        lambda b, h, q, k: k // 8 in top(b, h, q // 8) and k % 8 < tile_size(k // 8),
    ),
    Truth(
        "Longformer",
        lambda B, H, Q, K: longformer(5, rows(is_global, B, max(Q, K))),
        lambda b, h, q, k: q - 5 <= k <= q + 5 or not {q, k}.isdisjoint({b, 30, 31}),
    ),
    Truth(
        "BigBird",
        lambda B, H, Q, K: bigbird(9, 6, n_global=1, n_window=3, n_random=2, heads=2, seed=3),
        lambda b, h, q, k: k // 6 in (q // 6 - 1, q // 6, q // 6 + 1) or min(q, k) < 6 or (h, q // 6, k // 6) in DRAWN,
        ((2, 2, 37, 53), (1, 2, 54, 54)),
    ),
    Truth(
        "block layout",
        lambda B, H, Q, K: block_layout(heads(chosen, 1, H, blocks(Q, 5), blocks(K, 7)).int()[0], (5, 7)),
        lambda b, h, q, k: chosen(0, h, q // 5, k // 7),
    ),
    Truth(
        "SepLLM",
        lambda B, H, Q, K: sep_llm(2, row(is_separator, K), 6),
        lambda b, h, q, k: k <= q and (k in range(2) or k in range(7, 99, 11) or k > q - 6),
    ),
    Truth(
        "LSH",
        lambda B, H, Q, K: document(rows(bucket, B, max(Q, K))),
        lambda b, h, q, k: bucket(b, q) - bucket(b, k) == 0,
    ),
    Truth(
        "permutation language model",
        lambda B, H, Q, K: remap(causal(), q=row(rank, Q), kv=row(rank, K)),
        lambda b, h, q, k: sorted([rank(q), rank(k)])[0] == rank(k),
    ),
    Truth(
        "HSTU",
        lambda B, H, Q, K: hstu(row(actions, B), contextual=4, targets=5, max_attn_len=9, min_full_attn_seq_len=6),
        recommended,
    ),
    Truth(
        "HSTU",
        lambda B, H, Q, K: hstu(30, targets=row(lambda b: 4 + b, B)),
        lambda b, h, q, k: q == k or (k < q and k < 30 - 4 - b),
    ),
    Truth(
        "NSA, selected",
        lambda B, H, Q, K: nsa_selected(heads(chosen, B, H, Q, blocks(K, 6)), 6),
        lambda b, h, q, k: k <= q and (q // 6 == k // 6 or chosen(b, h, q, k // 6)),
    ),
    Truth(
        "NSA, compressed",
        lambda B, H, Q, K: nsa_compressed(4),
        lambda b, h, q, k: k in range(q // 4),
        ((2, 2, 37, 12), (1, 1, 48, 12)),
    ),
    Truth(
        "NSA, compressed",
        lambda B, H, Q, K: nsa_compressed(8, 4),
        lambda b, h, q, k: all(token < q for token in range(4 * k, 4 * k + 8)),
        ((2, 2, 37, 12), (1, 1, 48, 12)),
    ),
    Truth("NSA, window", lambda B, H, Q, K: sliding_window(11), lambda b, h, q, k: k in range(q - 10, q + 1)),
    Truth(
        "MoBA",
        lambda B, H, Q, K: moba(heads(chosen, 1, H, Q, blocks(K, 8)).int(), 8),
        lambda b, h, q, k: k <= q and (k >= q - q % 8 or chosen(0, h, q, k // 8)),
    ),
    Truth(
        "DSA",
        lambda B, H, Q, K: dsa(heads(chosen, B, 1, Q, K)),
        lambda b, h, q, k: k <= q and chosen(b, 0, q, k),
    ),
    Truth(
        "MiniMax-M3",
        lambda B, H, Q, K: (
            causal()
            & (block_layout(heads(chosen, B, H, Q, blocks(K, 8)), (1, 8)) | prefix(4) | coarse(sliding_window(2), 8))
        ),
        lambda b, h, q, k: k <= q and (chosen(b, h, q, k // 8) or k < 4 or k >= q - q % 8 - 8),
    ),
    Truth(
        "KV eviction",
        lambda B, H, Q, K: causal() & key_flags(heads(kept, B, H, K)),
        lambda b, h, q, k: kept(b, h, k) and k <= q,
    ),
)
