"""Read a mask as a tensor, boolean or additive. This module decides how to evaluate, never what a mask means."""

from __future__ import annotations

import torch
from torch import Tensor

from maskmod._torch.tracing import known_true, readable
from maskmod.algebra import MaskMod
from maskmod.analyser.reading import Reading, read
from maskmod.blocks.paint import paint
from maskmod.errors import MaskTypeError, MaskValueError
from maskmod.oracle import reads_b_and_h, vmap_of

__all__ = ["additive_bias", "bias_from_bool", "dense_mask", "dense_of", "shared"]


def dense_mask(
    mask: MaskMod,
    B: int | None,
    H: int | None,
    q_len: int,
    kv_len: int,
    *,
    device: torch.device | str | None = None,
    method: str = "auto",
) -> Tensor:
    """The mask as bool ``(B, H, q_len, kv_len)``, True = visible; the same bits whatever the method.

    The result may be an expanded view: an index that the predicate does not read has stride 0. Clone it before writing.

    Args:
        mask: any callable ``(b, h, q_idx, kv_idx) -> bool``.
        B, H: sizes; None means 1.
        device: None takes the device of the mask's own tensors, else torch's default.
        method: "vmap", "blocks" (fill whole blocks, evaluate partial ones; needs a predicate that the analyser can
            record, and no trace), or "auto": blocks where they apply, else vmap.

    >>> from maskmod import causal
    >>> dense_mask(causal(), 1, 1, 2, 2).tolist()
    [[[[True, False], [True, True]]]]
    """
    if method not in ("auto", "vmap", "blocks"):
        raise MaskValueError(f"dense_mask(method={method!r})", "no such method", 'Pass "auto", "vmap" or "blocks".')
    return dense_of(read(mask, B, H, q_len, kv_len, device=device), method)


def dense_of(reading: Reading, method: str = "auto") -> Tensor:
    """`dense_mask` of a mask that was read."""
    mask, painted = reading.mask, None
    here = all(tensor.device.type == reading.device.type for tensor in mask.tensors() if tensor.dim())
    if method != "vmap" and here and readable(*mask.tensors()):  # painted where the tables are, never elsewhere
        painted = paint(reading)
    if painted is None and method == "blocks":
        raise MaskValueError(
            f'dense_mask({mask!r}, method="blocks")', "it cannot be painted here", 'Pass method="auto" or "vmap".'
        )
    return vmap_of(mask, reading.sizes, reading.device) if painted is None else painted


def additive_bias(
    mask: MaskMod,
    B: int | None,
    H: int | None,
    q_len: int,
    kv_len: int,
    *,
    dtype: torch.dtype,
    device: torch.device | str | None = None,
    hidden: float | None = None,
) -> Tensor:
    """The mask as a bias to add to attention scores: 0 where visible, ``hidden`` elsewhere, ``(B, H, q_len, kv_len)``.

    Built from the boolean by one `torch.where`; biases of two masks must never be added (two minima overflow to
    -inf): combine the masks instead. A row that sees nothing gets ``hidden`` everywhere, which softmax turns into
    uniform weights for the default and into NaN for -inf.

    Args:
        dtype: a floating dtype.
        hidden: the value for hidden keys; None takes ``torch.finfo(dtype).min``.

    >>> from maskmod import causal
    >>> additive_bias(causal(), 1, 1, 2, 2, dtype=torch.float32, hidden=-1e9)[0, 0].tolist()
    [[0.0, -1000000000.0], [0.0, 0.0]]
    """
    if not dtype.is_floating_point:
        raise MaskTypeError(f"additive_bias(dtype={dtype})", "a bias is added to scores", "Pass a floating dtype.")
    visible = dense_mask(mask, B, H, q_len, kv_len, device=device)
    return bias_from_bool(visible, dtype, torch.finfo(dtype).min if hidden is None else hidden)


def bias_from_bool(visible: Tensor, dtype: torch.dtype, hidden: float) -> Tensor:
    """0 where visible, ``hidden`` elsewhere."""
    zero = torch.zeros((), dtype=dtype, device=visible.device)
    return torch.where(visible, zero, torch.full((), hidden, dtype=dtype, device=visible.device))


def shared(reading: Reading) -> Reading:
    """The same mask read at 1 for B, or H, where one mask serves every row, or every head.

    A table of B rows keeps B even where it makes no difference (`shift(full(), q_offset=rows)`): it fits no other size.
    """
    mask, sizes = reading.mask, reading.sizes
    if not reading.traced and reading.root is not None:
        lanes = reading.lanes
    else:
        reads_b, reads_h = reads_b_and_h(mask, device=reading.device)
        lanes = sizes._replace(B=sizes.B if reads_b else 1, H=sizes.H if reads_h else 1)
    if any(tensor.dim() and known_true(tensor.shape[0] == sizes.B) for tensor in mask.tensors()):
        lanes = lanes._replace(B=sizes.B)
    return reading.at(lanes.B, lanes.H)
