"""Sets of indices as a few intervals for each row: their union, intersection and complement, exact.

A row's intervals are ascending and apart; a place that is not used is empty and stands at the end. Nothing here knows
what is read, or why.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["MOST", "Intervals", "Unsolved", "complement", "met", "united"]

MOST = 8  # intervals of one row, at most: beyond, tiles are the better description


class Unsolved(Exception):
    """No answer from orders and equalities alone, and why; not an error of the user's."""


class Intervals(NamedTuple):
    """Half-open intervals of each row: (B|1, H|1, n|1, m) int64 each, ascending and apart; unused ones are empty."""

    start: Tensor
    end: Tensor


def united(parts: list[Intervals], length: int) -> Intervals:
    """The union of several lists of intervals, row by row."""
    if len(parts) == 1:
        return parts[0]
    shape = torch.broadcast_shapes(*(p.start.shape[:-1] for p in parts))
    start = torch.cat([p.start.expand(*shape, -1) for p in parts], -1)
    end = torch.cat([p.end.expand(*shape, -1) for p in parts], -1)
    if start.shape[-1] == 2:
        return _united_pair(start, end, length)
    return tidy(start, end, length, merge=True)


def _united_pair(start: Tensor, end: Tensor, n: int) -> Intervals:
    (a, c), (b, d) = start.unbind(-1), end.unbind(-1)
    empty_a, empty_c = a >= b, c >= d
    a, c = torch.where(empty_a, n, a), torch.where(empty_c, n, c)
    b, d = torch.where(empty_a, n, b), torch.where(empty_c, n, d)
    first, second = torch.minimum(a, c), torch.maximum(a, c)
    first_end = torch.where(a <= c, b, d)
    first_end = torch.where(a == c, torch.maximum(b, d), first_end)
    second_end = torch.where(a <= c, d, b)
    joined = (second <= first_end) | (second >= n)
    first_end = torch.where(joined & (second < n), torch.maximum(first_end, second_end), first_end)
    if bool(joined.all()):
        return Intervals(first.unsqueeze(-1), first_end.unsqueeze(-1))
    starts = torch.stack([first, torch.where(joined, n, second)], -1)
    ends = torch.stack([first_end, torch.where(joined, n, second_end)], -1)
    return Intervals(starts, ends)


def tidy(start: Tensor, end: Tensor, n: int, *, merge: bool = False) -> Intervals:
    """Ascending, without empty ones between, no wider than needed; `merge` joins those that touch."""
    empty = start >= end
    start, end = torch.where(empty, n, start), torch.where(empty, n, end)
    if start.shape[-1] == 2 and not merge:  # sorting short rows is slow
        (a, c), (b, d) = start.unbind(-1), end.unbind(-1)
        swap = c < a
        start = torch.stack([torch.minimum(a, c), torch.maximum(a, c)], -1)
        end = torch.stack([torch.where(swap, d, b), torch.where(swap, b, d)], -1)
        return Intervals(start, end) if bool((start[..., 1] < n).any()) else Intervals(start[..., :1], end[..., :1])
    start, order = start.sort(dim=-1, stable=True)
    end = end.gather(-1, order)
    if merge:
        reach = end.cummax(-1).values
        begins = torch.ones_like(start, dtype=torch.bool)
        begins[..., 1:] = start[..., 1:] > reach[..., :-1]
        begins &= start < n
        # The end of a joined interval is the reach just before the next one begins.
        place = begins.cumsum(-1) - 1
        m = start.shape[-1]
        place = torch.where(start < n, place, m)
        starts = torch.full((*start.shape[:-1], m + 1), n, dtype=torch.long, device=start.device)
        ends = torch.zeros_like(starts)
        starts = starts.scatter_reduce(-1, place, start, "amin")
        ends = ends.scatter_reduce(-1, place, torch.where(start < n, reach, 0), "amax")
        start, end = starts[..., :m], ends[..., :m]
        end = torch.where(start < n, end, n)
    used = int((start < n).sum(-1).max()) if start.numel() else 0
    if used > MOST:
        raise Unsolved(f"a row of {used} intervals")
    used = max(used, 1)
    return Intervals(start[..., :used], end[..., :used])


def met(a: Intervals, b: Intervals, length: int) -> Intervals:
    """The intersection, row by row."""
    start = torch.maximum(a.start.unsqueeze(-1), b.start.unsqueeze(-2)).flatten(-2)
    end = torch.minimum(a.end.unsqueeze(-1), b.end.unsqueeze(-2)).flatten(-2)
    if start.shape[-1] == 1:
        return Intervals(torch.where(start < end, start, length), torch.where(start < end, end, length))
    return tidy(start, end, length)


def complement(found: Intervals, n: int) -> Intervals:
    """What is left of ``[0, n)`` in each row."""
    start = torch.nn.functional.pad(found.end, (1, 0))
    # An unused interval is (n, n): the gap before it is the last one, and what follows is empty.
    end = torch.nn.functional.pad(found.start, (0, 1), value=n)
    return tidy(start, end, n)
