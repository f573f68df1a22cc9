"""Fused attention that also returns the log-sum-exp of each row, forward and backward.

`F.scaled_dot_product_attention` keeps the log-sum-exp to itself, and without it partial results cannot be merged. On
CPU torch's flash kernel is called directly, by its private name (torch 2.11 to 2.14); elsewhere the same is computed in
plain torch, one call's scores at a time. ``tests/_torch`` compares the two.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["attend", "attend_backward"]

_KERNEL = "_scaled_dot_product_flash_attention_for_cpu"
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_HAS_KERNEL = hasattr(torch.ops.aten, _KERNEL) and hasattr(torch.ops.aten, _KERNEL + "_backward")


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """(output, log-sum-exp) of ``softmax(q @ k.T * scale + bias) @ v``, without autograd.

    Args:
        q: (B, Hq, n, D). k, v: (B, Hkv, m, D), Hkv divides Hq; m is 1 or more. All of one dtype, head size and device.
        bias: 0 or -inf, broadcastable to (B, 1, n, m), in q's dtype.

    Returns:
        (B, Hq, n, D) in q's dtype, and (B, Hq, n) in float32 or better. A row that is -inf throughout gets a finite
        output and a log-sum-exp that means nothing.
    """
    if _HAS_KERNEL and q.device.type == "cpu" and q.dtype in _DTYPES:
        return getattr(torch.ops.aten, _KERNEL)(q, k, v, 0.0, False, attn_mask=bias, scale=scale)
    scores = _scores(q, k, bias, scale)
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - lse.unsqueeze(-1)).nan_to_num(0.0)
    out = torch.einsum("bkgnm,bkmd->bkgnd", weights, v.to(weights.dtype))
    return out.flatten(1, 2).to(q.dtype), lse.flatten(1, 2)


def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v where these keys are some of those that `out` and `lse` were computed over.

    Args:
        grad, out: (B, Hq, n, D). lse: (B, Hq, n), finite. The rest as in `attend`.
    """
    if _HAS_KERNEL and q.device.type == "cpu" and q.dtype in _DTYPES:
        backward = getattr(torch.ops.aten, _KERNEL + "_backward")
        return backward(grad, q, k, v, out, lse, 0.0, False, attn_mask=bias, scale=scale)
    groups = (k.shape[1], q.shape[1] // k.shape[1])
    weights = torch.exp(_scores(q, k, bias, scale) - lse.unflatten(1, groups).unsqueeze(-1))
    wide = weights.dtype
    grad, out, queries = (x.to(wide).unflatten(1, groups) for x in (grad, out, q))
    along = torch.einsum("bkgnd,bkmd->bkgnm", grad, v.to(wide))
    scores = weights * (along - (grad * out).sum(-1, keepdim=True)) * scale
    dq = torch.einsum("bkgnm,bkmd->bkgnd", scores, k.to(wide)).flatten(1, 2)
    dk = torch.einsum("bkgnm,bkgnd->bkmd", scores, queries)
    dv = torch.einsum("bkgnm,bkgnd->bkmd", weights, grad)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _scores(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:  # (B, Hkv, Hq // Hkv, n, m)
    wide = torch.promote_types(q.dtype, torch.float32)
    groups = (k.shape[1], q.shape[1] // k.shape[1])
    scores = torch.einsum("bkgnd,bkmd->bkgnm", q.to(wide).unflatten(1, groups), k.to(wide)) * scale
    return scores if bias is None else scores + bias.to(wide).unsqueeze(2)
