"""Attention masks as one-line predicates ``(b, h, q_idx, kv_idx) -> bool``.

Build a mask from the vocabulary or from any function, combine with ``& | ^ ~``, and read it: `dense_mask`,
`additive_bias`, `block_mask`, `draw`, `lower`, `attention`.
"""

from maskmod.algebra import Mask, mask_mod, same_structure
from maskmod.attention import AttentionPlan, Choice, attention, lower, plan, register_backend, select_backend
from maskmod.blocks.block_mask import block_mask
from maskmod.blocks.classify import BlockClasses, classify_blocks
from maskmod.choose import per_head, where
from maskmod.dense import additive_bias, dense_mask
from maskmod.facts.proofs import Element, Proof, disjoint, equal, implies, is_empty, is_full, leaks_future
from maskmod.facts.spans import NotSpans, Spans, column_spans, row_spans
from maskmod.facts.tiles import Tiles, classify_tiles
from maskmod.masks import (
    blockwise,
    causal,
    chunked,
    document,
    full,
    key_padding,
    prefix,
    sinks,
    sliding_window,
    window,
    within,
)
from maskmod.masks.trees import dfs_tree, tree
from maskmod.oracle import vmap_mask
from maskmod.pictures.html import to_html
from maskmod.pictures.plot import plot
from maskmod.pictures.text import draw
from maskmod.positions import at_positions, remap, shift
from maskmod.serving import DecodePlan, RaggedPlan

__version__ = "1.0.0rc1"

__all__ = [
    "AttentionPlan",
    "BlockClasses",
    "Choice",
    "DecodePlan",
    "Element",
    "Mask",
    "NotSpans",
    "Proof",
    "RaggedPlan",
    "Spans",
    "Tiles",
    "additive_bias",
    "at_positions",
    "attention",
    "block_mask",
    "blockwise",
    "causal",
    "chunked",
    "classify_blocks",
    "classify_tiles",
    "column_spans",
    "dense_mask",
    "dfs_tree",
    "disjoint",
    "document",
    "draw",
    "equal",
    "full",
    "implies",
    "is_empty",
    "is_full",
    "key_padding",
    "leaks_future",
    "lower",
    "mask_mod",
    "per_head",
    "plan",
    "plot",
    "prefix",
    "register_backend",
    "remap",
    "row_spans",
    "same_structure",
    "select_backend",
    "shift",
    "sinks",
    "sliding_window",
    "to_html",
    "tree",
    "vmap_mask",
    "where",
    "window",
    "within",
]
