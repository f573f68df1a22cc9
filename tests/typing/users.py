"""What users write, checked by pyright in strict mode: no ignore, no cast. Only read by `test_typing`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from typing_extensions import assert_type

from maskmod import (
    DecodePlan,
    Mask,
    block_mask,
    causal,
    classify_blocks,
    dense_mask,
    document,
    lower,
    mask_mod,
    select_backend,
    sliding_window,
)
from maskmod.caches import StaticCache

ids = torch.zeros(64, dtype=torch.int64)

mask = causal() & document(ids) & mask_mod(lambda b, h, q_idx, kv_idx: q_idx - kv_idx < 8)
assert_type(mask, Mask)
assert_type(mask | sliding_window(4) ^ True, Mask)
assert_type(~mask, Mask)
visible = causal()(0, 0, 1, 2)
assert_type(visible, bool)


@mask_mod
def diagonal(b: torch.Tensor, h: torch.Tensor, q_idx: torch.Tensor, kv_idx: torch.Tensor) -> torch.Tensor:
    return q_idx == kv_idx


class Band(Mask):
    """A mask of the user's own."""

    width: int

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return abs(q_idx - kv_idx) < self.width


band = Band(3) & diagonal
assert_type(band.to("cpu"), Mask)
assert_type(Band(3).to("cpu"), Band)
assert_type(Band(3).width, int)

dense = dense_mask(mask, 1, None, 64, 64)
assert_type(dense, torch.Tensor)
assert_type(classify_blocks(mask, 1, 1, 64, 64).full, torch.Tensor)
assert_type(block_mask(mask, 1, 1, 64, 64).sparsity(), float)

q = torch.zeros(1, 2, 64, 8)
sdpa = lower(mask, "sdpa", 1, 2, 64, 64)
F.scaled_dot_product_attention(q, q, q, attn_mask=sdpa.attn_mask, is_causal=sdpa.is_causal)
assert_type(lower(mask, "eager", 1, 2, 64, 64).attn_bias, torch.Tensor)
blocks = lower(mask, "flex", 1, 2, 64, 64).block_mask
assert_type(blocks.sparsity(), float)
name: str = "sdpa"
assert_type(lower(mask, name, 1, 2, 64, 64).why, str)

plan = DecodePlan(causal(), StaticCache(64), 1, 2, 1, backend="sdpa")
step = plan.step_(torch.tensor(3))
assert_type(step.attn_mask, torch.Tensor | None)
bias = DecodePlan(causal(), StaticCache(64), 1, 2, 1, backend="eager", dtype=torch.float32).step_(0).attn_bias
assert_type(bias, torch.Tensor)
assert_type(DecodePlan(causal(), StaticCache(64), 1, 2, 1, backend="flex").args.block_mask.sparsity(), float)

assert_type(select_backend(mask, 1, 2, 64, 64).backend, str)
