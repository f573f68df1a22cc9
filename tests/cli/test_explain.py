"""`explain`: facts that are proven, what backends get, and the same as JSON."""

import json
import time

import pytest
import torch
from typer.testing import CliRunner

from maskmod import causal, document, full, key_padding, per_head, prefix, shift, sinks, sliding_window, tree, window
from maskmod.backends import registry
from maskmod.cli.commands import app
from maskmod.cli.explain import explain

LONG = 1 << 18


def facts(mask, *sizes):
    return explain(mask, *sizes).facts


@pytest.mark.parametrize(
    ("mask", "band"),
    [
        (causal(), "causal"),
        (full(), "everything"),
        (sliding_window(5), "a sliding window of 5 keys"),
        (window(2, 3), "a band, -2 <= kv_idx - q_idx <= 3"),
        (shift(causal(), q_offset=8), "causal, the last query on the last key"),
        (~causal(), "a band, 1 <= kv_idx - q_idx"),
        (causal() | prefix(3), None),
    ],
)
def test_bands_in_words(mask, band: str | None):
    assert facts(mask, 1, 1, 16, 24)["band"] == band


def test_facts_of_a_mask():
    ids = torch.tensor([0] * 5 + [1] * 3)
    found = facts(causal() & document(ids), 2, 2, 8, 8)
    assert found["documents"] == {"count": 2, "longest": 5, "inside": "causal"}
    assert found["visible"] == 4 * (15 + 6)
    assert found["density"] == (15 + 6) / 64
    assert found["spans_a_row"] == "1"
    assert (found["empty"], found["full"], found["leaks_future"], found["empty_row"]) == (False, False, None, None)
    assert found["reads"].startswith("neither")
    found = facts(per_head([causal() | prefix(2), causal() & key_padding(torch.tensor([[0, 1, 1, 1]]))]), 1, 2, 4, 4)
    assert found["leaks_future"] == {"b": 0, "h": 0, "q_idx": 0, "kv_idx": 1}
    assert found["empty_row"] == {"b": 0, "h": 1, "q_idx": 0}
    assert found["reads"] == "h"


def test_what_backends_get_and_why_not():
    mask = causal() & (sinks(1) | sliding_window(3)) & per_head([full(), prefix(9)])
    answers = explain(mask, 1, 2, 16, 16).backends
    assert set(answers) == set(registry.names())
    assert answers["hstu"]["gets"].startswith("3 endpoints a row")
    assert answers["hstu"]["arguments"]["func"] == "int32[1, 2, 3, 16]"
    refused = answers["magi"]
    assert "one mask for every head" in refused["why_not"]
    b, h, q_idx, kv_idx = refused["element"].values()
    assert mask(b, h, q_idx, kv_idx) != mask(b, 0, q_idx, kv_idx)


def test_the_command():
    text = CliRunner().invoke(app, ["explain", "causal() & sliding_window(4)", "--q-len", "32"]).output
    assert "band          a sliding window of 4 keys" in text
    assert "attention takes " in text
    assert "estimated cost: " in text
    answer = CliRunner().invoke(app, ["explain", "causal()", "--q-len", "8", "--kv-len", "12", "--B", "2", "--json"])
    found = json.loads(answer.output)
    assert found["sizes"] == {"B": 2, "H": 1, "q_len": 8, "kv_len": 12}
    assert found["facts"]["visible"] == 2 * 36
    assert set(found) == {"mask", "sizes", "facts", "backends", "chosen"}


def test_a_quarter_of_a_million_tokens():
    begin = time.process_time()
    found = explain(causal() & (sliding_window(4096) | sinks(4)), 1, 1, LONG, LONG)
    assert found.facts["spans_a_row"] == "1 to 2"
    assert "not lowered here" in found.backends["sdpa"]["why_not"]
    assert found.backends["magi"]["gets"] == "3 slices that do not overlap"
    assert time.process_time() - begin < 20


def test_a_mask_that_is_not_understood():
    found = facts(lambda b, h, q, k: torch.stack([k <= q, k == 0]).any(), 1, 1, 8, 8)
    assert found["understood"].startswith("no, evaluated token by token")
    assert found["band"] is None
    assert facts(tree(torch.tensor([-1, 0, 0])), 1, 1, 3, 3)["understood"] == "yes"
