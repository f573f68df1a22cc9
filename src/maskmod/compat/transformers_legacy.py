"""transformers' ``modeling_attn_mask_utils``, the masks of its older models, from the same masks as everything else.

Additive 4-D biases, 0 where visible and ``finfo(dtype).min`` where hidden. Same arguments, values, dtypes and errors.
One of them is a surprise: here ``sliding_window=n`` shows n + 1 keys, the query's own and n before it, one more than
everywhere else in transformers. A 4-D mask passes through; of any other rank but 2 it is ignored, as in transformers.
"""

from __future__ import annotations

import dataclasses
import warnings

import torch
from torch import Tensor

from maskmod._torch.tracing import readable, tracing
from maskmod.algebra import Mask
from maskmod.compat.transformers.predicates import sliding_window_causal_mask_function
from maskmod.dense import additive_bias
from maskmod.masks import causal, key_padding
from maskmod.positions import shift

__all__ = ["AttentionMaskConverter"]

_DEPRECATED = (
    "transformers deprecates these functions (modeling_attn_mask_utils, AttentionMaskConverter) in favour of "
    "masking_utils: use maskmod.compat.transformers, or maskmod's own masks."
)


@dataclasses.dataclass(init=False)
class AttentionMaskConverter:
    """Biases from a 2-D padding mask, from causality, or from both.

    Args:
        is_causal: hide the keys after each query.
        sliding_window: hide also those more than ``sliding_window`` before it.

    Raises:
        ValueError: a window below 1.
    """

    is_causal: bool
    sliding_window: int | None

    def __init__(self, is_causal: bool, sliding_window: int | None = None):
        _warn()
        if sliding_window is not None and sliding_window <= 0:
            raise ValueError(f"sliding_window={sliding_window}: a window of no keys. Pass 1 or more, or None.")
        self.is_causal = is_causal
        self.sliding_window = sliding_window

    def to_causal_4d(
        self,
        batch_size: int,
        query_length: int,
        key_value_length: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> Tensor | None:
        """The causal bias, (batch_size, 1, query_length, key_value_length); None for one query without a window."""
        if not self.is_causal:
            raise ValueError(f"{self!r}.to_causal_4d(...): is_causal is False. Use to_4d, or is_causal=True.")
        if not self._needs_causal(query_length):
            return None
        past = key_value_length - query_length
        return self._make_causal_mask((batch_size, query_length), dtype, device, past, self.sliding_window)

    def to_4d(
        self,
        attention_mask_2d: Tensor,
        query_length: int,
        dtype: torch.dtype,
        key_value_length: int | None = None,
    ) -> Tensor:
        """The bias of a 2-D mask (B, kv_len), 1 = visible, and of causality: (B, 1, query_length, kv_len)."""
        if not (self.is_causal and self._needs_causal(query_length)):
            if self.sliding_window is not None:
                raise NotImplementedError(f"{self!r}.to_4d(...): a window needs causality. Pass is_causal=True.")
            return self._expand_mask(attention_mask_2d, dtype, query_length)
        if key_value_length is None:
            raise ValueError(f"{self!r}.to_4d(...): key_value_length is None. A causal bias needs it: pass an int.")
        _warn()
        B, kv_len = attention_mask_2d.shape
        if kv_len not in (1, key_value_length):
            raise RuntimeError(
                f"a 2-D mask of {kv_len} keys with key_value_length={key_value_length}: pass equal ones."
            )
        valid = _ones(attention_mask_2d, dtype).expand(B, key_value_length)
        mask = _causal(key_value_length - query_length, self.sliding_window) & key_padding(valid)
        return _bias(mask, B, query_length, key_value_length, dtype, valid.device)

    def _needs_causal(self, query_length: int) -> bool:
        return query_length > 1 or self.sliding_window is not None

    @staticmethod
    def _make_causal_mask(
        input_ids_shape: torch.Size | tuple[int, int],
        dtype: torch.dtype,
        device: torch.device | str,
        past_key_values_length: int = 0,
        sliding_window: int | None = None,
    ) -> Tensor:
        """The causal bias of ``(B, q_len)`` queries that follow ``past_key_values_length`` keys."""
        _warn()
        B, q_len = input_ids_shape
        mask = _causal(past_key_values_length, sliding_window)
        return _bias(mask, 1, q_len, q_len + past_key_values_length, dtype, device).expand(B, -1, -1, -1)

    @staticmethod
    def _expand_mask(mask: Tensor, dtype: torch.dtype, tgt_len: int | None = None) -> Tensor:
        """The bias of a 2-D mask (B, kv_len), 1 = visible, for ``tgt_len`` queries: (B, 1, tgt_len, kv_len)."""
        _warn()
        B, kv_len = mask.shape
        return _bias(
            key_padding(_ones(mask, dtype)), B, kv_len if tgt_len is None else tgt_len, kv_len, dtype, mask.device
        )

    @staticmethod
    def _unmask_unattended(expanded_mask: Tensor, min_dtype: float) -> Tensor:
        """The bias with every row that hides all keys opened to all of them."""
        _warn()
        if expanded_mask.dtype == torch.bool:
            raise ValueError(f"_unmask_unattended({list(expanded_mask.shape)} bool): not a bias. Pass a float tensor.")
        return expanded_mask.mul((expanded_mask == min_dtype).all(dim=-1, keepdim=True).logical_not())

    @staticmethod
    def _ignore_causal_mask_sdpa(
        attention_mask: Tensor | None,
        inputs_embeds: Tensor,
        past_key_values_length: int,
        sliding_window: int | None = None,
        is_training: bool = False,
    ) -> bool:
        """Whether SDPA's ``is_causal`` flag replaces the mask: one query or no past, no padding, no window in reach.

        Inside a trace the data is not asked, and without a mask only training may skip.
        """
        _warn()
        q_len = inputs_embeds.shape[1]
        kv_len = q_len + past_key_values_length
        if not (q_len == 1 or kv_len == q_len) or not (sliding_window is None or kv_len < sliding_window):
            return False
        if attention_mask is None:
            return is_training or readable(inputs_embeds)
        return attention_mask.dim() != 4 and readable(inputs_embeds) and bool((attention_mask == 1).all())


def _prepare_4d_causal_attention_mask(
    attention_mask: Tensor | None,
    input_shape: torch.Size | tuple | list,
    inputs_embeds: Tensor,
    past_key_values_length: int,
    sliding_window: int | None = None,
) -> Tensor | None:
    """The causal bias for eager attention. A 4-D mask, 1 = visible, is checked and turned into a bias."""
    converter = AttentionMaskConverter(is_causal=True, sliding_window=sliding_window)
    B, q_len = input_shape[0], input_shape[-1]
    kv_len = q_len + past_key_values_length
    dtype = inputs_embeds.dtype
    if attention_mask is not None and attention_mask.dim() == 2:
        return converter.to_4d(attention_mask, q_len, dtype, kv_len)
    if attention_mask is not None and attention_mask.dim() == 4:
        expected = (B, 1, input_shape[1], kv_len)
        if tuple(attention_mask.shape) != expected:
            raise ValueError(f"a 4-D attention_mask of shape {tuple(attention_mask.shape)}: {expected} is needed.")
        hidden = 1.0 - attention_mask
        return hidden.masked_fill(hidden != 0, torch.finfo(dtype).min)
    return converter.to_causal_4d(B, q_len, kv_len, dtype, inputs_embeds.device)


def _prepare_4d_causal_attention_mask_for_sdpa(
    attention_mask: Tensor | None,
    input_shape: torch.Size | tuple | list,
    inputs_embeds: Tensor,
    past_key_values_length: int,
    sliding_window: int | None = None,
) -> Tensor | None:
    """The causal bias for SDPA, or None where its ``is_causal`` flag does. A 4-D mask is a bias already."""
    converter = AttentionMaskConverter(is_causal=True, sliding_window=sliding_window)
    if converter._ignore_causal_mask_sdpa(attention_mask, inputs_embeds, past_key_values_length, sliding_window):
        return None
    B, q_len, dtype = input_shape[0], input_shape[-1], inputs_embeds.dtype
    kv_len = q_len + past_key_values_length
    if attention_mask is None:
        return converter.to_causal_4d(B, q_len, kv_len, dtype, inputs_embeds.device)
    bias = attention_mask if attention_mask.dim() == 4 else converter.to_4d(attention_mask, q_len, dtype, kv_len)
    if readable(inputs_embeds) and bias.device.type in ("cuda", "xpu"):
        # Their memory-efficient kernels make NaN of a row that hides everything (pytorch#110213).
        return converter._unmask_unattended(bias, torch.finfo(dtype).min)
    return bias


def _prepare_4d_attention_mask(mask: Tensor, dtype: torch.dtype, tgt_len: int | None = None) -> Tensor:
    """The bias of a 2-D mask (B, kv_len), 1 = visible, without causality."""
    return AttentionMaskConverter._expand_mask(mask=mask, dtype=dtype, tgt_len=tgt_len)


def _prepare_4d_attention_mask_for_sdpa(mask: Tensor, dtype: torch.dtype, tgt_len: int | None = None) -> Tensor | None:
    """The same, or None where the data, outside a trace, shows no padding."""
    _warn()
    _, _ = mask.shape  # two dimensions, or Python's own error
    if readable(mask) and bool((mask == 1).all()):
        return None
    return AttentionMaskConverter._expand_mask(mask=mask, dtype=dtype, tgt_len=tgt_len)


def _create_4d_causal_attention_mask(
    input_shape: torch.Size | tuple | list,
    dtype: torch.dtype,
    device: torch.device | str,
    past_key_values_length: int = 0,
    sliding_window: int | None = None,
) -> Tensor | None:
    """The causal bias of ``(B, q_len)`` queries; None for one query without a window."""
    converter = AttentionMaskConverter(is_causal=True, sliding_window=sliding_window)
    kv_len = past_key_values_length + input_shape[-1]
    return converter.to_causal_4d(input_shape[0], input_shape[-1], kv_len, dtype=dtype, device=device)


def _causal(past: int, sliding_window: int | None) -> Mask:
    """Rows start at position ``past``. The window counts the keys before the query: its own makes n + 1."""
    if past < 0:
        raise RuntimeError(f"past_key_values_length={past}: fewer keys than queries. Pass zero or more.")
    mask = causal() if sliding_window is None else sliding_window_causal_mask_function(sliding_window + 1)
    return shift(mask, q_offset=past)


def _ones(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Where a mask is 1 in ``dtype``: only there is a key visible."""
    return mask.to(dtype) == 1


def _bias(mask: Mask, B: int, q_len: int, kv_len: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    return additive_bias(mask, B, 1, q_len, kv_len, dtype=dtype, device=device)


def _warn() -> None:
    if not tracing():  # a warning would break the graph
        warnings.warn(_DEPRECATED, FutureWarning, stacklevel=3)
