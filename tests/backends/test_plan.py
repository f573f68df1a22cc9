"""A plan is attention prepared once: reused, copied, moved, pickled, shared by threads; its sentences hold."""

import copy
import pickle
import re
import threading
import time

import pytest
import torch
from torch import Tensor

from maskmod import (
    AttentionPlan,
    attention,
    causal,
    dense_mask,
    document,
    full,
    mask_mod,
    per_head,
    plan,
    select_backend,
    sinks,
    sliding_window,
)
from maskmod.errors import BackendError, MaskShapeError, MaskTypeError, MaskValueError, UnsupportedMask

N = 96
IDS = torch.arange(N) // 20
MASK = causal() & document(IDS)
BACKENDS = ["eager", "sdpa", "spans"]


def inputs(n: int = N, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return (
        torch.randn(2, 4, n, 16, generator=draw).to(dtype),
        torch.randn(2, 2, n, 16, generator=draw).to(dtype),
        torch.randn(2, 2, n, 8, generator=draw).to(dtype),
    )


def made(backend: str, mask=MASK, **options) -> AttentionPlan:
    return plan(mask, 2, 4, N, N, backend=backend, enable_gqa=True, **options)


every_backend = pytest.mark.parametrize("backend", BACKENDS)


@every_backend
def test_a_plan_is_attention_prepared(backend: str):
    layer, (q, k, v) = made(backend), inputs()
    expected = attention(q, k, v, MASK, backend="eager", enable_gqa=True)
    for _ in range(3):
        torch.testing.assert_close(layer(q, k, v), expected)
    torch.testing.assert_close(
        layer(q, k, v, 0.5), attention(q, k, v, MASK, backend="eager", enable_gqa=True, scale=0.5)
    )


@every_backend
def test_copies_pickles_and_moves(backend: str):
    layer, qkv = made(backend), inputs()
    out = layer(*qkv)
    for other in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.to("cpu")):
        assert torch.equal(other(*qkv), out)
        assert repr(other) == repr(layer)
        assert other.explain() == layer.explain()
    moved = layer.to("meta")
    q, k, v = (x.to("meta") for x in qkv)
    assert moved(q, k, v).device.type == "meta"
    assert all(x.device.type == "meta" for x in moved.mask.tensors())


def test_a_lambda_does_not_pickle():
    layer = plan(lambda b, h, q_idx, kv_idx: kv_idx <= q_idx, 1, 1, 8, 8, backend="spans")
    with pytest.raises(MaskTypeError, match="a lambda or a local function has no importable name"):
        pickle.dumps(layer)


@every_backend
def test_threads_share_a_plan(backend: str):
    layer, qkv = made(backend), inputs()
    expected, outs = layer(*qkv), {}
    threads = [threading.Thread(target=lambda i=i: outs.update({i: layer(*qkv)})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outs) == 4
    assert all(torch.equal(out, expected) for out in outs.values())


def test_a_plan_is_frozen():
    with pytest.raises(AttributeError):
        made("sdpa").backend = "eager"  # pyright: ignore[reportAttributeAccessIssue]


def test_lanes_that_the_mask_does_not_read_may_be_any():
    layer = plan(causal() & sliding_window(5), 1, 1, N, N, backend="spans", enable_gqa=True)
    q, k, v = inputs()
    torch.testing.assert_close(layer(q, k, v), attention(q, k, v, causal() & sliding_window(5), enable_gqa=True))
    heads = plan(per_head([causal(), full()]), 1, 2, N, N, backend="spans")
    with pytest.raises(MaskShapeError, match=r"^plan\(q=\[2, 4, 96, 16\], .*the plan is for \(1, 2, 96, 96\)"):
        heads(q, q, q)


def test_what_does_not_fit_is_refused():
    layer, (q, k, v) = made("spans"), inputs()
    with pytest.raises(MaskShapeError, match="Make another plan for other sizes"):
        layer(q[:, :, 1:], k, v)
    with pytest.raises(MaskTypeError, match="dtypes or devices differ"):
        layer(q.double(), k, v)
    with pytest.raises(MaskValueError, match="the plan was made without sinks"):
        layer(q, k, v, sink_logits=torch.zeros(4))
    with pytest.raises(MaskValueError, match="the plan was made with sinks"):
        made("spans", sinks=True)(q, k, v)
    with pytest.raises(BackendError, match="no such backend"):
        made("nobody")
    with pytest.raises(MaskTypeError, match="spans has no option 'block_size'"):
        made("spans", block_size=64)
    with pytest.raises(MaskValueError, match="softcap=0"):
        made("eager", softcap=0)
    with pytest.raises(MaskValueError, match="gives all its weight to the sink"):
        made("eager", sinks=True, empty_rows="uniform")
    with pytest.raises(UnsupportedMask, match="sdpa returns no log-sum-exp"):
        made("sdpa", return_lse=True)
    with pytest.raises(UnsupportedMask, match="maskmod lowers masks for flash and does not call it"):
        made("flash")
    with pytest.raises(UnsupportedMask, match=r"attention\(dropout_p=0.1\): not supported, each backend would drop"):
        attention(q, k, v, MASK, enable_gqa=True, dropout_p=0.1)


@pytest.mark.parametrize("backend", ["eager", "spans"])
def test_what_a_kernel_returns_and_takes(backend: str):
    q, k, v = inputs(dtype=torch.float64)
    sink = torch.tensor([0.5, -1.0, 30.0, 0.0], dtype=torch.float64)
    out, lse = attention(q, k, v, MASK, backend=backend, enable_gqa=True, return_lse=True, sink_logits=sink)
    keys, values = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = (q @ keys.mT / 4).masked_fill(~dense_mask(MASK, 1, 1, N, N), -torch.inf)
    total = torch.logaddexp(scores.logsumexp(-1), sink.view(1, -1, 1))
    torch.testing.assert_close(lse, total)
    torch.testing.assert_close(out, torch.exp(scores - total.unsqueeze(-1)) @ values)
    assert out[:, 2].abs().max() < 1e-6  # the sink took it all
    layer = made(backend, sinks=True, return_lse=True, dtype=torch.float64)
    assert torch.equal(layer(q, k, v, sink_logits=sink)[1], lse)


def test_softcap():
    q, k, v = inputs(dtype=torch.float64)
    out = attention(q, k, v, MASK, backend="eager", enable_gqa=True, softcap=2.0)
    scores = 2 * torch.tanh(q @ k.repeat_interleave(2, 1).mT / 4 / 2)
    scores = scores.masked_fill(~dense_mask(MASK, 1, 1, N, N), -torch.inf)
    torch.testing.assert_close(out, scores.softmax(-1) @ v.repeat_interleave(2, 1))
    choice = plan(MASK, 2, 4, N, N, softcap=2.0)
    assert choice.backend == "eager"
    assert choice.rejected["sdpa"] == "sdpa does not cap scores"


def test_every_sentence_is_about_what_was_compared():
    layer = plan(causal() & (sliding_window(64) | sinks(4)), 1, 4, 4096, 4096)
    assert layer.backend == "spans"
    assert re.fullmatch(r"blocks of \d+ queries meet just the keys they see", layer.why)
    for name, reason in layer.rejected.items():
        if "its estimate is higher" in reason:
            assert layer.cost[name] >= layer.cost["spans"]
        else:
            assert layer.cost.get(name, float("inf")) == float("inf")
    text = layer.explain()
    assert "backend: spans: blocks of" in text
    assert "not sdpa: its estimate is higher" in text
    assert "estimated milliseconds a call: " in text
    meets = float(text.split("lowered: ")[1].split("queries meet ")[1].split("%")[0])
    pairs = sum(len(s.places) * s.rows * s.keys for s in layer.args.calls.shapes)
    assert abs(meets / 100 - pairs / 4096**2) < 0.001
    named = plan(causal(), 1, 1, 8, 8, backend="eager")
    assert (named.why, named.rejected) == ("asked for by name", {})


def test_the_predicate_is_not_called_again():
    calls = []

    def predicate(b, h, q_idx, kv_idx):
        calls.append(1)
        return kv_idx <= q_idx

    layer = plan(mask_mod(predicate), 2, 4, N, N, backend="spans", enable_gqa=True)
    made_with = len(calls)
    for _ in range(4):
        layer(*inputs())
    assert len(calls) == made_with


def test_the_cost_of_a_call_beside_its_kernels():
    q = torch.randn(1, 4, 16, 16)
    layer = plan(causal() & sliding_window(5), 1, 4, 16, 16, backend="sdpa")
    mask = layer.args.attn_mask

    def fastest(run, repeats: int = 300) -> float:
        best = float("inf")
        for _ in range(20):
            begin = time.process_time()
            for _ in range(repeats):
                run()
            best = min(best, (time.process_time() - begin) / repeats)
        return best

    kernel = fastest(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask))
    assert fastest(lambda: layer(q, q, q)) - kernel < 60e-6  # 30 on a quiet machine


def test_choice_agrees_with_the_plan():
    mask = causal() & sliding_window(64)
    for n in (16, 256, 4096):
        choice, layer = select_backend(mask, 1, 4, n, n), plan(mask, 1, 4, n, n)
        assert (choice.backend, choice.why, choice.cost) == (layer.backend, layer.why, layer.cost)
