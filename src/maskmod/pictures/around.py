"""A few tokens around one element, of one mask or of two at once: what a failed assertion shows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from maskmod.algebra import MaskMod, Sizes, as_mask
from maskmod.oracle import vmap_at

__all__ = ["draw_around"]

_ROWS, _COLUMNS = 3, 6  # shown on each side of the element


def draw_around(
    masks: Sequence[MaskMod],
    place: tuple[int, int, int, int],
    sizes: Sizes,
    *,
    symbols: str,
    device: torch.device | str | None = None,
) -> str:
    """The masks around `place` = (b, h, q_idx, kv_idx), which stands in brackets; a row for each query.

    Args:
        symbols: a character for each combination: number ``sum(2**i for visible masks[i])``.

    >>> from maskmod import causal, sliding_window
    >>> print(draw_around([causal(), sliding_window(2)], (0, 0, 2, 0), Sizes(1, 1, 4, 4), symbols=".1?#"))
    keys 0 to 3
    query 0   #  .  .  .
    query 1   #  #  .  .
    query 2  [1] #  #  .
    query 3   1  1  #  #
    """
    b, h, q_idx, kv_idx = place
    queries = range(max(0, q_idx - _ROWS), min(sizes.q_len, q_idx + _ROWS + 1))
    keys = range(max(0, kv_idx - _COLUMNS), min(sizes.kv_len, kv_idx + _COLUMNS + 1))
    where = [torch.tensor([list(x)], device=device) for x in (queries, keys)]
    lane = [torch.tensor([x], device=device) for x in (b, h)]
    seen = [vmap_at(as_mask(mask), *lane, *where)[0].tolist() for mask in masks]
    width = len(str(queries[-1]))
    lines = [f"keys {keys[0]} to {keys[-1]}"]
    for i, q in enumerate(queries):
        cells = [symbols[sum(2**n for n, table in enumerate(seen) if table[i][j])] for j in range(len(keys))]
        marked = [f"[{c}]" if (q, k) == (q_idx, kv_idx) else f" {c} " for c, k in zip(cells, keys, strict=True)]
        lines.append(f"query {q:{width}}  {''.join(marked)}".rstrip())
    return "\n".join(lines)
