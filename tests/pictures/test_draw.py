"""Drawings, as goldens."""

import textwrap
from typing import Any

import pytest
import torch

from maskmod import causal, document, draw, full, key_padding, per_head, shift, sinks, sliding_window, window


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
