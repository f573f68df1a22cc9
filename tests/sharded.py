"""The masks and layouts that every method is tried on, and attention in one process as the truth."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maskmod import (
    Mask,
    blockwise,
    causal,
    document,
    full,
    key_padding,
    per_head,
    prefix,
    shift,
    sinks,
    sliding_window,
    tree,
    vmap_mask,
    window,
)
from maskmod.distributed import Balanced, Contiguous, HeadTail, Layout, PerDocumentHeadTail, Striped

B, H, LENGTH = 2, 4, 37  # neither the world, nor a block, nor anything else divides the length


def ids(length: int = LENGTH) -> Tensor:
    """Documents of several lengths, one of them a single token."""
    lengths = torch.tensor([7, 1, 12, 4, length])
    return torch.repeat_interleave(torch.arange(5), lengths)[:length]


def rows_of_ids() -> Tensor:
    """Other documents in each batch row."""
    return torch.stack([ids(), (torch.arange(LENGTH) // 9)])


def parents() -> Tensor:
    """A tree in depth-first order, a few branches wide."""
    return torch.tensor([max(i - 1 - (i * 7) % 4, -1) if i else -1 for i in range(LENGTH)])


def block_diffusion(b, h, q_idx, kv_idx):
    """Noisy and clean halves in blocks of 4: a predicate that a user wrote."""
    half, size = 18, 4
    q_clean, kv_clean = q_idx >= half, kv_idx >= half
    q_block = (q_idx - half * q_clean) // size
    kv_block = (kv_idx - half * kv_clean) // size
    diagonal = (q_clean == kv_clean) & (q_block == kv_block) & (q_clean ^ True)
    offset = (q_block > kv_block) & kv_clean & (q_clean ^ True)
    return diagonal | offset | (kv_clean & q_clean & (q_block >= kv_block))


def image_spans() -> Tensor:
    """Span ids: -1 is text."""
    spans = torch.full((LENGTH,), -1)
    spans[5:12], spans[20:29] = 0, 1
    return spans


MASKS: dict[str, Callable[[], Mask | Callable]] = {
    "causal": causal,
    "full": full,
    "window": lambda: sliding_window(6),
    "two-sided window": lambda: window(3, 2),
    "sinks and window": lambda: (sinks(2) | sliding_window(5)) & causal(),
    "documents": lambda: document(ids()),
    "packed causal": lambda: causal() & document(ids()),
    "documents by row": lambda: causal() & document(rows_of_ids()),
    "prefix": lambda: causal() | prefix(9),
    "image spans": lambda: causal() | blockwise(image_spans()),
    "tree": lambda: tree(parents()),
    "block diffusion": lambda: block_diffusion,
    "per head": lambda: per_head([causal(), sliding_window(4), full(), causal() & document(ids())]),
    "padding": lambda: causal() & key_padding(torch.stack([torch.arange(LENGTH) % 5 != 3, torch.arange(LENGTH) > 3])),
    "shifted": lambda: shift(sliding_window(5), q_offset=2),
    "nothing": lambda: causal() & (causal() ^ True),
}

LAYOUTS: dict[str, Callable[[], Layout]] = {
    "contiguous": Contiguous,
    "head-tail": HeadTail,
    "striped": Striped,
    "per document": lambda: PerDocumentHeadTail(ids()),
    "per document by row": lambda: PerDocumentHeadTail(rows_of_ids()),
    "balanced": lambda: Balanced(causal() & document(ids()), block=4),
    "balanced, uneven": lambda: Balanced([causal(), sliding_window(4)], [1, 5], block=3, even=False),
}


def tensors(kv_heads: int = 2, length: int = LENGTH, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """q, k, v and the gradient of the output, the same on every rank."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, H, length, 8), (B, kv_heads, length, 8), (B, kv_heads, length, 6), (B, H, length, 6)]
    return tuple(torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)


def one_process(mask, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Output and gradients of q, k, v in plain torch: scores, -inf where hidden, softmax; empty rows are zero."""
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
    groups = q.shape[1] // k.shape[1]
    visible = vmap_mask(mask, q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    scores = q @ k.repeat_interleave(groups, 1).mT / q.shape[-1] ** 0.5
    some = visible.any(-1, keepdim=True)
    weights = torch.where(visible, scores, -torch.inf).masked_fill(~some, 0.0).softmax(-1) * visible
    out = weights @ v.repeat_interleave(groups, 1)
    out.backward(grad)
    return tuple(x.detach() for x in (out, q.grad, k.grad, v.grad) if x is not None)


def taken(x: Tensor, positions: Tensor) -> Tensor:
    """The tokens (dimension 2) at these positions, (n,) or (B, n)."""
    if positions.dim() == 1:
        return x.index_select(2, positions)
    return x.gather(2, positions[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
