"""The demo, run as a user runs it, and judged by the JSON it prints."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from maskmod import causal, dense_mask
from maskmod.demo.attend import KERNELS
from maskmod.demo.generate import over_slots
from maskmod.demo.measure import Measured, measure
from maskmod.demo.report import Report
from maskmod.demo.text import PROMPTS, documents, left_padded, packed, text_from


@pytest.fixture(scope="module")
def printed():
    command = [sys.executable, "-m", "maskmod", "demo", "--json"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stderr == ""
    return json.loads(process.stdout)


def test_the_loss_falls(printed):
    losses = printed["losses"]
    assert len(losses) > 1
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("backend", KERNELS)
def test_a_backend_generates_in_two_graphs_what_the_uncompiled_run_does(printed, backend):
    (row,) = [row for row in printed["backends"] if row["backend"] == backend]
    assert row["prefill_graphs"] == 1
    assert row["decode_graphs"] == 1
    assert row["graph_breaks"] == 0
    assert row["recompiles_after_warm_up"] == 0
    assert row["reasons"] == []
    assert row["tokens_equal"] is True
    assert row["tokens_per_second"] > 0


def test_the_demo_has_the_size_it_claims(printed):
    assert printed["ok"] is True
    assert printed["new_tokens"] >= 64
    assert printed["prompts"] == len(PROMPTS) > 1
    assert 200_000 < printed["parameters"] < 900_000
    assert printed["documents"] > 50
    assert [sample[: len(prompt)] for sample, prompt in zip(printed["samples"], PROMPTS, strict=True)] == [*PROMPTS]


GOOD = Measured("sdpa", 1, 1, 0, 0, 100.0, True, ())


@pytest.mark.parametrize(
    "bad",
    [
        replace(GOOD, graph_breaks=1, reasons=("because",)),
        replace(GOOD, recompiles_after_warm_up=1),
        replace(GOOD, tokens_equal=False),
    ],
)
def test_a_report_fails_when_any_backend_does(bad):
    def report(*rows):
        return Report("2", 1, 1, 1, 1, [1.0], 1, 64, 0.1, ["x"], list(rows), 1.0)

    assert report(GOOD, GOOD).ok
    assert not report(GOOD, bad).ok
    assert json.loads(report(bad).to_json())["ok"] is False
    assert "because" in "\n".join(report(bad).table()) or not bad.reasons


def test_packed_rows_hold_every_document_whole_but_the_last():
    texts = documents()[:40]
    rows = packed(texts, 32, seed=0)
    tokens, ids = rows.tokens.flatten(), rows.document_ids.flatten()
    *whole, _last = [text_from(tokens[ids == number]) for number in ids.unique().tolist()]
    assert len(whole) >= len(texts) - 2
    assert {text.removesuffix("\n") for text in whole} <= set(texts)
    assert len(set(whole)) == len(whole)


def test_prompts_end_in_the_last_column():
    batch = left_padded(["ab", "abcd"], 6)
    assert batch.pads.tolist() == [4, 2]
    assert text_from(batch.tokens[0]) == "\0\0\0\0ab"
    assert text_from(batch.tokens[1]) == "\0\0abcd"


def test_a_padded_row_sees_over_slots_what_its_positions_say():
    pads, length = [0, 3], 8
    valid = torch.arange(length) >= torch.tensor(pads)[:, None]
    mask = over_slots(causal(), -torch.tensor(pads), valid)
    seen = dense_mask(mask, 2, 1, length, length)
    for b, pad in enumerate(pads):
        for q in range(length):
            for k in range(length):
                assert bool(seen[b, 0, q, k]) == (pad <= k <= q), (b, q, k)


class Scripted:
    """Stands in for a generator: a function compiled for real, on shapes or code that compile badly."""

    backend = "scripted"

    def __init__(self, step, lengths):
        self.step = torch.compile(step, fullgraph=True, dynamic=False, backend="eager")
        self.lengths = iter(lengths)

    def generate(self, prompts, new_tokens):
        for _ in range(new_tokens):
            self.step(torch.zeros(next(self.lengths)))
        return torch.zeros(2, new_tokens)


def measured(step, lengths, expected):
    prompts = left_padded(["a", "b"], 4)
    return measure(Scripted(step, lengths), prompts, prompts, expected)


def test_a_recompile_after_warm_up_is_seen():
    row = measured(lambda x: x + 1, [3, 3, 3, 3, 4, 3, 3], torch.zeros(2, 4))
    assert (row.prefill_graphs, row.decode_graphs, row.recompiles_after_warm_up) == (1, 0, 1)
    assert len(row.reasons) == 1
    assert row.tokens_equal
    assert not row.passed


def test_a_graph_break_is_seen():
    def breaks(x):
        torch._dynamo.graph_break()
        return x

    row = measured(breaks, [3] * 9, torch.zeros(2, 4))
    assert row.graph_breaks == 1
    assert not row.passed


def test_another_token_is_seen():
    row = measured(lambda x: x + 2, [3] * 9, torch.ones(2, 4))
    assert not row.tokens_equal
    assert not row.passed
