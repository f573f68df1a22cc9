"""Layouts of key/value caches: which position stands in which slot, and whether it is valid."""

from maskmod.caches.layouts import (
    CacheLayout,
    ChunkedCache,
    PagedCache,
    RingCache,
    SlidingCache,
    Slots,
    StaticCache,
    device_for,
    on_cache,
    positions_of,
)
from maskmod.caches.prefix_ring import PrefixRingCache

__all__ = [
    "CacheLayout",
    "ChunkedCache",
    "PagedCache",
    "PrefixRingCache",
    "RingCache",
    "SlidingCache",
    "Slots",
    "StaticCache",
    "device_for",
    "on_cache",
    "positions_of",
]
