"""One attention call over every backend: lower a mask, choose who runs it, run it.

Backends explain themselves; this module knows none of their layouts.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskmod._torch.tracing import known_true
from maskmod.algebra import Mask, MaskMod, Sizes
from maskmod.analyser.reading import Reading, read
from maskmod.backends import registry
from maskmod.backends.empty_rows import check_policy
from maskmod.backends.protocol import Backend, Bid, Call, Lowered, Request
from maskmod.backends.registry import register_backend
from maskmod.backends.typed import typed
from maskmod.dense import shared
from maskmod.errors import MaskShapeError, MaskTypeError, MaskValueError, UnsupportedMask

__all__ = ["AttentionPlan", "Choice", "attention", "lower", "plan", "register_backend", "select_backend"]


class Choice(NamedTuple):
    """A backend, why it was chosen, why each other was not, and what each would cost (see `Bid`)."""

    backend: str
    why: str
    rejected: dict[str, str]
    cost: dict[str, float]


@typed
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
    head_size: int = 64,
    calls: int = 1,
    allow_compile: bool | None = None,
) -> Choice:
    """Which backend `attention` takes for this call, why, and why not the others.

    Every backend estimates, in milliseconds, what one call would take: the pairs that it would compute (from the
    mask's own intervals, where these can be found), a share of the preparation, and a compile where it needs one. The
    lowest estimate is taken; ``Choice.cost`` holds them all. In a graph, where lengths need not be known, structure
    and static facts rank the backends instead.

    Args:
        H: query heads. head_size: of queries and keys.
        calls: how often the prepared arguments will be used.
        allow_compile: whether a kernel may be compiled first; None: on a GPU yes, on CPU for 100 calls or more.

    >>> from maskmod import causal
    >>> select_backend(causal(), 1, 8, 512, 512).backend
    'sdpa'
    """
    reading = read(mask, B, H, q_len, kv_len)  # where the mask is: what it hides does not depend on the device
    request = Request(
        dtype=torch.get_default_dtype() if dtype is None else dtype,
        device=reading.device if device is None else torch.device(device),
        requires_grad=requires_grad,
        enable_gqa=enable_gqa,
        B=reading.sizes.B,
        H=reading.sizes.H,
        head_size=head_size,
        calls=calls,
        allow_compile=allow_compile,
    )
    return _choose(shared(reading), request)


def _bid(backend: Backend, reading: Reading, request: Request) -> Bid | str:
    """What the backend asks, or why it cannot serve: by its own account, or because it lacks what the calls ask for."""
    wanted = (
        ("return_lse", request.return_lse, "returns no log-sum-exp"),
        ("softcap", request.softcap is not None, "does not cap scores"),
        ("sink_logits", request.sinks, "takes no sinks"),
    )
    for name, asked, lacks in wanted:
        if asked and name not in backend.takes:
            return f"{backend.name} {lacks}"
    return backend.bid(reading, request)


def _choose(reading: Reading, request: Request) -> Choice:
    bids: dict[str, Bid] = {}
    rejected: dict[str, str] = {}
    for name in registry.names():
        bid = _bid(registry.get(name), reading, request)
        if isinstance(bid, Bid):
            bids[name] = bid
        else:
            rejected[name] = bid
    cost = {name: bid.cost for name, bid in bids.items()}
    chosen = next(iter(cost))
    for name in cost:
        if known_true(cost[name] < cost[chosen]):  # a symbolic length decides nothing: the first registered stays
            chosen = name
    for name, bid in bids.items():
        if name != chosen:
            rejected[name] = bid.why if bid.cost == math.inf else f"its estimate is higher: {bid.why}"
    return Choice(chosen, bids[chosen].why, rejected, cost)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AttentionPlan:
    """Attention under one mask, prepared once and called by every layer: ``plan(q, k, v)``. Made by `plan`.

    A value: it holds what was lowered, changes nothing when called, and may be shared by threads, pickled (as far as
    its mask can be), moved to a device, and passed to a compiled function.

    Attributes:
        mask: what it was made for. sizes: B, H, q_len, kv_len; any B, or H, fits where the mask does not read it.
        backend: who runs it. why, rejected, cost: see `Choice`; without others where the backend was named.
        args: the backend's own arguments, as they were lowered.
    """

    mask: Mask
    sizes: Sizes
    backend: str
    why: str
    rejected: dict[str, str]
    cost: dict[str, float]
    args: Any
    request: Request
    lanes: tuple[int, int]

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, *, sink_logits: Tensor | None = None
    ) -> Any:
        """Attention of these queries: (B, Hq, q_len, Dv), and with ``return_lse`` the log-sum-exp (B, Hq, q_len).

        Args:
            q, k, v: as for `attention`, of the sizes, dtype and device of the plan.
            scale: None is ``1 / sqrt(D)``.
            sink_logits: (Hq,), where the plan was made with ``sinks=True``.
        """
        request = self.request
        if torch.compiler.is_compiling() or not self._fits(q, k, v) or sink_logits is not None or request.sinks:
            self._check(q, k, v, sink_logits)
        call = Call(scale, request.enable_gqa, request.empty_rows, request.return_lse, request.softcap, sink_logits)
        out = registry.get(self.backend).attend(q, k, v, self.args, call)
        if request.return_lse:
            return out[0].to(q.dtype), out[1]
        return out.to(q.dtype)  # pyright: ignore[reportAttributeAccessIssue]

    def _fits(self, q: Tensor, k: Tensor, v: Tensor) -> bool:
        """Whether it is plain that everything fits, without the words for what does not."""
        B, H, q_len, kv_len = self.sizes
        if not (q.dim() == k.dim() == v.dim() == 4 and q.dtype == k.dtype == v.dtype == self.request.dtype):
            return False
        heads = k.shape[1]
        alike = q.device == k.device == v.device and (heads == H or (self.request.enable_gqa and H % heads == 0))
        return (
            alike
            and q.shape[:3] == (B, H, q_len)
            and ((k.shape[:3] == v.shape[:3] == (B, heads, kv_len)) and q.shape[3] == k.shape[3])
        )

    def _check(self, q: Tensor, k: Tensor, v: Tensor, sink_logits: Tensor | None) -> None:
        B, H, q_len, kv_len = _check_shapes(q, k, v, self.request.enable_gqa)
        wrong = known_true(q_len != self.sizes.q_len) or known_true(kv_len != self.sizes.kv_len)
        for found, own, lane in ((B, self.sizes.B, self.lanes[0]), (H, self.sizes.H, self.lanes[1])):
            wrong = wrong or (known_true(found != own) and not known_true(lane == 1))
        if wrong:
            raise MaskShapeError(
                f"plan(q={list(q.shape)}, k={list(k.shape)})",
                f"the plan is for {tuple(self.sizes)}",
                "Make another plan for other sizes.",
            )
        if (sink_logits is not None) != self.request.sinks:
            seen = "without sinks" if sink_logits is not None else "with sinks"
            raise MaskValueError(
                f"plan(sink_logits={'...' if sink_logits is not None else None})",
                f"the plan was made {seen}",
                "Pass plan(..., sinks=True) and sink_logits at each call, or neither.",
            )

    def to(self, device: torch.device | str) -> AttentionPlan:
        """The same plan on another device, without lowering again."""
        target = torch.empty(0, device=device).device
        args = registry.get(self.backend).move(self.args, target)
        return dataclasses.replace(
            self, mask=self.mask.to(target), args=args, request=self.request._replace(device=target)
        )

    def explain(self) -> str:
        """What was chosen and why, and why each other backend was not, with the estimates."""
        lines = [f"mask: {self.mask!r}", f"backend: {self.backend}: {self.why}", f"lowered: {self.args.why}"]
        for name, reason in self.rejected.items():
            lines.append(f"not {name}: {reason}")
        estimates = ", ".join(f"{name} {cost:.3g}" for name, cost in self.cost.items() if cost != math.inf)
        if estimates:
            lines.append(f"estimated milliseconds a call: {estimates}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        B, H, q_len, kv_len = self.sizes
        return f"AttentionPlan({self.mask!r}, {B}, {H}, {q_len}, {kv_len}, backend={self.backend!r})"


def plan(
    mask: MaskMod,
    B: int | None,
    H: int | None,
    q_len: int,
    kv_len: int,
    *,
    backend: str = "auto",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    requires_grad: bool = False,
    enable_gqa: bool = False,
    empty_rows: str = "zero",
    return_lse: bool = False,
    softcap: float | None = None,
    sinks: bool = False,
    head_size: int = 64,
    calls: int = 1,
    allow_compile: bool | None = None,
    **options: Any,
) -> AttentionPlan:
    """Attention under a mask, prepared once: read, chosen, lowered; then called by every layer as ``plan(q, k, v)``.

    Args:
        mask: any callable ``(b, h, q_idx, kv_idx) -> bool``.
        B, H: rows and query heads; None means 1.
        backend: "auto" asks `select_backend`.
        dtype, device: of q, k and v; None is torch's default dtype, and the device of the mask's own tensors.
        requires_grad: whether a backward will follow.
        enable_gqa, empty_rows, return_lse, softcap: as for `attention`.
        sinks: whether every call passes ``sink_logits``.
        head_size, calls, allow_compile: see `select_backend`.
        options: the backend's own, by name; any other is refused.

    Raises:
        BackendError: no such backend.
        UnsupportedMask: the backend cannot serve this, with the reason.

    >>> from maskmod import causal, sliding_window
    >>> layer = plan(causal() & sliding_window(2), 1, 2, 4, 4)
    >>> q = k = v = torch.ones(1, 2, 4, 8)
    >>> layer(q, k, v).shape
    torch.Size([1, 2, 4, 8])
    """
    check_policy("plan", empty_rows, ("zero", "uniform"))
    reading = read(mask, B, H, q_len, kv_len, device=device)
    request = Request(
        dtype=torch.get_default_dtype() if dtype is None else dtype,
        device=reading.device,
        requires_grad=requires_grad,
        enable_gqa=enable_gqa,
        B=reading.sizes.B,
        H=reading.sizes.H,
        head_size=head_size,
        calls=calls,
        allow_compile=allow_compile,
        empty_rows=empty_rows,
        return_lse=return_lse,
        softcap=softcap,
        sinks=sinks,
    )
    return _plan("plan", reading, request, backend, options)


def _plan(written: str, reading: Reading, request: Request, backend: str, options: dict[str, Any]) -> AttentionPlan:
    if request.sinks and request.empty_rows == "uniform":
        raise MaskValueError(
            f'{written}(sink_logits=..., empty_rows="uniform")',
            "a query that sees nothing gives all its weight to the sink",
            'Pass empty_rows="zero".',
        )
    if request.softcap is not None and not request.softcap > 0:
        raise MaskValueError(f"{written}(softcap={request.softcap!r})", "no positive number", "Pass None for no cap.")
    one = shared(reading)
    if backend == "auto":
        chosen = _choose(one, request)
    else:
        bid = _bid(registry.get(backend), one, request)
        if not isinstance(bid, Bid):
            raise UnsupportedMask(f"{written}(backend={backend!r})", bid, 'Use backend="auto" or "sdpa".')
        chosen = Choice(backend, "asked for by name", {}, {backend: bid.cost})
    runs = registry.get(chosen.backend)
    _check_options(f"{written}(mask, {chosen.backend!r}", runs, options)
    args = runs.prepare(one, request, **options)
    return AttentionPlan(reading.mask, reading.sizes, *chosen, args, request, (one.sizes.B, one.sizes.H))


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
    return_lse: bool = False,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
    dropout_p: float = 0.0,
    allow_compile: bool | None = None,
    **options: Any,
) -> Any:
    """Attention under a mask, the same output on every backend: (B, Hq, q_len, Dv), in q's dtype and on its device.

    One mask is built for all heads when the predicate does not read ``h``, and one for the whole batch when it does
    not read ``b``. A `plan` used once; make the plan yourself where several layers share a mask.

    Args:
        q: (B, Hq, q_len, D). k: (B, Hkv, kv_len, D). v: (B, Hkv, kv_len, Dv).
        mask: any callable ``(b, h, q_idx, kv_idx) -> bool``; True = visible.
        backend: "auto" asks `select_backend`.
        scale: None is ``1 / sqrt(D)``.
        enable_gqa: allow Hkv to divide Hq (grouped-query attention); query head h reads kv head ``h // (Hq // Hkv)``.
        empty_rows: the output of rows that see nothing: "zero", or "uniform", the mean of all values. Never NaN.
        return_lse: return ``(output, lse)``: the log-sum-exp of each query's scaled scores, (B, Hq, q_len), in float32
            or better; -inf where nothing is visible. Results over parts of the keys are merged with it.
        softcap: ``softcap * tanh(score / softcap)`` in place of each scaled score (Gemma 2).
        sink_logits: (Hq,), one more score for each query of a head, to which no value belongs (gpt-oss); lse counts it.
        dropout_p: refused unless zero: no two backends would drop the same weights.
        allow_compile: see `select_backend`.
        options: the backend's own, by name (flex: ``block_size``, ``kernel_options``); any other is refused.

    Raises:
        UnsupportedMask: a named backend cannot serve this, with the reason.

    >>> from maskmod import causal, sliding_window
    >>> q = k = v = torch.ones(1, 2, 4, 8)
    >>> attention(q, k, v, causal() & sliding_window(2)).shape
    torch.Size([1, 2, 4, 8])
    """
    check_policy("attention", empty_rows, ("zero", "uniform"))
    if dropout_p:
        raise UnsupportedMask(
            f"attention(dropout_p={dropout_p})",
            "each backend would drop other weights, and its output is promised to be the same on all",
            "Drop what attention returns, or the values.",
        )
    B, H, q_len, kv_len = _check_shapes(q, k, v, enable_gqa)
    request = Request(
        dtype=q.dtype,
        device=q.device,
        requires_grad=torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad),
        enable_gqa=enable_gqa,
        B=B,
        H=H,
        head_size=q.shape[-1],
        allow_compile=allow_compile,
        empty_rows=empty_rows,
        return_lse=return_lse,
        softcap=softcap,
        sinks=sink_logits is not None,
    )
    once = _plan("attention", read(mask, B, H, q_len, kv_len, device=q.device), request, backend, options)
    return once(q, k, v, scale, sink_logits=sink_logits)


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
            todo = "Pass enable_gqa=True, or, if heads come third, (B, length, H, D), each tensor's .transpose(1, 2)."
            raise refusal(f"{H} query heads, {k.shape[1]} kv heads", todo)
        if known_true(k.shape[1] == 0) or known_true(H % k.shape[1] != 0):
            raise refusal(f"{k.shape[1]} kv heads do not divide {H}", "Grouped heads come in equal groups.")
    return B, H, q_len, k.shape[2]
