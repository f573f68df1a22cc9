"""torch's flex attention: a `BlockMask` that skips empty blocks; the predicate goes to torch unmodified."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from maskmod.algebra import Mask, Sizes, structure
from maskmod.backends import Backend, Request
from maskmod.blocks import block_mask
from maskmod.empty_rows import fill_empty_rows
from maskmod.errors import UnsupportedMask
from maskmod.readers import dense_mask
from maskmod.tracing import known_true, tracing

__all__ = ["BACKEND", "FlexArgs"]

_WRAPPERS = 64  # compiled wrappers kept, one for each structure of mask; the least recently used goes first


class FlexArgs(NamedTuple):
    """The ``block_mask`` of ``flex_attention``."""

    block_mask: BlockMask
    why: str

    def kwargs(self) -> dict[str, Any]:
        """For ``flex_attention(q, k, v, **kwargs)``."""
        return {"block_mask": self.block_mask}


def lower(
    mask: Mask, sizes: Sizes, *, dtype: torch.dtype, device: torch.device | None, empty_rows: str = "keep"
) -> FlexArgs:
    if empty_rows == "uniform":
        raise UnsupportedMask(
            f'lower({mask!r}, "flex", empty_rows="uniform")',
            "a BlockMask holds booleans, and uniform weights need a bias",
            'Use backend="sdpa" or "eager", or attention(..., empty_rows="uniform").',
        )
    blocks = block_mask(mask, *sizes, device=device)
    return FlexArgs(blocks, f"a table of blocks of {blocks.BLOCK_SIZE}")


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    args: FlexArgs,
    *,
    scale: float | None,
    enable_gqa: bool,
    empty_rows: str,
) -> Tensor:
    run = flex_attention if tracing(q) else _compiled(_by_code(structure(mask)), q.device.type)
    out = run(q, k, v, block_mask=args.block_mask, scale=scale, enable_gqa=enable_gqa)
    if empty_rows == "zero":  # flex's own answer
        return out
    B, H, q_len, kv_len = (*args.block_mask.shape[:2], q.shape[-2], k.shape[-2])
    visible = dense_mask(mask, B, H, q_len, kv_len, device=q.device)
    return fill_empty_rows(out, visible.any(-1, keepdim=True), v, empty_rows)


def refuse(mask: Mask, request: Request) -> str | None:
    if request.device.type == "cpu":
        if request.requires_grad:
            return "flex attention has no backward on CPU"
        if request.dtype == torch.float64:
            return "compiled flex attention has no float64 on CPU"
    if known_true(request.sizes.q_len == 0) or known_true(request.sizes.kv_len == 0):
        return "flex attention takes no empty sequences"
    return None


def _by_code(part: Any) -> Any:
    """A structure with code in place of functions: a lambda written in a loop is a new function each time around."""
    return tuple(map(_by_code, part)) if isinstance(part, tuple) else getattr(part, "__code__", part)


@functools.lru_cache(maxsize=_WRAPPERS)
def _compiled(structure: tuple, device_type: str):
    """A compiled flex_attention for one structure of mask: uncompiled, flex materialises the scores, and says so.

    A wrapper serves one structure because Dynamo keeps eight graphs a code object and then runs eagerly; with fullgraph
    it raises instead. CPU compiles for static shapes: its code generator corrupts symbolic ones.
    """
    return torch.compile(
        flex_attention,
        fullgraph=True,
        dynamic=False if device_type == "cpu" else None,
        **({"isolate_recompiles": True, "recompile_limit": 256} if _ISOLATES else {}),
    )


def _isolates() -> bool:
    import inspect

    return {"isolate_recompiles", "recompile_limit"} <= inspect.signature(torch.compile).parameters.keys()


_ISOLATES = _isolates()

BACKEND = Backend("flex", lower, attend, refuse)
