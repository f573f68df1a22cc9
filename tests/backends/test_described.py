"""The page's table of backends is the one that the code makes, and leaves none out."""

from pathlib import Path

from maskmod.backends import registry
from maskmod.backends.described import DESCRIBED, table

PAGE = Path(__file__).parents[2] / "docs" / "backends.md"


def test_the_page_holds_the_table():
    assert table() in PAGE.read_text(), "paste what `python -m maskmod.backends.described` prints"


def test_every_backend_is_described():
    ours = [name for name in registry.names() if type(registry.get(name)).__module__.startswith("maskmod.backends.")]
    assert [name for name in ours if name not in DESCRIBED] == []
