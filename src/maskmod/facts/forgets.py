"""Whether a cache forgets keys that a mask still shows: by structure and static numbers alone, never by a tensor.

A mask without tensors and without a user's function says on plain ints what it means; where such parts decide, the
answer is certain, and elsewhere it is None. This module does not know caches, only positions that are gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from maskmod.algebra import And, Func, Mask, Not, Or, Xor
from maskmod.choose import PerHead, Where
from maskmod.positions import Shift

__all__ = ["Lost", "forgets", "says"]


class Lost(NamedTuple):
    """A key that a query sees, and that is gone by then; head, query and key."""

    h: int
    q: int
    kv: int


def forgets(mask: Mask, H: int, gone: Iterable[tuple[int, int]]) -> Lost | bool:
    """Among pairs ``(q, kv)`` of a query and a key that is gone: one that the mask shows for certain, or else whether
    some pair is left open by structure.

    >>> from maskmod import causal, key_padding, sliding_window
    >>> forgets(causal(), 1, [(9, 3)]), forgets(sliding_window(4), 1, [(9, 3)])
    (Lost(h=0, q=9, kv=3), False)
    >>> import torch
    >>> forgets(causal() & key_padding(torch.tensor([5])), 1, [(9, 3)])
    True
    """
    is_open = False
    for q, kv in gone:
        for h in range(H):
            shown = says(mask, h, q, kv)
            if shown:
                return Lost(h, q, kv)
            is_open |= shown is None
    return is_open


def says(mask: Mask, h: int, q: int, kv: int) -> bool | None:
    """What structure says of one pair in every row; None where a tensor or a user's function decides."""
    if _is_settled(mask):
        return bool(mask(0, h, q, kv))
    # Exact types: a subclass may say something else than its base.
    if type(mask) is And:
        return _both(says(mask.left, h, q, kv), says(mask.right, h, q, kv))
    if type(mask) is Or:
        return _not(_both(_not(says(mask.left, h, q, kv)), _not(says(mask.right, h, q, kv))))
    if type(mask) is Xor:
        left, right = says(mask.left, h, q, kv), says(mask.right, h, q, kv)
        return None if left is None or right is None else left != right
    if type(mask) is Not:
        return _not(says(mask.mask, h, q, kv))
    if type(mask) is Where:
        chosen = says(mask.condition, h, q, kv)
        a, b = says(mask.a, h, q, kv), says(mask.b, h, q, kv)
        if chosen is None:
            return a if a == b else None
        return a if chosen else b
    if type(mask) is PerHead:
        return says(mask.masks[h], h, q, kv) if h < len(mask.masks) else False
    if type(mask) is Shift and mask.b_offset is None and mask.h_offset is None:
        if isinstance(mask.q_offset, Tensor) or isinstance(mask.kv_offset, Tensor):
            return None
        return says(mask.mask, h, q + mask.q_offset, kv + mask.kv_offset)
    return None


def _is_settled(mask: Mask) -> bool:
    """Made of the library's own nodes, with numbers alone."""
    if isinstance(mask, Func) or not type(mask).__module__.startswith("maskmod."):
        return False
    values = (getattr(mask, name) for name in mask._fields)
    parts = (part for value in values for part in (value if isinstance(value, tuple) else (value,)))
    return all(
        _is_settled(part) if isinstance(part, Mask) else not callable(part) and not isinstance(part, Tensor)
        for part in parts
    )


def _both(a: bool | None, b: bool | None) -> bool | None:
    if a is False or b is False:
        return False
    return True if a and b else None


def _not(a: bool | None) -> bool | None:
    return None if a is None else not a
