"""The masks that are measured, as plain predicates, at any length."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["MASKS", "documents_of"]


def documents_of(n: int) -> torch.Tensor:
    """Document ids of packed lengths between 50 and 6000 tokens."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(50, min(6000, max(n // 2, 51)), (n // 50 + 1,), generator=generator)
    return torch.repeat_interleave(torch.arange(lengths.shape[0]), lengths)[:n].clone()


def causal(n: int) -> Callable:
    return lambda b, h, q, k: q >= k


def window(n: int) -> Callable:
    size = min(4096, n // 8)
    return lambda b, h, q, k: (q >= k) & (q - k < size)


def documents(n: int) -> Callable:
    ids = documents_of(n)
    return lambda b, h, q, k: (ids[q] == ids[k]) & (q >= k)


def prefix(n: int) -> Callable:
    return lambda b, h, q, k: (k < n // 3) | (q >= k)


def sinks(n: int) -> Callable:
    size = min(4096, n // 8)
    return lambda b, h, q, k: (q >= k) & ((k < 4) | (q - k < size))


def block_diffusion(n: int) -> Callable:
    half = n // 2

    def mask(b, h, q, k):
        q_block, k_block = q % half // 32, k % half // 32
        noisy_q, noisy_k = q < half, k < half
        diagonal = (q_block == k_block) & (noisy_q == noisy_k)
        return diagonal | ((q_block > k_block) & noisy_q & ~noisy_k) | ((q_block >= k_block) & ~noisy_q & ~noisy_k)

    return mask


def tree(n: int) -> Callable:
    """A tree in depth-first order: each node sees its ancestors, by the time that their subtrees end."""
    i = torch.arange(n)
    size = 1 << torch.randint(0, 12, (n,), generator=torch.Generator().manual_seed(2))
    end = (i // size + 1) * size
    return lambda b, h, q, k: (q >= k) & (q < end[k])


MASKS: dict[str, Callable[[int], Callable]] = {
    "causal": causal,
    "window": window,
    "documents": documents,
    "prefix": prefix,
    "sinks": sinks,
    "block diffusion": block_diffusion,
    "tree": tree,
}
