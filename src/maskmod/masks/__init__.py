"""The vocabulary: the masks that people name. True means visible; every docstring counts the keys a query sees.

Predicates see logical positions. No module here knows caches, blocks or backends, and nothing is reordered:
a mask for packed images is ``((causal() & window) | blockwise(image_ids)) & document(ids) & key_padding(valid)``,
with packing after the spans, since ids of spans may begin again in each document.
"""

from maskmod.masks.multimodal import Blockwise, blockwise
from maskmod.masks.packed import Document, KeyLengths, KeyPadding, document, key_padding
from maskmod.masks.positional import (
    Causal,
    Chunked,
    Full,
    Prefix,
    Sinks,
    SlidingWindow,
    Window,
    causal,
    chunked,
    full,
    prefix,
    sinks,
    sliding_window,
    window,
)
from maskmod.masks.trees import DfsTree, Tree, dfs_tree, tree

__all__ = [
    "Blockwise",
    "Causal",
    "Chunked",
    "DfsTree",
    "Document",
    "Full",
    "KeyLengths",
    "KeyPadding",
    "Prefix",
    "Sinks",
    "SlidingWindow",
    "Tree",
    "Window",
    "blockwise",
    "causal",
    "chunked",
    "dfs_tree",
    "document",
    "full",
    "key_padding",
    "prefix",
    "sinks",
    "sliding_window",
    "tree",
    "window",
]
