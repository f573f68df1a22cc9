"""The spans backend: exact on random and shaped masks, forward and backward, within memory; its arguments read back."""

from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import maskmod
from maskmod import (
    attention,
    blockwise,
    causal,
    dfs_tree,
    document,
    full,
    key_padding,
    lower,
    per_head,
    prefix,
    sinks,
    sliding_window,
    vmap_mask,
)
from maskmod._torch import fused
from maskmod.backends import registry
from maskmod.backends.span_kernel import packed, unpacked
from maskmod.backends.spans import spans_attention
from maskmod.errors import UnsupportedMask
from maskmod.facts import span_blocks
from random_masks import Expression, Size, masks
from reference import plain_attention

SPANS = registry.get("spans")
N = 700
IDS = torch.arange(N) // 130
IMAGES = torch.where(torch.arange(N) % 100 < 30, torch.arange(N) // 100, -1)
TABLE = torch.rand(N, N, generator=torch.Generator().manual_seed(0)) < 0.5

SHAPED = {
    "causal": causal(),
    "window": causal() & sliding_window(100),
    "documents": causal() & document(IDS),
    "documents both ways": document(IDS),
    "prefix": causal() | prefix(90),
    "sinks and window": causal() & (sliding_window(100) | sinks(4)),
    "images": causal() | blockwise(IMAGES),
    "a lane a row": causal() & key_padding(torch.tensor([300, N])),
    "a lane a head": per_head([causal(), full(), causal() & sliding_window(9), causal() & document(IDS)]),
    "first rows empty": causal() & (lambda b, h, q_idx, kv_idx: q_idx > 150),
    "strided": lambda b, h, q_idx, kv_idx: (q_idx >= kv_idx) & ((q_idx - kv_idx) % 3 == 0),
    "a tree": dfs_tree(torch.tensor([N, *[200] * 199, *[N] * (N - 200)])),
    "a table of tokens": lambda b, h, q_idx, kv_idx: TABLE[q_idx, kv_idx] & (kv_idx < 40),
    "nothing": causal() & (causal() ^ True),
}


def inputs(
    dtype: torch.dtype = torch.float32, *, q_len: int = N, kv_len: int = N, Dv: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    shapes = (2, 4, q_len, 16), (2, 2, kv_len, 16), (2, 2, kv_len, Dv)
    q, k, v = (torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype) for shape in shapes)
    return q, k, v


def truth(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, sink: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp in float64, written out; rows without a score are zero and -inf."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~visible, -torch.inf)
    if sink is not None:
        scores = torch.cat([scores, sink.double().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], -1)
    lse = scores.logsumexp(-1)
    weights = torch.where(torch.isinf(lse).unsqueeze(-1), 0.0, torch.exp(scores - lse.unsqueeze(-1)))
    return weights[..., : k.shape[-2]] @ v, lse


@pytest.mark.parametrize("name", SHAPED)
def test_output_log_sum_exp_and_gradients(name: str):
    mask, visible = SHAPED[name], vmap_mask(SHAPED[name], 2, 4, N, N)
    q, k, v = (x.requires_grad_() for x in inputs())
    sink = torch.tensor([0.5, -1.0, 3.0, 0.0], requires_grad=True)
    draw = torch.Generator().manual_seed(2)
    weights, lse_weights = torch.randn(2, 4, N, 8, generator=draw), torch.randn(2, 4, N, generator=draw)
    for given_sink in (None, sink):
        options = {"backend": "spans", "enable_gqa": True, "return_lse": True, "sink_logits": given_sink}
        out, lse = attention(q, k, v, mask, **options)
        exact, exact_lse = truth(q, k, v, visible, given_sink)
        assert (out - exact).abs().max() < 5e-6
        assert torch.equal(torch.isneginf(lse), torch.isneginf(exact_lse))
        seen = ~torch.isneginf(exact_lse)
        assert not seen.any() or (lse - exact_lse)[seen].abs().max() < 5e-6
        assert (out[~seen] == 0).all()
        if name == "nothing" and given_sink is None:
            continue  # the plain computation has NaN gradients
        open_rows = visible | ~visible.any(-1, keepdim=True)  # no NaN in the plain gradients

        def loss(out: Tensor, lse: Tensor, seen: Tensor = seen) -> Tensor:
            return (torch.where(seen.unsqueeze(-1), out, 0) * weights).sum() + (
                torch.where(seen, lse, 0) * lse_weights
            ).sum()

        leaves = [q, k, v] if given_sink is None else [q, k, v, sink]
        plain = truth(q, k, v, open_rows if given_sink is None else visible, given_sink)
        for ours, exact_grad in zip(
            torch.autograd.grad(loss(out, lse), leaves), torch.autograd.grad(loss(*plain), leaves), strict=True
        ):
            assert (ours - exact_grad).abs().max() < 3e-5 * max(1.0, float(exact_grad.abs().max()))


@given(masks(Size(2, 4, 6, 7), depth=3))
def test_random_masks_round_trip(drawn: Expression):
    mask, size = drawn.build(), (2, 4, 6, 7)
    visible = vmap_mask(mask, *size)
    args: Any = lower(mask, "spans", *size)
    assert torch.equal(SPANS.read_back(args), visible)
    q, k, v = inputs(torch.float64, q_len=6, kv_len=7)
    out, _ = spans_attention(q, k, v, **args.kwargs())
    torch.testing.assert_close(out, truth(q, k, v, visible)[0])


@pytest.mark.parametrize("name", SHAPED)
def test_arguments_read_back(name: str):
    mask = SHAPED[name]
    args: Any = lower(mask, "spans", 2, 4, N, N)
    assert torch.equal(SPANS.read_back(args), vmap_mask(mask, 2, 4, N, N))
    again = unpacked(packed(args.calls, torch.float32, torch.device("cpu")))
    for ours, theirs in zip(again.shapes, args.calls.shapes, strict=True):
        assert [x for x in ours if not isinstance(x, Tensor)] == [x for x in theirs if not isinstance(x, Tensor)]
        tensors = [[x for x in shape if isinstance(x, Tensor)] for shape in (ours, theirs)]
        assert all(map(torch.equal, *tensors))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["window", "sinks and window", "strided", "first rows empty"])
def test_other_dtypes(dtype: torch.dtype, name: str):
    q, k, v = (x.requires_grad_() for x in inputs(dtype))
    visible = vmap_mask(SHAPED[name], 2, 4, N, N)
    out = attention(q, k, v, SHAPED[name], backend="spans", enable_gqa=True)
    assert out.dtype == dtype
    exact, _ = truth(q, k, v, visible)
    close = 8 * torch.finfo(dtype).eps
    assert (out - exact).abs().max() < close * 4
    for grad in torch.autograd.grad(out.sum(), (q, k, v)):
        assert grad.dtype == dtype
        assert not grad.isnan().any()


def test_values_wider_and_narrower_than_queries():
    visible = vmap_mask(SHAPED["window"], 1, 1, N, N)
    for Dv in (4, 16, 24):
        q, k, v = (x.requires_grad_() for x in inputs(Dv=Dv))
        out = attention(q, k, v, SHAPED["window"], backend="spans", enable_gqa=True)
        assert (out - truth(q, k, v, visible)[0]).abs().max() < 5e-6
        ours = torch.autograd.grad(out.sum(), (q, k, v))
        for grad, exact in zip(ours, torch.autograd.grad(truth(q, k, v, visible)[0].sum(), (q, k, v)), strict=True):
            assert (grad - exact).abs().max() < 1e-4


def test_strides_of_any_kind():
    mask = SHAPED["window"]
    q, k, v = inputs()
    expected = attention(q, k, v, mask, backend="spans", enable_gqa=True)
    odd = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    assert torch.equal(attention(odd[0], odd[1], odd[2], mask, backend="spans", enable_gqa=True), expected)
    odd = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v)]
    assert torch.equal(attention(odd[0], odd[1], odd[2], mask, backend="spans", enable_gqa=True), expected)
    padded = [torch.nn.functional.pad(x, (3, 2))[..., 3:-2] for x in (q, k, v)]
    assert torch.equal(attention(padded[0], padded[1], padded[2], mask, backend="spans", enable_gqa=True), expected)


@pytest.mark.parametrize("bias", [True, False])
def test_plain_torch_says_what_the_fused_kernel_says(bias: bool, monkeypatch: pytest.MonkeyPatch):
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, h, n, 8, generator=draw, dtype=torch.float64) for h, n in ((4, 5), (2, 7), (2, 7)))
    table = torch.zeros(2, 1, 5, 7, dtype=torch.float64)
    table[:, :, 1:3, 2:] = -torch.inf
    given_table = table if bias else None
    grad = torch.randn(2, 4, 5, 8, generator=draw, dtype=torch.float64)
    out, lse = fused.attend(q, k, v, given_table, 0.3)
    parts = fused.attend_backward(grad, q, k, v, out, lse, given_table, 0.3)
    monkeypatch.setattr(fused, "_HAS_KERNEL", False)
    plain, plain_lse = fused.attend(q, k, v, given_table, 0.3)
    torch.testing.assert_close(plain, out)
    torch.testing.assert_close(plain_lse, lse)
    for ours, theirs in zip(fused.attend_backward(grad, q, k, v, out, lse, given_table, 0.3), parts, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_plain_torch_runs_whole_masks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fused, "_HAS_KERNEL", False)
    for name in ("sinks and window", "strided"):
        q, k, v = (x.requires_grad_() for x in inputs())
        out = attention(q, k, v, SHAPED[name], backend="spans", enable_gqa=True)
        exact = truth(q, k, v, vmap_mask(SHAPED[name], 2, 4, N, N))[0]
        assert (out - exact).abs().max() < 5e-6
        for grad, true in zip(
            torch.autograd.grad(out.sum(), (q, k, v)), torch.autograd.grad(exact.sum(), (q, k, v)), strict=True
        ):
            assert (grad - true).abs().max() < 1e-4


class Largest(TorchDispatchMode):
    """The most entries of any tensor that an operation made."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple) else (out,):
            if isinstance(x, Tensor):
                self.entries = max(self.entries, x.untyped_storage().nbytes() // max(x.element_size(), 1))
        return out


@pytest.mark.parametrize(
    "mask",
    [
        causal() & sliding_window(128),
        causal(),
        causal() & document(torch.arange(8192) // 1000),
        causal() & (sliding_window(128) | sinks(4)),
        lambda b, h, q_idx, kv_idx: (kv_idx <= q_idx) & (kv_idx >= (q_idx * 37) % 8192),  # no two hulls alike
    ],
    ids=["window", "causal", "documents", "sinks", "wild"],
)
def test_nothing_grows_with_the_square(mask):
    held = []
    for n in (2048, 8192):
        q = torch.randn(1, 1, n, 8, requires_grad=True)
        with Largest() as largest:
            attention(q, q, q, mask, backend="spans").sum().backward()
        held.append(largest.entries)
    assert held[1] <= 6 * held[0]  # sixteen times for a square
    assert held[1] < 8192 * 8192 // 4


def test_a_long_core_carries_no_table():
    args: Any = lower(causal(), "spans", 1, 1, 4096, 4096)
    bare = [shape for shape in args.calls.shapes if shape.bias is None]
    assert max(shape.keys for shape in bare) > 3000
    assert all(shape.keys <= 2 * span_blocks.LONG_CORE for shape in args.calls.shapes if shape.bias is not None)


def test_blocks_that_look_alike_share_a_table_and_a_call(monkeypatch: pytest.MonkeyPatch):
    asked = []
    attend = fused.attend
    monkeypatch.setattr(
        maskmod.backends.span_kernel,  # pyright: ignore[reportAttributeAccessIssue]
        "attend",
        lambda q, *rest: asked.append(q.shape) or attend(q, *rest),
    )
    q = torch.randn(1, 2, 4096, 16)
    attention(q, q, q, causal() & sliding_window(256), backend="spans")
    assert len(asked) <= 8
    assert max(shape[0] for shape in asked) > 20


def test_what_cannot_be_cut_is_refused():
    draw = torch.rand(4096, 4096, generator=torch.Generator().manual_seed(0)) < 0.5
    mask = lambda b, h, q_idx, kv_idx: draw[q_idx, kv_idx]  # noqa: E731
    q = torch.zeros(1, 1, 4096, 8)
    seen = r"its rows are no few intervals, and its partial blocks hold \d+ tokens, too many to keep"
    with pytest.raises(UnsupportedMask, match=seen):
        attention(q, q, q, mask, backend="spans")
    with pytest.raises(UnsupportedMask, match=seen):
        lower(mask, "spans", 1, 1, 4096, 4096)
    with pytest.raises(UnsupportedMask, match="queries that see nothing are in none of its calls"):
        lower(causal(), "spans", 1, 1, 8, 8, empty_rows="uniform")
    with pytest.raises(UnsupportedMask, match="spans does not cap scores"):
        attention(q[:, :, :8], q[:, :, :8], q[:, :, :8], causal(), backend="spans", softcap=3.0)


def test_uniform_rows():
    mask = SHAPED["first rows empty"]
    q, k, v = inputs()
    out = attention(q, k, v, mask, backend="spans", enable_gqa=True, empty_rows="uniform")
    exact = plain_attention(q.double(), k.double(), v.double(), vmap_mask(mask, 1, 1, N, N), empty_rows="uniform")
    assert (out - exact).abs().max() < 5e-6


def test_merged_parts_of_the_keys():
    """What the log-sum-exp is for: two halves of the keys, attended apart, are the whole."""
    q, k, v = inputs()
    mask = SHAPED["documents both ways"]
    whole = attention(q, k, v, mask, enable_gqa=True)
    parts = []
    for start, end in ((0, 333), (333, N)):
        half = maskmod.shift(mask, kv_offset=start)
        parts.append(
            attention(
                q, k[:, :, start:end], v[:, :, start:end], half, backend="spans", enable_gqa=True, return_lse=True
            )
        )
    total = torch.logaddexp(parts[0][1], parts[1][1])
    merged = sum(out * torch.exp(lse - total).unsqueeze(-1) for out, lse in parts)
    assert (merged - whole).abs().max() < 5e-6


def test_gradients_of_one_side_only():
    q, k, v = inputs()
    v.requires_grad_()
    out = attention(q, k, v, SHAPED["window"], backend="spans", enable_gqa=True)
    (grad,) = torch.autograd.grad(out.sum(), v)
    exact = truth(q, k, v, vmap_mask(SHAPED["window"], 1, 1, N, N))[0]
    assert (grad - torch.autograd.grad(exact.sum(), v)[0]).abs().max() < 1e-4
    with torch.no_grad():
        assert not attention(q, k, v, SHAPED["window"], backend="spans", enable_gqa=True).requires_grad


def test_memory_of_a_plan_is_linear():
    sizes = []
    for n in (2048, 8192):
        args: Any = lower(causal() & document(torch.arange(n) // 300), "spans", 1, 1, n, n)
        sizes.append(sum(x.numel() * x.element_size() for x in args.packing))
    assert sizes[1] <= 6 * sizes[0]
    assert sizes[1] < 8192 * 8192 // 8
