"""`python -m benchmarks.proofs`: proofs at a million tokens, and each layout's lowering at 131072, CPU seconds and MB.

Each figure is taken in a process of its own, on one thread: CPU time of the first call after a small one has warmed up
the interpreter, and what the peak of resident memory rose by. Peers are public builders that run on a CPU, at lengths
that they reach; most layouts have none that runs there.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from maskmod import (
    causal,
    column_spans,
    document,
    equal,
    leaks_future,
    lower,
    row_spans,
    sinks,
    sliding_window,
)

LONG, MIDDLE, SHORT = 1 << 20, 1 << 17, 1 << 14


def _ids(n: int) -> torch.Tensor:
    """Documents of about 4000 tokens."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(n, generator=generator) < 1 / 4000).cumsum(0)


def _bagel(n: int, *, leaks: bool) -> Any:
    """A mask like BAGEL's: text is causal, some spans see themselves throughout, noise is seen by itself alone."""
    ids = _ids(n)
    document_ids, kind = ids // 9, ids % 9
    whole = torch.where(kind == 3, ids, -1) if leaks else torch.full_like(ids, -1)
    noise = torch.where(kind == 7, ids, -1)

    def seen(b, h, q_idx, kv_idx):
        same = (whole[q_idx] == whole[kv_idx]) & (whole[q_idx] >= 0)
        hidden = (noise[kv_idx] >= 0) & (noise[q_idx] != noise[kv_idx])
        return ((q_idx >= kv_idx) | same) & ~hidden & (document_ids[q_idx] == document_ids[kv_idx])

    return seen


def _starts(n: int) -> Any:
    ids = _ids(n)
    start = torch.searchsorted(ids, ids)
    return lambda b, h, q_idx, kv_idx: (kv_idx <= q_idx) & (kv_idx >= start[q_idx])


def _window(n: int) -> Any:
    return lambda b, h, q_idx, kv_idx: (kv_idx <= q_idx) & (kv_idx > q_idx - n)


PROOFS: dict[str, Callable[[int], object]] = {
    "equal(causal(), lambda)": lambda n: equal(causal(), lambda b, h, q, k: q - k >= 0, 1, 1, n, n),
    "equal(causal(), lambda off by one)": lambda n: equal(causal(), lambda b, h, q, k: q - k >= 1, 1, 1, n, n),
    "equal(window, window written otherwise)": lambda n: equal(sliding_window(4096), _window(4096), 1, 1, n, n),
    "equal(packed causal, by starts)": lambda n: equal(causal() & document(_ids(n)), _starts(n), 1, 1, n, n),
    "leaks_future(BAGEL, it does)": lambda n: leaks_future(_bagel(n, leaks=True), 1, 1, n, n),
    "leaks_future(BAGEL without whole spans)": lambda n: leaks_future(_bagel(n, leaks=False), 1, 1, n, n),
    "row_spans(packed windows)": lambda n: row_spans(sliding_window(1024) & document(_ids(n)), 1, 1, n, n),
    "column_spans(packed windows)": lambda n: column_spans(sliding_window(1024) & document(_ids(n)), 1, 1, n, n),
}


def _masks(n: int) -> dict[str, Any]:
    return {"packed": causal() & document(_ids(n)), "sinks+window": causal() & (sliding_window(1024) | sinks(4))}


_FORMS: dict[str, dict[str, Any]] = {
    "flashmask": {},
    "fa4": {},
    "hstu": {},
    "magi": {},
    "splash": {"block_size": 512},
    "csr": {},
    "flashinfer": {},
}
LAYOUTS: dict[str, Callable[[int], object]] = {
    f"{name} {kind}": (lambda n, name=name, kind=kind: lower(_masks(n)[kind], name, 1, 1, n, n, **_FORMS[name]))
    for name in _FORMS
    for kind in ("packed", "sinks+window")
    if name != "csr" or kind == "sinks+window"
}


def _dense(n: int) -> torch.Tensor:
    q, k = torch.arange(n).view(-1, 1), torch.arange(n)
    return (k <= q) & ((q - k < 1024) | (k < 4))


def _create_block_mask(n: int) -> object:
    from torch.nn.attention.flex_attention import create_block_mask

    mask = _masks(n)["packed"]
    return create_block_mask(mask, 1, 1, n, n, device="cpu", BLOCK_SIZE=(256, 128))


def _splash(n: int) -> object:
    import importlib

    room = "jax.experimental.pallas.ops.tpu.splash_attention"
    masks, info = (importlib.import_module(f"{room}.{name}") for name in ("splash_attention_mask", _INFO))

    mask = masks.MultiHeadMask([masks.LocalMask((n, n), (1023, 0), 0)])
    return info.process_mask(mask, (512, 512)), info.process_mask_dkv(mask, (512, 512))


def _packbits(n: int) -> object:
    import numpy as np

    return np.packbits(_dense(n).numpy().reshape(-1), bitorder="little")


_INFO = "splash_attention_mask_info"
PEERS: dict[str, tuple[str, Callable[[int], object], int]] = {
    "fa4 packed": ("torch create_block_mask, (256, 128), eager", _create_block_mask, SHORT),
    "splash sinks+window": ("jax process_mask of its own LocalMask, window alone", _splash, MIDDLE),
    "csr sinks+window": ("torch dense.to_sparse_csr", lambda n: _dense(n).to_sparse_csr(), SHORT),
    "flashinfer sinks+window": ("numpy packbits of a dense mask", _packbits, SHORT),
}


def _measure(what: str, name: str, n: int) -> None:
    """One figure, as JSON on stdout; runs in a process of its own."""
    call = {"proof": PROOFS, "layout": LAYOUTS}.get(what, {k: v[1] for k, v in PEERS.items()})[name]
    call(1024)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    call(n)
    seconds = time.process_time() - begin
    rose = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"figure": name, "n": n, "seconds": round(seconds, 4), "MB": round(rose)}))


def _figure(what: str, name: str, n: int) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.proofs", "--measure", what, name, str(n)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=900)
    except subprocess.TimeoutExpired:
        return {"figure": name, "n": n, "failed": "more than 900 seconds"}
    if run.returncode:
        return {"figure": name, "n": n, "failed": run.stderr.strip().split("\n")[-1]}
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs=3, metavar=("WHAT", "NAME", "N"))
    parser.add_argument("--only", choices=("proofs", "layouts"))
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    if options.measure:
        torch.set_num_threads(1)
        what, name, n = options.measure
        _measure(what, name, int(n))
        return
    rows = []
    if options.only != "layouts":
        rows += [_show(_figure("proof", name, LONG)) for name in PROOFS]
    if options.only != "proofs":
        for name in LAYOUTS:
            rows.append(_show(_figure("layout", name, MIDDLE)))
            if name in PEERS:
                who, _, n = PEERS[name]
                if n != MIDDLE:
                    rows.append(_show(_figure("layout", name, n)))
                rows.append(_show({**_figure("peer", name, n), "figure": f"  {who}"}))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=2)


def _show(row: dict[str, Any]) -> dict[str, Any]:
    told = row.get("failed") or f"{row['seconds']:9.3f} s {row['MB']:6} MB"
    print(f"{row['figure']:55} {row['n']:8} {told}", flush=True)
    return row


if __name__ == "__main__":
    main()
