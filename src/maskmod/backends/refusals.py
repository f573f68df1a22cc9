"""How a layout refuses a mask: with an element that shows what it cannot say, and the backend that can.

What layouts without heads, or without a batch, need to know is asked here: whether one mask serves all of them.
"""

from __future__ import annotations

from maskmod.analyser.reading import Reading, read
from maskmod.errors import UnsupportedMask
from maskmod.facts.proofs import Element, first_visible

__all__ = ["Inexpressible", "check_outside_a_trace", "check_same", "refusal"]

_TODO = 'Use backend="flex".'


class Inexpressible(UnsupportedMask):
    """A layout that cannot say this mask; `element` shows it."""

    @property
    def element(self) -> Element:
        return self.args[3]


def refusal(reading: Reading, backend: str, element: Element, seen: str, todo: str = _TODO) -> Inexpressible:
    """The error for a mask of which `element` shows that the layout cannot say it."""
    b, h, q_idx, kv_idx = element
    where = f"b={b}, h={h}, q_idx={q_idx}, kv_idx={kv_idx}"
    return Inexpressible(f'lower({reading.mask!r}, "{backend}")', f"{seen}: see {where}", todo, element)  # pyright: ignore[reportCallIssue]


def check_outside_a_trace(reading: Reading, backend: str, empty_rows: str) -> None:
    """Refuse what no layout here can do: shapes that depend on values in a graph, weights for rows that see nothing."""
    written = f'lower({reading.mask!r}, "{backend}"'
    if reading.traced:
        raise UnsupportedMask(
            f"{written})",
            "the shapes of its arguments depend on values, and a graph cannot",
            "Lower it outside the graph.",
        )
    if empty_rows != "keep":
        raise UnsupportedMask(
            f'{written}, empty_rows="{empty_rows}")',
            "the layout hides all keys of a row that sees nothing, and leaves its output to the kernel",
            'Pass empty_rows="keep".',
        )


def check_same(reading: Reading, backend: str, axis: str, todo: str = _TODO) -> None:
    """Refuse a mask that differs between heads (axis "h") or batch rows ("b"), for a layout that has none.

    A predicate that reads the index and says the same for each is not refused: that is proven.
    """
    which = "bh".index(axis)
    if reading.lanes[which] == 1 or reading.is_empty:
        return
    mask = reading.mask

    def differs(b, h, q_idx, kv_idx):
        first = (b * 0, h) if axis == "b" else (b, h * 0)
        return mask(b, h, q_idx, kv_idx) ^ mask(*first, q_idx, kv_idx)

    found = first_visible(read(differs, *reading.sizes, device=reading.device))
    if found is not None:
        name = "batch row" if axis == "b" else "head"
        raise refusal(
            reading, backend, found, f"it has one mask for every {name}, and this differs from {name} 0", todo
        )
