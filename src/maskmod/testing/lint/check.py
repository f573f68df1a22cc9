"""The linter: what is wrong with a predicate, in the user's own file and line, with the rewrite.

`source` reads the text, `probes` run the predicate, and this module joins what they say.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from maskmod.algebra import Mask, MaskMod, Sizes, as_mask, device_of
from maskmod.analyser.expression import lanes_read
from maskmod.blocks.classify import classify_blocks
from maskmod.errors import MaskError, MaskShapeError, MaskTypeError, TruthValueError
from maskmod.oracle import vmap_mask
from maskmod.testing.cures import cure_of_break, cure_of_guard
from maskmod.testing.graphs import outputs_and_graphs
from maskmod.testing.lint.places import Place, place_of, plain_functions, return_place
from maskmod.testing.lint.probes import (
    failing_place,
    gathers_out_of_range,
    is_users,
    limits,
    narrow_overflows,
    quietly,
    recording,
    sizes_that_fit,
)
from maskmod.testing.lint.report import Facts, Finding, LintReport
from maskmod.testing.lint.source import Suspicion, suspicions

__all__ = ["check"]

_FIXED = "let the answer depend on the four indices and on fixed tensors alone"
LONGEST = 1 << 17  # lengths at which integers must still fit


def check(
    fn: MaskMod,
    *,
    B: int | None = None,
    H: int | None = None,
    q_len: int | None = None,
    kv_len: int | None = None,
    causal: bool = False,
    compiled: bool = True,
) -> LintReport:
    """Everything that is wrong, or worth knowing, about a predicate.

    It is run by vmap, by Dynamo under dynamic lengths, and by the analyser, and its source is read. A finding names
    the user's own line, the reason and the rewrite.

    Args:
        fn: any callable ``(b, h, q_idx, kv_idx) -> bool``; a factory is to be called first.
        B, H, q_len, kv_len: the sizes to check at; None takes sizes that the mask's tables reach. Passing H=1 says
            that one mask serves all heads, and a predicate that reads ``h`` is then a finding.
        causal: whether a query that sees a later key is an error.
        compiled: False leaves Dynamo out, which takes most of the time.

    >>> report = check(lambda b, h, q_idx, kv_idx: (kv_idx <= q_idx) & (q_idx - kv_idx < 8))
    >>> report.ok, report.facts.leaks_future, report.facts.opened
    (True, None, 0)
    """
    return _Check(fn, causal).run(B, H, q_len, kv_len, compiled)


class _Check:
    def __init__(self, fn: MaskMod, causal: bool):
        self.fn, self.causal = fn, causal
        self.findings: list[Finding] = []
        self.facts = Facts()
        self.suspected: list[Suspicion] = []

    def report(self) -> LintReport:
        order = {"error": 0, "warning": 1, "note": 2}
        unique = list(dict.fromkeys(self.findings))
        unique.sort(key=lambda f: order[f.level])
        return LintReport(_name(self.fn), tuple(unique), self.facts)

    def add(self, kind: str, level: str, place: Place | None, reason: str, rewrite: str) -> None:
        place = place or place_of(self.fn)
        self.findings.append(Finding(kind, level, *place, reason, rewrite))

    def run(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None, compiled: bool) -> LintReport:
        try:
            mask = as_mask(self.fn)
        except MaskError as error:
            self.add("arity", "error", place_of(self.fn), error.seen, error.todo)
            return self.report()
        with quietly():
            return self.probe(mask, B, H, q_len, kv_len, compiled)

    def probe(
        self, mask: Mask, B: int | None, H: int | None, q_len: int | None, kv_len: int | None, compiled: bool
    ) -> LintReport:
        self.suspected = suspicions(mask)
        before = _state(mask)
        sizes = sizes_that_fit(mask, B, H, q_len, kv_len)
        self.facts.sizes = (sizes.B, sizes.H, sizes.q_len, sizes.kv_len)
        truth = self.by_vmap(mask, sizes)
        self.by_recording(mask, sizes, truth is not None)
        if truth is not None:
            self.twice(mask, sizes, truth)
            self.by_classes(mask, sizes, truth)
        self.changed(mask, before)
        if compiled and truth is not None:
            self.by_dynamo(mask, sizes, truth)
        if H == 1 and "h" in self.facts.reads.split():
            reason = "it reads `h`, and is read with H=1: every head gets head 0's mask"
            self.add("head", "warning", None, reason, "pass H, the number of heads")
        self.from_source(truth is None)
        return self.report()

    # One probe each

    def by_vmap(self, mask: Mask, sizes: Sizes) -> Tensor | None:
        try:
            return vmap_mask(mask, *sizes).clone()
        except Exception as error:
            self.failed(error, "vmap")
            return None

    def failed(self, error: Exception, how: str) -> None:
        """One finding for one exception: the rewrites of the line that failed, or what the error says."""
        place = failing_place(error)
        text = str(error.__cause__ or error)
        if isinstance(error, MaskShapeError) and place is None:
            kind = "result" if "not a scalar" in error.seen else "shape"
            self.add(kind, "error", return_place(self.fn) if kind == "result" else place, f"{error.seen}", error.todo)
        elif isinstance(error, MaskTypeError) and "returned" in error.seen:
            self.add("result", "error", return_place(self.fn), error.seen, error.todo)
        elif isinstance(error, IndexError) and "out of" in text:
            B, H, q_len, kv_len = self.facts.sizes
            seen = f"an index is out of range at B={B} H={H} q_len={q_len} kv_len={kv_len}: {_first(text)}"
            self.add(
                "out-of-range",
                "error",
                place,
                seen,
                "clamp the index, and hide what lies past the table: (i < n) & table[i.clamp(max=n - 1)]",
            )
        elif "randomness" in text:
            self.add(
                "random",
                "error",
                place,
                "it draws random numbers anew at each call: block table and kernel would disagree",
                "draw a table once, outside the predicate, and index it",
            )
        elif (known := self.suspected_at(place)) is not None:
            self.add(known.kind, "error", known.place, known.reason, known.rewrite)
        elif isinstance(error, TruthValueError):
            self.add("truth-value", "error", place, error.seen, error.todo)
        else:
            self.add(
                "trace",
                "error",
                place,
                f"{how} cannot run it: {type(error).__name__}: {_first(text)}",
                "use torch functions of tensors only",
            )

    def suspected_at(self, place: Place | None) -> Suspicion | None:
        if place is None:
            return None
        for s in self.suspected:
            if s.place.file == place.file and s.place.line <= place.line <= s.last:
                return s
        return None

    def twice(self, mask: Mask, sizes: Sizes, truth: Tensor) -> None:
        again = vmap_mask(mask, *sizes)
        if not torch.equal(again, truth) and not any(f.kind == "random" for f in self.findings):
            known = next((s for s in self.suspected if s.kind in ("random", "mutation")), None)
            place = known.place if known else None
            self.add(
                known.kind if known else "random",
                "error",
                place,
                "the same call gives another answer the second time",
                known.rewrite if known else _FIXED,
            )

    def by_recording(self, mask: Mask, sizes: Sizes, runs: bool) -> None:
        noted = recording(mask, sizes)
        if noted.root is None:
            self.facts.why = noted.why
            if runs:
                self.add(
                    "not-analysed",
                    "note",
                    noted.place,
                    f"the analyser does not follow it ({noted.why}): every token is evaluated",
                    "see docs/fast_predicates.md for what it follows",
                )
            return
        self.facts.analysed = True
        read = lanes_read(noted.root)
        self.facts.reads = " ".join(name for lane, name in enumerate(("b", "h")) if lane in read)
        try:
            for kind, trouble in gathers_out_of_range(noted.root):
                place = noted.places.get(trouble.node.number)
                reason = f"{trouble.text}, at (b, h, q_idx, kv_idx) = {trouble.at}"
                if kind == "wraps":
                    self.add(
                        kind,
                        "warning",
                        place,
                        reason,
                        "clamp the index at 0, and hide that element: (i >= 0) & table[i.clamp(min=0)]",
                    )
                elif not any(f.kind == kind for f in self.findings):
                    self.add(
                        kind,
                        "error",
                        place,
                        reason,
                        "clamp the index, and hide what lies past the table: (i < n) & table[i.clamp(max=n - 1)]",
                    )
        except (IndexError, RuntimeError):
            return
        reach = [
            max(n, LONGEST) if most is None else n for n, most in zip(sizes[2:], limits(noted.root)[2:], strict=True)
        ]
        long = recording(mask, Sizes(sizes.B, sizes.H, *reach))
        if long.root is not None and runs:
            met: set[Place | None] = set()
            for trouble in narrow_overflows(long.root):
                place = long.places.get(trouble.node.number)
                if place not in met:
                    met.add(place)
                    reason = f"integer overflow: {trouble.text}, at (b, h, q_idx, kv_idx) = {trouble.at}"
                    self.add("overflow", "warning", place, reason, "compute it in int64: `.long()` on the index first")

    def by_classes(self, mask: Mask, sizes: Sizes, truth: Tensor) -> None:
        self.facts.visible = float(truth.float().mean()) if truth.numel() else 0.0
        start = time.process_time()
        sound = classify_blocks(mask, *sizes, exact=False)
        self.facts.analysis_ms = (time.process_time() - start) * 1e3
        exact = classify_blocks(mask, *sizes)
        self.facts.blocks = sound.partial.numel()
        self.facts.opened = int((sound.partial & ~exact.partial).sum()) if self.facts.analysed else self.facts.blocks
        later = truth & ~torch.ones(sizes.q_len, sizes.kv_len, dtype=torch.bool, device=truth.device).tril()
        where = later.nonzero()
        if where.shape[0]:
            self.facts.leaks_future = tuple(where[0].tolist())
            if self.causal:
                b, h, q, kv = where[0].tolist()
                self.add(
                    "leak",
                    "error",
                    None,
                    f"query {q} sees key {kv}, which comes later (b={b}, h={h})",
                    "combine it with causal(): causal() & mask",
                )
        nothing = (~truth.any(-1)).nonzero()
        if nothing.shape[0]:
            b, h, q = nothing[0].tolist()
            more = f" (and {nothing.shape[0] - 1} more)" if nothing.shape[0] > 1 else ""
            reason = f"query {q} of b={b}, h={h}{more} sees no key: a softmax over nothing is NaN"
            todo = (
                "nothing for maskmod.attention, which gives zero; elsewhere let it see itself: mask | (q_idx == kv_idx)"
            )
            self.add("empty-row", "note", None, reason, todo)

    def by_dynamo(self, mask: Mask, sizes: Sizes, truth: Tensor) -> None:
        def probe(x: Tensor) -> Tensor:
            return vmap_mask(mask, sizes.B, sizes.H, x.shape[0], x.shape[1]).logical_and(x == 0)

        # Lengths alike or unalike as the first, and none that a table has: Dynamo takes equal ones for the same.
        taken = {size for tensor in mask.tensors() for size in tensor.shape}
        lengths = [(sizes.q_len - i, sizes.kv_len - i) for i in range(1, min(sizes[2:]) - 1)]
        lengths = [pair for pair in lengths if not taken & set(pair)][:3] or [(sizes.q_len, sizes.kv_len)]
        calls = [(torch.zeros(q, kv, device=device_of(mask, None)),) for q, kv in lengths]
        try:
            outputs, report = outputs_and_graphs(probe, calls, dynamic=True)
        except Exception as error:
            self.failed(error, "Dynamo")
            return
        self.facts.graphs = report.graphs
        for found in report.breaks:
            place = Place(found.file, found.line, found.code) if is_users(found.file) else None
            known = self.suspected_at(place)
            if known is not None:
                self.add(known.kind, "error", known.place, known.reason, known.rewrite)
            else:
                self.add(
                    "graph-break",
                    "error",
                    place,
                    f"it breaks the graph: {_first(found.reason)}",
                    cure_of_break(found.reason),
                )
        if report.breaks or any(f.kind in ("random", "mutation") for f in self.findings):
            return  # which explains whatever follows
        for found in report.recompiles:
            guard = found.guards[0] if found.guards else ""
            self.add("recompile", "warning", None, f"another length takes another graph: {guard}", cure_of_guard(guard))
        truth = truth[..., : lengths[0][0], : lengths[0][1]]
        if not torch.equal(outputs[0], truth):
            at = tuple((outputs[0] != truth).nonzero()[0].tolist())
            said = f"it says {bool(outputs[0][at])} at (b, h, q_idx, kv_idx) = {at} compiled, {bool(truth[at])} eagerly"
            self.add("compiled-differs", "error", return_place(self.fn), said, _FIXED)

    def changed(self, mask: Mask, before: dict[str, Any]) -> None:
        after = _state(mask)
        for name, value in after.items():
            if name in before and before[name] != value:
                known = next((s for s in self.suspected if s.kind == "mutation"), None)
                place, rewrite = (known.place, known.rewrite) if known else (None, "compute a new value, and return it")
                self.add("mutation", "error", place, f"a call changes {name}, which outlives it", rewrite)

    def from_source(self, failed: bool) -> None:
        """What the source shows and no probe met."""
        for s in self.suspected:
            if any(f.file == s.place.file and f.line == s.place.line and f.kind == s.kind for f in self.findings):
                continue
            level = "error" if failed and s.kind in ("truth-value", "table") else "warning"
            self.add(s.kind, level, s.place, s.reason, s.rewrite)


def _state(mask: Mask) -> dict[str, Any]:
    """What a call might change: versions of tensors, and what its functions hold."""
    state: dict[str, Any] = {f"tensor {i}": (id(t), t._version) for i, t in enumerate(mask.tensors())}
    for plain in plain_functions(mask):
        held = dict(zip(plain.function.__code__.co_freevars, plain.function.__closure__ or (), strict=True))
        for name, cell in held.items():
            try:
                state[f"`{name}`"] = _spelled(cell.cell_contents)
            except ValueError:
                continue
        for name in plain.function.__code__.co_names:
            if name in plain.function.__globals__ and not callable(plain.function.__globals__[name]):
                state[f"`{name}`"] = _spelled(plain.function.__globals__[name])
        if not isinstance(plain.held, (Mask, torch.nn.Module)):
            for name, value in getattr(plain.held, "__dict__", {}).items():
                state[f"`self.{name}`"] = _spelled(value)
    return state


def _spelled(value: Any) -> Any:
    if isinstance(value, Tensor):
        return id(value), value._version
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    if isinstance(value, (list, tuple, dict, set)):
        return id(value), len(value)
    return id(value)


def _first(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= 160 else line[:157] + "..."


def _name(fn: Any) -> str:
    return repr(fn) if isinstance(fn, Mask) else getattr(fn, "__qualname__", type(fn).__qualname__)
