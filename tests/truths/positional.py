"""Truths: masks by position alone."""

from __future__ import annotations

import torch

from maskmod import causal, chunked, full, prefix, shift, sliding_window, window
from maskmod.masks import (
    anti_causal,
    band,
    bernoulli,
    block_causal,
    dilated_window,
    fixed,
    periodic,
    query_windows,
    streaming_chunks,
    streaming_llm,
    strict_causal,
    strided,
    vertical_slash,
)
from truths.common import Truth, heads, row, rows

__all__ = ["POSITIONAL"]


def padding(b: int) -> int:
    return 5 + 16 * b


def prompt(b: int) -> int:
    return 3 + 14 * b


def size(b: int, q: int) -> int:
    return (q * 7 + b * 3) % 11


def is_vertical(b: int, h: int, k: int) -> bool:
    return k % (5 + h) == b


def is_slash(b: int, h: int, distance: int) -> bool:
    return distance < 3 or distance % (9 + b) == 4 + h


def drawn(q: int, k: int, seed: int) -> int:
    """The hash that `bernoulli` documents in its code, once more."""
    x = (8191 * (q % 32749) + 127 * (k % 32749) + 31 * (q // 32749) + 17 * (k // 32749) + seed) % 32749
    x = (x**2 + 211 * q + 4099 * k) % 32749
    return (x**2 + 911 * k + seed) % 32749


POSITIONAL = (
    Truth("full", lambda B, H, Q, K: full(), lambda b, h, q, k: True),
    Truth("causal", lambda B, H, Q, K: causal(), lambda b, h, q, k: k in range(q + 1)),
    Truth(
        "causal, bottom-right",
        lambda B, H, Q, K: shift(causal(), q_offset=53 - 37),
        lambda b, h, q, k: 53 - k >= 37 - q,
    ),
    Truth("strict causal", lambda B, H, Q, K: strict_causal(), lambda b, h, q, k: k in range(q)),
    Truth("anti-causal", lambda B, H, Q, K: anti_causal(), lambda b, h, q, k: q in range(k + 1)),
    Truth("bi-causal band", lambda B, H, Q, K: band(-9, -2), lambda b, h, q, k: k in range(q - 9, q - 1)),
    Truth("sliding window", lambda B, H, Q, K: sliding_window(7), lambda b, h, q, k: k in range(q - 6, q + 1)),
    Truth("local window", lambda B, H, Q, K: window(9, 4), lambda b, h, q, k: k in range(q - 9, q + 5)),
    Truth("symmetric window", lambda B, H, Q, K: window(6, 6), lambda b, h, q, k: k in range(q - 6, q + 7)),
    Truth("dilated window", lambda B, H, Q, K: dilated_window(12, 3), lambda b, h, q, k: k in range(q - 12, q + 13, 3)),
    Truth("strided", lambda B, H, Q, K: strided(5), lambda b, h, q, k: k in range(q, -1, -5)),
    Truth(
        "fixed",
        lambda B, H, Q, K: fixed(8, 2),
        lambda b, h, q, k: k <= q and (k >= q - q % 8 or k % 8 in (6, 7)),
    ),
    Truth(
        "chunked causal",
        lambda B, H, Q, K: causal() & chunked(9, start=row(padding, B)),
        lambda b, h, q, k: q - (q - padding(b)) % 9 <= k <= q,
    ),
    Truth("fixed blocks", lambda B, H, Q, K: chunked(10), lambda b, h, q, k: k in range(q - q % 10, q - q % 10 + 10)),
    Truth("block-causal", lambda B, H, Q, K: block_causal(7), lambda b, h, q, k: k < q - q % 7 + 7),
    Truth(
        "streaming chunks",
        lambda B, H, Q, K: streaming_chunks(6, left=2, lookahead=3),
        lambda b, h, q, k: k in range(q - q % 6 - 12, q - q % 6 + 9),
    ),
    Truth(
        "sinks and window",
        lambda B, H, Q, K: streaming_llm(3, 8),
        lambda b, h, q, k: k in (*range(min(3, q + 1)), *range(max(q - 7, 0), q + 1)),
    ),
    Truth(
        "prefix language model",
        lambda B, H, Q, K: causal() | prefix(row(prompt, B)),
        lambda b, h, q, k: k <= q or (q < prompt(b) and k < prompt(b)),
    ),
    Truth(
        "vertical-slash",
        lambda B, H, Q, K: vertical_slash(heads(is_vertical, B, H, K), heads(is_slash, B, H, Q)),
        lambda b, h, q, k: k <= q and (is_vertical(b, h, k) or is_slash(b, h, q - k)),
    ),
    Truth("band part", lambda B, H, Q, K: window(8, 2), lambda b, h, q, k: q - 8 <= k <= q + 2),
    Truth(
        "mini-causal",
        lambda B, H, Q, K: periodic(causal(), 9),
        lambda b, h, q, k: k - k // 9 * 9 <= q - q // 9 * 9,
    ),
    Truth(
        "random",
        lambda B, H, Q, K: bernoulli(0.02, seed=5),
        lambda b, h, q, k: drawn(q, k, 5) < round(0.02 * 32749),
    ),
    Truth(
        "window of each query",
        lambda B, H, Q, K: query_windows(rows(size, B, Q).to(torch.int16)),
        lambda b, h, q, k: k in range(q - size(b, q) + 1, q + 1),
    ),
)
