"""The vocabulary: the masks that people name. True means visible; every docstring counts the keys a query sees.

Predicates see logical positions. This module knows nothing of caches, blocks or backends, and reorders nothing:
a mask for packed images is ``((causal() & window & document(ids)) | blockwise(image_ids)) & key_padding(valid)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskmod.algebra import Mask, spell
from maskmod.errors import MaskTypeError
from maskmod.tables import (
    check_count,
    check_row_count,
    check_row_scalar,
    check_table,
    check_table_sizes,
    is_set,
    look_up,
    row_scalar,
    wide,
)
from maskmod.tracing import known_true

__all__ = [
    "Blockwise",
    "Causal",
    "Chunked",
    "Document",
    "Full",
    "KeyLengths",
    "KeyPadding",
    "Prefix",
    "Sinks",
    "SlidingWindow",
    "Window",
    "blockwise",
    "causal",
    "chunked",
    "document",
    "full",
    "key_padding",
    "prefix",
    "sinks",
    "sliding_window",
    "window",
]


# ----------------------------------------------------------------------------------------------------- by position


class Full(Mask):
    """See `full`."""

    _name = "full"

    def __call__(self, b, h, q_idx, kv_idx):
        return kv_idx == kv_idx  # a comparison, not `True`: torch's vmap takes tensors only


def full() -> Mask:
    """Every query sees every key: kv_len keys.

    >>> full()(0, 0, 0, 7)
    True
    """
    return Full()


class Causal(Mask):
    """See `causal`."""

    _name = "causal"

    def __call__(self, b, h, q_idx, kv_idx):
        return kv_idx <= q_idx


def causal() -> Mask:
    """Query q sees keys 0..q: q + 1 of them. Aligned top-left, as in flex and SDPA's ``is_causal``.

    Flash-attention 2.1 and later, and transformers, align bottom-right where lengths differ; that is
    ``shift(causal(), q_offset=kv_len - q_len)``.

    >>> causal()(0, 0, 3, 2), causal()(0, 0, 2, 3)
    (True, False)
    """
    return Causal()


class SlidingWindow(Mask):
    """See `sliding_window`."""

    size: int | Tensor

    _name = "sliding_window"

    def __post_init__(self):
        check_count(self, self.size)

    def __call__(self, b, h, q_idx, kv_idx):
        return (kv_idx <= q_idx) & (q_idx - kv_idx < self.size)


def sliding_window(n: int | Tensor) -> Mask:
    """Each query sees n keys, itself included: ``0 <= q_idx - kv_idx < n`` (Longformer; Mistral).

    The same n in transformers (``sliding_window=n``), vLLM and torchtitan. Flash-attention spells it
    ``window_size=(n - 1, 0)``; attention-gym's ``generate_sliding_window(n - 1)`` and the legacy transformers converter
    with ``sliding_window=n - 1`` see the same n keys.

    Args:
        n: number of keys, at least 1; a 0-d integer tensor keeps it out of the compiled graph.

    >>> [kv for kv in range(6) if sliding_window(3)(0, 0, 4, kv)]
    [2, 3, 4]
    """
    return SlidingWindow(n)


class Window(Mask):
    """See `window`."""

    left: int | Tensor | None
    right: int | Tensor | None

    _name = "window"

    def __post_init__(self):
        for side in (self.left, self.right):
            if side is not None:
                check_count(self, side, least=0, unit="neighbours")

    def __call__(self, b, h, q_idx, kv_idx):
        if self.left is None:
            return kv_idx == kv_idx if self.right is None else kv_idx - q_idx <= self.right
        reaches_left = q_idx - kv_idx <= self.left
        return reaches_left if self.right is None else reaches_left & (kv_idx - q_idx <= self.right)


def window(left: int | Tensor | None, right: int | Tensor | None) -> Mask:
    """Each query sees ``left`` neighbours before it, itself, and ``right`` after it: left + right + 1 keys.

    Counts are inclusive, as in flash-attention's ``window_size=(left, right)``, whose -1 is None here: unbounded.
    Unlike there, position 0 of queries meets position 0 of keys; flash aligns the last ones (see `shift`). xformers'
    ``LocalAttention`` and transformers' bidirectional window of w are ``window(w, w)``.

    >>> [kv for kv in range(9) if window(2, 1)(0, 0, 4, kv)]
    [2, 3, 4, 5]
    """
    return Window(left, right)


class Chunked(Mask):
    """See `chunked`."""

    size: int | Tensor
    start: int | Tensor = 0

    _name = "chunked"

    def __post_init__(self):
        check_count(self, self.size)
        check_row_scalar(self, self.start)

    def __call__(self, b, h, q_idx, kv_idx):
        start = row_scalar(self.start, b)
        return (q_idx - start) // self.size == (kv_idx - start) // self.size

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_row_count(self, self.start, B)

    def __repr__(self) -> str:
        start = self.start
        written = "" if not isinstance(start, Tensor) and known_true(start == 0) else f", start={spell(start)}"
        return f"chunked({spell(self.size)}{written})"


def chunked(size: int | Tensor, *, start: int | Tensor = 0) -> Mask:
    """Each query sees the ``size`` keys of its own chunk: ``(q_idx - start) // size == (kv_idx - start) // size``.

    Bidirectional, as in torchtitan's fixed-block mask; Llama 4's chunked attention is ``causal() & chunked(size)``,
    where a query sees at most ``size`` keys.

    Args:
        size: keys in a chunk, at least 1.
        start: position where a chunk begins (left padding, say): int, or a tensor of shape (), (1,) or (B,).

    >>> [kv for kv in range(8) if chunked(3, start=1)(0, 0, 5, kv)]
    [4, 5, 6]
    """
    return Chunked(size, start)


class Prefix(Mask):
    """See `prefix`."""

    n: int | Tensor

    _name = "prefix"

    def __post_init__(self):
        if isinstance(self.n, Tensor):
            check_row_scalar(self, self.n)
        else:
            check_count(self, self.n, least=0)

    def __call__(self, b, h, q_idx, kv_idx):
        return kv_idx < row_scalar(self.n, b)

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_row_count(self, self.n, B)


def prefix(n: int | Tensor) -> Mask:
    """Every query sees the first n keys: ``kv_idx < n``. A prefix language model is ``causal() | prefix(n)`` (T5,
    PaliGemma).

    Args:
        n: keys in the prefix, zero or more: int, or an integer tensor of shape (), (1,) or (B,), one per batch row.

    >>> (causal() | prefix(3))(0, 0, 0, 2)
    True
    """
    return Prefix(n)


class Sinks(Mask):
    """See `sinks`."""

    n: int | Tensor

    _name = "sinks"

    def __post_init__(self):
        check_count(self, self.n, least=0)

    def __call__(self, b, h, q_idx, kv_idx):
        return kv_idx < self.n


def sinks(n: int | Tensor) -> Mask:
    """The first n keys, kept visible beside a window: ``causal() & (sliding_window(w) | sinks(n))`` (StreamingLLM).

    There a query sees at most w + n keys. Without ``causal()`` it shows the future to the first n - 1 queries. It
    hides and shows keys; it is not the learned softmax sink of gpt-oss.

    >>> [kv for kv in range(9) if (causal() & (sliding_window(2) | sinks(1)))(0, 0, 6, kv)]
    [0, 5, 6]
    """
    return Sinks(n)


# -------------------------------------------------------------------------------------------------------- by table


class Document(Mask):
    """See `document`."""

    q_ids: Tensor
    kv_ids: Tensor | None  # None: the queries' ids serve both sides

    _name = "document"

    def __post_init__(self):
        check_table(self, self.q_ids)
        if self.kv_ids is not None:
            check_table(self, self.kv_ids)

    def __call__(self, b, h, q_idx, kv_idx):
        q_id, q_in_range = look_up(self.q_ids, b, q_idx)
        kv_id, kv_in_range = look_up(self.q_ids if self.kv_ids is None else self.kv_ids, b, kv_idx)
        return (q_id == kv_id) & q_in_range & kv_in_range

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_table_sizes(self, self.q_ids, B, q_len, "q_len")
        check_table_sizes(self, self.q_ids if self.kv_ids is None else self.kv_ids, B, kv_len, "kv_len")

    def __repr__(self) -> str:
        if self.kv_ids is None:
            return f"document({spell(self.q_ids)})"
        return f"document({spell(self.q_ids)}, {spell(self.kv_ids)})"


def document(q_ids: Tensor, kv_ids: Tensor | None = None) -> Mask:
    """Each query sees the keys that carry its own id: as many as its document has. Equality, nothing more.

    ``document(ids)`` serves both sides; ``document(q_ids, kv_ids)`` gives each its own. Packed causal training is
    ``causal() & document(ids)``. Ids need not be sorted. An index outside the table is hidden.

    Args:
        q_ids: integer ids, shape (n,) or (B, n), n at least the length it is read at.
        kv_ids: the same for keys; None takes ``q_ids``.

    >>> ids = torch.tensor([0, 0, 0, 1, 1])
    >>> [kv for kv in range(5) if document(ids)(0, 0, 3, kv)]
    [3, 4]
    """
    return Document(q_ids, kv_ids)


class Blockwise(Mask):
    """See `blockwise`."""

    ids: Tensor

    _name = "blockwise"

    def __post_init__(self):
        check_table(self, self.ids)

    def __call__(self, b, h, q_idx, kv_idx):
        q_id, q_in_range = look_up(self.ids, b, q_idx)
        kv_id, kv_in_range = look_up(self.ids, b, kv_idx)
        return (q_id == kv_id) & (wide(q_id, self.ids) != -1) & q_in_range & kv_in_range

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_table_sizes(self, self.ids, B, q_len, "q_len")
        check_table_sizes(self, self.ids, B, kv_len, "kv_len")


def blockwise(ids: Tensor) -> Mask:
    """Each query sees the keys of its own span; -1 is in no span, and sees and shows nothing.

    Image spans in a causal text are ``causal() | blockwise(image_ids)`` (Gemma 3; transformers calls the ids
    ``block_sequence_ids``).

    Args:
        ids: integer span ids, -1 for none, shape (n,) or (B, n).

    >>> ids = torch.tensor([-1, 7, 7, -1])
    >>> [kv for kv in range(4) if blockwise(ids)(0, 0, 1, kv)], [kv for kv in range(4) if blockwise(ids)(0, 0, 0, kv)]
    ([1, 2], [])
    """
    return Blockwise(ids)


class KeyPadding(Mask):
    """See `key_padding`."""

    valid: Tensor

    _name = "key_padding"

    def __post_init__(self):
        check_table(self, self.valid, holds="validity", booleans=True)

    def __call__(self, b, h, q_idx, kv_idx):
        return is_set(self.valid, b, kv_idx)

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_table_sizes(self, self.valid, B, kv_len, "kv_len")


class KeyLengths(Mask):
    """See `key_padding`."""

    lengths: Tensor

    _name = "key_padding"

    def __post_init__(self):
        if self.lengths.dtype == torch.bool:
            seen = "a 1-D bool could be one row of validity or B flags"
            raise MaskTypeError(self, seen, "Pass validity as (B, n): x[None] for one row.")
        check_table(self, self.lengths, holds="lengths")

    def __call__(self, b, h, q_idx, kv_idx):
        return (kv_idx >= 0) & (kv_idx < row_scalar(self.lengths, b))

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_row_count(self, self.lengths, B)


def key_padding(x: Tensor) -> Mask:
    """Every query sees the valid keys of its row, and no others.

    Args:
        x: validity, shape (B, n), bool or integers (nonzero is valid, as in tokenizers' attention masks); or lengths,
            integers of shape (B,): keys 0..length - 1 are valid (flash-attention's ``seqused_k``).

    Raises:
        MaskTypeError: a float tensor, or a 1-D bool, which could be one row of validity or B flags.

    >>> lengths = torch.tensor([1, 3])
    >>> [kv for kv in range(4) if key_padding(lengths)(1, 0, 0, kv)]
    [0, 1, 2]
    """
    return KeyLengths(x) if isinstance(x, Tensor) and x.dim() == 1 else KeyPadding(x)
