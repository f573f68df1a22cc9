"""``attn_implementation="maskmod"``: logits, tokens and gradients of transformers' own attention, model by model."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import maskmod.compat.transformers as ours
from maskmod import blockwise, causal, dense_mask, document, sliding_window
from maskmod.algebra import Sizes
from maskmod.compat.transformers.lazy_mask import LazyMask
from maskmod.errors import MaskError, MaskShapeError, UnsupportedMask

transformers = pytest.importorskip("transformers")

from tiny_models import DECODERS, TINY, batch, encoder_decoder, generated  # noqa: E402
from transformers_calls import CACHE  # noqa: E402

MOE = {"num_local_experts": 2, "num_experts_per_tok": 1}
MODELS = DECODERS | {
    "gemma2": ("Gemma2Config", {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}),
    "gpt-oss": ("GptOssConfig", {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]} | MOE),
    "qwen3": ("Qwen3Config", {}),
    "phi3": ("Phi3Config", {}),
    "granite": ("GraniteConfig", {}),
    "cohere2": ("Cohere2Config", {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}),
    "olmo2": ("Olmo2Config", {}),
    "mixtral": ("MixtralConfig", {"sliding_window": 4} | MOE),
    "starcoder2": ("Starcoder2Config", {}),
    "gpt-neox": ("GPTNeoXConfig", {}),
}
STOCK = {"gemma2": "eager", "gpt-oss": "eager"}  # a cap and sinks, which transformers' sdpa does not take
STATIC = [name for name in MODELS if name != "qwen3-next"]


@pytest.fixture(autouse=True)
def registered() -> Iterator[Any]:
    with ours.register_attention() as registration:
        yield registration


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> list[LazyMask]:
    """The lazy masks that layers attended under, one entry a layer."""
    masks: list[LazyMask] = []
    attend = LazyMask.attend

    def watched(self: LazyMask, *args: Any, **kwargs: Any) -> Any:
        masks.append(self)
        return attend(self, *args, **kwargs)

    monkeypatch.setattr(LazyMask, "attend", watched)
    return masks


def decoder(name: str) -> Any:
    kind, extra = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**(TINY | extra))
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=STOCK.get(name, "sdpa")).eval()


INPUTS: dict[str, Any] = {
    "plain": lambda: {"input_ids": batch()["input_ids"]},
    "padded": batch,
    "packed": lambda: {
        "input_ids": batch()["input_ids"],
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3]]).expand(2, -1),
    },
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_forward(name: str, kind: str, attended: list[LazyMask]) -> None:
    model, inputs = decoder(name), INPUTS[kind]()
    want = model(**inputs, use_cache=False).logits
    assert not attended
    model.set_attn_implementation("maskmod")
    got = model(**inputs, use_cache=False).logits
    assert attended
    visible = inputs.get("attention_mask", torch.ones(2, 7)).bool()  # a padded token's own output is nobody's
    torch.testing.assert_close(got[visible], want[visible], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "cache"), [*((name, "dynamic") for name in MODELS), *((name, "static") for name in STATIC)]
)
def test_generate(name: str, cache: str, attended: list[LazyMask]) -> None:
    """Prefill and six steps, past the window and the chunk, two rows of which one is padded."""
    model = decoder(name)
    want, *logits = generated(model, cache, **batch())
    model.set_attn_implementation("maskmod")
    got, *others = generated(model, cache, **batch())
    assert torch.equal(want, got)
    for a, b in zip(logits, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert attended or cache == "static"  # a short prompt over a static cache gets a tensor


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "llama4", "gpt-oss", "gemma2"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@torch.no_grad()
def test_chunked_prefill(name: str, cache: str) -> None:
    """A prompt in two pieces of more than the few queries that get a tensor."""
    model = decoder(name)
    ids = torch.randint(2, 60, (2, 40), generator=torch.Generator().manual_seed(2))

    def pieces() -> torch.Tensor:
        config = model.config
        kind = transformers.DynamicCache(config=config)
        if cache == "static":
            kind = transformers.StaticCache(config=config, max_cache_len=48)
        return torch.cat([model(input_ids=part, **{CACHE: kind}).logits for part in ids.split(20, dim=1)], 1)

    want = pieces()
    model.set_attn_implementation("maskmod")
    torch.testing.assert_close(pieces(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-oss", "gemma2"])
@pytest.mark.parametrize("kind", INPUTS)
def test_gradients(name: str, kind: str) -> None:
    model, inputs = decoder(name), INPUTS[kind]()
    visible = inputs.get("attention_mask", torch.ones(2, 7)).bool()

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(**inputs, use_cache=False).logits[visible].pow(2).sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    want = gradients()
    model.set_attn_implementation("maskmod")
    got = gradients()
    assert len(want) == len(got) > 10
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_layers_of_a_kind_share_a_mask(attended: list[LazyMask]) -> None:
    config = transformers.Gemma3TextConfig(
        **TINY | {"num_hidden_layers": 6, "sliding_window": 4},
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
    )
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="maskmod").eval()
    with torch.no_grad():
        model(**batch(), use_cache=False)
    assert len(attended) == 6
    assert len({id(mask) for mask in attended}) == 2


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_encoder_decoder(name: str) -> None:
    model = encoder_decoder(name, "eager")
    inputs = batch() | {"decoder_input_ids": batch()["input_ids"][:, :5]}
    with torch.no_grad():
        want = model(**inputs).logits
        model.set_attn_implementation("maskmod")
        torch.testing.assert_close(model(**inputs).logits, want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_encoder() -> None:
    torch.manual_seed(0)
    sizes = {name: TINY[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    model = transformers.BertModel(transformers.BertConfig(**sizes, num_attention_heads=4)).eval()
    want = model(**batch()).last_hidden_state
    model.set_attn_implementation("maskmod")
    visible = batch()["attention_mask"].bool()
    got = model(**batch()).last_hidden_state
    torch.testing.assert_close(got[visible], want[visible], rtol=1e-4, atol=1e-5)


def test_with_install(attended: list[LazyMask]) -> None:
    """Both together: maskmod describes the mask, too."""
    model = decoder("gemma3")
    with torch.no_grad():
        want = model(**batch(), use_cache=False).logits
        model.set_attn_implementation("maskmod")
        with ours.install():
            got = model(**batch(), use_cache=False).logits
    visible = batch()["attention_mask"].bool()
    torch.testing.assert_close(got[visible], want[visible], rtol=1e-4, atol=1e-5)
    assert {type(mask.mask).__name__ for mask in attended} == {"And"}


# ------------------------------------------------------------------------------------------------------ the mask itself


def lazy(mask: Any, q_len: int = 6, kv_len: int = 9) -> LazyMask:
    return LazyMask(mask, Sizes(2, 1, q_len, kv_len), torch.device("cpu"))


@pytest.mark.parametrize(
    "index",
    [
        (slice(None), slice(None), slice(None), slice(None, 7)),
        (Ellipsis, slice(2, None), slice(1, 8)),
        (Ellipsis, slice(None, 4)),
        (slice(None), 0),
        (1, 0, 3),
        (slice(1, 2),),
        (Ellipsis, slice(-3, None)),
    ],
)
def test_a_cut_mask_is_the_dense_mask_cut(index: Any) -> None:
    mask = causal() & document(torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 2, 2, 2]]))
    cut = lazy(mask)[index]
    want = dense_mask(mask, 2, 1, 6, 9)[index]
    assert tuple(cut.shape) == tuple(want.shape)
    assert torch.equal(cut.dense() if isinstance(cut, LazyMask) else cut, want)


def test_only_cuts_stay_lazy() -> None:
    assert isinstance(lazy(causal())[:, :, :, :7], LazyMask)
    assert isinstance(lazy(causal())[:, 0], torch.Tensor)
    assert lazy(causal()).size(-1) == 9
    assert lazy(causal()).to("cpu", torch.bool).contiguous().dim() == 4


def test_a_mask_is_no_number() -> None:
    for use in (lambda m: torch.zeros(6, 9) + m, lambda m: m and 1, lambda m: torch.where(m, 1, 0)):
        with pytest.raises(UnsupportedMask):
            use(lazy(causal()))
    with pytest.raises(UnsupportedMask, match="dense"):
        lazy(causal()).to(torch.float32)


def test_lengths_are_checked() -> None:
    q, k = torch.zeros(2, 1, 6, 4), torch.zeros(2, 1, 8, 4)
    with pytest.raises(MaskShapeError, match="6 queries and 8 keys"):
        lazy(causal()).attend(q, k, k)


def test_image_spans() -> None:
    """The mask function is given transformers' own predicates; what comes of them is the expression's mask."""
    theirs = transformers.masking_utils
    config = SimpleNamespace(_attn_implementation="maskmod", sliding_window=3, num_attention_heads=2)
    spans = torch.tensor([[-1, 0, 0, 0, -1, 1, 1, -1]])
    for library in (theirs, ours):
        for name, pattern in (
            ("create_causal_mask", causal()),
            ("create_sliding_window_causal_mask", sliding_window(3)),
        ):
            arguments = (config, torch.zeros(1, 8, 4), None, None)
            mask: Any = getattr(library, name)(*arguments, block_sequence_ids=spans)
            assert isinstance(mask, LazyMask)
            assert torch.equal(mask.dense(), dense_mask(pattern | blockwise(spans), 1, 1, 8, 8))


def test_one_query_gets_a_row() -> None:
    mask = ours.maskmod_mask(2, 1, 8, 7, attention_mask=torch.arange(8)[None].expand(2, -1) > 2)
    assert isinstance(mask, torch.Tensor)
    assert mask.tolist() == [[[[False] * 3 + [True] * 5]]] * 2
    assert ours.maskmod_mask(2, 1, 8, 7) is None


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"dropout": 0.1}, "dropout of 0.1"),
        ({"output_attentions": True}, "weights are never formed"),
        ({"indices": torch.zeros(1)}, "an indexer chose"),
        ({"block_table": torch.zeros(1)}, "continuous batching"),
        ({"cache": SimpleNamespace(fill_block_table=None)}, "continuous batching"),
    ],
)
def test_refusals(asked: dict[str, Any], words: str) -> None:
    q = torch.zeros(1, 2, 3, 4)
    with pytest.raises(UnsupportedMask, match=words):
        ours.maskmod_attention(torch.nn.Module(), q, q, q, None, **asked)
    with pytest.raises(UnsupportedMask, match="hands its padding"):
        ours.maskmod_attention(torch.nn.Module(), q, q, q, torch.ones(1, 3))


def test_registration_is_reversible(registered: Any) -> None:
    tables = transformers.AttentionInterface._global_mapping, transformers.AttentionMaskInterface._global_mapping
    assert (registered.name, registered.attention) == ("maskmod", tables[0]["maskmod"])
    assert tables[1]["maskmod"] is registered.mask
    assert ours.register_attention() == registered  # once more does nothing
    with ours.register_attention("other"):
        assert "other" in tables[0]
    assert "other" not in tables[0]
    for taken in ("sdpa", "eager"):
        with pytest.raises(MaskError, match="taken"):
            ours.register_attention(taken)
    registered.unregister()
    assert not any("maskmod" in table for table in tables)
