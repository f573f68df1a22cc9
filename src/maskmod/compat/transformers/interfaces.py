"""One expression as the mask of each attention implementation: transformers' ``*_mask`` functions and their registry.

An interface gets a predicate, lengths and offsets. It knows nothing of models and caches, of a config only the number
of heads, and it adds nothing to the predicate but the padding it was given.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskmod._torch.tracing import known_true, readable
from maskmod._torch.workarounds import storable
from maskmod.algebra import And, Mask, MaskMod, Or, Sizes, as_mask, conjuncts
from maskmod.blocks.block_mask import block_mask
from maskmod.compat.transformers.predicates import (
    Spans,
    causal_mask_function,
    lengthened,
    padding_mask_function,
    prepare_padding_mask,
    stored,
)
from maskmod.compat.transformers.settings import is_strict
from maskmod.dense import bias_from_bool, dense_mask
from maskmod.errors import UnsupportedMask
from maskmod.facts.structure import band_of, made_of
from maskmod.masks import Causal, Chunked, Document, Full, KeyPadding, SlidingWindow, Window
from maskmod.oracle import reads_b_and_h
from maskmod.positions import Remap, Shift, shift

__all__ = [
    "ALL_MASK_ATTENTION_FUNCTIONS",
    "AttentionMaskInterface",
    "eager_mask",
    "flash_attention_mask",
    "flex_attention_mask",
    "sdpa_mask",
]

_POSITIONS = (Causal, Full, SlidingWindow, Window)
_VOCABULARY = (*_POSITIONS, Chunked, Document, Spans, KeyPadding, And, Or, Remap, Shift)
"""What transformers' own functions are made of: none reads the head, all evaluate on whole tensors of indices."""

_KERNEL_VOCABULARY = (*_POSITIONS, And, Document, Remap)
"""What flash kernels take as arguments."""

_LARGE = 1 << 20
"""Tokens from which painting blocks beats evaluating every token; below, the analysis costs more than it saves."""


def sdpa_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: MaskMod = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    *,
    config: Any = None,
    strict: bool | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """The mask as bool ``(batch_size, 1, q_length, kv_length)``, True = visible.

    None where a skip is allowed and SDPA's ``is_causal`` flag, or no mask at all, says the same.

    Args:
        mask_function: any predicate; a skip does not look at it, as in transformers, unless ``strict``.
        attention_mask: the 2-D padding mask, bool ``(batch_size, n)``.
        local_size: the window or chunk; a skip needs fewer keys than this.
        use_vmap: lift the predicate by `torch.vmap` rather than call it on whole tensors of indices.
        config: its ``num_attention_heads`` is the head count of a predicate that reads ``h``.
        strict: raise where a skip would drop a predicate.

    Raises:
        UnsupportedMask: the predicate reads ``h`` and no config says how many heads there are.
    """
    padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    mask = as_mask(mask_function)
    lengths = (q_length, kv_length, q_offset, kv_offset, local_size)
    if is_skipped(mask, padding, *lengths, (allow_is_causal_skip, allow_is_bidirectional_skip), strict):
        return None
    sizes = Sizes(batch_size, heads_of(mask, config, use_vmap, device), q_length, kv_length)
    if use_vmap or (readable() and q_length * kv_length >= _LARGE and made_of(mask, _VOCABULARY)):
        visible = dense_mask(placed(mask, q_offset, kv_offset), *sizes, device=device)
    else:
        visible = storable(_broadcast(mask, sizes, q_offset, kv_offset, device))
    if padding is not None:  # it reads the key alone, so a slice of it is its dense form
        visible = visible & padding[:, None, None, kv_offset : kv_offset + kv_length]
    return visible.expand(sizes)


def eager_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: MaskMod = causal_mask_function,
    attention_mask: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    allow_is_bidirectional_skip: bool = False,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    *,
    allow_is_causal_skip: bool = False,
    **kwargs: Any,
) -> Tensor | None:
    """`sdpa_mask` as a bias: 0 where visible, ``finfo(dtype).min`` where hidden. Causality is never skipped here."""
    visible = sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        q_offset,
        kv_offset,
        mask_function,
        attention_mask,
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip,
        use_vmap=use_vmap,
        device=device,
        **kwargs,
    )
    return None if visible is None else bias_from_bool(visible, dtype, torch.finfo(dtype).min)


def flash_attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: MaskMod = causal_mask_function,
    attention_mask: Tensor | None = None,
    *,
    device: torch.device | str = "cpu",
    strict: bool | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """The 2-D padding mask cut to the last ``kv_length`` keys; None where outside a trace the data shows no padding.

    Flash kernels take causality and window as arguments of their own, so the predicate is only checked: nothing in it
    reaches the kernel.

    Raises:
        UnsupportedMask: the predicate reads ``h``; with ``strict``, it is anything but causal, a window, documents, or
            chunks that the keys do not outgrow.
    """
    mask = as_mask(mask_function)
    if is_strict(strict) and not _kernel_knows(mask, kv_length + kv_offset):
        raise UnsupportedMask(
            f"flash_attention_mask(mask_function={mask!r})",
            "flash kernels take causality, a window and documents; the rest of the predicate would be dropped",
            "Use the implementation 'sdpa', 'eager' or 'flex_attention'.",
        )
    if _reads_h(mask, True, device):
        raise UnsupportedMask(
            f"flash_attention_mask(mask_function={mask!r})",
            "the predicate reads h, and the kernel would not see it",
            "Use the implementation 'sdpa', 'eager' or 'flex_attention'.",
        )
    if attention_mask is None:
        return None
    padding = attention_mask[:, -kv_length:]
    if readable(padding) and padding.shape[1] == kv_length and bool(padding.all()):
        return None
    return padding


def flex_attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: MaskMod = causal_mask_function,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    *,
    config: Any = None,
    **kwargs: Any,
) -> BlockMask:
    """The mask as flex's BlockMask; the padding joins the predicate unless the data, outside a trace, shows none."""
    mask = whole_mask(as_mask(mask_function), attention_mask, kv_length, q_offset, kv_offset)
    sizes = Sizes(batch_size, heads_of(mask, config, True, device), q_length, kv_length)
    return block_mask(mask, *sizes, device=device)


def whole_mask(
    mask: Mask, attention_mask: Tensor | None, kv_length: int, q_offset: int | Tensor, kv_offset: int
) -> Mask:
    """The mask of one pass, padding and offsets included, to be read later: what it reads stays as it is now."""
    if attention_mask is not None and (not readable(attention_mask) or not bool(attention_mask.all())):
        mask = mask & padding_mask_function(stored(lengthened(attention_mask, kv_length + kv_offset, 0)))
    if isinstance(q_offset, Tensor):
        q_offset = stored(q_offset.clone())  # the cache's own counter moves on before attention reads the mask
    return placed(mask, q_offset, kv_offset)


class AttentionMaskInterface(MutableMapping[str, Callable[..., Any]]):
    """The mask function of each attention implementation: those registered for all, under those set on this object."""

    _global_mapping: ClassVar[dict[str, Callable[..., Any]]] = {
        "sdpa": sdpa_mask,
        "eager": eager_mask,
        "flash_attention_2": flash_attention_mask,
        "flash_attention_3": flash_attention_mask,
        "flash_attention_4": flash_attention_mask,
        "flex_attention": flex_attention_mask,
    }

    def __init__(self):
        self._local_mapping: dict[str, Callable[..., Any]] = {}

    @classmethod
    def register(cls, key: str, value: Callable[..., Any]) -> None:
        """Set the mask function of an implementation for every interface object."""
        cls._global_mapping[key] = value

    def __getitem__(self, key: str) -> Callable[..., Any]:
        return self._local_mapping[key] if key in self._local_mapping else self._global_mapping[key]

    def __setitem__(self, key: str, value: Callable[..., Any]) -> None:
        self._local_mapping[key] = value

    def __delitem__(self, key: str) -> None:
        del self._local_mapping[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._global_mapping | self._local_mapping)

    def __len__(self) -> int:
        return len(self._global_mapping | self._local_mapping)

    def valid_keys(self) -> list[str]:
        return list(self)


ALL_MASK_ATTENTION_FUNCTIONS = AttentionMaskInterface()


# --------------------------------------------------------------------------------------------- when no mask is needed


def is_skipped(
    mask: Mask,
    padding: Tensor | None,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor,
    kv_offset: int,
    local_size: int | None,
    allowed: tuple[bool, bool],
    strict: bool | None,
) -> bool:
    """Whether SDPA needs no mask: by its causal flag or because nothing is hidden, where each of the two is allowed.

    Raises:
        UnsupportedMask: with ``strict``, where the predicate says something else.
    """
    flag = allowed[0] and _flag_suffices(padding, q_length, kv_length, q_offset, kv_offset, local_size)
    if not flag and not (allowed[1] and _hides_nothing(padding, kv_length, local_size)):
        return False
    if is_strict(strict) and not _is_shown_without(mask, flag, q_length, kv_length + kv_offset):
        raise UnsupportedMask(
            f"sdpa_mask(mask_function={mask!r})",
            "the skip returns None, which drops the predicate",
            "Pass allow_is_causal_skip=False and allow_is_bidirectional_skip=False.",
        )
    return True


def _flag_suffices(
    padding: Tensor | None,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor,
    kv_offset: int,
    local_size: int | None,
) -> bool:
    """Whether SDPA's ``is_causal`` flag, which transformers sets for more than one query, replaces a causal mask.

    The flag is top-left aligned. It is right for one query, for as many queries as keys, and for an empty static cache,
    whose unwritten slots lie above the diagonal.
    """
    if local_size is not None and not known_true(kv_length < local_size):
        return False
    if isinstance(q_offset, Tensor) and not readable(q_offset):
        return False
    aligned = known_true(q_length == 1) or known_true(kv_length == q_length)
    if padding is None:
        return aligned or _is_zero(q_offset)
    if not readable(padding):
        return False
    if padding.shape[-1] > kv_length:
        padding = padding[:, kv_offset : kv_offset + kv_length]
    if aligned and bool(padding.all()):
        return True
    return _is_zero(q_offset) and bool(padding[:, :q_length].all()) and not bool(padding[:, q_length:].any())


def _hides_nothing(padding: Tensor | None, kv_length: int, local_size: int | None) -> bool:
    if local_size is not None and not known_true(kv_length < local_size):
        return False
    return padding is None or (readable(padding) and bool(padding.all()))


def _is_zero(offset: int | Tensor) -> bool:
    return bool(offset == 0) if isinstance(offset, Tensor) else known_true(offset == 0)


# ------------------------------------------------------------------------------------------------- what a predicate is


def _is_shown_without(mask: Mask, flag: bool, q_length: int, keys: int) -> bool:
    """Whether no mask, with SDPA's ``is_causal`` flag or without, shows among ``keys`` keys what the mask shows."""
    parts = [part for part in conjuncts(mask) if not (type(part) is Chunked and _holds(part, keys))]
    band = band_of(functools.reduce(And, parts, Full()), keys, keys)
    if band is None:
        return False
    if not flag:
        return band.is_full(keys, keys)
    if known_true(q_length == 1):  # the flag hides nothing from the last query, and neither does causality
        return band.shows_the_past(keys)
    return band.is_causal(keys)


def _kernel_knows(mask: Mask, keys: int) -> bool:
    return all(
        _holds(part, keys) if type(part) is Chunked else made_of(part, _KERNEL_VOCABULARY) for part in conjuncts(mask)
    )


def _holds(chunks: Chunked, keys: int) -> bool:
    """Whether one chunk has room for ``keys`` keys."""
    return not isinstance(chunks.size, Tensor) and known_true(keys <= chunks.size)


def _reads_h(mask: Mask, use_vmap: bool, device: torch.device | str) -> bool:
    if made_of(mask, _VOCABULARY):
        return False
    if use_vmap:
        return reads_b_and_h(mask, device=device)[1]
    zero = torch.zeros((1, 1, 1, 1), dtype=torch.int64, device=device)
    probe = mask(zero, zero.expand(1, 2, 1, 1), zero, zero)
    return isinstance(probe, Tensor) and probe.dim() == 4 and probe.shape[1] == 2


def heads_of(mask: Mask, config: Any, use_vmap: bool, device: torch.device | str) -> int:
    """1, or the number of heads where the predicate reads them."""
    if not _reads_h(mask, use_vmap, device):
        return 1
    heads = getattr(config, "num_attention_heads", None)
    if heads is None:
        raise UnsupportedMask(
            f"mask_function={mask!r}",
            "it reads h, and the number of heads is unknown",
            "Pass config= with num_attention_heads, or call a create_* function.",
        )
    return heads


def placed(mask: Mask, q_offset: int | Tensor, kv_offset: int) -> Mask:
    """The mask of one pass: its rows start at ``q_offset``, its columns at ``kv_offset``."""
    at_zero = not isinstance(q_offset, Tensor) and known_true(q_offset == 0) and known_true(kv_offset == 0)
    return mask if at_zero else shift(mask, q_offset=q_offset, kv_offset=kv_offset)


def _broadcast(mask: Mask, sizes: Sizes, q_offset: int | Tensor, kv_offset: int, device: torch.device | str) -> Tensor:
    """The predicate called once on whole tensors of indices, each of four dimensions: a decode step affords that."""
    q_idx = torch.arange(sizes.q_len, device=device).view(1, 1, -1, 1) + q_offset
    kv_idx = torch.arange(kv_offset, kv_offset + sizes.kv_len, device=device).view(1, 1, 1, -1)
    if made_of(mask, (*_POSITIONS, And)):  # reads neither b nor h: two tensors less in every decode step
        return mask(0, 0, q_idx, kv_idx)
    b = torch.arange(sizes.B, device=device).view(-1, 1, 1, 1)
    h = torch.arange(sizes.H, device=device).view(1, -1, 1, 1)
    return mask(b, h, q_idx, kv_idx)
