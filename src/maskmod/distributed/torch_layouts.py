"""torch's own context parallelism: its load balancers as layouts, any layout as its load balancer, its block masks.

What is used of `torch.distributed.tensor.experimental` is private there; it is imported when asked for, and met by its
one method, ``_generate_indices``. This module knows no process group.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskmod.algebra import MaskMod
from maskmod.blocks.block_mask import block_mask
from maskmod.distributed.layouts import Contiguous, Layout, Ordered
from maskmod.distributed.shard import shard
from maskmod.errors import MaskValueError

__all__ = ["LoadBalancer", "layout_of", "load_balancer_of", "rank_block_mask"]


class LoadBalancer(Protocol):
    """What torch's ``_LoadBalancer`` is asked for."""

    def _generate_indices(self, restore: bool = False) -> Tensor | None: ...


def layout_of(load_balancer: LoadBalancer | None) -> Layout:
    """The layout that a load balancer of torch makes; None, as there, is contiguous.

    >>> from torch.distributed.tensor.experimental._attention import _HeadTailLoadBalancer
    >>> layout_of(_HeadTailLoadBalancer(8, 2, "cpu")).positions(0, 2, 8).tolist()
    [0, 1, 6, 7]
    """
    indices = None if load_balancer is None else load_balancer._generate_indices()
    return Contiguous() if indices is None else Ordered(indices)


def load_balancer_of(layout: Layout, world: int, length: int) -> Any:
    """A layout as a load balancer for ``_context_parallel_shard`` and ``context_parallel_unshard``.

    Raises:
        MaskValueError: ranks that do not hold equally many tokens, which torch asks for.

    >>> from maskmod.distributed import Striped
    >>> load_balancer_of(Striped(), 2, 6)._generate_indices().tolist()
    [[0, 2, 4, 1, 3, 5]]
    """
    from torch.distributed.tensor.experimental._attention import _LoadBalancer  # pyright: ignore[reportAttributeAccessIssue]

    lengths = layout.lengths(world, length)
    if len(set(lengths)) != 1:
        raise MaskValueError(
            f"load_balancer_of({layout!r}, {world}, {length})",
            f"ranks hold {min(lengths)} to {max(lengths)} tokens",
            f"torch shards evenly: pad the sequence to a multiple of {world}.",
        )

    class FromLayout(_LoadBalancer):
        def _generate_indices(self, restore: bool = False) -> Tensor:
            return torch.atleast_2d(layout.restore(world, length) if restore else layout.order(world, length))

    return FromLayout()


def rank_block_mask(
    mask: MaskMod,
    B: int | None,
    H: int | None,
    q_len: int,
    kv_len: int,
    *,
    rank: int,
    world: int,
    load_balancer: LoadBalancer | None = None,
    block_size: int | tuple[int, int] = 128,
    device: torch.device | str | None = None,
) -> BlockMask:
    """The `BlockMask` of one rank's queries over all keys as torch gathers them, without evaluating the square.

    Entry by entry what ``torch.distributed.tensor.experimental`` builds by evaluating every token
    (``_create_cp_block_mask``), for any length that the world divides, and any block size.

    Args:
        q_len, kv_len: of the whole sequence, as torch counts; they are equal.
        load_balancer: torch's, or one of `load_balancer_of`; None is contiguous.
        device: None takes that of the mask's tensors, else torch's default.

    Raises:
        MaskValueError: lengths that differ, or that the world does not divide.

    >>> from maskmod import causal
    >>> rank_block_mask(causal(), 1, 1, 512, 512, rank=1, world=2).kv_num_blocks.tolist()
    [[[1, 1]]]
    """
    if q_len != kv_len or q_len % world:
        raise MaskValueError(
            f"rank_block_mask(q_len={q_len}, kv_len={kv_len}, world={world})",
            "torch shards one sequence into equal parts",
            f"Pass one length, a multiple of {world}.",
        )
    mine = shard(mask, layout_of(load_balancer), rank, world, q_len, device=device)
    return block_mask(mine, B, H, q_len // world, kv_len, block_size=block_size, device=device)
