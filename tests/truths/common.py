"""One truth, the sizes that it is read at, and tables made of formulas."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from maskmod import Mask
from oracle import Spec

__all__ = ["SIZES", "Truth", "chance", "heads", "row", "rows"]

SIZES = ((2, 2, 37, 53), (1, 1, 48, 48), (2, 1, 70, 9))


class Truth(NamedTuple):
    """``build(B, H, q_len, kv_len)`` makes the mask of the catalog's entry; ``rule(b, h, q, k)`` says what it means."""

    name: str
    build: Callable[[int, int, int, int], Mask]
    rule: Spec
    sizes: tuple[tuple[int, int, int, int], ...] = SIZES


def row(formula: Callable[[int], Any], n: int) -> torch.Tensor:
    """A table (n,) of ``formula(i)``."""
    return torch.tensor([formula(i) for i in range(n)])


def rows(formula: Callable[[int, int], Any], B: int, n: int) -> torch.Tensor:
    """A table (B, n) of ``formula(b, i)``."""
    return torch.tensor([[formula(b, i) for i in range(n)] for b in range(B)])


def heads(formula: Callable[..., Any], B: int, H: int, *shape: int) -> torch.Tensor:
    """A table (B, H, ...) of ``formula(b, h, ...)``."""

    def fill(at: tuple[int, ...], shape: tuple[int, ...]):
        return [fill((*at, i), shape[1:]) for i in range(shape[0])] if shape else formula(*at)

    return torch.tensor(fill((), (B, H, *shape)))


def chance(p: float, *at: int) -> bool:
    """A draw that is the same wherever it is asked for."""
    return random.Random(repr(at)).random() < p
