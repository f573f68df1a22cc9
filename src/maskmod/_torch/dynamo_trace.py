"""Reads the structured trace that Dynamo writes while it compiles, and hides and restores Dynamo's memory.

The trace is the stream that ``tlparse`` reads. This module knows nothing about masks, and compiles and calls
nothing. For :mod:`maskmod.testing` it is the one place that holds torch's private names and message formats.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from textwrap import indent
from typing import Any

import torch
import torch._dynamo
from torch._dynamo import convert_frame, eval_frame, pgo
from torch._dynamo import utils as dynamo_utils

__all__ = ["GraphBreak", "GraphReport", "Recompile", "Trace", "blank_dynamo", "listening"]


@dataclass(frozen=True)
class GraphBreak:
    """One place where Dynamo left the graph: the innermost line of the user's, never one of torch's own."""

    reason: str
    file: str
    line: int
    function: str
    code: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}: {self.code}\n{indent(self.reason, '    ')}"


@dataclass(frozen=True)
class Recompile:
    """One time that Dynamo had graphs for a function and none fitted.

    ``guards`` holds one line for each of those graphs, newest first: the guard that failed and, in
    ``count_graphs``, the inputs that changed. ``call`` counts from 1; it is 0 in ``watch_graphs``, which sees
    no calls. ``refused``: the recompile limit was reached, no graph was made, and Dynamo went on eagerly.
    """

    function: str
    file: str
    line: int
    guards: tuple[str, ...]
    call: int
    refused: bool

    def __str__(self) -> str:
        where = f"call {self.call}, {self.function}" if self.call else self.function
        if self.file:
            where += f" ({self.file}:{self.line})"
        limit = f"; refused, torch._dynamo.config.recompile_limit is {torch._dynamo.config.recompile_limit}"
        more = [f"and {len(self.guards) - 3} more"] * (len(self.guards) > 3)
        return "\n    ".join([where + limit * self.refused, *self.guards[:3], *more])


@dataclass
class GraphReport:
    """What Dynamo did; ``str()`` gives the readable account.

    Args:
        graphs: graphs compiled.
        breaks: every distinct graph break.
        recompiles: every recompile, refused ones included.
        eager_calls: calls (from 1) in which no graph ran, past the recompile limit or because a break made
            Dynamo skip the function. Calls are known in ``count_graphs`` only.
        frames: functions, and rests of functions after a break, that Dynamo traced.
    """

    graphs: int = 0
    breaks: list[GraphBreak] = field(default_factory=list)
    recompiles: list[Recompile] = field(default_factory=list)
    eager_calls: list[int] = field(default_factory=list)
    frames: int = 0

    def __str__(self) -> str:
        counts = len(self.breaks), len(self.recompiles)
        lines = ["graphs: {}, graph breaks: {}, recompiles: {}".format(self.graphs, *counts)]
        lines += [indent(f"graph break: {each}", "  ") for each in self.breaks]
        lines += [indent(f"recompile: {each}", "  ") for each in self.recompiles]
        if self.eager_calls:
            lines.append(f"  calls that ran eagerly, without any graph: {self.eager_calls}")
        return "\n".join(lines)


@contextmanager
def blank_dynamo(backend: Callable) -> Iterator[None]:
    """Hide what Dynamo remembers of earlier compilations, and forget those of the block when it ends."""
    profiles = pgo._CODE_STATE, pgo._INIT_CODE_STATE
    counters = {name: Counter(counts) for name, counts in dynamo_utils.counters.items()}
    failures = {code: list(reasons) for code, reasons in dynamo_utils.guard_failures.items()}
    breaks, codes = len(dynamo_utils.graph_break_reasons), len(convert_frame.input_codes.seen)
    # Automatic dynamic shapes are remembered by file and line, so even a new code object would inherit them.
    pgo._CODE_STATE, pgo._INIT_CODE_STATE = defaultdict(pgo.CodeState), None
    try:
        yield
    finally:
        pgo._CODE_STATE, pgo._INIT_CODE_STATE = profiles
        dynamo_utils.counters.clear()
        dynamo_utils.counters.update(counters)
        dynamo_utils.guard_failures.clear()
        dynamo_utils.guard_failures.update(failures)
        del dynamo_utils.graph_break_reasons[breaks:]
        for key, cached in list(eval_frame.cached_backends.items()):
            if getattr(cached, "compiler_fn", cached) is backend:
                del eval_frame.cached_backends[key]
        # Code that Dynamo had not met before the block holds no graphs but ours.
        for reference in convert_frame.input_codes.seen[codes:]:
            if (code := reference()) is not None:
                eval_frame.reset_code(code)
                convert_frame.input_codes.seen_ids.discard(id(code))
        del convert_frame.input_codes.seen[codes:]


@contextmanager
def listening() -> Iterator[Trace]:
    trace, logger = Trace(), logging.getLogger("torch.__trace")
    logger.addHandler(trace)
    try:
        yield trace
    finally:
        logger.removeHandler(trace)


class Trace(logging.Handler):
    """Turns the records of Dynamo's structured trace into a report."""

    def __init__(self) -> None:
        super().__init__()
        self.report = GraphReport()
        self.inputs: list[dict[str, str]] = [{}]  # of each call; calls count from 1
        self.call_of: dict[str, int] = {}  # compile id "frame/attempt" -> the call that compiled it
        self.graphs: set[str] = set()
        self.recompiles: dict[str, Recompile] = {}
        self.places: dict[str, tuple[str, str, int]] = {}  # of each frame: function, file, line

    def emit(self, record: logging.LogRecord) -> None:
        metadata: dict[str, Any] = record.__dict__["metadata"]
        payload: str = record.__dict__["payload"] or ""
        kind = next(iter(metadata))
        about = metadata[kind]
        if kind == "artifact":
            kind = about["name"]
        frame = str(metadata.get("frame_id"))
        compile_id = f"{frame}/{metadata.get('frame_compile_id')}"
        if kind == "dynamo_start":
            self.report.frames += 1
            self.call_of[compile_id] = len(self.inputs) - 1
            self._amend(compile_id, refused=False)
        elif kind == "dynamo_output_graph":
            self.graphs.add(compile_id)  # a restarted trace says it twice
            self.report.graphs = len(self.graphs)
        elif kind == "dynamo_graph_break_reason":
            self._add_break(payload)
        elif kind == "recompile_reasons":
            self._add_recompile(payload, compile_id, self.places.get(frame, ("a function", "", 0)))
        elif kind == "compilation_metrics" and about.get("co_name"):
            function, file, line = about["co_name"], about["co_filename"], about["co_firstlineno"]
            file = "" if file.startswith(_NOT_THE_USERS[1]) else file
            self.places[frame] = function, file, line
            self._amend(compile_id, function=function, file=file, line=line)

    def _amend(self, compile_id: str, **changes: Any) -> None:
        if compile_id in self.recompiles:
            self.recompiles[compile_id] = replace(self.recompiles[compile_id], **changes)
            self.report.recompiles[:] = self.recompiles.values()

    def _add_recompile(self, text: str, compile_id: str, place: tuple[str, str, int]) -> None:
        reasons = json.loads(text) if text.startswith("[\n") else [text]
        guards = tuple(guard for reason in reasons if (guard := self._guard(reason)))
        if guards:
            # Past the limit Dynamo gives its reasons and then never starts; a start amends this.
            self.recompiles[compile_id] = Recompile(*place, guards, len(self.inputs) - 1, refused=True)
            self.report.recompiles[:] = self.recompiles.values()

    def _add_break(self, text: str) -> None:
        reason, _, stack = text.partition("User code traceback:\n")
        reason = reason.partition("Graph Break Reason: ")[2] or reason
        # Dynamo leads with which bytecode it was at and ends with notes for its own developers.
        reason = re.sub(r"\A(Encountered|Failed to handle) .*?:\n\n", "", reason, flags=re.DOTALL)
        reason = re.sub(r"\n\s*(Developer debug context:|For more details).*", "", reason, flags=re.DOTALL)
        found = GraphBreak(re.sub(r"\n\s*\n", "\n", reason).strip(), *_users_frame(stack))
        if found not in self.report.breaks:  # every recompile of the function meets it again
            self.report.breaks.append(found)

    def _guard(self, reason: str) -> str:
        text, _, stack = reason.partition("\nUser stack trace:\n")
        compile_id, _, text = text.partition(": ")
        text = re.sub(r"\s+# .*", "", text, flags=re.DOTALL).strip()
        if stack:
            file, line, *_ = _users_frame(stack)
            text += f" (read at {file}:{line})"
        if len(self.inputs) == 1:
            return text
        if compile_id not in self.call_of:
            return ""  # a graph of the user's own compiled function, under another backend
        earlier, now = self.inputs[self.call_of[compile_id]], self.inputs[-1]
        changed = [
            f"{name}: {earlier.get(name, 'absent')} -> {now.get(name, 'absent')}"
            for name in {**earlier, **now}
            if earlier.get(name) != now.get(name)
        ]
        changes = f" [{'; '.join(changed[:8])}]" if changed else ""
        return f"not the graph of call {self.call_of[compile_id]}: {text}{changes}"


_NOT_THE_USERS = (
    os.path.join(os.path.dirname(torch.__file__), ""),
    os.path.join(os.path.dirname(os.path.dirname(__file__)), "testing", ""),
)
_FRAME = re.compile(r'^ *File "(.+?)", line (\d+), in (.+)\n?(?: +(.+))?', re.MULTILINE)


def _users_frame(stack: str) -> tuple[str, int, str, str]:
    """File, line, function and code of the innermost frame that is neither torch's nor an assertion's."""
    stack = stack.partition("\n\n")[0]  # an internal traceback of Dynamo follows
    frames = _FRAME.findall(stack) or [("unknown file", "0", "unknown function", "")]
    users = [frame for frame in frames if not frame[0].startswith(_NOT_THE_USERS)]
    file, line, function, code = (users or frames)[-1]
    return file, int(line), function, code
