"""The sizes and the device that a mask is read at, checked."""

from __future__ import annotations

from typing import NamedTuple

import torch

from maskmod._torch.tracing import known_true
from maskmod.algebra.mask import Mask
from maskmod.algebra.structure import as_int, spell
from maskmod.errors import MaskTypeError, MaskValueError

__all__ = ["Sizes", "device_of", "sizes_of"]


class Sizes(NamedTuple):
    """The sizes a mask is read at, checked."""

    B: int
    H: int
    q_len: int
    kv_len: int


def sizes_of(mask: Mask, B: int | None, H: int | None, q_len: int, kv_len: int) -> Sizes:
    """Normalise and check the sizes that a reader was given (None for B or H means 1), and the mask against them."""
    sizes = Sizes(1 if B is None else B, 1 if H is None else H, q_len, kv_len)
    if not torch.compiler.is_compiling():
        sizes = Sizes(*map(as_int, sizes))
    for name, size in zip(Sizes._fields, sizes, strict=True):
        if isinstance(size, bool) or not isinstance(size, (int, torch.SymInt)):
            raise MaskTypeError(f"{name}={spell(size)}", f"a {type(size).__name__} is not a size", "Pass an int.")
        if known_true(size < 0):
            raise MaskValueError(f"{name}={size}", "a size cannot be negative", "Pass zero or more.")
    mask.check(*sizes)
    return sizes


def device_of(mask: Mask, device: torch.device | str | None) -> torch.device:
    """``device``, or the one device of the mask's tensors, or torch's default device."""
    if device is not None:
        return torch.device(device)
    tensors = list(mask.tensors())
    devices = {t.device for t in tensors if t.dim()} or {t.device for t in tensors}
    if len(devices) > 1:
        raise MaskTypeError(
            f"{mask!r} with device=None",
            f"its tensors live on {' and '.join(sorted(map(str, devices)))}",
            "Move them together with mask.to(device), or pass device=.",
        )
    return devices.pop() if devices else torch.empty(0).device  # torch.get_default_device does not trace
