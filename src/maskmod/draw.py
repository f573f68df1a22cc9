"""Pictures of masks. Text for now: a row for each query, a column for each key."""

from __future__ import annotations

import torch

from maskmod.algebra import MaskMod, as_mask, sizes_of
from maskmod.errors import MaskValueError
from maskmod.readers import dense_mask

__all__ = ["draw"]

_LIMIT = 256  # rows or columns of a picture that a person still reads


def draw(
    mask: MaskMod, q_len: int, kv_len: int, *, B: int = 1, H: int = 1, b: int = 0, h: int = 0, blocks: bool = False
) -> str:
    """The mask of one batch row and head as text: ``#`` visible, ``.`` hidden; the header names the mask.

    Args:
        B, H: the sizes the mask is read at; b, h: which row and head of them to draw.

    >>> from maskmod import causal, sliding_window
    >>> print(draw(causal() & sliding_window(2), 4, 4))
    causal() & sliding_window(2)  q_len=4 kv_len=4
    # . . .
    # # . .
    . # # .
    . . # #
    """
    mask = as_mask(mask)
    sizes_of(mask, B, H, q_len, kv_len)
    if not (0 <= b < B and 0 <= h < H):
        raise MaskValueError(f"draw(b={b}, h={h})", f"B={B} and H={H}", "Draw a row and a head that exist.")
    if max(q_len, kv_len) > _LIMIT:
        raise MaskValueError(f"draw({mask!r}, {q_len}, {kv_len})", f"over {_LIMIT} tokens", "Draw a smaller corner.")
    visible = dense_mask(mask, B, H, q_len, kv_len)[b, h]
    header = f"{mask!r}  q_len={q_len} kv_len={kv_len}" + (f" b={b} h={h}" if B * H > 1 else "")
    return "\n".join([header, *(_row(row) for row in visible)])


def _row(row: torch.Tensor) -> str:
    return " ".join("#" if cell else "." for cell in row.tolist())
