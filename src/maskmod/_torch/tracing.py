"""What may be asked where code is traced: of lengths, and of values. It knows no mask."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

__all__ = ["known_true", "readable", "tracing"]


def known_true(condition: bool | torch.SymBool | Tensor) -> bool:
    """Whether a comparison of lengths is true for certain; a symbolic length is asked without adding a guard."""
    if isinstance(condition, Tensor):  # `torch.jit.trace` makes every length one, and keeps those of its example
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)


_TRACING_MODES = tuple(torch._C._TorchDispatchModeKey.__members__.values())  # functional, proxy, fake


def tracing(*tensors: Tensor) -> bool:
    """Whether code runs under a trace: compiling, exporting, `torch.jit.trace`, or on fake, meta or functorch tensors.

    Under ``make_fx`` and fake tensors ``torch.compiler.is_compiling()`` is False, so the tensors themselves are looked
    at too. Other dispatch modes, which count or checkpoint what runs on real values, are no trace.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    if torch._C._len_torch_dispatch_stack() and any(map(torch._C._get_dispatch_mode, _TRACING_MODES)):
        return True
    return any(t.is_meta or is_functorch_wrapped_tensor(t) or _is_fake(t) for t in tensors)


def readable(*tensors: Tensor) -> bool:
    """Whether Python may look at tensors' values: not under a trace, nor while a CUDA graph is captured."""
    if tracing(*tensors):
        return False
    return not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())


def _is_fake(tensor: Tensor) -> bool:
    if type(tensor) in (Tensor, torch.nn.Parameter):
        return False
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor)
