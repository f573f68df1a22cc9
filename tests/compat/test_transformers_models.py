"""Models with random weights give the same tokens and logits with transformers' masks and with `install()`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from maskmod.compat.transformers import install

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
    "bos_token_id": 1,
    "eos_token_id": 63,
}
HYBRID = ["sliding_attention", "full_attention"]
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": 4}),
    "gemma3": ("Gemma3TextConfig", {"sliding_window": 4, "layer_types": HYBRID}),
    "llama4": (
        "Llama4TextConfig",
        {
            "attention_chunk_size": 4,
            "layer_types": ["chunked_attention", "full_attention"],
            "intermediate_size_mlp": 32,
            "num_local_experts": 2,
        },
    ),
    "qwen3-next": (
        "Qwen3NextConfig",
        {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_value_heads": 2,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
}
STATIC = ["llama", "mistral", "gemma3", "llama4"]  # transformers has no static cache for linear attention layers


def decoder(name: str, implementation: str) -> Any:
    config_class, extra = DECODERS[name]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**(TINY | extra))
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()


def batch() -> dict[str, torch.Tensor]:
    """Two prompts of 7 and 4 tokens, padded on the left."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(2, 60, (2, 7), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, :3] = 0
    return {"input_ids": torch.where(attention_mask == 1, input_ids, 0), "attention_mask": attention_mask}


@torch.no_grad()
def generated(model: Any, cache: str, **inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Tokens and logits of six steps, past the window and the chunk."""
    options = {"cache_implementation": "static", "disable_compile": True} if cache == "static" else {}
    out = model.generate(
        **inputs,
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return out.sequences, *out.logits


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`install`, with a trap in transformers' own functions: a model that still calls one of them fails."""

    def trap(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("transformers made a mask by itself")

    def enter() -> Any:
        for name in ("_preprocess_mask_arguments", "_non_vmap_expansion_sdpa", "_vmap_expansion_sdpa"):
            monkeypatch.setattr(f"transformers.masking_utils.{name}", trap)
        return install()

    return enter


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("name", "cache"), [*((name, "dynamic") for name in DECODERS), *((n, "static") for n in STATIC)]
)
def test_generate(name: str, cache: str, implementation: str, installed: Any) -> None:
    model = decoder(name, implementation)
    want = generated(model, cache, **batch())
    with installed():
        got = generated(model, cache, **batch())
    assert all(map(torch.equal, want, got))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_packed_forward(name: str, implementation: str, installed: Any) -> None:
    model = decoder(name, implementation)
    inputs = {"input_ids": batch()["input_ids"], "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3]]).expand(2, -1)}
    want = model(**inputs, use_cache=False).logits
    unpacked = model(input_ids=inputs["input_ids"], use_cache=False).logits
    with installed():
        got = model(**inputs, use_cache=False).logits
    assert torch.equal(want, got)
    assert not torch.allclose(want, unpacked)


def encoder_decoder(name: str, implementation: str) -> Any:
    sizes = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 63, "decoder_start_token_id": 1}
    bart = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 64}
    t5 = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    config = {"bart": ("BartConfig", bart | heads), "t5": ("T5Config", t5)}[name]
    torch.manual_seed(0)
    built = getattr(transformers, config[0])(**(sizes | config[1]))
    return transformers.AutoModelForSeq2SeqLM.from_config(built, attn_implementation=implementation).eval()


@pytest.mark.parametrize(("name", "implementation"), [("bart", "sdpa"), ("bart", "eager"), ("t5", "eager")])
def test_encoder_decoder(name: str, implementation: str, installed: Any) -> None:
    model = encoder_decoder(name, implementation)
    want = generated(model, "dynamic", **batch())
    with installed():
        got = generated(model, "dynamic", **batch())
    assert all(map(torch.equal, want, got))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_encoder(implementation: str, installed: Any) -> None:
    torch.manual_seed(0)
    sizes = {name: TINY[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    config = transformers.BertConfig(**sizes, num_attention_heads=4)
    model = transformers.AutoModel.from_config(config, attn_implementation=implementation).eval()
    want = model(**batch()).last_hidden_state
    with installed():
        got = model(**batch()).last_hidden_state
    assert torch.equal(want, got)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # transformers passes create_block_mask an outdated flag
@torch.no_grad()
def test_flex_forward(installed: Any) -> None:
    model = decoder("llama", "flex_attention")
    try:
        want = model(**batch(), use_cache=False).logits
    except Exception as error:
        pytest.skip(f"transformers' own flex attention does not run here: {type(error).__name__}")
    with installed():
        got = model(**batch(), use_cache=False).logits
    torch.testing.assert_close(want, got)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_jit_trace(implementation: str, installed: Any) -> None:
    """Traced with a batch that has no padding, right for one that has."""

    class Logits(torch.nn.Module):  # its parameters are no constants of the trace
        def __init__(self):
            super().__init__()
            self.model = decoder("llama", implementation)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits

    model, inputs = Logits(), batch()
    want = model(**inputs)
    with installed():
        example = (inputs["input_ids"], torch.ones_like(inputs["attention_mask"]))
        traced: Any = torch.jit.trace(model, example, check_trace=False)
    torch.testing.assert_close(want, traced(*inputs.values()))
