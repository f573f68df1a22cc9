"""The commands beside draw and explain: files, checks, timings, the environment; what errors look like."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import maskmod
from maskmod.cli import main
from maskmod.cli.commands import app, wants_traceback


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_version():
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"maskmod {maskmod.__version__}\n")


def test_every_command_is_listed_and_has_help():
    text = run("--help").stdout
    for name in ("draw", "plot", "check", "explain", "bench", "demo", "env"):
        assert re.search(rf"\b{name}\b", text)
        assert run(name, "--help").exit_code == 0
    assert "--install-completion" in text


def test_draw_blocks_and_colours():
    plain = run("draw", "causal()", "--q-len", "8", "--blocks", "4")
    assert plain.stdout.splitlines()[1:] == ["+ .", "# +"]
    assert "\x1b[" not in plain.stdout
    coloured = run("draw", "causal()", "--q-len", "2", "--color")
    assert "\x1b[1;38;5;32m#" in coloured.stdout


@pytest.mark.parametrize("suffix", ["png", "svg", "html"])
def test_plot_writes_the_file(tmp_path, suffix):
    path = tmp_path / f"mask.{suffix}"
    result = run("plot", "causal() & sliding_window(4)", "-o", str(path), "--q-len", "16")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{path}: {path.stat().st_size} bytes\n"
    if suffix != "png":
        assert "sliding_window(4)" in path.read_text()


def test_plot_shows_a_difference(tmp_path):
    path = tmp_path / "two.svg"
    assert run("plot", "causal()", "sliding_window(3)", "--difference", "-o", str(path)).exit_code == 0
    assert "only causal()" in path.read_text()


GOOD = "def good(b, h, q_idx, kv_idx):\n    return kv_idx <= q_idx\n"
BAD = "def bad(b, h, q_idx, kv_idx):\n    return kv_idx <= q_idx and kv_idx > 3\n"


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    name = f"checked_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(GOOD + BAD)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_check_exits_with_one_on_a_fault_and_names_the_line(module):
    good = run("check", f"{module}:good", "--no-compiled")
    assert good.exit_code == 0
    assert good.stdout.startswith("good: ok; checked at B=1 H=1")
    bad = run("check", f"{module}:good", f"{module}:bad", "--no-compiled")
    assert bad.exit_code == 1
    assert f"{module}.py:4: error: `and` asks a tensor for one truth value [truth-value]" in bad.stdout
    assert "    write: (kv_idx <= q_idx) & (kv_idx > 3)" in bad.stdout


def test_check_reads_expressions_and_promises(module):
    assert run("check", "causal() & sliding_window(4)", "--causal", "--no-compiled").exit_code == 0
    leak = run("check", "window(2, 2)", "--causal", "--no-compiled")
    assert leak.exit_code == 1
    assert "query 0 sees key 1, which comes later" in leak.stdout


def test_check_as_json(module):
    one = json.loads(run("check", f"{module}:bad", "--json", "--no-compiled").stdout)
    assert one["findings"][0]["line"] == 4
    two = json.loads(run("check", f"{module}:good", f"{module}:bad", "--json", "--no-compiled").stdout)
    assert [report["ok"] for report in two] == [True, False]


def test_bench_times_the_readers():
    result = run("bench", "causal() & sliding_window(32)", "--length", "256", "--length", "16384", "--json")
    rows = json.loads(result.stdout)
    assert [(row["what"], row["length"]) for row in rows] == [
        ("block_mask", 256),
        ("classify_tiles", 256),
        ("dense_mask", 256),
        ("block_mask", 16384),
        ("classify_tiles", 16384),
    ]
    assert all(row["ms"] > 0 for row in rows)
    assert rows[0]["peer_ms"] > 0
    assert rows[3]["peer_ms"] is None  # past what a peer that evaluates every token is asked for
    assert "create_block_mask" in run("bench", "causal()", "--length", "128").stdout


def test_env_says_what_is_installed():
    found = json.loads(run("env", "--json").stdout)
    assert found["maskmod"] == maskmod.__version__
    assert {"eager", "sdpa", "flex"} <= set(found["backends"])
    assert found["packages"]["typer"]
    assert f"maskmod     {maskmod.__version__}" in run("env").stdout


def command(*arguments: str, hide: str = "") -> subprocess.CompletedProcess:
    code = f"import sys; {hide}; from maskmod.cli import main; sys.argv = ['maskmod', *{arguments!r}]; main()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


def test_errors_are_a_line_unless_a_traceback_is_asked_for(monkeypatch, capsys):
    for arguments, code in ((["draw", "causal("], 2), (["plot", "causal()", "-o", "/nowhere/mask.png"], 70)):
        monkeypatch.setattr(sys, "argv", ["maskmod", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == code
        said = capsys.readouterr().err
        assert said.startswith("maskmod: ")
        assert "Traceback" not in said
    assert "--traceback" in said
    monkeypatch.setattr(sys, "argv", ["maskmod", "--traceback", "plot", "causal()", "-o", "/nowhere/mask.png"])
    with pytest.raises(FileNotFoundError):
        main()
    assert wants_traceback()


def test_without_typer_there_is_still_the_version_the_environment_and_advice():
    hide = "sys.modules['typer'] = None"
    assert command("--version", hide=hide).stdout == f"maskmod {maskmod.__version__}\n"
    assert json.loads(command("env", "--json", hide=hide).stdout)["packages"]["typer"]
    told = command("check", "x:y", hide=hide)
    assert told.returncode == 1
    assert "pip install 'maskmod[cli]'" in told.stderr
    assert "maskmod.testing.check(fn)" in told.stderr


def test_without_rich_it_works():
    done = command("bench", "causal()", "--length", "64", hide="sys.modules['rich'] = None")
    assert done.returncode == 0, done.stderr
    assert "block_mask" in done.stdout


def test_shell_completion_is_offered():
    import os

    environment = {**os.environ, "_MASKMOD_COMPLETE": "complete_bash", "COMP_WORDS": "maskmod dr", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['maskmod']; from maskmod.cli.commands import app; app(prog_name='maskmod')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.split() == ["draw"]
