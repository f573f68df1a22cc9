"""torch's own names for flex attention, with torch's signatures: change one import.

    from maskmod.compat.flex import BlockMask, create_block_mask, flex_attention

The module has every name of `torch.nn.attention.flex_attention`; `create_mask` and `create_block_mask` are ours, their
results equal to torch's, entry by entry; predicates need not change. `_compile=True` asks torch for a build without a
dense mask, which ours never holds: it is served like the default, with nothing to compile. What is not sped up here
(score functions, write orders) is passed on to torch's own functions, as they stood when this module was imported, so
that ours may be put in their place. As in torch, `device=None` means the accelerator if there is one, else the CPU.
This module adds no meaning of its own.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import (
    AuxOutput,
    AuxRequest,
    BlockMask,
    FlexKernelOptions,
    and_masks,
    flex_attention,
    noop_mask,
    or_masks,
)
from torch.nn.attention.flex_attention import create_block_mask as _torch_create_block_mask
from torch.nn.attention.flex_attention import create_mask as _torch_create_mask

from maskmod.algebra import Mask, MaskMod
from maskmod.blocks.block_mask import block_mask
from maskmod.dense import dense_mask

__all__ = [
    "AuxOutput",
    "AuxRequest",
    "BlockMask",
    "FlexKernelOptions",
    "and_masks",
    "create_block_mask",
    "create_mask",
    "flex_attention",
    "noop_mask",
    "or_masks",
]


def __getattr__(name: str) -> Any:
    """Whatever else torch's module holds, private names included."""
    return getattr(torch_flex, name)


def create_mask(
    mod_fn: MaskMod,
    B: int | None,
    H: int | None,
    Q_LEN: int,
    KV_LEN: int,
    device: Any = None,
) -> Tensor:
    """torch's `create_mask`: bool (B, H, Q_LEN, KV_LEN) of a mask_mod, or where a score_mod is not -inf.

    >>> create_mask(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx, None, None, 2, 2, device="cpu").tolist()
    [[[[True, False], [True, True]]]]
    """
    if _is_score_mod(mod_fn):
        return _torch_create_mask(mod_fn, B, H, Q_LEN, KV_LEN, device)
    return dense_mask(mod_fn, B, H, Q_LEN, KV_LEN, device=_device(device))


def create_block_mask(
    mask_mod: MaskMod,
    B: int | None,
    H: int | None,
    Q_LEN: int,
    KV_LEN: int,
    device: Any = None,
    BLOCK_SIZE: int | tuple[int, int] | list[int] = 128,
    _compile: bool = False,
    separate_full_blocks: bool = True,
    compute_dq_write_order: bool = False,
    dq_kv_order: bool = True,
) -> BlockMask:
    """torch's `create_block_mask`, from `maskmod.block_mask` with ``exact=True``.

    >>> create_block_mask(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx, 1, 1, 256, 256, device="cpu").sparsity()
    25.0
    """
    others = not separate_full_blocks or compute_dq_write_order or not isinstance(dq_kv_order, bool)
    if others or _is_score_mod(mask_mod):
        return _torch_create_block_mask(
            mask_mod,
            B,
            H,
            Q_LEN,
            KV_LEN,
            device,
            BLOCK_SIZE,  # pyright: ignore[reportArgumentType]  # torch takes a list, and does not say so
            _compile=_compile,
            separate_full_blocks=separate_full_blocks,
            compute_dq_write_order=compute_dq_write_order,
            dq_kv_order=dq_kv_order,
        )
    block_size = BLOCK_SIZE if isinstance(BLOCK_SIZE, int) else (BLOCK_SIZE[0], BLOCK_SIZE[1])
    device = _device(device)
    return block_mask(mask_mod, B, H, Q_LEN, KV_LEN, device=device, block_size=block_size, exact=True, compact=False)


def _device(device: Any) -> torch.device:
    return torch.device(device or torch.accelerator.current_accelerator() or "cpu")


def _is_score_mod(fn: Any) -> bool:
    """torch tells a score_mod from a mask_mod by its fifth required parameter."""
    if isinstance(fn, Mask) or torch.compiler.is_compiling():  # signatures cannot be read inside a graph
        return False
    return sum(p.default is inspect.Parameter.empty for p in inspect.signature(fn).parameters.values()) == 5
