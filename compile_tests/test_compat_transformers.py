"""`maskmod.compat.transformers` inside compiled graphs: no breaks for any implementation, one graph for decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from maskmod.compat import transformers as compat
from maskmod.compat import transformers_legacy as legacy

transformers = pytest.importorskip("transformers")

IMPLEMENTATIONS = ["sdpa", "eager", "flash_attention_2", "flex_attention"]
B, Q, PAST = 2, 6, 3
SLOTS = PAST + 32  # of a static cache: 32 steps of decoding


def config(implementation: str) -> Any:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 2}
    made = transformers.LlamaConfig(**sizes, vocab_size=8, sliding_window=5, attention_chunk_size=64)
    made._attn_implementation_internal = implementation
    return made


def cache(made: Any, kind: str | None) -> Any:
    if kind is None:
        return None
    if kind == "dynamic":
        filled = transformers.DynamicCache(config=made)
    else:
        filled = transformers.StaticCache(config=made, max_cache_len=SLOTS)
    states = torch.zeros(B, 4, PAST, 8)
    for layer in range(2):
        filled.update(states, states, layer)
    return filled


def padding(past: int = 0) -> Tensor:
    mask = torch.ones(B, Q + past, dtype=torch.long)
    mask[0, :2] = 0
    return mask


def dense(mask: Any) -> Any:
    return mask.to_dense() if isinstance(mask, BlockMask) else mask


def check_in_graph(function: Any, *args: Any, **kwargs: Any) -> None:
    """One graph or none, and the mask that eager code makes."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda: function(*args, **kwargs), fullgraph=True, backend="eager")()
    eager = function(*args, **kwargs)
    assert type(compiled) is type(eager)
    if eager is not None:
        assert torch.equal(dense(compiled), dense(eager))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", [None, "dynamic", "static"])
def test_padding_and_cache(implementation: str, kind: str | None) -> None:
    made = config(implementation)
    past = PAST if kind else 0
    check_in_graph(
        compat.create_causal_mask, made, torch.zeros(B, Q, 32), padding(past), cache(made, kind), torch.arange(Q)[None]
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "name",
    [
        "create_sliding_window_causal_mask",
        "create_chunked_causal_mask",
        "create_bidirectional_mask",
        "create_bidirectional_sliding_window_mask",
    ],
)
def test_siblings(implementation: str, name: str) -> None:
    function = getattr(compat, name)
    check_in_graph(function, config(implementation), torch.zeros(B, Q, 32), padding(), cache=None)


@pytest.mark.parametrize("implementation", ["sdpa", "flex_attention"])
@pytest.mark.parametrize("overlay", ["or_mask_function", "block_sequence_ids", "position_ids"])
def test_overlays(implementation: str, overlay: str) -> None:
    value = {
        "or_mask_function": lambda b, h, q_idx, kv_idx: (kv_idx < 2) & (h > 1),
        "block_sequence_ids": torch.tensor([[-1, 0, 0, 1, 1, -1]]).expand(B, -1),
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 0]]),
    }[overlay]
    check_in_graph(
        compat.create_causal_mask, config(implementation), torch.zeros(B, Q, 32), None, None, **{overlay: value}
    )


def test_positions_pack_unless_declared() -> None:
    embeds, position_ids = torch.zeros(1, Q, 32), torch.arange(Q)[None]
    made = config("sdpa")
    create = torch.compile(compat.create_causal_mask, fullgraph=True, backend="eager")
    assert create(made, embeds, None, None, position_ids) is not None
    assert create(made, embeds, None, None, position_ids, packed=False) is None
    with compat.install(packed=False):
        assert create(made, embeds, None, None, position_ids) is None


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention"])
def test_decode_is_one_graph(implementation: str) -> None:
    """32 steps over a static cache, the mask built inside the graph, its offset in a tensor."""
    torch._dynamo.reset()
    made = config(implementation)
    made.layer_types = ["full_attention"] * 2  # transformers' sliding static layers count in a Python int: more graphs
    filled = cache(made, "static")
    embeds, states = torch.zeros(B, 1, 32), torch.zeros(B, 4, 1, 8)
    attention_mask = torch.ones(B, SLOTS, dtype=torch.long)
    attention_mask[0, :2] = 0
    graphs = 0

    def backend(graph: Any, _inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph

    def visible(attention_mask: Tensor) -> Any:
        return dense(compat.create_causal_mask(made, embeds, attention_mask, filled))

    step = torch.compile(visible, fullgraph=True, backend=backend)
    for _ in range(PAST, SLOTS):
        assert torch.equal(step(attention_mask), visible(attention_mask))
        for layer in range(2):
            filled.update(states, states, layer)
    assert graphs == 1


@torch.no_grad()
def test_flex_decodes_over_a_static_cache() -> None:
    """Mask, cache update and attention in one inductor graph; transformers' own fails there on every device."""
    torch._dynamo.reset()
    states = torch.randn(3, B, 4, 8, 8, generator=torch.Generator().manual_seed(0))  # q, k, v of eight tokens
    attention_mask = torch.ones(B, 32, dtype=torch.long)
    attention_mask[0, :2] = 0
    spans = torch.full((B, 8), -1)
    spans[:, 4:7] = 0

    def outputs(implementation: str, compiled: bool) -> Tensor:
        made = config(implementation)
        made.layer_types = ["full_attention"] * 2
        filled = transformers.StaticCache(config=made, max_cache_len=32)
        filled.update(states[1, :, :, :3], states[2, :, :, :3], 0)

        def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            embeds = q.transpose(1, 2).flatten(2)
            mask = compat.create_causal_mask(made, embeds, attention_mask, filled, block_sequence_ids=spans)
            k, v = filled.update(k, v, 0)
            if isinstance(mask, BlockMask):
                return flex_attention(q, k, v, block_mask=mask)
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

        run = torch.compile(step, fullgraph=True, dynamic=False) if compiled else step
        return torch.cat([run(*states[..., i : i + 1, :]) for i in range(3, 8)])

    torch.testing.assert_close(outputs("flex_attention", True), outputs("sdpa", False))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_legacy() -> None:
    embeds = torch.zeros(B, Q, 4)
    for name in ("_prepare_4d_causal_attention_mask", "_prepare_4d_causal_attention_mask_for_sdpa"):
        check_in_graph(getattr(legacy, name), padding(), (B, Q), embeds, 0, 3)
    check_in_graph(legacy._prepare_4d_attention_mask_for_sdpa, padding(), torch.float32, 4)
