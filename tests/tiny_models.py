"""Models of transformers with random weights, small enough to be run by the dozen, and what is asked of them."""

from __future__ import annotations

from typing import Any

import torch
import transformers

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


def encoder_decoder(name: str, implementation: str) -> Any:
    sizes = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 63, "decoder_start_token_id": 1}
    bart = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 64}
    t5 = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    config = {"bart": ("BartConfig", bart | heads), "t5": ("T5Config", t5)}[name]
    torch.manual_seed(0)
    built = getattr(transformers, config[0])(**(sizes | config[1]))
    return transformers.AutoModelForSeq2SeqLM.from_config(built, attn_implementation=implementation).eval()
