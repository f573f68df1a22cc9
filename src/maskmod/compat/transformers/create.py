"""transformers' ``create_*`` functions, by name: which pattern each one is, of which of the cache's layers.

How a forward pass is read and its mask described is `forward_pass`'s business. transformers is never imported.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskmod._torch.tracing import readable
from maskmod.algebra import MaskMod
from maskmod.compat.transformers.forward_pass import (
    NOT_GIVEN,
    Added,
    ForwardPass,
    causal_pattern,
    chunked_pattern,
    created,
    created_two_sided,
    find_first_full_attention_index,
    first_sliding_index,
    one_cache,
    two_sided_pattern,
    two_sided_window_pattern,
    window_pattern,
)
from maskmod.compat.transformers.settings import DEFAULTS

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
    cache: Any = NOT_GIVEN,
    position_ids: Tensor | None = None,
    or_mask_function: MaskMod | None = None,
    and_mask_function: MaskMod | None = None,
    block_sequence_ids: Tensor | None = None,
    layer_idx: int | None = None,
    allow_is_causal_skip: bool = True,
    *,
    past_key_values: Any = NOT_GIVEN,
    packed: bool | None = None,
    strict: bool | None = None,
) -> Tensor | BlockMask | None:
    """The causal mask of one forward pass, in the form that ``config._attn_implementation`` takes.

    Args:
        config: read for ``_attn_implementation``, ``is_causal`` (False gives `create_bidirectional_mask`) and, where a
            predicate reads ``h``, ``num_attention_heads``.
        inputs_embeds: (B, q_len, hidden): batch, query length, dtype and device.
        attention_mask: 2-D padding (B, seen + q_len); a mask of four dimensions comes back as it is.
        cache: a cache, or None; ``past_key_values`` is its older name.
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
    added = Added(or_mask_function, and_mask_function, block_sequence_ids, position_ids, packed)
    two_sided = not getattr(config, "is_causal", True)
    cache = one_cache(cache, past_key_values)
    layer = find_first_full_attention_index(cache) if layer_idx is None or two_sided else layer_idx
    read = ForwardPass(config, inputs_embeds, attention_mask, cache, layer)
    if two_sided:
        return created_two_sided(two_sided_pattern, read, added, allow_is_causal_skip, strict)
    return created(causal_pattern, read, added, allow_is_causal_skip, strict)


def create_sliding_window_causal_mask(
    config: Any,
    inputs_embeds: Tensor,
    attention_mask: Tensor | BlockMask | None,
    cache: Any = NOT_GIVEN,
    position_ids: Tensor | None = None,
    or_mask_function: MaskMod | None = None,
    and_mask_function: MaskMod | None = None,
    block_sequence_ids: Tensor | None = None,
    layer_idx: int | None = None,
    allow_is_causal_skip: bool = True,
    *,
    past_key_values: Any = NOT_GIVEN,
    packed: bool | None = None,
    strict: bool | None = None,
) -> Tensor | BlockMask | None:
    """`create_causal_mask` within ``config.sliding_window`` keys; the layer is the first sliding one."""
    added = Added(or_mask_function, and_mask_function, block_sequence_ids, position_ids, packed)
    two_sided = not getattr(config, "is_causal", True)
    cache = one_cache(cache, past_key_values)
    layer = first_sliding_index(cache) if layer_idx is None or two_sided else layer_idx
    read = ForwardPass(config, inputs_embeds, attention_mask, cache, layer)
    if two_sided:
        return created_two_sided(two_sided_window_pattern, read, added, allow_is_causal_skip, strict)
    return created(window_pattern, read, added, allow_is_causal_skip, strict)


def create_chunked_causal_mask(
    config: Any,
    inputs_embeds: Tensor,
    attention_mask: Tensor | BlockMask | None,
    cache: Any = NOT_GIVEN,
    position_ids: Tensor | None = None,
    or_mask_function: MaskMod | None = None,
    and_mask_function: MaskMod | None = None,
    block_sequence_ids: Tensor | None = None,
    layer_idx: int | None = None,
    allow_is_causal_skip: bool = True,
    *,
    past_key_values: Any = NOT_GIVEN,
    packed: bool | None = None,
    strict: bool | None = None,
) -> Tensor | BlockMask | None:
    """`create_causal_mask` within chunks of ``config.attention_chunk_size`` keys, counted from each row's first token.

    Raises:
        ValueError: also under flash, once there are more keys than a chunk holds.
    """
    added = Added(or_mask_function, and_mask_function, block_sequence_ids, position_ids, packed)
    cache = one_cache(cache, past_key_values)
    layer = first_sliding_index(cache) if layer_idx is None else layer_idx
    read = ForwardPass(config, inputs_embeds, attention_mask, cache, layer)
    return created(chunked_pattern, read, added, allow_is_causal_skip, strict)


def create_bidirectional_mask(
    config: Any,
    inputs_embeds: Tensor,
    attention_mask: Tensor | BlockMask | None,
    encoder_hidden_states: Tensor | None = None,
    cache: Any = None,
    or_mask_function: MaskMod | None = None,
    and_mask_function: MaskMod | None = None,
    allow_is_bidirectional_skip: bool = True,
    *,
    past_key_values: Any = NOT_GIVEN,
    strict: bool | None = None,
    **kwargs: Any,
) -> Tensor | BlockMask | None:
    """The mask that shows every key, of an encoder or, given ``encoder_hidden_states`` (B, kv_len, hidden), across."""
    cache = one_cache(cache, past_key_values)
    layer = find_first_full_attention_index(cache)
    read = ForwardPass(config, inputs_embeds, attention_mask, cache, layer, encoder_hidden_states)
    added = Added(or_mask_function, and_mask_function)
    return created(two_sided_pattern, read, added, allow_is_bidirectional_skip, strict)


def create_bidirectional_sliding_window_mask(
    config: Any,
    inputs_embeds: Tensor,
    attention_mask: Tensor | BlockMask | None,
    encoder_hidden_states: Tensor | None = None,
    cache: Any = None,
    or_mask_function: MaskMod | None = None,
    and_mask_function: MaskMod | None = None,
    allow_is_bidirectional_skip: bool = True,
    *,
    past_key_values: Any = NOT_GIVEN,
    strict: bool | None = None,
    **kwargs: Any,
) -> Tensor | BlockMask | None:
    """`create_bidirectional_mask` within ``config.sliding_window`` keys on either side."""
    cache = one_cache(cache, past_key_values)
    layer = first_sliding_index(cache)
    read = ForwardPass(config, inputs_embeds, attention_mask, cache, layer, encoder_hidden_states)
    added = Added(or_mask_function, and_mask_function)
    return created(two_sided_window_pattern, read, added, allow_is_bidirectional_skip, strict)


def create_recurrent_attention_mask(
    config: Any, inputs_embeds: Tensor, attention_mask: Tensor | None, cache: Any = None, **kwargs: Any
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
    cache: Any = NOT_GIVEN,
    position_ids: Tensor | None = None,
    or_mask_function: MaskMod | None = None,
    and_mask_function: MaskMod | None = None,
    block_sequence_ids: Tensor | None = None,
    *,
    past_key_values: Any = NOT_GIVEN,
    packed: bool | None = None,
    strict: bool | None = None,
    **kwargs: Any,
) -> Any:
    """One mask for each kind of layer in ``config.layer_types``, as a dict; for a model of one kind, its mask.

    A kind without a mask function hands the 2-D mask back: the model then makes its own.
    """
    config = config.get_text_config()
    arguments: dict[str, Any] = {
        "config": config,
        "inputs_embeds": inputs_embeds,
        "attention_mask": attention_mask,
        DEFAULTS.release.cache_name: one_cache(cache, past_key_values),
        "position_ids": position_ids,
        "or_mask_function": or_mask_function,
        "and_mask_function": and_mask_function,
        "block_sequence_ids": block_sequence_ids,
    }
    declared: dict[str, Any] = {"packed": packed, "strict": strict}
    if not hasattr(config, "layer_types"):
        if getattr(config, "sliding_window", None) is not None:
            return create_sliding_window_causal_mask(**arguments, **declared)
        if getattr(config, "attention_chunk_size", None) is not None:
            return create_chunked_causal_mask(**arguments, **declared)
        return create_causal_mask(**arguments, **declared)
    functions: dict[str, Callable[..., Any]] = {}
    for kind in dict.fromkeys(config.layer_types):
        if kind not in LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING:
            return attention_mask
        function = LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING[kind]
        if isinstance(function, dict):
            functions = function | functions  # a kind of its own goes before a part of another
        else:
            functions[kind] = function
    return {
        kind: function(**arguments, **(declared if _is_own(function) else {})) for kind, function in functions.items()
    }


def _is_own(function: Callable[..., Any]) -> bool:
    """Whether a function of the table is one of this module, which knows what may be declared."""
    made_of = function.func if isinstance(function, partial) else function
    return any(made_of is own for own in _OWN)


_OWN = (
    create_causal_mask,
    create_sliding_window_causal_mask,
    create_chunked_causal_mask,
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
    create_recurrent_attention_mask,
)
