"""What the linter found, as values and as text. This module looks at no function."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Facts", "Finding", "LintReport"]


@dataclass(frozen=True)
class Finding:
    """One thing about a predicate, with the user's own line, why it matters, and what to write instead.

    Args:
        kind: a short name, the same for every predicate: ``"truth-value"``, ``"out-of-range"``.
        level: ``"error"``: wrong, or refused somewhere; ``"warning"``: wrong for some sizes, or on some backend;
            ``"note"``: right, and worth knowing.
        file, line: where, in the user's own code; line 0 where there is no source.
        code: that line.
        reason: what happens there.
        rewrite: what to write instead.
    """

    kind: str
    level: str
    file: str
    line: int
    code: str
    reason: str
    rewrite: str

    def __str__(self) -> str:
        lines = [f"{self.file}:{self.line}: {self.level}: {self.reason} [{self.kind}]"]
        if self.code:
            lines.append(f"    {self.code}")
        lines.append(f"    write: {self.rewrite}")
        return "\n".join(lines)


@dataclass
class Facts:
    """What is true of a predicate that is no fault.

    Args:
        sizes: (B, H, q_len, kv_len) it was checked at.
        reads: which of b and h it reads.
        leaks_future: a ``(b, h, q_idx, kv_idx)`` that is visible although the key comes later, or None.
        visible: the visible share of all pairs, 0..1.
        analysed: whether the analyser records it; ``why`` says why not.
        blocks, opened: how many blocks of 128 there are, and how many of them had to be evaluated token by token.
        graphs: graphs that Dynamo made for several lengths, compiled with ``dynamic=True``.
        analysis_ms: CPU time of `classify_blocks` at these sizes.
    """

    sizes: tuple[int, int, int, int] = (1, 1, 0, 0)
    reads: str = ""
    leaks_future: tuple[int, int, int, int] | None = None
    visible: float | None = None
    analysed: bool = False
    why: str = ""
    blocks: int = 0
    opened: int = 0
    graphs: int | None = None
    analysis_ms: float | None = None

    def __str__(self) -> str:
        B, H, q_len, kv_len = self.sizes
        parts = [f"checked at B={B} H={H} q_len={q_len} kv_len={kv_len}"]
        if self.reads:
            parts.append(f"reads {self.reads}")
        if self.visible is not None:
            parts.append(f"{self.visible:.1%} visible")
        if self.leaks_future is not None:
            b, h, q, kv = self.leaks_future
            parts.append(f"sees later keys: query {q} sees key {kv} (b={b}, h={h})")
        elif self.visible is not None:
            parts.append("never sees a later key")
        if self.visible is None:
            return "; ".join(parts)  # it does not run
        if self.analysed:
            parts.append(f"analysed: {self.opened} of {self.blocks} blocks opened, {self.analysis_ms:.1f} ms")
        elif self.why:
            parts.append(f"not analysed ({self.why})")
        if self.graphs is not None:
            parts.append(f"{self.graphs} graph{'s' * (self.graphs != 1)} for several lengths")
        return "; ".join(parts)


@dataclass
class LintReport:
    """What `check` found. ``ok`` unless there is an error or a warning; ``str()`` gives the readable account."""

    name: str
    findings: tuple[Finding, ...] = ()
    facts: Facts = field(default_factory=Facts)

    @property
    def ok(self) -> bool:
        return all(finding.level == "note" for finding in self.findings)

    def __str__(self) -> str:
        faults = sum(finding.level != "note" for finding in self.findings)
        verdict = "ok" if self.ok else f"{faults} finding{'s' * (faults != 1)}"
        return "\n".join([*map(str, self.findings), f"{self.name}: {verdict}; {self.facts}"])

    def to_json(self) -> str:
        """Everything, for a program to read."""
        content: dict[str, Any] = {"name": self.name, "ok": self.ok}
        content["findings"] = [asdict(finding) for finding in self.findings]
        content["facts"] = asdict(self.facts)
        return json.dumps(content, indent=2)
