"""What a notebook shows of a mask by itself: its text, and a small drawing at a size that its tables reach."""

from __future__ import annotations

import html

from maskmod.algebra import Mask
from maskmod.dense import dense_mask
from maskmod.errors import MaskError
from maskmod.pictures.plot import HIDDEN, VISIBLE

__all__ = ["html_of"]

SIZES = (32, 24, 16, 12, 8, 6, 4, 2, 1)  # queries and keys, the first that the mask's tables reach
PIXELS = 224


def html_of(mask: Mask) -> str:
    """The mask as a piece of HTML; its text alone where no small size can be drawn. It never raises.

    >>> from maskmod import causal
    >>> html_of(causal()).count("<path")
    1
    """
    text = f"<code>{html.escape(repr(mask))}</code>"
    for B, n in _sizes(mask):
        try:
            visible = dense_mask(mask, B, 1, n, n)[0, 0]
        except (MaskError, IndexError, RuntimeError):  # a table that is shorter, or has more rows
            continue
        except Exception:  # whatever else a user's predicate raises: a notebook cell must show something
            break
        caption = f"q_len={n} kv_len={n}" + f" b=0 of {B}" * (B > 1)
        return f"<div>{text}<br>{_svg(visible.tolist(), n)}<br><small>{caption}: a row for each query</small></div>"
    return text


def _sizes(mask: Mask) -> list[tuple[int, int]]:
    rows = [1, *sorted({tensor.shape[0] for tensor in mask.tensors() if tensor.dim() and tensor.shape[0] <= 1024})]
    return [(B, n) for n in SIZES for B in rows]


def _svg(rows: list[list[bool]], n: int) -> str:
    """Runs of visible keys as one path."""
    steps = []
    for q, row in enumerate(rows):
        k = 0
        while k < n:
            end = k
            while end < n and row[end]:
                end += 1
            if end > k:
                steps.append(f"M{k} {q}h{end - k}v1h-{end - k}z")
            k = end + 1
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{PIXELS}" height="{PIXELS}" viewBox="0 0 {n} {n}" '
        f'shape-rendering="crispEdges"><rect width="{n}" height="{n}" fill="{HIDDEN}"/>'
        f'<path d="{"".join(steps)}" fill="{VISIBLE}"/></svg>'
    )
