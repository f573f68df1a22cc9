"""Contradictions in a normal form, found without looking at a tile: `a & ~a` is False, so are `x < y` and `y <= x`.

Two predicates that say the same in other words share their steps on one tape, so that `a & ~b` often falls apart here:
a comparison of integer sums becomes an interval of one sum, a fact its node and a sign, and what a conjunction says is
handed down to its other parts. What is left is equivalent to what was given, and smaller.

This module answers for no tile and proves nothing True; a formula it does not reduce is simply asked about.
Comparisons of floating point are left alone: with NaN, a negated comparison is not the opposite one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from maskmod.analyser.expression import Node
from maskmod.analyser.intervals import WIDE
from maskmod.analyser.normal_form import And, Compare, Every, Fact, Formula, Or, Some, Table
from maskmod.analyser.sides import sides

__all__ = ["is_false", "simplified"]

_FALSE, _TRUE = Or(()), And(())
_MOST_ROUNDS = 8  # of a conjunction whose parts keep becoming simpler


class _Within(NamedTuple):
    """`low <= sum <= high`, or sum != low where `different`; the sum is named by `key`, None is unbounded."""

    key: tuple
    low: int | None
    high: int | None
    different: bool = False


class _Holds(NamedTuple):
    """Something that is True or False, named by `key`, and which of the two."""

    key: tuple
    sign: bool


class _Known:
    """What a conjunction says so far."""

    def __init__(self, other: _Known | None = None):
        self.signs: dict[tuple, bool] = dict(other.signs) if other else {}
        self.bounds: dict[tuple, tuple[int | None, int | None]] = dict(other.bounds) if other else {}
        self.without: dict[tuple, frozenset[int]] = dict(other.without) if other else {}

    def says(self, literal: _Within | _Holds) -> bool | None:
        """Whether the literal follows (True), cannot be (False), or neither."""
        if isinstance(literal, _Holds):
            sign = self.signs.get(literal.key)
            return None if sign is None else sign == literal.sign
        low, high = self.bounds.get(literal.key, (None, None))
        if literal.different:
            value = literal.low
            assert value is not None
            if (low is not None and low > value) or (high is not None and high < value):
                return True
            if value in self.without.get(literal.key, ()):
                return True
            return False if low == high == value else None
        low, high = self._tight(literal.key, low, high)
        if (literal.low is not None and high is not None and high < literal.low) or (
            literal.high is not None and low is not None and low > literal.high
        ):
            return False
        if literal.low == literal.high is not None and literal.low in self.without.get(literal.key, ()):
            return False
        below = literal.low is None or (low is not None and low >= literal.low)
        above = literal.high is None or (high is not None and high <= literal.high)
        return True if below and above else None

    def learn(self, literal: _Within | _Holds) -> bool:
        """Take the literal as said; False if that cannot be."""
        said = self.says(literal)
        if said is False:
            return False
        if isinstance(literal, _Holds):
            self.signs[literal.key] = literal.sign
            return True
        low, high = self.bounds.get(literal.key, (None, None))
        if literal.different:
            assert literal.low is not None
            self.without[literal.key] = self.without.get(literal.key, frozenset()) | {literal.low}
        else:
            low = literal.low if low is None else low if literal.low is None else max(low, literal.low)
            high = literal.high if high is None else high if literal.high is None else min(high, literal.high)
        low, high = self._tight(literal.key, low, high)
        self.bounds[literal.key] = (low, high)
        return low is None or high is None or low <= high

    def _tight(self, key: tuple, low: int | None, high: int | None) -> tuple[int | None, int | None]:
        without = self.without.get(key, ())
        while low is not None and low in without:
            low += 1
        while high is not None and high in without:
            high -= 1
        return low, high


def is_false(formula: Formula) -> bool:
    """Whether the formula is the empty disjunction; `==` is that of tuples, and does not tell And from Or."""
    return isinstance(formula, Or) and not formula.parts


def _is_true(formula: Formula) -> bool:
    return isinstance(formula, And) and not formula.parts


def simplified(formula: Formula) -> Formula:
    """An equivalent formula, with what contradicts itself left out; `Or(())` is False and `And(())` True."""
    return _simpler(formula, _Known())


def _simpler(formula: Formula, known: _Known) -> Formula:
    if isinstance(formula, And):
        return _conjunction(formula, known)
    if isinstance(formula, Or):
        parts: list[Formula] = []
        for part in formula.parts:
            part = _simpler(part, known)
            if _is_true(part):
                return _TRUE
            if not is_false(part):
                parts += part.parts if isinstance(part, Or) else (part,)
        return parts[0] if len(parts) == 1 else Or(tuple(parts))
    literal = _literal(formula)
    said = None if literal is None else known.says(literal)
    return formula if said is None else _TRUE if said else _FALSE


def _conjunction(formula: And, known: _Known) -> Formula:
    parts = list(formula.parts)
    for _ in range(_MOST_ROUNDS):
        inner, kept, open_ = _Known(known), [], []
        for part in _flat(parts):
            literal = _literal(part)
            if literal is None:
                open_.append(part)
            elif inner.says(literal) is not True:
                if not inner.learn(literal):
                    return _FALSE
                kept.append(part)
        simpler = [_simpler(part, inner) for part in open_]
        if any(map(is_false, simpler)):
            return _FALSE
        told = zip(simpler, open_, strict=True)
        changed = any(new is not old and (isinstance(new, And) or _literal(new) is not None) for new, old in told)
        parts = [*kept, *(part for part in simpler if not _is_true(part))]
        if not changed:
            break
    parts = _flat(parts)
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _flat(parts: list[Formula]) -> list[Formula]:
    flat: list[Formula] = []
    for part in parts:
        flat += _flat(list(part.parts)) if isinstance(part, And) else [part]
    return flat


# Literals


def _literal(formula: Formula) -> _Within | _Holds | None:
    """What the formula says as one literal; None for a disjunction, and where nothing exact is known of it."""
    if isinstance(formula, Fact):
        return _Holds(("fact", formula.node.number), formula.sign)
    if isinstance(formula, Table):
        return _Holds(("table", id(formula.table), tuple(map(_name, formula.index))), formula.sign)
    if isinstance(formula, Compare):
        return _interval(formula) or _comparison(formula)
    if isinstance(formula, (Some, Every)):
        # Every part is True where not some part is False.
        part = formula.part if isinstance(formula, Some) else _opposite(formula.part)
        name = None if part is None else _structure(part)
        return (
            None if name is None else _Holds(("some", name, formula.dims, formula.keepdim), isinstance(formula, Some))
        )
    return None


def _interval(compare: Compare) -> _Within | None:
    """The comparison as an interval of one sum of nodes with fixed signs, if no sum can overflow."""
    apart = sides(compare)
    if apart is None:
        return None
    factors: dict[int, int] = {}
    for side, sign in ((apart.q, 1), (apart.kv, -1), (apart.free, -1)):
        for factor, node in side:
            if not _is_trusted(node):
                return None
            factors[node.number] = factors.get(node.number, 0) + sign * factor
    constant = apart.constant
    if not isinstance(constant, int) or abs(constant) >= 1 << WIDE:
        return None
    terms = sorted((number, factor) for number, factor in factors.items() if factor)
    if not terms:
        return None
    flip = terms[0][1] < 0
    key = tuple((number, -factor if flip else factor) for number, factor in terms)
    if apart.op in ("eq", "ne"):
        value = -constant if flip else constant
        return _Within(key, value, value, apart.op == "ne")
    high = constant - (apart.op == "lt")  # sum <= high
    return _Within(key, -high, None) if flip else _Within(key, None, high)


def _is_trusted(node: Node) -> bool:
    """Whether a sum of a few such values stays far from overflow."""
    if node.dtype != torch.int64 or node.op == "index":
        return True
    value = node.value
    if not value.numel():
        return True
    low, high = value.aminmax()
    return bool((low > -(1 << WIDE)) & (high < 1 << WIDE))


def _comparison(compare: Compare) -> _Holds | None:
    """Two recorded integers compared, by the names of both: `lt` and `eq`, or their negations."""
    if not all(_is_integer(arg) for arg in (compare.left, compare.right)):
        return None
    left, right = _name(compare.left), _name(compare.right)
    if compare.op == "le":  # the negation of right < left
        return _Holds(("lt", right, left), False)
    if compare.op == "lt":
        return _Holds(("lt", left, right), True)
    return _Holds(("eq", *sorted((left, right), key=repr)), compare.op == "eq")


def _is_integer(arg: Any) -> bool:
    if isinstance(arg, Node):
        return not arg.dtype.is_floating_point and not arg.dtype.is_complex and not arg.shape
    return isinstance(arg, int)


def _name(arg: Any) -> tuple:
    if isinstance(arg, Node):
        return ("node", arg.number)
    if isinstance(arg, slice):
        return ("slice", arg.start, arg.stop, arg.step)
    return ("value", type(arg).__name__, arg)


def _opposite(formula: Formula) -> Formula | None:
    """The negation, where it is exact."""
    if isinstance(formula, (Fact, Table)):
        return formula._replace(sign=not formula.sign)
    if isinstance(formula, (And, Or)):
        parts = [_opposite(part) for part in formula.parts]
        return None if None in parts else (Or if isinstance(formula, And) else And)(tuple(parts))
    if isinstance(formula, Compare):
        if any(isinstance(x, float) or (isinstance(x, Node) and x.dtype.is_floating_point) for x in formula[1:]):
            return None
        op, left, right = formula
        if op in ("eq", "ne"):
            return Compare("ne" if op == "eq" else "eq", left, right)
        return Compare("le" if op == "lt" else "lt", right, left)
    return None


def _structure(formula: Formula) -> tuple | None:
    """A name of the formula, equal for equal ones."""
    if isinstance(formula, Fact):
        return ("fact", formula.node.number, formula.sign)
    if isinstance(formula, Compare):
        return (formula.op, _name(formula.left), _name(formula.right))
    if isinstance(formula, Table):
        return ("table", id(formula.table), tuple(map(_name, formula.index)), formula.sign)
    if isinstance(formula, (And, Or)):
        parts = [_structure(part) for part in formula.parts]
        return None if None in parts else (type(formula).__name__, *parts)
    return None
