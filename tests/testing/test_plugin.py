"""The pytest plugin, in test suites of its own: alone, under xdist, and from the built wheel."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[2]

SUITE = """
import pytest
import torch

from maskmod import causal, dense_mask


def clean(x):
    return x * 2


def breaks(x):
    x = x + 1
    torch._dynamo.graph_break()
    return x * 2


def compiled(fn, **options):
    return torch.compile(fn, backend="eager", **options)


@pytest.mark.fullgraph
def test_clean():
    compiled(clean)(torch.ones(3))


@pytest.mark.fullgraph
def test_breaks():
    compiled(breaks)(torch.ones(3))


@pytest.mark.fullgraph
def test_breaks_again():  # what an earlier test compiled hides nothing
    compiled(breaks)(torch.ones(3))


@pytest.mark.fullgraph
def test_past_the_limit():
    step = compiled(lambda x, n: x * len(n))
    for n in range(10):
        step(torch.ones(3), "a" * n)


@pytest.mark.fullgraph(max_graphs=1)
def test_two_graphs():
    step = compiled(clean, dynamic=False)
    step(torch.ones(3)), step(torch.ones(4))


@pytest.mark.fullgraph(max_recompiles=1)
def test_one_recompile():
    step = compiled(clean, dynamic=False)
    step(torch.ones(3)), step(torch.ones(4))


def test_guard(graph_guard):
    compiled(clean)(torch.ones(3))
    assert graph_guard.graphs == 1
    graph_guard.limit(max_graphs=1)


def test_guard_breaks(graph_guard):
    compiled(breaks)(torch.ones(3))


def test_unwatched():
    compiled(breaks)(torch.ones(3))


def test_oracle(mask_oracle):
    def mask(b, h, q_idx, kv_idx):
        return (kv_idx <= q_idx) & (h == b)

    seen = mask_oracle(mask, 2, 2, 3, 4)
    assert seen.equal(mask_oracle.loops(mask, 2, 2, 3, 4))
    mask_oracle.check(dense_mask(mask, 2, 2, 3, 4), mask)


def test_oracle_differs(mask_oracle):
    wrong = dense_mask(causal(), 1, 1, 4, 4).clone()
    wrong[0, 0, 2, 3] = True
    mask_oracle.check(wrong, causal())
"""
FAIL = [
    "test_breaks",
    "test_breaks_again",
    "test_past_the_limit",
    "test_two_graphs",
    "test_guard_breaks",
    "test_oracle_differs",
]


def options() -> tuple[str, ...]:
    """The plugin by name, where no entry point loads it."""
    loaded = any(point.value == "maskmod.testing.pytest_plugin" for point in entry_points(group="pytest11"))
    return () if loaded else ("-p", "maskmod.testing.pytest_plugin")


def run(pytester: pytest.Pytester, *arguments: str) -> tuple[pytest.RunResult, str]:
    result = pytester.runpytest_subprocess(*options(), "-p", "no:cacheprovider", *arguments)
    return result, result.stdout.str()


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_the_marker_and_the_fixtures(pytester: pytest.Pytester, workers):
    if workers:
        pytest.importorskip("xdist")
    pytester.makepyfile(SUITE)
    result, text = run(pytester, "-rf", *workers)
    result.assert_outcomes(passed=5, failed=len(FAIL))
    for name in FAIL:
        assert f"FAILED test_the_marker_and_the_fixtures.py::{name}" in text, text
    assert "fullgraph: 1 graph break" in text
    assert "test_the_marker_and_the_fixtures.py:13 in breaks: torch._dynamo.graph_break()" in text
    assert "likely cure: take the graph_break() out" in text
    assert "fullgraph: a recompile past Dynamo's limit: it went on eagerly" in text
    assert "fullgraph: 2 graphs, 1 allowed" in text
    assert "likely cure: lengths differ: compile with dynamic=True" in text
    assert "1 of 16 elements differ; the first is (b=0, h=0, q_idx=2, kv_idx=3), which causal() says is hidden" in text
    # The summary: the tests that are held to something, and no others.
    summary = text.partition("graphs (maskmod)")[2]
    rows = [line.split() for line in summary.splitlines() if "::" in line and line.split()[0].isdigit()]
    counts = {row[3].partition("::")[2]: row[:3] for row in rows}
    assert counts["test_clean"] == ["1", "0", "0"]
    assert counts["test_breaks"] == ["2", "1", "0"]
    assert counts["test_one_recompile"] == ["2", "0", "1"]
    assert "test_unwatched" not in counts
    assert "in 8 tests" in summary


def test_every_test_is_counted_on_request(pytester: pytest.Pytester):
    pytester.makepyfile(
        "import torch\ndef test_one():\n    torch.compile(lambda x: x + 1, backend='eager')(torch.ones(2))\n"
        "def test_none(): pass"
    )
    result, text = run(pytester, "--graphs")
    result.assert_outcomes(passed=2)
    assert "1 graphs, 0 breaks, 0 recompiles in 2 tests" in text
    _, quiet = run(pytester)
    assert "graphs (maskmod)" not in quiet


def test_a_misspelt_limit_is_an_error(pytester: pytest.Pytester):
    pytester.makepyfile("import pytest\n@pytest.mark.fullgraph(graphs=1)\ndef test_one(): pass")
    result, text = run(pytester, "--strict-markers")
    assert result.ret != 0
    assert "fullgraph takes max_graphs= and max_recompiles=, not graphs" in text + result.stderr.str()


def test_loading_the_plugin_imports_no_torch():
    code = (
        "import sys, importlib.util as u; s = u.spec_from_file_location('p', sys.argv[1]); m = u.module_from_spec(s)\n"
    )
    code += "s.loader.exec_module(m); print('torch' in sys.modules)"
    path = ROOT / "src" / "maskmod" / "testing" / "pytest_plugin.py"
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.slow
def test_from_the_built_wheel(tmp_path):
    """A project that only has the wheel: the entry point loads the plugin."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT)], capture_output=True, text=True)
    if built.returncode:
        pytest.skip(f"the wheel cannot be built here: {built.stderr.strip().splitlines()[-1]}")
    (wheel,) = tmp_path.glob("maskmod-*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, capture_output=True)
    project = tmp_path / "project"
    project.mkdir()
    (project / "test_own.py").write_text(SUITE)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rf", "--strict-markers"]
    run = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=600)
    assert "5 passed" in run.stdout, run.stdout + run.stderr
    assert f"{len(FAIL)} failed" in run.stdout
    assert "graphs (maskmod)" in run.stdout
    code = "import maskmod; print(maskmod.__file__); print('<svg' in maskmod.causal()._repr_html_())\n"
    code += "print(len(maskmod.to_html(maskmod.causal(), 8, 8)) > 5000)"
    run = subprocess.run([sys.executable, "-c", code], cwd=project, env=environment, capture_output=True, text=True)
    assert run.stdout.split() == [str(site / "maskmod" / "__init__.py"), "True", "True"], run.stderr
