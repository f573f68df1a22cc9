"""Proofs about masks, exact: whether one is empty, full, equal to another, within it, apart from it, free of leaks.

Each question is whether some mask is empty. The analyser is asked about big tiles, and only those that it leaves open
are divided, depth first, down to tiles of a few tokens, which are evaluated. The first visible token ends the search:
it is the counterexample. Nothing of the size of the dense mask, or of a block table, is ever held.

Nothing here knows a backend.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from maskmod.algebra import MaskMod, as_mask
from maskmod.analyser.may import may
from maskmod.analyser.normal_form import Formula, normal
from maskmod.analyser.reading import Reading, read
from maskmod.analyser.settle import Analysis, TileList
from maskmod.analyser.simplify import is_false, simplified
from maskmod.analyser.summaries import Selection
from maskmod.errors import MaskTypeError, MaskValueError, TruthValueError
from maskmod.masks import causal
from maskmod.positions import shift

__all__ = [
    "Element",
    "Proof",
    "disjoint",
    "equal",
    "first_visible",
    "implies",
    "is_empty",
    "is_full",
    "leaks_future",
]

_LEAF = 8  # queries and keys of the smallest tile: what is evaluated along a boundary is this wide
_STEP = 4  # a tile is divided into so many rows and columns
_TOP_TILES = 4096  # tiles asked about first, at most
_TILES_AT_ONCE = 1 << 15  # asked about together: bounds memory
_SMALL = 1 << 16  # tokens that are cheaper to evaluate than to analyse
_OPAQUE_TILE = 256  # queries and keys of a tile of a mask that cannot be recorded
_MOST_TOKENS = 1 << 34  # evaluated before giving up: minutes


class Element(NamedTuple):
    """One place of a mask: batch row, head, query and key.

    >>> from maskmod import causal
    >>> causal()(*Element(b=0, h=0, q_idx=3, kv_idx=5))
    False
    """

    b: int
    h: int
    q_idx: int
    kv_idx: int


class Proof(NamedTuple):
    """Whether a statement holds at every index, and where not, one element that shows it.

    Attributes:
        holds: the answer, exactly.
        counterexample: None where it holds; of `leaks_future`, the leak, None where there is none.

    >>> from maskmod import causal, prefix
    >>> proof = implies(causal() | prefix(2), causal(), 1, 1, 4, 4)
    >>> proof.holds, proof.counterexample
    (False, Element(b=0, h=0, q_idx=0, kv_idx=1))
    """

    holds: bool
    counterexample: Element | None

    def __bool__(self) -> bool:
        raise TruthValueError(
            f"bool({self!r})", "a proof has an answer and a counterexample, and both count", "Ask for `.holds`."
        )


def is_empty(
    mask: MaskMod, B: int | None, H: int | None, q_len: int, kv_len: int, *, device: torch.device | str | None = None
) -> Proof:
    """Whether nothing is visible; the counterexample is a visible element.

    Args:
        mask: any callable ``(b, h, q_idx, kv_idx) -> bool``.
        B, H: sizes; None means 1.
        device: None takes the device of the mask's own tensors, else torch's default.

    Raises:
        MaskTypeError: inside a trace, where no value may be looked at.
        MaskValueError: a mask that the analyser does not understand, too large to be evaluated.

    >>> from maskmod import causal
    >>> is_empty(causal() & (lambda b, h, q_idx, kv_idx: kv_idx > q_idx), 1, 1, 1 << 20, 1 << 20)
    Proof(holds=True, counterexample=None)
    """
    return _proof(first_visible(_read(mask, B, H, q_len, kv_len, device)))


def is_full(
    mask: MaskMod, B: int | None, H: int | None, q_len: int, kv_len: int, *, device: torch.device | str | None = None
) -> Proof:
    """Whether everything is visible; the counterexample is a hidden element.

    >>> from maskmod import sliding_window
    >>> is_full(sliding_window(4), 1, 1, 1, 4)
    Proof(holds=False, counterexample=Element(b=0, h=0, q_idx=0, kv_idx=1))
    """
    return _proof(first_visible(_read(as_mask(mask) ^ True, B, H, q_len, kv_len, device)))


def implies(
    a: MaskMod,
    b: MaskMod,
    B: int | None,
    H: int | None,
    q_len: int,
    kv_len: int,
    *,
    device: torch.device | str | None = None,
) -> Proof:
    """Whether all that `a` shows, `b` shows too; the counterexample is visible in `a` and hidden in `b`.

    >>> from maskmod import causal, sliding_window
    >>> implies(sliding_window(4), causal(), 1, 1, 64, 64).holds
    True
    """
    return _proof(first_visible(_read(as_mask(a) & (as_mask(b) ^ True), B, H, q_len, kv_len, device)))


def equal(
    a: MaskMod,
    b: MaskMod,
    B: int | None,
    H: int | None,
    q_len: int,
    kv_len: int,
    *,
    device: torch.device | str | None = None,
) -> Proof:
    """Whether both show the same; the counterexample is visible in exactly one of them.

    >>> from maskmod import causal
    >>> equal(causal(), lambda b, h, q_idx, kv_idx: q_idx - kv_idx >= 0, 1, 1, 1 << 20, 1 << 20).holds
    True
    """
    return _proof(first_visible(_read(as_mask(a) ^ as_mask(b), B, H, q_len, kv_len, device)))


def disjoint(
    a: MaskMod,
    b: MaskMod,
    B: int | None,
    H: int | None,
    q_len: int,
    kv_len: int,
    *,
    device: torch.device | str | None = None,
) -> Proof:
    """Whether nothing is visible in both; the counterexample is visible in both.

    >>> from maskmod import causal, prefix
    >>> disjoint(causal(), prefix(1), 1, 1, 4, 4).counterexample
    Element(b=0, h=0, q_idx=0, kv_idx=0)
    """
    return _proof(first_visible(_read(as_mask(a) & as_mask(b), B, H, q_len, kv_len, device)))


def leaks_future(
    mask: MaskMod,
    B: int | None,
    H: int | None,
    q_len: int,
    kv_len: int,
    *,
    q_offset: int | Tensor = 0,
    device: torch.device | str | None = None,
) -> Proof:
    """Whether some query sees a key after its own: it holds where the mask leaks, and then the element is a leak.

    What is asked is named by the function, as everywhere here: ``leaks_future(causal(), ...).holds`` is False. The
    element contradicts what one hopes for, that nothing leaks, so here it stands beside a True.

    Args:
        q_offset: where query 0 stands among the keys: an int, or a tensor (), (1,) or (B,). Query ``q_idx`` may see the
            keys up to ``q_idx + q_offset``.

    >>> from maskmod import causal, prefix
    >>> leaks_future(causal(), 1, 1, 8, 8).holds
    False
    >>> leaks_future(causal() | prefix(3), 1, 1, 8, 8)
    Proof(holds=True, counterexample=Element(b=0, h=0, q_idx=0, kv_idx=1))
    """
    past = shift(causal(), q_offset=q_offset)
    leak = first_visible(_read(as_mask(mask) & (past ^ True), B, H, q_len, kv_len, device))
    return Proof(leak is not None, leak)


def _proof(found: Element | None) -> Proof:
    return Proof(found is None, found)


def _read(
    mask: MaskMod, B: int | None, H: int | None, q_len: int, kv_len: int, device: torch.device | str | None
) -> Reading:
    return read(mask, B, H, q_len, kv_len, device=device)


def first_visible(reading: Reading) -> Element | None:
    """A visible element, or None where there is provably none; which one is not specified."""
    if reading.traced:
        raise MaskTypeError(
            f"a proof of {reading.mask!r} inside a trace",
            "it looks at values",
            "Prove it outside the compiled function.",
        )
    if reading.is_empty:
        return None
    B, H = reading.lanes[:2]
    tokens = B * H * reading.sizes.q_len * reading.sizes.kv_len
    if reading.root is None or tokens <= _SMALL:
        return _search_all(reading, tokens)
    formula = simplified(normal(reading.root))
    if is_false(formula):
        return None
    return _search(reading, formula)


def _search(reading: Reading, formula: Formula) -> Element | None:
    """Depth first through the tiles that may hold a visible token."""
    analysis = reading.analysis((_LEAF, _LEAF), looks=True)
    levels = [1]
    lanes = analysis.lanes[0] * analysis.lanes[1]
    while levels[-1] < max(analysis.counts) and lanes * _tiles(analysis, levels[-1]) > _TOP_TILES:
        levels.append(levels[-1] * _STEP)
    stack = [(len(levels) - 1, tiles) for tiles in _all(analysis, levels[-1])]
    budget = _MOST_TOKENS
    while stack:
        level, tiles = stack.pop()
        ratio = levels[level]
        tiles = tiles.take(may(formula, Selection(analysis.blocks, ratio, *tiles)))
        if not tiles.count:
            continue
        if level == 0:
            budget -= tiles.count * _LEAF**2
            if (found := _visible_token(analysis, tiles)) is not None:
                return found
            if budget < 0:
                raise _undecided(reading)
            continue
        if (found := _visible_corner(analysis, tiles, ratio)) is not None:
            return found
        at_once = max(1, _TILES_AT_ONCE // _STEP**2)
        for start in range(0, tiles.count, at_once):
            part = TileList(*(x[start : start + at_once] for x in tiles))
            stack.append((level - 1, _divided(analysis, part, levels[level - 1])))
    return None


def _tiles(analysis: Analysis, ratio: int) -> int:
    rows, columns = (-(-n // ratio) for n in analysis.counts)
    return rows * columns


def _all(analysis: Analysis, ratio: int) -> Iterator[TileList]:
    """Every tile of so many blocks, some at a time."""
    (B, H), (rows, columns) = analysis.lanes, (-(-n // ratio) for n in analysis.counts)
    total = B * H * rows * columns
    for start in range(0, total, _TILES_AT_ONCE):
        place = torch.arange(start, min(total, start + _TILES_AT_ONCE), device=analysis.device)
        lane = place // (rows * columns)
        yield TileList(lane // H, lane % H, place // columns % rows, place % columns)


def _divided(analysis: Analysis, tiles: TileList, ratio: int) -> TileList:
    """Each tile as its parts of `ratio` blocks, leaving out what lies past the last block."""
    rows, columns = (-(-n // ratio) for n in analysis.counts)
    step = torch.arange(_STEP, device=tiles.q.device)
    shape = (tiles.count, _STEP, _STEP)
    q = (tiles.q.view(-1, 1, 1) * _STEP + step.view(-1, 1)).expand(shape).reshape(-1)
    kv = (tiles.kv.view(-1, 1, 1) * _STEP + step).expand(shape).reshape(-1)
    b, h = tiles.b.repeat_interleave(_STEP**2), tiles.h.repeat_interleave(_STEP**2)
    return TileList(b, h, q, kv).take((q < rows) & (kv < columns))


def _visible_corner(analysis: Analysis, tiles: TileList, ratio: int) -> Element | None:
    """A visible token among the corners of each tile: what is visible throughout is found at once."""
    ends = []
    for place, length in zip((tiles.q, tiles.kv), analysis.sizes[2:], strict=True):
        first = place * (ratio * _LEAF)
        ends.append(torch.stack([first, (first + (ratio * _LEAF - 1)).clamp(max=length - 1)], 1))
    q, kv = ends
    return _first(tiles, q, kv, analysis.tokens(tiles, q, kv))


def _visible_token(analysis: Analysis, tiles: TileList) -> Element | None:
    batch = analysis.at_once(_LEAF**2)
    for start in range(0, tiles.count, batch):
        part = TileList(*(x[start : start + batch] for x in tiles))
        q, kv = analysis.inside(part)
        if (found := _first(part, q, kv, analysis.tokens(part, q, kv))) is not None:
            return found
    return None


def _first(tiles: TileList, q: Tensor, kv: Tensor, seen: Tensor) -> Element | None:
    """The first True of seen (n, nq, nkv), at queries q (n, nq) and keys kv (n, nkv)."""
    if not bool(seen.any()):
        return None
    tile, row, column = (int(x) for x in seen.nonzero()[0])
    return Element(int(tiles.b[tile]), int(tiles.h[tile]), int(q[tile, row]), int(kv[tile, column]))


def _search_all(reading: Reading, tokens: int) -> Element | None:
    """Every token, some at a time: a small mask, or one that the analyser cannot record."""
    if tokens > _MOST_TOKENS:
        raise _undecided(reading)
    size = min(_OPAQUE_TILE, max(reading.sizes[2:]))
    analysis = reading.analysis((size, size), looks=True)
    at_once = analysis.at_once(size**2)
    for tiles in _all(analysis, 1):
        for start in range(0, tiles.count, at_once):
            part = TileList(*(x[start : start + at_once] for x in tiles))
            q, kv = analysis.inside(part)
            if (found := _first(part, q, kv, analysis.tokens(part, q, kv))) is not None:
                return found
    return None


def _undecided(reading: Reading) -> MaskValueError:
    return MaskValueError(
        f"a proof of {reading.mask!r} on {tuple(reading.sizes)}",
        f"the analyser leaves too much open ({reading.why}): more than {_MOST_TOKENS} tokens, which take minutes",
        "Prove it at smaller lengths, or write the predicate with comparisons of q_idx and kv_idx.",
    )
