"""Models with random weights give the same tokens and logits with transformers' masks and with `install()`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from maskmod.compat.transformers import install

transformers = pytest.importorskip("transformers")

from tiny_models import DECODERS, STATIC, TINY, batch, decoder, encoder_decoder, generated  # noqa: E402


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
