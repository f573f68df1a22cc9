"""Writes docs/masks.md and the table of masks in README.md from the catalog.

python docs/generate_masks.py            # write both
python docs/generate_masks.py --check    # exit 1 where one of them is not current
"""

from __future__ import annotations

import argparse
import ast
import itertools
import subprocess
import sys
from pathlib import Path

from maskmod import draw, masks
from maskmod.masks.catalog import CATALOG, VOCABULARY, Entry

ROOT = Path(__file__).parent.parent
PAGE, README = ROOT / "docs" / "masks.md", ROOT / "README.md"
TABLE_BEGIN, TABLE_END = "<!-- table of masks, written by docs/generate_masks.py -->", "<!-- end of table -->"

# What the README shows: what most people need, and one of each kind.
SHOWN = (
    "full",
    "causal",
    "causal, bottom-right",
    "sliding window",
    "local window",
    "chunked causal",
    "block-causal",
    "sinks and window",
    "prefix language model",
    "key padding",
    "packed causal",
    "documents over any mask",
    "shared prefix",
    "causal with image spans",
    "neighborhood",
    "Longformer",
    "block layout",
    "token tree",
    "tree in depth-first order",
    "block diffusion",
)


def table(entries: tuple[Entry, ...], *, linked: bool) -> str:
    """Rows of name, expression and count, in Markdown."""
    rows = ["| mask | written | keys that a query at q sees |", "|---|---|---|"]
    for entry in entries:
        name = f"[{entry.name}](#{anchor(entry.name)})" if linked else entry.name
        rows.append(f"| {name} | {code(entry.expression)} | {cell(entry.keys)} |")
    return "\n".join(rows)


def section(entry: Entry) -> str:
    """One mask: its facts, its code, its drawing."""
    B, H, q_len, kv_len = entry.size
    options = {"B": B, "H": H, "h": entry.head} if (B, H) != (1, 1) else {}
    written = "".join(f", {name}={value}" for name, value in options.items())
    call = f"print(draw({entry.example}, {q_len}, {kv_len}{written}))"
    if len(call) > 100:
        call = f"mask = {entry.example}\nprint(draw(mask, {q_len}, {kv_len}{written}))"
    return "\n".join(
        (
            f"### {entry.name}",
            "",
            f"`{entry.expression}`",
            "",
            f"- sees {entry.keys}: `{entry.formula}`",
            f"- from {entry.source}",
            f"- elsewhere: {entry.elsewhere}",
            *(["- some partial blocks are opened, token by token"] if entry.exactness == "bounds" else []),
            "",
            "```python",
            call,
            "```",
            "",
            "```text",
            draw(entry.build(), q_len, kv_len, B=B, H=H, h=entry.head),
            "```",
            "",
        )
    )


def imports() -> str:
    """The import lines that every example of the page needs."""
    used = {
        node.func.id
        for entry in CATALOG
        for node in ast.walk(ast.parse(entry.example))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    modules: dict[str, list[str]] = {}
    for name in sorted(used):
        home = "maskmod.masks" if name in masks.__all__ else VOCABULARY[name].__module__
        home = "maskmod" if home in ("maskmod.positions", "maskmod.choose") else home
        modules.setdefault(home, []).append(name)
    modules["maskmod"] = sorted([*modules.get("maskmod", []), "draw"])
    lines = ["import torch"]
    for home, names in sorted(modules.items()):
        line = f"from {home} import {', '.join(names)}"
        lines.append(line if len(line) <= 100 else f"from {home} import (\n    " + ",\n    ".join(names) + ",\n)")
    return "\n".join(lines)


def page() -> str:
    """The whole of docs/masks.md."""
    groups = [(name, tuple(entries)) for name, entries in itertools.groupby(CATALOG, key=lambda entry: entry.group)]
    ordered: dict[str, tuple[Entry, ...]] = {}
    for name, entries in groups:
        ordered[name] = ordered.get(name, ()) + entries
    parts = [HEAD, table(CATALOG, linked=True), "", "```python", imports(), "```", ""]
    for name, entries in ordered.items():
        parts += [f"## {TITLES[name]}", "", *map(section, entries)]
    return formatted("\n".join(parts) + TAIL)


def formatted(text: str) -> str:
    """The text with its blocks of code formatted, as the repository's own are."""
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(PAGE), "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def readme(text: str) -> str:
    """README.md with its table of masks replaced."""
    before, rest = text.split(TABLE_BEGIN)
    by_name = {entry.name: entry for entry in CATALOG}
    rows = table(tuple(by_name[name] for name in SHOWN), linked=False)
    own = "| any function | `lambda b, h, q_idx, kv_idx: ...` | what you say |"
    return f"{before}{TABLE_BEGIN}\n{rows}\n{own}\n{TABLE_END}{rest.split(TABLE_END)[1]}"


def anchor(name: str) -> str:
    """The link to a heading, as GitHub makes it."""
    return "".join(c for c in name.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def code(text: str) -> str:
    return f"`{cell(text)}`"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


TITLES = {
    "positional": "By position",
    "packed": "Documents, padding, intervals",
    "multimodal": "Images and video in text",
    "geometry": "Grids",
    "sparse": "Sparse attention",
    "selected": "Chosen by content",
    "trees": "Trees and speculation",
    "diffusion": "Diffusion",
}

HEAD = """# Masks

Every mask that people name: how it is written here, what a query sees, where it comes from, what others call it, and
its drawing (`#` visible, a row for each query). The page is written from `maskmod.masks.catalog.CATALOG` by
`python docs/generate_masks.py`; the pictures are the output of `draw`. In the formulas q and k are the positions of a
query and a key.

Few of these are kinds of their own. Most are written with a handful of parts: windows and bands, tables of ids and
flags, intervals, and masks inside masks: `within` a document, `coarse` by blocks, `periodic`, `per_axis` of a grid,
`remap` and `shift` of positions.

"""

TAIL = """
## By head, by condition

`per_head(masks)` gives head i its own mask; `where(condition, a, b)` chooses by predicate.

```python
from maskmod import where

print(draw(per_head([sliding_window(2), causal()]), 4, 4, H=2, h=0))
near = lambda b, h, q_idx, kv_idx: q_idx - kv_idx < 2
print(draw(where(near, causal(), full() ^ causal()), 4, 4))
```

```text
per_head([sliding_window(2), causal()])  q_len=4 kv_len=4 b=0 h=0
# . . .
# # . .
. # # .
. . # #
where(<lambda>, causal(), full() ^ causal())  q_len=4 kv_len=4
# . . .
# # . .
. # # .
. . # #
```

## The order of the parts

Nothing is reordered: parentheses say what you mean. Packed, windowed, padded text with image spans is

```python
ids = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
image_ids = torch.tensor([-1, 0, 0, -1, -1, 0, 0, -1])  # numbered anew in each document
valid = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0]])
mask = ((causal() & sliding_window(2)) | blockwise(image_ids)) & document(ids) & key_padding(valid)
print(draw(mask, 8, 8))
```

```text
(causal() & sliding_window(2) | blockwise(int64[8])) & document(int64[8]) & key_padding(int64[1, 8])  q_len=8 kv_len=8
# . . . . . . .
# # # . . . . .
. # # . . . . .
. . # # . . . .
. . . . # . . .
. . . . # # # .
. . . . . # # .
. . . . . . # .
```

with the packing *after* the spans: an image of one document and an image of another may carry one id, and would see
each other if the documents were ANDed before the spans are ORed.
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python docs/generate_masks.py", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file is not current")
    options = parser.parse_args(arguments)
    current = True
    for path, text in ((PAGE, page()), (README, readme(README.read_text()))):
        if path.read_text() == text:
            continue
        current = False
        print(f"{path.relative_to(ROOT)}: {'not current' if options.check else 'written'}")
        if not options.check:
            path.write_text(text)
    return int(options.check and not current)


if __name__ == "__main__":
    sys.exit(main())
