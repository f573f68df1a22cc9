"""Choices that are made by whatever holds the dice: a seeded `random.Random`, or Hypothesis's own, which shrinks.

Each function gives a drawer: a function of the dice to a value.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

__all__ = ["Draw", "Drawer", "booleans", "composite", "integers", "lists", "none", "sampled_from"]

T = TypeVar("T")
Drawer: TypeAlias = Callable[[random.Random], T]
Draw: TypeAlias = Callable[[Drawer[Any]], Any]
"""What a composite draws with."""


def integers(least: int, most: int) -> Drawer[int]:
    return lambda dice: dice.randint(least, most)


def booleans() -> Drawer[bool]:
    return lambda dice: bool(dice.randint(0, 1))


def none() -> Drawer[None]:
    return lambda dice: None


def sampled_from(values: Sequence[T]) -> Drawer[T]:
    return lambda dice: values[dice.randint(0, len(values) - 1)]


def lists(entries: Drawer[T], length: int) -> Drawer[list[T]]:
    return lambda dice: [entries(dice) for _ in range(length)]


def composite(make: Callable[..., T]) -> Callable[..., Drawer[T]]:
    """A drawer made of others: ``make(draw, *arguments)`` draws with ``draw(drawer)``."""

    @functools.wraps(make)
    def with_arguments(*arguments: Any, **options: Any) -> Drawer[T]:
        return lambda dice: make(lambda drawer: drawer(dice), *arguments, **options)

    return with_arguments
