"""One forward pass as transformers' objects tell it, and its mask as one expression for one interface.

Facts are read off configs and caches by the attributes they carry; transformers is never imported. Which function of
the vocabulary asks for which pattern is not known here.
"""

from __future__ import annotations

from collections.abc import Callable
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
    packed_sequence_mask_function,
    remap_positions_for_packed_sequence,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
    stored,
)
from maskmod.compat.transformers.settings import DEFAULTS, is_strict
from maskmod.errors import MaskShapeError, UnsupportedMask

__all__ = [
    "NOT_GIVEN",
    "Added",
    "ForwardPass",
    "causal_pattern",
    "chunked_pattern",
    "created",
    "created_two_sided",
    "find_first_full_attention_index",
    "first_sliding_index",
    "one_cache",
    "two_sided_pattern",
    "two_sided_window_pattern",
    "window_pattern",
]

NOT_GIVEN: Any = object()
"""An argument that a call did not mention."""


def one_cache(cache: Any, past_key_values: Any) -> Any:
    """The cache of a call, by whichever of its two names it came.

    Raises:
        TypeError: the call mentions neither, of a function that asks for one.
    """
    if past_key_values is not NOT_GIVEN and (cache is None or cache is NOT_GIVEN):
        return past_key_values
    if cache is NOT_GIVEN:
        raise TypeError("neither cache nor past_key_values was given. Pass cache=None where there is none.")
    return cache


class ForwardPass(NamedTuple):
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


class Added(NamedTuple):
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


def causal_pattern(read: ForwardPass, padding: Tensor | None, sizes: _Sizes) -> _Pattern:
    return _Pattern(causal_mask_function)


def two_sided_pattern(read: ForwardPass, padding: Tensor | None, sizes: _Sizes) -> _Pattern:
    return _Pattern(bidirectional_mask_function, causal=False)


def window_pattern(read: ForwardPass, padding: Tensor | None, sizes: _Sizes) -> _Pattern:
    size = _local_size(read.config, "sliding_window")
    return _Pattern(sliding_window_causal_mask_function(size), size)


def two_sided_window_pattern(read: ForwardPass, padding: Tensor | None, sizes: _Sizes) -> _Pattern:
    size = _local_size(read.config, "sliding_window")
    return _Pattern(sliding_window_bidirectional_mask_function(size), size, causal=False)


def chunked_pattern(read: ForwardPass, padding: Tensor | None, sizes: _Sizes) -> _Pattern:
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


_PatternOf = Callable[[ForwardPass, Tensor | None, _Sizes], _Pattern]


def created(
    pattern_of: _PatternOf,
    read: ForwardPass,
    added: Added,
    allow_skip: bool,
    strict: bool | None,
) -> Tensor | BlockMask | None:
    """Read the pass, describe its mask, hand it to the interface of the implementation."""
    config, embeds = read.config, read.inputs_embeds
    if _is_made(read.attention_mask):
        return read.attention_mask
    if _is_paged(read.cache):
        return None  # continuous batching brings masks of its own, or none
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
    mask = _describe(pattern.mask, added, _documents(added, read, sizes, strict), padding, sizes, is_strict(strict))
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
    pattern: Mask, added: Added, documents: _Documents | None, padding: Tensor | None, sizes: _Sizes, strict: bool
) -> Mask:
    """The whole mask but its padding and offsets, which every interface adds in its own way, as one expression."""
    mask = pattern
    if added.or_mask is not None:
        mask = or_masks(mask, added.or_mask)
    if added.and_mask is not None:
        mask = and_masks(mask, added.and_mask)
    spans = None
    if added.span_ids is not None:
        ids = maybe_pad_block_sequence_ids(added.span_ids, padding, sizes.kv_length, sizes.kv_offset)
        spans = blockwise_overlay(stored(ids))
    if documents is None:
        return mask if spans is None else mask | spans
    mask = remap_positions_for_packed_sequence(mask, documents.position_ids)
    own_document = packed_sequence_mask_function(documents.numbers)
    if spans is None:
        return own_document & mask
    if not (_packed(added) or DEFAULTS.release.spans_stay_in_documents):
        if not strict:
            return (own_document & mask) | spans
        _refuse_spans_across(spans.ids, documents.numbers)  # and where a trace hides them, they stay inside
    return own_document & (mask | spans)


def created_two_sided(
    pattern_of: _PatternOf, read: ForwardPass, added: Added, allow_skip: bool, strict: bool | None
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
    return created(pattern_of, read, kept, allow_skip, strict)


def _is_made(attention_mask: Any) -> bool:
    """Whether a mask has all four dimensions, and is to be used as it is."""
    return len(getattr(attention_mask, "shape", ())) == 4


def _is_paged(cache: Any) -> bool:
    """Whether the cache is one of transformers' continuous batching: it gives keys pages, and knows of no lengths."""
    return hasattr(cache, "fill_block_table")


def _sizes(read: ForwardPass, padding: Tensor | None) -> _Sizes:
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


def first_sliding_index(cache: Any) -> int:
    sliding = getattr(cache, "is_sliding", ())
    return sliding.index(True) if True in sliding else 0


# ------------------------------------------------------------------------------------------------------------ packing


def _documents(added: Added, read: ForwardPass, sizes: _Sizes, strict: bool | None) -> _Documents | None:
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


def _packed(added: Added) -> bool | None:
    return DEFAULTS.packed if added.packed is None else added.packed


def _refuse_leak(position_ids: Tensor | None, read: ForwardPass, what: str) -> None:
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


def _refuse_spans_across(span_ids: Tensor, numbers: Tensor) -> None:
    """Raise where one span has tokens of two documents. Inside a trace nobody can tell."""
    if not readable(span_ids) or not readable(numbers):
        return
    ids = span_ids[..., : numbers.shape[-1]].expand_as(numbers)
    for row, documents in zip(ids, numbers, strict=True):
        in_spans = row >= 0
        pairs = torch.stack([row[in_spans], documents[in_spans]]).unique(dim=1)
        if pairs.shape[1] > pairs[0].unique().numel():
            raise UnsupportedMask(
                "block_sequence_ids with packed documents",
                "a span has tokens of two documents, which would see each other across it in this release",
                "Pass packed=True to keep spans inside their documents.",
            )


# --------------------------------------------------------------------------------------------------------- strictness


def _refuse_overlays(added: Added) -> None:
    """Flash kernels take causality, a window and documents as arguments; nothing else would reach them."""
    names = ("or_mask_function", "and_mask_function", "block_sequence_ids")
    for name, value in zip(names, added[:3], strict=True):
        if value is not None:
            raise UnsupportedMask(
                f"{name} with flash attention",
                "the kernel cannot show it, and would run without",
                "Use the implementation 'sdpa', 'eager' or 'flex_attention'.",
            )
