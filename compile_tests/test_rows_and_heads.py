"""Microbatches, head shards and flat batches, compiled and exported: offsets and rows in tensors, one graph for all."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskmod import block_mask, causal, dense_mask, document, lower, per_head, remap, shift, sliding_window
from maskmod.testing import count_graphs

B, H, N, D = 6, 4, 48, 8
IDS = torch.arange(N).expand(B, N) // torch.arange(3, 3 + B)[:, None]
WHOLE = causal() & document(IDS) & per_head([causal(), sliding_window(5), sliding_window(9), causal()])


class Microbatch(torch.nn.Module):
    """Two rows and two heads of the whole, from places that are data."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, row: Tensor, head: Tensor) -> Tensor:
        mask = shift(WHOLE, b_offset=row, h_offset=head)
        args = lower(mask, "sdpa", q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        return F.scaled_dot_product_attention(q, k, v, **args.kwargs())


def inputs(step: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(step)
    q, k, v = (torch.randn(2, 2, N, D, generator=generator) for _ in range(3))
    return q, k, v, torch.tensor(step % (B - 1)), torch.tensor(step % (H - 1))


def expected(q: Tensor, k: Tensor, v: Tensor, row: Tensor, head: Tensor) -> Tensor:
    visible = dense_mask(WHOLE, B, H, N, N, method="vmap")[int(row) : int(row) + 2, int(head) : int(head) + 2]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)


def test_one_graph_for_every_microbatch():
    calls = [inputs(step) for step in range(6)]
    assert count_graphs(Microbatch(), calls).graphs == 1
    for call in calls:
        torch.testing.assert_close(Microbatch()(*call), expected(*call))


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")
@pytest.mark.parametrize("strict", [True, False])
def test_export(strict):
    program = torch.export.export(Microbatch(), inputs(0), strict=strict)
    for step in range(4):
        torch.testing.assert_close(program.module()(*inputs(step)), expected(*inputs(step)))


def test_a_flat_batch_in_the_graph():
    """The rows and positions of its queries are arguments; blocks and booleans say the same."""

    def flat(rows: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        mask = remap(causal() & document(IDS), b=rows, q=positions)
        blocks = block_mask(mask, 1, 1, rows.shape[0], N, block_size=16)
        return dense_mask(mask, 1, 1, rows.shape[0], N), blocks.kv_num_blocks + blocks.full_kv_num_blocks  # pyright: ignore

    compiled = torch.compile(flat, backend="eager", fullgraph=True)
    whole = dense_mask(causal() & document(IDS), B, 1, N, N, method="vmap")[:, 0]
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(-1, B, (20,), generator=generator)
        positions = torch.randint(0, N, (20,), generator=generator)
        visible, blocks = compiled(rows, positions)
        want = whole[rows, positions] & (rows >= 0)[:, None]
        assert torch.equal(visible[0, 0], want)
        tiles = F.pad(want, (0, 0, 0, 12)).view(2, 16, 3, 16).any(3).any(1)
        assert (blocks[0, 0] >= tiles.sum(-1)).all(), "a block that shows a key is never left out"
