"""Tables as a page holds them: short where they are regular, exact always. `support.js` decodes them."""

from __future__ import annotations

import base64
from typing import Any

import torch
from torch import Tensor

__all__ = ["encoded", "runs_of"]

_MOST_RUNS = 4096


def encoded(values: Tensor) -> dict[str, Any]:
    """Values in order, as the page decodes them: runs of equal steps where those are few, else base64."""
    flat = values.detach().cpu().reshape(-1)
    n = flat.numel()
    if flat.dtype == torch.bool:
        flat = flat.to(torch.uint8)
        weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
        packed = (torch.nn.functional.pad(flat, (0, -n % 8)).view(-1, 8) * weights).sum(1, dtype=torch.uint8)
        raw = {"kind": "bits", "n": n, "data": _base64(packed)}
    elif flat.dtype.is_floating_point:
        return {"kind": "f64", "n": n, "data": _base64(flat.double())}
    else:
        low, high = (int(flat.min()), int(flat.max())) if n else (0, 0)
        narrow = next(
            (
                d
                for d, bits in ((torch.int8, 7), (torch.int16, 15), (torch.int32, 31))
                if -(1 << bits) <= low <= high < 1 << bits
            ),
            torch.float64,
        )
        raw = {"kind": {torch.int8: "i8", torch.int16: "i16", torch.int32: "i32"}.get(narrow, "f64"), "n": n}
        if (runs := runs_of(flat.long())) is not None:
            return {**raw, "kind": f"runs {raw['kind']}", "data": runs}
        raw["data"] = _base64(flat.to(narrow))
    if (runs := runs_of(flat.long())) is not None and len(runs) * 4 < len(raw["data"]):
        return {"kind": "runs i8", "n": n, "data": runs}
    return raw


def runs_of(flat: Tensor) -> list[int] | None:
    """[start, step, count, ...]: stretches of equal steps; None if there are too many to be worth it."""
    n = flat.numel()
    if n < 2:
        return [int(flat[0]), 0, 1] if n else []
    steps = flat[1:] - flat[:-1]
    changes = (steps[1:] != steps[:-1]).nonzero().flatten() + 1
    if changes.numel() > 2 * _MOST_RUNS:
        return None
    runs: list[int] = []
    place, ends = 0, [*changes.tolist(), n - 1]
    values, differences = flat, steps
    for end in ends:  # positions place..end share one step
        if end < place:
            continue
        runs += [int(values[place]), int(differences[place]) if place < n - 1 else 0, end - place + 1]
        place = end + 1
    if place < n:
        runs += [int(values[place]), 0, n - place]
    return runs if len(runs) <= 3 * _MOST_RUNS else None


def _base64(values: Tensor) -> str:
    return base64.b64encode(values.contiguous().numpy().tobytes()).decode()
