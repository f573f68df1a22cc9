"""``python -m maskmod compat check``: what agrees is said to agree, what differs is named."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from typer.testing import CliRunner

from maskmod.cli.commands import app
from maskmod.compat.transformers import settings
from maskmod.compat.transformers.self_check import self_check

theirs: Any = pytest.importorskip("transformers.masking_utils")


def test_the_installed_release_agrees() -> None:
    before = settings.DEFAULTS.release
    found = self_check(300)
    assert found.ok, str(found)
    assert found.tested
    assert found.compared > 100
    assert settings.DEFAULTS.release is before


def test_a_difference_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    window = theirs.sliding_window_causal_mask_function
    monkeypatch.setattr(theirs, "sliding_window_causal_mask_function", lambda size: window(size + 1))
    monkeypatch.setattr(importlib.import_module("transformers"), "__version__", "9.0.0")
    found = self_check(120)
    assert not found.ok
    assert not found.tested
    assert all("sliding_window" in line for line in found.differences)
    assert "create_sliding_window_causal_mask" in str(found)


def test_new_and_missing_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_spiral_mask() -> None: ...

    create_spiral_mask.__module__ = theirs.__name__
    monkeypatch.setattr(theirs, "create_spiral_mask", create_spiral_mask, raising=False)
    monkeypatch.delattr(theirs, "padding_mask_function")
    found = self_check(1)
    assert found.new == ("create_spiral_mask",)
    assert "padding_mask_function" in found.missing
    assert "unknown here: create_spiral_mask" in str(found)


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(app, ["compat", "check", "--calls", "40"])
    assert result.exit_code == 0, result.output
    assert "40 calls" in result.output
    monkeypatch.setattr(theirs, "create_causal_mask", lambda **_: "none of ours")
    assert CliRunner().invoke(app, ["compat", "check", "--calls", "40"]).exit_code == 1
