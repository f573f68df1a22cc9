"""`maskmod.compat.transformers_legacy` against the installed transformers, hundreds of random calls a function."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import maskmod.compat.transformers_legacy as ours

theirs = pytest.importorskip("transformers.modeling_attn_mask_utils")

CALLS = 300
DTYPES = [torch.float32, torch.float16, torch.bfloat16]  # in float64 transformers overflows on causal masks


class Draw(random.Random):
    """The random arguments of one call; the same seed draws them again."""

    def dtype(self) -> torch.dtype:
        return self.choice(DTYPES)

    def size(self, least: int = 1, most: int = 9) -> int:
        return self.randint(least, most)

    def window(self) -> int | None:
        return self.choice([None, None, 1, 2, 3, 5, 20])

    def padding(self, B: int, kv_len: int) -> Tensor:
        rows = [[int(self.random() < 0.7) for _ in range(kv_len)] for _ in range(B)]
        mask = torch.tensor(rows if self.random() < 0.7 else [[1] * kv_len] * B)
        return mask.to(self.choice([torch.int64, torch.bool, torch.float32]))


def to_causal_4d(library: Any, draw: Draw) -> Any:
    converter = library.AttentionMaskConverter(draw.random() < 0.9, draw.window())
    q_len = draw.size()
    past = draw.choice([0, 0, 1, 4, -1 if q_len > 1 else 0])
    return converter.to_causal_4d(draw.size(1, 3), q_len, q_len + past, draw.dtype())


def to_4d(library: Any, draw: Draw) -> Any:
    converter = library.AttentionMaskConverter(draw.random() < 0.7, draw.window())
    q_len = draw.size()
    kv_len = q_len + draw.choice([0, 0, 1, 4])
    padding = draw.padding(draw.size(1, 3), kv_len + (kv_len > 1 and draw.random() < 0.2))
    given = {} if draw.random() < 0.1 else {"key_value_length": kv_len}
    return converter.to_4d(padding, q_len, dtype=draw.dtype(), **given)


def make_causal_mask(library: Any, draw: Draw) -> Any:
    sizes = torch.Size((draw.size(1, 3), draw.size()))
    window = draw.choice([None, 0, 1, 3])
    return library.AttentionMaskConverter._make_causal_mask(
        sizes, draw.dtype(), torch.device("cpu"), draw.size(0, 4), window
    )


def expand_mask(library: Any, draw: Draw) -> Any:
    mask = draw.padding(draw.size(1, 3), draw.size())
    if mask.is_floating_point() and draw.random() < 0.3:
        mask = mask * 0.5
    return library.AttentionMaskConverter._expand_mask(mask, draw.dtype(), draw.choice([None, 1, 4]))


def unmask_unattended(library: Any, draw: Draw) -> Any:
    dtype = draw.dtype()
    least = torch.finfo(dtype).min
    mask = draw.padding(draw.size(1, 3), draw.size())[:, None, None, :].expand(-1, 1, draw.size(), -1)
    bias = torch.where(mask == 1, 0.0, least).to(dtype) if draw.random() < 0.9 else mask == 1
    return library.AttentionMaskConverter._unmask_unattended(bias, least)


def ignore_causal_mask_sdpa(library: Any, draw: Draw) -> Any:
    B, q_len, past = draw.size(1, 3), draw.size(1, 3), draw.choice([0, 0, 1, 4])
    padding = draw.choice([None, draw.padding(B, q_len + past), torch.ones(B, 1, q_len, q_len + past)])
    return library.AttentionMaskConverter._ignore_causal_mask_sdpa(
        padding, torch.zeros(B, q_len, 4), past, draw.window(), draw.random() < 0.3
    )


def prepare_causal(name: str) -> Callable[[Any, Draw], Any]:
    def call(library: Any, draw: Draw) -> Any:
        B, q_len, past = draw.size(1, 3), draw.size(), draw.choice([0, 0, 1, 4])
        kv_len = q_len + past
        four = torch.tensor([draw.random() < 0.5 for _ in range(B * q_len * kv_len)]).view(B, 1, q_len, kv_len).float()
        padding = draw.choice([None, draw.padding(B, kv_len), draw.padding(B, kv_len), four, four[..., :-1], four[0]])
        embeds = torch.zeros(B, q_len, 4, dtype=draw.dtype())
        shape = draw.choice([torch.Size, tuple, list])((B, q_len))
        return getattr(library, name)(padding, shape, embeds, past, draw.window())

    return call


def prepare(name: str) -> Callable[[Any, Draw], Any]:
    def call(library: Any, draw: Draw) -> Any:
        padding = draw.padding(draw.size(1, 3), draw.size())
        return getattr(library, name)(padding, draw.dtype(), draw.choice([None, 1, 4]))

    return call


def create_causal(library: Any, draw: Draw) -> Any:
    shape = (draw.size(1, 3), draw.size())
    past, window = draw.size(0, 4), draw.choice([None, 2, 3, 0])
    return library._create_4d_causal_attention_mask(shape, draw.dtype(), torch.device("cpu"), past, window)


FUNCTIONS = {
    "to_causal_4d": to_causal_4d,
    "to_4d": to_4d,
    "_make_causal_mask": make_causal_mask,
    "_expand_mask": expand_mask,
    "_unmask_unattended": unmask_unattended,
    "_ignore_causal_mask_sdpa": ignore_causal_mask_sdpa,
    "_prepare_4d_causal_attention_mask": prepare_causal("_prepare_4d_causal_attention_mask"),
    "_prepare_4d_causal_attention_mask_for_sdpa": prepare_causal("_prepare_4d_causal_attention_mask_for_sdpa"),
    "_prepare_4d_attention_mask": prepare("_prepare_4d_attention_mask"),
    "_prepare_4d_attention_mask_for_sdpa": prepare("_prepare_4d_attention_mask_for_sdpa"),
    "_create_4d_causal_attention_mask": create_causal,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_random_calls(name: str, request: pytest.FixtureRequest) -> None:
    times = 20 if request.config.getoption("--long", default=False) else 1
    kinds = {check(name, seed) for seed in range(CALLS * times)}
    assert kinds & {"Tensor", "bool"}, kinds


def check(name: str, seed: int) -> str:
    """Compare both libraries on a call; ``check(name, seed)`` repeats it."""
    want, warned = outcome(theirs, name, seed)
    got, warned_too = outcome(ours, name, seed)
    line = f"check({name!r}, {seed}): wanted {want!r}, got {got!r}"
    assert warned == warned_too, f"{line}, warned {warned_too}, not {warned}"
    if isinstance(want, Exception):
        assert isinstance(got, type(want)), line
    elif isinstance(want, Tensor):
        assert isinstance(got, Tensor), line
        assert (got.dtype, got.shape) == (want.dtype, want.shape), line
        assert torch.equal(got, want), line
    else:
        assert got is want, line
    return type(want).__name__


def outcome(library: Any, name: str, seed: int) -> tuple[Any, bool]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = FUNCTIONS[name](library, Draw(f"{name} {seed}"))
        except Exception as error:
            result = error
    assert {warning.category for warning in caught} <= {FutureWarning}
    return result, bool(caught)


def test_a_window_of_n_shows_n_plus_one_keys() -> None:
    for library in (theirs, ours):
        with pytest.warns(FutureWarning):
            bias = library.AttentionMaskConverter(True, 2).to_causal_4d(1, 6, 6, torch.float32)
        assert (bias[0, 0, 5] == 0).nonzero().flatten().tolist() == [3, 4, 5]
