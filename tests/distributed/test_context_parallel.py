"""Attention over several ranks equals one process, forward and backward, for every layout, mask and method."""

from __future__ import annotations

import pytest

from ranks import on_ranks, values
from sharded_attention import cases, every_case


@pytest.fixture(scope="module", params=[2, 4])
def answers(request):
    return values(on_ranks(request.param, every_case, timeout=240))


@pytest.mark.parametrize("case", cases(), ids="/".join)
def test_equals_one_process(answers, case):
    assert [answer[case] for answer in answers] == [None] * len(answers)
