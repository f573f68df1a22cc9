"""A mask that sees more than its cache holds: refused where structure shows it, told as an assumption where not."""

from __future__ import annotations

from torch import Tensor

from maskmod.algebra import Mask
from maskmod.caches import CacheLayout, ChunkedCache, PrefixRingCache, RingCache, SlidingCache
from maskmod.errors import UnsupportedMask
from maskmod.facts.forgets import Lost, forgets

__all__ = ["check_reach"]


def check_reach(written: str, mask: Mask, layout: CacheLayout, H: int) -> str:
    """What must be assumed of the mask so that the cache holds every key that it shows; empty where nothing must.

    Raises:
        UnsupportedMask: structure alone shows a key that is gone by then.
    """
    gone, held = _gone(layout)
    lost = forgets(mask, H, gone)
    if isinstance(lost, Lost):
        raise UnsupportedMask(
            written,
            f"the query at position {lost.q} sees the key at {lost.kv}, {lost.q - lost.kv} before it, and the cache "
            f"then holds {held}",
            "Make the cache hold what the mask shows, narrow the mask (`& sliding_window(n)`), or take a StaticCache.",
        )
    return f"no query sees a key that the cache has forgotten; it holds {held}" if lost else ""


def _gone(layout: CacheLayout) -> tuple[list[tuple[int, int]], str]:
    """Pairs of a query and a key that is gone by then, the nearest and the farthest among them; and what is held."""
    kind = type(layout)  # a subclass may say something else than its base
    if kind is SlidingCache or kind is RingCache or kind is PrefixRingCache:
        assert isinstance(layout, (SlidingCache, RingCache, PrefixRingCache))
        kept = layout.prefix if isinstance(layout, PrefixRingCache) else 0
        held = f"the {layout.window} newest keys" + (f" and the first {kept}" if kept else "")
        queries = [kept + n * layout.window + more for n, more in ((1, 0), (1, 1), (2, 1), (3, 0), (9, 5))]
        return [(q, kv) for q in queries for kv in _some(kept, q - layout.window)], held
    if kind is ChunkedCache:
        assert isinstance(layout, ChunkedCache)
        size, start = layout.chunk, layout.start
        held = f"the query's own chunk of {size} keys"
        if isinstance(start, Tensor):  # wherever chunks begin, no key is held as long as a chunk
            queries = [n * size + more for n, more in ((1, 0), (1, 1), (2, 1), (9, 5))]
            return [(q, kv) for q in queries for kv in _some(0, q - size)], held
        queries = [start % size + n * size + more for n in (1, 2, 9) for more in (0, 1, size - 1)]
        return [(q, kv) for q in queries for kv in _some(0, q - (q - start) % size - 1)], held
    return [], "every key"


def _some(first: int, last: int) -> list[int]:
    """Of the positions from ``first`` to ``last``, the outermost two at each end and one between."""
    return sorted({kv for kv in (first, first + 1, (first + last) // 2, last - 1, last) if first <= kv <= last})
