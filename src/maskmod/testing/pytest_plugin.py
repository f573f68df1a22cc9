"""The pytest plugin: a marker and a fixture that hold a test's graphs to a count, an oracle, and a summary.

It is loaded by its entry point, ``maskmod``; ``-p no:maskmod`` leaves it out. A test that uses neither the marker nor
the fixture is not watched, unless ``--graphs`` watches all of them.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import Tensor

    from maskmod.algebra import MaskMod
    from maskmod.testing.graphs import GraphReport

__all__ = ["GraphGuard", "MaskOracle"]

_PROPERTY = "maskmod_graphs"
_MARKER = (
    "fullgraph(max_graphs=None, max_recompiles=None): the test fails if a graph breaks in it, or if a function "
    "recompiles past its limit: Dynamo's own, or the number given (maskmod)"
)


class GraphGuard:
    """What the fixture ``graph_guard`` gives: the report of the test so far, and limits that the test sets itself.

    Dynamo starts afresh with the test, so that what an earlier test compiled hides nothing.
    """

    def __init__(self, report: GraphReport):
        self.report = report
        self.max_graphs: int | None = None
        self.max_recompiles: int | None = None

    @property
    def graphs(self) -> int:
        """Graphs compiled in this test so far."""
        return self.report.graphs

    def limit(self, *, max_graphs: int | None = None, max_recompiles: int | None = None) -> None:
        """Fail the test at its end past these counts."""
        self.max_graphs, self.max_recompiles = max_graphs, max_recompiles

    def check(self) -> None:
        """Fail now if a graph broke, a recompile was refused, or a limit is passed."""
        __tracebackhide__ = True
        if fault := _fault(self.report, self.max_graphs, self.max_recompiles):
            pytest.fail(fault, pytrace=False)


class MaskOracle:
    """What the fixture ``mask_oracle`` gives: the meaning of a mask, twice, by two codes that share nothing."""

    def __call__(self, mask: MaskMod, B: int | None, H: int | None, q_len: int, kv_len: int) -> Tensor:
        """The meaning, bool (B, H, q_len, kv_len): nested `torch.vmap`."""
        from maskmod.oracle import vmap_mask

        return vmap_mask(mask, B, H, q_len, kv_len)

    def loops(self, mask: MaskMod, B: int | None, H: int | None, q_len: int, kv_len: int) -> Tensor:
        """The same by four Python loops over 0-d tensors, one call an element."""
        import torch

        rows = [
            [
                [[bool(mask(*map(torch.tensor, (b, h, q, k)))) for k in range(kv_len)] for q in range(q_len)]
                for h in range(1 if H is None else H)
            ]
            for b in range(1 if B is None else B)
        ]
        return torch.tensor(rows, dtype=torch.bool).view(len(rows), -1, q_len, kv_len)

    def check(self, visible: Tensor, mask: MaskMod) -> None:
        """Fail unless a dense mask (True = visible, 2 to 4 dimensions) is this mask, naming the first element."""
        __tracebackhide__ = True
        shape = (1,) * (4 - visible.dim()) + tuple(visible.shape)
        meaning = self(mask, *shape)
        wrong = (meaning != visible.view(shape).to(meaning.device)).nonzero()
        if wrong.shape[0]:
            b, h, q, k = wrong[0].tolist()
            says = "visible" if bool(meaning[b, h, q, k]) else "hidden"
            pytest.fail(
                f"{wrong.shape[0]} of {meaning.numel()} elements differ; the first is (b={b}, h={h}, q_idx={q}, "
                f"kv_idx={k}), which {mask!r} says is {says}",
                pytrace=False,
            )


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("maskmod")
    group.addoption("--graphs", action="store_true", help="count the graphs and graph breaks of every test")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARKER)


@pytest.fixture
def graph_guard(request: pytest.FixtureRequest) -> GraphGuard:
    """The graphs of this test: it fails if one breaks; ``graph_guard.limit(max_graphs=1)`` sets a count."""
    return request.node.stash[_GUARD]


@pytest.fixture(scope="session")
def mask_oracle() -> MaskOracle:
    """The meaning of a mask: ``mask_oracle(mask, B, H, q_len, kv_len)``, and ``mask_oracle.check(visible, mask)``."""
    return MaskOracle()


_GUARD: pytest.StashKey[GraphGuard] = pytest.StashKey()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    marker = item.get_closest_marker("fullgraph")
    guarded = marker is not None or "graph_guard" in getattr(item, "fixturenames", ())
    if not guarded and not item.config.getoption("--graphs"):
        return (yield)
    from maskmod.testing.graphs import watch_graphs

    if guarded:
        import torch

        torch._dynamo.reset()
    with ExitStack() as stack:
        item.stash[_GUARD] = guard = GraphGuard(stack.enter_context(watch_graphs()))
        if marker is not None:
            guard.limit(**_limits(item, marker))
        return (yield)


def _limits(item: pytest.Item, marker: pytest.Mark) -> dict[str, int]:
    unknown = [
        *map(repr, marker.args),
        *(name for name in marker.kwargs if name not in ("max_graphs", "max_recompiles")),
    ]
    if unknown:
        raise pytest.UsageError(
            f"{item.nodeid}: fullgraph takes max_graphs= and max_recompiles=, not {', '.join(unknown)}"
        )
    return dict(marker.kwargs)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    outcome = yield  # a test that fails by itself says why; what it compiled is in the summary
    guard = item.stash.get(_GUARD, None)
    guarded = item.get_closest_marker("fullgraph") is not None or "graph_guard" in getattr(item, "fixturenames", ())
    if guard is not None and guarded:
        guard.check()
    return outcome


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Generator[None, Any, Any]:
    report = yield
    guard = item.stash.get(_GUARD, None)
    if call.when == "call" and guard is not None:
        seen = guard.report
        counts: dict[str, Any] = {"graphs": seen.graphs, "breaks": len(seen.breaks), "recompiles": len(seen.recompiles)}
        counts["first"] = f"{seen.breaks[0].file}:{seen.breaks[0].line}" if seen.breaks else ""
        report.user_properties.append((_PROPERTY, json.dumps(counts)))  # text: xdist and JUnit XML carry it
    return report


def _fault(report: GraphReport, max_graphs: int | None, max_recompiles: int | None) -> str:
    from maskmod.testing.graphs import Explanation

    refused = [each for each in report.recompiles if each.refused]
    if report.breaks:
        seen = f"{len(report.breaks)} graph break{'s' * (len(report.breaks) != 1)}"
    elif refused:
        seen = "a recompile past Dynamo's limit: it went on eagerly"
    elif max_recompiles is not None and len(report.recompiles) > max_recompiles:
        seen = f"{len(report.recompiles)} recompiles, {max_recompiles} allowed"
    elif max_graphs is not None and report.graphs > max_graphs:
        seen = f"{report.graphs} graphs, {max_graphs} allowed"
    else:
        return ""
    return f"fullgraph: {seen}\n{Explanation(report)}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    rows = list(_rows(terminalreporter))
    if not rows:
        return
    terminalreporter.section("graphs (maskmod)")
    total = {name: sum(counts[name] for _, counts in rows) for name in ("graphs", "breaks", "recompiles")}
    terminalreporter.line("graphs  breaks  recompiles")
    for name, counts in rows:
        first = f"  first break at {counts['first']}" if counts["first"] else ""
        terminalreporter.line(f"{counts['graphs']:6}  {counts['breaks']:6}  {counts['recompiles']:10}  {name}{first}")
    said = ", ".join(f"{count} {name}" for name, count in total.items())
    terminalreporter.line(f"{said} in {len(rows)} tests")


def _rows(terminalreporter: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                for name, value in report.user_properties:
                    if name == _PROPERTY:
                        yield report.nodeid, json.loads(value)
