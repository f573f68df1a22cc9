"""The one transfer function: may a formula be True somewhere in each tile?

`may` over-approximates: it answers False only when the formula is False at every token of the tile. From it,
`must(e) = not may(not e)`. Conjunctions hand facts down to their other parts:

- a fact of one axis is a guard: the other parts are only asked about tokens where it holds;
- an equality of ids, `a(q) == c(kv)`, sharpens every order comparison beside it: there, `f(q) < g(kv)` is the same as
  `a(q) * M + f(q) < c(kv) * M + g(kv)`, and once M exceeds the spread of f and g, smallest and largest values of these
  sums belong to the id that neighbouring blocks share, not to whatever else lies in the blocks.

A guard that holds nowhere in a block leaves meaningless bounds there; the conjunction that introduced it also asks
whether it holds anywhere, so the answer is False regardless.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskmod._torch.tracing import known_true
from maskmod.analyser.expression import BOTH, KV, LANES, NEITHER, Node, Q, needed
from maskmod.analyser.intervals import BITS, RULES, WIDE, Bounds, _finite, _inside, as_dtype, both, number
from maskmod.analyser.normal_form import (
    And,
    Compare,
    Every,
    Fact,
    Formula,
    Or,
    Shared,
    Some,
    Table,
    normal,
)
from maskmod.analyser.sides import Sides, extra_of, falls, is_plain, sides, total_of
from maskmod.analyser.summaries import Grid, Guard, Selection

__all__ = ["may"]

_FAR = 1 << 61  # stands for "no bound" in comparisons; sums of trusted values stay far below it
_MOST_ENTRIES = 1 << 27  # a table with more entries is not summed up: its answer is "unknown"


class _Given(NamedTuple):
    """What the enclosing conjunctions already say."""

    q: Guard = ()
    kv: Guard = ()
    equal: tuple[Sides, ...] = ()

    def guard(self, axes: int) -> Guard:
        return self.q if axes == Q else self.kv if axes == KV else ()

    def key(self) -> tuple:
        guards = tuple(tuple((n.number, sign) for n, sign in guard) for guard in (self.q, self.kv))
        equal = tuple(
            (e.constant, *(tuple((sign, n.number) for sign, n in terms) for terms in (e.q, e.kv, e.free)))
            for e in self.equal
        )
        return (*guards, equal)


def may(formula: Formula, frame: Grid | Selection) -> Tensor:  # frame.shape
    """Whether the formula may be True at some token of each tile of the frame."""
    return _Question(frame).may(formula, _Given()).expand(frame.shape)


class _Question:
    def __init__(self, frame: Grid | Selection):
        self.frame, self.blocks = frame, frame.blocks
        self._shared: dict[int, Tensor] = {}
        self._truth: dict[tuple, Bounds] = {}

    def constant(self, answer: bool) -> Tensor:
        return torch.full((1,) * self.frame.lanes, answer, dtype=torch.bool, device=self.blocks.tape.device)

    # Formulas

    def may(self, formula: Formula, given: _Given) -> Tensor:
        if isinstance(formula, Fact):
            return self.may_fact(formula, given)
        if isinstance(formula, And):
            return self.may_and(formula, given)
        if isinstance(formula, Or):
            return self.together(torch.bitwise_or, [self.may(p, given) for p in formula.parts], False)
        if isinstance(formula, Compare):
            return self.may_compare(formula, given)
        if isinstance(formula, Table):
            return self.may_look_up(formula, given)
        if isinstance(formula, Shared):
            return self.may_shared(formula)
        if isinstance(formula, (Some, Every)):
            # An equality outside says nothing, entry by entry, of a part with dimensions of its own.
            answer = self.may(formula.part, given._replace(equal=()))
            if answer.dim() == self.frame.lanes:
                return answer
            for d in sorted(formula.dims, reverse=True):
                gathered = answer.any if isinstance(formula, Some) else answer.all
                answer = gathered(self.frame.lanes + d, keepdim=formula.keepdim)
            return answer
        return self.constant(True)

    def together(self, join: Callable, answers: list[Tensor], nothing: bool) -> Tensor:
        """Answers joined, each with the tiles first; one without dimensions of its own says the same of every entry."""
        if not answers:
            return self.constant(nothing)
        rank = max(a.dim() for a in answers)
        lanes = self.frame.lanes
        return reduce(join, [a.reshape(a.shape[:lanes] + (1,) * (rank - a.dim()) + a.shape[lanes:]) for a in answers])

    def may_shared(self, shared: Shared) -> Tensor:
        """Those inside it first, so that this never goes deep."""
        missing, open_ = {}, [shared]
        while open_:
            part = open_.pop()
            if part.number not in self._shared and part.number not in missing:
                missing[part.number] = part
                open_ += part.needs
        for k in sorted(missing):
            self._shared[k] = self.may(missing[k].part, _Given())
        return self._shared[shared.number]

    def holds(self, fact: Fact, given: _Given) -> Tensor:
        node = fact.node
        return self.frame.spread(self.blocks.any(node, fact.sign, given.guard(node.axes), self.frame.ratio))

    def may_fact(self, fact: Fact, given: _Given) -> Tensor:
        answer = self.holds(fact, given)
        if fact.node.axes == NEITHER or fact.node.shape:
            return answer
        # Beside an equality of ids, the fact must hold at a token that has the other side's id.
        guards = {Q: given.q, KV: given.kv}
        guards[fact.node.axes] = (*guards[fact.node.axes], (fact.node, fact.sign))
        narrower = _Given(guards[Q], guards[KV])
        for equal in given.equal:
            answer = answer & self.may_sides(equal, narrower)
        return answer

    def may_and(self, formula: And, given: _Given) -> Tensor:
        answers, rest, new = [], [], {Q: list(given.q), KV: list(given.kv)}
        for part in formula.parts:
            if isinstance(part, Fact) and part.node.axes in new and not part.node.shape:
                new[part.node.axes].append((part.node, part.sign))
            elif isinstance(part, Fact):
                answers.append(self.holds(part, given))
            else:
                rest.append(part)
        taken = [(p, sides(p) if isinstance(p, Compare) else None) for p in rest]
        equal = [s for _, s in taken if s is not None and s.op == "eq" and len(s.q) == len(s.kv) == 1]
        inner = _Given(tuple(new[Q]), tuple(new[KV]), (*given.equal, *equal))
        for axis, before in ((Q, given.q), (KV, given.kv)):
            if len(new[axis]) > len(before):
                *others, (node, sign) = new[axis]
                answers.append(self.frame.spread(self.blocks.any(node, sign, tuple(others), self.frame.ratio)))
        answers += [self.may(p, inner) for p in rest]
        return self.together(torch.bitwise_and, answers, True)

    def may_compare(self, compare: Compare, given: _Given) -> Tensor:
        apart = sides(compare)
        if apart is None:
            return self.may_compare_bounds(compare, given)
        return self.may_sides(apart, given)

    def may_sides(self, apart: Sides, given: _Given) -> Tensor:
        left, right = self.side(apart, Q, given), self.side(apart, KV, given)
        answer = _may(apart.op, left, right)
        if apart.op == "eq":
            if self.hashes_help(apart):
                (_, a), (_, c) = apart.q[0], apart.kv[0]
                sets = [self.blocks.signature(n, given.guard(n.axes), self.frame.ratio) for n in (a, c)]
                answer = answer & ((self.frame.spread(sets[0]) & self.frame.spread(sets[1])) != 0)
        elif apart.op in ("lt", "le"):
            for equal in given.equal:
                if not is_plain(apart):
                    answer = answer & self.may_within(equal, apart, given)
        return answer

    def hashes_help(self, apart: Sides) -> bool:
        """Whether an equality compares ids one to one, in an order that intervals alone do not settle."""
        if len(apart.q) != 1 or len(apart.kv) != 1 or apart.free or apart.constant:
            return False
        (sign, a), (other, c) = apart.q[0], apart.kv[0]
        if sign != other or a.is_position or c.is_position:
            return False
        return not (self.blocks.sorted(a) and self.blocks.sorted(c))

    def may_within(self, equal: Sides, order: Sides, given: _Given) -> Tensor:
        """`order` among tokens of equal ids; see the module's docstring."""
        if self.blocks.tape.traced:
            found = self.ordered_within(equal, order)
        else:  # asked again for every list of tiles: summed once, and its summaries with it
            if (equal, order) not in self.blocks.ordered:
                self.blocks.ordered[equal, order] = self.ordered_within(equal, order)
            found = self.blocks.ordered[equal, order]
        if found is None:
            return self.constant(True)
        q, kv, flip, room = found
        left, right = self.summary(q, given), self.summary(kv, given)
        return (_may(order.op, right, left) if flip else _may(order.op, left, right)) | ~room

    def ordered_within(self, equal: Sides, order: Sides) -> tuple[Node, Node, bool, Tensor] | None:
        """Both sides of `order` with the ids in front, whether they are swapped, and whether nothing overflows."""
        ids = [total_of(side) for side in (equal.q, equal.kv)]
        parts = [total_of(side) for side in (order.q, order.kv)]
        if ids[0] is None or ids[1] is None or parts[0] is None or parts[1] is None:
            return None
        if not (_is_small(equal.constant) and _is_small(order.constant)):
            return None
        # Ids and offsets mostly grow together: write the order so that growing positions count positively.
        flip = falls(order.q)
        f, g = parts[0].value.long(), parts[1].value.long() + extra_of(order)
        if flip:
            f, g = -f, -g
        a, c = ids[0].value.long(), ids[1].value.long() + extra_of(equal)
        low_id, high_id = torch.minimum(a.amin(), c.amin()), torch.maximum(a.amax(), c.amax())
        low, high = torch.minimum(f.amin(), g.amin()), torch.maximum(f.amax(), g.amax())
        M = high - low + 1
        room = (high_id.double() - low_id.double() + 1) * (high.double() - low.double() + 1) < float(_FAR)
        for _, node in (*equal.q, *equal.kv, *equal.free, *order.q, *order.kv, *order.free):
            smallest, largest = (x(node, (), self.frame.ratio) for x in (self.blocks.lo, self.blocks.hi))
            room = room & _trusted(smallest.amin(), largest.amax())
        left = self.derived((a - low_id) * M + (f - low), Q)
        right = self.derived((c - low_id) * M + (g - low), KV)
        return left, right, flip, room

    def derived(self, value: Tensor, axes: int) -> Node:
        node = Node(self.blocks.tape, "derived", (), value[(0,) * LANES])
        node.axes, node._value = axes, value
        return node

    def summary(self, node: Node, given: _Given) -> tuple[Tensor, Tensor]:
        guard, spread, ratio = given.guard(node.axes), self.frame.spread, self.frame.ratio
        return spread(self.blocks.lo(node, guard, ratio)), spread(self.blocks.hi(node, guard, ratio))

    # Values

    def side(self, apart: Sides, axis: int, given: _Given) -> tuple[Tensor, Tensor]:
        """Smallest and largest value of one side of a comparison; -_FAR and _FAR where they are not to be trusted."""
        terms = apart.q if axis == Q else apart.kv
        ratio, guard = self.frame.ratio, given.guard(axis)
        if len(terms) > 1:
            total = total_of(terms)
            assert total is not None
            lo, hi = self.blocks.lo(total, guard, ratio), self.blocks.hi(total, guard, ratio)
        else:
            sign, node = next(iter(terms))
            lo, hi = self.blocks.lo(node, guard, ratio), self.blocks.hi(node, guard, ratio)
            if sign < 0:
                lo, hi = -hi, -lo
        wide = None
        for _, node in terms:
            if not node.is_position and node.dtype == torch.int64:
                wide = both(wide, _trusted(self.blocks.lo(node, guard, ratio), self.blocks.hi(node, guard, ratio)))
        if axis == KV:
            if not _is_small(apart.constant):
                wide = torch.zeros_like(lo, dtype=torch.bool)
            elif not known_true(apart.constant == 0):  # a symbolic one is added: asking whether it is 0 is a guard
                lo, hi = lo + apart.constant, hi + apart.constant
            for sign, node in apart.free:
                value = node.value.long()
                lo, hi = lo + sign * value, hi + sign * value
                if node.dtype == torch.int64 and node.op != "index":
                    wide = both(wide, _trusted(value, value))
        if wide is not None:
            lo, hi = torch.where(wide, lo, -_FAR), torch.where(wide, hi, _FAR)
        return self.frame.spread(lo), self.frame.spread(hi)

    def may_compare_bounds(self, compare: Compare, given: _Given) -> Tensor:
        samples = [x.sample if isinstance(x, Node) else x for x in (compare.left, compare.right)]
        dtype = (samples[0] * samples[1]).dtype  # their common type; torch.result_type does not trace
        left, right = (as_dtype(self.bounds(x, given), dtype) for x in (compare.left, compare.right))
        if left is None or right is None:
            return self.constant(True)
        answer = _may(compare.op, (left.lo, left.hi), (right.lo, right.hi))
        ok = both(left.ok, right.ok)
        return answer if ok is None else answer | ~ok

    def bounds(self, arg: Any, given: _Given) -> Bounds | None:
        """Bounds over each tile of any recorded value; None where nothing is known."""
        if not isinstance(arg, Node):
            return None if arg is None else number(arg, self.blocks.tape.device)
        done: dict[int, Bounds | None] = {}

        def of(a: Any) -> Bounds | None:
            if not isinstance(a, Node):
                return None if a is None else number(a, self.blocks.tape.device)
            if a.number not in done:
                done[a.number] = self.leaf(a, given) if a.axes != BOTH else self.truth(a, given)
            return done[a.number]

        for node in needed(arg, lambda node: node.axes == BOTH and node.dtype != torch.bool):
            done[node.number] = self.result(node, of)
        return of(arg)

    def result(self, node: Node, of: Callable[[Any], Bounds | None]) -> Bounds | None:
        """Bounds of one step from those of its arguments."""
        if node.op == "cast":
            return as_dtype(of(node.args[0]), node.dtype)
        rule = RULES.get(node.op)
        if rule is None or node.options:
            return None
        found = []
        for k, a in enumerate(node.args):
            b = of(a)
            if b is not None and not (node.op == "where" and k == 0):
                b = as_dtype(b, node.dtype)
            if b is None and not (a is None and node.op == "clamp"):
                return None
            found.append(b)
        result = rule(*found)
        if result is None:
            return None
        return _finite(result) if node.dtype.is_floating_point else _inside(result, node.dtype)

    def truth(self, node: Node, given: _Given) -> Bounds:
        """A boolean as 0 or 1."""
        key = (node.number, given.key())
        if key not in self._truth:
            always, ever = ~self.may(normal(node, False), given), self.may(normal(node), given)
            self._truth[key] = Bounds(always.long(), ever.long(), 1)
        return self._truth[key]

    def leaf(self, node: Node, given: _Given) -> Bounds | None:
        if node.dtype not in BITS and not node.dtype.is_floating_point:
            return None
        guard, ratio = given.guard(node.axes), self.frame.ratio
        lo, hi = self.blocks.lo(node, guard, ratio), self.blocks.hi(node, guard, ratio)
        ok = None
        bits = 0 if node.dtype.is_floating_point else min(BITS[node.dtype], WIDE)
        if node.dtype.is_floating_point:
            ok = self.frame.spread(torch.isfinite(lo) & torch.isfinite(hi))
        elif node.dtype == torch.int64 and node.op != "index":
            ok = self.frame.spread(_trusted(lo, hi))
        return Bounds(self.frame.spread(lo), self.frame.spread(hi), bits, ok)

    # Tables of both axes

    def may_look_up(self, formula: Table, given: _Given) -> Tensor:
        """Count the True entries in the rectangle of the table that each tile can reach, with one summed-area table."""
        table = formula.table if formula.table.dtype == torch.bool else formula.table != 0
        if table.numel() > _MOST_ENTRIES:
            return self.constant(True)
        lanes: list[Any] = []
        ranges: list[tuple[Tensor, Tensor]] = []
        order: list[list[int]] = [[], []]
        for d, i in enumerate(formula.index):
            if isinstance(i, slice) or (isinstance(i, Node) and i.shape):
                return self.constant(True)
            if isinstance(i, Node) and i.axes != NEITHER:
                ranges.append(self.reach(i, table.shape[d], given))
                order[1].append(d)
            else:
                lanes.append(i.value if isinstance(i, Node) else i)
                order[0].append(d)
        if len(ranges) > 2:
            return self.constant(True)
        table = table.permute(order[0] + order[1])
        if lanes:
            table = table[tuple(x if isinstance(x, Tensor) else torch.tensor(x) for x in lanes)]
            table = table.reshape((1,) * (4 - table.dim() + len(ranges)) + tuple(table.shape))
            table = table.reshape(table.shape[:2] + table.shape[4:])  # (B|1, H|1, *ranged)
        else:
            table = table.reshape((1, 1, *table.shape))
        return self.count(table, formula.sign, ranges) > 0

    def reach(self, index: Node, n: int, given: _Given) -> tuple[Tensor, Tensor]:
        """First and last entry that an index may pick in each tile; negative indices count from the end."""
        b = self.bounds(index, given)
        if b is None:
            zero = torch.zeros((1,) * self.frame.lanes, dtype=torch.int64, device=self.blocks.tape.device)
            return zero, zero + (n - 1)
        lo, hi = b.lo, b.hi
        wraps = hi < 0
        straddles = (lo < 0) & ~wraps
        if b.ok is not None:
            straddles, wraps = straddles | ~b.ok, wraps & b.ok
        lo = torch.where(wraps, lo + n, torch.where(straddles, 0, lo)).clamp(0, n - 1)
        hi = torch.where(wraps, hi + n, torch.where(straddles, n - 1, hi)).clamp(0, n - 1)
        return lo, hi

    def count(self, table: Tensor, sign: bool, ranges: list[tuple[Tensor, Tensor]]) -> Tensor:
        """How many entries of `table` equal `sign` inside each tile's ranges."""
        summed = (table if sign else ~table).to(torch.int32)
        for d in range(len(ranges)):
            summed = summed.cumsum(2 + d, dtype=torch.int32)
            padding = [0, 0] * (len(ranges) - 1 - d) + [1, 0]
            summed = torch.nn.functional.pad(summed, padding)
        lanes = tuple(self.frame.lane(d) if table.shape[d] > 1 else 0 for d in range(2))
        if len(ranges) == 1:
            ((lo, hi),) = ranges
            return summed[(*lanes, hi + 1)] - summed[(*lanes, lo)]
        (top, bottom), (first, last) = ranges
        corners = ((bottom + 1, last + 1, 1), (top, last + 1, -1), (bottom + 1, first, -1), (top, first, 1))
        return reduce(torch.add, (s * summed[(*lanes, r, c)] for r, c, s in corners))


def _may(op: str, left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> Tensor:
    (a, b), (c, d) = left, right  # left in [a, b], right in [c, d]
    if op == "lt":
        return a < d
    if op == "le":
        return a <= d
    if op == "eq":
        return (a <= d) & (c <= b)
    return (a != b) | (c != d) | (a != c)  # ne


def _trusted(lo: Tensor, hi: Tensor) -> Tensor:
    return (lo > -(1 << WIDE)) & (hi < 1 << WIDE)


def _is_small(x: int) -> bool:
    return -(1 << WIDE) < x < 1 << WIDE
