"""A small set of checks for any environment that holds torch: the meaning, blocks, attention, compile, the drop-in.

    python tools/smoke.py            # a line for each check; exits with 1 if one failed
    python tools/smoke.py --json

It needs no test runner and no extra. What the environment lacks (a compiler, transformers) is said, not failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Callable

import torch

import maskmod
from maskmod import (
    attention,
    block_mask,
    blockwise,
    causal,
    chunked,
    dense_mask,
    document,
    key_padding,
    lower,
    shift,
    sinks,
    sliding_window,
    vmap_mask,
)

B, H, Q, KV = 2, 2, 150, 190
IDS = torch.arange(KV) // 37
SPANS = torch.where(torch.arange(KV) % 50 < 12, torch.arange(KV) // 50, -1)
VALID = torch.arange(KV) < torch.tensor([[KV], [111]])
MASKS = {
    "causal": causal(),
    "window and sinks": causal() & (sliding_window(20) | sinks(3)),
    "packed images": ((causal() & sliding_window(40)) | blockwise(SPANS)) & document(IDS) & key_padding(VALID),
    "chunks, shifted": shift(chunked(16) & causal(), q_offset=torch.tensor([5, 30])),
    "a lambda": lambda b, h, q_idx, kv_idx: (q_idx - kv_idx <= 8 * (h + 1)) & (kv_idx % 3 != b),
}


class Lacking(Exception):
    """The environment has no such thing: nothing was checked."""


def meaning() -> str:
    """The lift, and every reader of it, against loops over plain ints."""
    for name, mask in MASKS.items():
        seen = vmap_mask(mask, B, H, Q, KV)
        assert torch.equal(seen, dense_mask(mask, B, H, Q, KV)), name
        points = itertools.product(range(B), range(H), range(0, Q, 13), range(0, KV, 7))
        for b, h, q, kv in points:
            assert bool(maskmod.mask_mod(mask)(b, h, q, kv)) == bool(seen[b, h, q, kv]), (name, b, h, q, kv)
    return f"{len(MASKS)} masks"


def blocks() -> str:
    """Block tables against torch's own builder, entry by entry."""
    from torch.nn.attention.flex_attention import create_block_mask

    for name, mask in MASKS.items():
        ours = block_mask(mask, B, H, Q, KV, block_size=32)
        theirs = create_block_mask(mask, B, H, Q, KV, device="cpu", BLOCK_SIZE=32)
        for table in ("kv_num_blocks", "full_kv_num_blocks"):
            assert torch.equal(getattr(ours, table), getattr(theirs, table)), (name, table)
        for count, index in (("kv_num_blocks", "kv_indices"), ("full_kv_num_blocks", "full_kv_indices")):
            used = torch.arange(getattr(ours, index).shape[-1]) < getattr(ours, count)[..., None]
            same = getattr(ours, index) == getattr(theirs, index)
            assert bool((same | ~used).all()), (name, index)
    return "equal to create_block_mask"


def attended() -> str:
    """Every backend that runs here against the reference, forward and backward."""
    q = torch.randn(B, H, Q, 16, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(B, H, KV, 16, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for name, mask in MASKS.items():
        expected = attention(q, k, v, mask, backend="eager")
        grads = torch.autograd.grad(expected.sum(), (q, k, v))
        for backend in ("auto", "sdpa"):
            out = attention(q, k, v, mask, backend=backend)
            torch.testing.assert_close(out, expected, msg=name)
            torch.testing.assert_close(torch.autograd.grad(out.sum(), (q, k, v)), grads, msg=name)
    assert lower(causal(), "sdpa", 1, 1, 8, 8).kwargs() == {"attn_mask": None, "is_causal": True}
    return "auto and sdpa equal eager"


def traced() -> str:
    """One graph over lengths, offsets and rebuilt masks."""
    graphs = []

    def count(graph, example):
        graphs.append(graph)
        return graph

    @torch.compile(backend=count, fullgraph=True, dynamic=True)
    def step(ids, offset, x):
        mask = shift(causal() & sliding_window(8) & document(ids), q_offset=offset)
        return dense_mask(mask, 1, 1, x.shape[0], ids.shape[0]) & (x[:, None] >= 0)

    for n in (40, 56, 72):
        ids, x = torch.arange(n) // 9, torch.zeros(n // 2)
        eager = vmap_mask(shift(causal() & sliding_window(8) & document(ids), q_offset=n // 2), 1, 1, n // 2, n)
        assert torch.equal(step(ids, torch.tensor(n // 2), x), eager)
    assert len(graphs) == 1, f"{len(graphs)} graphs"
    return "1 graph, 3 lengths"


def compiled() -> str:
    """Inductor: blocks built in a graph, and run."""
    if shutil.which("g++") is None and shutil.which("c++") is None:
        raise Lacking("no C++ compiler")
    build = torch.compile(
        lambda ids: block_mask(causal() & document(ids), 1, 1, 300, 300, q_blocks=False).kv_num_blocks
    )
    ids = torch.arange(300) // 70
    assert torch.equal(build(ids), block_mask(causal() & document(ids), 1, 1, 300, 300).kv_num_blocks)
    return "a block mask built in a graph"


def dropped_in() -> str:
    """A small transformers model, stock against `install()`."""
    if importlib.util.find_spec("transformers") is None:
        raise Lacking("no transformers")
    import transformers

    from maskmod.compat.transformers import install, uninstall

    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config).eval()
    tokens = torch.arange(24).view(2, 12)
    padding = torch.ones_like(tokens)
    padding[1, :5] = 0
    with torch.no_grad():
        stock = model(tokens, attention_mask=padding).logits
        install()
        try:
            ours = model(tokens, attention_mask=padding).logits
        finally:
            uninstall()
    torch.testing.assert_close(ours, stock)
    return f"transformers {transformers.__version__}"


CHECKS: tuple[Callable[[], str], ...] = (meaning, blocks, attended, traced, compiled, dropped_in)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tools/smoke.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    as_json = parser.parse_args().json
    torch.manual_seed(0)
    torch.set_num_threads(1)
    found: dict[str, dict[str, str]] = {}
    for check in CHECKS:
        start = time.perf_counter()
        try:
            result, words = "passed", check()
        except Lacking as lacking:
            result, words = "not run", str(lacking)
        except Exception as error:
            result, words = "failed", f"{type(error).__name__}: {error}".splitlines()[0]
            if not as_json:
                traceback.print_exc()
        found[check.__name__] = {"result": result, "words": words}
        if not as_json:
            print(f"{check.__name__:12} {result:8} {words} ({time.perf_counter() - start:.1f} s)", flush=True)
    about = {"python": platform.python_version(), "torch": torch.__version__, "maskmod": maskmod.__version__}
    if as_json:
        print(json.dumps({"about": about, "checks": found}))
    else:
        print(", ".join(f"{name} {version}" for name, version in about.items()))
    return int(any(entry["result"] == "failed" for entry in found.values()))


if __name__ == "__main__":
    sys.exit(main())
