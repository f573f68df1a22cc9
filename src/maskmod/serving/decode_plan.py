"""One plan for every step of a server: the mask of a step, rewritten in place, at addresses that never change.

A `DecodePlan` knows a mask, a cache layout and a backend. It does not know the model, and it holds no keys.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar, cast, overload

import torch
from torch import Tensor

from maskmod._torch.tracing import known_true
from maskmod._torch.workarounds import fill_, storable
from maskmod.algebra import Mask, MaskMod, as_mask, conjuncts, sizes_of, spell
from maskmod.backends.protocol import Lowered, Step
from maskmod.backends.registry import get
from maskmod.caches import CacheLayout, StaticCache, device_for, positions_of
from maskmod.errors import MaskShapeError, MaskTypeError
from maskmod.masks import Causal, SlidingWindow, causal, full, key_padding
from maskmod.oracle import reads_b_and_h
from maskmod.positions import Remap, remap, shift
from maskmod.serving.reach import check_reach

if TYPE_CHECKING:
    from maskmod.backends.eager import EagerArgs
    from maskmod.backends.flex import FlexArgs
    from maskmod.backends.sdpa import SdpaArgs

__all__ = ["DecodePlan", "Explanation"]

Args = TypeVar("Args", bound=Lowered, covariant=True)


class Explanation(NamedTuple):
    """What a plan holds and why; printed, one line each."""

    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


class DecodePlan(Generic[Args]):
    """The mask of a decode step, allocated once: ``step_`` rewrites it in place and returns the same arguments.

    Shapes, strides and storage addresses of ``plan.args`` never change, and its buffers are marked as static
    addresses, so that one compiled graph (and one CUDA graph) serves every step. ``step_`` asks no tensor for its
    value; it compiles fullgraph by itself, or inside the function that runs the model. A copy, and what pickle makes of
    a plan, is a new plan at position 0.

    Args:
        mask: any callable ``(b, h, q_idx, kv_idx) -> bool`` over positions. Its tensors are held by reference: rewrite
            them in place and the next step follows.
        layout: the cache, from `maskmod.caches`.
        B, H: rows of the batch and query heads. The mask is built for all heads when the predicate does not read ``h``.
        q_len: queries of a step: 1, or k for chunked prefill and for verifying drafts.
        backend: "sdpa" (a boolean), "eager" (a bias), "flex" (a BlockMask) or "flash" (lengths: causal masks,
            windows and key lengths only).
        dtype: of the bias; None is torch's default dtype.
        device: None takes the device of the mask's own tensors, else the layout's, else torch's default.

    Raises:
        MaskValueError: the layout has no room for q_len tokens a step; the message says how much is missing.
        MaskShapeError: the layout, or a table of the mask, has other rows than B.
        BackendError: no such backend.
        UnsupportedMask: the backend cannot express this mask on this layout exactly, or structure shows that the mask
            sees keys that the cache has forgotten, a window wider than its ring say. Where tensors or a user's function
            decide that, `explain` says what is assumed.

    >>> from maskmod import causal, sliding_window
    >>> from maskmod.caches import RingCache
    >>> plan = DecodePlan(causal() & sliding_window(3), RingCache(4), 1, 1, 1, backend="sdpa")
    >>> plan.step_(6).attn_mask.tolist()  # slots hold positions 4, 5, 6, 3
    [[[[True, True, True, False]]]]
    """

    @overload
    def __init__(
        self: DecodePlan[SdpaArgs],
        mask: MaskMod,
        layout: CacheLayout,
        B: int,
        H: int,
        q_len: int,
        *,
        backend: Literal["sdpa"],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ): ...
    @overload
    def __init__(
        self: DecodePlan[EagerArgs],
        mask: MaskMod,
        layout: CacheLayout,
        B: int,
        H: int,
        q_len: int,
        *,
        backend: Literal["eager"],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ): ...
    @overload
    def __init__(
        self: DecodePlan[FlexArgs],
        mask: MaskMod,
        layout: CacheLayout,
        B: int,
        H: int,
        q_len: int,
        *,
        backend: Literal["flex"],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ): ...
    @overload
    def __init__(
        self: DecodePlan[Lowered],
        mask: MaskMod,
        layout: CacheLayout,
        B: int,
        H: int,
        q_len: int,
        *,
        backend: str,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ): ...
    @torch.inference_mode(False)  # buffers made under it could not be rewritten outside
    def __init__(
        self,
        mask: MaskMod,
        layout: CacheLayout,
        B: int,
        H: int,
        q_len: int,
        *,
        backend: str,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        written = as_mask(mask)
        if not isinstance(layout, CacheLayout):
            raise MaskTypeError(
                f"DecodePlan({written!r}, {spell(layout)})",
                f"a {type(layout).__name__} is no cache layout",
                "Pass one of maskmod.caches, say StaticCache(max_len).",
            )
        B, H, q_len, _ = sizes_of(full(), B, H, q_len, layout.kv_len)
        slots = layout.slots(0, q_len, device=device_for(written, device))  # raises where there is no room for q_len
        if slots.valid.dim() == 2 and slots.valid.shape[0] != B:
            rows = slots.valid.shape[0]
            raise MaskShapeError(
                f"DecodePlan({written!r}, {layout!r}, {B}, {H}, {q_len})",
                f"the cache has {rows} rows, the plan {B}",
                f"Pass B={rows}, or a cache of {B} rows.",
            )
        device = slots.valid.device
        dtype = torch.get_default_dtype() if dtype is None else dtype
        self.layout, self.backend = layout, backend
        self._options = {"backend": backend, "dtype": dtype, "device": device}
        self._where = _Where(layout, B, q_len, device)
        self.mask = self._where.of(written)
        """The mask over this step's queries and the cache's slots; it reads the plan's buffers."""
        self.sizes = sizes_of(self.mask, B, H, q_len, layout.kv_len)
        self._written = written
        reads_h = reads_b_and_h(written, device=device)[1]
        stored = self.sizes._replace(H=H if reads_h else 1)
        self._holder = get(backend).holder(
            Step(written, self.mask, layout, q_len, self._where.position, stored, dtype, device)
        )
        self._assumed = check_reach(repr(self), written, layout, H)
        self.args: Args = cast(Any, self._holder.args)
        for buffer in (*self._where.buffers(), *self._holder.buffers()):
            # Unguarded: a second plan of the same structure, at other addresses, shares the compiled graph.
            torch._dynamo.mark_static_address(buffer, guard=False)
        with torch.no_grad():
            self.step_(0)

    def step_(self, cache_position: int | Tensor) -> Args:
        """Rewrite the buffers for this step's queries; returns ``self.args``.

        Args:
            cache_position: where the q_len queries stand: an int, 0-d or (1,) for the first, the others follow;
                (q_len,) for each, shared by the batch; (B, 1) or (B, q_len), the same for every row.

        Raises:
            MaskShapeError, MaskTypeError: ``cache_position`` is none of these.
            MaskValueError: an int past the end of the cache; positions in tensors are not looked at.
        """
        self._where.write_(cache_position)
        self._holder.write_()
        return self.args

    def explain(self) -> Explanation:
        """What the plan holds and why."""
        B, H, q_len, kv_len = self.sizes
        held = sum(t.numel() * t.element_size() for t in (*self._where.buffers(), *self._holder.buffers()))
        return Explanation(
            (
                f"mask: {self._written!r}",
                f"layout: {self.layout!r}: {kv_len} slots; {self._where.why}",
                f"step: {q_len} {'query' if q_len == 1 else 'queries'} in each of {B} rows, {H} heads",
                *([f"assumed: {self._assumed}"] if self._assumed else []),
                f"backend: {self.backend}: {self.args.why}",
                *(f"  {line}" for line in self._holder.lines()),
                f"memory: {held} bytes in {len([*self._where.buffers(), *self._holder.buffers()])} buffers",
            )
        )

    def __repr__(self) -> str:
        B, H, q_len, _ = self.sizes
        return f"DecodePlan({self._written!r}, {self.layout!r}, {B}, {H}, {q_len}, backend={self.backend!r})"

    def __reduce__(self):
        # Built anew: addresses mean nothing elsewhere, and a copy's buffers would not be marked.
        return partial(type(self), **self._options), (self._written, self.layout, *self.sizes[:3])


class _Where:
    """Where this step's queries and keys stand, in buffers: positions (B, q_len), and what the slots hold."""

    def __init__(self, layout: CacheLayout, B: int, q_len: int, device: torch.device):
        self.layout, self.B, self.q_len, self.device = layout, B, q_len, device
        # With one query a row's position is an offset, which reads faster than a table of one column.
        self.position = torch.zeros((B,) if q_len == 1 else (B, q_len), dtype=torch.int64, device=device)
        self.lengths = self.kv_positions = self.valid = None
        if type(layout) is not StaticCache:  # a subclass may say something else than its base
            shape = (B, layout.kv_len)
            self.kv_positions = torch.zeros(shape, dtype=torch.int64, device=device)
            self.valid = torch.zeros(shape, dtype=torch.bool, device=device)
            self.why = "a table of the position in each slot"
        elif q_len > 1:
            self.lengths = torch.zeros(B, dtype=torch.int64, device=device)
            self.why = "slot i holds position i, up to the length of the row"
        else:
            self.why = "slot i holds position i, up to the query's own"

    def buffers(self) -> list[Tensor]:
        return [t for t in (self.position, self.lengths, self.kv_positions, self.valid) if t is not None]

    def of(self, mask: Mask) -> Mask:
        """The mask over rows and slots."""
        if self.q_len == 1:
            if self.kv_positions is None and not _has_causal(mask):
                mask = mask & causal()  # on a static cache the slots written are those up to the one query
            mask = shift(mask, q_offset=self.position)
        else:
            mask = remap(mask, q=self.position)
        if self.lengths is not None:
            return mask & key_padding(self.lengths)
        return mask if self.kv_positions is None else Remap(mask, None, self.kv_positions, self.valid)

    def write_(self, cache_position: int | Tensor) -> None:
        position = positions_of(cache_position, self.q_len, device=self.device)
        if position.dim() == 2 and known_true(position.shape[0] != self.B) and known_true(position.shape[0] != 1):
            raise MaskShapeError(
                f"step_({spell(cache_position)})", f"{position.shape[0]} rows, the plan has {self.B}", "Pass one a row."
            )
        slots = None
        if self.kv_positions is not None or not isinstance(cache_position, Tensor):  # an int past the end raises
            slots = self.layout.slots(cache_position, self.q_len, device=self.device)
        fill_(self.position, position[..., 0] if self.q_len == 1 else position)
        if self.lengths is not None:
            fill_(self.lengths, position[..., -1] + 1)
        if slots is not None and self.kv_positions is not None and self.valid is not None:
            fill_(self.kv_positions, slots.kv_positions)
            fill_(self.valid, storable(slots.valid))


def _has_causal(mask: Mask) -> bool:
    # A subclass may say something else than its base.
    return any(type(part) in (Causal, SlidingWindow) for part in conjuncts(mask))
