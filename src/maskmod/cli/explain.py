"""What a mask is, proven, and what each backend would get of it: text and JSON of ``python -m maskmod explain``.

Every line is a fact of the mask at these sizes, not of its spelling. What would take a dense mask of more than 64 MiB,
or a table of millions of blocks, is not lowered here; what a layout cannot say is told with the element that shows it.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskmod.algebra import Mask
from maskmod.analyser.reading import Reading, read
from maskmod.attention import select_backend
from maskmod.backends import registry
from maskmod.backends.refusals import Inexpressible
from maskmod.errors import MaskError
from maskmod.facts.proofs import Element, leaks_future
from maskmod.facts.recognise import proven_band, proven_packed
from maskmod.facts.spans import NotSpans, spans_of
from maskmod.facts.structure import Band
from maskmod.facts.tiles import tiles_of

__all__ = ["Explanation", "explain"]

_MOST_SPANS = 16
_DENSE = ("eager", "sdpa", "flashinfer", "sglang", "csr")  # hold every token, or every visible one
_DENSE_TOKENS = 1 << 26
_TABLES = ("flex", "fa4", "hstu", "splash")  # look at every block of 128 x 128
_TABLE_BLOCKS = 1 << 21


class Explanation(NamedTuple):
    """Facts by name, in words and numbers; what each backend gets or why not; the one that is chosen, and costs."""

    mask: str
    sizes: dict[str, int]
    facts: dict[str, Any]
    backends: dict[str, dict[str, Any]]
    chosen: dict[str, Any]

    def to_json(self) -> str:
        return json.dumps(self._asdict(), indent=2)

    def __str__(self) -> str:
        sizes = " ".join(f"{name}={size}" for name, size in self.sizes.items())
        lines = [f"{self.mask}  {sizes}", ""]
        width = max(map(len, self.facts))
        lines += [f"  {name:{width}}  {_words(value)}" for name, value in self.facts.items()]
        lines += ["", "backends"]
        width = max(map(len, self.backends))
        for name, answer in self.backends.items():
            if "gets" in answer:
                lines.append(f"  {name:{width}}  {answer['gets']}")
            else:
                lines.append(f"  {name:{width}}  no: {answer['why_not']}")
        lines += ["", f"attention takes {self.chosen['backend']}: {self.chosen['why']}"]
        costs = sorted(self.chosen["cost"].items(), key=lambda pair: pair[1])
        lines.append("  estimated cost: " + ", ".join(f"{name} {cost:.4g}" for name, cost in costs))
        return "\n".join(lines)


def explain(mask: Mask, B: int, H: int, q_len: int, kv_len: int) -> Explanation:
    """Everything that is proven of the mask at these sizes.

    >>> from maskmod import causal
    >>> explain(causal(), 1, 1, 64, 64).facts["band"]
    'causal'
    """
    reading = read(mask, B, H, q_len, kv_len)
    choice = select_backend(mask, B, H, q_len, kv_len)
    chosen = {"backend": choice.backend, "why": choice.why, "cost": dict(choice.cost)}
    backends = {name: _backend(reading, name) for name in registry.names()}
    return Explanation(repr(mask), reading.sizes._asdict(), _facts(reading), backends, chosen)


def _facts(reading: Reading) -> dict[str, Any]:
    sizes = reading.sizes
    tiles = tiles_of(reading, (128, 128), exact=True)
    visible, pairs = tiles.visible(), sizes.B * sizes.H * sizes.q_len * sizes.kv_len
    empty_row = tiles.first_empty_row()
    leak = leaks_future(reading.mask, *sizes, device=reading.device)
    differ = [name for name, lane, size in zip("bh", reading.lanes, sizes, strict=False) if lane == size > 1]
    facts: dict[str, Any] = {
        "understood": "yes" if reading.root is not None else f"no, evaluated token by token: {reading.why}",
        "reads": " and ".join(differ) or "neither b nor h: one mask serves all rows and heads",
        "visible": visible,
        "density": visible / pairs if pairs else 0.0,
        "empty": visible == 0,
        "full": visible == pairs,
        "band": _band(proven_band(reading), sizes.q_len, sizes.kv_len),
        "documents": None,
        "leaks_future": _place(leak.counterexample) if leak.holds else None,
        "empty_row": None if empty_row is None else empty_row._asdict(),
        "spans_a_row": _spans(reading),
    }
    packed = proven_packed(reading)
    if packed is not None:
        counts = torch.cat([ids.unique_consecutive(return_counts=True)[1] for ids in packed.ids])
        if counts.shape[0] > packed.ids.shape[0]:
            inside = _band(packed.band, sizes.q_len, sizes.kv_len)
            facts["documents"] = {"count": counts.shape[0], "longest": int(counts.max()), "inside": inside}
    return facts


def _band(band: Band | None, q_len: int, kv_len: int) -> str | None:
    if band is None:
        return None
    low, high = band
    if low is None and high is None:
        return "everything"
    if low is None and high == 0:
        return "causal"
    if low is None and high == kv_len - q_len:
        return "causal, the last query on the last key"
    if low is not None and low <= 0 and high == 0:
        return f"a sliding window of {1 - low} keys"
    ends = [
        f"{low} <= kv_idx - q_idx" if low is not None else "kv_idx - q_idx",
        f" <= {high}" if high is not None else "",
    ]
    return "a band, " + "".join(ends)


def _spans(reading: Reading) -> str:
    if reading.is_empty:
        return "0"
    for most in (1, _MOST_SPANS):
        try:
            counts = spans_of(reading, max_spans=most).counts
        except NotSpans:
            continue
        low, high = int(counts.min()), int(counts.max())
        return f"{low}" if low == high else f"{low} to {high}"
    return f"more than {_MOST_SPANS}"


def _backend(reading: Reading, name: str) -> dict[str, Any]:
    B, H, q_len, kv_len = reading.lanes
    if name in _DENSE and B * H * q_len * kv_len > _DENSE_TOKENS:
        return {"why_not": f"not lowered here: up to {B * H * q_len * kv_len / 2**30:.1f} G entries"}
    blocks = B * H * -(-q_len // 128) * -(-kv_len // 128)
    if name in _TABLES and blocks > _TABLE_BLOCKS:
        return {"why_not": f"not lowered here: a table of {blocks / 2**20:.1f} M blocks"}
    try:
        args = registry.get(name).lower(reading, dtype=torch.get_default_dtype())
    except Inexpressible as refused:
        return {"why_not": refused.seen, "element": _place(refused.element), "todo": refused.todo}
    except MaskError as refused:
        return {"why_not": refused.seen, "todo": refused.todo}
    fields = args._asdict() if isinstance(args, tuple) else {}  # pyright: ignore[reportAttributeAccessIssue]
    return {"gets": args.why, "arguments": _shapes(fields)}


def _shapes(fields: dict[str, Any]) -> dict[str, Any]:
    """Arguments as JSON can hold them: tensors by dtype and shape, tuples by their fields or entries."""
    return {name: _shape(value) for name, value in fields.items() if name not in ("why", "sizes")}


def _shape(value: Any) -> Any:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _shapes(value._asdict())  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, tuple):
        return [_shape(entry) for entry in value]
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    return type(value).__name__


def _place(element: Element | None) -> dict[str, int] | None:
    return None if element is None else element._asdict()


def _words(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name}={each}" for name, each in value.items())
    return str(value)
