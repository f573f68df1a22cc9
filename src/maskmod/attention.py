"""One attention call over every backend: lower a mask, choose who runs it, run it.

Backends explain themselves; this module knows none of their layouts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from maskmod.algebra import Mask, MaskMod, as_mask, device_of, sizes_of
from maskmod.backends import Backend, Lowered, Request, eager, flash, flex, sdpa
from maskmod.empty_rows import check_policy
from maskmod.errors import BackendError, MaskShapeError, MaskTypeError, UnsupportedMask
from maskmod.readers import shared_sizes
from maskmod.tracing import known_true

__all__ = ["Choice", "attention", "lower", "register_backend", "select_backend"]

_BACKENDS: dict[str, Backend] = {module.BACKEND.name: module.BACKEND for module in (eager, sdpa, flex, flash)}

_DENSE_LIMIT = 1 << 30
"""Bytes of a dense mask past which `select_backend` prefers a backend without one."""


class Choice(NamedTuple):
    """A backend, why it was chosen, and why each other was not."""

    backend: str
    why: str
    rejected: dict[str, str]


def register_backend(
    name: str,
    *,
    lower: Callable[..., Lowered],
    attend: Callable[..., Tensor],
    refuse: Callable[[Mask, Request], str | None] = lambda mask, request: None,
) -> None:
    """Add a backend, made of the three functions that `maskmod.backends.Backend` describes.

    `attention` and `lower` take it by name; `select_backend` does not choose it by itself.

    Raises:
        BackendError: the name is taken.
    """
    if name in _BACKENDS or name == "auto":
        raise BackendError(f"register_backend({name!r})", "the name is taken", f"Registered: {sorted(_BACKENDS)}.")
    _BACKENDS[name] = Backend(name, lower, attend, refuse)


def lower(
    mask: MaskMod,
    backend: str,
    B: int | None,
    H: int | None,
    q_len: int,
    kv_len: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    empty_rows: str = "keep",
) -> Lowered:
    """The mask as one backend's own arguments: a named result with ``.why`` and ``.kwargs()``.

    ``F.scaled_dot_product_attention(q, k, v, **lower(mask, "sdpa", B, H, q_len, kv_len).kwargs())``

    Args:
        backend: "eager", "sdpa", "flex", "flash", or a registered name.
        dtype: dtype of a bias, where the backend takes one; None is torch's default dtype.
        empty_rows: rows that see nothing: "keep" leaves them to the backend, "uniform" gives them uniform weights.

    Raises:
        BackendError: no such backend.
        UnsupportedMask: the backend cannot express this mask exactly.

    >>> from maskmod import causal
    >>> lower(causal(), "sdpa", 1, 1, 8, 8).kwargs()
    {'attn_mask': None, 'is_causal': True}
    """
    check_policy("lower", empty_rows, ("keep", "uniform"))
    mask = as_mask(mask)
    sizes = sizes_of(mask, B, H, q_len, kv_len)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    return _backend(backend).lower(mask, sizes, dtype=dtype, device=device_of(mask, device), empty_rows=empty_rows)


def select_backend(
    mask: MaskMod,
    B: int | None,
    H: int | None,
    q_len: int,
    kv_len: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    requires_grad: bool = False,
    enable_gqa: bool = False,
) -> Choice:
    """Which backend `attention` takes for this call, why, and why not the others: from structure and sizes alone.

    SDPA's fused kernels win wherever they need no mask. With one, flex wins on GPUs for long queries, and anywhere
    once a dense mask would pass 1 GiB; else SDPA.

    >>> from maskmod import causal
    >>> select_backend(causal(), 1, 8, 512, 512).backend
    'sdpa'
    """
    mask = as_mask(mask)
    sizes = sizes_of(mask, B, H, q_len, kv_len)
    device = device_of(mask, device)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    request = Request(sizes, dtype, device, requires_grad, enable_gqa)
    rejected = {
        name: backend.refuse(mask, request) or "it runs where it is asked for by name"
        for name, backend in _BACKENDS.items()
        if name not in ("sdpa", "flex")
    }
    rejected["eager"] = "it is the reference: slower than the fused kernels and never needed for correctness"
    maskless = sdpa.maskless(mask, sizes)
    if maskless is not None:
        return Choice("sdpa", maskless.why, rejected | {"flex": "SDPA needs no mask here"})
    refusal = flex.refuse(mask, request)
    dense_bytes = sizes.B * sizes.H * q_len * kv_len
    if refusal is None and known_true(dense_bytes > _DENSE_LIMIT):  # at most; one mask may serve all rows or heads
        shared = shared_sizes(mask, sizes, device=device)
        dense_bytes = shared.B * shared.H * q_len * kv_len
    if refusal is None and known_true(dense_bytes > _DENSE_LIMIT):
        return Choice(
            "flex", f"a dense mask would take {dense_bytes / 2**30:.1f} GiB", rejected | {"sdpa": "dense mask"}
        )
    if refusal is None and device.type == "cuda" and not known_true(q_len < 128):
        why = "on a GPU it skips the empty blocks of a long query"
        return Choice("flex", why, rejected | {"sdpa": "a dense mask keeps it off its flash kernel"})
    refusal = refusal or "for this size and device a dense mask is cheaper than a compiled kernel"
    return Choice("sdpa", "a dense boolean mask; no cheaper form is proven", rejected | {"flex": refusal})


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: MaskMod,
    *,
    backend: str = "auto",
    scale: float | None = None,
    enable_gqa: bool = False,
    empty_rows: str = "zero",
) -> Tensor:
    """Attention under a mask, the same output on every backend: (B, Hq, q_len, Dv), in q's dtype and on its device.

    One mask is built for all heads when the predicate does not read ``h``, and one for the whole batch when it does
    not read ``b``.

    Args:
        q: (B, Hq, q_len, D). k: (B, Hkv, kv_len, D). v: (B, Hkv, kv_len, Dv).
        mask: any callable ``(b, h, q_idx, kv_idx) -> bool``; True = visible.
        backend: "auto" asks `select_backend`.
        scale: None is ``1 / sqrt(D)``.
        enable_gqa: allow Hkv to divide Hq (grouped-query attention); query head h reads kv head ``h // (Hq // Hkv)``.
        empty_rows: the output of rows that see nothing: "zero", or "uniform", the mean of all values. Never NaN.

    >>> from maskmod import causal, sliding_window
    >>> q = k = v = torch.ones(1, 2, 4, 8)
    >>> attention(q, k, v, causal() & sliding_window(2)).shape
    torch.Size([1, 2, 4, 8])
    """
    check_policy("attention", empty_rows, ("zero", "uniform"))
    B, H, q_len, kv_len = _check_shapes(q, k, v, enable_gqa)
    mask = as_mask(mask)
    sizes = sizes_of(mask, B, H, q_len, kv_len)
    requires_grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    sizes = shared_sizes(mask, sizes, device=q.device)
    if backend == "auto":
        facts = {"dtype": q.dtype, "device": q.device, "requires_grad": requires_grad, "enable_gqa": enable_gqa}
        backend = select_backend(mask, *sizes, **facts).backend
    chosen = _backend(backend)
    refusal = chosen.refuse(mask, Request(sizes, q.dtype, q.device, requires_grad, enable_gqa))
    if refusal is not None:
        raise UnsupportedMask(f"attention(backend={backend!r})", refusal, 'Use backend="auto" or "sdpa".')
    args = chosen.lower(mask, sizes, dtype=q.dtype, device=q.device, empty_rows="keep")
    out = chosen.attend(q, k, v, mask, args, scale=scale, enable_gqa=enable_gqa, empty_rows=empty_rows)
    return out.to(q.dtype)  # autocast answers in a dtype of its own, another on each backend


def _backend(name: str) -> Backend:
    if name not in _BACKENDS:
        raise BackendError(f"backend={name!r}", "no such backend", f"Registered: {sorted(_BACKENDS)}.")
    return _BACKENDS[name]


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, enable_gqa: bool) -> tuple[int, int, int, int]:
    def refusal(seen: str, todo: str) -> MaskShapeError:  # spelled out only when raised: printing a length fixes it
        return MaskShapeError(f"attention(q={list(q.shape)}, k={list(k.shape)}, v={list(v.shape)})", seen, todo)

    if not all(isinstance(t, Tensor) for t in (q, k, v)):
        kinds = ", ".join(type(t).__name__ for t in (q, k, v))
        raise MaskTypeError("attention(q, k, v, mask)", f"q, k and v are {kinds}", "Pass three tensors, then the mask.")
    if any(t.dim() != 4 for t in (q, k, v)):
        raise refusal("not all 4-d", "Pass (batch, heads, length, size).")
    if not (q.dtype == k.dtype == v.dtype and q.device == k.device == v.device):
        kinds = ", ".join(f"{t.dtype} on {t.device}" for t in (q, k, v))
        raise MaskTypeError("attention(q, k, v)", f"dtypes or devices differ: {kinds}", "Pass the same for all three.")
    if not q.dtype.is_floating_point:
        raise MaskTypeError("attention(q, k, v)", f"tensors of {q.dtype}", "Pass a floating dtype.")
    B, H, q_len, D = q.shape
    if known_true(k.shape[0] != B) or known_true(v.shape[0] != B):
        raise refusal("batch sizes differ", "Expand k and v to q's batch.")
    if known_true(k.shape[1] != v.shape[1]) or known_true(k.shape[2] != v.shape[2]):
        raise refusal("k and v differ in heads or length", "One value belongs to each key.")
    if known_true(k.shape[3] != D):
        raise refusal("q and k differ in their last size", "Project them to one head size.")
    if known_true(k.shape[1] != H):
        if not enable_gqa:
            raise refusal(f"{H} query heads, {k.shape[1]} kv heads", "Pass enable_gqa=True.")
        if known_true(k.shape[1] == 0) or known_true(H % k.shape[1] != 0):
            raise refusal(f"{k.shape[1]} kv heads do not divide {H}", "Grouped heads come in equal groups.")
    return B, H, q_len, k.shape[2]
