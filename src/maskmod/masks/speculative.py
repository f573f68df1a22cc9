"""Masks of draft models in training, and trees of drafts: EAGLE-3, P-EAGLE, JetSpec, DFlash, Medusa.

Queries of a draft stand behind the keys of the text: their positions are those of their own keys. Where a trainer
counts its queries from 0, `shift` says where they stand: ``shift(jetspec(p, n), q_offset=p)``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from maskmod.algebra import Mask
from maskmod.algebra.lookup import (
    check_size,
    check_table,
    check_table_sizes,
    look_up,
    wide,
)
from maskmod.errors import MaskShapeError, MaskValueError
from maskmod.masks.inner import periodic
from maskmod.masks.positional import causal, chunked, dilated, prefix, query_prefix

__all__ = ["DFlash", "PEagle", "dflash", "eagle3", "jetspec", "p_eagle", "parents_from_paths"]


def eagle3(length: int, lengths: int | Tensor) -> Mask:
    """EAGLE-3's training-time test: text of ``length`` keys, then one copy of it for each further step of drafting.

    Query q sees the text causally, and in each later copy its own place alone: ``q + 1 + copies`` keys (SpecForge,
    TorchSpec's ``generate_eagle3_mask``). Speculators has the same with documents.

    Args:
        length: tokens of the text, padding included; queries are 0..length - 1, keys ``length`` times the copies.
        lengths: real tokens: an int, or one for each batch row, (B,). What is padding sees and shows nothing in the
            text.

    >>> [kv for kv in range(12) if eagle3(4, 3)(0, 0, 2, kv)]
    [0, 1, 2, 6, 10]
    """
    check_size(f"eagle3({length!r}, ...)", length, unit="tokens")
    text = causal() & prefix(lengths) & query_prefix(lengths)
    copies = (prefix(length) ^ True) & dilated(length) & periodic(prefix(lengths), length)
    return text | copies


def jetspec(prefix_len: int | Tensor, block: int | Tensor) -> Mask:
    """Blocks of drafts behind a prefix: each sees the whole prefix and itself causally, never another block (JetSpec).

    Query q sees ``prefix_len + 1 + (q - prefix_len) % block`` keys. Queries stand at ``prefix_len`` and on;
    attention-gym's ``generate_jetspec_training_mask_mod(p, n)`` counts them from 0: ``shift(jetspec(p, n),
    q_offset=p)``.

    Args:
        prefix_len: verified tokens: int, or an integer tensor of shape (), (1,) or (B,).
        block: tokens of a block, its anchor included.

    >>> [kv for kv in range(8) if jetspec(2, 3)(0, 0, 6, kv)]
    [0, 1, 5, 6]
    """
    return prefix(prefix_len) | (causal() & chunked(block, start=prefix_len))


class DFlash(Mask):
    """See `dflash`."""

    anchors: Tensor
    keep: Tensor
    block: int = dataclasses.field(kw_only=True)
    start: int = dataclasses.field(kw_only=True)

    _name = "dflash"

    def __post_init__(self):
        check_table(self, self.anchors, holds="anchors")
        check_table(self, self.keep, holds="flags", booleans=True)
        check_size(self, self.block, unit="tokens")
        check_size(self, self.start, least=0, unit="tokens")
        if self.anchors.shape != self.keep.shape:
            seen = f"anchors {list(self.anchors.shape)}, keep {list(self.keep.shape)}"
            raise MaskShapeError(self, seen, "Pass one flag for each anchor.")

    def __call__(self, b, h, q_idx, kv_idx):
        number = (q_idx - self.start) // self.block
        anchor, known = look_up(self.anchors, b, number)
        kept, _ = look_up(self.keep, b, number)
        kept = kept if self.keep.dtype == torch.bool else kept != 0
        text = (kv_idx < self.start) & (kv_idx < wide(anchor, self.anchors))
        own = (kv_idx >= self.start) & ((kv_idx - self.start) // self.block == number)
        return (text | own) & kept & known

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_table_sizes(self, self.anchors, B, None, "q_len")


def dflash(anchors: Tensor, keep: Tensor, *, block: int, start: int) -> Mask:
    """DFlash's training mask: block i of drafts sees the text before its anchor, and itself, both ways.

    ``anchors[i] + block`` keys, none where ``keep[i]`` is unset. Keys are ``start`` tokens of text, then the blocks;
    queries are the blocks and stand at ``start`` and on. Trainers (SpecForge, Automodel) count them from 0:
    ``shift(dflash(...), q_offset=start)``.

    Args:
        anchors: where in the text each block is drafted, integers (blocks,) or (B, blocks).
        keep: which blocks are real, bool or integers of the same shape.
        block: tokens of a block.
        start: tokens of the text.

    >>> mask = dflash(torch.tensor([2, 3]), torch.tensor([True, True]), block=2, start=4)
    >>> [kv for kv in range(8) if mask(0, 0, 4, kv)]
    [0, 1, 4, 5]
    """
    return DFlash(anchors, keep, block=block, start=start)


class PEagle(Mask):
    """See `p_eagle`."""

    anchors: Tensor
    depths: Tensor

    _name = "p_eagle"

    def __post_init__(self):
        check_table(self, self.anchors, holds="anchors")
        check_table(self, self.depths, holds="depths")

    def __call__(self, b, h, q_idx, kv_idx):
        q_anchor, q_known = look_up(self.anchors, b, q_idx)
        kv_anchor, kv_known = look_up(self.anchors, b, kv_idx)
        q_depth, _ = look_up(self.depths, b, q_idx)
        kv_depth, _ = look_up(self.depths, b, kv_idx)
        text = (kv_depth == 0) & (kv_anchor <= q_anchor)
        rollout = (kv_anchor == q_anchor) & (kv_depth <= q_depth)
        return (text | rollout) & q_known & kv_known

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        for table in (self.anchors, self.depths):
            check_table_sizes(self, table, B, q_len, "q_len")
            check_table_sizes(self, table, B, kv_len, "kv_len")


def p_eagle(anchors: Tensor, depths: Tensor) -> Mask:
    """P-EAGLE's parallel groups: a token sees the text up to its anchor, and its own rollout up to its depth.

    ``anchors[q] + 1 + depths[q]`` keys, where every rollout is sampled to that depth. Text has depth 0, and itself for
    an anchor. Speculators' ``create_peagle_mask_mod`` adds ``document(ids[anchors])``.

    Args:
        anchors: the place in the text where each token's rollout began, integers (n,) or (B, n).
        depths: how many drafts lie between, integers of the same shape.

    >>> mask = p_eagle(torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 0, 0, 1, 1]))
    >>> [kv for kv in range(5) if mask(0, 0, 4, kv)]
    [0, 1, 4]
    """
    return PEagle(anchors, depths)


def parents_from_paths(paths: Sequence[Sequence[int]]) -> Tensor:
    """Medusa's choices as a table of parents for `tree`: int64 (1 + nodes,), node 0 being the last committed token.

    A path names the candidate taken at each step: ``(0, 1)`` is the second candidate after the first one. Nodes are the
    paths in Medusa's order, by length and then by entries; the beginning of a path must be a path.

    >>> parents_from_paths([(0,), (1,), (0, 0), (0, 1)]).tolist()
    [-1, 0, 0, 1, 1]
    """
    ordered = sorted(map(tuple, paths), key=lambda path: (len(path), path))
    number = {(): 0} | {path: i for i, path in enumerate(ordered, 1)}
    for path in ordered:
        if path[:-1] not in number:
            raise MaskValueError(
                f"parents_from_paths with {path}", f"no path {path[:-1]}", "Add the beginning of the path."
            )
    return torch.tensor([-1, *(number[path[:-1]] for path in ordered)])
