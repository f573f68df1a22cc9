"""Counts where a computation waits for a value, or brings one from Python: what a GPU would stop for."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense.default,  # .item(), bool()
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.lift_fresh.default,  # torch.tensor(...)
}


class Looks(TorchDispatchMode):
    """The operations that waited, by name."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_booleans = func is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        if func in WAITS or by_booleans:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))
