"""Microbatches and head shards are substitutions: the same under torch's pipeline schedules and on DTensor heads."""

from __future__ import annotations

import pytest

from ranks import on_ranks, values
from sharded_parallel import PIPELINES, every_parallelism


@pytest.fixture(scope="module")
def found():
    return values(on_ranks(2, every_parallelism, timeout=200))


@pytest.mark.parametrize(("schedule", "compiles"), PIPELINES)
def test_each_microbatch_has_its_own_rows(found, schedule, compiles):
    for rank in found:
        figures = rank[f"{schedule}, {'compiled' if compiles else 'eager'}"]
        assert figures["loss"] < 1e-9
        assert figures["gradients"] < 1e-10


def test_heads_on_dtensors_have_their_own_masks(found):
    for rank in found:
        assert max(rank["heads"].values()) < 1e-12
