"""The command line: what it draws, what it reads, what it refuses, and what it says without typer."""

import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from maskmod import causal, document, full, per_head, prefix, same_structure, shift, sliding_window
from maskmod.cli import main
from maskmod.cli.commands import app
from maskmod.cli.expressions import mask_from_text
from maskmod.errors import MaskError, MaskTypeError, MaskValueError

PICTURE = """\
causal() & sliding_window(2)  q_len=3 kv_len=4
# . . .
# # . .
. # # .
"""


def test_draw_prints_the_picture():
    result = CliRunner().invoke(app, ["draw", "causal() & sliding_window(2)", "--q-len", "3", "--kv-len", "4"])
    assert (result.exit_code, result.stdout) == (0, PICTURE)


def test_draw_shows_the_chosen_head():
    arguments = ["draw", "per_head([causal(), full()])", "--q-len", "2", "--H", "2", "--h", "1"]
    assert CliRunner().invoke(app, arguments).stdout.splitlines()[1:] == ["# #", "# #"]


@pytest.mark.parametrize(
    ("text", "mask"),
    [
        ("causal()", causal()),
        ("causal() & sliding_window(4) | prefix(2)", causal() & sliding_window(4) | prefix(2)),
        ("~causal() ^ True", ~causal() ^ True),
        ("shift(causal(), q_offset=-3)", shift(causal(), q_offset=-3)),
        ("per_head([causal(), full()])", per_head([causal(), full()])),
        ("document([0, 0, 1])", document(torch.tensor([0, 0, 1]))),
        ("document([[0, 0], [0, 1]])", document(torch.tensor([[0, 0], [0, 1]]))),
    ],
)
def test_an_expression_is_the_mask_it_spells(text, mask):
    read = mask_from_text(text)
    assert same_structure(read, mask)
    assert repr(read) == repr(mask)
    for mine, theirs in zip(read.tensors(), mask.tensors(), strict=True):
        assert torch.equal(mine, theirs)


def test_module_and_attribute_name_any_predicate(tmp_path, monkeypatch):
    (tmp_path / "my_masks.py").write_text("def diagonal(b, h, q_idx, kv_idx):\n    return q_idx == kv_idx\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert mask_from_text("my_masks:diagonal")(0, 0, 2, 2) is True


@pytest.mark.parametrize(
    ("text", "error", "seen"),
    [
        ("import os", MaskValueError, "no expression"),
        ("__import__('os')", MaskValueError, "not in the vocabulary"),
        ("causal().__class__", MaskValueError, "not in the vocabulary"),
        ("(lambda: causal())()", MaskValueError, "not in the vocabulary"),
        ("[causal() for _ in 'ab'][0]", MaskValueError, "not in the vocabulary"),
        ("causal(**{})", MaskValueError, "not in the vocabulary"),
        ("causal() and full()", MaskValueError, "not in the vocabulary"),
        ("causal", MaskValueError, "named, not called"),
        ("causal() & 3", MaskTypeError, "'3' is no mask"),
        ("5", MaskTypeError, "a int, not a mask"),
        ("causal(3)", MaskTypeError, "causal(3)"),
        ("document([[0], [0, 1]])", MaskValueError, "no table"),
        ("sliding_window(0)", MaskValueError, "0 keys"),
        ("no_such_module:mask", MaskValueError, "no_such_module"),
        ("maskmod:no_such_mask", MaskValueError, "no_such_mask"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(text, error, seen):
    with pytest.raises(error) as raised:
        mask_from_text(text)
    assert isinstance(raised.value, MaskError)
    assert seen in str(raised.value)


def test_main_prints_one_line_and_exits_with_2_on_bad_input(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["maskmod", "draw", "sliding_window(0)"])
    with pytest.raises(SystemExit) as exited:
        main()
    assert exited.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("maskmod: sliding_window(0): 0 keys")
    assert captured.err.count("\n") == 1


def test_without_typer_the_command_line_says_what_to_install():
    hidden = "import sys; sys.modules['typer'] = None; from maskmod.cli import main; main()"
    process = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, timeout=120)
    assert process.returncode == 1
    assert process.stdout == ""
    assert "pip install 'maskmod[cli]'" in process.stderr
    assert "Traceback" not in process.stderr
