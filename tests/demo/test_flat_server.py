"""The flat server: every answer the uncompiled model's alone, one graph, shared pages, and faults that stay alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from maskmod.demo.flat_server import FlatServer, guesses
from maskmod.demo.model import Config, Model
from maskmod.demo.serve import Call, alone, serve
from maskmod.demo.server import BadRequest
from maskmod.packing import pack_tree


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
        begin = rng.choice([0, 0, 5, rng.randrange(20)])
        prompt = text[begin : begin + rng.randint(1, 50)]
        made.append(Call(rng.randrange(20), f"r{number}", prompt, rng.randint(1, 30)))
    return made


@pytest.fixture(scope="module")
def reference(model, calls):
    return alone(model, calls)


def server_of(model, **sizes: Any) -> FlatServer:
    return FlatServer(model, compiler="eager", **sizes)


SIZES = [
    {},
    {"rows": 1, "num_pages": 6, "page_size": 16},
    {"rows": 5, "num_pages": 40, "page_size": 4, "chunk": 5, "max_len": 96, "max_tokens": 13},
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_answers_are_those_of_the_model_alone(model, calls, reference, sizes):
    torch._dynamo.reset()
    server = server_of(model, **sizes)
    served = serve(server, calls, *reference)
    assert served.closest_decision > 1e-5  # or rounding could decide
    assert served.answered == served.equal == len(calls)
    assert (served.chunk_graphs, served.token_graphs, served.recompiles) == (1, 0, 0)
    assert served.pages_left == served.pages
    assert served.counts.new_tokens == sum(call.new_tokens for call in calls)
    assert served.ok
    assert not any(server._users)
    assert served.counts.accepted > 0


def test_pages_that_begin_alike_are_shared(model):
    prompts = ["the cat sat on the mat", "the cat sat on the hat", "the cat sat", "a cat sat on the mat"]
    calls = [Call(3 * n, f"r{n}", prompt, 20) for n, prompt in enumerate(prompts)]
    torch._dynamo.reset()
    server = server_of(model, page_size=4, num_pages=80)
    served = serve(server, calls, *alone(model, calls))
    assert served.answered == served.equal == len(calls)
    # 16 tokens that r1 has of r0, and 8 of the 11 of r2, whose last token is wanted
    assert served.counts.pages_shared == (4 + 2)
    assert served.ok


def test_guesses_that_are_wrong_change_nothing(model, calls, reference, monkeypatch):
    """Trees of random guesses, some of them right: branches are accepted from anywhere in the tree."""
    rng = random.Random(0)
    answers = {tuple(call.prompt.encode()): reference[0][call.name] for call in calls}

    def random_tree(tokens, room):
        rows = []
        for prompt, answer in answers.items():
            done = len(tokens) - len(prompt)
            if tuple(tokens[: len(prompt)]) == prompt and tokens[len(prompt) :] == answer[:done] and done < len(answer):
                right = answer[done : done + rng.randint(1, 3)]
                rows = [[rng.choice(tokens)], right[:1] + [rng.choice(tokens)], right]
        while rows and pack_tree(rows).tokens.shape[0] > room:
            rows.pop(0)
        return pack_tree(rows)

    monkeypatch.setattr("maskmod.demo.flat_server.guesses", random_tree)
    torch._dynamo.reset()
    served = serve(server_of(model, max_tokens=40, page_size=4, num_pages=80), calls, *reference)
    assert served.counts.drafted > served.counts.accepted > 20
    assert served.answered == served.equal == len(calls)
    assert served.ok


def test_a_step_that_raises_takes_one_request_along(model, calls, reference, monkeypatch):
    server = server_of(model)
    run = server._next

    def poisoned(tokens):
        if (tokens == 255).any():
            raise RuntimeError("a bad token")
        return run(tokens)

    monkeypatch.setattr(server, "_next", poisoned)
    for call in calls[:3]:
        server.submit(call.name, list(call.prompt.encode()), call.new_tokens)
    server.submit("poison", [1, 2, 255, 3], 5)
    for call in calls[3:6]:
        server.submit(call.name, list(call.prompt.encode()), call.new_tokens)
    while server.busy:
        server.step()
    assert server.failed == {"poison": "RuntimeError: a bad token"}
    assert {name: server.take(name) for name in server.finished} == {
        call.name: reference[0][call.name] for call in calls[:6]
    }
    assert server.free_pages == 32


def test_a_client_that_floods_is_bounded(model):
    server = server_of(model, per_client=3, waiting=8)
    for number in range(3):
        server.submit(f"flood{number}", [1, 2], 2, client="flood")
    for number in range(3, 20):
        with pytest.raises(BadRequest, match="client 'flood' has 3 requests here"):
            server.submit(f"flood{number}", [1, 2], 2, client="flood")
    server.submit("polite", [1, 2, 3], 2, client="other")
    while server.busy:
        server.step()
    assert "polite" in server.finished
    server.submit("again", [1, 2], 2, client="flood")


def test_a_pool_that_is_exhausted_makes_requests_wait(model):
    server = server_of(model, rows=3, num_pages=3, page_size=4, max_len=12)
    for number in range(6):
        server.submit(f"r{number}", [number + 1, 2, 3], 9)
    for _ in range(400):
        server.step()
    assert sorted(server.finished) == [f"r{number}" for number in range(6)], "none is lost"
    assert server.free_pages == 3


def test_bad_tokens_and_cancelled_requests(model):
    server = server_of(model)
    server.submit("good", [1, 2, 3], 4)
    server.submit("gone", [1, 2, 3, 4], 40)
    for prompt in ([256], [-1], [1.5], []):
        with pytest.raises(BadRequest):
            server.submit("bad", prompt, 2)  # pyright: ignore[reportArgumentType]
    server.step()
    server.cancel("gone")
    while server.busy:
        server.step()
    assert server.finished == ["good"]
    assert server.free_pages == 32
    assert not server._known or all(server._users[page] for page in server._known.values())


@pytest.mark.parametrize("lives", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_lives_leak_no_page(model, monkeypatch, lives):
    """Without the model: requests come alike and different, are cancelled, fail, and are answered at random."""
    rng = random.Random(5)
    server = server_of(
        model, rows=8, num_pages=40, page_size=4, chunk=4, max_len=40, max_tokens=24, waiting=20, per_client=99
    )

    def answers(parts):
        if rng.random() < 0.02:
            raise RuntimeError("now and then")
        return [rng.randrange(3) for part in parts for _ in range(part.count)]

    monkeypatch.setattr(server, "_answers", answers)
    monkeypatch.setattr(server, "_move", lambda moves: None)
    begun = ended = 0
    alive: list[str] = []
    while begun < lives or server.busy:
        while begun < lives and rng.random() < 0.7:
            name = f"r{begun}"
            try:
                server.submit(name, [rng.randrange(2) for _ in range(rng.randint(1, 16))], rng.randint(1, 20))
            except BadRequest:
                break
            begun += 1
            alive.append(name)
        if alive and rng.random() < 0.1:
            name = rng.choice(alive)
            if name not in server.finished and name not in server.failed:
                server.cancel(name)
                ended += 1
                alive.remove(name)
        server.step()
        used = [page for request in server._running if request is not None for page in request.pages]
        assert server._users == [used.count(page) for page in range(40)]
        assert sorted(server._free) == [page for page in range(40) if page not in used]
        for name in server.finished:
            server.take(name)
            alive.remove(name)
            ended += 1
        for name in list(server.failed):
            server.failed.pop(name)
            alive.remove(name)
            ended += 1
    assert begun == ended == lives
    assert server.free_pages == 40
    assert not server._known
    assert not server._of_page
    assert not server.clients


@pytest.mark.parametrize(
    ("tokens", "room", "want"),
    [
        ([1, 2, 3, 4, 1, 2, 3], 2, [4]),
        ([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], 4, [5, 1, 4, 1]),
        ([1, 2, 3, 4], 2, []),
        ([1, 2, 3, 9, 1, 2, 3], 0, []),
        ([1], 3, []),
    ],
)
def test_a_guess_is_what_followed_before(tokens, room, want):
    assert guesses(tokens, room).tokens.tolist() == want
