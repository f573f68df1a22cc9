"""Sparse attention of the literature: a static pattern of windows, strides, global tokens, or a table of blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from maskmod.algebra import Mask, spell
from maskmod.algebra.lookup import check_count, check_size
from maskmod.errors import MaskTypeError, MaskValueError
from maskmod.masks.head_tables import check_layout, check_lead, check_length, entry
from maskmod.masks.inner import periodic
from maskmod.masks.packed import key_flags, query_flags
from maskmod.masks.positional import causal, chunked, dilated, prefix, sinks, sliding_window, window

__all__ = [
    "Bernoulli",
    "BlockLayout",
    "Diagonals",
    "DilatedHeads",
    "bernoulli",
    "bigbird",
    "block_layout",
    "diagonals",
    "dilated_heads",
    "fixed",
    "global_tokens",
    "longformer",
    "longnet",
    "sep_llm",
    "streaming_llm",
    "strided",
    "vertical_slash",
]


def strided(stride: int | Tensor) -> Mask:
    """The strided heads of the Sparse Transformer: every stride-th key up to the query, ``q // stride + 1`` of them.

    The paper's other half is a sliding window of as many keys; ``strided(n) | sliding_window(n)`` is both in one.

    >>> [kv for kv in range(9) if strided(3)(0, 0, 7, kv)]
    [1, 4, 7]
    """
    return causal() & dilated(stride)


def fixed(size: int, summary: int) -> Mask:
    """The fixed pattern of the Sparse Transformer: the query's block so far, and the last ``summary`` tokens of each.

    At most ``size + summary * (q // size)`` keys (DeepSpeed's ``FixedSparsityConfig``, in blocks).

    Args:
        size: tokens in a block.
        summary: tokens at the end of each block that later queries see, at most ``size``.

    >>> [kv for kv in range(9) if fixed(4, 1)(0, 0, 5, kv)]
    [3, 4, 5]
    """
    check_size(f"fixed({size!r}, {summary!r})", size)
    check_size(f"fixed({size!r}, {summary!r})", summary, least=0)
    if summary > size:
        raise MaskValueError(f"fixed({size}, {summary})", "more summary than block", f"Pass {size} or less.")
    return causal() & (chunked(size) | periodic(prefix(size - summary) ^ True, size))


def streaming_llm(n_sinks: int | Tensor, n: int | Tensor) -> Mask:
    """The first ``n_sinks`` keys and a window of n: at most ``n_sinks + n`` keys (StreamingLLM; A-shape in MInference).

    >>> [kv for kv in range(9) if streaming_llm(1, 2)(0, 0, 6, kv)]
    [0, 5, 6]
    """
    return causal() & (sliding_window(n) | sinks(n_sinks))


class Diagonals(Mask):
    """See `diagonals`."""

    flags: Tensor

    _name = "diagonals"

    def __post_init__(self):
        if not isinstance(self.flags, Tensor) or self.flags.is_floating_point() or self.flags.dim() not in (1, 2, 3):
            raise MaskTypeError(self, "no flags of diagonals", "Pass bool or integers (n,), (H, n) or (B, H, n).")

    def __call__(self, b, h, q_idx, kv_idx):
        value, inside = entry(self.flags, (b, h), q_idx - kv_idx)
        return (value if value is inside or self.flags.dtype == torch.bool else value != 0) & inside

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_lead(self, self.flags.unsqueeze(-1), B, H, 2)


def diagonals(flags: Tensor) -> Mask:
    """The keys at a flagged distance behind the query: ``flags[q_idx - kv_idx]``; past the table, hidden.

    Args:
        flags: bool or integers, one for each distance from 0: (n,), (H, n) or (B, H, n).

    >>> [kv for kv in range(6) if diagonals(torch.tensor([1, 0, 0, 1]))(0, 0, 4, kv)]
    [1, 4]
    """
    return Diagonals(flags)


def vertical_slash(vertical: Tensor, slash: Tensor) -> Mask:
    """Causal, on vertical lines and on diagonals: as many keys as both flag (MInference's vertical-slash heads).

    Args:
        vertical: flags of keys that all queries see, as in `key_flags`.
        slash: flags of distances, as in `diagonals`.

    >>> lines = vertical_slash(torch.tensor([0, 1, 0, 0, 0, 0]), torch.tensor([1, 1]))
    >>> [kv for kv in range(6) if lines(0, 0, 5, kv)]
    [1, 4, 5]
    """
    return causal() & (key_flags(vertical) | diagonals(slash))


def global_tokens(flags: Tensor) -> Mask:
    """The flagged tokens see every key, and every query sees them; to be combined.

    Args:
        flags: bool or integers (nonzero is global), shape (n,), (B, n) or (B, H, n).

    >>> some = global_tokens(torch.tensor([1, 0, 0]))
    >>> bool(some(0, 0, 0, 2)), bool(some(0, 0, 2, 0)), bool(some(0, 0, 2, 2))
    (True, True, False)
    """
    return key_flags(flags) | query_flags(flags)


def longformer(w: int | Tensor, flags: Tensor) -> Mask:
    """A window of w neighbours each way, and global tokens: ``2 * w + 1`` keys and the global ones (Longformer).

    transformers' ``attention_window`` is ``2 * w``; attention-gym's ``generate_global_sliding_window(w, flags)``.

    >>> [kv for kv in range(8) if longformer(1, torch.tensor([1, 0, 0, 0, 0, 0, 0, 0]))(0, 0, 5, kv)]
    [0, 4, 5, 6]
    """
    return window(w, w) | global_tokens(flags)


def sep_llm(n_sinks: int | Tensor, separators: Tensor, n: int | Tensor) -> Mask:
    """Causal: the first keys, every separator, and a window of n: at most ``n_sinks + separators + n`` keys (SepLLM).

    Args:
        n_sinks: first keys that every later query sees.
        separators: flags of the tokens that stand for their segment, as in `key_flags`.
        n: keys of the window, the query's own included.

    >>> [kv for kv in range(8) if sep_llm(1, torch.tensor([0, 0, 1, 0, 0, 0, 0, 0]), 2)(0, 0, 6, kv)]
    [0, 2, 5, 6]
    """
    return causal() & (sinks(n_sinks) | key_flags(separators) | sliding_window(n))


class DilatedHeads(Mask):
    """See `dilated_heads`."""

    dilation: int | Tensor

    _name = "dilated_heads"

    def __post_init__(self):
        check_count(self, self.dilation, unit="positions")

    def __call__(self, b, h, q_idx, kv_idx):
        return ((q_idx - h) % self.dilation == 0) & ((kv_idx - h) % self.dilation == 0)


def dilated_heads(n: int | Tensor) -> Mask:
    """Every n-th token sees every n-th token, beginning at the number of the head; the others see and show nothing.

    ``kv_len / n`` keys for the tokens that take part: of n heads, each has its own share of the tokens.

    Args:
        n: the step, at least 1.

    >>> [kv for kv in range(9) if dilated_heads(4)(0, 1, 5, kv)], dilated_heads(4)(0, 1, 4, 5)
    ([1, 5], False)
    """
    return DilatedHeads(n)


def longnet(segment: int | Tensor, dilation: int | Tensor) -> Mask:
    """One dilated attention of LongNet: in each segment every dilation-th token, beginning at the number of the head.

    ``segment / dilation`` keys for the tokens that take part, none for the others; LongNet adds up several pairs of
    segment and dilation, and `causal` where it decodes.

    Args:
        segment: tokens in a segment, a multiple of the dilation.
        dilation: the step between tokens that take part.

    >>> [kv for kv in range(16) if longnet(8, 4)(0, 1, 9, kv)]  # head 1: tokens 1, 5, 9, 13
    [9, 13]
    """
    return chunked(segment) & dilated_heads(dilation)


class BlockLayout(Mask):
    """See `block_layout`."""

    layout: Tensor
    q_size: int
    kv_size: int

    def __post_init__(self):
        check_layout(self, self.layout)
        check_size(self, self.q_size, unit="tokens")
        check_size(self, self.kv_size, unit="tokens")

    def __call__(self, b, h, q_idx, kv_idx):
        value, inside = entry(self.layout, (b, h), q_idx // self.q_size, kv_idx // self.kv_size)
        return (value if value is inside or self.layout.dtype == torch.bool else value != 0) & inside

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_lead(self, self.layout, B, H, 2)
        check_length(self, self.layout, -2, q_len, "q_len", self.q_size)
        check_length(self, self.layout, -1, kv_len, "kv_len", self.kv_size)

    def __repr__(self) -> str:
        size = self.q_size if self.q_size == self.kv_size else (self.q_size, self.kv_size)
        return f"block_layout({spell(self.layout)}, {size})"


def block_layout(layout: Tensor, size: int | tuple[int, int]) -> Mask:
    """A table of visible blocks: ``layout[b, h, q_idx // q_size, kv_idx // kv_size]``.

    A query sees the tokens of the blocks that its row names. BigBird, DeepSpeed's sparsity layouts, and whatever
    chooses blocks by content (NSA, MoBA, VSA; with blocks of one token, DSA). Write the next choice into the table in
    place.

    Args:
        layout: bool or integers (nonzero is visible), shape (q_blocks, kv_blocks), (H, ...) or (B, H, ...); a B or H of
            1 serves all.
        size: tokens of a block: one number, or (queries, keys).

    >>> [kv for kv in range(6) if block_layout(torch.tensor([[1, 0, 1], [0, 1, 0]]), (1, 2))(0, 0, 0, kv)]
    [0, 1, 4, 5]
    """
    q_size, kv_size = size if isinstance(size, tuple) else (size, size)
    return BlockLayout(layout, q_size, kv_size)


def bigbird(
    blocks: int,
    size: int,
    *,
    n_global: int = 1,
    n_window: int = 3,
    n_random: int = 3,
    heads: int = 1,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Mask:
    """BigBird's blocks: a window, the first blocks for all, and a few drawn at random for each row and head.

    At most ``size * (n_global + n_window + n_random)`` keys, all of them in the first ``n_global`` blocks. The draw is
    a table, made here once from ``seed``.

    Args:
        blocks: blocks in the sequence.
        size: tokens in a block.
        n_global: first blocks that see and are seen by all.
        n_window: blocks around the query's own, an odd number.
        n_random: blocks drawn for each row.
        heads: heads with a draw of their own.

    >>> mask = bigbird(8, 2, n_random=0)
    >>> [kv for kv in range(16) if mask(0, 0, 9, kv)]
    [0, 1, 6, 7, 8, 9, 10, 11]
    """
    place = torch.arange(blocks)
    near = (place[:, None] - place).abs() <= n_window // 2
    to_all = (place < n_global)[:, None] | (place < n_global)
    scores = torch.rand(heads, blocks, blocks, generator=torch.Generator().manual_seed(seed))
    scores = scores.masked_fill(near | to_all, -1.0)
    drawn = torch.zeros(heads, blocks, blocks, dtype=torch.bool)
    drawn.scatter_(-1, scores.topk(min(n_random, blocks)).indices, True)
    return block_layout((near | to_all | drawn).to(device), size)


class Bernoulli(Mask):
    """See `bernoulli`."""

    threshold: int
    seed: int

    def __call__(self, b, h, q_idx, kv_idx):
        # Products stay below 2**31: kernels count positions in int32.
        q, kv = q_idx % _PRIME, kv_idx % _PRIME
        mixed = (q * 8191 + kv * 127 + q_idx // _PRIME * 31 + kv_idx // _PRIME * 17 + self.seed) % _PRIME
        mixed = (mixed * mixed + q * 211 + kv * 4099) % _PRIME
        mixed = (mixed * mixed + kv * 911 + self.seed) % _PRIME
        return mixed < self.threshold

    def __repr__(self) -> str:
        return f"bernoulli({self.threshold / _PRIME:.4g}, seed={self.seed})"


_PRIME = 32749


def bernoulli(p: float, *, seed: int = 0) -> Mask:
    """A share p of all pairs, as if drawn at random: a hash of the two positions, the same on every device and call.

    About ``p * kv_len`` keys (splash's ``make_random_mask``; FlashMask's hash-sparse). A predicate that draws random
    numbers is refused; this one is a function. A mask for each head is ``per_head([bernoulli(p, seed=i) for i in
    range(H)])``.

    Args:
        p: the share of visible pairs, from 0 to 1.
        seed: another draw, from 0.

    >>> mask = bernoulli(0.25)
    >>> sum(mask(0, 0, q, kv) for q in range(64) for kv in range(64)) / 64**2
    0.25...
    """
    if not 0 <= p <= 1:
        raise MaskValueError(f"bernoulli({p!r})", "not a share", "Pass a number from 0 to 1.")
    check_size(f"bernoulli({p!r}, seed={seed!r})", seed, least=0, unit="draws")
    return Bernoulli(round(p * _PRIME), seed % _PRIME)
