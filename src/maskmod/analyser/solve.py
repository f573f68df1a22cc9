"""Solve a recorded predicate for one index: the keys of each query (or the queries of each key) as a few intervals.

Where queries meet keys only in orders and equalities of one-axis values, nothing needs to be looked at token by token.
`f(q) < g(k)` with a growing `g` is one interval of keys, found by a binary search in `g` (by arithmetic where `g` is
the position itself); `a(q) == c(k)` is the run of keys with that id, or a few runs; a fact of the keys alone is the
runs of its table. AND intersects, OR unites, both exactly. Beside an equality of ids an order is solved among pairs
(id, value), which grow where the values alone start again in each document; and only ids that a live query asks for
count, so that "no span" may lie anywhere.

What does not fit (tables of both indices, remainders of a distance, values in no order) raises `Unsolved`; the caller
then descends tiles. This module looks at values, so it is nothing for a trace; it knows no block.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from maskmod.analyser.expression import KV, NEITHER, Node, Q
from maskmod.analyser.interval_sets import MOST, Intervals, Unsolved, complement, met, united
from maskmod.analyser.intervals import WIDE
from maskmod.analyser.normal_form import And, Compare, Fact, Formula, Or, normal
from maskmod.analyser.reading import Reading
from maskmod.analyser.sides import sides

__all__ = ["MOST", "Intervals", "Unsolved", "solve", "solved", "united"]


class _Given(NamedTuple):
    """What the enclosing conjunctions say: live rows and targets (B|1, H|1, n), and pairs of ids that are equal."""

    rows: Tensor | None = None
    targets: Tensor | None = None
    equal: tuple[tuple[Tensor, Tensor], ...] = ()


def solve(root: Node, target: int) -> Intervals:
    """For each query its keys (target is KV), or for each key its queries (target is Q), as at most `MOST` intervals.

    Raises:
        Unsolved: the predicate is not made of orders and equalities of one-axis values, or a row has more intervals.
    """
    return _Solver(root, target).solve(normal(root), _Given())


def solved(reading: Reading, *, columns: bool = False) -> Intervals | None:
    """Intervals of a mask made of orders and equalities of one-axis values, without opening a block; None otherwise.

    As many a row as the mask has, up to `MOST`. For masks that were read outside a trace.
    """
    name = "column intervals" if columns else "row intervals"
    if name not in reading.kept:
        reading.kept[name] = _solved(reading, columns)
    return reading.kept[name]


def _solved(reading: Reading, columns: bool) -> Intervals | None:
    if reading.root is None or reading.is_empty:
        return None
    try:
        found = solve(reading.root, Q if columns else KV)
    except Unsolved:
        return None
    B, H, q_len, kv_len = reading.lanes
    shape = (B, H, kv_len if columns else q_len, found.start.shape[-1])
    return Intervals(found.start.expand(shape), found.end.expand(shape))


class _Solver:
    def __init__(self, root: Node, target: int):
        lengths = root.tape.lengths
        self.target, self.device = target, root.tape.device
        self.dim = 3 if target == KV else 2  # of the target in a value
        self.length = lengths[self.dim]
        self.none = torch.zeros((1, 1, 1), dtype=torch.long, device=self.device)

    def solve(self, formula: Formula, given: _Given) -> Intervals:
        if isinstance(formula, Fact):
            return self.fact(formula)
        if isinstance(formula, And):
            return self.conjunction(formula, given)
        if isinstance(formula, Or):
            return united([self.solve(part, given) for part in formula.parts] or [self.everywhere(False)], self.length)
        if isinstance(formula, Compare):
            return self.compare(formula, given)
        raise Unsolved(f"a step that is no comparison of one-axis values ({type(formula).__name__.lower()})")

    def everywhere(self, holds: bool) -> Intervals:
        end = torch.full((1, 1, 1, 1), self.length, dtype=torch.long, device=self.device)
        return Intervals(torch.zeros_like(end) if holds else end, end)

    def last(self, like: Tensor) -> Tensor:
        return torch.full((1, 1, 1, 1), self.length, dtype=torch.long, device=self.device).expand(like.shape)

    # One-axis values

    def flat(self, node: Node) -> Tensor:  # (B|1, H|1, n)
        if node.shape:
            raise Unsolved("a value with dimensions of its own")
        value = node.value
        return value.squeeze(3 if node.axes == Q else 2) if node.axes != NEITHER else value.squeeze(3)

    def holds(self, fact: Fact) -> Tensor:
        value = self.flat(fact.node)
        return value if fact.sign else ~value

    def fact(self, fact: Fact) -> Intervals:
        held = self.holds(fact)
        if fact.node.axes == self.target:
            return self.runs(held)
        end = torch.full((1, 1, 1, 1), self.length, dtype=torch.long, device=self.device)
        return Intervals(torch.where(held, 0, self.length).unsqueeze(-1), end.expand(*held.shape, 1))

    def runs(self, held: Tensor) -> Intervals:
        """Runs of True along the target, the same for all rows."""
        B, H, n = held.shape
        edges = torch.nn.functional.pad(held.to(torch.int8), (1, 1)).diff(dim=-1).view(B * H, n + 1)
        lane, begin = (edges == 1).nonzero().unbind(1)
        end = (edges == -1).nonzero()[:, 1]
        counts = torch.bincount(lane, minlength=B * H)
        most = int(counts.max())
        if most > MOST:
            raise Unsolved(f"a table of {most} runs")
        shape = (B * H, max(most, 1))
        place = torch.arange(lane.shape[0], device=self.device) - (counts.cumsum(0) - counts)[lane]
        starts, ends = (torch.full(shape, self.length, dtype=torch.long, device=self.device) for _ in range(2))
        starts[lane, place], ends[lane, place] = begin, end
        return Intervals(*(x.view(B, H, 1, -1) for x in (starts, ends)))

    # Conjunctions

    def conjunction(self, formula: And, given: _Given) -> Intervals:
        facts = [p for p in formula.parts if isinstance(p, Fact)]
        rest = [p for p in formula.parts if not isinstance(p, Fact)]
        found = [self.fact(p) for p in facts if p.node.axes != self.target or self.matters(p)]
        live = {
            Q: given.rows if self.target == KV else given.targets,
            KV: given.rows if self.target == Q else given.targets,
        }
        for p in facts:
            if p.node.axes != NEITHER and not p.node.shape:
                before = live[p.node.axes]
                live[p.node.axes] = self.holds(p) if before is None else before & self.holds(p)
        equal = list(given.equal)
        for p in rest:
            if isinstance(p, Compare) and p.op == "eq" and (pair := self.ids(p)) is not None:
                equal.append(pair)
        rows, targets = (live[Q], live[KV]) if self.target == KV else (live[KV], live[Q])
        answers = []
        for p in rest:
            own = self.ids(p) if isinstance(p, Compare) and p.op == "eq" else None
            others = tuple(e for e in equal if own is None or not (e[0] is own[0] and e[1] is own[1]))
            answers.append(self.solve(p, _Given(rows, targets, others)))
        answers += found
        return reduce(lambda a, b: met(a, b, self.length), answers) if answers else self.everywhere(True)

    def matters(self, fact: Fact) -> bool:
        return not bool(self.holds(fact).all())

    # Comparisons

    def ids(self, compare: Compare) -> tuple[Tensor, Tensor] | None:
        """The two sides of an equality of one value each, (B|1, H|1, n)."""
        apart = sides(compare)
        if apart is None or len(apart.q) != 1 or len(apart.kv) != 1 or apart.free or apart.constant:
            return None
        (sign, a), (other, c) = apart.q[0], apart.kv[0]
        if sign != other or a.shape or c.shape or a.is_position or c.is_position:
            return None
        a_ids, c_ids = self._ids(a), self._ids(c)
        return (a_ids, c_ids) if self.target == KV else (c_ids, a_ids)

    def _ids(self, node: Node) -> Tensor:
        if not hasattr(self, "_known_ids"):
            self._known_ids: dict[int, Tensor] = {}
        if node.number not in self._known_ids:
            self._known_ids[node.number] = self.trusted(self.flat(node))
        return self._known_ids[node.number]

    def trusted(self, value: Tensor) -> Tensor:
        """As int64, where sums of a few stay inside it."""
        if value.dtype == torch.int64 and value.numel():
            low, high = value.aminmax()
            if int(low) <= -(1 << WIDE) or int(high) >= 1 << WIDE:
                raise Unsolved("values near the ends of int64")
        return value.long()

    def total(self, terms: tuple, extra: int = 0) -> Tensor | None:
        """The sum of signed nodes, (B|1, H|1, n); None for no terms."""
        total = None
        for sign, node in terms:
            value = self.trusted(self.flat(node))
            value = value if sign > 0 else -value
            total = value if total is None else total + value
        return total if total is None or not extra else total + extra

    def compare(self, compare: Compare, given: _Given) -> Intervals:
        apart = sides(compare)
        if apart is None or not -(1 << WIDE) < apart.constant < 1 << WIDE:
            raise Unsolved("a comparison that does not come apart by axis")
        own, other = (apart.kv, apart.q) if self.target == KV else (apart.q, apart.kv)
        free = self.total(apart.free)
        row = self.total(other)
        # q op kv + free + constant, with what is neither's moved to the rows.
        assert row is not None
        moved = (0 if free is None else free) + apart.constant
        row = row - moved if self.target == KV else row + moved
        op = apart.op if self.target == KV else {"lt": "gt", "le": "ge"}.get(apart.op, apart.op)
        if len(own) == 1 and own[0][1].is_position:
            return self.at_position(op, row, own[0][0])
        table = self.total(own)
        assert table is not None
        if op in ("eq", "ne"):
            pair = self.ids(compare)
            others = tuple(e for e in given.equal if op == "eq" and (pair is None or e[1] is not pair[1]))
            found = self.equal(row, table, _Given(given.rows, given.targets, others))
            return found if op == "eq" else complement(found, self.length)
        return self.order(op, row, table, given)

    def at_position(self, op: str, row: Tensor, sign: int) -> Intervals:
        """`row op sign * t` for the target's own index t."""
        row = row.unsqueeze(-1)
        if sign < 0:
            row, op = -row, {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}.get(op, op)
        n = self.length
        if op in ("lt", "le"):  # t from row on
            start = (row + 1 if op == "lt" else row).clamp(0, n)
            return Intervals(start, self.last(start))
        if op in ("gt", "ge"):
            end = (row if op == "gt" else row + 1).clamp(0, n)
            return Intervals(torch.where(end > 0, 0, n), torch.where(end > 0, end, n))
        inside = (row >= 0) & (row < n)
        found = Intervals(torch.where(inside, row, n), torch.where(inside, row + 1, n))
        return found if op == "eq" else complement(found, n)

    def order(self, op: str, row: Tensor, table: Tensor, given: _Given) -> Intervals:
        grows = _grows(table)
        if grows is None:
            paired = self.paired(row, table, given.equal)
            if paired is None:
                raise Unsolved("an order over values that do not grow along the axis")
            row, table, grows = paired
        if not grows:
            row, table, op = -row, -table, {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}[op]
        # The first t with row < table[t], or row <= table[t].
        edge = _search(table, row, right=op in ("lt", "ge")).unsqueeze(-1)
        n = self.length
        if op in ("lt", "le"):
            return Intervals(edge, self.last(edge))
        return Intervals(torch.where(edge > 0, 0, n), torch.where(edge > 0, edge, n))

    def paired(self, row: Tensor, table: Tensor, equal: tuple) -> tuple[Tensor, Tensor, bool] | None:
        """Rows and targets as pairs (id, value), where these grow along the targets; last, whether they do."""
        low, high = min(int(row.min()), int(table.min())), max(int(row.max()), int(table.max()))
        M = high - low + 1
        for row_id, target_id in equal:
            code = target_id
            if _grows(code) is not True:
                continue
            if (int(code.max()) - int(code.min()) + 2) * M >= 1 << 61:
                continue
            for sign in (1, -1):
                pairs = code * M + (sign * table - (low if sign > 0 else -high))
                if _grows(pairs):
                    # Other ids than the targets' own meet nothing here; the equality beside hides them.
                    inside = row_id.clamp(int(code.min()) - 1, int(code.max()) + 1)
                    rows = inside * M + (sign * row - (low if sign > 0 else -high))
                    return (rows, pairs, True) if sign > 0 else (-rows, -pairs, False)
        return None

    def equal(self, row: Tensor, table: Tensor, given: _Given) -> Intervals:
        """The runs of targets whose value is the row's."""
        try:
            return self.runs_of_ids(row, table, given)
        except Unsolved:
            if not given.equal:
                raise
        for row_id, target_id in given.equal:
            low, high = min(int(row.min()), int(table.min())), max(int(row.max()), int(table.max()))
            M = high - low + 1
            if (int(target_id.max()) - int(target_id.min()) + 3) * M >= 1 << 61:
                continue
            inside = row_id.clamp(int(target_id.min()) - 1, int(target_id.max()) + 1)
            try:
                return self.runs_of_ids(inside * M + (row - low), target_id * M + (table - low), given)
            except Unsolved:
                continue
        raise Unsolved("ids whose tokens lie in many runs")

    def runs_of_ids(self, row: Tensor, table: Tensor, given: _Given) -> Intervals:
        known_lanes = [x.shape[:2] for x in (row, table, given.rows, given.targets) if x is not None]
        B, H = torch.broadcast_shapes(*known_lanes)
        lanes_rows, lanes_table = _lanes(row, B, H), _lanes(table, B, H)
        live_rows = None if given.rows is None else _lanes(given.rows, B, H, row.shape[-1])
        live = None if given.targets is None else _lanes(given.targets, B, H, table.shape[-1])
        found, most, known = [], 1, {}
        for lane in range(B * H):
            one = [None if x is None else x[lane] for x in (lanes_rows, lanes_table, live_rows, live)]
            key = tuple(None if x is None else (x.data_ptr(), x.stride()) for x in one)
            if key not in known:
                known[key] = self.runs_of_lane(*one)  # pyright: ignore[reportArgumentType]
            found.append(known[key])
            most = max(most, found[-1][0].shape[-1])
        found = [[_padded(x, most, self.length) for x in both] for both in found]
        starts, ends = (torch.stack(x) if len(found) > 1 else x[0].unsqueeze(0) for x in zip(*found, strict=True))
        return Intervals(*(x.view(B, H, -1, most) for x in (starts, ends)))

    def runs_of_lane(
        self, row: Tensor, table: Tensor, live_rows: Tensor | None, live: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """First and one past last target of each run of the row's value, (n, runs)."""
        n = self.length
        values, counts = torch.unique_consecutive(table, return_counts=True)
        end = counts.cumsum(0)
        begin = end - counts
        if live is not None and values.shape[0] > 1:
            # Runs without a live target are as good as absent.
            alive = torch.nn.functional.pad(live.long().cumsum(0), (1, 0))
            some = (alive[end] > alive[begin]).nonzero().squeeze(1)
            values, begin, end = values[some], begin[some], end[some]
        ids, of_row = torch.unique_consecutive(row, return_counts=True)
        steps = values.diff() if values.shape[0] > 1 else values
        if values.shape[0] > 1 and bool((steps <= 0).any()):
            values, order = values.sort(dim=0, stable=True)
            begin, end = begin[order], end[order]
        first = torch.searchsorted(values, ids)
        beyond = torch.searchsorted(values, ids, right=True)
        many = beyond - first
        asked = many if live_rows is None else many[_any_of(live_rows, of_row)]
        most = int(asked.max()) if asked.shape[0] else 0
        if most > MOST:
            raise Unsolved(f"an id whose tokens lie in {most} runs")
        most = max(most, 1)
        place = first.unsqueeze(-1) + torch.arange(most, device=self.device)
        inside = place < beyond.unsqueeze(-1)
        if values.shape[0]:
            place = place.clamp(max=values.shape[0] - 1)
            start, stop = torch.where(inside, begin[place], n), torch.where(inside, end[place], n)
        else:
            start = stop = torch.full(place.shape, n, dtype=torch.long, device=self.device)
        if ids.shape[0] == row.shape[0]:
            return start, stop
        rows = row.shape[0]
        start = torch.repeat_interleave(start, of_row, dim=0, output_size=rows)
        return start, torch.repeat_interleave(stop, of_row, dim=0, output_size=rows)


def _padded(x: Tensor, most: int, value: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, most - x.shape[-1]), value=value) if x.shape[-1] < most else x


def _any_of(live: Tensor, counts: Tensor) -> Tensor:
    """Whether any entry of each run is live."""
    alive = torch.nn.functional.pad(live.long().cumsum(0), (1, 0))
    end = counts.cumsum(0)
    return alive[end] > alive[end - counts]


def _lanes(x: Tensor, B: int, H: int, n: int | None = None) -> Tensor:  # (B * H, n)
    n = x.shape[-1] if n is None else n
    expanded = x.expand(B, H, n)
    if x.shape[0] == 1 and x.shape[1] == 1:
        return x.view(1, -1).expand(B * H, n)
    return expanded.reshape(B * H, n)


def _grows(table: Tensor) -> bool | None:
    """True if values never decrease along the last axis, False if they never increase, None otherwise."""
    if table.shape[-1] < 2:
        return True
    a, b = table[..., :-1], table[..., 1:]
    if bool((a <= b).all()):
        return True
    return False if bool((a >= b).all()) else None


def _search(table: Tensor, row: Tensor, right: bool) -> Tensor:
    """`torch.searchsorted` lane by lane, by runs of equal values where there are few."""
    B, H = (max(row.shape[d], table.shape[d]) for d in (0, 1))
    if B * H > 1 and table.shape[:2] != (1, 1):
        both = table.expand(B, H, table.shape[-1]).contiguous(), row.expand(B, H, row.shape[-1]).contiguous()
        return torch.searchsorted(*both, right=right)
    flat, wanted = table.reshape(-1), row
    ids = of_row = None
    if row.shape[:2] == (1, 1):
        ids, of_row = torch.unique_consecutive(row.reshape(-1), return_counts=True)
        wanted = ids
    values, counts = torch.unique_consecutive(flat, return_counts=True)
    if values.shape[0] * 2 < flat.shape[0]:
        edges = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        found = edges[torch.searchsorted(values, wanted, right=right)]
    else:
        found = torch.searchsorted(flat, wanted, right=right)
    if ids is not None and of_row is not None:
        found = torch.repeat_interleave(found, of_row, output_size=row.shape[-1]).view(row.shape)
    return found
