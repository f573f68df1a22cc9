"""Whether backends compute the same attention. The yardstick is the reference in float64, not another backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maskmod.algebra import MaskMod, as_mask
from maskmod.attention import attention
from maskmod.errors import MaskValueError
from maskmod.oracle import vmap_mask

__all__ = ["assert_same_attention"]

_ROOM = 4  # times what the reference itself loses in this dtype
_LEAST = 8  # units in the last place of the largest number, where the reference happens to lose nothing


def assert_same_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: MaskMod,
    backends: Sequence[str] = ("eager", "sdpa"),
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    empty_rows: str = "zero",
    atol: float | None = None,
) -> None:
    """Fail unless every backend gives the attention of the mask, forward, and backward where q, k and v need it.

    Each is compared with the eager reference in float64. What it may differ by is four times what the reference itself
    differs by in the dtype of q, so that bfloat16 is allowed what bfloat16 costs and no more.

    Args:
        q, k, v: as `maskmod.attention` takes them.
        backends: names; a backend that refuses the mask raises its `UnsupportedMask`.
        scale, enable_gqa, empty_rows: as in `maskmod.attention`.
        atol: the largest difference to allow instead.

    Raises:
        AssertionError: with the backend, the largest difference and where it is, and the keys that its query sees.

    >>> from maskmod import causal
    >>> q = k = v = torch.randn(1, 2, 8, 4)
    >>> assert_same_attention(q, k, v, causal(), ["eager", "sdpa"])
    """
    __tracebackhide__ = True
    if isinstance(backends, str) or not backends:
        raise MaskValueError(
            f"assert_same_attention(backends={backends!r})", "no list of names", 'Pass ["eager", "sdpa"].'
        )
    options: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa, "empty_rows": empty_rows}
    backward = all(x.requires_grad for x in (q, k, v))
    weights = torch.randn(*q.shape[:3], v.shape[3], generator=torch.Generator().manual_seed(0)).to(q.device, q.dtype)

    def results(backend: str, dtype: torch.dtype) -> dict[str, Tensor]:
        inputs = [x.detach().to(dtype).requires_grad_(backward) for x in (q, k, v)]
        with torch.set_grad_enabled(backward):
            out = attention(inputs[0], inputs[1], inputs[2], mask, backend=backend, **options)
        found = {"output": out.detach()}
        if backward:
            gradients = torch.autograd.grad(out, inputs, weights.to(dtype))
            found |= {f"gradient of {name}": each for name, each in zip("qkv", gradients, strict=True)}
        return found

    exact = results("eager", torch.float64)
    own = results("eager", q.dtype)
    for backend in backends:
        for name, value in results(backend, q.dtype).items():
            allowed = _allowed(own[name], exact[name]) if atol is None else atol
            difference = (value.double() - exact[name]).abs()
            wrong = ~(difference <= allowed)  # NaN is wrong
            if bool(wrong.any()):
                raise AssertionError(_account(backend, name, value, exact[name], difference, allowed, mask, q, k))


def _allowed(own: Tensor, exact: Tensor) -> float:
    lost = float((own.double() - exact).abs().amax()) if own.numel() else 0.0
    return max(_ROOM * lost, _LEAST * torch.finfo(own.dtype).eps * float(exact.abs().amax() if exact.numel() else 0))


def _account(
    backend: str,
    name: str,
    value: Tensor,
    exact: Tensor,
    difference: Tensor,
    allowed: float,
    mask: MaskMod,
    q: Tensor,
    k: Tensor,
) -> str:
    worst = torch.where(difference.isnan(), torch.inf, difference)
    b, h, row, d = (int(i) for i in torch.unravel_index(worst.argmax(), worst.shape))
    lines = [
        f"assert_same_attention(..., {as_mask(mask)!r}, backend={backend!r}): the {name} differs by "
        f"{float(difference[b, h, row, d]):.3g} at (b={b}, h={h}, {row}, {d}), where {allowed:.3g} is allowed: "
        f"{float(value[b, h, row, d]):.6g} instead of {float(exact[b, h, row, d]):.6g}.",
        f"{int((~(difference <= allowed)).sum())} of {difference.numel()} numbers differ.",
    ]
    if name in ("output", "gradient of q"):
        B, H, q_len, _ = q.shape
        seen = vmap_mask(mask, B, H, q_len, k.shape[2], device=q.device)[b, h, row].nonzero().flatten().tolist()
        lines.append(f"Query {row} sees {len(seen)} keys: {seen[:12]}{'...' * (len(seen) > 12)}")
    return "\n".join(lines)
