"""One backend, measured: graphs, breaks and recompiles counted by `maskmod.testing`, tokens compared, time taken.

Nothing here is asserted; `Measured.passed` says what the figures came to.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch._dynamo.exc import Unsupported

from maskmod.demo.text import LeftPadded
from maskmod.testing import GraphReport, watch_graphs

__all__ = ["Generates", "Measured", "measure"]


class Generates(Protocol):
    """What is measured: something that compiled itself for one backend."""

    backend: str

    def generate(self, prompts: LeftPadded, new_tokens: int) -> Tensor:
        """The continuation of each prompt, (B, new_tokens)."""
        ...


@dataclass(frozen=True)
class Measured:
    """A row of the demo's table."""

    backend: str
    prefill_graphs: int
    decode_graphs: int
    graph_breaks: int
    recompiles_after_warm_up: int
    tokens_per_second: float  # of all rows together, prefill included; 0 where nothing could run
    tokens_equal: bool  # to those of the uncompiled run without a cache
    reasons: tuple[str, ...]  # of each break and recompile

    @property
    def passed(self) -> bool:
        return self.tokens_equal and not self.graph_breaks and not self.recompiles_after_warm_up


def measure(generator: Generates, warm_up: LeftPadded, prompts: LeftPadded, expected: Tensor) -> Measured:
    """Warm up on one batch of prompts with one prefill and one decode step, then generate from another and measure.

    Args:
        warm_up: of the same shape as ``prompts``, with other contents: what is compiled must not depend on them.
        expected: (B, new_tokens), the tokens of the uncompiled run.
    """
    B, new_tokens = expected.shape
    tokens, seconds = None, float("inf")
    prefill, decode, after, stopped = GraphReport(), GraphReport(), GraphReport(), []
    try:
        with watch_graphs() as prefill:
            generator.generate(warm_up, 1)
        with watch_graphs() as decode:
            generator.generate(warm_up, 2)
        with watch_graphs() as after:
            start = time.perf_counter()
            tokens = generator.generate(prompts, new_tokens)
            seconds = time.perf_counter() - start
    except Unsupported as error:  # fullgraph=True turns a graph break into this
        stopped = [str(error)]
    breaks = [str(each) for report in (prefill, decode, after) for each in report.breaks] or stopped
    return Measured(
        generator.backend,
        prefill.graphs,
        decode.graphs,
        len(breaks),
        _recompiles(after),
        B * new_tokens / seconds,
        tokens is not None and torch.equal(tokens, expected),
        (*breaks, *(str(each) for each in after.recompiles)),
    )


def _recompiles(report: GraphReport) -> int:
    """After the warm-up every graph is one too many, and so is every call that got none."""
    return max(report.graphs, len(report.recompiles))
