"""A mask as one self-contained page: zoom from a million tokens to single elements, and ask each why it is hidden.

The page holds the recorded expression as JavaScript (`script`) and the tiles that the analyser settles. Whole tiles
are drawn as they are; between them the page evaluates elements, all of them once few enough are in sight, samples
before. A predicate that cannot be translated is held as bits up to 4 million elements, and as a grid of shares beyond;
the page says which. Nothing is loaded from anywhere.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import torch

from maskmod.algebra import MaskMod, Sizes
from maskmod.analyser.expression import Node
from maskmod.analyser.reading import Reading, read
from maskmod.dense import dense_mask
from maskmod.errors import MaskValueError
from maskmod.facts.tiles import Tiles, tiles_of
from maskmod.pictures.parts import Part, and_terms, parts_of, spelled
from maskmod.pictures.script import NotScriptable, Script
from maskmod.pictures.shades import one_head, shades_of
from maskmod.pictures.tables import encoded

__all__ = ["to_html"]

MOST_TILES = 120_000  # rectangles a page holds: a few MB
MOST_BITS = 1 << 22  # elements of a mask that is held bit by bit
SMALLEST_TILE = 128
GRID = 256  # cells a side of a page that holds samples only
MOST_BYTES = 64 << 20
_HERE = Path(__file__).parent


def to_html(
    mask: MaskMod,
    q_len: int,
    kv_len: int,
    *,
    B: int = 1,
    H: int = 1,
    b: int = 0,
    h: int = 0,
    title: str | None = None,
    path: str | Path | None = None,
) -> str:
    """A page that shows the mask at any zoom, from all of it to single elements.

    Hovering names an element, ``(b, h, q_idx, kv_idx)``, and the parts of the expression that hide it. Everything is
    in the page: no network, no server.

    Args:
        B, H: the sizes the mask is read at; b, h: the row and the head shown first.
        title: of the page; None takes the mask's own text.
        path: where the page is written as well, if anywhere.

    Raises:
        MaskValueError: b or h is out of range, or the page would pass 64 MiB.

    >>> from maskmod import causal, sliding_window
    >>> page = to_html(causal() & sliding_window(4096), 1 << 20, 1 << 20)
    >>> len(page) < 2_000_000, "https://" in page
    (True, False)
    """
    reading = read(mask, B, H, q_len, kv_len)
    one = one_head(reading.mask, reading.sizes, b, h, "to_html")
    page: dict[str, Any] = {"mask": repr(reading.mask), "sizes": reading.sizes._asdict(), "b": b, "h": h, "why": ""}
    page |= {"block": [1, 1], "full": _table([]), "open": _table([]), "bits": None, "grid": None, "tree": None}
    script, functions = Script(), []
    try:
        functions.append(script.function(_root(reading)))
        page |= {"lanes": reading.lanes[:2], **_tiles(reading)}
        page["tree"] = _tree(parts_of(reading.mask), reading.sizes, script, functions)
    except NotScriptable as reason:
        script, functions = Script(), ["null"]
        page |= _without_script(reading, one, str(reason))
    page["tables"] = script.tables
    text = _filled(page, functions, title or repr(reading.mask))
    if len(text) > MOST_BYTES:
        raise MaskValueError(
            f"to_html({reading.mask!r}, {q_len}, {kv_len})",
            f"a page of {len(text) >> 20} MiB",
            "Show fewer rows or heads (B, H).",
        )
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text


def _filled(page: dict[str, Any], functions: list[str], title: str) -> str:
    pieces = {
        "TITLE": html.escape(title),
        "SUPPORT": (_HERE / "support.js").read_text(encoding="utf-8"),
        "PAGE": json.dumps(page, separators=(",", ":")).replace("<", "\\u003c"),
        "FUNCTIONS": ",\n".join(functions),
        "VIEW": (_HERE / "view.js").read_text(encoding="utf-8"),
    }
    template = (_HERE / "page.html").read_text(encoding="utf-8")
    return "".join(pieces.get(part, part) for part in re.split("__([A-Z]+)__", template))


def _root(reading: Reading) -> Node:
    if reading.root is None:
        raise NotScriptable(reading.why)
    return reading.root


def _tree(part: Part, sizes: Sizes, script: Script, functions: list[str]) -> dict[str, Any]:
    """The boolean tree for the page; each leaf with its function, and those of the comparisons it joins by AND."""
    node: dict[str, Any] = {"kind": part.kind, "label": repr(part.mask)}
    if part.parts:
        node["parts"] = [_tree(p, sizes, script, functions) for p in part.parts]
        return node
    root = _root(read(part.mask, *sizes))
    node["fn"] = _number_of(script.function(root), functions)
    terms = and_terms(root)
    node["terms"] = [{"text": spelled(t), "fn": _number_of(script.function(t), functions)} for t in terms]
    return node


def _number_of(source: str, functions: list[str]) -> int:
    functions.append(source)
    return len(functions) - 1


def _tiles(reading: Reading) -> dict[str, Any]:
    """The smallest tiles that a page can hold: rectangles that are certain, and squares where elements decide."""
    if 0 in reading.sizes:
        return {}
    longest = max(reading.sizes.q_len, reading.sizes.kv_len)
    size = 1 << max(0, (longest - 1).bit_length() - 6)
    if size <= SMALLEST_TILE // 4:  # the page evaluates all elements of so small a mask
        size = longest
    found = tiles_of(reading, (size, size), exact=False)
    while SMALLEST_TILE < size < longest:
        finer = tiles_of(reading, (size // 2, size // 2), exact=False)
        if _count(finer) > MOST_TILES:
            break
        found, size = finer, size // 2
    full = torch.stack(tuple(found.full), 1)
    open_ = torch.stack(tuple(found.partial[:4]), 1)
    return {"block": [size, size], "full": _table(full.flatten().tolist()), "open": _table(open_.flatten().tolist())}


def _count(tiles: Tiles) -> int:
    return tiles.full.q.shape[0] + tiles.partial.q.shape[0]


def _table(values: list[int]) -> dict[str, Any]:
    return encoded(torch.tensor(values, dtype=torch.int64))


def _without_script(reading: Reading, one: Reading, why: str) -> dict[str, Any]:
    B, H, q_len, kv_len = reading.sizes
    if B * H * q_len * kv_len <= MOST_BITS:
        longest = max(q_len, kv_len, 1)
        everything = [n for b in range(B) for h in range(H) for n in (b, h, 0, 0)]
        held = {"bits": encoded(dense_mask(reading.mask, *reading.sizes).reshape(-1)), "block": [longest, longest]}
        return {"lanes": [B, H], "why": why, "open": _table(everything), **held}
    cell = -(-max(q_len, kv_len) // GRID)
    share, certain, _ = shades_of(one, cell)
    percent = torch.where(certain, share * 100, (share * 100).clamp(1, 99)).round().long()
    return {"lanes": [1, 1], "why": why, "grid": {"cell": cell, "across": share.shape[1], "table": encoded(percent)}}
