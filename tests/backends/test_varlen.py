"""Packed arguments: read off the mask whatever it is written as, verified, refused with a query that shows it."""

from typing import Any

import pytest
import torch

from maskmod import (
    attention,
    blockwise,
    causal,
    document,
    full,
    key_padding,
    lower,
    per_head,
    prefix,
    select_backend,
    sliding_window,
    vmap_mask,
    window,
)
from maskmod.backends import registry
from maskmod.errors import UnsupportedMask

N = 60
IDS = torch.arange(N) // 17
ROWS = torch.stack([IDS, torch.arange(N) // 25])
SPANS = torch.where(IDS == 2, -1, IDS)
POSITION = torch.arange(N) % 17
VARLEN = registry.get("varlen")

PACKED = {
    "causal": causal(),
    "everything": full(),
    "documents": document(IDS),
    "causal documents": causal() & document(IDS),
    "documents of each row": causal() & document(ROWS),
    "a window in each": causal() & sliding_window(5) & document(IDS),
    "two-sided": window(3, 2) & document(IDS),
    "right side only": window(0, None) & document(IDS),
    "padding inside": causal() & blockwise(SPANS),
    "padding at the ends": causal() & key_padding(torch.tensor([40, N])) & (lambda b, h, q, k: (q < 40) | (b == 1)),
    "written by position": lambda b, h, q_idx, kv_idx: (kv_idx <= q_idx) & (kv_idx >= q_idx - POSITION[q_idx]),
    "diagonal": lambda b, h, q_idx, kv_idx: q_idx == kv_idx,
    "nothing": causal() & (causal() ^ True),
}


@pytest.mark.parametrize("name", PACKED)
def test_read_back_and_attention(name: str):
    mask = PACKED[name]
    visible = vmap_mask(mask, 2, 4, N, N)
    args: Any = lower(mask, "varlen", 2, 4, N, N)
    assert torch.equal(VARLEN.read_back(args), visible)
    q, k, v = (torch.randn(2, h, N, 8, dtype=torch.float64, requires_grad=True) for h in (4, 2, 2))
    for empty_rows in ("zero", "uniform"):
        options = {"enable_gqa": True, "empty_rows": empty_rows}
        out = attention(q, k, v, mask, backend="varlen", **options)
        exact = attention(q, k, v, mask, backend="eager", **options)
        torch.testing.assert_close(out, exact)
        grads = [torch.autograd.grad(x.sum(), (q, k, v), allow_unused=True) for x in (out, exact)]
        for ours, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(torch.zeros_like(theirs) if ours is None else ours, theirs)


def test_arguments():
    args: Any = lower(causal() & sliding_window(5) & document(IDS), "varlen", 1, 1, N, N)
    assert args.cu_seqlens.tolist() == [0, 17, 34, 51, 60]
    assert args.cu_seqlens.dtype == torch.int32
    assert args.kwargs() == {
        "cu_seqlens_q": args.cu_seqlens,
        "cu_seqlens_k": args.cu_seqlens,
        "max_seqlen_q": 17,
        "max_seqlen_k": 17,
        "causal": True,
        "window_size": (4, 0),
    }
    assert lower(causal() & blockwise(SPANS), "varlen", 1, 1, N, N).tokens.tolist() == [  # pyright: ignore
        i for i in range(N) if IDS[i] != 2
    ]
    assert args.why == "4 documents end to end, verified for every query: no mask"


@pytest.mark.parametrize(
    ("mask", "sizes", "seen"),
    [
        (
            causal() | prefix(3),
            (1, 1, N, N),
            "query 1 sees keys 0 to 2, where documents with one window would show it 0 to 3",
        ),
        (causal(), (1, 1, N, N + 1), "queries and keys are not the same packed tokens"),
        (per_head([causal(), full()]), (1, 2, N, N), "heads differ"),
        (lambda b, h, q_idx, kv_idx: (q_idx - kv_idx) % 2 == 0, (1, 1, N, N), "its rows are not solved for intervals"),
        (causal() & (sliding_window(2) | prefix(1)), (1, 1, N, N), "a query sees more than one interval"),
    ],
)
def test_refusals(mask, sizes: tuple[int, int, int, int], seen: str):
    with pytest.raises(UnsupportedMask, match=seen):
        lower(mask, "varlen", *sizes)
    q, k = (torch.zeros(sizes[0], sizes[1], n, 4) for n in sizes[2:])
    with pytest.raises(UnsupportedMask, match=seen):
        attention(q, k, k, mask, backend="varlen")


def test_a_window_per_document_that_differs_is_refused():
    wide = torch.where(IDS == 1, 3, 5)
    mask = causal() & document(IDS) & (lambda b, h, q_idx, kv_idx: q_idx - kv_idx < wide[q_idx])
    with pytest.raises(UnsupportedMask, match="query 20 sees keys 18 to 20, where documents with one window"):
        lower(mask, "varlen", 1, 1, N, N)


def test_its_estimate_is_compared():
    cost = select_backend(causal() & document(torch.arange(4096) // 512), 1, 4, 4096, 4096).cost
    assert 0 < cost["varlen"] < cost["sdpa"] / 3
    on_gpu = select_backend(causal(), 1, 4, 64, 64, device="cuda").rejected["varlen"]
    assert on_gpu == "varlen_attn takes half precision only"
