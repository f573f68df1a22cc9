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

__all__ = [
    "GraphBreak",
    "GraphReport",
    "Recompile",
    "assert_max_graphs",
    "assert_no_graph_breaks",
    "count_graphs",
    "watch_graphs",
]
