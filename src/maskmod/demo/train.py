"""A short seeded training run on packed documents, under ``causal() & document(ids)``.

SDPA runs it: flex attention has no backward on CPU. This module shows nothing; it reports each step to a callback.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from maskmod import causal, document, lower
from maskmod.demo.attend import cacheless
from maskmod.demo.model import Config, Model
from maskmod.demo.text import VOCABULARY, Packed
from maskmod.packing import position_ids_from_document_ids

__all__ = ["train"]

_ROWS = 2  # rows of a batch: at six documents or so, many short steps learn faster than few long ones
_PEAK_RATE = 6e-3  # high for a short run: with warm-up and decay, RMSNorm keeps a small model stable at it


def train(config: Config, packed: Packed, *, steps: int, seed: int, report: Callable[[float], None]) -> Model:
    """A model trained for ``steps`` batches; ``report`` gets each batch's loss, in nats a byte."""
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        torch.manual_seed(seed)
        model = Model(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=_PEAK_RATE, betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=_PEAK_RATE, total_steps=steps, pct_start=0.1)
        for _ in range(steps):
            rows = torch.randint(len(packed.tokens), (_ROWS,))
            loss = _loss(model, packed.tokens[rows], packed.document_ids[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            report(loss.item())
    return model.eval().requires_grad_(False)


def _loss(model: Model, tokens: Tensor, document_ids: Tensor) -> Tensor:
    B, row_len = tokens.shape
    args = lower(causal() & document(document_ids), "sdpa", B, None, row_len, row_len)
    positions = position_ids_from_document_ids(document_ids)
    logits = model(tokens, positions, cacheless("sdpa", args))
    # The last byte of a document does not foretell the first of the next: -100 is cross_entropy's "no target".
    follows = document_ids[:, 1:] == document_ids[:, :-1]
    targets = torch.where(follows, tokens[:, 1:], -100)
    return F.cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY), targets.reshape(-1))
