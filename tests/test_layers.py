"""A module imports only from the rows of the house above its own, and backends never import each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import maskmod

SOURCE = Path(maskmod.__file__).parent

ROWS = [
    ("errors",),
    ("_torch",),
    ("algebra",),
    ("masks", "trees", "oracle"),
    ("positions", "choose", "packing"),
    ("masks.catalog",),  # its examples are written with all of the above
    ("analyser",),
    ("facts",),
    ("blocks", "caches"),
    ("dense",),
    ("backends",),
    ("pictures",),
    ("attention",),
    ("testing", "serving", "distributed"),
    ("compat",),
    ("cli", "demo", "__main__", "__init__"),
]
ROW = {name: number for number, row in enumerate(ROWS) for name in row}
SHARED_BY_BACKENDS = ("protocol", "costs", "span_kernel", "empty_rows", "dense_holder", "refusals", "strips")
MOST_LINES = 450

MODULES = {".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in sorted(SOURCE.rglob("*.py"))}


def imported(text: str) -> Iterator[str]:
    """The maskmod modules that a text imports, anywhere in it, as dotted paths below the package."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("maskmod.") for name in names if name.split(".")[0] == "maskmod")


def row_of(parts: list[str]) -> int:
    """The row of a room, or of a part of it that has one of its own."""
    return ROW.get(".".join(parts[:2]), ROW[parts[0]])


def faults(module: str, text: str) -> list[str]:
    """What a module imports against the table."""
    found = []
    own = module.split(".")
    for name in imported(text):
        parts = name.split(".")
        if parts[0] not in ROW:  # `from maskmod import causal`: the package itself
            parts = ["__init__"]
        if row_of(parts) > row_of(own):
            found.append(f"{module} (row {row_of(own)}) imports {name} (row {row_of(parts)})")
        if (
            own[0] == parts[0] == "backends"
            and own[1:] not in (["registry"], ["typed"], ["described"])
            and f"backends.{parts[1]}" in MODULES
            and parts[1] not in (*SHARED_BY_BACKENDS, own[1])
        ):
            found.append(f"{module} imports another backend, {name}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_rows_above_it(module: str):
    assert module.split(".")[0] in ROW, "a new module: give it a row"
    assert faults(module, MODULES[module].read_text()) == []


def test_the_check_can_fail():
    assert faults("masks.packed", "from maskmod.dense import dense_mask")
    assert faults("masks.packed", "def late():\n    import maskmod.attention")
    assert faults("masks.packed", "from maskmod.masks.catalog.entry import Entry")
    assert faults("algebra.mask", "from maskmod import causal")
    assert faults("backends.eager", "from maskmod.backends.sdpa import Sdpa")
    assert faults("backends.eager", "from maskmod.backends.registry import get")
    assert not faults("backends.registry", "from maskmod.backends.sdpa import Sdpa")
    assert not faults("backends.eager", "from maskmod.backends.protocol import Backend")
    assert not faults("dense", "from maskmod.algebra import Mask\nimport torch")


def long_modules(lengths: dict[str, int]) -> list[str]:
    return [name for name, lines in lengths.items() if lines > MOST_LINES]


def test_no_module_is_longer_than_a_reader_can_hold():
    assert long_modules({name: len(path.read_text().splitlines()) for name, path in MODULES.items()}) == UNSPLIT
    assert long_modules({"a": 451, "b": 450}) == ["a"]


UNSPLIT: list[str] = []  # to be split; nothing joins them
