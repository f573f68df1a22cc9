"""Assertions about graphs and masks, for any test suite."""

from maskmod.testing.graphs import (
    GraphBreak,
    GraphReport,
    Recompile,
    assert_max_graphs,
    assert_no_graph_breaks,
    count_graphs,
    watch_graphs,
)
from maskmod.testing.same import assert_hidden, assert_no_leak, assert_same_mask

__all__ = [
    "GraphBreak",
    "GraphReport",
    "Recompile",
    "assert_hidden",
    "assert_max_graphs",
    "assert_no_graph_breaks",
    "assert_no_leak",
    "assert_same_mask",
    "count_graphs",
    "watch_graphs",
]
