"""Outside a trace a mask gets the fast path of what it is, however it is written; inside one, structure decides."""

import pytest
import torch

from layouts import lower
from maskmod import attention, causal, document, prefix, sliding_window, vmap_mask
from maskmod.backends import registry
from maskmod.errors import UnsupportedMask

IDS = torch.tensor([0] * 5 + [1] * 3 + [2] * 8)
START = torch.tensor([0] * 5 + [5] * 3 + [8] * 8)
PACKED = [
    causal() & document(IDS),
    lambda b, h, q, k: (k <= q) & (k >= START[q]),
    lambda b, h, q, k: (IDS[q] == IDS[k]) & ~(k > q),
    lambda b, h, q, k: (k <= q) & (k > q - (torch.arange(16) - START)[q] - 1),
]


def test_a_lambda_equal_to_causal_gets_the_flag():
    for mask in (lambda b, h, q, k: q - k >= 0, lambda b, h, q, k: ~(k > q)):
        args = lower(mask, "sdpa", 2, 3, 64, 64)
        assert (args.attn_mask, args.is_causal) == (None, True)
        assert "top-left causal" in args.why
        assert lower(mask, "flash", 2, 3, 64, 64).window_size == (-1, 0)
    off = lower(lambda b, h, q, k: (k <= q) ^ ((q == 63) & (k == 0)), "sdpa", 1, 1, 64, 64)
    assert off.attn_mask is not None


@pytest.mark.parametrize("way", range(len(PACKED)))
def test_packed_causal_gets_cu_seqlens(way: int):
    args = lower(PACKED[way], "flash", 2, 1, 16, 16)
    assert args.cu_seqlens_q.tolist() == [0, 5, 8, 16, 21, 24, 32]
    assert args.causal
    assert torch.equal(registry.get("flash").read_back(args), vmap_mask(PACKED[way], 2, 1, 16, 16))


def test_a_window_written_with_abs_gets_its_size():
    args = lower(lambda b, h, q, k: (q - k).abs() <= 7, "flash", 1, 1, 64, 64)
    assert (args.causal, args.window_size) == (False, (7, 7))
    inside = lower(lambda b, h, q, k: ((q - k).abs() < 3) & (IDS[q] == IDS[k]), "flash", 1, 1, 16, 16)
    assert inside.window_size == (2, 2)
    assert inside.max_seqlen_q == 8


def test_what_is_none_of_these_is_refused():
    for mask in (causal() | prefix(3), lambda b, h, q, k: (k <= q) & (k % 2 == 0)):
        with pytest.raises(UnsupportedMask, match="structure does not prove"):
            lower(mask, "flash", 1, 1, 16, 16)


def test_structure_alone_decides_in_a_trace():
    @torch.compile(backend="eager", fullgraph=True)
    def inside(x):
        args = lower(lambda b, h, q, k: k <= q, "sdpa", 1, 1, 8, 8)
        return x, args.attn_mask

    assert inside(torch.ones(1))[1] is not None


def test_attention_is_the_same_either_way():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 16, 8)
    for mask in (lambda b, h, q, k: q >= k, sliding_window(99), *PACKED):
        torch.testing.assert_close(attention(q, k, v, mask), attention(q, k, v, mask, backend="eager"))
