"""attention-gym's masks, imported and unmodified: equal to torch's tables, most without opening a block."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from attn_gym import masks as gym
from torch.nn.attention.flex_attention import create_block_mask

from maskmod import block_mask, classify_blocks
from random_masks import assert_same_tables

N = 1024
SIZE = 64
DOCUMENTS = [100, 300, 24, 500, 100]
OFFSETS = torch.tensor([0, *DOCUMENTS]).cumsum(0)
_generator = torch.Generator().manual_seed(0)
TREE = gym.build_tree_ancestor_matrix([-1, *(max(0, i - 1 - i % 7) for i in range(1, 256))], device="cpu")
TOP = torch.stack([torch.randperm(N // 64, generator=_generator)[:4] for _ in range(2 * 2 * N // 64)])
TOP = TOP.view(2, 2, N // 64, 4)
SIZES = torch.full((N // 64,), 64).index_fill(0, torch.tensor([3, 9]), 40)
GLOBAL = torch.zeros(N, dtype=torch.bool).index_fill(0, torch.tensor([0, 500]), True)

# name: (mask, q_len, kv_len, B, H)
MASKS: dict[str, tuple[Callable, int, int, int, int]] = {
    "causal": (gym.causal_mask, N, N, 1, 1),
    "sliding window": (gym.generate_sliding_window(200), N, N, 1, 1),
    "dilated": (gym.generate_dilated_sliding_window(300, 3), N, N, 1, 1),
    "global sliding": (gym.generate_global_sliding_window(100, GLOBAL), N, N, 1, 1),
    "prefix": (gym.generate_prefix_lm_mask(300), N, N, 1, 1),
    "documents over causal": (gym.generate_doc_mask_mod(gym.causal_mask, OFFSETS), N, N, 1, 1),
    "documents over sliding": (gym.generate_doc_mask_mod(gym.generate_sliding_window(50), OFFSETS), N, N, 1, 1),
    "documents over prefix": (gym.generate_doc_mask_mod(gym.generate_prefix_lm_mask(20), OFFSETS), N, N, 1, 1),
    "packed causal": (gym.generate_packed_causal_doc_mask_mod(OFFSETS), N, N, 1, 1),
    "batches": (gym.batchify_mask_mod(gym.causal_mask, 100), N, N, 1, 1),
    "block diffusion": (gym.generate_block_diffusion_mask(N // 2, 32), N, N, 1, 1),
    "flamingo": (
        gym.generate_vision_cross_attention_mask_mod(torch.tensor([[0, 300], [300, 310], [310, 1000]]), 200),
        N,
        600,
        1,
        1,
    ),
    "jetspec tree": (gym.generate_jetspec_tree_causal_mask_mod(700, TREE), 256, 956, 1, 1),
    "jetspec training": (gym.generate_jetspec_training_mask_mod(300, 24), 720, 1020, 1, 1),
    "natten": (gym.generate_natten(32, 32, 7, 5), N, N, 1, 1),
    "tiled natten": (gym.generate_tiled_natten(32, 32, 7, 5, 8, 8), N, N, 1, 1),
    "morton natten": (gym.generate_morton_natten(32, 32, 7, 5), N, N, 1, 1),
    "shared prefix": (
        gym.generate_shared_prefix_mask_mod(OFFSETS, torch.tensor([0, 0, 0, 3, 3])),
        N,
        N,
        1,
        1,
    ),
    "sta 2d": (gym.generate_sta_mask_mod_2d((32, 24), (24, 8), (8, 8), 100), 868, 868, 1, 1),
    "sta 3d": (gym.generate_sta_mask_mod_3d((8, 8, 12), (4, 4, 12), (4, 4, 4), 64), 832, 832, 1, 1),
    "svg spatial": (gym.generate_spatial_head_mask_mod(30, 7, 142, 2, True), N, N, 1, 1),
    "svg temporal": (gym.generate_temporal_head_mask_mod(30, 7, 142, 2), N, N, 1, 1),
    "vsa": (gym.generate_vsa_mask_mod(TOP, 64, SIZES), N, N, 2, 2),
}


@pytest.mark.parametrize("name", MASKS)
def test_tables_are_torchs(name: str) -> None:
    mask, q_len, kv_len, B, H = MASKS[name]
    ours = block_mask(mask, B, H, q_len, kv_len, block_size=SIZE)
    assert ours.mask_mod is mask
    assert_same_tables(ours, create_block_mask(mask, B, H, q_len, kv_len, device="cpu", BLOCK_SIZE=SIZE), name)


def test_most_need_no_block_opened() -> None:
    needy = []
    for name, (mask, q_len, kv_len, B, H) in MASKS.items():
        exact = classify_blocks(mask, B, H, q_len, kv_len, block_size=SIZE)
        sound = classify_blocks(mask, B, H, q_len, kv_len, block_size=SIZE, exact=False)
        assert not (sound.full & ~exact.full).any(), name
        assert not (sound.empty & ~exact.empty).any(), name
        if (sound.partial & ~exact.partial).any():
            needy.append(name)
    assert len(MASKS) == 23
    assert needy == ["shared prefix"]  # a union of row intervals that change within a block
