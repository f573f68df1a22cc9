"""Masks of diffusion language models and of video diffusion: a clean and a noisy copy of one sequence, end to end."""

from __future__ import annotations

from maskmod.algebra import Mask
from maskmod.algebra.lookup import check_size

__all__ = ["CleanAndNoisy", "block_diffusion", "teacher_forcing"]


class CleanAndNoisy(Mask):
    """See `block_diffusion` and `teacher_forcing`."""

    length: int
    size: int
    noisy_first: bool
    causal: bool = False
    left: int | None = None

    def __post_init__(self):
        check_size(self, self.length, unit="tokens")
        check_size(self, self.size, unit="tokens")
        if self.left is not None:
            check_size(self, self.left, least=0, unit="blocks")

    def __repr__(self) -> str:
        name = "block_diffusion" if self.noisy_first else "teacher_forcing"
        options = ", causal=True" * self.causal + f", left={self.left}" * (self.left is not None)
        return f"{name}({self.length}, {self.size}{options})"

    def __call__(self, b, h, q_idx, kv_idx):
        q_second, kv_second = q_idx >= self.length, kv_idx >= self.length
        q, kv = q_idx - q_second * self.length, kv_idx - kv_second * self.length
        q_noisy, kv_noisy = (q_second ^ self.noisy_first), (kv_second ^ self.noisy_first)
        q_block, kv_block = q // self.size, kv // self.size
        if self.causal:  # by tokens inside a block, and in the clean copy
            own, clean = (q_block == kv_block) & (kv <= q), kv <= q
        else:
            own, clean = q_block == kv_block, kv_block <= q_block
        before = kv_block < q_block
        if self.left is not None:
            near = kv_block >= q_block - self.left
            clean, before = clean & near, before & near
        from_noisy = (kv_noisy & own) | ((kv_noisy ^ True) & before)
        from_clean = (kv_noisy ^ True) & clean
        inside = (q < self.length) & (kv < self.length) & (q_idx >= 0) & (kv_idx >= 0)
        return ((q_noisy & from_noisy) | ((q_noisy ^ True) & from_clean)) & inside


def block_diffusion(length: int, size: int, *, causal: bool = False) -> Mask:
    """The training mask of block diffusion over a noisy copy, then a clean one: 2 * length tokens (BD3-LM).

    A noisy token sees its own noisy block and the clean blocks before it; a clean token the clean blocks up to its own.
    That is at most ``length`` keys, a half of what causality over both copies would show. Fast-dLLM v2, SDAR and
    LLaDA 2 train with it; attention-gym's ``generate_block_diffusion_mask(length, size)``.

    Args:
        length: tokens of one copy.
        size: tokens of a block.
        causal: causal by tokens inside each noisy block and in the clean copy (I-DLM).

    >>> mask = block_diffusion(4, 2)  # noisy 0..3, clean 4..7
    >>> [kv for kv in range(8) if mask(0, 0, 2, kv)], [kv for kv in range(8) if mask(0, 0, 6, kv)]
    ([2, 3, 4, 5], [4, 5, 6, 7])
    """
    return CleanAndNoisy(length, size, noisy_first=True, causal=causal)


def teacher_forcing(length: int, frame: int, *, left: int | None = None) -> Mask:
    """Video diffusion with clean history: a clean copy, then a noisy one, causal from frame to frame (Self-Forcing).

    A clean token sees the clean frames up to its own; a noisy one its own noisy frame and the clean frames before it.
    `block_diffusion` with the copies in the other order, and a window of frames.

    Args:
        length: tokens of one copy.
        frame: tokens of a frame, or of the group of frames that is denoised together.
        left: frames before its own that a token sees; None sees all.

    >>> mask = teacher_forcing(4, 2)  # clean 0..3, noisy 4..7
    >>> [kv for kv in range(8) if mask(0, 0, 6, kv)]
    [0, 1, 6, 7]
    """
    return CleanAndNoisy(length, frame, noisy_first=False, left=left)
