"""Our names against attention-gym's functions: the same mask, argument by argument, as each docstring says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from attn_gym import masks as gym
from torch.nn.attention.flex_attention import create_mask

from maskmod import Mask, causal, chunked, dense_mask, full, prefix, remap, shift, sliding_window, tree, within
from maskmod.masks import (
    block_diffusion,
    column_intervals,
    dilated_window,
    jetspec,
    layout_from_indices,
    longformer,
    morton_order,
    neighborhood,
    periodic,
    shared_prefix,
    sliding_tile,
    svg_spatial,
    svg_temporal,
    tile_order,
    vsa,
)

OFFSETS = torch.tensor([0, 9, 14, 30, 48])
IDS = torch.repeat_interleave(torch.arange(4), OFFSETS.diff())
GLOBAL = torch.zeros(48, dtype=torch.bool).index_fill(0, torch.tensor([0, 20]), True)
PARENTS = [-1, *(max(0, i - 1 - i % 4) for i in range(1, 20))]
SPANS = torch.tensor([[0, 20], [5, 30], [30, 48]])
ORDERS = [torch.randperm(6, generator=torch.Generator().manual_seed(i)) for i in range(24)]
TOP = torch.stack(ORDERS)[:, :2].view(2, 2, 6, 2)
SIZES = torch.tensor([8, 8, 3, 8, 8, 1])


def owner_of(size: int, n: int) -> torch.Tensor:
    return torch.arange(n) // size


# name: (ours, theirs, (B, H, q_len, kv_len))
PAIRS: dict[str, tuple[Mask, Callable, tuple[int, int, int, int]]] = {
    "sliding window of n sees n + 1": (sliding_window(8), gym.generate_sliding_window(7), (1, 1, 48, 48)),
    "dilated": (dilated_window(12, 3), gym.generate_dilated_sliding_window(12, 3), (1, 1, 48, 48)),
    "longformer": (longformer(5, GLOBAL), gym.generate_global_sliding_window(5, GLOBAL), (1, 1, 48, 48)),
    "prefix": (causal() | prefix(9), gym.generate_prefix_lm_mask(9), (1, 1, 48, 48)),
    "documents over causal": (
        within(IDS, causal()),
        gym.generate_doc_mask_mod(gym.causal_mask, OFFSETS),
        (1, 1, 48, 48),
    ),
    "documents over a window": (
        within(IDS, sliding_window(4)),
        gym.generate_doc_mask_mod(gym.generate_sliding_window(3), OFFSETS),
        (1, 1, 48, 48),
    ),
    "documents over a prefix": (
        within(IDS, causal() | prefix(3)),
        gym.generate_doc_mask_mod(gym.generate_prefix_lm_mask(3), OFFSETS),
        (1, 1, 48, 48),
    ),
    "batches": (
        chunked(10) & periodic(causal(), 10),
        gym.batchify_mask_mod(gym.causal_mask, 10),
        (1, 1, 48, 48),
    ),
    "block diffusion": (block_diffusion(24, 4), gym.generate_block_diffusion_mask(24, 4), (1, 1, 48, 48)),
    "flamingo": (
        column_intervals(SPANS[owner_of(6, 18), 0], SPANS[owner_of(6, 18), 1]),
        gym.generate_vision_cross_attention_mask_mod(SPANS, 6),
        (1, 1, 48, 18),
    ),
    "jetspec tree": (
        shift(prefix(7) | tree(torch.tensor(PARENTS), start=7), q_offset=7),
        gym.generate_jetspec_tree_causal_mask_mod(7, gym.build_tree_ancestor_matrix(PARENTS, device="cpu")),
        (1, 1, 20, 27),
    ),
    "jetspec training": (
        shift(jetspec(11, 6), q_offset=11),
        gym.generate_jetspec_training_mask_mod(11, 6),
        (1, 1, 36, 47),
    ),
    "neighborhood": (neighborhood((7, 7), (5, 3)), gym.generate_natten(7, 7, 5, 3), (1, 1, 49, 49)),
    "neighborhood by tiles": (
        remap(neighborhood((6, 8), (3, 5)), q=tile_order((6, 8), (3, 4)), kv=tile_order((6, 8), (3, 4))),
        gym.generate_tiled_natten(8, 6, 5, 3, 4, 3),
        (1, 1, 48, 48),
    ),
    "neighborhood along a Morton curve": (
        remap(neighborhood((8, 8), (3, 5)), q=morton_order((8, 8)), kv=morton_order((8, 8))),
        gym.generate_morton_natten(8, 8, 5, 3),
        (1, 1, 64, 64),
    ),
    "shared prefix": (
        shared_prefix(IDS, torch.tensor([-1, 0, 0, -1])[IDS]),
        gym.generate_shared_prefix_mask_mod(OFFSETS, torch.tensor([0, 0, 0, 3])),
        (1, 1, 48, 48),
    ),
    "sliding tiles": (
        sliding_tile((8, 12), (2, 4), (6, 4), text=5),
        gym.generate_sta_mask_mod_2d((8, 12), (6, 4), (2, 4), 5),
        (1, 1, 101, 101),
    ),
    "sliding tiles of an even number": (
        sliding_tile((4, 4, 4), (2, 2, 2), (4, 2, 4)),
        gym.generate_sta_mask_mod_3d((4, 4, 4), (4, 2, 4), (2, 2, 2)),
        (1, 1, 64, 64),
    ),
    "svg spatial": (
        svg_spatial(4, 16, sink=4 + 9),
        gym.generate_spatial_head_mask_mod(4, 5, 9, 2, True, 8),
        (1, 1, 49, 49),
    ),
    "svg temporal": (svg_temporal(4, 9, 18 // 5), gym.generate_temporal_head_mask_mod(4, 5, 9, 2), (1, 1, 49, 49)),
    "vsa": (
        vsa(layout_from_indices(TOP, 6), 8, SIZES),
        gym.generate_vsa_mask_mod(TOP, 8, SIZES),
        (2, 2, 48, 48),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_mask_by_both_names(name: str):
    ours, theirs, sizes = PAIRS[name]
    assert torch.equal(dense_mask(ours, *sizes), create_mask(theirs, *sizes, device="cpu"))


def test_a_pair_can_differ():
    """Counts are ours to say: a window of seven there shows eight keys."""
    theirs = create_mask(gym.generate_sliding_window(7), 1, 1, 48, 48, device="cpu")
    assert not torch.equal(dense_mask(sliding_window(7), 1, 1, 48, 48), theirs)
    assert not torch.equal(dense_mask(full(), 1, 1, 48, 48), theirs)
