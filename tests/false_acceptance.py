"""No layout may take a mask and say another: random masks over all of them, as many as asked for.

    python tests/false_acceptance.py --count 100000 [--first 0]

Each mask is lowered to a few forms in turn; what is taken is read back and compared with the truth, what is refused
must name an element that exists. The count of either is printed for each form, and the first fault ends the run.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import torch

from layouts import FORMS, Form
from maskmod import vmap_mask
from maskmod.analyser.reading import Reading, read
from maskmod.backends import registry
from maskmod.backends.refusals import Inexpressible

__all__ = ["Tally", "run"]

LENGTHS = (1, 2, 3, 4, 6, 8, 8, 12)
FORMS_A_MASK = 2


class Tally(collections.Counter):
    """(form, "taken" or "refused") to how often."""


def run(first: int, count: int) -> Tally:
    """Check `count` masks by their seeds from `first` on.

    Raises:
        AssertionError: a mask was taken for another; the text says how to build it again.
    """
    tally = Tally()
    for seed in range(first, first + count):
        mask, sizes = random_mask(seed)
        reading, truth = read(mask, *sizes), vmap_mask(mask, *sizes)
        for turn in range(FORMS_A_MASK):
            form = FORMS[(seed * FORMS_A_MASK + turn) % len(FORMS)]
            taken = _is_exact(form, reading, truth, seed)
            tally[str(form), "taken" if taken else "refused"] += 1
    return tally


def _is_exact(form: Form, reading: Reading, truth: torch.Tensor, seed: int) -> bool:
    backend = registry.get(form.name)
    if form.name == "sglang" and reading.sizes.kv_len < reading.sizes.q_len:
        return False  # drafts are keys too
    try:
        args = backend.lower(reading, dtype=torch.float32, **form.options)
    except Inexpressible as refused:
        truth[refused.element]  # it exists
        return False
    if not torch.equal(backend.read_back(args), truth):
        raise AssertionError(f"{form} takes random_mask({seed}) for another")
    return True


def random_mask(seed: int) -> tuple[Any, tuple[int, int, int, int]]:
    """A small random mask and its sizes: an expression of atoms, or a table with some order in it."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    B, H = rng.choice((1, 1, 2)), rng.choice((1, 1, 1, 2))
    q_len = rng.choice(LENGTHS)
    kv_len = q_len if rng.random() < 0.5 else rng.choice(LENGTHS)
    n = max(q_len, kv_len)
    names = {
        "torch": torch,
        "ids": torch.randint(0, 3, (n,), generator=generator).sort()[0],
        "mixed": torch.randint(0, 3, (B, n), generator=generator),
        "ends": torch.randint(0, n + 2, (n,), generator=generator),
        "flag": torch.randint(0, 3, (B, n), generator=generator) > 0,
        "near": torch.randint(-2, 3, (H,), generator=generator),
        "table": torch.rand((B, q_len, kv_len), generator=generator) < rng.choice((0.1, 0.5, 0.9)),
        "blocks": torch.rand((H, n, n), generator=generator) < 0.6,
    }
    source = _expression(rng, rng.choice((0, 1, 1, 2)))
    return eval(f"lambda b, h, q, k: {source}", names), (B, H, q_len, kv_len)


def _expression(rng: random.Random, depth: int) -> str:
    if depth == 0:
        n = rng.randint
        return rng.choice(
            (
                "(k <= q)",
                f"(k <= q + {n(-3, 5)})",
                f"(q - k < {n(1, 5)})",
                f"((q - k).abs() <= {n(0, 4)})",
                f"(k < {n(0, 9)})",
                f"(q >= {n(0, 9)})",
                f"(q // {n(1, 4)} == k // {n(1, 4)})",
                f"((q + k) % {n(1, 4)} == 0)",
                "(ids[q] == ids[k])",
                "(ids[k] <= ids[q])",
                "(mixed[b, q] == mixed[b, k])",
                "(q < ends[k])",
                "(k < ends[q])",
                "flag[b, k]",
                "flag[b, q]",
                "(k <= q + near[h])",
                "(table[b, q, k])",
                "blocks[h, q // 4, k // 2]",
                "torch.ones((), dtype=torch.bool)",
            )
        )
    a, b = _expression(rng, depth - 1), _expression(rng, rng.randint(0, depth - 1))
    return rng.choice((f"({a} & {b})", f"({a} & {b})", f"({a} | {b})", f"({a} ^ {b})", f"(~{a})"))


def _lines(tally: Tally) -> Iterator[str]:
    for form in map(str, FORMS):
        yield f"{form:45} {tally[form, 'taken']:7} taken {tally[form, 'refused']:7} refused"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    begin = time.process_time()
    found = run(options.first, options.count)
    if options.json:
        print(json.dumps({f"{form} {what}": n for (form, what), n in sorted(found.items())}))
    else:
        print("\n".join(_lines(found)))
        print(f"{options.count} masks, {sum(found.values())} lowerings, no fault, {time.process_time() - begin:.0f} s")
