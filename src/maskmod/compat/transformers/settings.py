"""What is decided outside a call: what `install` declares for every call, and what a release of transformers does.

Releases differ in names and in the order of two operations. Each is a record here, and the code asks the record.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["DEFAULTS", "NEWEST", "RELEASES", "Defaults", "Release", "is_strict"]


class Release(NamedTuple):
    """What a release of transformers does, where tested releases differ.

    Attributes:
        cache_name: the argument of a mask function that holds the cache.
        spans_stay_in_documents: packing is applied after ``block_sequence_ids``; applied before it, equal ids in two
            documents see each other.
        asks_masks_to_be_contiguous: ``generate`` calls ``contiguous()`` of every mask, also of one that is no tensor.
    """

    cache_name: str
    spans_stay_in_documents: bool
    asks_masks_to_be_contiguous: bool


RELEASES = {"5.23.0": Release("past_key_values", False, True), "5.24.0": Release("cache", True, False)}
"""The releases that `install` was tested with."""

NEWEST = RELEASES["5.24.0"]
"""What an unknown release is taken for, and what the functions do while nothing is installed."""


class Defaults:
    """The values that the keywords of the same names take where a call leaves them None, and the release to follow."""

    strict: bool = False
    packed: bool | None = None
    release: Release = NEWEST


DEFAULTS = Defaults()


def is_strict(strict: bool | None) -> bool:
    return DEFAULTS.strict if strict is None else strict
