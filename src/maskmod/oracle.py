"""The oracle: a predicate lifted over every index by nested `torch.vmap`. This is what a mask means.

Every other path in the library is a fast path and is tested equal to this one. Nothing here looks inside a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskmod._torch.tracing import known_true, tracing
from maskmod._torch.workarounds import storable
from maskmod.algebra import Index, Mask, MaskMod, Sizes, as_mask, device_of, sizes_of, spell
from maskmod.algebra.slips import Slip, place_of, slip_at
from maskmod.errors import MaskError, MaskShapeError, MaskTypeError, TruthValueError

__all__ = ["reads_b_and_h", "scalar_bool", "vmap_at", "vmap_mask", "vmap_of"]


def vmap_mask(
    mask: MaskMod, B: int | None, H: int | None, q_len: int, kv_len: int, *, device: torch.device | str | None = None
) -> Tensor:
    """The meaning of a mask: bool ``(B, H, q_len, kv_len)``, True = visible.

    The result may be an expanded view: an index that the predicate does not read has stride 0. Clone it before writing.

    Args:
        mask: any callable ``(b, h, q_idx, kv_idx) -> bool``.
        B, H: sizes; None means 1.
        device: where the indices live; None takes the device of the mask's own tensors, else torch's default.

    Raises:
        MaskShapeError: a table of the mask is too short for these sizes, or the predicate returned more than a scalar.
        MaskTypeError: the predicate returned something that is no bool.
        TruthValueError: the predicate used ``and``, ``or``, ``not`` or ``if`` on an index.

    >>> vmap_mask(lambda b, h, q_idx, kv_idx: kv_idx <= q_idx, 1, 1, 2, 3).int().tolist()
    [[[[1, 0, 0], [1, 1, 0]]]]
    """
    mask = as_mask(mask)
    sizes = sizes_of(mask, B, H, q_len, kv_len)
    return vmap_of(mask, sizes, device_of(mask, device))


def vmap_of(mask: Mask, sizes: Sizes, device: torch.device) -> Tensor:
    """`vmap_mask` at sizes that were checked."""
    if any(known_true(size == 0) for size in sizes):
        return torch.empty(sizes, dtype=torch.bool, device=device)
    return _lift(mask, [torch.arange(size, device=device) for size in sizes])


def reads_b_and_h(mask: MaskMod, *, device: torch.device | str | None = None) -> tuple[bool, bool]:
    """Whether the predicate reads the batch index, and the head index: found out by tracing it once, never asked.

    The lift of a probe of one query and one key has stride 0 along an index that the predicate does not read. Works
    inside a graph.

    >>> reads_b_and_h(lambda b, h, q_idx, kv_idx: q_idx - kv_idx < h)
    (False, True)
    """
    mask = as_mask(mask)
    index = torch.zeros(
        2, dtype=torch.int64, device=device_of(mask, device)
    )  # row 0 and head 0, twice: always in range
    probe = _lift(mask, [index, index, index[:1], index[:1]])
    return probe.stride(0) != 0, probe.stride(1) != 0


def vmap_at(mask: Mask, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
    """The meaning of a mask on tiles: lanes (n,), queries (n, nq) and keys (n, nkv) to bool (n, nq, nkv)."""

    def scalar(b: Index, h: Index, q_idx: Index, kv_idx: Index) -> Tensor:
        return scalar_bool(mask, mask(b, h, q_idx, kv_idx), q_idx.device)

    lifted = scalar
    for in_dims in ((None, None, None, 0), (None, None, 0, None), (0, 0, 0, 0)):
        lifted = torch.vmap(lifted, in_dims=in_dims)
    return _run(mask, lifted, [b, h, q_idx, kv_idx])


def _lift(mask: Mask, indices: list[Tensor]) -> Tensor:
    def scalar(b: Index, h: Index, q_idx: Index, kv_idx: Index) -> Tensor:
        return storable(scalar_bool(mask, mask(b, h, q_idx, kv_idx), q_idx.device))

    lifted = scalar
    for axis in (3, 2, 1, 0):  # innermost first: the batch index is mapped last and so becomes the leading dimension
        lifted = torch.vmap(lifted, in_dims=tuple(0 if i == axis else None for i in range(4)))
    return _run(mask, lifted, indices)


def _run(mask: Mask, lifted: Callable[..., Tensor], indices: list[Tensor]) -> Tensor:
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    # The mode makes `table[idx]` with a traced 0-d index a gather; without it torch asks the index for its value.
    with TransformGetItemToIndex():
        if tracing():
            return lifted(*indices)
        try:
            return lifted(*indices)
        except (RuntimeError, TypeError) as error:
            if isinstance(error, MaskError):
                raise
            if "data-dependent control flow" in str(error) or ".item()" in str(error):
                raise _truth_value(mask, error) from error
            slip = _slip(error)
            if slip is not None and slip.kind in ("numpy", "list"):
                raise MaskTypeError(_placed(mask, error), slip.seen, slip.todo) from error
            if "random operation" in str(error):
                raise randomness(mask) from error
            elsewhere = {tensor.device for tensor in mask.tensors() if tensor.dim()} - {indices[0].device}
            if elsewhere:
                raise MaskTypeError(
                    f"{mask!r} read on {indices[0].device}",
                    f"it holds tensors on {' and '.join(sorted(map(str, elsewhere)))}",
                    f'Move them: mask.to("{indices[0].device}").',
                ) from error
            raise


def scalar_bool(mask: MaskMod, result: Any, device: torch.device) -> Tensor:
    """What a predicate returned for one index each, as a 0-d bool tensor; an error for anything that is none."""
    if isinstance(result, bool):
        return torch.full((), result, device=device)
    if not isinstance(result, Tensor) or result.dtype != torch.bool:
        seen = spell(result) if isinstance(result, Tensor) else f"a {type(result).__name__}"
        raise MaskTypeError(
            f"{mask!r} called with one index each",
            f"it returned {seen}, not a bool",
            "A mask says which keys are visible: compare (`x != 0`); a bias belongs in a score_mod.",
        )
    if result.dim():
        raise MaskShapeError(
            f"{mask!r} called with one index each",
            f"it returned {spell(result)}, not a scalar",
            "Reduce it with .any() or .all(), or index the table with every index it has.",
        )
    return result


def randomness(mask: object) -> MaskTypeError:
    """The error for a predicate that draws random numbers."""
    return MaskTypeError(
        mask,
        "the predicate draws random numbers, so it would say something else each time that it is read",
        "Draw a table once, outside, and look it up: `table[q_idx, kv_idx]`.",
    )


def _truth_value(mask: Mask, error: Exception) -> TruthValueError:
    slip = _slip(error)
    if slip is not None:
        return TruthValueError(_placed(mask, error), slip.seen, slip.todo)
    return TruthValueError(
        _placed(mask, error),
        "the predicate asks a tensor for its truth value or its number: `and`, `or`, `not`, `if`, `.item()`",
        "Write `&`, `|`, `x ^ True`, and torch.where(condition, a, b).",
    )


def _placed(mask: Mask, error: Exception) -> str:
    place = place_of(error)
    return f"{mask!r} evaluated by vmap" if place is None else f"{mask!r} at {place}"


def _slip(error: Exception) -> Slip | None:
    place = place_of(error)
    return None if place is None else slip_at(place)
