"""Every Python block of README and docs runs, and prints what the text says it prints."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


class Block(NamedTuple):
    line: int
    code: str
    printed: str | None  # the ``text`` block that follows it directly


def blocks(text: str) -> list[Block]:
    fence = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    found: list[Block] = []
    end = None
    for match in fence.finditer(text):
        language, body = match.groups()
        directly = end is not None and not text[end : match.start()].strip()
        if language == "python":
            found.append(Block(text.count("\n", 0, match.start()) + 2, body, None))
            end = match.end()
        else:
            if language == "text" and directly:
                found[-1] = found[-1]._replace(printed=body)
            end = None
    return found


def run(path: str, text: str) -> None:
    namespace: dict = {"__name__": "document"}
    for block in blocks(text):
        output = io.StringIO()
        code = compile("\n" * (block.line - 1) + block.code, path, "exec")
        with contextlib.redirect_stdout(output):
            exec(code, namespace)
        if block.printed is not None:
            assert tidy(output.getvalue()) == tidy(block.printed), f"{path}:{block.line}"
    torch._dynamo.reset()  # while the namespace lives: Dynamo's clean-up of what a block compiled needs it


def tidy(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_blocks_run_as_printed(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    text = path.read_text()
    monkeypatch.chdir(tmp_path)
    run(str(path.relative_to(ROOT)), text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_run(path: Path):
    cells = json.loads(path.read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells), "commit notebooks without outputs"
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    run(path.name, "".join(f"```python\n{source}\n```\n\n" for source in code))


def test_the_runner_can_fail():
    good = "```python\nx = 1\n```\nthen\n```python\nprint(x)\n```\n\n```text\n1\n```\n"
    run("good.md", good)
    assert [block.printed for block in blocks(good)] == [None, "1\n"]
    with pytest.raises(AssertionError, match=r"bad\.md:6"):
        run("bad.md", good.replace("text\n1", "text\n2"))
    with pytest.raises(NameError):
        run("bad.md", good.replace("x = 1", "y = 1"))
