"""What a ragged plan's backends are made from, and the shape of what they hold."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from maskmod.algebra import Mask, Sizes
from maskmod.backends.protocol import Lowered
from maskmod.facts.structure import Band, band_of
from maskmod.serving.tokens import OfGathered, OfPages

__all__ = ["Holder", "RaggedStep", "band_of_any_length"]

_ANY_LENGTH = 1 << 40  # requests of any length: what a band proves must not hang on it


class RaggedStep(NamedTuple):
    """What a plan's arguments are made from."""

    written: Mask
    where: OfPages | OfGathered
    mask: Mask  # over tokens and slots
    sizes: Sizes
    dtype: torch.dtype
    device: torch.device
    spelled: str
    block_size: int


def band_of_any_length(mask: Mask) -> Band | None:
    """The diagonal band that a mask is in requests of whatever length, or None."""
    return band_of(mask, _ANY_LENGTH, _ANY_LENGTH)


class Holder:
    """Buffers of one backend."""

    args: Lowered
    reads_keys = False
    """Whether the tables over gathered keys are read at every step."""

    def buffers(self) -> list[Tensor]:
        raise NotImplementedError

    def lines(self) -> list[str]:
        raise NotImplementedError

    def write_(self) -> None:
        raise NotImplementedError
