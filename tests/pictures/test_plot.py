"""Figures: what each cell's colour says, several masks, differences, spans, and files that a paper can take."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy
import pytest
import torch

from maskmod import causal, dense_mask, document, full, per_head, plot, shift, sinks, sliding_window
from maskmod.errors import MaskTypeError, MaskValueError

matplotlib_figure = pytest.importorskip("matplotlib.figure")

A, B = causal() & sliding_window(5), causal() & document(torch.arange(20) // 6)


def image_of(panel) -> Any:
    return panel.images[0].get_array().round(2)


def colours(text: str) -> tuple[float, ...]:
    return tuple(round(int(text[i : i + 2], 16) / 255, 2) for i in (1, 3, 5))


def where(panel, colour: str) -> list:
    distance: Any = numpy.abs(image_of(panel) - colours(colour))
    return (distance.max(-1) < 0.011).tolist()


def legend_of(panel) -> list[str]:
    return [text.get_text() for text in panel.get_legend().get_texts()]


def test_a_plot_is_a_figure_whose_cells_are_the_mask():
    figure = plot(A, 20, 24)
    assert isinstance(figure, matplotlib_figure.Figure)
    (panel,) = figure.axes
    assert panel.get_title() == repr(A)
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("kv_idx", "q_idx")
    visible = dense_mask(A, 1, 1, 20, 24)[0, 0].tolist()
    assert where(panel, "#1d6a96") == visible
    assert where(panel, "#f4f1ea") == [[not v for v in row] for row in visible]
    assert legend_of(panel) == ["visible", "hidden"]
    # Element (0, 0) lies around the point (0, 0).
    assert panel.images[0].get_extent() == [-0.5, 23.5, 19.5, -0.5]


def test_several_masks_and_their_difference():
    figure = plot({"window": A, "packed": B}, 20, 20, difference=True)
    assert [panel.get_title() for panel in figure.axes] == ["window", "packed", "difference"]
    a, b = (dense_mask(m, 1, 1, 20, 20)[0, 0] for m in (A, B))
    last = figure.axes[-1]
    assert where(last, "#b9bfc4") == (a & b).tolist()
    assert where(last, "#c8553d") == (a & ~b).tolist()
    assert where(last, "#3c8d53") == (b & ~a).tolist()
    assert where(last, "#f4f1ea") == (~(a | b)).tolist()
    assert legend_of(last) == ["both see", "only window", "only packed", "neither"]


def test_spans_are_marked_along_both_axes():
    figure = plot(A, 20, 20, spans={"image": (4, 9), "text": [(0, 4), (9, 20)]})
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["image"] * 2 + ["text"] * 4
    only_keys = plot(A, 10, 20, spans={"image": (4, 9)})
    assert len(only_keys.axes[0].texts) == 1
    with pytest.raises(MaskValueError, match=r"plot\(spans=\{'image': \(4, 21\)\}\): not within 20 positions"):
        plot(A, 20, 20, spans={"image": (4, 21)})


def test_offsets_move_the_numbers_of_the_axes():
    panel = plot(shift(A, q_offset=16), 4, 20, q_offset=16).axes[0]
    assert panel.images[0].get_extent() == [-0.5, 19.5, 19.5, 15.5]


def test_a_head_is_chosen():
    two = per_head([full(), A])
    assert where(plot(two, 8, 8, H=2, h=1).axes[0], "#1d6a96") == dense_mask(A, 1, 1, 8, 8)[0, 0].tolist()
    with pytest.raises(MaskValueError, match=r"plot\(b=0, h=2\): B=1 and H=2"):
        plot(two, 8, 8, H=2, h=2)


def test_a_million_tokens_are_shares(tmp_path):
    n = 1 << 20
    panel = plot(causal() & (sliding_window(n // 8) | sinks(9)), n, n).axes[0]
    image = image_of(panel)
    assert image.shape == (512, 512, 3)
    assert tuple(image[300, 290]) == colours("#1d6a96")
    assert tuple(image[300, 310]) == colours("#f4f1ea")
    assert tuple(image[300, 100]) == colours("#f4f1ea")
    assert tuple(image[300, 0]) != colours("#f4f1ea")  # nine keys of 2048 stay seen
    assert legend_of(panel) == ["visible", "some of each", "hidden"]


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_it_is_saved(tmp_path, suffix):
    path = tmp_path / f"mask.{suffix}"
    plot([A, B], 20, 20, difference=True, spans={"image": (4, 9)}).savefig(path)
    assert path.stat().st_size > 5000
    if suffix == "svg":
        assert "sliding_window(5)" in path.read_text()


def test_nothing_is_outside_the_figure():
    """Titles, labels and legends lie within the figure, and over no other panel's box."""
    long = ((causal() & sliding_window(5)) | sinks(3)) & document(torch.arange(20) // 6) & sliding_window(17)
    figure = plot([long, A], 20, 20, difference=True, spans={"image": (4, 9)})
    figure.draw_without_rendering()
    width, height = figure.bbox.width, figure.bbox.height
    panels: list = figure.axes
    for panel in panels:
        parts = [panel.title, panel.xaxis.label, panel.yaxis.label, panel.get_legend(), *panel.texts]
        for part in parts:
            box = part.get_window_extent()
            assert box.x0 >= 0, part
            assert box.x1 <= width, part
            assert box.y0 >= 0, part
            assert box.y1 <= height, part
        legend, label = panel.get_legend().get_window_extent(), panel.xaxis.label.get_window_extent()
        assert legend.y1 <= label.y0


def test_bad_input():
    with pytest.raises(MaskValueError, match="3 masks, difference=True"):
        plot([A, B, A], 8, 8, difference=True)
    with pytest.raises(MaskValueError, match="no masks"):
        plot([], 8, 8)
    with pytest.raises(MaskValueError, match="nothing to draw"):
        plot(A, 0, 8)
    with pytest.raises(MaskTypeError, match="1 titles, 2 masks"):
        plot([A, B], 8, 8, titles=["one"])


def test_without_matplotlib_it_says_what_to_install():
    code = "import sys; sys.modules['matplotlib.figure'] = None\nimport maskmod\nmaskmod.plot(maskmod.causal(), 4, 4)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "matplotlib is not installed. Run: pip install 'maskmod[viz]'" in run.stderr
