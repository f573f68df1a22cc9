"""What importing the package does to the process: nothing but torch, and no output."""

import subprocess
import sys

import pytest

EXTRAS = ["typer", "rich", "matplotlib", "transformers", "tensorboard", "torch_tb_profiler", "hypothesis", "pytest"]

CHECK = """
import sys
import torch
before = set(sys.modules)
{statement}
import maskmod
extras = {extras!r}
print(*sorted(name for name in extras if name in sys.modules and name not in before))
"""


def extras_loaded(statement: str = "") -> str:
    """The optional packages that ``import maskmod`` loads in a fresh interpreter, after a statement."""
    code = CHECK.format(statement=statement, extras=EXTRAS)
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert not run.stderr
    return run.stdout.strip()


def test_import_loads_no_extra():
    assert extras_loaded() == ""


def test_the_check_can_fail():
    assert extras_loaded("import rich") == "rich"


def test_import_starts_no_compiler():
    code = "import sys, maskmod; print({'torch._inductor.compile_fx', 'triton'} & set(sys.modules) or '')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


@pytest.mark.parametrize("name", __import__("maskmod").__all__)
def test_every_public_name_is_documented(name: str):
    import maskmod

    text = getattr(maskmod, name).__doc__
    assert text
    assert len(text.splitlines()[0]) > 20
