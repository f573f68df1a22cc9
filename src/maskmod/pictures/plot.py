"""Pictures for papers: masks side by side, their spans, and the difference of two, by matplotlib.

Up to `EXACT` queries and keys every element is drawn as it is; beyond, cells show the share that is visible, and what
the analyser settled is drawn as certain. matplotlib is imported when a picture is asked for.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from maskmod.algebra import MaskMod, as_mask, sizes_of
from maskmod.algebra.mask import And, Not
from maskmod.analyser.reading import Reading
from maskmod.dense import dense_mask
from maskmod.errors import MaskError, MaskTypeError, MaskValueError
from maskmod.pictures.shades import one_head, shades_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot"]

EXACT = 1024  # queries or keys up to which every element is evaluated
CELLS = 512  # cells along the longer side beyond
VISIBLE, HIDDEN, FIRST, SECOND, INK = "#1d6a96", "#f4f1ea", "#c8553d", "#3c8d53", "#1d2730"
_LINE = 0.16  # inches of a line of small print

Spans = Mapping[str, "tuple[int, int] | Sequence[tuple[int, int]]"]


def plot(
    mask: MaskMod | Sequence[MaskMod] | Mapping[str, MaskMod],
    q_len: int,
    kv_len: int,
    *,
    B: int = 1,
    H: int = 1,
    b: int = 0,
    h: int = 0,
    difference: bool = False,
    spans: Spans | None = None,
    q_spans: Spans | None = None,
    titles: Sequence[str] | None = None,
    q_offset: int = 0,
    kv_offset: int = 0,
    legend: bool = True,
    panel_inches: float = 3.2,
) -> Figure:
    """One mask, or several side by side, as a matplotlib Figure: ``plot(...).savefig("mask.svg")``.

    Args:
        mask: one mask, a sequence of them, or a mapping from titles to masks.
        B, H: the sizes the masks are read at; b, h: which row and head of them to draw.
        difference: of exactly two masks, a third panel: grey where they agree on visible, one colour where only the
            first sees, another where only the second does.
        spans: named stretches of keys, ``{"image": (4, 9)}``, first and one past last, marked along both axes where
            q_len == kv_len, else along the keys alone; q_spans: the same along the queries.
        titles: one for each mask; the default is the mask's own text.
        q_offset, kv_offset: what the axes' numbers start from.
        legend: whether to say below what the colours mean.
        panel_inches: the longer side of a panel.

    Raises:
        MaskError: matplotlib is not installed.
        MaskValueError: there is nothing to draw, a difference of other than two masks, or a span out of range.

    >>> from maskmod import causal, sliding_window
    >>> figure = plot([causal(), causal() & sliding_window(4)], 16, 16, difference=True)
    >>> [panel.get_title() for panel in figure.axes]
    ['causal()', 'causal() & sliding_window(4)', 'difference']
    """
    panels = _panels(mask, titles)
    if difference and len(panels) != 2:
        raise MaskValueError(f"plot({len(panels)} masks, difference=True)", "not two", "Pass [first, second].")
    if q_len < 1 or kv_len < 1:
        raise MaskValueError(f"plot(q_len={q_len}, kv_len={kv_len})", "nothing to draw", "Pass lengths of 1 or more.")
    q_spans = q_spans or (spans if q_len == kv_len else None)
    for name, length, given in (("spans", kv_len, spans), ("q_spans", q_len, q_spans)):
        _check_spans(name, given, length)
    readings = [one_head(as_mask(m), sizes_of(as_mask(m), B, H, q_len, kv_len), b, h, "plot") for _, m in panels]
    grids = [_grid(reading) for reading in readings]
    pictures: list[tuple[str, Any, list[tuple[str, str]]]] = []
    for (title, _), (share, certain) in zip(panels, grids, strict=True):
        keys = [(VISIBLE, "visible"), (HIDDEN, "hidden")]
        if not bool(certain.all()):
            keys.insert(1, (_mixed(0.5), "some of each"))
        pictures.append((title, _coloured(share), keys))
    if difference:
        pictures.append(_difference(panels, readings))
    figure, axes = _figure([title for title, *_ in pictures], q_len, kv_len, panel_inches, bool(spans), legend)
    for panel, (_, image, keys) in zip(axes, pictures, strict=True):
        extent = (kv_offset - 0.5, kv_offset + kv_len - 0.5, q_offset + q_len - 0.5, q_offset - 0.5)
        panel.imshow(image, extent=extent, interpolation="nearest", aspect="auto")
        _dress(panel, q_len, kv_len, q_offset, kv_offset)
        _mark(panel, spans, q_spans, q_offset, kv_offset)
        if legend:
            _explain(figure, panel, keys)
    return figure


def _panels(mask: Any, titles: Sequence[str] | None) -> list[tuple[str, MaskMod]]:
    if isinstance(mask, Mapping):
        panels = list(mask.items())
    elif isinstance(mask, (list, tuple)):
        panels = [(repr(as_mask(m)), m) for m in mask]
    else:
        panels = [(repr(as_mask(mask)), mask)]
    if not panels:
        raise MaskValueError("plot([])", "no masks", "Pass a mask, or several.")
    if titles is not None:
        if isinstance(titles, str) or len(titles) != len(panels):
            count = 1 if isinstance(titles, str) else len(titles)
            raise MaskTypeError(
                f"plot(titles={titles!r})", f"{count} titles, {len(panels)} masks", "Pass one for each."
            )
        panels = [(title, m) for title, (_, m) in zip(titles, panels, strict=True)]
    return panels


def _check_spans(name: str, spans: Spans | None, length: int) -> None:
    for label, stretches in (spans or {}).items():
        for start, end in _stretches(stretches):
            if not 0 <= start < end <= length:
                written = f"plot({name}={{{label!r}: ({start}, {end})}})"
                raise MaskValueError(written, f"not within {length} positions", "Give first and one past last.")


def _stretches(stretches: Any) -> list[tuple[int, int]]:
    return [stretches] if stretches and isinstance(stretches[0], int) else list(stretches)


def _grid(reading: Reading) -> tuple[Tensor, Tensor]:
    """(share, certain), a cell for each element or for many."""
    _, _, q_len, kv_len = reading.sizes
    longest = max(q_len, kv_len)
    if longest <= EXACT:
        share = dense_mask(reading.mask, *reading.sizes)[0, 0].float()
        return share, torch.ones_like(share, dtype=torch.bool)
    share, certain, _ = shades_of(reading, -(-longest // CELLS))
    return share, certain


def _rgb(colour: str) -> Tensor:
    return torch.tensor([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def _mixed(share: float) -> str:
    mixed = _rgb(HIDDEN) + (_rgb(VISIBLE) - _rgb(HIDDEN)) * share
    return "#" + "".join(f"{round(float(c) * 255):02x}" for c in mixed)


def _coloured(share: Tensor, colour: str = VISIBLE) -> Any:  # (rows, columns, 3)
    thin = torch.where(share > 0, share.clamp(min=0.15), share)  # a thin line stays seen
    return (_rgb(HIDDEN) + (_rgb(colour) - _rgb(HIDDEN)) * thin.unsqueeze(-1)).numpy()


def _difference(panels: list[tuple[str, MaskMod]], readings: list[Reading]) -> tuple[str, Any, list[tuple[str, str]]]:
    first, second = (reading.mask for reading in readings)
    parts = []
    for mask in (And(first, second), And(first, Not(second)), And(second, Not(first))):
        parts.append(_grid(one_head(mask, readings[0].sizes, 0, 0, "plot"))[0])
    agreed = "#b9bfc4"
    image = _rgb(HIDDEN).expand(*parts[0].shape, 3).clone()
    for share, colour in zip(parts, (agreed, FIRST, SECOND), strict=True):
        thin = torch.where(share > 0, share.clamp(min=0.15), share).unsqueeze(-1)
        image = image + (_rgb(colour) - image) * thin
    names = [
        title if len(title) <= 24 else word
        for (title, _), word in zip(panels, ("the first", "the second"), strict=True)
    ]
    keys = [(agreed, "both see"), (FIRST, f"only {names[0]}"), (SECOND, f"only {names[1]}"), (HIDDEN, "neither")]
    return "difference", image.numpy(), keys


def _figure(
    titles: list[str], q_len: int, kv_len: int, inches: float, marked: bool, legend: bool
) -> tuple[Figure, list[Axes]]:
    """A figure with a box for each panel, in which an element is square unless that would be too thin to see."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MaskError("plot(...)", "matplotlib is not installed", "Run: pip install 'maskmod[viz]'") from error

    longest = max(q_len, kv_len)
    width, height = (max(inches * n / longest, inches / 3) for n in (kv_len, q_len))
    wrapped = ["\n".join(textwrap.wrap(title, max(16, int(width / 0.072)))[:4]) for title in titles]
    left, right, bottom = 0.75, 0.35, 0.45 + 2 * _LINE * legend
    top = 0.15 + _LINE * max(title.count("\n") + 1 for title in wrapped) + 0.2 * marked
    step = left + width + right
    size = (step * len(titles), bottom + height + top)
    figure = Figure(figsize=size, dpi=150)
    axes = []
    for place, title in enumerate(wrapped):
        box = ((place * step + left) / size[0], bottom / size[1], width / size[0], height / size[1])
        panel = figure.add_axes(box)
        panel.set_title(title, fontsize=8, fontfamily="monospace", pad=20 if marked else 6)
        axes.append(panel)
    return figure, axes


def _dress(panel: Axes, q_len: int, kv_len: int, q_offset: int, kv_offset: int) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    panel.set_xlabel("kv_idx", fontsize=7, labelpad=2)
    panel.set_ylabel("q_idx", fontsize=7, labelpad=2)
    for axis, length in ((panel.xaxis, kv_len), (panel.yaxis, q_len)):
        axis.set_major_locator(MaxNLocator(6 if length < 100_000 else 4, integer=True))
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    panel.tick_params(labelsize=6.5)
    if max(q_len, kv_len) <= 48:  # elements apart
        panel.set_xticks([kv_offset + i - 0.5 for i in range(1, kv_len)], minor=True)
        panel.set_yticks([q_offset + i - 0.5 for i in range(1, q_len)], minor=True)
        panel.grid(which="minor", color="white", linewidth=0.8)
        panel.tick_params(which="minor", length=0)
    for side in panel.spines.values():
        side.set_color("#c9ced3")


def _mark(panel: Axes, spans: Spans | None, q_spans: Spans | None, q_offset: int, kv_offset: int) -> None:
    """Named stretches as bars on the upper and the right edge, with hairlines across the mask."""
    for given, offset, along_keys in ((spans, kv_offset, True), (q_spans, q_offset, False)):
        for label, stretches in (given or {}).items():
            for start, end in _stretches(stretches):
                a, z = offset + start - 0.5, offset + end - 0.5
                line = panel.axvline if along_keys else panel.axhline
                for edge in (a, z):
                    line(edge, color=INK, linewidth=0.5, alpha=0.45, linestyle=(0, (3, 2)))
                where: dict[str, Any] = {
                    "transform": panel.get_xaxis_transform() if along_keys else panel.get_yaxis_transform()
                }
                gap = min(0.15, (z - a) / 8)  # between one stretch and the next
                ends, edge = [a + gap, z - gap], [1.015, 1.015]
                bar = (ends, edge) if along_keys else (edge, ends)
                panel.plot(*bar, color=INK, linewidth=2, solid_capstyle="butt", clip_on=False, **where)
                middle = (a + z) / 2
                if along_keys:
                    panel.text(middle, 1.03, label, ha="center", va="bottom", fontsize=7, **where)
                else:
                    panel.text(1.03, middle, label, ha="left", va="center", fontsize=7, rotation=-90, **where)


def _explain(figure: Figure, panel: Axes, keys: list[tuple[str, str]]) -> None:
    from matplotlib.patches import Patch

    box = panel.get_position()
    panel.legend(
        handles=[Patch(facecolor=colour, edgecolor="#c9ced3", label=text) for colour, text in keys],
        loc="lower center",
        bbox_to_anchor=(box.x0 + box.width / 2, 0),
        bbox_transform=figure.transFigure,
        ncols=2,
        frameon=False,
        fontsize=6.5,
        handlelength=1.1,
        columnspacing=1.2,
        labelspacing=0.3,
    )
