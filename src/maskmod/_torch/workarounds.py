"""Ways around faults of torch: each with its reason, the versions it was seen in, and a test that says when it may go.

The tests are in ``tests/_torch`` and ``compile_tests``; they fail once torch no longer needs the workaround.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from maskmod._torch.tracing import tracing

__all__ = ["fill_", "isolated", "storable"]


def storable(visible: Tensor) -> Tensor:
    """The same booleans, in a form that a graph on CPU writes to memory ten times faster.

    Inductor (torch 2.13) stores its vectors of booleans lane by lane, 6 ns each. It has no vectors of int16, and leaves
    a loop with one in it to the C++ compiler, which vectorises the whole.
    """
    if visible.device.type != "cpu" or not tracing():
        return visible
    return visible.to(torch.int16) != 0


def fill_(buffer: Tensor, value: Tensor) -> None:
    if tracing(buffer):
        # In a graph the new contents stand for the buffer, and flex on CPU refuses predicates that read a value
        # computed pointwise; a strided view of it is taken as stored.
        value = value.to(buffer.dtype).expand(buffer.shape).contiguous()
        value = value.as_strided(value.shape, value.stride())
    buffer.copy_(value)


def isolated(recompile_limit: int | None = None) -> dict[str, Any]:
    """Options of `torch.compile` that keep one wrapper's graphs apart from another's, where this torch has them.

    Without them all wrappers of a function share one budget of eight graphs, past which Dynamo runs it eagerly.
    """
    wanted = {"isolate_recompiles": True, "recompile_limit": recompile_limit}
    known = inspect.signature(torch.compile).parameters
    return {name: value for name, value in wanted.items() if name in known and value is not None}
