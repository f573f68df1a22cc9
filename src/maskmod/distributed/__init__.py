"""One mask over many ranks: layouts, a rank's shard of a mask, and attention over a sharded sequence.

Built on `torch.distributed`; a sharded mask is the same predicate at other positions, nothing is ever made dense.
"""

from maskmod.distributed.attention import ContextPlan, context_parallel_attention, context_parallel_plan
from maskmod.distributed.balance import Balanced
from maskmod.distributed.layouts import Contiguous, HeadTail, Layout, Ordered, PerDocumentHeadTail, Striped
from maskmod.distributed.load import Load, load
from maskmod.distributed.shard import shard
from maskmod.distributed.torch_layouts import layout_of, load_balancer_of, rank_block_mask

__all__ = [
    "Balanced",
    "ContextPlan",
    "Contiguous",
    "HeadTail",
    "Layout",
    "Load",
    "Ordered",
    "PerDocumentHeadTail",
    "Striped",
    "context_parallel_attention",
    "context_parallel_plan",
    "layout_of",
    "load",
    "load_balancer_of",
    "rank_block_mask",
    "shard",
]
