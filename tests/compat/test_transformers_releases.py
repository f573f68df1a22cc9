"""What differs between releases of transformers, whichever of them is installed: names, leaks, pages, missing names."""

from __future__ import annotations

import importlib.util
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

import maskmod.compat.transformers as ours
from maskmod import blockwise, causal, dense_mask, document, key_padding, sliding_window
from maskmod.compat.transformers import settings
from maskmod.errors import UnsupportedMask
from maskmod.masks import Causal

CREATE = [name for name in ours.__all__ if name.startswith("create_") and "recurrent" not in name]
OLDEST, NEWEST = (settings.RELEASES[version] for version in ("5.23.0", "5.24.0"))

SPANS = torch.tensor([[0, 0, -1, 0, 0, -1, 0, 0]])  # restart in each document
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2]])
POSITIONS = torch.tensor([[0, 1, 2, 0, 1, 2, 0, 1]])


class Config(SimpleNamespace):
    def get_text_config(self) -> Any:
        return self


def config(implementation: str = "sdpa", **extra: Any) -> Any:
    return Config(_attn_implementation=implementation, sliding_window=3, attention_chunk_size=3, **extra)


def create(name: str, made: Any, *arguments: Any, **keywords: Any) -> Any:
    return getattr(ours, name)(made, torch.zeros(1, 8, 4), *arguments, **keywords)


@pytest.mark.parametrize("name", CREATE)
def test_the_cache_has_two_names(name: str) -> None:
    cache = SimpleNamespace(get_query_offset=lambda layer: 2, get_mask_sizes=lambda q_length, layer: (q_length + 2, 0))
    two_sided = "bidirectional" in name
    want: Any = create(name, config(), None, None, cache) if two_sided else create(name, config(), None, cache)
    for keywords in ({"cache": cache}, {"past_key_values": cache}, {"cache": None, "past_key_values": cache}):
        got = create(name, config(), None, **keywords)
        assert (got is None) if want is None else torch.equal(want, got)
    if name != "create_bidirectional_mask":  # it hides nothing
        assert list(getattr(want, "shape", ())) == [1, 1, 8, 10]
    if not two_sided:
        with pytest.raises(TypeError, match="neither cache nor past_key_values"):
            create(name, config(), None)


@pytest.mark.parametrize("name", [name for name in CREATE if "generate" not in name])
@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention", "flash_attention_2"])
def test_a_paged_cache_needs_no_mask(name: str, implementation: str) -> None:
    """transformers' continuous batching brings its masks with it; 5.24 answers None."""
    paged = SimpleNamespace(fill_block_table=lambda *_: None)
    assert create(name, config(implementation), None, cache=paged) is None
    made = torch.ones(1, 1, 8, 8)
    assert create(name, config(implementation), made, cache=paged) is made


# -------------------------------------------------------------------------------------------------------------- leaks


def inside_documents(window: int = 8) -> Tensor:
    """Spans see themselves whole, tokens see those before them, and nobody sees another document."""
    spans, documents = SPANS[0].tolist(), DOCUMENTS[0].tolist()
    return torch.tensor(
        [
            [documents[q] == documents[k] and (0 <= q - k < window or spans[q] == spans[k] >= 0) for k in range(8)]
            for q in range(8)
        ]
    )


def leaking() -> Tensor:
    """The same, where a span of one document sees those of another that have its number."""
    same_span = (SPANS[0][:, None] == SPANS[0]) & (SPANS[0] >= 0)
    return inside_documents() | same_span


@pytest.mark.parametrize("release", [OLDEST, NEWEST], ids=["5.23", "5.24"])
def test_spans_that_restart_in_each_document(release: settings.Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.DEFAULTS, "release", release)
    arguments: tuple[Any, ...] = (config(), None, None, POSITIONS)
    keywords = {"block_sequence_ids": SPANS}
    undeclared = create("create_causal_mask", *arguments, **keywords)
    assert torch.equal(undeclared[0, 0], inside_documents() if release.spans_stay_in_documents else leaking())
    assert not torch.equal(inside_documents(), leaking())
    for declared in ({"packed": True}, {"packed": True, "strict": True}):
        assert torch.equal(create("create_causal_mask", *arguments, **keywords, **declared)[0, 0], inside_documents())
    if release.spans_stay_in_documents:
        strictly = create("create_causal_mask", *arguments, **keywords, strict=True)
        assert torch.equal(strictly[0, 0], inside_documents())
    else:
        with pytest.raises(UnsupportedMask, match="a span has tokens of two documents"):
            create("create_causal_mask", *arguments, **keywords, strict=True)


def test_strict_takes_spans_that_stay_in_their_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.DEFAULTS, "release", OLDEST)
    spans = torch.where(SPANS >= 0, DOCUMENTS, -1)
    mask = create("create_causal_mask", config(), None, None, POSITIONS, block_sequence_ids=spans, strict=True)
    assert torch.equal(mask[0, 0], inside_documents())


def test_a_trace_that_sees_no_ids_keeps_spans_inside_when_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.DEFAULTS, "release", OLDEST)

    made = config()

    def traced(positions: Tensor, spans: Tensor) -> Any:
        return create("create_causal_mask", made, None, None, positions, block_sequence_ids=spans, strict=True)

    compiled = torch.compile(traced, fullgraph=True, backend="eager")
    assert torch.equal(compiled(POSITIONS, SPANS)[0, 0], inside_documents())


def test_the_recipe_keeps_spans_inside_documents() -> None:
    valid = torch.ones(1, 8, dtype=torch.bool)
    mask = ((causal() & sliding_window(2)) | blockwise(SPANS)) & document(DOCUMENTS) & key_padding(valid)
    assert torch.equal(dense_mask(mask, 1, 1, 8, 8)[0, 0], inside_documents(window=2))


# ------------------------------------------------------------------------------------------------- functions of users


@pytest.mark.parametrize("release", [OLDEST, NEWEST], ids=["5.23", "5.24"])
def test_a_layer_pattern_of_a_user_gets_what_transformers_passes(
    release: settings.Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings.DEFAULTS, "release", release)
    seen: dict[str, Any] = {}

    def own_pattern(config: Any, inputs_embeds: Tensor, attention_mask: Any, **rest: Any) -> str:
        seen.update(rest)
        return "own"

    monkeypatch.setitem(ours.LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING, "own", own_pattern)
    cache = object()
    made = config(layer_types=["own"])
    masks = create("create_masks_for_generate", made, None, cache, strict=True, packed=False)
    assert masks == {"own": "own"}
    rest = {"position_ids", "or_mask_function", "and_mask_function", "block_sequence_ids"}
    assert seen.keys() == rest | {release.cache_name}
    assert seen[release.cache_name] is cache


def test_the_functions_of_the_table_know_what_is_declared() -> None:
    """Also a partial of one: packing with an all-ones mask is refused where the call says strict."""
    ones = torch.ones(1, 8, dtype=torch.long)
    for kind in ("full_attention", "sliding_attention", "chunked_attention", "indexed_attention"):
        made = config(layer_types=[kind])
        with pytest.raises(UnsupportedMask, match="packed=True"):
            create("create_masks_for_generate", made, ones, None, POSITIONS, strict=True)


def test_install_calls_a_users_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = pytest.importorskip("transformers.masking_utils")

    def own_pattern(config: Any, inputs_embeds: Tensor, attention_mask: Any, position_ids: Any, **rest: Any) -> set:
        return {*rest}

    monkeypatch.setitem(theirs.LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING, "own", own_pattern)
    arguments = (config(layer_types=["own"]), torch.zeros(1, 8, 4), None, None)
    want = theirs.create_masks_for_generate(*arguments)
    with ours.install(strict=True):
        assert theirs.create_masks_for_generate(*arguments) == want


# ------------------------------------------------------------------------------------------- releases not seen before


def test_names_that_a_release_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = importlib.import_module("transformers.masking_utils")
    monkeypatch.setattr(transformers, "__version__", "9.0.0")
    monkeypatch.delattr(theirs, "padding_mask_function")
    with pytest.raises(ours.InstallError, match=r"9\.0\.0.*it has no .*padding_mask_function.*compat check"):
        ours.install()
    with ours.install(allow_untested=True) as installation:
        assert "padding_mask_function" in installation.missing
        assert settings.DEFAULTS.release is NEWEST
        assert theirs.create_causal_mask is ours.create_causal_mask
    assert not hasattr(theirs, "padding_mask_function")


def test_install_without_the_legacy_module(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if "attn_mask_utils" in name else found(name, *rest)
    )
    with ours.install() as installation:
        assert not any("_prepare_4d" in place for place in installation.replaced)


# -------------------------------------------------------------------------------------------------------- exact types


class CausalByHead(Causal):
    """Looks causal by its base, and is not: head h sees the first h + 1 keys only."""

    _name = "causal_by_head"

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (kv_idx <= q_idx) & (kv_idx <= h)


@pytest.mark.parametrize("use_vmap", [False, True])
def test_a_subclass_is_not_taken_for_its_base(use_vmap: bool) -> None:
    want = torch.tensor([[[k <= q and k <= h for k in range(4)] for q in range(4)] for h in range(2)])[None]
    heads = SimpleNamespace(num_attention_heads=2)
    arguments: dict[str, Any] = {"mask_function": CausalByHead(), "use_vmap": use_vmap, "config": heads}
    got = ours.sdpa_mask(1, 4, 4, allow_is_causal_skip=False, **arguments)
    assert got is not None
    assert torch.equal(got, want)
    blocks = ours.flex_attention_mask(1, 4, 4, mask_function=CausalByHead(), config=heads)
    assert torch.equal(create_mask(blocks.mask_mod, 1, 2, 4, 4, "cpu"), want)
    with pytest.raises(UnsupportedMask, match="drops the predicate"):
        ours.sdpa_mask(1, 4, 4, strict=True, **arguments)
    for mask, strict in itertools.product((CausalByHead(), causal() & CausalByHead()), (True, False)):
        with pytest.raises(UnsupportedMask, match="flash"):
            ours.flash_attention_mask(1, 4, 4, mask_function=mask, strict=strict)
