"""Attention written out in float64, and the error that a precision may make, measured and not guessed."""

import torch
from torch import Tensor

__all__ = ["plain_attention", "tolerance"]


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, *, scale: float | None = None, empty_rows: str = "zero"
) -> Tensor:
    """Softmax attention in the dtype of its inputs. q (B, Hq, q_len, D), k and v (B, Hkv, kv_len, .), visible bool."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    weights = torch.where(visible, scores, -torch.inf).softmax(-1)
    empty = ~visible.any(-1, keepdim=True)
    share = 1 / max(1, k.shape[2]) if empty_rows == "uniform" else 0.0
    return torch.einsum("bhqk,bhkd->bhqd", torch.where(empty, share, weights).to(v.dtype), v)


def tolerance(exact: Tensor, low: Tensor) -> float:
    """Twice the error of the plain computation in a precision, and a few of its last digits.

    Another order of the same operations errs by as much; a wrong mask by orders of magnitude more.
    """
    eps = torch.finfo(low.dtype).eps
    return 2 * (low.double() - exact).abs().max().item() + 4 * eps * exact.abs().max().item()
