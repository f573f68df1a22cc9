"""The table of backends in words, made into the page that shows it: ``python -m maskmod.backends.described``.

One entry for each backend that comes with the library; a test holds the page to it.
"""

from __future__ import annotations

from typing import NamedTuple

from maskmod.backends import registry

__all__ = ["DESCRIBED", "Described", "table"]


class Described(NamedTuple):
    """What a backend can express, what it gets, where it runs, and how its arguments were verified."""

    expresses: str
    gets: str
    runs: str
    verified: str


_HERE = "here: every device of torch"
_READ = "read back"

DESCRIBED: dict[str, Described] = {
    "eager": Described("any mask", "a bias, (B, H, q_len, kv_len)", _HERE, f"run; {_READ}"),
    "sdpa": Described("any mask", "no mask or a flag where that is proven, else a boolean", _HERE, f"run; {_READ}"),
    "flex": Described("any mask", "`BlockMask`, the predicate unmodified", _HERE, f"run on CPU; {_READ}"),
    "spans": Described("any mask", "the interval of keys each block of queries sees", _HERE, f"run; {_READ}"),
    "varlen": Described(
        "packed documents with a window in each", "`cu_seqlens`, `window_size`", _HERE, f"run on CPU; {_READ}"
    ),
    "flash": Described(
        "a band, or one in each packed document", "`causal`, `window_size`, `cu_seqlens`", "flash-attention, GPU", _READ
    ),
    "csr": Described(
        "any mask; with blocks, whole ones", "`crow_indices`, `col_indices`", _HERE, f"run with gradients; {_READ}"
    ),
    "flashmask": Described(
        "keys hidden from at most two intervals of rows",
        "`startend_row_indices`, 1, 2 or 4 columns",
        "Paddle, GPU",
        _READ,
    ),
    "fa4": Described(
        "any mask; partial blocks need a `mask_mod` in its language", "block lists, on request bits", "GPU", _READ
    ),
    "flashinfer": Described(
        "one mask for all heads", "packed bits, a block-sparse matrix, or pages with flags or bits", "GPU", _READ
    ),
    "magi": Described("one mask for all heads", "slices of four types, which never overlap", "GPU (Hopper)", _READ),
    "hstu": Described("rows of few intervals", "row functions and lists of blocks", "GPU (Blackwell)", _READ),
    "splash": Described(
        "one mask for all rows; blocks divide the lengths",
        "`MaskInfo`: blocks, what to fetch, partial blocks once",
        "jax, TPU",
        f"jax's kernel in interpret mode on CPU, with gradients; {_READ}",
    ),
    "sglang": Described(
        "one mask for all heads", "a request's bits, packed rows, or intervals", "its server, GPU", _READ
    ),
}


def table() -> str:
    """The table of registered backends, in Markdown."""
    lines = ["| backend | can express | gets | runs | verified |", "|---|---|---|---|---|"]
    known = [name for name in registry.names() if name in DESCRIBED]
    lines += [f"| `{name}` | {' | '.join(DESCRIBED[name])} |" for name in known]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
