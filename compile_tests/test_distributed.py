"""Context parallelism in a graph: traced whole with its collectives, one graph, and equal to one process."""

from __future__ import annotations

import pytest

from ranks import on_ranks, values
from sharded_compiled import CALLS, PLANS, compiled_cases

CASES = [*(", ".join(call[:3]) for call in CALLS), *(f"a plan, {method}" for method in PLANS)]


@pytest.fixture(scope="module")
def found():
    return values(on_ranks(2, compiled_cases, timeout=400, collective=120))


@pytest.mark.parametrize("case", CASES)
def test_one_graph_and_the_answer_of_one_process(found, case):
    for rank in found:
        assert (rank[case]["graphs"], rank[case]["breaks"]) == (1, 0)
        assert rank[case]["off"] < 1e-11
