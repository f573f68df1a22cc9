"""Masks as objects, the sizes they are read at, and tables by index. Nothing here knows a particular mask."""

from maskmod.algebra.mask import (
    And,
    Func,
    Index,
    Mask,
    MaskMod,
    Not,
    Or,
    Xor,
    as_mask,
    conjuncts,
    fold,
    leaves,
    mask_mod,
    same_structure,
)
from maskmod.algebra.sizes import Sizes, device_of, sizes_of
from maskmod.algebra.structure import spell, structure

__all__ = [
    "And",
    "Func",
    "Index",
    "Mask",
    "MaskMod",
    "Not",
    "Or",
    "Sizes",
    "Xor",
    "as_mask",
    "conjuncts",
    "device_of",
    "fold",
    "leaves",
    "mask_mod",
    "same_structure",
    "sizes_of",
    "spell",
    "structure",
]
