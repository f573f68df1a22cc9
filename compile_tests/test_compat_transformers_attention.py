"""Whole models under ``attn_implementation="maskmod"``, compiled: one graph a shape, no break, what eager gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from maskmod.compat.transformers import register_attention
from maskmod.testing import watch_graphs

transformers = pytest.importorskip("transformers")

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "gemma3": (
        "Gemma3TextConfig",
        {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gemma2": ("Gemma2Config", {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}),
}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    with register_attention():
        yield


def decoder(name: str) -> Any:
    kind, extra = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**TINY, **extra)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="maskmod").eval()


def batch() -> dict[str, torch.Tensor]:
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1, :5] = 0
    return {
        "input_ids": torch.randint(1, 64, (2, 20), generator=torch.Generator().manual_seed(0)) * mask,
        "attention_mask": mask,
    }


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("padded", [True, False])
@torch.no_grad()
def test_prefill_is_one_graph(name: str, padded: bool) -> None:
    model, inputs = decoder(name), batch()
    if not padded:
        del inputs["attention_mask"]
    want = model(**inputs, use_cache=False).logits
    compiled = torch.compile(model.forward, fullgraph=True, backend="eager")
    with watch_graphs() as report:
        compiled(**inputs, use_cache=False)
        got = compiled(**inputs, use_cache=False).logits
    assert report.graphs == 1, report
    visible = batch()["attention_mask"].bool() if padded else ...
    torch.testing.assert_close(got[visible], want[visible], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@torch.no_grad()
def test_generate_with_a_static_cache(name: str) -> None:
    """transformers' own compiled decode loop: the steps' masks are made outside of the graph, as rows."""
    model = decoder(name)
    options: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    want = model.generate(**batch(), **options)
    compiled = transformers.CompileConfig(fullgraph=True, backend="eager", mode=None)
    compiled._compile_all_devices = True
    with watch_graphs() as report:
        got = model.generate(**batch(), **options, cache_implementation="static", compile_config=compiled)
    assert torch.equal(got, want)
    assert report.graphs > 0
    assert not report.breaks, report
