"""Choose between masks: by a condition, or by head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from maskmod._torch.tracing import known_true
from maskmod.algebra import Mask, MaskMod, as_mask
from maskmod.errors import MaskShapeError, MaskTypeError, MaskValueError

__all__ = ["PerHead", "Where", "per_head", "where"]


class Where(Mask):
    """See `where`."""

    condition: Mask
    a: Mask
    b: Mask

    _name = "where"

    def __call__(self, b, h, q_idx, kv_idx):
        condition = self.condition(b, h, q_idx, kv_idx)
        return (condition & self.a(b, h, q_idx, kv_idx)) | ((condition ^ True) & self.b(b, h, q_idx, kv_idx))


def where(condition: MaskMod, a: MaskMod, b: MaskMod) -> Mask:
    """The mask ``a`` where ``condition`` is True, ``b`` elsewhere; all three are predicates.

    >>> from maskmod import causal, full
    >>> half = where(lambda b, h, q_idx, kv_idx: h < 2, causal(), full())
    >>> half(0, 0, 0, 5), half(0, 2, 0, 5)
    (False, True)
    """
    return Where(as_mask(condition), as_mask(a), as_mask(b))


class PerHead(Mask):
    """See `per_head`."""

    masks: tuple[Mask, ...]

    _name = "per_head"

    def __call__(self, b, h, q_idx, kv_idx):
        visible = None
        for mask in dict.fromkeys(self.masks):  # each distinct mask is evaluated once, for all its heads
            here: Any = None
            for head, other in enumerate(self.masks):
                if other == mask:
                    here = h == head if here is None else here | (h == head)
            part = here & mask(b, h, q_idx, kv_idx)
            visible = part if visible is None else visible | part
        return visible

    def __repr__(self) -> str:
        return f"per_head([{', '.join(map(repr, self.masks))}])"

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        if H is not None and known_true(len(self.masks) != H):
            raise MaskShapeError(
                f"{self!r} on H={H}", f"{len(self.masks)} masks, {H} heads", f"Pass one mask for each of the {H} heads."
            )
        super().check(B, H, q_len, kv_len)


def per_head(masks: Sequence[MaskMod]) -> Mask:
    """Head i gets ``masks[i]``; as many masks as the heads it is read at.

    >>> from maskmod import causal, sliding_window
    >>> [kv for kv in range(5) if per_head([causal(), sliding_window(2)])(0, 1, 4, kv)]
    [3, 4]
    """
    if callable(masks) or not isinstance(masks, Sequence):
        raise MaskTypeError(f"per_head({masks!r})", f"a {type(masks).__name__}", "Pass a list of masks, one a head.")
    if not masks:
        raise MaskValueError("per_head([])", "no masks", "Pass one mask for each head.")
    return PerHead(tuple(as_mask(mask) for mask in masks))
