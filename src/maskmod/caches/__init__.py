"""Layouts of key/value caches: which position stands in which slot, and whether it is valid."""

from maskmod.caches.flat import FlatLayout, Gathered, Paged
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
    "FlatLayout",
    "Gathered",
    "Paged",
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
