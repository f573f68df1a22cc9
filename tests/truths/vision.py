"""Truths: images and video in text, and tokens on grids."""

from __future__ import annotations

import functools
import itertools
import math

from maskmod import blockwise, causal, chunked, document, per_head, remap, sliding_window
from maskmod.masks import (
    axial,
    block_causal,
    coarse,
    column_intervals,
    isolated,
    longnet,
    morton_order,
    neighborhood,
    sliding_tile,
    svg_spatial,
    svg_temporal,
    swin,
    teacher_forcing,
    tile_order,
)
from truths.common import Truth, rows

__all__ = ["VISION"]

IMAGES = ((4, 11), (11, 13), (20, 33))


def image(b: int, i: int) -> int:
    return next((n for n, (lo, hi) in enumerate(IMAGES) if lo <= i - b < hi), -1)


def in_one_image(b: int, q: int, k: int) -> bool:
    return any(lo <= q - b < hi and lo <= k - b < hi for lo, hi in IMAGES)


def noise(b: int, i: int) -> int:
    return 7 if i in range(20 + b, 33 + b) else -1


def half(b: int, i: int) -> int:
    return int(i >= 40)


def bagel(b: int, h: int, q: int, k: int) -> bool:
    if (q < 40) != (k < 40):
        return False
    if k in range(20 + b, 33 + b) and q not in range(20 + b, 33 + b):
        return False  # noise is seen from inside alone
    return k <= q or in_one_image(b, q, k)


def seen(b: int, k: int) -> range:
    """The queries that see the image of key k: eight keys an image."""
    return range(k // 8 * 5 + b, k // 8 * 5 + 9)


# ------------------------------------------------------------------------------------------------------------- grids


def window_of(
    q: int, length: int, kernel: int, stride: int = 1, dilation: int = 1, causally: bool = False
) -> list[int]:
    """The coordinates that NATTEN shows coordinate q on one axis, from its words and not its formula."""
    group = list(range(q % dilation, length, dilation))
    at = group.index(q)
    same_stride = [i for i in range(len(group)) if i // stride == at // stride]
    if causally:
        leader = same_stride[-1]
        return [group[i] for i in range(max(0, leader - kernel + 1), at + 1)]
    leader = at // stride * stride + stride // 2
    leader = min(leader, len(group) - 1)
    starts = range(len(group) - kernel + 1)  # the window whose centre is nearest
    start = min(starts, key=lambda first: abs(first + kernel // 2 - leader))
    return group[start : start + kernel]


def on_grid(shape, axes):
    """A rule that asks each axis: ``axes[i](q, k)`` on coordinates; nothing past the grid."""
    cells = list(itertools.product(*map(range, shape)))

    def rule(b: int, h: int, q: int, k: int) -> bool:
        if q >= len(cells) or k >= len(cells):
            return False
        return all(axis(x, y) for axis, x, y in zip(axes, cells[q], cells[k], strict=True))

    return rule


@functools.cache
def around(length: int, kernel: int, **options):
    windows = [window_of(q, length, kernel, **options) for q in range(length)]
    return lambda q, k: k in windows[q]


def in_order(rule, order):
    """A rule for tokens that are numbered another way: ``order[i]`` is the row-major number of token i."""
    return lambda b, h, q, k: q < len(order) and k < len(order) and rule(b, h, order[q], order[k])


def z_order(shape: tuple[int, int]) -> list[int]:
    """Row-major numbers along a Morton curve, by halving the square that encloses the grid."""

    def walk(y: int, x: int, size: int):
        if size == 1:
            if y < shape[0] and x < shape[1]:
                yield y * shape[1] + x
            return
        for dy, dx in itertools.product((0, size // 2), repeat=2):
            yield from walk(y + dy, x + dx, size // 2)

    return list(walk(0, 0, 1 << (max(shape) - 1).bit_length()))


def by_tiles(shape: tuple[int, int], tile: tuple[int, int]) -> list[int]:
    return [
        y * shape[1] + x
        for top in range(0, shape[0], tile[0])
        for left in range(0, shape[1], tile[1])
        for y in range(top, top + tile[0])
        for x in range(left, left + tile[1])
    ]


def sta(shape, tile, kernel, text):
    tiles = [size // t for size, t in zip(shape, tile, strict=True)]
    reach = [size // t for size, t in zip(kernel, tile, strict=True)]
    video, cells = math.prod(shape), list(itertools.product(*map(range, tiles)))

    def rule(b: int, h: int, q: int, k: int) -> bool:
        if k >= video + text:
            return False
        if k >= video or q >= video:
            return bool(text) or (k < video and q < video)
        places = zip(cells[q // math.prod(tile)], cells[k // math.prod(tile)], tiles, reach, strict=True)
        return all(around(n, r)(here, there) for here, there, n, r in places)

    return rule


GRID = (5, 9)
CUBE = (3, 4, 6)

VISION = (
    Truth(
        "causal with image spans",
        lambda B, H, Q, K: causal() | blockwise(rows(image, B, max(Q, K))),
        lambda b, h, q, k: k <= q or in_one_image(b, q, k),
    ),
    Truth(
        "window with image spans",
        lambda B, H, Q, K: sliding_window(5) | blockwise(rows(image, B, max(Q, K))),
        lambda b, h, q, k: q - 5 < k <= q or in_one_image(b, q, k),
    ),
    Truth(
        "Transfusion",
        lambda B, H, Q, K: causal() | blockwise(rows(image, B, max(Q, K))),
        lambda b, h, q, k: k <= q or any(q - b >= lo and lo <= k - b < hi for lo, hi in IMAGES),
    ),
    Truth(
        "BAGEL",
        lambda B, H, Q, K: (
            (causal() | blockwise(rows(image, B, max(Q, K))))
            & isolated(rows(noise, B, max(Q, K)))
            & document(rows(half, B, max(Q, K)))
        ),
        bagel,
    ),
    Truth(
        "Flamingo",
        lambda B, H, Q, K: column_intervals(
            rows(lambda b, k: seen(b, k).start, B, K), rows(lambda b, k: seen(b, k).stop, B, K)
        ),
        lambda b, h, q, k: q in seen(b, k),
    ),
    Truth(
        "SVG, spatial head",
        lambda B, H, Q, K: svg_spatial(6, 10),
        lambda b, h, q, k: k < 6 or q < 6 or q - 10 < k < q + 10,
    ),
    Truth(
        "SVG, spatial head",
        lambda B, H, Q, K: svg_spatial(6, 10, sink=15),
        lambda b, h, q, k: k < 15 or q < 6 or q - 10 < k < q + 10,
    ),
    Truth(
        "SVG, temporal head",
        lambda B, H, Q, K: svg_temporal(6, 12, 3),
        lambda b, h, q, k: min(q, k) < 6 or abs((q - 6) % 12 - (k - 6) % 12) in range(3),
    ),
    Truth(
        "block-causal video",
        lambda B, H, Q, K: block_causal(11),
        lambda b, h, q, k: k < [11, 22, 33, 44, 55, 66, 77][q // 11],
    ),
    Truth(
        "local block-causal video",
        lambda B, H, Q, K: coarse(sliding_window(3), 8),
        lambda b, h, q, k: k // 8 in range(q // 8 - 2, q // 8 + 1),
    ),
    Truth(
        "teacher forcing",
        lambda B, H, Q, K: teacher_forcing(24, 6),
        lambda b, h, q, k: (
            max(q, k) < 48
            and (k < q - q % 6 + 6 if q < 24 else k // 6 == q // 6 if k >= 24 else k // 6 < (q - 24) // 6)
        ),
    ),
    Truth(
        "teacher forcing",
        lambda B, H, Q, K: teacher_forcing(24, 6, left=1),
        lambda b, h, q, k: (
            max(q, k) < 48
            and (
                k // 6 in (q // 6, q // 6 - 1)
                if q < 24 and k < 24
                else q >= 24 and (k // 6 == q // 6 if k >= 24 else k // 6 == (q - 24) // 6 - 1)
            )
        ),
    ),
    Truth("sliding tile", lambda B, H, Q, K: sliding_tile((4, 12), (2, 2), (2, 6)), sta((4, 12), (2, 2), (2, 6), 0)),
    Truth(
        "sliding tile",
        lambda B, H, Q, K: sliding_tile((2, 4, 4), (1, 2, 2), (2, 2, 4), text=5),
        sta((2, 4, 4), (1, 2, 2), (2, 2, 4), 5),
    ),
    Truth("neighborhood", lambda B, H, Q, K: neighborhood((40,), 7), on_grid((40,), [around(40, 7)])),
    Truth(
        "neighborhood",
        lambda B, H, Q, K: neighborhood(GRID, (3, 4)),
        on_grid(GRID, [around(5, 3), around(9, 4)]),
    ),
    Truth(
        "neighborhood",
        lambda B, H, Q, K: neighborhood(CUBE, (2, 3, 5)),
        on_grid(CUBE, [around(3, 2), around(4, 3), around(6, 5)]),
    ),
    Truth(
        "neighborhood with stride, dilation and causal axes",
        lambda B, H, Q, K: neighborhood((45,), 6, stride=4, dilation=7),
        on_grid((45,), [around(45, 6, stride=4, dilation=7)]),
    ),
    Truth(
        "neighborhood with stride, dilation and causal axes",
        lambda B, H, Q, K: neighborhood(GRID, (2, 4), stride=(2, 3), dilation=(2, 2), is_causal=(True, False)),
        on_grid(GRID, [around(5, 2, stride=2, dilation=2, causally=True), around(9, 4, stride=3, dilation=2)]),
    ),
    Truth(
        "neighborhood with stride, dilation and causal axes",
        lambda B, H, Q, K: neighborhood(CUBE, 3, stride=(1, 2, 3), dilation=(1, 1, 2), is_causal=(True, True, False)),
        on_grid(
            CUBE,
            [
                around(3, 3, causally=True),
                around(4, 3, stride=2, causally=True),
                around(6, 3, stride=3, dilation=2),
            ],
        ),
    ),
    Truth(
        "neighborhood in tile order",
        lambda B, H, Q, K: remap(
            neighborhood((6, 8), (3, 5)), q=tile_order((6, 8), (3, 2)), kv=tile_order((6, 8), (3, 2))
        ),
        in_order(on_grid((6, 8), [around(6, 3), around(8, 5)]), by_tiles((6, 8), (3, 2))),
        ((2, 2, 37, 48), (1, 1, 48, 48)),
    ),
    Truth(
        "neighborhood in Morton order",
        lambda B, H, Q, K: remap(neighborhood((6, 8), (3, 5)), q=morton_order((6, 8)), kv=morton_order((6, 8))),
        in_order(on_grid((6, 8), [around(6, 3), around(8, 5)]), z_order((6, 8))),
        ((2, 2, 37, 48), (1, 1, 48, 48)),
    ),
    Truth(
        "Swin",
        lambda B, H, Q, K: swin((6, 9), (2, 3), (1, 2)),
        on_grid((6, 9), [lambda q, k: "011223"[q] == "011223"[k], lambda q, k: "001112223"[q] == "001112223"[k]]),
    ),
    Truth(
        "axial",
        lambda B, H, Q, K: axial(CUBE, 1),
        on_grid(CUBE, [lambda q, k: q == k, lambda q, k: True, lambda q, k: q == k]),
    ),
    Truth(
        "S2-Attn",
        lambda B, H, Q, K: causal() & per_head([chunked(10), chunked(10, start=5)][:H]),
        lambda b, h, q, k: k <= q and divmod(q + 5 * h, 10)[0] == divmod(k + 5 * h, 10)[0],
    ),
    Truth(
        "LongNet",
        lambda B, H, Q, K: longnet(20, 4),
        lambda b, h, q, k: q // 20 == k // 20 and {q % 4, k % 4} == {h},
        ((1, 4, 48, 48), (2, 2, 37, 53)),
    ),
)
