"""What the demo found, as data, as JSON and as lines of text. Nothing is measured and nothing printed here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from maskmod.demo.measure import Measured

__all__ = ["Report", "beside"]

_HEADINGS = ("backend", "prefill graphs", "decode graphs", "graph breaks", "recompiles", "tokens/s", "tokens equal")


@dataclass(frozen=True)
class Report:
    """Everything the demo measured; `ok` decides its exit code."""

    torch: str
    threads: int
    documents: int
    bytes_of_text: int
    parameters: int
    losses: list[float]  # means over equal parts of the training run, in nats a byte
    prompts: int
    new_tokens: int
    closest_decision: float  # the reference's least lead of the best logit over the second: ties could go either way
    samples: list[str]
    backends: list[Measured]
    seconds: float

    @property
    def ok(self) -> bool:
        return all(row.passed for row in self.backends)

    def to_json(self) -> str:
        return json.dumps({"ok": self.ok, **asdict(self)}, indent=2)

    def table(self) -> Iterator[str]:
        """Lines of text: a row for each backend, then what went wrong, if anything did."""
        rows = [_HEADINGS, *map(_cells, self.backends)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for number, row in enumerate(rows):
            name, *figures = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            yield "  ".join([name.strip().ljust(widths[0]), *figures])
            if number == 0:
                yield "  ".join("─" * width for width in widths)
        for row in self.backends:
            yield from (f"{row.backend}: {reason}" for reason in row.reasons)


def _cells(row: Measured) -> tuple[str, ...]:
    counts = (row.prefill_graphs, row.decode_graphs, row.graph_breaks, row.recompiles_after_warm_up)
    return (row.backend, *map(str, counts), f"{row.tokens_per_second:,.0f}", "yes" if row.tokens_equal else "NO")


def beside(left: Sequence[str], right: Sequence[str], *, gap: int = 6) -> Iterator[str]:
    """Two pictures of equal height, side by side."""
    width = max(map(len, left)) + gap
    return (f"{a.ljust(width)}{b}".rstrip() for a, b in zip(left, right, strict=True))
