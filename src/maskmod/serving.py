"""One plan for every step of a server: the mask of a step, rewritten in place, at addresses that never change.

A `DecodePlan` knows a mask, a cache layout and a backend. It does not know the model, and it holds no keys.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskmod.algebra import Mask, MaskMod, Sizes, as_mask, conjuncts, sizes_of, spell
from maskmod.backends import Lowered
from maskmod.backends.eager import EagerArgs
from maskmod.backends.flash import CacheArgs, band_and_lengths, flash_window
from maskmod.backends.flex import FlexArgs
from maskmod.backends.sdpa import SdpaArgs
from maskmod.bands import Band
from maskmod.blocks import classify_blocks
from maskmod.blocks.tables import from_classes
from maskmod.caches import CacheLayout, PagedCache, RingCache, SlidingCache, StaticCache, device_for, positions_of
from maskmod.dense import reads_b_and_h, storable, vmap_mask
from maskmod.errors import BackendError, MaskShapeError, MaskTypeError, UnsupportedMask
from maskmod.indexing import Remap, remap, shift
from maskmod.masks import Causal, SlidingWindow, causal, full, key_padding
from maskmod.readers import bias_from_bool
from maskmod.replay import replay_of
from maskmod.tracing import known_true, tracing

__all__ = ["DecodePlan", "Explanation"]

_BLOCK_SIZE = 128  # flex's own default
_ANY_LENGTH = 1 << 62  # a cache that evicts holds sequences of any length


class Explanation(NamedTuple):
    """What a plan holds and why; printed, one line each."""

    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


class DecodePlan:
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
        UnsupportedMask: the backend cannot express this mask on this layout exactly.

    >>> from maskmod import causal, sliding_window
    >>> from maskmod.caches import RingCache
    >>> plan = DecodePlan(causal() & sliding_window(3), RingCache(4), 1, 1, 1, backend="sdpa")
    >>> plan.step_(6).attn_mask.tolist()  # slots hold positions 4, 5, 6, 3
    [[[[True, True, True, False]]]]
    """

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
        if backend not in _HOLDERS:
            raise BackendError(
                f"DecodePlan(backend={backend!r})", "no such backend", f"Pass one of {sorted(_HOLDERS)}."
            )
        self._holder = _HOLDERS[backend](_Step(written, self._where, self.mask, stored, dtype, device))
        self.args = self._holder.args
        for buffer in (*self._where.buffers(), *self._holder.buffers()):
            # Unguarded: a second plan of the same structure, at other addresses, shares the compiled graph.
            torch._dynamo.mark_static_address(buffer, guard=False)
        with torch.no_grad():
            self.step_(0)

    def step_(self, cache_position: int | Tensor) -> Lowered:
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
        _fill_(self.position, position[..., 0] if self.q_len == 1 else position)
        if self.lengths is not None:
            _fill_(self.lengths, position[..., -1] + 1)
        if slots is not None and self.kv_positions is not None and self.valid is not None:
            _fill_(self.kv_positions, slots.kv_positions)
            _fill_(self.valid, storable(slots.valid))


def _fill_(buffer: Tensor, value: Tensor) -> None:
    if tracing(buffer):
        # In a graph the new contents stand for the buffer, and flex on CPU refuses predicates that read a value
        # computed pointwise; a strided view of it is taken as stored.
        value = value.to(buffer.dtype).expand(buffer.shape).contiguous()
        value = value.as_strided(value.shape, value.stride())
    buffer.copy_(value)


def _has_causal(mask: Mask) -> bool:
    # A subclass may say something else than its base.
    return any(type(part) in (Causal, SlidingWindow) for part in conjuncts(mask))


class _Step(NamedTuple):
    """What a plan's arguments are made from."""

    written: Mask
    where: _Where
    mask: Mask  # over rows and slots
    sizes: Sizes
    dtype: torch.dtype
    device: torch.device


class _Dense:
    """A boolean (B, H|1, q_len, kv_len)."""

    def __init__(self, step: _Step):
        self.mask, self.sizes = step.mask, step.sizes
        self.visible = torch.zeros(step.sizes, dtype=torch.bool, device=step.device)
        self.replay = replay_of(step.mask, step.sizes, step.device)
        self.args: Lowered = SdpaArgs(self.visible, False, "a boolean at a fixed address, rewritten each step")

    def buffers(self) -> list[Tensor]:
        return [self.visible]

    def lines(self) -> list[str]:
        how = "recorded once and replayed" if self.replay else "evaluated by vmap, since it holds a user's function"
        return [f"boolean {list(self.sizes)}; outside a graph the mask is {how}"]

    def read(self) -> Tensor:
        if self.replay is None or tracing(self.visible):
            return vmap_mask(self.mask, *self.sizes, device=self.visible.device)
        return self.replay.read()

    def write_(self) -> None:
        self.visible.copy_(self.read())


class _Bias(_Dense):
    """A bias (B, H|1, q_len, kv_len): 0 where visible, the dtype's minimum where hidden."""

    def __init__(self, step: _Step):
        if not step.dtype.is_floating_point:
            written = f'DecodePlan({step.written!r}, backend="eager", dtype={step.dtype})'
            raise MaskTypeError(written, "a bias is added to scores", "Pass a floating dtype.")
        super().__init__(step)
        self.bias = self.visible = torch.zeros(step.sizes, dtype=step.dtype, device=step.device)
        self.args = EagerArgs(self.bias, "a bias at a fixed address, rewritten each step")

    def buffers(self) -> list[Tensor]:
        return [self.bias]

    def lines(self) -> list[str]:
        return [line.replace("boolean", f"bias {self.bias.dtype}", 1) for line in super().lines()]

    def write_(self) -> None:
        self.bias.copy_(bias_from_bool(self.read(), self.bias.dtype, torch.finfo(self.bias.dtype).min))


class _Blocks:
    """A BlockMask whose tables have full width, so that any step fits; the predicate itself reads the buffers."""

    def __init__(self, step: _Step):
        _, _, mask, sizes, _, device = step
        self.mask, self.sizes, self.device = mask, sizes, device
        n_q, n_kv = (-(-n // _BLOCK_SIZE) for n in (sizes.q_len, sizes.kv_len))
        lanes = (sizes.B, sizes.H)
        count, indices = (*lanes, n_q), (*lanes, n_q, n_kv)
        self.tables = [torch.zeros(s, dtype=torch.int32, device=device) for s in (count, indices, count, indices)]
        lengths, block_size = (sizes.q_len, sizes.kv_len), (_BLOCK_SIZE, _BLOCK_SIZE)
        no_q_blocks = (None,) * 4  # only a backward needs them
        block_mask = BlockMask(lengths, *self.tables, *no_q_blocks, BLOCK_SIZE=block_size, mask_mod=mask)  # pyright: ignore
        self.args: Lowered = FlexArgs(
            block_mask, "a BlockMask whose full-width tables are rewritten in place each step"
        )

    def buffers(self) -> list[Tensor]:
        return self.tables

    def lines(self) -> list[str]:
        return [f"tables of {list(self.tables[1].shape)} blocks of {_BLOCK_SIZE}"]

    def write_(self) -> None:
        # Not exact: static shapes and no look at values; a block called partial in doubt changes no result.
        classes = classify_blocks(self.mask, *self.sizes, block_size=_BLOCK_SIZE, exact=False, device=self.device)
        for tables, blocks in ((self.tables[:2], classes.partial), (self.tables[2:], classes.full)):
            for table, new in zip(tables, from_classes(blocks), strict=True):
                table.copy_(new)


class _Flash:
    """Lengths (B,) for flash-attention's kernel over a cache, and a block table it can follow, both int32."""

    def __init__(self, step: _Step):
        where, layout, q_len = step.where, step.where.layout, step.where.q_len
        written = f'DecodePlan({step.written!r}, {layout!r}, backend="flash")'
        todo = 'Use backend="flex" or "sdpa".'
        if type(layout) not in (StaticCache, PagedCache, SlidingCache, RingCache):
            raise UnsupportedMask(written, "flash-attention knows caches in order, and pages", todo)
        reach = layout.max_len if isinstance(layout, (StaticCache, PagedCache)) else _ANY_LENGTH
        band, self.limits = band_and_lengths(written, step.written, reach, reach)
        self.where, self.most = where, None
        if isinstance(layout, (SlidingCache, RingCache)):
            # One query that sees every key of a full window: the order of the slots does not matter to it.
            sees_all = q_len == 1 and layout.headroom == 0 and (band.low is None or band.low <= 1 - layout.window)
            if not sees_all or not (band.high is None or band.high >= 0) or self.limits:
                raise UnsupportedMask(written, "its slots are out of order, and only one query may see them all", todo)
            self.most, band = layout.window, Band(None, None)
        elif q_len == 1 and band.low is None and band.high is not None and band.high >= 0:
            band = Band(None, None)  # one query, the last key its own: nothing comes after it
        elif self.limits and band != Band(None, None):
            raise UnsupportedMask(written, "it aligns the last query with the last key, which a length moves", todo)
        self.causal, self.window_size = flash_window(written, band, 0)
        self.cache_seqlens = torch.zeros(step.sizes.B, dtype=torch.int32, device=step.device)
        self.paged = layout if isinstance(layout, PagedCache) else None
        self.block_table = None
        if self.paged is not None:
            self.block_table = torch.zeros(self.paged.block_table.shape, dtype=torch.int32, device=step.device)
        self.args: Lowered = CacheArgs(
            self.cache_seqlens,
            self.block_table,
            self.causal,
            self.window_size,
            "a band: lengths at a fixed address, no mask",
        )

    def buffers(self) -> list[Tensor]:
        return [self.cache_seqlens] if self.block_table is None else [self.cache_seqlens, self.block_table]

    def lines(self) -> list[str]:
        pages = "" if self.block_table is None else f"; block_table {list(self.block_table.shape)}"
        flags = f"causal={self.causal}, window_size={self.window_size}"
        return [f"cache_seqlens {list(self.cache_seqlens.shape)}{pages}; {flags}"]

    def write_(self) -> None:
        position = self.where.position
        lengths = (position if position.dim() == 1 else position[:, -1]) + 1
        for limit in self.limits:
            lengths = torch.minimum(lengths, limit)
        _fill_(self.cache_seqlens, lengths.clamp(min=0, max=self.most))
        if self.paged is not None and self.block_table is not None:
            # The kernel follows every entry up to the length, so none may point outside the pool: -1 becomes page 0.
            last_page = self.paged.kv_len // self.paged.page_size - 1
            _fill_(self.block_table, self.paged.block_table.clamp(0, last_page))


_HOLDERS = {"sdpa": _Dense, "eager": _Bias, "flex": _Blocks, "flash": _Flash}
