"""One call over all backends: choices and their reasons, one mask for all heads, registration."""

import importlib
from typing import Any, NamedTuple

import pytest
import torch

from maskmod import (
    attention,
    causal,
    document,
    full,
    key_padding,
    lower,
    per_head,
    register_backend,
    select_backend,
    shift,
    sliding_window,
)
from maskmod.errors import UnsupportedMask

B, H, N = 2, 3, 8
EAGER = "it is the reference: slower than the fused kernels and never needed for correctness"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict:
    """A copy of the registered backends, put back afterwards."""
    module = importlib.import_module("maskmod.attention")
    monkeypatch.setattr(module, "_BACKENDS", dict(module._BACKENDS))
    return module._BACKENDS


# -------------------------------------------------------------------------------------------------------------- choice


def test_a_proven_flag_is_chosen():
    choice = select_backend(causal(), 1, 8, 512, 512)
    assert choice.backend == "sdpa"
    assert choice.why == "structure and static lengths prove it top-left causal: the flag, no mask"
    assert choice.rejected["flex"] == "SDPA needs no mask here"
    assert choice.rejected["eager"] == EAGER
    choice = select_backend(full(), 1, 8, 512, 512)
    assert choice.backend == "sdpa"
    assert choice.why == "structure and static lengths prove that it hides nothing: no mask"


def test_a_small_mask_is_dense():
    choice = select_backend(sliding_window(4), 1, 8, 512, 512, device="cpu")
    assert choice.backend == "sdpa"
    assert choice.why == "a dense boolean mask; no cheaper form is proven"
    assert choice.rejected["flex"] == "for this size and device a dense mask is cheaper than a compiled kernel"
    assert choice.rejected["eager"] == EAGER


def test_a_mask_beyond_a_gibibyte_is_not_dense():
    choice = select_backend(sliding_window(4), 1, 1, 65536, 65536, device="cpu")
    assert choice.backend == "flex"
    assert choice.why == "a dense mask would take 4.0 GiB"
    assert choice.rejected["sdpa"] == "dense mask"


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"requires_grad": True}, "flex attention has no backward on CPU"),
        ({"dtype": torch.float64}, "compiled flex attention has no float64 on CPU"),
    ],
)
def test_flex_is_not_chosen_where_it_cannot_run(facts: dict[str, Any], reason: str):
    choice = select_backend(sliding_window(4), 1, 1, 65536, 65536, device="cpu", **facts)
    assert choice.backend == "sdpa"
    assert choice.rejected["flex"] == reason


def test_on_a_gpu_long_queries_go_to_flex():
    assert select_backend(sliding_window(4), 1, 1, 4096, 4096, device="cuda").backend == "flex"
    assert select_backend(sliding_window(4), 1, 1, 1, 4096, device="cuda").backend == "sdpa"
    assert select_backend(causal(), 1, 1, 4096, 4096, device="cuda").backend == "sdpa"


def test_every_backend_is_chosen_or_rejected(registry: dict):
    register_backend("mine", lower=lambda mask, sizes, **options: Nothing(), attend=lambda q, *rest, **options: q)
    for mask in (causal(), full(), sliding_window(2)):
        choice = select_backend(mask, 1, 1, 64, 64)
        assert {choice.backend, *choice.rejected} == set(registry)
        assert all(choice.rejected.values())
        assert choice.rejected["mine"] == "it runs where it is asked for by name"


# ----------------------------------------------------------------------------------------------- one mask for all heads


class Nothing(NamedTuple):
    why: str = "a spy"

    def kwargs(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("mask", "sizes"),
    [
        (causal(), (1, 1, N, N)),
        (causal() & document(torch.zeros(N, dtype=torch.int64)), (1, 1, N, N)),
        (causal() & key_padding(torch.ones(B, N, dtype=torch.bool)), (B, 1, N, N)),
        (lambda b, h, q_idx, kv_idx: q_idx - kv_idx <= h, (1, H, N, N)),
        (per_head([causal(), full(), causal()]), (1, H, N, N)),
        (lambda b, h, q_idx, kv_idx: (q_idx - kv_idx <= h) & (kv_idx != b), (B, H, N, N)),
        (lambda b, h, q_idx, kv_idx: True, (1, 1, N, N)),
        (shift(full(), q_offset=torch.zeros(B, dtype=torch.int64)), (B, 1, N, N)),
    ],
)
def test_heads_and_rows_share_a_mask_unless_it_reads_them(mask, sizes: tuple[int, ...], registry: dict):
    asked = []

    def spy(mask, sizes, *, dtype, device, empty_rows):
        asked.append(tuple(sizes))
        return Nothing()

    register_backend("spy", lower=spy, attend=lambda q, *rest, **options: q)
    q = torch.zeros(B, H, N, 4)
    attention(q, q, q, mask, backend="spy")
    assert asked == [sizes]


def test_a_per_head_mask_holds_for_every_head():
    q, k, v = (torch.randn(B, H, N, 4) for _ in range(3))
    heads = [causal(), full(), sliding_window(2)]
    out = attention(q, k, v, per_head(heads))
    for h, mask in enumerate(heads):
        one = slice(h, h + 1)
        torch.testing.assert_close(out[:, one], attention(q[:, one], k[:, one], v[:, one], mask))


# -------------------------------------------------------------------------------------------------------- registration


def test_a_registered_backend_is_used(registry: dict):
    def attend(q, k, v, mask, args, *, scale, enable_gqa, empty_rows):
        return torch.full_like(q, 7.0)

    register_backend("sevens", lower=lambda mask, sizes, **options: Nothing("always seven"), attend=attend)
    q = torch.zeros(1, 1, 2, 4)
    assert (attention(q, q, q, causal(), backend="sevens") == 7).all()
    assert lower(causal(), "sevens", 1, 1, 2, 2).why == "always seven"
    assert "sevens" in registry


def test_a_registered_backend_may_refuse(registry: dict):
    register_backend(
        "short",
        lower=lambda mask, sizes, **options: Nothing(),
        attend=lambda q, *rest, **options: q,
        refuse=lambda mask, request: "too long" if request.sizes.q_len > 4 else None,
    )
    q = torch.zeros(1, 1, 8, 4)
    assert attention(q[:, :, :4], q, q, causal(), backend="short") is not None
    with pytest.raises(UnsupportedMask, match=r"^attention\(backend='short'\): not supported, too long\. "):
        attention(q, q, q, causal(), backend="short")
