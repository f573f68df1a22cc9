"""Names of torch's process groups that are private, or differ between versions (2.11 to 2.13)."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch.distributed import ProcessGroup, distributed_c10d

__all__ = ["all_gather", "store_of"]

all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""``(output, input, group=)``; 2.13 renamed it and warns of the old name."""


def store_of(group: ProcessGroup) -> Any:
    """The key-value store that the ranks of a group share, or None where torch does not show it."""
    kept = distributed_c10d._world.pg_map.get(group)
    return kept[1] if kept is not None else None
