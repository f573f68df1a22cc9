"""Truths: trees, speculative decoding, diffusion."""

from __future__ import annotations

import random

import torch

from maskmod import causal, dfs_tree, prefix, remap, shift, tree
from maskmod.masks import (
    anti_causal,
    block_causal,
    block_diffusion,
    dflash,
    eagle3,
    jetspec,
    p_eagle,
    parents_from_paths,
)
from truths.common import Truth, row

__all__ = ["DRAFTS"]

_rng = random.Random(1)
PARENTS = [-1] + [_rng.randrange(max(0, i - 9), i) for i in range(1, 37)]
PATH = [{0}]
for _node, _parent in enumerate(PARENTS[1:], 1):
    PATH.append(PATH[_parent] | {_node})

ORDER: list[int] = []  # nodes depth first


def _visit(node: int) -> None:
    ORDER.append(node)
    for child, parent in enumerate(PARENTS):
        if parent == node:
            _visit(child)


_visit(0)
PLACE = {node: i for i, node in enumerate(ORDER)}
END = [1 + max(PLACE[below] for below in range(37) if node in PATH[below]) for node in range(37)]
LEFT = sorted(range(37), key=lambda node: (END[node], -PLACE[node]))  # as they are left, children first
POST = [LEFT.index(node) for node in range(37)]
DEPTH = max(map(len, PATH)) - 1

CHOICES = [(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 1, 0), (0, 0, 1)]
NODES = [(), *sorted(CHOICES, key=lambda path: (len(path), path))]


def real(b: int) -> int:
    return 13 - 4 * b


ANCHORS, KEEP = [3, 18, 9, 25, 1], [True, True, False, True, True]

# Text of 18, then rollouts sampled from it: (anchor, depth).
SAMPLES = [(i, 0) for i in range(18)] + [(i, d) for d in (1, 2, 3) for i in range(0, 18, 2 * d)]


def diffused(length: int, size: int, causally: bool):
    def rule(b: int, h: int, q: int, k: int) -> bool:
        if max(q, k) >= 2 * length:
            return False
        if k < length:  # a noisy key: from its own block alone
            return q < length and q // size == k // size and (k <= q or not causally)
        if q < length:
            return (k - length) // size < q // size
        return k <= q if causally else (k - length) // size <= (q - length) // size

    return rule


DRAFTS = (
    Truth(
        "token tree",
        lambda B, H, Q, K: tree(torch.tensor(PARENTS), depth=DEPTH),
        lambda b, h, q, k: q < 37 and k in PATH[q],
    ),
    Truth(
        "verification of a token tree",
        lambda B, H, Q, K: shift(
            prefix(row(lambda b: 16 - b, B)) | tree(torch.tensor(PARENTS), depth=DEPTH, start=row(lambda b: 16 - b, B)),
            q_offset=row(lambda b: 16 - b, B),
        ),
        lambda b, h, q, k: k < 16 - b or (q < 37 and k - 16 + b in PATH[q]),
    ),
    Truth(
        "Medusa",
        lambda B, H, Q, K: shift(prefix(7) | tree(parents_from_paths(CHOICES[::-1]), start=7, depth=3), q_offset=7),
        lambda b, h, q, k: k < 7 or (k - 7 < 10 and NODES[k - 7] == NODES[q][: len(NODES[k - 7])]),
        ((2, 2, 10, 17), (1, 1, 10, 30), (1, 1, 7, 9)),
    ),
    Truth(
        "tree in depth-first order",
        lambda B, H, Q, K: dfs_tree(torch.tensor([END[node] for node in ORDER])),
        lambda b, h, q, k: k < 37 and q < 37 and ORDER[k] in PATH[ORDER[q]],
        ((2, 2, 37, 37), (1, 1, 30, 20)),
    ),
    Truth(
        "tree by pre- and post-order",
        lambda B, H, Q, K: (
            remap(causal(), q=row(PLACE.__getitem__, 37), kv=row(PLACE.__getitem__, 37))
            & remap(anti_causal(), q=torch.tensor(POST), kv=torch.tensor(POST))
        ),
        lambda b, h, q, k: k in PATH[q],
        ((2, 2, 37, 37), (1, 1, 30, 20)),
    ),
    Truth(
        "EAGLE-3 training",
        lambda B, H, Q, K: eagle3(16, row(real, B)),
        lambda b, h, q, k: (
            (q in range(real(b)) and k in range(q + 1))
            or (k in range(16 + q % 16, 99, 16) and k % 16 in range(real(b)))
        ),
        ((2, 2, 16, 48), (1, 1, 16, 64), (2, 1, 11, 37)),
    ),
    Truth(
        "P-EAGLE training",
        lambda B, H, Q, K: p_eagle(
            torch.tensor([anchor for anchor, _ in SAMPLES]), torch.tensor([depth for _, depth in SAMPLES])
        ),
        lambda b, h, q, k: (
            SAMPLES[k] in [(i, 0) for i in range(SAMPLES[q][0] + 1)]
            or SAMPLES[k] in [(SAMPLES[q][0], d) for d in range(SAMPLES[q][1] + 1)]
        ),
        ((2, 2, len(SAMPLES), len(SAMPLES)), (1, 1, 20, 30)),
    ),
    Truth(
        "JetSpec training",
        lambda B, H, Q, K: shift(jetspec(17, 6), q_offset=17),
        lambda b, h, q, k: k < 17 or q - q % 6 <= k - 17 <= q,
    ),
    Truth(
        "DFlash training",
        lambda B, H, Q, K: shift(dflash(torch.tensor(ANCHORS), torch.tensor(KEEP), block=8, start=26), q_offset=26),
        lambda b, h, q, k: (
            q < 40 and KEEP[q // 8] and (k < ANCHORS[q // 8] if k < 26 else k - 26 in range(q - q % 8, q - q % 8 + 8))
        ),
        ((2, 2, 40, 66), (1, 1, 40, 66), (1, 1, 30, 50)),
    ),
    Truth("block diffusion", lambda B, H, Q, K: block_diffusion(24, 5), diffused(24, 5, False)),
    Truth("block diffusion, causal", lambda B, H, Q, K: block_diffusion(24, 5, causal=True), diffused(24, 5, True)),
    Truth(
        "decoding of block diffusion",
        lambda B, H, Q, K: shift(block_causal(8), q_offset=row(lambda b: 16 + 8 * b, B)),
        lambda b, h, q, k: k < 16 + 8 * b + q - q % 8 + 8,
        ((2, 2, 16, 53), (1, 1, 16, 48)),
    ),
)
