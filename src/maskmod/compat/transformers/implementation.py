"""``attn_implementation="maskmod"``: a mask function that builds no tensor, and an attention function that runs it.

transformers is looked up when `register_attention` is called, and nowhere else. What the attention of a model means is
what its ``sdpa`` implementation computes; a request that this one cannot serve is refused in words.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskmod._torch.tracing import known_true
from maskmod.algebra import MaskMod, Sizes, as_mask
from maskmod.compat.transformers import interfaces
from maskmod.compat.transformers.dense_attention import fused_attention, softmax_attention
from maskmod.compat.transformers.interfaces import heads_of, is_skipped, sdpa_mask, whole_mask
from maskmod.compat.transformers.lazy_mask import LazyMask
from maskmod.compat.transformers.predicates import (
    bidirectional_mask_function,
    causal_mask_function,
    prepare_padding_mask,
)
from maskmod.errors import MaskError, UnsupportedMask

__all__ = ["Registration", "maskmod_attention", "maskmod_mask", "register_attention"]

_FEW = 16
"""Queries up to which a step over a static cache gets a tensor: compiled steps then keep one form of mask."""


class Registration(NamedTuple):
    """What `register_attention` registered. As a context manager it is taken back at the end of the block.

    Attributes:
        name: what to pass as ``attn_implementation``.
        attention: in transformers' ``AttentionInterface``.
        mask: in its ``AttentionMaskInterface``, and in maskmod's own.
    """

    name: str
    attention: Callable[..., Any]
    mask: Callable[..., Any]

    def unregister(self) -> None:
        """Take both functions back, unless somebody has set the name to something else since."""
        for table, function in zip(_tables(), (self.attention, self.mask, self.mask), strict=True):
            if table.get(self.name) is function:
                del table[self.name]

    def __enter__(self) -> Registration:
        return self

    def __exit__(self, *exception: object) -> None:
        self.unregister()


def register_attention(name: str = "maskmod") -> Registration:
    """Let every model of transformers attend through maskmod: ``model.set_attn_implementation(name)``.

    Nothing else changes, and `install` is not needed: transformers' own mask functions, or those of `install`, describe
    the mask; here it stays an expression, prepared by the first layer of its kind and shared by the others.

    Raises:
        MaskError: the name stands for something else already.
    """
    registration = Registration(name, maskmod_attention, maskmod_mask)
    functions = (maskmod_attention, maskmod_mask, maskmod_mask)
    for table, function in zip(_tables(), functions, strict=True):
        if table.get(name, function) is not function or name == "eager":
            raise MaskError(f"register_attention({name!r})", "the name is taken", "Choose another.")
    for table, function in zip(_tables(), functions, strict=True):
        table[name] = function
    return registration


def _tables() -> tuple[dict[str, Any], ...]:
    transformers = importlib.import_module("transformers")
    return (
        transformers.AttentionInterface._global_mapping,
        transformers.AttentionMaskInterface._global_mapping,
        interfaces.AttentionMaskInterface._global_mapping,
    )


# ----------------------------------------------------------------------------------------------------------- the mask


def maskmod_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: MaskMod = causal_mask_function,
    attention_mask: Any = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    *,
    config: Any = None,
    strict: bool | None = None,
    **kwargs: Any,
) -> LazyMask | Tensor | None:
    """The mask of one pass, for `maskmod_attention`.

    For one query, and for a few over a static cache, what `sdpa_mask` gives: a step's mask is a row, and one form of it
    keeps a compiled step one graph. Else a `LazyMask`, never None, which says nothing of causality.
    """
    if isinstance(attention_mask, LazyMask):
        return attention_mask  # ``generate`` had it made before the forward pass
    skips = (allow_is_causal_skip, allow_is_bidirectional_skip)
    if known_true(q_length == 1) or (isinstance(q_offset, Tensor) and known_true(q_length <= _FEW)):
        options: dict[str, Any] = {"use_vmap": use_vmap, "device": device, "config": config, "strict": strict}
        lengths = (batch_size, q_length, kv_length, q_offset, kv_offset)
        return sdpa_mask(*lengths, mask_function, attention_mask, local_size, *skips, **options)
    mask = as_mask(mask_function)
    padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    lengths = (q_length, kv_length, q_offset, kv_offset, local_size)
    if is_skipped(mask, padding, *lengths, skips, strict):
        simple = causal_mask_function if allow_is_causal_skip else bidirectional_mask_function
        return LazyMask(simple, Sizes(batch_size, 1, q_length, kv_length), torch.device(device))
    mask = whole_mask(mask, attention_mask, kv_length, q_offset, kv_offset)
    sizes = Sizes(batch_size, heads_of(mask, config, True, device), q_length, kv_length)
    return LazyMask(mask, sizes, torch.device(device))


# ------------------------------------------------------------------------------------------------------ the attention


def maskmod_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: LazyMask | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention of one layer, as transformers calls it: the output (B, q_len, Hq, Dv), and no weights.

    Args:
        query: (B, Hq, q_len, D). key: (B, Hkv, kv_len, D). value: (B, Hkv, kv_len, Dv); Hkv divides Hq.
        attention_mask: what `maskmod_mask` gave; or a tensor (B, 1 or Hq, q_len, kv_len), bool or to be added; or None,
            which is causal for more than one query unless ``is_causal``, or else the module, says that it is not.
        softcap: scores become ``softcap * tanh(scores / softcap)``.
        s_aux: (Hq,), a sink's score beside those of the keys.
        position_bias: (1 or B, Hq, q_len, kv_len), added to the scores.

    Raises:
        UnsupportedMask: dropout, weights asked for, keys chosen by an indexer, pages of continuous batching.
    """
    _refuse(dropout, kwargs)
    if query.shape[0] == 1 and not known_true(key.shape[0] == 1):
        query = query.expand(key.shape[0], -1, -1, -1)  # learned queries, shared by all rows
    causal = False
    if attention_mask is None and not known_true(query.shape[2] == 1):
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if causal and known_true(key.shape[2] > query.shape[2]):  # a static cache that was empty
            key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
    if isinstance(attention_mask, LazyMask) and position_bias is None:
        out = attention_mask.attend(query, key, value, scale=scaling, softcap=softcap, sink_logits=s_aux)
    elif softcap is None and s_aux is None:
        out = fused_attention(
            query, key, value, _bias(attention_mask, position_bias, causal, query, key), causal, scaling
        )
    else:
        bias = _bias(attention_mask, position_bias, causal, query, key)
        out = softmax_attention(query, key, value, bias, causal, scaling, softcap, s_aux)
    return out.transpose(1, 2).contiguous(), None


def _refuse(dropout: float, asked: dict[str, Any]) -> None:
    def refusal(what: str, seen: str, todo: str) -> UnsupportedMask:
        return UnsupportedMask(f'attn_implementation="maskmod" with {what}', seen, todo)

    if dropout > 0:
        raise refusal(
            f"an attention dropout of {dropout}",
            "no kernel that skips hidden keys drops weights the same way",
            'Set the config\'s attention dropout to 0, call model.eval(), or use "sdpa".',
        )
    if asked.get("output_attentions"):
        raise refusal("output_attentions=True", "the weights are never formed", 'Use "eager".')
    for name in ("indices", "block_indices"):
        if asked.get(name) is not None:
            raise refusal(
                f"{name}=", "an indexer chose the keys of each query, which is no mask function", 'Use "sdpa".'
            )
    paged = any(asked.get(name) is not None for name in ("read_index", "write_index", "block_table"))
    if paged or hasattr(asked.get("cache"), "fill_block_table"):
        raise refusal("continuous batching", "the mask of its flat batch is not made here", 'Use "sdpa" or flash.')


def _bias(
    mask: LazyMask | Tensor | None, position_bias: Tensor | None, causal: bool, query: Tensor, key: Tensor
) -> Tensor | None:
    """One tensor for SDPA: the mask as it is, or the position bias with its hidden entries at the dtype's minimum."""
    visible = mask.dense() if isinstance(mask, LazyMask) else mask
    if visible is not None and visible.dim() != 4:
        raise UnsupportedMask(
            f"an attention mask of {list(visible.shape)}",
            "the model hands its padding to the attention function, as flash kernels take it",
            'Use "sdpa" or "eager" for this model.',
        )
    if position_bias is None:
        return visible
    if visible is None and not causal:
        return position_bias
    if visible is None:
        visible = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril()
    position_bias = position_bias[..., : key.shape[2]]
    if visible.dtype != torch.bool:
        return position_bias + visible
    return torch.where(visible, position_bias, torch.finfo(position_bias.dtype).min)
