"""Sizes, and random expressions of masks beside their meaning in plain Python.

An expression is drawn as source text, so that a failing case prints as the line that builds it again. Beside the text
grows a specification on plain ints, which shares no code with the library.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

import maskmod
from maskmod import Mask
from oracle import Spec
from random_masks.choices import Draw, Drawer, booleans, composite, integers, lists, none, sampled_from

__all__ = ["NAMES", "Expression", "Size", "expressions", "masks", "shapes"]

NAMES: dict[str, Any] = {"torch": torch, **{name: getattr(maskmod, name) for name in maskmod.__all__}}


class Size(NamedTuple):
    B: int
    H: int
    q_len: int
    kv_len: int


@dataclasses.dataclass(frozen=True)
class Expression:
    """One mask: the text that builds it, and what it says on plain ints."""

    source: str
    spec: Spec
    size: Size
    precedence: int = 9
    is_mask: bool = True  # False for a bare lambda, which has no operators of its own

    def build(self) -> Mask:
        return eval(self.source, dict(NAMES))

    def __repr__(self) -> str:  # one line to paste
        return f"{self.source}  # on {', '.join(map(str, self.size))}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # Hypothesis spells dataclasses out field by field
        printer.text(repr(self))


@composite
def _shapes(draw: Draw, longest: int = 7) -> Size:
    least = draw(sampled_from((1, 0)))
    return Size(draw(integers(1, 3)), draw(integers(1, 3)), *draw(lists(integers(least, longest), 2)))


@composite
def expressions(draw: Draw, size: Size | None = None, depth: int = 4) -> Expression:
    """A random expression over the whole vocabulary, to be read at ``size`` (drawn where left out)."""
    size = draw(_shapes()) if size is None else size
    kinds = _ATOMS if depth == 0 else _ATOMS + _NODES * 2
    return draw(draw(sampled_from(kinds))(size, depth))


def shapes(longest: int = 7) -> SearchStrategy[Size]:
    """Sizes (B, H, q_len, kv_len): several rows and heads, ragged and rectangular lengths, zero now and then."""
    return st.randoms(use_true_random=False).map(_shapes(longest))


def masks(size: Size | None = None, depth: int = 4) -> SearchStrategy[Expression]:
    """`expressions`, drawn by Hypothesis."""
    return st.randoms(use_true_random=False).map(expressions(size, depth))


# ------------------------------------------------------------------------------------------------------------- atoms


def _number(draw: Draw, least: int, most: int) -> tuple[str, int]:
    """A number written as an int or as a 0-d tensor."""
    n = draw(integers(least, most))
    return (f"torch.tensor({n})" if draw(booleans()) else str(n)), n


def _per_row(draw: Draw, B: int, least: int, most: int) -> tuple[str, list[int]]:
    """A number for each batch row, written as an int, a 0-d tensor, (1,) or (B,)."""
    form = draw(sampled_from(("int", "0-d", "(1,)", "(B,)")))
    values = draw(lists(integers(least, most), B))
    if form == "(B,)":
        return f"torch.tensor({values})", values
    n = values[0]
    return {"int": str(n), "0-d": f"torch.tensor({n})", "(1,)": f"torch.tensor([{n}])"}[form], [n] * B


def _table(draw: Draw, B: int, n: int, entries: Drawer[Any]) -> tuple[str, list[list[Any]]]:
    """A table of n columns or more, shared by the batch or one row each; the meaning has B rows either way."""
    columns = n + draw(integers(0, 2))
    row = lists(entries, columns)
    if draw(booleans()):
        values = draw(row)
        return _tensor(values, (columns,)), [values] * B
    table = draw(lists(row, B))
    return _tensor(table, (B, columns)), table


def _tensor(values: list, shape: tuple[int, ...]) -> str:
    # A list without numbers would give a float tensor.
    return f"torch.zeros({shape}, dtype=torch.int64)" if 0 in shape else f"torch.tensor({values})"


def _entry(row: list, i: int) -> Any:
    """The entry of a table at i, None outside it."""
    return row[i] if 0 <= i < len(row) else None


@composite
def _plain(draw: Draw, size: Size, depth: int) -> Expression:
    del depth
    choices: list[tuple[str, Spec]] = [
        ("full()", lambda b, h, q, kv: True),
        ("causal()", lambda b, h, q, kv: kv <= q),
    ]
    source, spec = draw(sampled_from(choices))
    return Expression(source, spec, size)


@composite
def _sliding_window(draw: Draw, size: Size, depth: int) -> Expression:
    del depth
    text, n = _number(draw, 1, 5)
    return Expression(f"sliding_window({text})", lambda b, h, q, kv: 0 <= q - kv <= n - 1, size)


@composite
def _window(draw: Draw, size: Size, depth: int) -> Expression:
    del depth
    sides = [draw(none()) or ("None", 99) if draw(booleans()) else _number(draw, 0, 3) for _ in range(2)]
    (left_text, left), (right_text, right) = sides
    return Expression(f"window({left_text}, {right_text})", lambda b, h, q, kv: q - left <= kv <= q + right, size)


@composite
def _chunked(draw: Draw, size: Size, depth: int) -> Expression:
    del depth
    text, n = _number(draw, 1, 4)
    start_text, start = _per_row(draw, size.B, -2, 4)
    source = f"chunked({text}, start={start_text})"
    return Expression(source, lambda b, h, q, kv: (q - start[b]) // n == (kv - start[b]) // n, size)


@composite
def _prefix(draw: Draw, size: Size, depth: int) -> Expression:
    del depth
    text, n = _per_row(draw, size.B, 0, 5)
    return Expression(f"prefix({text})", lambda b, h, q, kv: kv < n[b], size)


@composite
def _sinks(draw: Draw, size: Size, depth: int) -> Expression:
    del depth
    text, n = _number(draw, 0, 3)
    return Expression(f"sinks({text})", lambda b, h, q, kv: kv < n, size)


@composite
def _document(draw: Draw, size: Size, depth: int) -> Expression:
    del depth
    ids = integers(-1, 2)
    if draw(booleans()):
        text, table = _table(draw, size.B, max(size.q_len, size.kv_len, 0), ids)
        q_ids = kv_ids = table
    else:
        q_text, q_ids = _table(draw, size.B, max(size.q_len, 0), ids)
        kv_text, kv_ids = _table(draw, size.B, max(size.kv_len, 0), ids)
        text = f"{q_text}, {kv_text}"

    def spec(b, h, q, kv):
        mine, theirs = _entry(q_ids[b], q), _entry(kv_ids[b], kv)
        return mine is not None and mine == theirs

    return Expression(f"document({text})", spec, size)


@composite
def _blockwise(draw: Draw, size: Size, depth: int) -> Expression:
    del depth
    text, ids = _table(draw, size.B, max(size.q_len, size.kv_len, 0), integers(-1, 2))

    def spec(b, h, q, kv):
        return _entry(ids[b], q) not in (None, -1) and _entry(ids[b], q) == _entry(ids[b], kv)

    return Expression(f"blockwise({text})", spec, size)


@composite
def _key_padding(draw: Draw, size: Size, depth: int) -> Expression:
    del depth
    if draw(booleans()):
        lengths = draw(lists(integers(0, 6), size.B))
        return Expression(f"key_padding(torch.tensor({lengths}))", lambda b, h, q, kv: 0 <= kv < lengths[b], size)
    columns = max(size.kv_len, 0) + draw(integers(0, 2))
    entries = draw(sampled_from((booleans(), integers(0, 2))))
    row = lists(entries, columns)
    valid = draw(lists(row, size.B))
    source = f"key_padding({_tensor(valid, (size.B, columns))})"
    return Expression(source, lambda b, h, q, kv: bool(_entry(valid[b], kv)), size)


_LAMBDAS: list[tuple[str, Spec]] = [
    ("(q_idx + h) % 3 == kv_idx % 3", lambda b, h, q, kv: (q + h) % 3 == kv % 3),
    ("(kv_idx <= q_idx) & (b == 0)", lambda b, h, q, kv: kv <= q and b == 0),
    ("abs(q_idx - kv_idx) <= h", lambda b, h, q, kv: abs(q - kv) <= h),
    ("(q_idx // 2 == kv_idx // 2) ^ True", lambda b, h, q, kv: q // 2 != kv // 2),
]


@composite
def _lambda(draw: Draw, size: Size, depth: int) -> Expression:
    del depth
    body, spec = draw(sampled_from(_LAMBDAS))
    source = f"lambda b, h, q_idx, kv_idx: {body}"
    if draw(booleans()):
        return Expression(f"mask_mod({source})", spec, size)
    return Expression(source, spec, size, precedence=0, is_mask=False)


# ------------------------------------------------------------------------------------------------------------- nodes


def _operand(part: Expression, precedence: int) -> str:
    return part.source if part.precedence >= precedence else f"({part.source})"


def _as_mask(part: Expression) -> Expression:
    if part.is_mask:
        return part
    return dataclasses.replace(part, source=f"mask_mod({part.source})", precedence=9, is_mask=True)


@composite
def _binary(draw: Draw, size: Size, depth: int) -> Expression:
    left, right = draw(expressions(size, depth - 1)), draw(expressions(size, depth - 1))
    if not right.is_mask:
        left = _as_mask(left)
    symbol, precedence = draw(sampled_from((("&", 3), ("^", 2), ("|", 1))))
    meaning: dict[str, Spec] = {
        "&": lambda b, h, q, kv: left.spec(b, h, q, kv) and right.spec(b, h, q, kv),
        "^": lambda b, h, q, kv: left.spec(b, h, q, kv) != right.spec(b, h, q, kv),
        "|": lambda b, h, q, kv: left.spec(b, h, q, kv) or right.spec(b, h, q, kv),
    }
    source = f"{_operand(left, precedence)} {symbol} {_operand(right, precedence + 1)}"
    return Expression(source, meaning[symbol], size, precedence)


@composite
def _not(draw: Draw, size: Size, depth: int) -> Expression:
    inner = _as_mask(draw(expressions(size, depth - 1)))

    def spec(b, h, q, kv):
        return not inner.spec(b, h, q, kv)

    if draw(booleans()):
        return Expression(f"~{_operand(inner, 4)}", spec, size, 4)
    return Expression(f"{_operand(inner, 2)} ^ True", spec, size, 2)


@composite
def _shift(draw: Draw, size: Size, depth: int) -> Expression:
    q_text, q_offset = _per_row(draw, size.B, -2, 4)
    kv_text, kv_offset = _per_row(draw, size.B, -2, 4)
    # A static offset moves the last position that tables must reach; a tensor's is not known to the library.
    reach = size._replace(
        q_len=max(0, size.q_len + ("tensor" not in q_text) * q_offset[0]),
        kv_len=max(0, size.kv_len + ("tensor" not in kv_text) * kv_offset[0]),
    )
    inner = draw(expressions(reach, depth - 1))
    source = f"shift({inner.source}, q_offset={q_text}, kv_offset={kv_text})"
    return Expression(source, lambda b, h, q, kv: inner.spec(b, h, q + q_offset[b], kv + kv_offset[b]), size)


@composite
def _remap(draw: Draw, size: Size, depth: int) -> Expression:
    arguments = []
    places = []
    for name, n in (("q", size.q_len), ("kv", size.kv_len)):
        form = draw(sampled_from(("none", "table", "function")))
        if form == "table":
            text, positions = _table(draw, size.B, n, integers(-1, 8))
            arguments.append(f"{name}={text}")
            places.append(lambda b, i, positions=positions: _entry(positions[b], i))
        elif form == "function":
            arguments.append(f"{name}=lambda b, idx: idx // 2 + b")
            places.append(lambda b, i: i // 2 + b)
        else:
            places.append(lambda b, i: i)
    valid = None
    if draw(booleans()):
        text, valid = _table(draw, size.B, size.kv_len, booleans())
        arguments.append(f"valid={text}")
    # Tables of the inner mask are read at positions that nobody knows beforehand: any length will do.
    inner = draw(expressions(size, depth - 1))

    def spec(b, h, q, kv):
        q_position, kv_position = places[0](b, q), places[1](b, kv)
        if q_position is None or kv_position is None or (valid is not None and not _entry(valid[b], kv)):
            return False
        return inner.spec(b, h, q_position, kv_position)

    return Expression(f"remap({', '.join([inner.source, *arguments])})", spec, size)


@composite
def _where(draw: Draw, size: Size, depth: int) -> Expression:
    condition, a, b_mask = (draw(expressions(size, depth - 1)) for _ in range(3))

    def spec(b, h, q, kv):
        return (a if condition.spec(b, h, q, kv) else b_mask).spec(b, h, q, kv)

    return Expression(f"where({condition.source}, {a.source}, {b_mask.source})", spec, size)


@composite
def _per_head(draw: Draw, size: Size, depth: int) -> Expression:
    parts = [draw(expressions(size, max(0, depth - 2))) for _ in range(size.H)]
    source = f"per_head([{', '.join(part.source for part in parts)}])"
    return Expression(source, lambda b, h, q, kv: parts[h].spec(b, h, q, kv), size)


_ATOMS = [_plain, _sliding_window, _window, _chunked, _prefix, _sinks, _document, _blockwise, _key_padding, _lambda]
_NODES = [_binary, _binary, _binary, _not, _shift, _remap, _where, _per_head]
