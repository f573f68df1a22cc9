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

__all__ = [
    "CacheLayout",
    "ChunkedCache",
    "PagedCache",
    "RingCache",
    "SlidingCache",
    "Slots",
    "StaticCache",
    "device_for",
    "on_cache",
    "positions_of",
]
