"""How long things take, for bids: measured on one CPU thread; for GPUs, rough guesses.

Everything is in milliseconds and only ratios decide. `benchmarks/attention.py` compares the estimates on CPU with
measurements; nothing has been measured on a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from maskmod.backends.protocol import Request

__all__ = ["Rates", "pairs", "rates"]


class Rates(NamedTuple):
    """What one unit of work takes on a device, in milliseconds.

    Attributes:
        pair: one query-key pair of one head of 64, in the fused kernel without a mask, on one thread.
        masked: how much longer it takes with a dense mask. causal: the part of all pairs that the flag visits.
        entry: one entry of a dense mask, made from a predicate and turned into a bias. read: a mask read and analysed.
        launch: one kernel call. backward: a backward, in forwards.
    """

    pair: float
    masked: float
    causal: float
    entry: float
    read: float
    launch: float
    backward: float


_CPU = Rates(pair=3.6e-6, masked=1.27, causal=0.56, entry=1.5e-6, read=0.9, launch=0.06, backward=2.6)
_GPU = Rates(pair=1.3e-9, masked=3.0, causal=0.55, entry=2e-9, read=1.0, launch=0.02, backward=2.5)
_WIDTH = {torch.float64: 2.0}


def rates(device: torch.device) -> Rates:
    return _CPU if device.type == "cpu" else _GPU


def pairs(request: Request, number: float) -> float:
    """Milliseconds for so many query-key pairs of one head each, forward and, where asked for, backward."""
    rate = rates(request.device)
    threads = torch.get_num_threads() if request.device.type == "cpu" else 1
    once = number * rate.pair * _WIDTH.get(request.dtype, 1.0) * (request.head_size + 8) / 72 / threads
    return once * (1 + rate.backward) if request.requires_grad else once
