"""What `install` may declare for every call: how strict to be, and whether batches are packed."""

from __future__ import annotations

__all__ = ["DEFAULTS", "Settings"]


class Settings:
    """The values that the keyword arguments of the same name take where a call leaves them None."""

    strict: bool = False
    packed: bool | None = None


DEFAULTS = Settings()
