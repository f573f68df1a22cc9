"""The serving loop: every answer equals the uncompiled model's alone, whatever else arrives, leaves or fails."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import Any

import pytest
import torch

from maskmod.demo.model import Config, Model
from maskmod.demo.serve import Call, alone, serve
from maskmod.demo.server import BadRequest, Server, draft
from maskmod.testing import watch_graphs


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(Config(width=64, hidden=96)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def calls():
    rng = random.Random(1)
    text = "a man a plan a canal panama; the cat sat on the mat; the cat sat on the hat. "
    made = []
    for number in range(12):
        begin = rng.randrange(20)
        prompt = text[begin : begin + rng.randint(1, 50)]
        made.append(Call(rng.randrange(20), f"r{number}", prompt, rng.randint(1, 30)))
    return made


@pytest.fixture(scope="module")
def reference(model, calls):
    return alone(model, calls)


def server_of(model, **sizes):
    return Server(model, compiler="eager", **sizes)


SIZES = [
    {},
    {"rows": 1, "num_pages": 6, "page_size": 16},
    {"rows": 3, "num_pages": 24, "page_size": 4, "chunk": 5, "max_len": 96},
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_answers_are_those_of_the_model_alone(model, calls, reference, sizes):
    torch._dynamo.reset()
    served = serve(server_of(model, **sizes), calls, *reference)
    assert served.closest_decision > 1e-5  # or rounding could decide
    assert served.answered == served.equal == len(calls)
    assert (served.chunk_graphs, served.token_graphs, served.recompiles) == (1, 1, 0)
    assert served.counts.pages_taken > served.counts.pages_at_once
    assert served.pages_left == served.pages
    assert served.counts.new_tokens == sum(call.new_tokens for call in calls)
    assert served.ok


def test_bad_and_cancelled_requests_disturb_no_other(model, calls, reference):
    bad = [
        Call(3, "empty", "", 4),
        Call(3, "nothing", "abc", 0),
        Call(3, "long", "x" * 200, 4),
        Call(21, "r3", "abc", 4),
    ]
    given_up = [Call(0, "g0", "a man a plan", 60, cancelled_at=3), Call(9, "g1", "the cat", 60, cancelled_at=10)]
    torch._dynamo.reset()
    served = serve(server_of(model), calls + bad + given_up, *reference)
    assert {name: reason.split(":")[1].split(",")[0].strip() for name, reason in served.refused.items()} == {
        "empty": "the prompt is empty. Send at least one token.",
        "nothing": "it asks for 0 tokens. Ask for one or more.",
        "long": "204 tokens with its answer",
        "r3": "another request has this name. Choose a new one.",
    }
    assert served.cancelled == 2
    assert served.answered == served.equal == len(calls)
    assert served.pages_left == served.pages


def test_a_prompt_that_holds_no_tokens_stops_nobody(model):
    server = server_of(model)
    server.submit("good", [1, 2, 3], 2)
    for prompt, seen in (
        ([1, 256], "256"),
        ([-1], "-1"),
        (["a"], "'a'"),
        ([1.5], "1.5"),
        (torch.tensor([1]), "tensor"),
    ):
        with pytest.raises(BadRequest, match=rf"request bad: {seen}.* is no token\. Send integers from 0 to 255"):
            server.submit("bad", prompt, 2)  # pyright: ignore[reportArgumentType]
    no_counts: list[Any] = [2.5, None, "3"]
    for new_tokens in no_counts:
        with pytest.raises(BadRequest, match="request bad: it asks for"):
            server.submit("bad", [1], new_tokens)
    while server.busy:
        server.step()
    assert server.finished == ["good"]


def test_a_call_may_be_cancelled_too_early_or_too_late(model):
    calls = [
        Call(0, "done", "ab", 2, cancelled_at=15),
        Call(5, "not yet", "ab", 2, cancelled_at=1),
        Call(0, "refused", "", 2, cancelled_at=3),
        Call(20, "last", "ab", 2),
    ]
    torch._dynamo.reset()
    served = serve(server_of(model), calls, *alone(model, calls))
    assert (served.answered, served.equal, served.cancelled, list(served.refused)) == (3, 3, 0, ["refused"])


def test_drafts_that_are_wrong_change_nothing(model, calls, reference, monkeypatch):
    rng = random.Random(0)

    def guess(tokens, room):
        return [rng.choice(tokens) for _ in range(rng.randint(0, room))]

    monkeypatch.setattr("maskmod.demo.server.draft", guess)
    torch._dynamo.reset()
    served = serve(server_of(model), calls, *reference)
    assert served.counts.drafted > served.counts.accepted
    assert served.answered == served.equal == len(calls)


def test_load_is_bounded(model):
    server = server_of(model, waiting=2)
    server.submit("a", [1], 4)
    server.submit("b", [1], 4)
    with pytest.raises(BadRequest, match="request c: 2 requests are waiting"):
        server.submit("c", [1], 4)
    server.waiting_limit += 1
    with pytest.raises(BadRequest, match="request b: another"):
        server.submit("b", [2], 4)
    server.waiting_limit -= 1
    server.cancel("b")
    server.submit("c", [1], 4)
    with pytest.raises(BadRequest, match="request b: it neither waits nor runs"):
        server.cancel("b")
    with pytest.raises(BadRequest, match="request a: it is not done"):
        server.take("a")
    while server.busy:
        server.step()
    assert sorted(server.finished) == ["a", "c"]
    with pytest.raises(BadRequest, match="request a: another"):
        server.submit("a", [1], 4)
    assert len(server.take("a")) == 4
    server.submit("a", [1], 4)
    server.cancel("a")
    assert not server.busy


def test_a_request_waits_for_pages(model):
    server = server_of(model, rows=2, num_pages=3, page_size=4, max_len=12)
    server.submit("big", [1, 2, 3], 9)
    server.submit("small", [1], 2)
    server.step()
    assert server.free_pages == 0
    while "big" not in server.finished:
        assert "small" not in server.finished
        server.step()
    while server.busy:
        server.step()
    assert server.free_pages == 3
    with pytest.raises(BadRequest, match="13 tokens with its answer, 12 fit"):
        server.submit("over", [1] * 4, 9)


def test_an_idle_server_does_nothing(model):
    server = server_of(model)
    with watch_graphs() as report:
        server.step()
    assert server.counts.steps == report.graphs == 0


@pytest.mark.parametrize(
    ("tokens", "room", "want"),
    [
        ([1, 2, 3, 4, 1, 2, 3], 2, [4, 1]),
        ([1, 2, 3, 4], 2, []),
        ([5] * 6, 3, [5]),
        ([1, 2, 3, 9, 1, 2, 3], 0, []),
        ([1], 3, []),
    ],
)
def test_a_draft_is_what_followed_before(tokens, room, want):
    assert draft(tokens, room) == want


def test_the_command(tmp_path):
    """As a user runs it: trained, compiled by inductor."""
    process = subprocess.run(
        [sys.executable, "-m", "maskmod", "demo", "serve", "--json"], capture_output=True, text=True, timeout=850
    )
    assert process.returncode == 0, process.stdout + process.stderr
    served = json.loads(process.stdout)
    assert served["ok"] is True
    assert served["answered"] == served["equal"] == 15
    assert (served["chunk_graphs"], served["token_graphs"], served["recompiles"]) == (1, 0, 0)
    rows = served["rows_by_columns"]
    assert (rows["chunk_graphs"], rows["token_graphs"], rows["recompiles"]) == (1, 1, 0)
    assert rows["answered"] == rows["equal"] == 15
    assert served["counts"]["steps"] < rows["counts"]["steps"]
    assert served["counts"]["pages_shared"] > 0
    assert sorted(served["refused"]) == ["empty", "nothing", "r0", "too long"]
    assert served["cancelled"] == 2
    assert served["counts"]["accepted"] > 0
