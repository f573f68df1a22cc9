"""One call over all backends: choices and their reasons, one mask for all heads, registration."""

import importlib
import re
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
from maskmod.backends.protocol import Backend, Bid
from maskmod.errors import UnsupportedMask

B, H, N = 2, 3, 8
EAGER = "its estimate is higher: the reference, in plain torch operations"
FLEX = "on CPU a compile of seconds comes first: pass allow_compile=True, or plan(..., calls=) of 100 or more"
DENSE = "every pair is computed, under a dense boolean mask"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict:
    """A copy of the registered backends, put back afterwards."""
    module = importlib.import_module("maskmod.backends.registry")
    monkeypatch.setattr(module, "_BACKENDS", dict(module._BACKENDS))
    return module._BACKENDS


# -------------------------------------------------------------------------------------------------------------- choice


def test_a_proven_flag_is_chosen():
    choice = select_backend(causal(), 1, 8, 512, 512)
    assert choice.backend == "sdpa"
    assert choice.why == "structure and static lengths prove it top-left causal: the flag, no mask"
    assert choice.rejected["flex"] == FLEX
    assert choice.rejected["eager"] == EAGER
    choice = select_backend(full(), 1, 8, 512, 512)
    assert choice.backend == "sdpa"
    assert choice.why == "structure and static lengths prove that it hides nothing: no mask"


def test_a_small_mask_is_dense():
    choice = select_backend(sliding_window(4), 1, 8, 64, 64, device="cpu")
    assert choice.backend == "sdpa"
    assert choice.why == DENSE
    assert choice.rejected["flex"] == FLEX
    assert choice.rejected["eager"] == EAGER


def test_a_long_window_goes_to_spans_without_a_compile():
    choice = select_backend(sliding_window(4), 1, 1, 65536, 65536, device="cpu")
    assert choice.backend == "spans"
    assert re.fullmatch(r"blocks of \d+ queries meet just the keys they see", choice.why)
    assert choice.rejected["sdpa"] == "its estimate is higher: a dense mask would take 4.0 GiB"
    assert choice.rejected["flex"] == FLEX
    assert choice.cost["spans"] * 20 < choice.cost["sdpa"] < choice.cost["eager"] * 1000


def test_flex_is_weighed_where_a_compile_is_acceptable():
    def cost(**facts: Any) -> dict[str, float]:
        return select_backend(causal() & sliding_window(512), 1, 4, 8192, 8192, device="cpu", **facts).cost

    assert cost()["flex"] == float("inf") == cost(allow_compile=False, calls=1000)["flex"]
    assert cost(allow_compile=True)["flex"] < cost(calls=200)["flex"] < float("inf")
    assert cost(calls=20_000)["flex"] < cost(calls=200)["flex"]


def test_a_backward_costs_more():
    facts = (causal() & sliding_window(512), 1, 4, 8192, 8192)
    with_grad, without = (select_backend(*facts, requires_grad=g, device="cpu").cost for g in (True, False))
    assert all(with_grad[name] > 2 * without[name] for name in ("spans", "sdpa", "eager"))


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"requires_grad": True}, "flex attention has no backward on CPU"),
        ({"dtype": torch.float64}, "compiled flex attention has no float64 on CPU"),
    ],
)
def test_flex_is_not_chosen_where_it_cannot_run(facts: dict[str, Any], reason: str):
    choice = select_backend(sliding_window(4), 1, 1, 65536, 65536, device="cpu", **facts)
    assert choice.backend == "spans"
    assert choice.rejected["flex"] == reason


def test_on_a_gpu_long_queries_go_to_flex():
    assert select_backend(sliding_window(4), 1, 1, 4096, 4096, device="cuda").backend == "flex"
    assert select_backend(sliding_window(4), 1, 1, 1, 4096, device="cuda").backend == "sdpa"
    assert select_backend(causal(), 1, 1, 4096, 4096, device="cuda").backend == "sdpa"


def test_every_backend_is_chosen_or_rejected(registry: dict):
    register_backend("mine", Spy(cost=float("inf")))
    for mask in (causal(), full(), sliding_window(2)):
        choice = select_backend(mask, 1, 1, 64, 64)
        assert {choice.backend, *choice.rejected} == set(registry)
        assert all(choice.rejected.values())
        assert choice.rejected["mine"] == "asked by name"
        assert choice.cost["mine"] == float("inf")
        assert "flash" not in choice.cost


def test_a_registered_backend_is_chosen_when_it_bids_least(registry: dict):
    register_backend("mine", Spy(cost=-1.0))
    assert select_backend(causal(), 1, 1, 64, 64).backend == "mine"


# ----------------------------------------------------------------------------------------------- one mask for all heads


class Nothing(NamedTuple):
    why: str = "a spy"

    def kwargs(self) -> dict[str, Any]:
        return {}


class Spy(Backend):
    """Lowers to nothing, answers with q, and remembers the sizes it was asked for."""

    name = "spy"

    def __init__(self, *, why: str = "a spy", cost: float = 0.0, most: int = 1 << 20):
        self.why, self.cost, self.most = why, cost, most
        self.asked: list[tuple[int, ...]] = []

    def lower(self, reading, *, dtype, empty_rows="keep"):
        self.asked.append(tuple(reading.sizes))
        return Nothing(self.why)

    def read_back(self, args):
        raise NotImplementedError

    def bid(self, reading, request):
        return "too long" if reading.sizes.q_len > self.most else Bid(self.cost, "asked by name")

    def attend(self, q, k, v, args, call):
        return torch.full_like(q, 7.0)


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
    spy = Spy()
    register_backend("spy", spy)
    q = torch.zeros(B, H, N, 4)
    attention(q, q, q, mask, backend="spy")
    assert spy.asked == [sizes]


def test_a_per_head_mask_holds_for_every_head():
    q, k, v = (torch.randn(B, H, N, 4) for _ in range(3))
    heads = [causal(), full(), sliding_window(2)]
    out = attention(q, k, v, per_head(heads))
    for h, mask in enumerate(heads):
        one = slice(h, h + 1)
        torch.testing.assert_close(out[:, one], attention(q[:, one], k[:, one], v[:, one], mask))


# -------------------------------------------------------------------------------------------------------- registration


def test_a_registered_backend_is_used(registry: dict):
    register_backend("sevens", Spy(why="always seven"))
    q = torch.zeros(1, 1, 2, 4)
    assert (attention(q, q, q, causal(), backend="sevens") == 7).all()
    assert lower(causal(), "sevens", 1, 1, 2, 2).why == "always seven"
    assert "sevens" in registry


def test_a_registered_backend_may_refuse(registry: dict):
    register_backend("short", Spy(most=4))
    q = torch.zeros(1, 1, 8, 4)
    assert attention(q[:, :, :4], q, q, causal(), backend="short") is not None
    with pytest.raises(UnsupportedMask, match=r"^attention\(backend='short'\): not supported, too long\. "):
        attention(q, q, q, causal(), backend="short")
