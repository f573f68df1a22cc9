"""A module imports only from the layers above it, and backends never import each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import maskmod

SOURCE = Path(maskmod.__file__).parent

LAYERS = [
    ("errors", "tracing", "algebra", "tables"),
    ("packing", "masks", "trees", "dense", "abstract"),
    ("indexing", "blocks", "replay"),
    ("readers", "proofs", "draw", "bands", "empty_rows"),
    ("backends",),
    ("attention", "caches", "serving"),
    ("testing", "_dynamo_trace", "compat", "distributed"),
    ("cli", "demo", "__main__", "__init__"),
]
LAYER = {name: number for number, row in enumerate(LAYERS) for name in row}

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


def faults(module: str, text: str) -> list[str]:
    """What a module imports against the table."""
    found = []
    own = module.split(".")
    for name in imported(text):
        parts = name.split(".")
        if parts[0] not in LAYER:  # `from maskmod import causal`: the package itself
            parts = ["__init__"]
        if LAYER[parts[0]] > LAYER[own[0]]:
            found.append(f"{module} (layer {LAYER[own[0]]}) imports {name} (layer {LAYER[parts[0]]})")
        if (
            own[0] == parts[0] == "backends"
            and len(parts) > 1
            and f"backends.{parts[1]}" in MODULES
            and own[1:] != parts[1:]
        ):
            found.append(f"{module} imports another backend, {name}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_rows_above_it(module: str):
    assert module.split(".")[0] in LAYER, "a new module: give it a layer"
    assert faults(module, MODULES[module].read_text()) == []


def test_the_check_can_fail():
    assert faults("masks", "from maskmod.readers import dense_mask")
    assert faults("masks", "def late():\n    import maskmod.attention")
    assert faults("algebra", "from maskmod import causal")
    assert faults("backends.eager", "from maskmod.backends.sdpa import lower")
    assert not faults("backends.eager", "from maskmod.backends import Backend")
    assert not faults("readers", "from maskmod.algebra import Mask\nimport torch")
