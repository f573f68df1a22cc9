"""Real text as bytes: packed documents to train on, and a left-padded batch of prompts.

The documents are paragraphs of the language reference that every Python ships as its ``help()`` topics. This module
knows nothing about masks; what it returns says where documents and prompts begin.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["PROMPTS", "VOCABULARY", "LeftPadded", "Packed", "documents", "left_padded", "packed", "text_from"]

VOCABULARY = 256  # byte-level: no tokenizer to fetch, every text can be written

PROMPTS = (
    "The ",
    "A class definition ",
    "If the expression is not found, the ",
    "When a function is called, the arguments",
)

_TOPICS = ("assignment", "class", "compound", "customization", "execmodel", "function", "import", "strings", "types")
_SHORTEST, _LONGEST = 80, 400  # bytes of a document: long enough to teach, short enough that a row packs several


class Packed(NamedTuple):
    """Documents laid end to end and cut into rows; a document cut at the end of a row goes on in the next."""

    tokens: Tensor  # (rows, row_len) int64
    document_ids: Tensor  # (rows, row_len) int64
    documents: int


class LeftPadded(NamedTuple):
    """Prompts of different lengths that all end in the last column."""

    tokens: Tensor  # (B, prompt_len) int64
    pads: Tensor  # (B,) int64: columns before each prompt


def documents() -> list[str]:
    """Prose paragraphs of the language reference, each one line, each once."""
    from pydoc_data.topics import topics

    paragraphs = [part for name in _TOPICS if name in topics for part in topics[name].split("\n\n")]
    prose = [" ".join(part.split()) for part in paragraphs if re.match(r"[A-Z]", part)]
    return [part for part in dict.fromkeys(prose) if _SHORTEST <= len(part) <= _LONGEST]


def packed(texts: list[str], row_len: int, *, seed: int) -> Packed:
    """The documents in a seeded order, a newline after each, in rows of ``row_len`` tokens."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    streams = [(texts[i] + "\n").encode() for i in order]
    lengths = torch.tensor([len(stream) for stream in streams])
    tokens = torch.tensor(list(b"".join(streams)))
    ids = torch.arange(len(streams)).repeat_interleave(lengths)
    whole = len(tokens) // row_len * row_len  # the rest of a row is left out
    return Packed(tokens[:whole].view(-1, row_len), ids[:whole].view(-1, row_len), len(streams))


def left_padded(prompts: Sequence[str], prompt_len: int) -> LeftPadded:
    """The prompts, each moved to the end of ``prompt_len`` columns."""
    encoded = [prompt.encode()[-prompt_len:] for prompt in prompts]
    rows = [list(prompt.rjust(prompt_len, b"\0")) for prompt in encoded]
    return LeftPadded(torch.tensor(rows), torch.tensor([prompt_len - len(prompt) for prompt in encoded]))


def text_from(tokens: Tensor) -> str:
    """The bytes ``(n,)`` as text; what is no UTF-8 shows as a replacement character."""
    return bytes(tokens.tolist()).decode(errors="replace")
