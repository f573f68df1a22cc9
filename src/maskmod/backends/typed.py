"""The types of `lower`: which backend gives which arguments. It does nothing at run time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, overload

import torch

from maskmod.algebra import MaskMod
from maskmod.backends.protocol import Lowered

if TYPE_CHECKING:
    from maskmod.backends.eager import EagerArgs
    from maskmod.backends.flex import FlexArgs
    from maskmod.backends.sdpa import SdpaArgs

__all__ = ["Lower", "typed"]


class Lower(Protocol):
    """`lower`, called with a backend's name."""

    @overload
    def __call__(
        self,
        mask: MaskMod,
        backend: Literal["sdpa"],
        B: int | None,
        H: int | None,
        q_len: int,
        kv_len: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        empty_rows: str = "keep",
        **options: Any,
    ) -> SdpaArgs: ...
    @overload
    def __call__(
        self,
        mask: MaskMod,
        backend: Literal["eager"],
        B: int | None,
        H: int | None,
        q_len: int,
        kv_len: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        empty_rows: str = "keep",
        **options: Any,
    ) -> EagerArgs: ...
    @overload
    def __call__(
        self,
        mask: MaskMod,
        backend: Literal["flex"],
        B: int | None,
        H: int | None,
        q_len: int,
        kv_len: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        empty_rows: str = "keep",
        **options: Any,
    ) -> FlexArgs: ...
    @overload
    def __call__(
        self,
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
    ) -> Lowered: ...


def typed(lower: Callable[..., Lowered]) -> Lower:
    """The function itself, with its overloads."""
    return cast(Lower, lower)
