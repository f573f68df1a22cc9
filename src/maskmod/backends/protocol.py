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

__all__ = ["Backend", "Bid", "Call", "Holder", "Lowered", "Request", "Step", "moved"]


class Lowered(Protocol):
    """What `Backend.lower` returns: the arguments of one backend, and the reason they look as they do."""

    @property
    def why(self) -> str: ...

    def kwargs(self) -> dict[str, Any]: ...


class Request(NamedTuple):
    """What is to be computed under a mask: what a backend is asked whether it can serve, and at what cost.

    Attributes:
        requires_grad: whether a backward follows.
        B, H: rows and query heads that attend; the mask may have been read at 1 where one serves all.
        head_size: of queries and keys.
        calls: how often the lowered arguments will be used, as far as the caller says.
        allow_compile: whether a kernel may be compiled first; None leaves it to the backend.
        empty_rows: "zero" or "uniform".
        return_lse, softcap, sinks: what the calls ask for beside the output; see `Call`.
    """

    dtype: torch.dtype
    device: torch.device
    requires_grad: bool = False
    enable_gqa: bool = False
    B: int = 1
    H: int = 1
    head_size: int = 64
    calls: int = 1
    allow_compile: bool | None = None
    empty_rows: str = "zero"
    return_lse: bool = False
    softcap: float | None = None
    sinks: bool = False


class Bid(NamedTuple):
    """What a backend asks for a request: the lowest `cost` is taken.

    Costs are estimated milliseconds of one use, its share of the preparation included; infinity for what is only done
    when asked for by name. `why` is a sentence that holds whoever else bids.
    """

    cost: float
    why: str


class Call(NamedTuple):
    """How one attention call is to be carried out.

    Attributes:
        scale: of the scores; None is ``1 / sqrt(head_size)``.
        enable_gqa: whether fewer heads of keys than of queries are allowed.
        empty_rows: the output of queries that see nothing: "zero", or "uniform", the mean of all values.
        return_lse: also return the log-sum-exp of each query's scaled scores, (B, Hq, q_len) in float32 or better,
            -inf where nothing is visible.
        softcap: scores become ``softcap * tanh(scores / softcap)`` before the softmax, where it is given.
        sink_logits: (Hq,), one more score for each query of a head, to which no value belongs; the log-sum-exp counts
            it. A query that sees no key then gives all its weight to the sink, and its output is zero.
    """

    scale: float | None = None
    enable_gqa: bool = False
    empty_rows: str = "zero"
    return_lse: bool = False
    softcap: float | None = None
    sink_logits: Tensor | None = None


class Step(NamedTuple):
    """What a decode plan's arguments are made from.

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


def moved(x: Any, device: torch.device) -> Any:
    """Tensors and masks on `device`, in tuples, named or not, and lists; anything else as it is."""
    if isinstance(x, (Tensor, Mask)):
        return x.to(device)
    if isinstance(x, (tuple, list)):
        parts = [moved(part, device) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    return x


class Backend(ABC):
    """One attention backend. `lower` and `read_back` make one; the other methods refuse unless they are written.

    Attributes:
        name: what users write.
        options: the names of keyword arguments that `lower` takes beside dtype and empty_rows.
        takes: which of "return_lse", "softcap" and "sink_logits" its `attend` carries out.
    """

    name: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[frozenset[str]] = frozenset()

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

    def prepare(self, reading: Reading, request: Request, **options: Any) -> Any:
        """The arguments that `attend` takes, made once for all calls: what `lower` gives unless there is more to do."""
        return self.lower(reading, dtype=request.dtype, **options)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, args: Any, call: Call) -> Tensor | tuple[Tensor, Tensor]:
        """Run the kernel on prepared arguments; never NaN for a row that sees nothing.

        The output (B, Hq, q_len, Dv), and the log-sum-exp beside it where ``call.return_lse``. What `takes` does not
        name is not asked for.
        """
        self._refuse("attention")

    def move(self, args: Any, device: torch.device) -> Any:
        """Prepared arguments on another device."""
        return moved(args, device)

    def holder(self, step: Step) -> Holder:
        """The arguments of a decode plan, allocated once."""
        self._refuse("DecodePlan")

    def _refuse(self, what: str) -> NoReturn:
        raise UnsupportedMask(
            f"{what}(backend={self.name!r})", f"the {self.name} backend has none", 'Use backend="sdpa".'
        )
