"""The mask of one forward pass that stays an expression: what travels through a model in place of a tensor.

Layers of one kind get the same object, and the first of them prepares it. It knows nothing of models and configs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskmod._torch.tracing import known_true
from maskmod.algebra import Mask, Sizes
from maskmod.attention import AttentionPlan, plan
from maskmod.dense import dense_mask
from maskmod.errors import MaskShapeError, UnsupportedMask
from maskmod.masks import Causal, Full
from maskmod.positions import shift

__all__ = ["LazyMask"]


_CALLS = 8
"""Layers that share a mask, as far as weighing what to prepare is concerned."""


class LazyMask:
    """A mask of ``shape`` (B, H, q_len, kv_len), True = visible, that holds no entry until somebody asks for one.

    Attention runs on the expression (`attend`). Models that cut the mask to their keys get another lazy mask; any
    other index, and `dense`, gives a boolean tensor. Arithmetic with it is refused: whoever adds a mask to scores
    expects a bias.

    >>> from maskmod import causal
    >>> mask = LazyMask(causal(), Sizes(1, 1, 4, 6), torch.device("cpu"))
    >>> mask[..., :4].shape, mask[0, 0, 1].tolist()
    (torch.Size([1, 1, 4, 4]), [True, True, False, False, False, False])
    """

    dtype = torch.bool
    ndim = 4

    def __init__(self, mask: Mask, sizes: Sizes, device: torch.device):
        self.mask = mask
        self.sizes = sizes
        self.device = device
        self._plans: list[tuple[Any, Any]] = []
        self._dense: Tensor | None = None

    # ------------------------------------------------------------------------------------------------- for attention

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        softcap: float | None = None,
        sink_logits: Tensor | None = None,
    ) -> Tensor:
        """Attention under the mask: q (B, Hq, q_len, D), k (B, Hkv, kv_len, D), v (B, Hkv, kv_len, Dv), grouped heads.

        Raises:
            MaskShapeError: the keys or queries are not as many as the mask was made for.
        """
        self._check(q, k)
        if type(self.mask) is Causal and known_true(k.shape[2] > q.shape[2]):  # a static cache that was empty
            k, v = k[:, :, : q.shape[2]], v[:, :, : q.shape[2]]
        prepared = self._plan(q, k, v, softcap, sink_logits is not None)
        return prepared(q, k, v, scale, sink_logits=sink_logits)

    def _plan(self, q: Tensor, k: Tensor, v: Tensor, softcap: float | None, sinks: bool) -> AttentionPlan:
        """The plan for calls like this one, made by the first of them."""
        grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        B, H, q_len, D = q.shape
        like = (B, H, k.shape[1], k.shape[2], D, q.dtype, grad, softcap, sinks)
        for made_for, prepared in self._plans:
            if made_for == like:
                return prepared
        prepared = plan(
            self.mask,
            B,
            H,
            q_len,
            k.shape[2],
            backend="sdpa" if self._needs_no_mask(softcap, sinks) else "auto",
            dtype=q.dtype,
            device=q.device,
            requires_grad=grad,
            enable_gqa=not known_true(k.shape[1] == H),
            softcap=softcap,
            sinks=sinks,
            head_size=D,
            calls=_CALLS,
        )
        self._plans.append((like, prepared))
        return prepared

    def _needs_no_mask(self, softcap: float | None, sinks: bool) -> bool:
        """Whether it is plain causal or hides nothing, where SDPA's own kernels are what the model would get anyway."""
        return type(self.mask) in (Causal, Full) and softcap is None and not sinks

    def _check(self, q: Tensor, k: Tensor) -> None:
        H = self.sizes.H
        if not known_true(H == 1) and known_true(q.shape[1] != H):
            raise MaskShapeError(
                f"attention of {q.shape[1]} heads",
                f"the mask reads the head, and was made for {H}",
                "Heads that are split over devices need a mask of their own: maskmod.shift(mask, h_offset=...).",
            )
        if known_true(q.shape[2] != self.sizes.q_len) or known_true(k.shape[2] != self.sizes.kv_len):
            raise MaskShapeError(
                f"attention of {q.shape[2]} queries and {k.shape[2]} keys",
                f"the mask of this pass was made for {self.sizes.q_len} and {self.sizes.kv_len}",
                "Cut it to the keys, mask[:, :, :, :n], or let the cache tell the mask function how many there are.",
            )

    # ---------------------------------------------------------------------------------------------------- for models

    @property
    def shape(self) -> torch.Size:
        B, H, q_len, kv_len = self.sizes
        return torch.Size((B, H, q_len, kv_len))

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return 4

    def dense(self) -> Tensor:
        """The mask as a boolean tensor, made once."""
        if self._dense is None:
            self._dense = dense_mask(self.mask, *self.sizes, device=self.device)
        return self._dense

    def contiguous(self) -> LazyMask:
        return self

    def to(self, *args: Any, **kwargs: Any) -> LazyMask:
        """The same mask: what it reads is on the device where it was made. Another device or dtype is refused."""
        wanted = [*args, *kwargs.values()]
        devices = [torch.device(value) for value in wanted if isinstance(value, (str, torch.device))]
        dtypes = [value for value in wanted if isinstance(value, torch.dtype)]
        if all(device == self.device for device in devices) and all(dtype == torch.bool for dtype in dtypes):
            return self
        raise UnsupportedMask(
            f"mask.to{tuple(wanted)}", f"a lazy bool mask on {self.device}", "Call mask.dense() first."
        )

    def __getitem__(self, index: Any) -> LazyMask | Tensor:
        cut = self._cut(index)
        return self.dense()[index] if cut is None else cut

    def _cut(self, index: Any) -> LazyMask | None:
        """The mask of fewer queries and keys, where an index is slices that keep their order."""
        parts = list(index) if isinstance(index, tuple) else [index]
        if parts and parts[0] is Ellipsis:
            parts = [slice(None)] * (5 - len(parts)) + parts[1:]
        parts += [slice(None)] * (4 - len(parts))
        if len(parts) != 4 or not all(isinstance(part, slice) and part.step in (None, 1) for part in parts):
            return None
        starts, lengths = [], []
        for part, length in zip(parts, self.sizes, strict=True):
            start = 0 if part.start is None else part.start
            stop = length if part.stop is None or known_true(part.stop >= length) else part.stop
            if not (known_true(start >= 0) and known_true(stop >= start)):
                return None
            starts.append(start)
            lengths.append(stop - start)
        b, h, q, kv = starts
        if not (known_true(b == 0) and known_true(h == 0)):
            return None
        at_zero = known_true(q == 0) and known_true(kv == 0)
        mask = self.mask if at_zero else shift(self.mask, q_offset=q, kv_offset=kv)
        return LazyMask(mask, Sizes(*lengths), self.device)

    def __bool__(self) -> bool:
        raise UnsupportedMask("bool(mask)", "a mask of many entries has no truth value", "Test `mask is not None`.")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise UnsupportedMask(
            f"torch's {getattr(function, '__name__', function)} of a lazy mask",
            "the model computes with its mask instead of handing it to the attention function",
            'Use the implementation "sdpa" or "eager" for this model.',
        )

    def __repr__(self) -> str:
        return f"LazyMask({self.mask!r}, {list(self.shape)})"
