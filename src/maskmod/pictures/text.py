"""Pictures in text: a row for each query, a column for each key; or a cell for each block; or shades."""

from __future__ import annotations

import torch
from torch import Tensor

from maskmod.algebra import MaskMod, as_mask, sizes_of
from maskmod.analyser.reading import Reading
from maskmod.blocks.classify import classify_blocks
from maskmod.dense import dense_mask
from maskmod.errors import MaskValueError
from maskmod.pictures.shades import one_head, shades_of

__all__ = ["draw"]

_LIMIT = 256  # rows or columns of a picture that a person still reads
_SHADED = 64  # rows or columns of a picture in shades
_BLOCK = 128  # tokens in a block where none are said: flex's own
_BETWEEN = ":-=+*%"  # a growing share of a cell that is neither empty nor full
_COLOURS = {".": "38;5;245", "#": "1;38;5;32", "+": "38;5;73", **dict.fromkeys(_BETWEEN, "38;5;73")}


def draw(
    mask: MaskMod,
    q_len: int,
    kv_len: int,
    *,
    B: int = 1,
    H: int = 1,
    b: int = 0,
    h: int = 0,
    blocks: bool | int = False,
    color: bool = False,
) -> str:
    """The mask of one batch row and head as text; the header names the mask.

    Args:
        B, H: the sizes the mask is read at; b, h: which row and head of them to draw.
        blocks: False draws tokens, ``#`` visible and ``.`` hidden, up to 256 of them; more are drawn in shades, cells
            of many tokens: ``#`` certainly full, ``.`` certainly empty, and ``:-=+*%`` a growing share, estimated from
            samples. An int draws blocks of so many tokens, True of 128: ``#`` full, ``+`` partial, ``.`` empty,
            exactly (a block cut short by the lengths is never full).
        color: with the colour codes of a terminal.

    Raises:
        MaskValueError: a picture of blocks with more than 256 rows or columns; b or h out of range.

    >>> from maskmod import causal, sliding_window
    >>> print(draw(causal() & sliding_window(2), 4, 4))
    causal() & sliding_window(2)  q_len=4 kv_len=4
    # . . .
    # # . .
    . # # .
    . . # #
    >>> print(draw(causal(), 1 << 20, 1 << 20, blocks=1 << 18))
    causal()  q_len=1048576 kv_len=1048576 blocks of 262144
    + . . .
    # + . .
    # # + .
    # # # +
    """
    mask = as_mask(mask)
    sizes = sizes_of(mask, B, H, q_len, kv_len)
    one = one_head(mask, sizes, b, h, "draw")
    header = f"{mask!r}  q_len={q_len} kv_len={kv_len}" + (f" b={b} h={h}" if B * H > 1 else "")
    longest = max(q_len, kv_len)
    size = _BLOCK if blocks is True else int(blocks)
    if size:
        if -(-longest // size) > _LIMIT:
            raise MaskValueError(
                f"draw({mask!r}, {q_len}, {kv_len})",
                f"{-(-longest // size)} rows or columns",
                f"Draw blocks={-(-longest // _LIMIT)} or more tokens a cell.",
            )
        header += f" blocks of {size}"
        rows = _blocks(one, size)
    elif longest > _LIMIT:
        cell = 1 << (-(-longest // _SHADED) - 1).bit_length()
        header += f" cells of {cell} (. empty, # full, {_BETWEEN} between)"
        rows = _shaded(one, cell)
    else:
        rows = ["".join("#" if cell else "." for cell in row) for row in _tokens(one).tolist()]
    return "\n".join([header, *(" ".join(_coloured(row) if color else row) for row in rows)])


def _tokens(one: Reading) -> Tensor:  # (q_len, kv_len)
    return dense_mask(one.mask, *one.sizes)[0, 0]


def _blocks(one: Reading, size: int) -> list[str]:
    classes = classify_blocks(one.mask, *one.sizes, block_size=size)
    kinds = classes.partial[0, 0].int() + 2 * classes.full[0, 0].int()
    return ["".join(".+#"[kind] for kind in row) for row in kinds.tolist()]


def _shaded(one: Reading, cell: int) -> list[str]:
    share, certain, _ = shades_of(one, cell)
    step = (share * len(_BETWEEN)).long().clamp(max=len(_BETWEEN) - 1)
    index = torch.where(certain, share.long() * (len(_BETWEEN) + 1), step + 1)
    ramp = "." + _BETWEEN + "#"
    return ["".join(ramp[i] for i in row) for row in index.tolist()]


def _coloured(row: str) -> list[str]:
    """Its cells, with a colour code wherever the colour changes."""
    cells, last = [], ""
    for cell in row:
        colour = _COLOURS[cell]
        cells.append(cell if colour == last else f"\x1b[{colour}m{cell}")
        last = colour
    if cells:
        cells[-1] += "\x1b[0m"
    return cells
