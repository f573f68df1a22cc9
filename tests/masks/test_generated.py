"""What is written from the catalog is current: the page of masks, and the README's table."""

from __future__ import annotations

import pytest
from docs import generate_masks

import maskmod
from maskmod.masks.catalog import CATALOG, VOCABULARY


def test_the_page_and_the_table_are_current(capsys: pytest.CaptureFixture[str]):
    assert generate_masks.main(["--check"]) == 0, capsys.readouterr().out


def test_the_check_can_fail(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    page, readme = tmp_path / "masks.md", tmp_path / "README.md"
    page.write_text(generate_masks.PAGE.read_text().replace("# . .", "# # .", 1))
    readme.write_text(generate_masks.README.read_text().replace("| `causal()` |", "| `casual()` |", 1))
    for name, value in {"ROOT": tmp_path, "PAGE": page, "README": readme}.items():
        monkeypatch.setattr(generate_masks, name, value)
    assert generate_masks.main(["--check"]) == 1
    assert capsys.readouterr().out == "masks.md: not current\nREADME.md: not current\n"
    assert generate_masks.main([]) == 0  # written
    assert generate_masks.main(["--check"]) == 0


def test_the_page_shows_every_entry():
    page = generate_masks.PAGE.read_text()
    for entry in CATALOG:
        assert f"\n### {entry.name}\n" in page
        assert f"(#{generate_masks.anchor(entry.name)})" in page


def test_the_readme_names_every_mask_that_can_be_imported_from_maskmod():
    readme = generate_masks.README.read_text()
    assert [name for name in maskmod.__all__ if name in VOCABULARY and f"{name}(" not in readme] == []
