"""transformers' ``create_*`` functions: facts read off its objects, one expression, one call of an interface.

Configs and caches are known by the attributes they carry; transformers is never imported.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskmod._torch.tracing import known_true, readable
from maskmod.algebra import Mask, MaskMod
from maskmod.compat.transformers.interfaces import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from maskmod.compat.transformers.predicates import (
    and_masks,
    bidirectional_mask_function,
    blockwise_overlay,
    causal_mask_function,
    chunked_causal_mask_function,
    document_numbers,
    find_packed_sequence_indices,
    maybe_pad_block_sequence_ids,
    or_masks,
    packed_sequence_compatibility_function,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
    stored,
)
from maskmod.compat.transformers.settings import DEFAULTS, is_strict
from maskmod.errors import MaskShapeError, UnsupportedMask

__all__ = [
    "LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING",
    "create_bidirectional_mask",
    "create_bidirectional_sliding_window_mask",
    "create_causal_mask",
    "create_chunked_causal_mask",
    "create_masks_for_generate",
    "create_recurrent_attention_mask",
    "create_sliding_window_causal_mask",
    "find_first_full_attention_index",
]


# ------------------------------------------------------------------------------------------------------- the functions


def create_causal_mask(
    config: Any,
    inputs_embeds: Tensor,
    attention_mask: Tensor | BlockMask | None,
    past_key_values: Any,
    position_ids: Tensor | None = None,
    or_mask_function: MaskMod | None = None,
    and_mask_function: MaskMod | None = None,
    block_sequence_ids: Tensor | None = None,
    layer_idx: int | None = None,
    allow_is_causal_skip: bool = True,
    *,
    packed: bool | None = None,
    strict: bool | None = None,
) -> Tensor | BlockMask | None:
    """The causal mask of one forward pass, in the form that ``config._attn_implementation`` takes.

    Args:
        config: read for ``_attn_implementation``, ``is_causal`` (False gives `create_bidirectional_mask`) and, where a
            predicate reads ``h``, ``num_attention_heads``.
        inputs_embeds: (B, q_len, hidden): batch, query length, dtype and device.
        attention_mask: 2-D padding (B, seen + q_len); a mask of four dimensions comes back as it is.
        past_key_values: a cache, or None.
        position_ids: (B, q_len) or (1, q_len); without a cache and a 2-D mask they tell packed documents.
        or_mask_function, and_mask_function: predicates that widen, then narrow, the pattern.
        block_sequence_ids: (B, n), spans that see each other whole; a negative id is in no span.
        layer_idx: the cache layer whose length counts; None takes the first of full attention.
        allow_is_causal_skip: allow None where SDPA's flag does.
        packed: None asks ``position_ids`` for documents outside a trace and assumes them inside one; False says that
            there are none; True that there are, with a 2-D mask too.
        strict: raise wherever the implementation would not show what was asked for; see ``docs/transformers.md``.

    Raises:
        UnsupportedMask: a flash implementation, and a predicate or spans that it would drop; more with ``strict``.
    """
    added = _Added(or_mask_function, and_mask_function, block_sequence_ids, position_ids, packed)
    two_sided = not getattr(config, "is_causal", True)
    layer = find_first_full_attention_index(past_key_values) if layer_idx is None or two_sided else layer_idx
    read = _Pass(config, inputs_embeds, attention_mask, past_key_values, layer)
    if two_sided:
        return _create_two_sided(_two_sided, read, added, allow_is_causal_skip, strict)
    return _create(_causal, read, added, allow_is_causal_skip, strict)


def create_sliding_window_causal_mask(
    config: Any,
    inputs_embeds: Tensor,
    attention_mask: Tensor | BlockMask | None,
    past_key_values: Any,
    position_ids: Tensor | None = None,
    or_mask_function: MaskMod | None = None,
    and_mask_function: MaskMod | None = None,
    block_sequence_ids: Tensor | None = None,
    layer_idx: int | None = None,
    allow_is_causal_skip: bool = True,
    *,
    packed: bool | None = None,
    strict: bool | None = None,
) -> Tensor | BlockMask | None:
    """`create_causal_mask` within ``config.sliding_window`` keys; the layer is the first sliding one."""
    added = _Added(or_mask_function, and_mask_function, block_sequence_ids, position_ids, packed)
    two_sided = not getattr(config, "is_causal", True)
    layer = _first_sliding_index(past_key_values) if layer_idx is None or two_sided else layer_idx
    read = _Pass(config, inputs_embeds, attention_mask, past_key_values, layer)
    if two_sided:
        return _create_two_sided(_two_sided_window, read, added, allow_is_causal_skip, strict)
    return _create(_window, read, added, allow_is_causal_skip, strict)


def create_chunked_causal_mask(
    config: Any,
    inputs_embeds: Tensor,
    attention_mask: Tensor | BlockMask | None,
    past_key_values: Any,
    position_ids: Tensor | None = None,
    or_mask_function: MaskMod | None = None,
    and_mask_function: MaskMod | None = None,
    block_sequence_ids: Tensor | None = None,
    layer_idx: int | None = None,
    allow_is_causal_skip: bool = True,
    *,
    packed: bool | None = None,
    strict: bool | None = None,
) -> Tensor | BlockMask | None:
    """`create_causal_mask` within chunks of ``config.attention_chunk_size`` keys, counted from each row's first token.

    Raises:
        ValueError: also under flash, once there are more keys than a chunk holds.
    """
    added = _Added(or_mask_function, and_mask_function, block_sequence_ids, position_ids, packed)
    layer = _first_sliding_index(past_key_values) if layer_idx is None else layer_idx
    read = _Pass(config, inputs_embeds, attention_mask, past_key_values, layer)
    return _create(_chunks, read, added, allow_is_causal_skip, strict)


def create_bidirectional_mask(
    config: Any,
    inputs_embeds: Tensor,
    attention_mask: Tensor | BlockMask | None,
    encoder_hidden_states: Tensor | None = None,
    past_key_values: Any = None,
    or_mask_function: MaskMod | None = None,
    and_mask_function: MaskMod | None = None,
    allow_is_bidirectional_skip: bool = True,
    *,
    strict: bool | None = None,
    **kwargs: Any,
) -> Tensor | BlockMask | None:
    """The mask that shows every key, of an encoder or, given ``encoder_hidden_states`` (B, kv_len, hidden), across."""
    layer = find_first_full_attention_index(past_key_values)
    read = _Pass(config, inputs_embeds, attention_mask, past_key_values, layer, encoder_hidden_states)
    added = _Added(or_mask_function, and_mask_function)
    return _create(_two_sided, read, added, allow_is_bidirectional_skip, strict)


def create_bidirectional_sliding_window_mask(
    config: Any,
    inputs_embeds: Tensor,
    attention_mask: Tensor | BlockMask | None,
    encoder_hidden_states: Tensor | None = None,
    past_key_values: Any = None,
    or_mask_function: MaskMod | None = None,
    and_mask_function: MaskMod | None = None,
    allow_is_bidirectional_skip: bool = True,
    *,
    strict: bool | None = None,
    **kwargs: Any,
) -> Tensor | BlockMask | None:
    """`create_bidirectional_mask` within ``config.sliding_window`` keys on either side."""
    layer = _first_sliding_index(past_key_values)
    read = _Pass(config, inputs_embeds, attention_mask, past_key_values, layer, encoder_hidden_states)
    added = _Added(or_mask_function, and_mask_function)
    return _create(_two_sided_window, read, added, allow_is_bidirectional_skip, strict)


def create_recurrent_attention_mask(
    config: Any, inputs_embeds: Tensor, attention_mask: Tensor | None, past_key_values: Any = None, **kwargs: Any
) -> Tensor | None:
    """The 2-D padding of this pass's own tokens, (B, q_len), for layers that carry a state instead of keys.

    None for one query, which is no padding; for no 2-D mask; and where the data, outside a trace, shows no padding.
    """
    q_length = inputs_embeds.shape[1]
    if attention_mask is None or attention_mask.ndim != 2 or q_length == 1:
        return None
    if readable(attention_mask) and bool((attention_mask == 1).all()):
        return None
    return attention_mask[:, -q_length:].contiguous()  # a stride that does not follow the mask's growing length


LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING: dict[str, Any] = {
    "full_attention": create_causal_mask,
    "sliding_attention": create_sliding_window_causal_mask,
    "chunked_attention": create_chunked_causal_mask,
    "compressed_sparse_attention": create_sliding_window_causal_mask,
    "heavily_compressed_attention": create_sliding_window_causal_mask,
    "minimax_m3_sparse": create_causal_mask,
    "indexed_attention": partial(create_causal_mask, allow_is_causal_skip=False),  # an indexer reads the mask itself
    "linear_attention": create_recurrent_attention_mask,
    "conv": create_recurrent_attention_mask,
    "hybrid": {"full_attention": create_causal_mask, "linear_attention": create_recurrent_attention_mask},
    "hybrid_sliding": {"sliding_attention": create_causal_mask, "linear_attention": create_recurrent_attention_mask},
}


def create_masks_for_generate(
    config: Any,
    inputs_embeds: Tensor,
    attention_mask: Tensor | BlockMask | None,
    past_key_values: Any,
    position_ids: Tensor | None = None,
    or_mask_function: MaskMod | None = None,
    and_mask_function: MaskMod | None = None,
    block_sequence_ids: Tensor | None = None,
    *,
    packed: bool | None = None,
    strict: bool | None = None,
    **kwargs: Any,
) -> Any:
    """One mask for each kind of layer in ``config.layer_types``, as a dict; for a model of one kind, its mask.

    A kind without a mask function hands the 2-D mask back: the model then makes its own.
    """
    config = config.get_text_config()
    create = partial(
        _call,
        config=config,
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask,
        past_key_values=past_key_values,
        position_ids=position_ids,
        or_mask_function=or_mask_function,
        and_mask_function=and_mask_function,
        block_sequence_ids=block_sequence_ids,
        packed=packed,
        strict=strict,
    )
    if not hasattr(config, "layer_types"):
        if getattr(config, "sliding_window", None) is not None:
            return create(create_sliding_window_causal_mask)
        if getattr(config, "attention_chunk_size", None) is not None:
            return create(create_chunked_causal_mask)
        return create(create_causal_mask)
    functions: dict[str, Callable[..., Any]] = {}
    for kind in dict.fromkeys(config.layer_types):
        if kind not in LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING:
            return attention_mask
        function = LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING[kind]
        if isinstance(function, dict):
            functions = function | functions  # a kind of its own goes before a part of another
        else:
            functions[kind] = function
    return {kind: create(function) for kind, function in functions.items()}


def _call(function: Callable[..., Any], **arguments: Any) -> Any:
    return function(**arguments)


# ------------------------------------------------------------------------------------------------- one forward pass


class _Pass(NamedTuple):
    """One forward pass, as transformers' objects tell it."""

    config: Any
    inputs_embeds: Tensor  # (B, q_len, hidden)
    attention_mask: Any  # None, a Tensor of two or four dimensions, a BlockMask
    cache: Any
    layer: int
    encoder_hidden_states: Tensor | None = None  # (B, kv_len, hidden)


class _Sizes(NamedTuple):
    """Lengths and offsets of a pass, by the names that interfaces take."""

    q_length: int
    kv_length: int
    q_offset: int | Tensor
    kv_offset: int


class _Added(NamedTuple):
    """What a call adds to the pattern of its layers."""

    or_mask: MaskMod | None = None
    and_mask: MaskMod | None = None
    span_ids: Tensor | None = None
    position_ids: Tensor | None = None
    packed: bool | None = False


class _Documents(NamedTuple):
    """Each token's position in its document and its document's number, (B, q_len) both."""

    position_ids: Tensor
    numbers: Tensor


class _Pattern(NamedTuple):
    """The pattern of a kind of layer: its predicate, the keys it reaches back, and whether it is causal."""

    mask: Mask
    local_size: int | None = None
    causal: bool = True


def _causal(read: _Pass, padding: Tensor | None, sizes: _Sizes) -> _Pattern:
    return _Pattern(causal_mask_function)


def _two_sided(read: _Pass, padding: Tensor | None, sizes: _Sizes) -> _Pattern:
    return _Pattern(bidirectional_mask_function, causal=False)


def _window(read: _Pass, padding: Tensor | None, sizes: _Sizes) -> _Pattern:
    size = _local_size(read.config, "sliding_window")
    return _Pattern(sliding_window_causal_mask_function(size), size)


def _two_sided_window(read: _Pass, padding: Tensor | None, sizes: _Sizes) -> _Pattern:
    size = _local_size(read.config, "sliding_window")
    return _Pattern(sliding_window_bidirectional_mask_function(size), size, causal=False)


def _chunks(read: _Pass, padding: Tensor | None, sizes: _Sizes) -> _Pattern:
    size = _local_size(read.config, "attention_chunk_size")
    if "flash" in read.config._attn_implementation and sizes.kv_length + sizes.kv_offset > size:
        raise ValueError(
            f"{sizes.kv_length + sizes.kv_offset} keys in chunks of {size}: flash kernels know no chunks. "
            "Use the implementation 'sdpa', 'eager' or 'flex_attention'."
        )
    if padding is None:
        start = torch.zeros(read.inputs_embeds.shape[0], dtype=torch.int64, device=read.inputs_embeds.device)
    else:
        start = (padding.cumsum(-1) == 0).sum(-1)  # padding on the left alone moves the chunks
    return _Pattern(chunked_causal_mask_function(size, start), size)


def _local_size(config: Any, name: str) -> int:
    size = getattr(config, name, None)
    if size is None:
        raise ValueError(f"config.{name}: missing, or None. Set it to the number of keys that these layers reach.")
    return size


_PatternOf = Callable[[_Pass, Tensor | None, _Sizes], _Pattern]


def _create(
    pattern_of: _PatternOf,
    read: _Pass,
    added: _Added,
    allow_skip: bool,
    strict: bool | None,
) -> Tensor | BlockMask | None:
    """Read the pass, describe its mask, hand it to the interface of the implementation."""
    config, embeds = read.config, read.inputs_embeds
    if _is_made(read.attention_mask):
        return read.attention_mask
    implementation = config._attn_implementation
    if implementation not in ALL_MASK_ATTENTION_FUNCTIONS._global_mapping:
        if is_strict(strict):
            raise UnsupportedMask(
                f"the attention implementation {implementation!r}",
                "it has no mask function, so it would get no mask at all, not even a causal one",
                "Register one: AttentionMaskInterface.register(name, sdpa_mask).",
            )
        return None  # servers with kernels of their own take no mask
    interface = ALL_MASK_ATTENTION_FUNCTIONS[implementation]
    padding: Tensor | None = read.attention_mask
    if padding is not None and padding.ndim == 2:
        padding = padding.to(device=embeds.device, dtype=torch.bool)
    sizes = _sizes(read, padding)
    source = embeds if read.encoder_hidden_states is None else read.encoder_hidden_states
    pattern = pattern_of(read, padding, sizes)
    mask = _describe(pattern.mask, added, _documents(added, read, sizes, strict), padding, sizes)
    if interface is flash_attention_mask:
        _refuse_overlays(added)
    allow_skip = allow_skip and mask is pattern.mask
    options: dict[str, Any] = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": allow_skip}
    if pattern.causal:
        # A compiled decode step keeps one form of mask, whatever the cache holds.
        one_form = getattr(read.cache, "is_compileable", False) and sizes.q_length == 1
        options = {"allow_is_causal_skip": allow_skip and not one_form}
    if pattern.local_size is not None:
        options["local_size"] = pattern.local_size
    if strict is not None:
        options["strict"] = strict
    return interface(
        batch_size=source.shape[0],
        **sizes._asdict(),
        mask_function=mask,
        attention_mask=padding,
        dtype=source.dtype,
        device=embeds.device,
        config=config,
        use_vmap=added.or_mask is not None or added.and_mask is not None,
        **options,
    )


def _describe(
    pattern: Mask, added: _Added, documents: _Documents | None, padding: Tensor | None, sizes: _Sizes
) -> Mask:
    """The whole mask but its padding and offsets, which every interface adds in its own way, as one expression."""
    mask = pattern
    if added.or_mask is not None:
        mask = or_masks(mask, added.or_mask)
    if added.and_mask is not None:
        mask = and_masks(mask, added.and_mask)
    if documents is not None:
        mask = packed_sequence_compatibility_function(mask, *documents)
    if added.span_ids is not None:
        ids = maybe_pad_block_sequence_ids(added.span_ids, padding, sizes.kv_length, sizes.kv_offset)
        mask = mask | blockwise_overlay(stored(ids))
    return mask


def _create_two_sided(
    pattern_of: _PatternOf, read: _Pass, added: _Added, allow_skip: bool, strict: bool | None
) -> Tensor | BlockMask | None:
    """A decoder whose config says ``is_causal=False``. Spans and undeclared packing stay behind, as in transformers."""
    if is_strict(strict) and not _is_made(read.attention_mask):
        if added.span_ids is not None:
            raise UnsupportedMask(
                "block_sequence_ids with config.is_causal=False",
                "the spans would be dropped",
                "Pass or_mask_function=blockwise_overlay(ids).",
            )
        if _packed(added) is None:
            _refuse_leak(added.position_ids, read, "config.is_causal=False")
    position_ids = added.position_ids if _packed(added) else None
    kept = added._replace(span_ids=None, position_ids=position_ids)
    return _create(pattern_of, read, kept, allow_skip, strict)


def _is_made(attention_mask: Any) -> bool:
    """Whether a mask has all four dimensions, and is to be used as it is."""
    return len(getattr(attention_mask, "shape", ())) == 4


def _sizes(read: _Pass, padding: Tensor | None) -> _Sizes:
    """The cache knows the lengths; without one the 2-D mask does, then the encoder, then the queries themselves."""
    q_length = read.inputs_embeds.shape[1]
    if read.cache is not None:
        q_offset = read.cache.get_query_offset(read.layer)
        if isinstance(q_offset, Tensor):
            q_offset = q_offset.to(read.inputs_embeds.device)
        kv_length, kv_offset = read.cache.get_mask_sizes(q_length, read.layer)
        return _Sizes(q_length, kv_length, q_offset, kv_offset)
    if padding is not None:
        return _Sizes(q_length, padding.shape[-1], 0, 0)
    source = read.inputs_embeds if read.encoder_hidden_states is None else read.encoder_hidden_states
    return _Sizes(q_length, source.shape[1], 0, 0)


def find_first_full_attention_index(cache: Any) -> int:
    """The first layer of ``cache`` that keeps every key; 0 where there is none, or no cache that tells."""
    kinds = [getattr(cache, name, None) for name in ("is_sliding", "is_linear", "is_dummy")]
    if any(kind is None for kind in kinds):
        return 0
    for index, partial_layer in enumerate(zip(*kinds, strict=True)):
        if not any(partial_layer):
            return index
    return 0


def _first_sliding_index(cache: Any) -> int:
    sliding = getattr(cache, "is_sliding", ())
    return sliding.index(True) if True in sliding else 0


# ------------------------------------------------------------------------------------------------------------ packing


def _documents(added: _Added, read: _Pass, sizes: _Sizes, strict: bool | None) -> _Documents | None:
    """The packed documents of a pass: declared, or found in its positions where transformers looks for them."""
    packed = _packed(added)
    if added.position_ids is None or packed is False:
        return None
    if packed is None and (read.attention_mask is not None or read.cache is not None):
        if is_strict(strict):
            _refuse_leak(added.position_ids, read, "a 2-D mask or a cache")
        return None
    if not known_true(sizes.q_length == sizes.kv_length):
        raise UnsupportedMask(
            f"packed=True with {sizes.q_length} queries and {sizes.kv_length} keys",
            "position_ids say nothing of the keys of earlier passes",
            "Pack whole sequences, without a cache.",
        )
    length = added.position_ids.shape[-1]
    if known_true(length < sizes.q_length):
        raise MaskShapeError(
            f"position_ids of {length} tokens",
            f"there are {sizes.q_length} queries, which document are the others in",
            "Pass one position for each query.",
        )
    position_ids = added.position_ids.expand(read.inputs_embeds.shape[0], -1)
    numbers = document_numbers(position_ids) if packed else find_packed_sequence_indices(position_ids)
    return None if numbers is None else _Documents(position_ids, numbers)


def _packed(added: _Added) -> bool | None:
    return DEFAULTS.packed if added.packed is None else added.packed


def _refuse_leak(position_ids: Tensor | None, read: _Pass, what: str) -> None:
    """Raise where positions start anew between two tokens that are no padding. Inside a trace nobody can tell."""
    if position_ids is None or not readable(position_ids):
        return
    anew = position_ids.diff(dim=-1) != 1
    if isinstance(read.attention_mask, Tensor) and read.attention_mask.ndim == 2:
        visible = read.attention_mask[:, -position_ids.shape[-1] :].to(device=anew.device, dtype=torch.bool)
        anew = anew & visible[:, 1:] & visible[:, :-1]
    if bool(anew.any()):
        raise UnsupportedMask(
            f"position_ids that start anew, with {what}",
            "packing is then ignored, and documents see each other",
            "Pass packed=True to keep them apart, or packed=False if they are one sequence.",
        )


# --------------------------------------------------------------------------------------------------------- strictness


def _refuse_overlays(added: _Added) -> None:
    """Flash kernels take causality, a window and documents as arguments; nothing else would reach them."""
    names = ("or_mask_function", "and_mask_function", "block_sequence_ids")
    for name, value in zip(names, added[:3], strict=True):
        if value is not None:
            raise UnsupportedMask(
                f"{name} with flash attention",
                "the kernel cannot show it, and would run without",
                "Use the implementation 'sdpa', 'eager' or 'flex_attention'.",
            )
