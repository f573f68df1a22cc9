"""Backends by name. This is the one list of those that come with the library; others register themselves."""

from __future__ import annotations

from collections.abc import Iterator

from maskmod.backends.csr import Csr
from maskmod.backends.eager import Eager
from maskmod.backends.fa4 import Fa4
from maskmod.backends.flash import Flash
from maskmod.backends.flashinfer import Flashinfer
from maskmod.backends.flashmask import Flashmask
from maskmod.backends.flex import Flex
from maskmod.backends.hstu import Hstu
from maskmod.backends.magi import Magi
from maskmod.backends.protocol import Backend
from maskmod.backends.sdpa import Sdpa
from maskmod.backends.sglang import Sglang
from maskmod.backends.spans import Spans
from maskmod.backends.splash import Splash
from maskmod.backends.varlen import Varlen
from maskmod.errors import BackendError, MaskTypeError

__all__ = ["get", "names", "register_backend"]

_BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        *(Eager(), Sdpa(), Flex(), Spans(), Varlen(), Flash()),
        *(Csr(), Flashmask(), Fa4(), Flashinfer(), Magi(), Hstu(), Splash(), Sglang()),  # layouts of others' kernels
    )
}


def get(name: str) -> Backend:
    """The backend of this name.

    Raises:
        BackendError: nobody registered one.
    """
    if name not in _BACKENDS:
        raise BackendError(f"backend={name!r}", "no such backend", f"Registered: {sorted(_BACKENDS)}.")
    return _BACKENDS[name]


def names() -> Iterator[str]:
    """The registered names, in the order they were registered."""
    return iter(tuple(_BACKENDS))


def register_backend(name: str, backend: Backend) -> None:
    """Add a `maskmod.backends.protocol.Backend` under a name; it is then lowered to, chosen and planned like any other.

    Raises:
        BackendError: the name is taken.
        MaskTypeError: it is no Backend.
    """
    if name in _BACKENDS or name == "auto":
        raise BackendError(f"register_backend({name!r})", "the name is taken", f"Registered: {sorted(_BACKENDS)}.")
    if not isinstance(backend, Backend):
        raise MaskTypeError(
            f"register_backend({name!r}, {backend!r})",
            f"a {type(backend).__name__}",
            "Pass an instance of a maskmod.backends.protocol.Backend subclass.",
        )
    _BACKENDS[name] = backend
