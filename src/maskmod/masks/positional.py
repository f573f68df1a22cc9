"""Masks by position alone: bands, strides, chunks, prefixes, sinks. Every docstring counts the keys a query sees."""

from __future__ import annotations

from torch import Tensor

from maskmod._torch.tracing import known_true
from maskmod.algebra import Mask, spell
from maskmod.algebra.lookup import (
    check_count,
    check_row_count,
    check_row_scalar,
    row_scalar,
)
from maskmod.masks.inner import coarse

__all__ = [
    "Causal",
    "Chunked",
    "DiagonalBand",
    "Dilated",
    "Full",
    "Prefix",
    "QueryPrefix",
    "Sinks",
    "SlidingWindow",
    "StreamingChunks",
    "Window",
    "anti_causal",
    "band",
    "block_causal",
    "causal",
    "chunked",
    "dilated",
    "dilated_window",
    "full",
    "prefix",
    "query_prefix",
    "sinks",
    "sliding_window",
    "streaming_chunks",
    "strict_causal",
    "window",
]


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


class DiagonalBand(Mask):
    """See `band`."""

    lower: int | Tensor | None
    upper: int | Tensor | None

    _name = "band"

    def __post_init__(self):
        for bound in (self.lower, self.upper):
            if isinstance(bound, Tensor):
                check_count(self, bound, unit="positions")
            elif bound is not None:
                check_row_scalar(self, bound)

    def __call__(self, b, h, q_idx, kv_idx):
        distance = kv_idx - q_idx
        if self.lower is None:
            return distance == distance if self.upper is None else distance <= self.upper
        reaches = distance >= self.lower
        return reaches if self.upper is None else reaches & (distance <= self.upper)


def band(lower: int | Tensor | None, upper: int | Tensor | None) -> Mask:
    """The diagonals ``lower <= kv_idx - q_idx <= upper``: upper - lower + 1 keys, of any sign, None unbounded.

    `window` counts neighbours around the query; a band need not hold the query itself. It is MagiAttention's bi-causal
    slice and its ``d_range``; TensorFlow's ``matrix_band_part(x, l, u)`` keeps ``band(-l, u)``.

    Args:
        lower, upper: ints, 0-d integer tensors, or None.

    >>> [kv for kv in range(9) if band(-3, -1)(0, 0, 4, kv)]
    [1, 2, 3]
    """
    return DiagonalBand(lower, upper)


def strict_causal() -> Mask:
    """Query q sees keys 0..q - 1, not itself: q of them; the first sees nothing.

    >>> [kv for kv in range(4) if strict_causal()(0, 0, 2, kv)]
    [0, 1]
    """
    return band(None, -1)


def anti_causal() -> Mask:
    """Query q sees itself and every later key: kv_len - q of them (MagiAttention's inverse causal; HSTU).

    >>> [kv for kv in range(4) if anti_causal()(0, 0, 2, kv)]
    [2, 3]
    """
    return window(0, None)


class Dilated(Mask):
    """See `dilated`."""

    dilation: int | Tensor

    _name = "dilated"

    def __post_init__(self):
        check_count(self, self.dilation, unit="positions")

    def __call__(self, b, h, q_idx, kv_idx):
        return (q_idx - kv_idx) % self.dilation == 0


def dilated(n: int | Tensor) -> Mask:
    """Every n-th key, counted from the query's own: a share of 1/n of the keys, to be combined.

    A dilated window is ``window(w, w) & dilated(n)``, `dilated_window`; the strided heads of the Sparse Transformer are
    ``causal() & dilated(n)``, `strided`.

    Args:
        n: the step, at least 1.

    >>> [kv for kv in range(9) if dilated(3)(0, 0, 4, kv)]
    [1, 4, 7]
    """
    return Dilated(n)


def dilated_window(w: int | Tensor, dilation: int | Tensor) -> Mask:
    """Every ``dilation``-th key at a distance of w or less: ``2 * (w // dilation) + 1`` keys (Longformer).

    attention-gym's ``generate_dilated_sliding_window(w, dilation)``. NATTEN's dilation counts kernel places instead:
    `neighborhood`.

    >>> [kv for kv in range(9) if dilated_window(4, 2)(0, 0, 4, kv)]
    [0, 2, 4, 6, 8]
    """
    return window(w, w) & dilated(dilation)


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


def block_causal(size: int | Tensor) -> Mask:
    """Causal from block to block, both ways inside one: ``kv_idx // size <= q_idx // size``.

    Query q sees ``(q // size + 1) * size`` keys, its own block and all before it (video frames; WeNet's chunks; the
    decoding of block diffusion models, ``shift(block_causal(size), q_offset=cached)``).

    Args:
        size: tokens in a block, at least 1.

    >>> [kv for kv in range(9) if block_causal(3)(0, 0, 4, kv)]
    [0, 1, 2, 3, 4, 5]
    """
    return coarse(causal(), size)


class StreamingChunks(Mask):
    """See `streaming_chunks`."""

    size: int | Tensor
    left: int | Tensor | None
    lookahead: int | Tensor

    _name = "streaming_chunks"

    def __post_init__(self):
        check_count(self, self.size)
        if self.left is not None:
            check_count(self, self.left, least=0, unit="chunks")
        check_count(self, self.lookahead, least=0)

    def __call__(self, b, h, q_idx, kv_idx):
        begin = q_idx // self.size * self.size
        visible = kv_idx < begin + self.size + self.lookahead
        return visible if self.left is None else visible & (kv_idx >= begin - self.left * self.size)


def streaming_chunks(size: int | Tensor, left: int | Tensor | None = None, lookahead: int | Tensor = 0) -> Mask:
    """Each query sees its own chunk, ``left`` chunks before it, and ``lookahead`` keys after it.

    At most ``(left + 1) * size + lookahead`` keys. WeNet's ``subsequent_chunk_mask(num_left_chunks=left)``; NeMo's
    ``chunked_limited`` with a context of [l, r] is size r + 1 and left ``l // size``.

    Args:
        size: keys in a chunk, at least 1.
        left: chunks before the query's own; None sees all of them.
        lookahead: keys after the chunk.

    >>> [kv for kv in range(9) if streaming_chunks(3, left=0, lookahead=1)(0, 0, 4, kv)]
    [3, 4, 5, 6]
    """
    return StreamingChunks(size, left, lookahead)


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


class QueryPrefix(Mask):
    """See `query_prefix`."""

    n: int | Tensor

    _name = "query_prefix"

    def __post_init__(self):
        if isinstance(self.n, Tensor):
            check_row_scalar(self, self.n)
        else:
            check_count(self, self.n, least=0)

    def __call__(self, b, h, q_idx, kv_idx):
        return q_idx < row_scalar(self.n, b)

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_row_count(self, self.n, B)


def query_prefix(n: int | Tensor) -> Mask:
    """The first n queries see every key, the others nothing; to be combined: `prefix`, turned round.

    Text before a video that sees all of it is ``query_prefix(n) | ...`` (Sparse VideoGen).

    Args:
        n: queries, zero or more: int, or an integer tensor of shape (), (1,) or (B,).

    >>> query_prefix(2)(0, 0, 1, 5), query_prefix(2)(0, 0, 2, 5)
    (True, False)
    """
    return QueryPrefix(n)


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
