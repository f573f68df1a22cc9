"""One attention call over every backend: lower a mask, choose who runs it, run it.

Backends explain themselves; this module knows none of their layouts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskmod._torch.tracing import known_true
from maskmod.algebra import MaskMod
from maskmod.analyser.reading import Reading, read
from maskmod.backends import registry
from maskmod.backends.empty_rows import check_policy
from maskmod.backends.protocol import Backend, Bid, Lowered, Request
from maskmod.backends.registry import register_backend
from maskmod.dense import shared
from maskmod.errors import MaskShapeError, MaskTypeError, UnsupportedMask

__all__ = ["Choice", "attention", "lower", "register_backend", "select_backend"]


class Choice(NamedTuple):
    """A backend, why it was chosen, why each other was not, and what each would cost (see `Bid`)."""

    backend: str
    why: str
    rejected: dict[str, str]
    cost: dict[str, float]


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
    **options: Any,
) -> Lowered:
    """The mask as one backend's own arguments: a named result with ``.why`` and ``.kwargs()``.

    ``F.scaled_dot_product_attention(q, k, v, **lower(mask, "sdpa", B, H, q_len, kv_len).kwargs())``

    Args:
        backend: "eager", "sdpa", "flex", "flash", or a registered name.
        dtype: dtype of a bias, where the backend takes one; None is torch's default dtype.
        empty_rows: rows that see nothing: "keep" leaves them to the backend, "uniform" gives them uniform weights.
        options: the backend's own, by name; any other is refused.

    Raises:
        BackendError: no such backend.
        MaskTypeError: an option that the backend does not take.
        UnsupportedMask: the backend cannot express this mask exactly.

    >>> from maskmod import causal
    >>> lower(causal(), "sdpa", 1, 1, 8, 8).kwargs()
    {'attn_mask': None, 'is_causal': True}
    """
    check_policy("lower", empty_rows, ("keep", "uniform"))
    chosen = registry.get(backend)
    _check_options(f"lower(mask, {backend!r}", chosen, options)
    reading = read(mask, B, H, q_len, kv_len, device=device)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    return chosen.lower(reading, dtype=dtype, empty_rows=empty_rows, **options)


def _check_options(written: str, backend: Backend, options: dict[str, Any]) -> None:
    for name in options:
        if name not in backend.options:
            known = ", ".join(backend.options) or "none"
            raise MaskTypeError(
                f"{written}, {name}=...)", f"{backend.name} has no option {name!r}", f"Its options: {known}."
            )


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

    Every backend bids; the lowest estimate is taken. ``Choice.rejected`` says why each other was not.

    >>> from maskmod import causal
    >>> select_backend(causal(), 1, 8, 512, 512).backend
    'sdpa'
    """
    reading = read(mask, B, H, q_len, kv_len, device=device)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    return _choose(reading, Request(dtype, reading.device, requires_grad, enable_gqa))


def _choose(reading: Reading, request: Request) -> Choice:
    bids: dict[str, Bid] = {}
    rejected: dict[str, str] = {}
    for name in registry.names():
        bid = registry.get(name).bid(reading, request)
        if isinstance(bid, Bid):
            bids[name] = bid
        else:
            rejected[name] = bid
    chosen = min(bids, key=lambda name: bids[name].cost)
    rejected |= {name: f"its estimate is higher: {bid.why}" for name, bid in bids.items() if name != chosen}
    return Choice(chosen, bids[chosen].why, rejected, {name: bid.cost for name, bid in bids.items()})


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
    requires_grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    reading = shared(read(mask, B, H, q_len, kv_len, device=q.device))
    request = Request(q.dtype, q.device, requires_grad, enable_gqa)
    if backend == "auto":
        backend = _choose(reading, request).backend
    chosen = registry.get(backend)
    bid = chosen.bid(reading, request)
    if not isinstance(bid, Bid):
        raise UnsupportedMask(f"attention(backend={backend!r})", bid, 'Use backend="auto" or "sdpa".')
    args = chosen.lower(reading, dtype=q.dtype)
    out = chosen.attend(q, k, v, reading, args, scale=scale, enable_gqa=enable_gqa, empty_rows=empty_rows)
    return out.to(q.dtype)  # autocast answers in a dtype of its own, another on each backend


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
