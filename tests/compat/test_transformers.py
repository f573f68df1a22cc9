"""`maskmod.compat.transformers` against the installed transformers, call by call."""

from __future__ import annotations

import importlib
import inspect
import itertools
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_mask

import maskmod.compat.transformers as ours
from maskmod.compat.transformers import settings
from maskmod.errors import MaskShapeError, UnsupportedMask

theirs = pytest.importorskip("transformers.masking_utils")

from transformers_calls import CACHE, FUNCTIONS, Call, random_call  # noqa: E402  (imports transformers)

RELEASE = settings.RELEASES[importlib.import_module("transformers").__version__]
IMPLEMENTATIONS = ["sdpa", "eager", "flash_attention_2", "flex_attention"]
CALLS = {"sdpa": 1500, "eager": 700, "flash_attention_2": 600, "flex_attention": 120}


@pytest.fixture(autouse=True)
def uncompiled_block_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers compiles create_block_mask, which costs seconds a call and breaks on some CPUs."""
    build = theirs.create_block_mask
    monkeypatch.setattr(theirs, "create_block_mask", lambda *args, _compile, **kwargs: build(*args, **kwargs))


@pytest.fixture(autouse=True)
def installed_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of `install` the functions follow the newest release: here they follow the one they are compared with."""
    monkeypatch.setattr(settings.DEFAULTS, "release", RELEASE)


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


# ------------------------------------------------------------------------------------------- interfaces, one by one


def predicates(library: Any) -> dict[str, Any]:
    """Every predicate function of a library, for two rows of eight tokens."""
    ids = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2], [0, 1, 2, 3, 4, 5, 6, 7]]).repeat(1, 4)
    spans = torch.tensor([[-1, 0, 0, -1, 1, 1, -2, -2], [-1] * 8]).repeat(1, 4)
    positions = torch.tensor([[0, 1, 0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5, 6, 7]]).repeat(1, 4)
    causal = library.causal_mask_function
    return {
        "causal": causal,
        "bidirectional": library.bidirectional_mask_function,
        "window": library.sliding_window_causal_mask_function(3),
        "no window": library.sliding_window_overlay(0),
        "overlay": library.sliding_window_overlay(3),
        "two sides": library.sliding_window_bidirectional_mask_function(2),
        "two sided overlay": library.sliding_window_bidirectional_overlay(0),
        "chunks": library.chunked_causal_mask_function(3, torch.tensor([0, 2])),
        "chunk overlay": library.chunked_overlay(3, torch.tensor([1, 2])),
        "blocks": library.or_masks(causal, library.blockwise_overlay(spans)),
        "padding": library.and_masks(library.padding_mask_function(spans >= 0), causal),
        "packed": library.and_masks(
            library.remap_positions_for_packed_sequence(causal, positions), library.packed_sequence_mask_function(ids)
        ),
        "documents": library.packed_sequence_mask_function(ids),
        "remap": library.remap_positions_for_packed_sequence(library.sliding_window_causal_mask_function(2), positions),
        "offsets": library.add_offsets_to_mask_function(causal, 2, 1),
    }


@pytest.mark.parametrize("name", predicates(ours))
@pytest.mark.parametrize("use_vmap", [False, True])
def test_predicates(name: str, use_vmap: bool) -> None:
    """Each predicate through each interface, given maskmod's objects and transformers' own closures."""
    padding = torch.tensor([[0] * 2 + [1] * 10, [1] * 12]).bool()
    for sizes in ((2, 6, 8, 0, 0), (2, 4, 9, 5, 1), (2, 3, 8, torch.tensor(4), 0)):
        for attention_mask in (None, padding):
            arguments = dict(zip(("batch_size", "q_length", "kv_length", "q_offset", "kv_offset"), sizes, strict=True))
            arguments |= {"attention_mask": attention_mask, "allow_is_causal_skip": False, "use_vmap": use_vmap}
            for interface in ("sdpa_mask", "eager_mask"):
                want = getattr(theirs, interface)(mask_function=predicates(theirs)[name], **arguments)
                for library in (ours, theirs):
                    got = getattr(ours, interface)(mask_function=predicates(library)[name], **arguments)
                    assert same(want, got), (interface, sizes, attention_mask, library)


@pytest.mark.parametrize("function", [name for name in FUNCTIONS if "causal" in name])
def test_prefill_of_a_million_tokens(function: str) -> None:
    """Large masks are painted from blocks."""
    for past, positions, padding, spans in (
        (0, None, "left", False),
        (0, "packed", None, False),
        (0, None, None, True),
        (77, None, "holes", True),
    ):
        cache = "lazy" if past else None
        call = Call(function, "sdpa", 2, past, 1030, cache, False, 300, padding, positions, spans=spans, skip=False)
        check(call)


@pytest.mark.parametrize("padding", [None, "ones", "left", "static"])
@pytest.mark.parametrize("local_size", [None, 4, 8])
def test_skips(padding: str | None, local_size: int | None) -> None:
    for q_length, kv_length, q_offset, kv_offset in (
        (8, 8, 0, 0),
        (1, 8, 7, 0),
        (5, 8, 0, 0),
        (5, 8, 3, 0),
        (5, 8, torch.tensor(0), 0),
        (4, 6, 6, 2),
    ):
        keys = torch.arange(kv_length + kv_offset)
        attention_mask = {
            None: None,
            "ones": (keys >= 0)[None],
            "left": (keys >= 2)[None],
            "static": (keys < q_length)[None],
        }[padding]
        for flags in ((True, False), (False, True), (False, False)):
            arguments = {"attention_mask": attention_mask, "local_size": local_size}
            arguments |= dict(zip(("allow_is_causal_skip", "allow_is_bidirectional_skip"), flags, strict=True))
            sizes = (1, q_length, kv_length, q_offset, kv_offset)
            for interface in ("sdpa_mask", "eager_mask", "flash_attention_mask"):
                want, got = (getattr(library, interface)(*sizes, **arguments) for library in (theirs, ours))
                assert same(want, got), (interface, sizes, arguments)


@pytest.mark.parametrize("function", ["create_sliding_window_causal_mask", "create_bidirectional_sliding_window_mask"])
def test_a_window_may_be_a_tensor(function: str) -> None:
    for size in (torch.tensor(2), torch.tensor(9)):
        config = llama()
        config.sliding_window = size
        want, got = (
            getattr(library, function)(config, torch.zeros(1, 5, 4), None, **{CACHE: None})
            for library in (theirs, ours)
        )
        assert same(want, got)


def test_indices_have_four_dimensions() -> None:
    """Without vmap a predicate may count on the shapes (B, 1, 1, 1), (1, 1, 1, 1), (1, 1, q, 1) and (1, 1, 1, kv)."""

    def predicate(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return (q_idx[:, :, :, 0, None] >= kv_idx) & (b + h.shape[3] + kv_idx.shape[1] > q_idx.shape[0])

    want, got = (
        library.sdpa_mask(2, 3, 4, mask_function=predicate, allow_is_causal_skip=False) for library in (theirs, ours)
    )
    assert same(want, got)


def test_and_or_take_predicates_only() -> None:
    for library in (theirs, ours):
        for combine in (library.and_masks, library.or_masks):
            with pytest.raises(RuntimeError):
                combine(library.causal_mask_function, 3)
        for overlay in ("and_mask_function", "or_mask_function"):
            with pytest.raises(RuntimeError):
                library.create_causal_mask(llama(), torch.zeros(1, 4, 4), None, None, **{overlay: 3})
    for combine, visible in (("and_masks", True), ("or_masks", False)):  # of none at all
        want, got = (create_mask(getattr(library, combine)(), 1, 1, 2, 2, "cpu") for library in (theirs, ours))
        assert same(want, got)
        assert want.all() == visible


def test_lengths_of_tables() -> None:
    for kv_length, kv_offset in ((4, 0), (8, 0), (4, 3)):
        mask, ids = torch.ones(2, 6, dtype=torch.bool), torch.zeros(2, 6, dtype=torch.long)
        for want, got in (
            (library.prepare_padding_mask(mask, kv_length, kv_offset) for library in (theirs, ours)),
            (library.maybe_pad_block_sequence_ids(ids, mask, kv_length, kv_offset) for library in (theirs, ours)),
            (library.prepare_padding_mask(None, kv_length, kv_offset) for library in (theirs, ours)),
        ):
            assert same(want, got)


def test_find_packed_sequence_indices() -> None:
    for rows in ([[0, 1, 2, 3]], [[5, 6, 7, 8]], [[0, 1, 0, 1], [0, 1, 2, 3]], [[0, 0, 0, 0]], [[3, 2, 1, 0]]):
        positions = torch.tensor(rows)
        assert same(theirs.find_packed_sequence_indices(positions), ours.find_packed_sequence_indices(positions))


# ----------------------------------------------------------------------------------------- the rest of the namespace


def test_every_public_name_is_here() -> None:
    for name, theirs_object in vars(theirs).items():
        made_here = getattr(theirs_object, "__module__", None) == theirs.__name__
        constant = name.isupper() and len(name) > 1
        if not name.startswith("_") and (made_here or constant):
            assert name in ours.__all__, name


@pytest.mark.parametrize(
    "name", [name for name in ours.__all__ if name in vars(theirs) and inspect.isfunction(getattr(ours, name))]
)
def test_signatures(name: str) -> None:
    """The same parameters in the same order with the same defaults; ours may add keywords."""
    want, got = (inspect.signature(getattr(library, name)).parameters for library in (theirs, ours))
    newest = ["cache" if parameter == "past_key_values" else parameter for parameter in want]
    assert [p for p in got if got[p].kind is not inspect.Parameter.KEYWORD_ONLY] == newest
    for parameter, here in zip(want, newest, strict=True):
        assert want[parameter].kind == got[here].kind
        # Each library has its own causal predicate; a cache may come by either name, so that neither is asked for.
        if parameter != "mask_function" and not (
            here == "cache" and want[parameter].default is inspect.Parameter.empty
        ):
            assert want[parameter].default == got[here].default


@pytest.mark.parametrize(
    "kinds",
    [
        None,
        ["full_attention", "sliding_attention"],
        ["chunked_attention", "full_attention"],
        ["linear_attention", "full_attention"],
        ["hybrid"],
        ["hybrid_sliding", "indexed_attention"],
        ["sliding_attention", "hybrid_sliding"],
        ["hybrid_sliding", "sliding_attention"],
        ["unheard of"],
    ],
)
@pytest.mark.parametrize("padded", [False, True])
def test_masks_for_generate(kinds: list[str] | None, padded: bool) -> None:
    from types import SimpleNamespace

    extra = {} if kinds is None else {"layer_types": kinds}
    config = SimpleNamespace(_attn_implementation="sdpa", sliding_window=3, attention_chunk_size=3, **extra)
    config.get_text_config = lambda: config
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]]) if padded else None
    want, got = (
        library.create_masks_for_generate(config, torch.zeros(1, 6, 2), mask, None) for library in (theirs, ours)
    )
    if isinstance(want, dict):
        assert want.keys() == got.keys()
        assert all(same(want[kind], got[kind]) for kind in want)
    else:
        assert same(want, got)


def test_recurrent_masks() -> None:
    for mask in (None, torch.ones(1, 6), torch.tensor([[0, 1, 1, 1, 1, 1]]), torch.ones(1, 1, 6, 6)):
        for q_length in (1, 3, 6):
            embeds = torch.zeros(1, q_length, 2)
            want, got = (library.create_recurrent_attention_mask(None, embeds, mask) for library in (theirs, ours))
            assert same(want, got)


def test_a_registered_interface_gets_what_transformers_passes() -> None:
    seen: dict[str, list[dict[str, Any]]] = {"theirs": [], "ours": []}
    for name, library in (("theirs", theirs), ("ours", ours)):
        library.AttentionMaskInterface.register("recorder", lambda name=name, **kwargs: seen[name].append(kwargs))
        for function in [name for name in ours.__all__ if name.startswith("create_") and "recurrent" not in name]:
            if "generate" not in function:
                call = Call(function, implementation="recorder", past=2, cache="dynamic", padding="left", local=40)
                getattr(library, function)(**call.arguments())
        library.AttentionMaskInterface._global_mapping.pop("recorder")
    for want, got in zip(seen["theirs"], seen["ours"], strict=True):
        assert want.keys() == got.keys()
        for key in want.keys() - {"mask_function", "config", "attention_mask"}:
            assert want[key] == got[key], key


# ------------------------------------------------------------------------------------------------------- strictness


def llama(implementation: str = "sdpa", **extra: Any) -> Any:
    return Call("create_causal_mask", implementation=implementation)._replace(**extra).config()


def by_head(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return kv_idx < h + 1


def test_predicates_that_read_the_head() -> None:
    embeds = torch.zeros(1, 3, 4)
    mask: Any = ours.create_causal_mask(llama(), embeds, None, None, or_mask_function=by_head)
    want = torch.stack([torch.ones(3, 3).tril().bool() | (torch.arange(3) < head + 1) for head in range(2)])[None]
    assert torch.equal(mask, want)
    blocks: Any = ours.create_causal_mask(llama("flex_attention"), embeds, None, None, or_mask_function=by_head)
    assert torch.equal(create_mask(blocks.mask_mod, 1, 2, 3, 3, "cpu"), want)
    for use_vmap in (False, True):
        with pytest.raises(UnsupportedMask, match="number of heads"):
            ours.sdpa_mask(1, 3, 3, mask_function=by_head, allow_is_causal_skip=False, use_vmap=use_vmap)
    with pytest.raises(UnsupportedMask, match="reads h"):
        ours.flash_attention_mask(1, 3, 3, mask_function=by_head)


def test_flash_takes_what_the_kernel_knows() -> None:
    tables = predicates(ours)
    for name in ("causal", "window", "two sides", "packed", "bidirectional"):
        assert ours.flash_attention_mask(1, 3, 3, mask_function=tables[name], strict=True) is None
    chunks = ours.chunked_causal_mask_function(4, torch.zeros(1, dtype=torch.long))
    assert ours.flash_attention_mask(1, 3, 4, mask_function=chunks, strict=True) is None
    for mask in (tables["blocks"], tables["padding"], tables["chunks"], lambda b, h, q_idx, kv_idx: q_idx == kv_idx):
        assert ours.flash_attention_mask(2, 3, 8, mask_function=mask) is None
        with pytest.raises(UnsupportedMask, match="dropped"):
            ours.flash_attention_mask(2, 3, 8, mask_function=mask, strict=True)


def test_strict_refuses_what_would_be_dropped() -> None:
    embeds, packed = torch.zeros(1, 4, 4), torch.tensor([[0, 1, 0, 1]])
    ones = torch.ones(1, 4, dtype=torch.long)
    cache = Call("create_causal_mask", cache="lazy").filled_cache(None)
    ignored: list[dict[str, Any]] = [
        {"attention_mask": ones, "past_key_values": None, "position_ids": packed},
        {"attention_mask": None, "past_key_values": cache, "position_ids": packed},
    ]
    for arguments in ignored:
        assert ours.create_causal_mask(llama(), embeds, **arguments) is None
        with pytest.raises(UnsupportedMask, match="packed=True"):
            ours.create_causal_mask(llama(), embeds, strict=True, **arguments)
        assert ours.create_causal_mask(llama(), embeds, strict=True, packed=False, **arguments) is None
    left = torch.tensor([[0, 0, 1, 1]])  # generate() counts positions after the padding: no packing
    assert ours.create_causal_mask(llama(), embeds, left, None, torch.tensor([[1, 1, 0, 1]]), strict=True) is not None
    two_sided = llama(is_causal=False)
    dropped: list[dict[str, Any]] = [{"block_sequence_ids": ones}, {"position_ids": packed}]
    for extra in dropped:
        assert ours.create_causal_mask(two_sided, embeds, None, None, **extra) is None
        with pytest.raises(UnsupportedMask):
            ours.create_causal_mask(two_sided, embeds, None, None, strict=True, **extra)
        made = torch.ones(1, 1, 4, 4)
        assert ours.create_causal_mask(two_sided, embeds, made, None, strict=True, **extra) is made
    assert ours.create_causal_mask(llama("unheard of"), embeds, None, None) is None
    with pytest.raises(UnsupportedMask, match="not even a causal one"):
        ours.create_causal_mask(llama("unheard of"), embeds, None, None, strict=True)
    assert ours.sdpa_mask(1, 4, 4, mask_function=predicates(ours)["window"]) is None
    with pytest.raises(UnsupportedMask, match="drops the predicate"):
        ours.sdpa_mask(1, 4, 4, mask_function=predicates(ours)["window"], strict=True)
    for name in FUNCTIONS:  # and nothing else
        assert getattr(ours, name)(llama(local=8), embeds, None, cache=None, strict=True) is None


@pytest.mark.parametrize("name", ["causal", "bidirectional", "window", "overlay", "two sides", "offsets", "documents"])
def test_strict_none_says_what_the_predicate_says(name: str) -> None:
    """Without a mask SDPA shows every key or, by its flag, the causal triangle, which of one query hides nothing."""
    mask, outcomes = predicates(ours)[name], set()
    for kv_length, flag, local_size in itertools.product((1, 2, 5), (True, False), (None, 3, 9)):
        for q_length in {1, kv_length}:
            sizes = (2, q_length, kv_length, kv_length - q_length, 0, mask)
            skips: dict[str, Any] = {"allow_is_causal_skip": flag, "allow_is_bidirectional_skip": not flag}
            try:
                skipped = ours.sdpa_mask(*sizes, local_size=local_size, **skips, strict=True) is None
            except UnsupportedMask:
                outcomes.add("refused")
                continue
            if skipped:
                outcomes.add("None")
                shown = torch.ones(2, 1, q_length, kv_length, dtype=torch.bool)
                want = shown.tril() if flag and q_length > 1 else shown
                assert same(want, ours.sdpa_mask(*sizes, allow_is_causal_skip=False)), (sizes, skips, local_size)
    assert outcomes == ({"refused"} if name == "documents" else {"refused", "None"})


def test_packed_can_be_declared() -> None:
    embeds, positions = torch.zeros(1, 4, 4), torch.tensor([[0, 1, 0, 1]])
    want = theirs.create_causal_mask(llama(), embeds, None, None, positions)
    ones = torch.ones(1, 4, dtype=torch.long)
    got: Any = ours.create_causal_mask(llama(), embeds, ones, None, positions, packed=True)
    assert torch.equal(got, want)
    assert ours.create_causal_mask(llama(), embeds, None, None, positions, packed=False) is None
    for function in ("create_causal_mask", "create_sliding_window_causal_mask"):  # two-sided decoders too
        create: Any = getattr(ours, function)
        apart = theirs.packed_sequence_mask_function(positions.new_tensor([[0, 0, 1, 1]]))
        want = theirs.sdpa_mask(1, 4, 4, mask_function=apart, allow_is_causal_skip=False)
        two_sided = llama(is_causal=False, local=8), embeds, ones, None, positions
        assert torch.equal(create(*two_sided, packed=True, strict=True), want)
        assert create(*two_sided, packed=False, strict=True) is None
    with pytest.raises(MaskShapeError, match="3 tokens: there are 4 queries"):
        ours.create_causal_mask(llama(), embeds, None, None, positions[:, :3])
    cache = Call("create_causal_mask", cache="lazy", past=3).filled_cache(None)
    with pytest.raises(UnsupportedMask, match="4 queries and 7 keys"):
        ours.create_causal_mask(llama(), embeds, None, cache, positions, packed=True)


# ---------------------------------------------------------------------------------------------------------- install


def test_install_is_reversible(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers
    from transformers.models.llama import modeling_llama

    before = {name: vars(theirs)[name] for name in vars(theirs) if not name.startswith("__")}
    tables = dict(theirs.LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING), dict(theirs.AttentionMaskInterface._global_mapping)
    with ours.install() as installation:
        assert installation.version == transformers.__version__
        assert modeling_llama.create_causal_mask is ours.create_causal_mask
        assert "transformers.models.llama.modeling_llama.create_causal_mask" in installation.replaced
        assert "LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING['hybrid']['full_attention']" in installation.replaced
        assert "AttentionMaskInterface['sdpa']" in installation.replaced
        indexed = theirs.LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING["indexed_attention"]
        assert indexed.func is ours.create_causal_mask
        assert indexed.keywords == {"allow_is_causal_skip": False}
        assert transformers.AttentionMaskInterface()["sdpa"] is ours.sdpa_mask
        transformers.AttentionMaskInterface.register("late", ours.eager_mask)
        assert "late" in ours.ALL_MASK_ATTENTION_FUNCTIONS
        with pytest.raises(ours.InstallError, match="installed already"):
            ours.install()
        # Loaded anew, and put back afterwards: classes of the earlier module would be out of `install`'s sight.
        monkeypatch.delitem(sys.modules, "transformers.models.mistral.modeling_mistral", raising=False)
        mistral = importlib.import_module("transformers.models.mistral.modeling_mistral")
        assert mistral.create_causal_mask is ours.create_causal_mask
    theirs.AttentionMaskInterface._global_mapping.pop("late")
    assert before == {name: vars(theirs)[name] for name in before}
    assert tables == (theirs.LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING, theirs.AttentionMaskInterface._global_mapping)
    assert modeling_llama.create_causal_mask is mistral.create_causal_mask is theirs.create_causal_mask
    assert "late" not in ours.ALL_MASK_ATTENTION_FUNCTIONS
    ours.uninstall()  # once more does nothing


def test_tables_are_shared_while_installed() -> None:
    """An entry made through either library is found by maskmod's functions, and none of ours stays behind."""
    embeds, registry = torch.zeros(1, 4, 4), theirs.AttentionMaskInterface._global_mapping
    layers = theirs.LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING
    own = ours.AttentionMaskInterface._global_mapping
    before = dict(registry), dict(layers), dict(own)
    try:
        ours.AttentionMaskInterface.register("own", ours.sdpa_mask)
        theirs.AttentionMaskInterface.register("earlier", ours.sdpa_mask)
        with ours.install():
            assert "own" in registry
            theirs.AttentionMaskInterface.register("kernel", theirs.ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"])
            layers["new"] = theirs.create_causal_mask
            config = llama()
            config.layer_types = ["new"]
            assert ours.create_masks_for_generate(config, embeds, None, None) == {"new": None}
            theirs.ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] = lambda **_: "here alone"
            assert theirs.create_causal_mask(llama(), embeds, None, None) == "here alone"
            del theirs.ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
        assert registry["kernel"] is theirs.flash_attention_mask
        assert layers["new"] is theirs.create_causal_mask
        assert registry["earlier"] is ours.sdpa_mask
        assert "own" not in registry
        assert "new" not in ours.LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING
    finally:
        for table, entries in zip((registry, layers, own), before, strict=True):
            table.clear()
            table.update(entries)


def test_install_refuses_versions_it_has_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    monkeypatch.setattr(transformers, "__version__", "4.0.0")
    with pytest.raises(ours.InstallError, match=r"transformers 4\.0\.0.*allow_untested=True"):
        ours.install()
    with ours.install(allow_untested=True) as installation:
        assert installation.version == "4.0.0"


def test_install_declares() -> None:
    arguments = (llama(), torch.zeros(1, 4, 4), torch.ones(1, 4, dtype=torch.long), None, torch.tensor([[0, 1, 0, 1]]))
    with ours.install(strict=True), pytest.raises(UnsupportedMask):
        theirs.create_causal_mask(*arguments)
    with ours.install(packed=True):
        assert theirs.create_causal_mask(*arguments) is not None
    assert theirs.create_causal_mask(*arguments) is None
    assert ours.create_causal_mask(*arguments) is None


def test_importing_loads_no_transformers() -> None:
    modules = "maskmod.compat.transformers, maskmod.compat.transformers_legacy"
    code = f"import sys, {modules}; print('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_no_value_is_looked_at_while_a_cuda_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    embeds, ones = torch.zeros(1, 4, 4), torch.ones(1, 4, dtype=torch.int64)
    for implementation in ("sdpa", "flash_attention_2"):
        assert ours.create_causal_mask(llama(implementation), embeds, ones, None) is None
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_initialized", lambda: True)
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            assert isinstance(ours.create_causal_mask(llama(implementation), embeds, ones, None), Tensor)
