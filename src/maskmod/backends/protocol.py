"""What a backend is: one object that lowers a mask, reads its own arguments back, and says what it would cost.

Backends share these types and never import each other; `registry` knows them by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor

from maskmod.algebra import Mask, Sizes
from maskmod.analyser.reading import Reading
from maskmod.caches import CacheLayout
from maskmod.errors import UnsupportedMask

__all__ = ["Backend", "Bid", "Holder", "Lowered", "Request", "Step"]


class Lowered(Protocol):
    """What `Backend.lower` returns: the arguments of one backend, and the reason they look as they do."""

    @property
    def why(self) -> str: ...

    def kwargs(self) -> dict[str, Any]: ...


class Request(NamedTuple):
    """What is to be computed under a mask: what a backend is asked whether it can serve, and at what cost."""

    dtype: torch.dtype
    device: torch.device
    requires_grad: bool = False
    enable_gqa: bool = False


class Bid(NamedTuple):
    """What a backend asks for a request: the lowest `cost` is taken.

    Costs are in (query, key) pairs that a fused kernel without a mask would have to visit in the same time.
    """

    cost: float
    why: str


class Step(NamedTuple):
    """What a plan's arguments are made from.

    Attributes:
        written: the mask over positions. mask: the same over this step's queries and the cache's slots.
        layout: the cache. q_len: queries of a step.
        position: int64 buffer (B,) for one query, else (B, q_len): where the queries stand, rewritten each step.
        sizes: what the arguments cover, H = 1 where the mask does not read ``h``.
    """

    written: Mask
    mask: Mask
    layout: CacheLayout
    q_len: int
    position: Tensor
    sizes: Sizes
    dtype: torch.dtype
    device: torch.device


class Holder(Protocol):
    """A backend's arguments at fixed addresses, rewritten in place."""

    args: Any

    def buffers(self) -> list[Tensor]:
        """The tensors whose addresses never change."""
        ...

    def lines(self) -> list[str]:
        """What is held, for `explain`."""
        ...

    def write_(self) -> None:
        """Rewrite the buffers from the step's mask as its tensors stand now; traces, and asks no tensor's value."""
        ...


class Backend(ABC):
    """One attention backend. `lower` and `read_back` make one; the other methods refuse unless they are written.

    Attributes:
        name: what users write.
        options: the names of keyword arguments that `lower` takes beside dtype and empty_rows.
    """

    name: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def lower(self, reading: Reading, *, dtype: torch.dtype, empty_rows: str = "keep") -> Lowered:
        """The mask in the backend's own layout, exactly.

        Raises:
            UnsupportedMask: the layout cannot say this mask.
        """

    @abstractmethod
    def read_back(self, args: Any) -> Tensor:
        """The dense mask that the arguments mean, bool (B, H, q_len, kv_len), in plain torch and by no other code."""

    def bid(self, reading: Reading, request: Request) -> Bid | str:
        """What serving the request would cost, or why it cannot be served."""
        return f"maskmod lowers masks for {self.name} and does not call it"

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        reading: Reading,
        args: Any,
        *,
        scale: float | None,
        enable_gqa: bool,
        empty_rows: str,
    ) -> Tensor:
        """Run the kernel on lowered arguments; never NaN for a row that sees nothing."""
        self._refuse("attention")

    def holder(self, step: Step) -> Holder:
        """The arguments of a decode plan, allocated once."""
        self._refuse("DecodePlan")

    def _refuse(self, what: str) -> NoReturn:
        raise UnsupportedMask(
            f"{what}(backend={self.name!r})", f"the {self.name} backend has none", 'Use backend="sdpa".'
        )
