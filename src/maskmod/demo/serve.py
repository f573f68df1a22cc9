"""``python -m maskmod demo serve``: requests come and go while the server runs, and every answer is checked.

Each answer must be, token for token, what the uncompiled model writes for that request alone, without cache or batch.
The same calls go to two servers: one flat step for all requests, and rows by columns, in two graphs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass

import torch

from maskmod import causal
from maskmod.demo.flat_server import FlatServer
from maskmod.demo.generate import generate_uncompiled
from maskmod.demo.model import Config, Model
from maskmod.demo.server import BadRequest, Counts, Server
from maskmod.demo.text import documents, left_padded, packed, text_from
from maskmod.demo.train import train
from maskmod.testing import watch_graphs

__all__ = ["Call", "Comparison", "Served", "calls_from", "run", "serve"]

SEED = 0
ROW_LEN = 512
STEPS = 120  # a quarter of a minute of training: words begin to repeat, so drafts are right now and then
REQUESTS = 14
LATE = 3  # steps between arrivals, once the first few are there


@dataclass(frozen=True)
class Call:
    """A request that arrives at a step, and may be cancelled at a later one."""

    at: int
    name: str
    prompt: str
    new_tokens: int
    cancelled_at: int | None = None


@dataclass(frozen=True)
class Served:
    """What came of it; `ok` decides the command's exit code."""

    torch: str
    answered: int
    equal: int  # answers that are, token for token, the uncompiled model's
    refused: dict[str, str]  # by name: why
    cancelled: int
    chunk_graphs: int  # of a step of prompts and drafts; the flat server's only one
    token_graphs: int  # of a step with one token a row
    recompiles: int  # after the first step in each graph
    reasons: list[str]
    counts: Counts
    pages: int
    pages_left: int  # free at the end: all of them
    closest_decision: float  # least lead of the best logit over the second in the uncompiled runs
    tokens_per_second: float
    samples: list[str]
    flat: bool = False

    @property
    def ok(self) -> bool:
        right = (1, 0) if self.flat else (1, 1)
        graphs = (self.chunk_graphs, self.token_graphs) == right and not self.recompiles
        return self.equal == self.answered > 0 and graphs and self.pages_left == self.pages

    def to_json(self) -> str:
        return json.dumps({"ok": self.ok, **asdict(self)}, indent=2)

    def table(self) -> Iterator[str]:
        counts = self.counts
        reused = counts.pages_taken / self.pages
        yield f"answers             {self.answered}, of which {self.equal} equal the uncompiled model's alone"
        yield f"refused, cancelled  {len(self.refused)}, {self.cancelled}"
        if self.flat:
            yield f"graphs              {self.chunk_graphs}"
        else:
            yield f"graphs              {self.chunk_graphs} of a chunk a row, {self.token_graphs} of a token a row"
        yield f"recompiles          {self.recompiles}"
        several = "with several tokens of a request" if self.flat else "of a chunk a row"
        yield f"steps               {counts.steps}, {counts.chunk_steps} of them {several}"
        yield f"new tokens          {counts.new_tokens}, {self.tokens_per_second:,.0f} a second"
        yield f"drafts              {counts.drafted} tokens, {counts.accepted} accepted"
        shared = f", {counts.pages_shared} shared" if self.flat else ""
        at_once = f"at most {counts.pages_at_once} at once"
        yield f"pages               {self.pages}, {at_once}, {reused:.1f} uses of each{shared}"
        yield from self.reasons


def calls_from(texts: list[str]) -> list[Call]:
    """Requests of many lengths, some of them bad, some of them given up."""
    calls = []
    for number in range(REQUESTS):
        prompt = texts[number * 5][: 6 + (number * 29) % 70]
        at = max(0, number - 5) * LATE
        calls.append(Call(at, f"r{number}", prompt, 8 + (number * 17) % 40, at + 6 if number % 6 == 4 else None))
    bad = [
        ("empty", "", 8),
        ("too long", texts[1][:80] * 3, 8),
        ("r0", texts[2][:20], 8),
        ("nothing", texts[2][:20], 0),
    ]
    alike = [Call(6 + 2 * n, f"alike{n}", texts[3][:40] + texts[4 + n][:9], 12) for n in range(3)]
    return calls + alike + [Call(4, *fields) for fields in bad]


def serve(server: Server, calls: list[Call], reference: dict[str, list[int]], closest: float) -> Served:
    """Run the calls as they arrive; then compare."""
    refused: dict[str, str] = {}
    cancelled, step, pending = 0, 0, sorted(calls, key=lambda call: call.at)
    pages = server.free_pages
    graphs = []
    flat = isinstance(server, FlatServer)
    warm = [[1, 2, 3]] if flat else [[1, 2, 3], [1]]  # a step of a chunk a row, then one of a token a row
    for prompt in warm:
        with watch_graphs() as warm_up:
            server.submit("warm-up", prompt, 1)
            server.step()
            server.take("warm-up")
        graphs.append(warm_up.graphs)
    server.counts = Counts()
    start = time.perf_counter()
    with watch_graphs() as after:
        while pending or server.busy:
            while pending and pending[0].at <= step:
                call = pending.pop(0)
                try:
                    server.submit(call.name, list(call.prompt.encode()), call.new_tokens)
                except BadRequest as error:
                    refused[call.name] = str(error)
            for call in calls:
                if call.cancelled_at == step:
                    with suppress(BadRequest):  # it never came in, or is done
                        server.cancel(call.name)
                        cancelled += 1
            server.step()
            step += 1
    seconds = time.perf_counter() - start
    answers = {name: server.take(name) for name in server.finished}
    return Served(
        torch=torch.__version__,
        answered=len(answers),
        equal=sum(answer == reference[name] for name, answer in answers.items()),
        refused=refused,
        cancelled=cancelled,
        chunk_graphs=graphs[0],
        token_graphs=0 if flat else graphs[1],
        recompiles=max(after.graphs, len(after.recompiles)),
        reasons=[str(each) for each in after.recompiles],
        counts=server.counts,
        pages=pages,
        pages_left=server.free_pages,
        closest_decision=closest,
        tokens_per_second=server.counts.new_tokens / seconds,
        samples=[text_from(torch.tensor(answer)) for answer in list(answers.values())[:3]],
        flat=flat,
    )


def alone(model: Model, calls: list[Call]) -> tuple[dict[str, list[int]], float]:
    """What the uncompiled model writes for each good call by itself, and its closest decision."""
    answers, closest = {}, float("inf")
    for call in calls:
        if call.prompt and call.new_tokens > 0 and call.name not in answers:
            prompt = left_padded([call.prompt], len(call.prompt.encode()))
            tokens, lead = generate_uncompiled(model, prompt, causal(), call.new_tokens)
            answers[call.name] = tokens[0].tolist()
            closest = min(closest, lead)
    return answers, closest


@dataclass(frozen=True)
class Comparison:
    """The flat server, and the rows by columns that it is compared with, on the same calls."""

    flat: Served
    rows: Served

    @property
    def ok(self) -> bool:
        return self.flat.ok and self.rows.ok

    def to_json(self) -> str:
        return json.dumps({"ok": self.ok, **asdict(self.flat), "rows_by_columns": asdict(self.rows)}, indent=2)


def run(say: Callable[[str], None]) -> Comparison:
    """Train, serve, compare; ``say`` gets each line of text as it becomes known."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small gain nothing from more
    try:
        texts = documents()
        say(f"Training {STEPS} steps on {len(texts)} paragraphs.")
        model = train(Config(), packed(texts, ROW_LEN, seed=SEED), steps=STEPS, seed=SEED, report=lambda loss: None)
        calls = calls_from(texts)
        say(f"Writing {REQUESTS} answers one by one, uncompiled, to compare with.")
        reference, closest = alone(model, calls)
        server = FlatServer(model)
        say(
            f"\nServing flat: at most {server.rows} requests at a time, {server.max_tokens} tokens a step, from "
            f"{server.free_pages} pages.\n"
        )
        flat = serve(server, calls, reference, closest)
        for line in flat.table():
            say(f"  {line}")
        for name, reason in flat.refused.items():
            say(f"  refused {name!r}: {reason}")
        rows_server = Server(model)
        say(f"\nThe same calls in rows by columns, in chunks of {rows_server.chunk}.\n")
        served = Comparison(flat, serve(rows_server, calls, reference, closest))
        for line in served.rows.table():
            say(f"  {line}")
        say(f"\n{'Passed' if served.ok else 'FAILED'}.")
        return served
    finally:
        torch.set_num_threads(threads)
