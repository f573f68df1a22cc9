"""Times one mask: what its blocks and its dense form cost, beside torch's own builder and the plain lift.

CPU time of this process, the median of a few calls after one that is not counted; the peers take turns. They evaluate
every token, and are left out past `PEERS_UP_TO`.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch.nn.attention.flex_attention import create_block_mask

from maskmod.algebra import Mask
from maskmod.blocks.block_mask import block_mask
from maskmod.dense import dense_mask
from maskmod.facts.tiles import classify_tiles
from maskmod.oracle import vmap_mask

__all__ = ["Timing", "as_json", "as_table", "timings"]

PEERS_UP_TO = 4096
DENSE_UP_TO = 8192
ROUNDS = 3


class Timing(NamedTuple):
    """Milliseconds of CPU time; ``peer_ms`` is None where the peer is left out."""

    what: str
    length: int
    ms: float
    peer: str
    peer_ms: float | None

    @property
    def ratio(self) -> float | None:
        """The peer's time as a multiple of ours."""
        return None if self.peer_ms is None else self.peer_ms / max(self.ms, 1e-6)


def timings(mask: Mask, B: int, H: int, lengths: list[int]) -> Iterator[Timing]:
    """One line a reader and a length, as soon as it is measured."""
    for n in lengths:
        sizes = (B, H, n, n)
        theirs = lambda s=sizes: create_block_mask(mask, *s, device="cpu")  # noqa: E731
        yield _timing("block_mask", n, lambda s=sizes: block_mask(mask, *s), "create_block_mask", theirs)
        yield _timing("classify_tiles", n, lambda s=sizes: classify_tiles(mask, *s), "", None)
        if n <= DENSE_UP_TO:
            lift = lambda s=sizes: vmap_mask(mask, *s)  # noqa: E731
            yield _timing("dense_mask", n, lambda s=sizes: dense_mask(mask, *s), "vmap_mask", lift)


def _timing(what: str, length: int, ours: Callable, peer: str, theirs: Callable | None) -> Timing:
    if length > PEERS_UP_TO:
        theirs = None
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for call in range(ROUNDS + 1):
        for name, function in (("ours", ours), ("theirs", theirs)):
            if function is not None:
                start = time.process_time()
                function()
                if call:
                    times[name].append((time.process_time() - start) * 1e3)
    middle = statistics.median(times["theirs"]) if times["theirs"] else None
    return Timing(what, length, statistics.median(times["ours"]), peer if theirs is not None else "", middle)


def as_table(rows: list[Timing]) -> str:
    """The timings as text, a line each."""
    lines = [f"{'reader':<15} {'tokens':>9} {'ms':>10}  peer"]
    for row in rows:
        peer = f"{row.peer} {row.peer_ms:.1f} ms, {row.ratio:.0f} times" if row.peer_ms is not None else "-"
        lines.append(f"{row.what:<15} {row.length:>9} {row.ms:>10.2f}  {peer}")
    return "\n".join(lines)


def as_json(rows: list[Timing]) -> str:
    """The timings as JSON, with the ratios."""
    return json.dumps([{**row._asdict(), "ratio": row.ratio} for row in rows], indent=2)
