"""Pictures of masks. Text for now: a row for each query, a column for each key; or a cell for each block."""

from __future__ import annotations

from maskmod.algebra import MaskMod, as_mask, sizes_of
from maskmod.blocks.classify import classify_blocks
from maskmod.dense import dense_mask
from maskmod.errors import MaskValueError

__all__ = ["draw"]

_LIMIT = 256  # rows or columns of a picture that a person still reads
_BLOCK = 128  # tokens in a block where none are said: flex's own


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
) -> str:
    """The mask of one batch row and head as text; the header names the mask.

    Args:
        B, H: the sizes the mask is read at; b, h: which row and head of them to draw.
        blocks: False draws tokens, ``#`` visible and ``.`` hidden. An int draws blocks of so many tokens, True of 128:
            ``#`` full, ``+`` partial, ``.`` empty (a block cut short by the lengths is never full). Blocks are
            analysed, not evaluated, so a picture of a million tokens takes a moment.

    Raises:
        MaskValueError: a picture of more than 256 rows or columns.

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
    sizes_of(mask, B, H, q_len, kv_len)
    if not (0 <= b < B and 0 <= h < H):
        raise MaskValueError(f"draw(b={b}, h={h})", f"B={B} and H={H}", "Draw a row and a head that exist.")
    size = _BLOCK if blocks is True else int(blocks)
    cells = -(-max(q_len, kv_len) // (size or 1))
    if cells > _LIMIT:
        fitting = -(-max(q_len, kv_len) // _LIMIT)
        raise MaskValueError(
            f"draw({mask!r}, {q_len}, {kv_len})",
            f"{cells} rows or columns",
            f"Draw blocks={fitting} or more tokens a cell.",
        )
    header = f"{mask!r}  q_len={q_len} kv_len={kv_len}" + (f" b={b} h={h}" if B * H > 1 else "")
    if not size:
        rows = [["#" if cell else "." for cell in row] for row in dense_mask(mask, B, H, q_len, kv_len)[b, h].tolist()]
    else:
        header += f" blocks of {size}"
        classes = classify_blocks(mask, B, H, q_len, kv_len, block_size=size)
        kinds = classes.partial[b, h].int() + 2 * classes.full[b, h].int()
        rows = [[".+#"[kind] for kind in row] for row in kinds.tolist()]
    return "\n".join([header, *(" ".join(row) for row in rows)])
