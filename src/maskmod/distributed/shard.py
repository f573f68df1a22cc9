"""A rank's part of a mask is a mask: rows and columns stand for the positions that the layout says.

This module knows layouts and substitution; it knows no process group and no kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskmod.algebra import Mask, MaskMod, as_mask
from maskmod.distributed.layouts import Layout
from maskmod.errors import MaskValueError
from maskmod.positions import remap, shift

__all__ = ["length_of", "placed", "shard"]


def shard(
    mask: MaskMod,
    layout: Layout,
    rank: int,
    world: int,
    length: int | None = None,
    *,
    keys: str | int = "gathered",
    device: torch.device | str | None = None,
) -> Mask:
    """The mask of one rank's queries, as a mask over local indices.

    Row i stands for position ``layout.positions(rank, world, length)[i]``. Nothing is evaluated: what the mask says of
    whole rectangles it also says of the shard's.

    Args:
        length: tokens of the whole sequence; None where the layout was made for one sequence and knows it.
        keys: what the columns are. "gathered": the keys of all ranks, rank after rank, as an all-gather brings them;
            "global": all keys in the order of the sequence; a rank's number: the keys of that rank.
        device: of the tables; None takes that of the mask's tensors, else torch's default.

    >>> from maskmod import causal, draw
    >>> from maskmod.distributed import HeadTail
    >>> print(draw(shard(causal(), HeadTail(), 0, 2, 8), 4, 8))  # queries 0 1 6 7, keys 0 1 6 7 2 3 4 5
    remap(causal(), q=int64[4], kv=int64[8])  q_len=4 kv_len=8
    # . . . . . . .
    # # . . . . . .
    # # # . # # # #
    # # # # # # # #

    Raises:
        MaskValueError: no such rank, no length, or no such columns.
    """
    mask = as_mask(mask)
    length = length_of(layout, length)
    if isinstance(keys, str) and keys not in ("gathered", "global"):
        raise MaskValueError(f"shard(keys={keys!r})", "no such columns", 'Pass "gathered", "global" or a rank.')
    if keys == "global" or (keys == "gathered" and layout.start(0, world, length) is not None):
        kv: int | Tensor = 0
    elif keys == "gathered":
        kv = layout.order(world, length)
    else:
        kv = _place(layout, int(keys), world, length)
    return placed(mask, _place(layout, rank, world, length), kv, device)


def placed(mask: Mask, q: int | Tensor, kv: int | Tensor, device: torch.device | str | None = None) -> Mask:
    """The mask with its rows, and its columns, at these positions; an int is the first of consecutive ones."""
    q, kv = (_moved(part, mask, device) if isinstance(part, Tensor) else part for part in (q, kv))
    tables = {name: part for name, part in (("q", q), ("kv", kv)) if isinstance(part, Tensor)}
    offsets = {f"{name}_offset": part for name, part in (("q", q), ("kv", kv)) if not isinstance(part, Tensor)}
    if tables:
        mask = remap(mask, **tables)
    moves = any(not isinstance(offset, int) or offset != 0 for offset in offsets.values())
    return shift(mask, **offsets) if moves else mask


def length_of(layout: Layout, length: int | None) -> int:
    """The length asked for, or the one the layout was made for."""
    length = layout.known_length if length is None else length
    if length is None:
        raise MaskValueError(f"{layout!r} with length=None", "it fits any length", "Pass the length of the sequence.")
    return length


def _place(layout: Layout, rank: int, world: int, length: int) -> int | Tensor:
    start = layout.start(rank, world, length)
    return layout.positions(rank, world, length) if start is None else start


def _moved(table: Tensor, mask: Mask, device: torch.device | str | None) -> Tensor:
    if device is None:
        device = next((tensor.device for tensor in mask.tensors() if tensor.dim()), None)
    return table if device is None else table.to(device)
