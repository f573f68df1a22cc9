"""Assertions about graphs, masks and attention, and a linter for predicates, for any test suite."""

from maskmod.testing.graphs import (
    Explanation,
    GraphBreak,
    GraphReport,
    Recompile,
    assert_max_graphs,
    assert_no_graph_breaks,
    count_graphs,
    explain_graph_breaks,
    watch_graphs,
)
from maskmod.testing.lint import Facts, Finding, LintReport, check
from maskmod.testing.outputs import assert_same_attention
from maskmod.testing.same import assert_hidden, assert_no_leak, assert_same_mask

__all__ = [
    "Explanation",
    "Facts",
    "Finding",
    "GraphBreak",
    "GraphReport",
    "LintReport",
    "Recompile",
    "assert_hidden",
    "assert_max_graphs",
    "assert_no_graph_breaks",
    "assert_no_leak",
    "assert_same_attention",
    "assert_same_mask",
    "check",
    "count_graphs",
    "explain_graph_breaks",
    "watch_graphs",
]
