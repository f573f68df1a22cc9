"""What users write type-checks in pyright's strict mode, and most of what is public has a known type."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "typing"
LEAST_KNOWN = 0.7  # of the public symbols have a known type

pytestmark = pytest.mark.skipif(shutil.which("pyright") is None, reason="pyright is not installed")


def errors(folder: Path) -> list[str]:
    run = subprocess.run(
        ["pyright", "--outputjson", "-p", str(folder / "pyrightconfig.json")], capture_output=True, text=True
    )
    found = json.loads(run.stdout)["generalDiagnostics"]
    return [f"{d['range']['start']['line'] + 1}: {d['message']}" for d in found if d["severity"] == "error"]


def test_users_files_in_strict_mode() -> None:
    assert not errors(HERE)


def test_the_check_can_fail(tmp_path: Path) -> None:
    (tmp_path / "pyrightconfig.json").write_text((HERE / "pyrightconfig.json").read_text())
    text = (HERE / "users.py").read_text()
    (tmp_path / "users.py").write_text(text + "\nlower(mask, 'sdpa', 1, 2, 64, 64).block_mask\n")
    assert any("block_mask" in error for error in errors(tmp_path))


@pytest.mark.slow
def test_public_types_are_known() -> None:
    run = subprocess.run(
        ["pyright", "--verifytypes", "maskmod", "--ignoreexternal", "--outputjson"], capture_output=True, text=True
    )
    assert json.loads(run.stdout)["typeCompleteness"]["completenessScore"] >= LEAST_KNOWN
