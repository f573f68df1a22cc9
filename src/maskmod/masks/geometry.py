"""Masks of images and videos: tokens on a grid of one, two, three or more axes, visible by their coordinates.

Tokens are numbered row-major, the last axis fastest, unless an order says otherwise: `morton_order` and `tile_order`
are tables for `remap`. A token past the grid sees and shows nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from maskmod.algebra import Mask, MaskMod, as_mask
from maskmod.algebra.lookup import check_size
from maskmod.errors import MaskShapeError, MaskTypeError, MaskValueError
from maskmod.masks.inner import coarse
from maskmod.masks.positional import chunked, full, prefix, query_prefix, window

__all__ = [
    "Neighborhood",
    "PerAxis",
    "axial",
    "morton_order",
    "neighborhood",
    "per_axis",
    "sliding_tile",
    "swin",
    "tile_order",
]


class PerAxis(Mask):
    """See `per_axis`."""

    masks: tuple[Mask, ...]
    shape: tuple[int, ...]

    _name = "per_axis"

    def __post_init__(self):
        _check_shape(self, self.shape)
        if len(self.masks) != len(self.shape):
            raise MaskShapeError(
                self, f"{len(self.masks)} masks, {len(self.shape)} axes", "Pass one mask for each axis."
            )

    def __call__(self, b, h, q_idx, kv_idx):
        tokens = math.prod(self.shape)
        visible = (q_idx >= 0) & (q_idx < tokens) & (kv_idx >= 0) & (kv_idx < tokens)
        stride = tokens
        for mask, size in zip(self.masks, self.shape, strict=True):
            stride //= size
            # The remainder keeps tokens past the grid, which see nothing anyway, inside the axis.
            visible = visible & mask(b, h, q_idx // stride % size, kv_idx // stride % size)
        return visible

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        for mask, size in zip(self.masks, self.shape, strict=True):
            mask.check(B, H, size, size)

    def __repr__(self) -> str:
        return f"per_axis([{', '.join(map(repr, self.masks))}], {self.shape})"


def per_axis(masks: Sequence[MaskMod], shape: Sequence[int]) -> Mask:
    """Visible where ``masks[i]`` is at the coordinates on axis i, for every axis: the product of what each shows.

    Args:
        masks: one mask of coordinates for each axis.
        shape: the grid, (length,), (height, width) or (time, height, width), say; row-major.

    >>> from maskmod import causal, full
    >>> per_axis([causal(), full()], (2, 3))(0, 0, 4, 0), per_axis([causal(), full()], (2, 3))(0, 0, 0, 4)
    (True, False)
    """
    if callable(masks) or not isinstance(masks, Sequence):
        raise MaskTypeError(
            f"per_axis({masks!r}, ...)", f"a {type(masks).__name__}", "Pass a list of masks, one an axis."
        )
    return PerAxis(tuple(map(as_mask, masks)), tuple(shape))


class Neighborhood(Mask):
    """One axis of `neighborhood`."""

    length: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    is_causal: bool = False

    def __post_init__(self):
        for size in (self.length, self.kernel_size, self.stride, self.dilation):
            check_size(self, size, unit="tokens")
        if self.kernel_size * self.dilation > self.length:
            seen = f"a kernel of {self.kernel_size} tokens {self.dilation} apart on an axis of {self.length}"
            raise MaskValueError(self, seen, "Let kernel_size * dilation be at most the length.")
        if self.stride > self.kernel_size:
            raise MaskValueError(self, f"a stride of {self.stride}", f"Pass {self.kernel_size} or less, the kernel.")

    def __repr__(self) -> str:
        options = {"stride": self.stride, "dilation": self.dilation, "is_causal": self.is_causal}
        written = (f", {name}={value}" for name, value in options.items() if value not in (1, False) or value is True)
        return f"Neighborhood({self.length}, {self.kernel_size}{''.join(written)})"

    def __call__(self, b, h, q_idx, kv_idx):
        # Tokens a dilation apart form a group of their own, and are numbered in it.
        group, q, kv = q_idx % self.dilation, q_idx // self.dilation, kv_idx // self.dilation
        last = (self.length - group - 1) // self.dilation
        first_of_stride = q // self.stride * self.stride
        if self.is_causal:
            leader = _at_most(first_of_stride + self.stride - 1, last)
            visible = (kv <= q) & (leader - kv < self.kernel_size)
        else:
            leader = _at_most(first_of_stride + self.stride // 2, last)
            begin = _at_least(leader - self.kernel_size // 2, 0)
            begin = _at_most(
                begin, last + 1 - self.kernel_size
            )  # a window at the edge is moved inside, and stays whole
            visible = (kv >= begin) & (kv < begin + self.kernel_size)
        return visible & (group == kv_idx % self.dilation)


def neighborhood(
    shape: Sequence[int],
    kernel_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
) -> Mask:
    """Neighborhood attention in any number of dimensions (NATTEN): the kernel around a token, moved inside at edges.

    A query sees the product of its kernel sizes; along a causal axis, fewer near the beginning. Arguments are NATTEN's,
    one for all axes or one for each: with a stride, neighbouring queries share the window of their leader; with a
    dilation, the window holds every dilation-th token. attention-gym's ``generate_natten`` wants odd kernels.

    Args:
        shape: the grid, row-major.
        kernel_size: tokens along each axis; times the dilation at most the axis.
        stride: queries that share a window, at most the kernel.
        dilation: the step between tokens of a window.
        is_causal: whether a query sees nothing after itself along the axis.

    >>> [kv for kv in range(12) if neighborhood((3, 4), (3, 3))(0, 0, 0, kv)]  # the corner of three rows of four
    [0, 1, 2, 4, 5, 6, 8, 9, 10]
    """
    each = [_for_each(shape, value) for value in (kernel_size, stride, dilation, is_causal)]
    return per_axis([Neighborhood(*arguments) for arguments in zip(shape, *each, strict=True)], shape)


def sliding_tile(shape: Sequence[int], tile: Sequence[int], kernel: Sequence[int], *, text: int = 0) -> Mask:
    """Sliding tile attention: `neighborhood` of whole tiles, for tokens in tile order, with text behind them.

    A token of video sees the product of ``kernel`` tokens, whole tiles all, and the text; text sees everything.
    attention-gym's ``generate_sta_mask_mod_2d`` and ``_3d``, with the same three shapes.

    Args:
        shape: the canvas in tokens, (height, width) or (time, height, width).
        tile: a tile in tokens; divides the canvas.
        kernel: the window in tokens, a multiple of the tile.
        text: tokens after the video, which see and are seen by all.

    >>> [kv for kv in range(17) if sliding_tile((4, 4), (2, 2), (2, 4), text=1)(0, 0, 0, kv)]
    [0, 1, 2, 3, 4, 5, 6, 7, 16]
    """
    written = f"sliding_tile({tuple(shape)}, {tuple(tile)}, {tuple(kernel)})"
    if not len(shape) == len(tile) == len(kernel):
        raise MaskShapeError(written, "shapes of different lengths", "Pass as many sizes in each.")
    if any(a % t or k % t for a, t, k in zip(shape, tile, kernel, strict=True)):
        raise MaskValueError(written, "a tile does not divide the canvas and the kernel", "Pad the canvas.")
    in_tiles = [[size // t for size, t in zip(sizes, tile, strict=True)] for sizes in (shape, kernel)]
    video = coarse(neighborhood(*in_tiles), math.prod(tile))
    if not text:
        return video
    tokens = math.prod(shape)
    beside = (prefix(tokens) & query_prefix(tokens)) ^ True
    return (video | beside) & prefix(tokens + text)


def swin(shape: Sequence[int], window_size: int | Sequence[int], shift_size: int | Sequence[int] = 0) -> Mask:
    """Swin's windows, shifted or not: a token sees its own window, ``window_size`` along each axis, fewer at the edges.

    Tokens stay in row-major order: what Swin rolls round the canvas and then masks (its nine regions) is here simply
    another window.

    Args:
        shape: the grid; without a shift, a multiple of the window.
        window_size: tokens along each axis.
        shift_size: how far the windows are moved, less than the window.

    >>> [kv for kv in range(16) if swin((4, 4), 2, 1)(0, 0, 5, kv)]
    [5, 6, 9, 10]
    """
    sizes, shifts = _for_each(shape, window_size), _for_each(shape, shift_size)
    return per_axis([chunked(size, start=start) for size, start in zip(sizes, shifts, strict=True)], shape)


def axial(shape: Sequence[int], axis: int) -> Mask:
    """A token sees the tokens of its own line along ``axis``: ``shape[axis]`` of them (Axial Transformer).

    Factorised attention over video is one layer or head along time and one across the frame.

    >>> [kv for kv in range(6) if axial((2, 3), 0)(0, 0, 4, kv)]
    [1, 4]
    """
    axes = range(len(shape))
    return per_axis([full() if i == axes[axis] else window(0, 0) for i in axes], shape)


def morton_order(shape: Sequence[int], *, device: torch.device | str | None = None) -> Tensor:
    """The row-major position of each token of a grid that is read along a Morton curve (Z-order): int64 (tokens,).

    ``remap(neighborhood(shape, k), q=order, kv=order)`` is the mask for tokens in that order, whose windows fill fewer
    blocks. The last axis takes the lowest bit. Any shape: cells of the enclosing power of two that are not there are
    left out.

    >>> morton_order((2, 4)).tolist()
    [0, 1, 4, 5, 2, 3, 6, 7]
    """
    _check_shape("morton_order(shape)", tuple(shape))
    coordinates = torch.unravel_index(torch.arange(math.prod(shape), device=device), tuple(shape))
    code = torch.zeros(math.prod(shape), dtype=torch.int64, device=device)
    for bit in range(max(shape).bit_length()):
        for axis, coordinate in enumerate(reversed(coordinates)):
            code += (coordinate >> bit & 1) << bit * len(shape) + axis
    return code.argsort()


def tile_order(shape: Sequence[int], tile: Sequence[int], *, device: torch.device | str | None = None) -> Tensor:
    """The row-major position of each token of a grid that is read tile by tile: int64 (tokens,).

    ``remap(mask, q=order, kv=order)`` is a row-major mask for tokens in tile order; ``x[:, order]`` brings them there.

    >>> tile_order((2, 4), (2, 2)).tolist()
    [0, 1, 4, 5, 2, 3, 6, 7]
    """
    written = f"tile_order({tuple(shape)}, {tuple(tile)})"
    _check_shape(written, tuple(shape))
    if len(shape) != len(tile) or any(size % t for size, t in zip(shape, tile, strict=False)):
        raise MaskValueError(written, "the tile does not divide the grid", "Pad the grid to a multiple of the tile.")
    cut = [part for size, t in zip(shape, tile, strict=True) for part in (size // t, t)]
    axes = [*range(0, len(cut), 2), *range(1, len(cut), 2)]
    return torch.arange(math.prod(shape), device=device).reshape(cut).permute(axes).flatten()


def _for_each(shape: Sequence[int], value):
    """One value for each axis."""
    values = tuple(value) if isinstance(value, Sequence) else (value,) * len(shape)
    if len(values) != len(shape):
        raise MaskShapeError(
            f"{values} on a grid of {tuple(shape)}", f"{len(values)} values", "Pass one for each axis."
        )
    return values


def _check_shape(written: object, shape: tuple[int, ...]) -> None:
    if not shape:
        raise MaskShapeError(written, "a grid without axes", "Pass a shape such as (height, width).")
    for size in shape:
        check_size(written, size, unit="tokens")


def _at_least(value, least):
    """The greater of two indices, ints or tensors: `max` asks for a truth value."""
    return value + (least - value) * (value < least)


def _at_most(value, most):
    return value + (most - value) * (value > most)
