"""What most tests of this suite ask of a function: traced whole, as few graphs as allowed, and the same bits."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from maskmod.testing import watch_graphs

__all__ = ["assert_compiles"]


def assert_compiles(
    fn: Callable, calls: list[tuple], *, max_graphs: int = 1, dynamic: bool | None = True, exact: bool = True
) -> None:
    """Compile ``fn`` with ``fullgraph=True`` and hold every call against the uncompiled function.

    Args:
        calls: tuples of arguments; each is made once and given to both.
        exact: bit by bit, or else as close as `torch.testing.assert_close` asks.
    """
    compiled = torch.compile(fn, fullgraph=True, dynamic=dynamic, backend="eager")
    with watch_graphs() as report:
        pairs = [(compiled(*call), fn(*call)) for call in calls]
    assert report.graphs <= max_graphs, report
    for seen, expected in pairs:
        torch.testing.assert_close(
            _leaves(seen), _leaves(expected), **({"rtol": 0, "atol": 0, "equal_nan": True} if exact else {})
        )


def _leaves(value: Any) -> list:
    return [leaf for leaf in pytree.tree_leaves(value) if leaf is not None]
