"""The errors maskmod raises. Every message has three parts: what was written, what was seen, what to do.

This module knows nothing about masks or tensors; callers describe them in words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

__all__ = [
    "BackendError",
    "MaskError",
    "MaskShapeError",
    "MaskTypeError",
    "MaskValueError",
    "RankError",
    "TruthValueError",
    "UnsupportedMask",
]


class MaskError(Exception):
    """Base of every error that maskmod raises on purpose.

    Args:
        written: what the caller wrote: source text (``"sliding_window(0)"``) or an object whose repr is that text. It
            is spelled out only here: reprs do not trace, and most checks pass.
        seen: what was found there (``"a window of 0 keys"``).
        todo: what to write instead, as a sentence.
    """

    template: ClassVar[str] = "{written}: {seen}. {todo}"

    if TYPE_CHECKING:  # at run time Exception's own: Dynamo traces no other, and then the message would be lost

        def __init__(self, written: object, seen: str, todo: str): ...

    @property
    def written(self) -> str:
        return str(self.args[0])

    @property
    def seen(self) -> str:
        return self.args[1]

    @property
    def todo(self) -> str:
        return self.args[2]

    def __str__(self) -> str:
        return self.template.format(written=self.written, seen=self.seen, todo=self.todo)


class MaskTypeError(MaskError, TypeError):
    """A value of a kind that has no meaning here: a non-callable mask, a float result, a bool length."""


class MaskValueError(MaskError, ValueError):
    """A number or name outside its range: a negative window, an unknown method."""


class MaskShapeError(MaskError, ValueError):
    """A tensor whose shape does not fit the lengths it meets; both sizes are named."""


class TruthValueError(MaskError, TypeError):
    """A mask or a tensor was asked for one truth value: ``and``, ``or``, ``not`` and ``if`` do that."""


class UnsupportedMask(MaskError, ValueError):
    """A backend that cannot express this mask exactly, with the reason and the way out."""

    template = "{written}: not supported, {seen}. {todo}"


class BackendError(MaskError, ValueError):
    """A backend name that nobody registered, or registered twice."""


class RankError(MaskError, RuntimeError):
    """A rank that died, is late, or disagrees with the others; every other rank raises it, with the rank's number."""
