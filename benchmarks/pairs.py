"""Measure functions side by side: alternating runs in one process, so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Timing", "alternate"]


TURN = 0.02  # seconds


class Timing(NamedTuple):
    """Milliseconds: the first call, then the median, fastest and slowest of the others."""

    first: float
    median: float
    least: float
    most: float


def alternate(
    functions: dict[str, Callable[[], object]], repeats: int, seconds: float, failures: dict[str, str] | None = None
) -> dict[str, Timing]:
    """Time each function `repeats` times in turn, or until `seconds` are over (but at least twice).

    A turn after the first repeats a short function for TURN seconds and takes the mean: what a call costs a program
    that makes it again and again, not what it costs after a peer has filled the caches with a gigabyte.

    A function that fails at its first call is left out, with its reason in ``failures`` if that is given.
    """
    samples: dict[str, list[float]] = {name: [] for name in functions}
    begin = time.perf_counter()
    for done in range(repeats + 1):
        for name, function in functions.items():
            if name not in samples:
                continue
            start, calls = time.perf_counter(), 0
            try:
                while not calls or (done and time.perf_counter() - start < TURN):
                    function()
                    calls += 1
            except Exception as error:  # a peer that cannot do it is a result
                if done or failures is None:
                    raise
                failures[name] = type(error).__name__
                del samples[name]
                continue
            samples[name].append((time.perf_counter() - start) * 1e3 / calls)
        if done >= 2 and time.perf_counter() - begin > seconds:
            break
    return {name: Timing(s[0], statistics.median(s[1:]), min(s[1:]), max(s[1:])) for name, s in samples.items()}
