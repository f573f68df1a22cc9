"""Generation in two compiled functions over a static cache, and the plain loop that it must agree with.

A batch is padded on the left, so that all rows write the same slot: slot s of row b holds position ``s - pads[b]``.
What moves from step to step is in tensors, so one graph serves every step. This module counts nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskmod import Mask, at_positions, key_padding, lower, shift
from maskmod._torch.workarounds import isolated
from maskmod.demo.attend import KVCache, cached, cacheless
from maskmod.demo.model import Model
from maskmod.demo.text import LeftPadded

__all__ = ["Generator", "Reference", "generate_uncompiled", "over_slots"]


_OWN_GRAPHS: dict[str, Any] = isolated()
"""Each generator keeps its own graphs: without this, those of all backends count against one limit."""


def over_slots(mask: Mask, first: Tensor, valid: Tensor) -> Mask:
    """A mask of positions, read over the slots of a left-padded batch.

    Args:
        first: (B,) int64, the position that slot 0 stands for: minus the row's padding.
        valid: (B, max_len) bool, False on the padding.
    """
    return shift(mask, q_offset=first, kv_offset=first) & key_padding(valid)


class Generator:
    """A batch of B sequences on one backend; every buffer keeps its address, every step its shapes.

    Args:
        backend: "sdpa", "eager" or "flex".
        mask: over positions; which keys a query sees.
        prompt_len: columns of a padded prompt. max_len: slots of the cache.
    """

    def __init__(self, model: Model, backend: str, mask: Mask, B: int, prompt_len: int, max_len: int):
        self.model, self.backend = model, backend
        self.B, self.prompt_len, self.max_len = B, prompt_len, max_len
        self.cache = KVCache(model.config, B, max_len)
        self.slots = torch.arange(prompt_len)
        self.slot = torch.zeros(1, dtype=torch.int64)  # of the step's one token, the same in every row
        self.first = torch.zeros(B, dtype=torch.int64)  # position of slot 0: -pads
        self.valid = torch.zeros(B, max_len, dtype=torch.bool)
        self.prefill_mask = over_slots(mask, self.first, self.valid)
        self.decode_mask = at_positions(self.prefill_mask, self.slot, q_len=1)
        # Static shapes: torch's flex attention on CPU does not compile with symbolic ones (2.13).
        self.prefill = torch.compile(self._prefill, fullgraph=True, dynamic=False, **_OWN_GRAPHS)
        self.decode = torch.compile(self._decode, fullgraph=True, dynamic=False, **_OWN_GRAPHS)

    def _prefill(self, tokens: Tensor) -> Tensor:
        """tokens (B, prompt_len) -> the next token of each row (B, 1)."""
        return self._next(tokens, self.slots, self.prefill_mask)

    def _decode(self, tokens: Tensor) -> Tensor:
        """tokens (B, 1), at ``self.slot`` -> the next token of each row (B, 1)."""
        return self._next(tokens, self.slot, self.decode_mask)

    def _next(self, tokens: Tensor, slots: Tensor, mask: Mask) -> Tensor:
        args = lower(mask, self.backend, self.B, None, tokens.shape[1], self.max_len)  # in the graph, at every step
        positions = (slots + self.first[:, None]).clamp(min=0)  # a padding column has none; nobody sees it
        logits = self.model(tokens, positions, cached(self.cache, slots, self.backend, args))
        return logits[:, -1:].argmax(-1)

    @torch.no_grad()
    def generate(self, prompts: LeftPadded, new_tokens: int) -> Tensor:
        """The most likely continuation of each prompt, (B, new_tokens)."""
        self.first.copy_(-prompts.pads)
        self.valid.copy_(torch.arange(self.max_len) >= prompts.pads[:, None])
        self.slot.fill_(self.prompt_len)
        generated = [self.prefill(prompts.tokens)]
        while len(generated) < new_tokens:
            generated.append(self.decode(generated[-1]))
            self.slot.add_(1)
        return torch.cat(generated, dim=1)


class Reference(NamedTuple):
    """What greedy generation must give, and how close its closest decision was."""

    tokens: Tensor  # (B, new_tokens)
    closest: float  # least lead, over all steps, of the most likely byte's logit over the second's


@torch.no_grad()
def generate_uncompiled(model: Model, prompts: LeftPadded, mask: Mask, new_tokens: int) -> Reference:
    """The same without compiling, cache, padding or batch: each prompt alone, read anew for every token."""
    rows, leads = [], []
    for padded, pad in zip(prompts.tokens, prompts.pads.tolist(), strict=True):
        tokens = padded[None, pad:]
        for _ in range(new_tokens):
            length = tokens.shape[1]
            args = lower(mask, "eager", 1, None, length, length)
            logits = model(tokens, torch.arange(length)[None], cacheless("eager", args))[0, -1]
            best, second = logits.topk(2).values.tolist()
            leads.append(best - second)
            tokens = torch.cat((tokens, logits.argmax()[None, None]), dim=1)
        rows.append(tokens[0, -new_tokens:])
    return Reference(torch.stack(rows), min(leads))
