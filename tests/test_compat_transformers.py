"""`maskmod.compat.transformers` against the installed transformers, call by call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_mask

import maskmod.compat.transformers as ours
from maskmod.errors import UnsupportedMask

theirs = pytest.importorskip("transformers.masking_utils")

from transformers_calls import Call, random_call  # noqa: E402  (imports transformers)

IMPLEMENTATIONS = ["sdpa", "eager", "flash_attention_2", "flex_attention"]
CALLS = {"sdpa": 1500, "eager": 700, "flash_attention_2": 600, "flex_attention": 120}


@pytest.fixture(autouse=True)
def uncompiled_block_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers compiles create_block_mask, which costs seconds a call and breaks on some CPUs."""
    build = theirs.create_block_mask
    monkeypatch.setattr(theirs, "create_block_mask", lambda *args, _compile, **kwargs: build(*args, **kwargs))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_random_calls(implementation: str, request: pytest.FixtureRequest) -> None:
    times = 20 if request.config.getoption("--long", default=False) else 1
    outcomes: dict[str, int] = {}
    for seed in range(CALLS[implementation] * times):
        outcome = check(random_call(seed, implementation))
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert outcomes.get("mask", 0) > CALLS[implementation] / 10, outcomes  # no kind of outcome is compared in vain
    print(outcomes)


def check(call: Call) -> str:
    """Compare both libraries on a call; the line to repeat it is in the failure."""
    want, got = outcome(theirs, call), outcome(ours, call)
    if is_refused(call) and not isinstance(want, Exception):
        assert isinstance(got, UnsupportedMask), f"check({call!r}) was not refused: {describe(got)}"
        return "refused"
    assert same(want, got), f"check({call!r}): wanted {describe(want)}, got {describe(got)}"
    return type(want).__name__ if isinstance(want, Exception) else "None" if want is None else "mask"


def outcome(library: Any, call: Call) -> Any:
    arguments = call.arguments()
    try:
        return getattr(library, call.function)(**arguments)
    except Exception as error:
        return error


def is_refused(call: Call) -> bool:
    """Flash attention with a predicate or spans that transformers drops."""
    if "flash" not in call.implementation or call.padding == "4d":
        return False
    spans = call.spans and (call.is_causal or "chunked" in call.function)
    return call.or_mask is not None or call.and_mask is not None or spans


def same(want: Any, got: Any) -> bool:
    if isinstance(want, Exception):
        return isinstance(got, type(want))
    if isinstance(want, Tensor):
        return (
            isinstance(got, Tensor) and want.dtype == got.dtype and want.shape == got.shape and torch.equal(want, got)
        )
    if isinstance(want, BlockMask):
        return isinstance(got, BlockMask) and same_blocks(want, got)
    return got is want


def same_blocks(want: BlockMask, got: BlockMask) -> bool:
    if (want.shape, want.BLOCK_SIZE, want.seq_lengths) != (got.shape, got.BLOCK_SIZE, got.seq_lengths):
        return False
    for name in ("kv", "full_kv", "q", "full_q"):
        counts, indices = (getattr(want, f"{name}_{part}") for part in ("num_blocks", "indices"))
        other_counts, other_indices = (getattr(got, f"{name}_{part}") for part in ("num_blocks", "indices"))
        if not torch.equal(counts, other_counts):
            return False
        used = torch.arange(indices.shape[-1]) < counts[..., None]
        if not torch.equal(indices[used], other_indices[used]):
            return False
    B, H, q_len, kv_len = want.shape
    return torch.equal(
        create_mask(want.mask_mod, B, H, q_len, kv_len, "cpu"), create_mask(got.mask_mod, B, H, q_len, kv_len, "cpu")
    )


def describe(result: Any) -> str:
    if isinstance(result, Tensor):
        return f"{result.dtype} {list(result.shape)} {result.long().flatten().tolist()[:400]}"
    return repr(result)[:300]
