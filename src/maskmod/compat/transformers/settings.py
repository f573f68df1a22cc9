"""What `install` may declare for every call: how strict to be, and whether batches are packed."""

from __future__ import annotations

__all__ = ["DEFAULTS", "Defaults", "is_strict"]


class Defaults:
    """The values that the keywords of the same names take where a call leaves them None."""

    strict: bool = False
    packed: bool | None = None


DEFAULTS = Defaults()


def is_strict(strict: bool | None) -> bool:
    return DEFAULTS.strict if strict is None else strict
