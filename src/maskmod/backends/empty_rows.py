"""Rows of a mask that see nothing, and the one output that every backend gives them.

Softmax over no keys is 0/0. Kernels answer NaN, zeros or a uniform average, and NaN spreads to whole models through the
backward pass. Here such a row is opened to every key before the kernel runs, so that no NaN is ever made, and its
output is replaced afterwards: by zeros, or by the mean of all values ("uniform").
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskmod._torch.tracing import known_true
from maskmod.errors import MaskValueError, UnsupportedMask

__all__ = ["check_absorbs", "check_policy", "fill_empty_rows"]


def check_policy(written: str, policy: str, known: tuple[str, ...]) -> None:
    if policy not in known:
        raise MaskValueError(
            f"{written}(empty_rows={policy!r})",
            "no such policy for rows that see nothing",
            f"Pass one of {list(known)}.",
        )


def check_absorbs(written: str, dtype: torch.dtype) -> None:
    """Refuse "uniform" for a bias whose minimum does not absorb the scores it is added to."""
    if dtype == torch.float16:
        raise UnsupportedMask(
            f'{written}, dtype=float16, empty_rows="uniform")',
            "float16's minimum, -65504, does not absorb the scores, so the weights would not be uniform",
            'Use dtype=bfloat16 or float32, or attention(..., empty_rows="uniform").',
        )


def fill_empty_rows(out: Tensor, sees_something: Tensor, v: Tensor, policy: str) -> Tensor:
    """Replace the output of rows that see nothing.

    Args:
        out: attention's output, (B, Hq, q_len, Dv).
        sees_something: bool, broadcastable to (B, Hq, q_len, 1).
        v: values, (B, Hkv, kv_len, Dv); Hkv divides Hq.
        policy: "zero", or "uniform" for the mean of v over kv_len keys (zero where there are none).
    """
    if policy == "zero" or known_true(v.shape[-2] == 0):
        return torch.where(sees_something, out, torch.zeros((), dtype=out.dtype, device=out.device))
    mean = v.mean(-2, keepdim=True).repeat_interleave(out.shape[1] // v.shape[1], dim=1)
    return torch.where(sees_something, out, mean.to(out.dtype))
