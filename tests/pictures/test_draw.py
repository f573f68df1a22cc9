"""Drawings, as goldens."""

import re
import textwrap
import time
from typing import Any

import pytest
import torch

from maskmod import causal, document, draw, full, key_padding, per_head, shift, sinks, sliding_window, window
from maskmod.errors import MaskValueError


def golden(text: str) -> str:
    return textwrap.dedent(text).strip("\n")


@pytest.mark.parametrize(
    ("mask", "options", "picture"),
    [
        (
            causal() & (sliding_window(2) | sinks(1)),
            {},
            """
            causal() & (sliding_window(2) | sinks(1))  q_len=4 kv_len=5
            # . . . .
            # # . . .
            # # # . .
            # . # # .
            """,
        ),
        (
            causal() & document(torch.tensor([0, 0, 1, 1, 1])),
            {},
            """
            causal() & document(int64[5])  q_len=4 kv_len=5
            # . . . .
            # # . . .
            . . # . .
            . . # # .
            """,
        ),
        (
            per_head([full(), window(0, 0)]),
            {"H": 2, "h": 1},
            """
            per_head([full(), window(0, 0)])  q_len=4 kv_len=5 b=0 h=1
            # . . . .
            . # . . .
            . . # . .
            . . . # .
            """,
        ),
        (
            shift(causal(), q_offset=1) & key_padding(torch.tensor([5, 2])),
            {"B": 2, "b": 1},
            """
            shift(causal(), q_offset=1) & key_padding(int64[2])  q_len=4 kv_len=5 b=1 h=0
            # # . . .
            # # . . .
            # # . . .
            # # . . .
            """,
        ),
    ],
    ids=lambda value: None if isinstance(value, (dict, str)) else str(value),
)
def test_pictures(mask, options: dict[str, Any], picture: str):
    assert draw(mask, 4, 5, **options) == golden(picture)


def test_a_picture_without_tokens_is_its_header():
    assert draw(causal(), 0, 3) == "causal()  q_len=0 kv_len=3"


def test_a_function_is_drawn_by_its_name():
    def odd(b, h, q_idx, kv_idx):
        return kv_idx % 2 == 1

    assert draw(odd, 1, 4).splitlines() == [
        "test_a_function_is_drawn_by_its_name.<locals>.odd  q_len=1 kv_len=4",
        ". # . #",
    ]


# -------------------------------------------------------------------------------------------------------- shades

MILLION = 1 << 20


def test_a_long_mask_is_drawn_in_shades():
    mask = causal() & (sliding_window(120) | sinks(32))
    assert draw(mask, 258, 64) == golden(
        """
        causal() & (sliding_window(120) | sinks(32))  q_len=258 kv_len=64 cells of 8 (. empty, # full, :-=+*% between)
        + . . . . . . .
        # + . . . . . .
        # # + . . . . .
        # # # + . . . .
        # # # # + . . .
        # # # # # + . .
        # # # # # # + .
        # # # # # # # +
        # # # # # # # #
        # # # # # # # #
        # # # # # # # #
        # # # # # # # #
        # # # # # # # #
        # # # # # # # #
        # # # # # # # #
        # # # # # # # #
        # # # # # # # #
        # # # # # # # #
        # # # # # # # #
        # # # # = # # #
        # # # # . = # #
        # # # # . . = #
        # # # # . . . =
        # # # # . . . .
        # # # # . . . .
        # # # # . . . .
        # # # # . . . .
        # # # # . . . .
        # # # # . . . .
        # # # # . . . .
        # # # # . . . .
        # # # # . . . .
        # # # # . . . .
        """
    )


def grid(picture: str) -> list[list[str]]:
    return [line.split(" ") for line in picture.splitlines()[1:]]


@pytest.mark.parametrize("q_len", [300, 4096])
def test_shades_are_sound(q_len: int):
    kv_len = q_len - 7
    mask = (causal() & (sliding_window(q_len // 9) | sinks(q_len // 40))) | window(3, 0)
    picture = draw(mask, q_len, kv_len)
    cell = int(picture.splitlines()[0].partition("cells of ")[2].partition(" ")[0])
    rows = grid(picture)
    assert len(rows) == -(-q_len // cell) <= 64
    q, k = torch.arange(q_len).view(-1, 1), torch.arange(kv_len)
    ramp = ":-=+*%"
    seen = set()
    for y in range(len(rows)):
        for x, mark in enumerate(rows[y]):
            inside = mask(0, 0, q[y * cell : (y + 1) * cell], k[x * cell : (x + 1) * cell])
            share = float(inside.float().mean())
            seen.add(mark)
            if mark == "#":
                assert share == 1
            elif mark == ".":
                assert share == 0
            else:
                assert abs((ramp.index(mark) + 0.5) / len(ramp) - share) < 0.3, (y, x, mark, share)
    assert {"#", "."} <= seen


def test_a_million_tokens_take_less_than_a_second_for_any_mask():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 1000, (MILLION,), generator=generator)
    masks = {
        "documents": causal() & document(ids.sort()[0]),
        "mixed ids": document(ids),
        "a hash": lambda b, h, q_idx, kv_idx: (q_idx * 2654435761 + kv_idx * 40503) % 1009 < 100,
        "not analysed": lambda b, h, q_idx, kv_idx: torch.sin((q_idx * kv_idx).double()) > 0.9,
        "refused": lambda b, h, q_idx, kv_idx: torch.stack([q_idx, kv_idx]).amax(0) % 7 == 0,
    }
    draw(masks["refused"], 1000, 1000)  # what torch imports once
    for name, mask in masks.items():
        start = time.process_time()
        rows = grid(draw(mask, MILLION, MILLION))
        assert time.process_time() - start < 1, name
        assert len(rows) == 64
    assert {cell for row in grid(draw(masks["a hash"], MILLION, MILLION)) for cell in row} <= {":", "-"}


def test_an_undecided_cell_is_never_drawn_as_certain():
    rare = draw(lambda b, h, q_idx, kv_idx: torch.sin(q_idx * 1.0 + kv_idx) > 2, 1000, 1000)
    assert {cell for row in grid(rare) for cell in row} <= {":", "-"}


def test_colours_say_the_same():
    plain, coloured = (draw(causal(), 3, 3, color=color) for color in (False, True))
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain
    assert coloured.splitlines()[1] == "\x1b[1;38;5;32m# \x1b[38;5;245m. .\x1b[0m"


def test_the_row_and_head_must_exist():
    with pytest.raises(MaskValueError, match=r"draw\(b=1, h=0\): B=1 and H=1"):
        draw(causal(), 3, 3, b=1)
