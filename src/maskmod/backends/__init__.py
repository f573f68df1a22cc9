"""One file per attention backend. They share the two types below and never import each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch

from maskmod.algebra import Mask, Sizes

__all__ = ["Backend", "Lowered", "Request"]


class Lowered(Protocol):
    """What `lower` returns: the arguments of one backend, and the reason they look as they do."""

    @property
    def why(self) -> str: ...

    def kwargs(self) -> dict[str, Any]: ...


class Request(NamedTuple):
    """What a backend is asked whether it can serve."""

    sizes: Sizes
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool
    enable_gqa: bool


class Backend(NamedTuple):
    """Three functions make a backend.

    lower(mask, sizes, *, dtype, device, empty_rows) -> Lowered: the mask in the backend's own layout, exactly, or an
    error. attend(q, k, v, mask, args, *, scale, enable_gqa, empty_rows) -> Tensor: run it; never NaN for a row that
    sees nothing. refuse(mask, request) -> str | None: why the backend cannot serve the request, or None if it can.
    """

    name: str
    lower: Callable[..., Lowered]
    attend: Callable[..., torch.Tensor]
    refuse: Callable[[Mask, Request], str | None]
