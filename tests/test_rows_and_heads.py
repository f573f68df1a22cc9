"""Batch and head as substitution: offsets in every form, rows by query, against four loops on ints."""

from __future__ import annotations

import pickle
import random
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from maskmod import (
    Mask,
    block_mask,
    causal,
    classify_blocks,
    dense_mask,
    document,
    full,
    key_padding,
    per_head,
    prefix,
    remap,
    shift,
    sliding_window,
)
from maskmod.errors import MaskShapeError, MaskTypeError
from oracle import loop_table

ROWS, HEADS, N = 5, 4, 12
LENGTHS = [3, 7, 1, 12, 5]
IDS = [[(k * (r + 2)) // 7 for k in range(N)] for r in range(ROWS)]

INNER = {
    "causal": (causal, lambda b, h, q, kv: kv <= q),
    "full": (full, lambda b, h, q, kv: True),
    "lengths": (lambda: key_padding(torch.tensor(LENGTHS)), lambda b, h, q, kv: kv < LENGTHS[b]),
    "documents": (
        lambda: causal() & document(torch.tensor(IDS)),
        lambda b, h, q, kv: kv <= q and IDS[b][q] == IDS[b][kv],
    ),
    "heads": (
        lambda: per_head([causal(), causal() & sliding_window(2), full(), prefix(torch.tensor(LENGTHS))]),
        lambda b, h, q, kv: [kv <= q, 0 <= q - kv < 2, True, kv < LENGTHS[b]][h],
    ),
    "not": (lambda: key_padding(torch.tensor(LENGTHS)) ^ True, lambda b, h, q, kv: kv >= LENGTHS[b]),
    "lambda": (
        lambda: lambda b, h, q_idx, kv_idx: (q_idx + kv_idx + h) % 3 == b,
        lambda b, h, q, kv: (q + kv + h) % 3 == b,
    ),
}  # fmt: skip

OFFSETS = {
    "int": lambda values: values[0],
    "0-d": lambda values: torch.tensor(values[0]),
    "(1,)": lambda values: torch.tensor(values[:1]),
    "(B,)": torch.tensor,
    "int8": lambda values: torch.tensor(values, dtype=torch.int8),
}


@pytest.mark.parametrize("form", OFFSETS)
@pytest.mark.parametrize("name", INNER)
def test_offsets_of_rows_and_heads(name, form):
    build, inner = INNER[name]
    rng = random.Random(f"{name} {form}")
    B, H = 2, 2
    for _ in range(2):
        rows = [rng.randint(-1, 1 + ROWS - 3 - b) for b in range(B)]
        heads = [rng.randint(-1, HEADS - H) for _ in range(B)]
        queries = [rng.randint(0, N - 4) for _ in range(B)]
        if form not in ("(B,)", "int8"):
            rows, heads, queries = ([values[0]] * B for values in (rows, heads, queries))
        mask = shift(
            build(),
            b_offset=OFFSETS[form](rows),
            h_offset=OFFSETS[form](heads),
            q_offset=OFFSETS[form](queries),
        )

        def spec(b, h, q, kv, rows=rows, heads=heads, queries=queries):
            row, head = b + rows[b], h + heads[b]
            return row >= 0 and head >= 0 and inner(row, head, q + queries[b], kv)

        want = loop_table(spec, B, H, 3, N)
        for method in ("auto", "vmap"):
            assert dense_mask(mask, B, H, 3, N, method=method).tolist() == want, f"{mask!r} {rows} {heads} {queries}"
        assert [[bool(mask(b, h, 1, kv)) for kv in range(N)] for b in range(B) for h in range(H)] == [
            want[b][h][1] for b in range(B) for h in range(H)
        ]


def flat(rng, queries):
    """Requests end to end: their row, negative for a query of nobody, and their positions."""
    rows = [rng.choice([-2, -1, *range(ROWS)]) for _ in range(queries)]
    return rows, [rng.randrange(N) for _ in range(queries)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", INNER)
def test_rows_by_query(name, seed):
    build, inner = INNER[name]
    rng = random.Random(f"{name} {seed}")
    queries, slots = rng.randint(1, 9), rng.randint(1, N)
    rows, positions = flat(rng, queries)
    keys = [[rng.randrange(N) for _ in range(slots)] for _ in range(ROWS)]
    valid = [[rng.random() < 0.8 for _ in range(slots)] for _ in range(ROWS)]
    by_row = seed % 2 == 0
    mask = remap(
        build(),
        b=torch.tensor(rows, dtype=torch.int32 if seed % 3 else torch.int8),
        q=torch.tensor(positions),
        kv=torch.tensor(keys if by_row else keys[0]),
        valid=torch.tensor(valid) if seed < 3 else None,
    )

    def spec(b, h, q, slot):
        row = rows[q]
        if row < 0 or (seed < 3 and not valid[row][slot]):
            return False
        return inner(row, h, positions[q], keys[row if by_row else 0][slot])

    want = loop_table(spec, 1, HEADS, queries, slots)
    for method in ("auto", "vmap"):
        assert dense_mask(mask, 1, HEADS, queries, slots, method=method).tolist() == want, f"{mask!r} {rows}"
    blocks = classify_blocks(mask, 1, HEADS, queries, slots, block_size=4)
    seen = torch.tensor(want)
    for q in range(0, queries, 4):
        for kv in range(0, slots, 4):
            tile = seen[:, :, q : q + 4, kv : kv + 4].flatten(2)
            assert torch.equal(~blocks.empty[:, :, q // 4, kv // 4], tile.any(-1))


def test_a_row_that_the_tables_over_keys_lack_sees_nothing():
    mask = remap(full(), b=torch.tensor([0, 1, 2, -1]), kv=torch.tensor([[0, 1], [1, 0]]))
    assert dense_mask(mask, 1, 1, 4, 2)[0, 0].any(-1).tolist() == [True, True, False, False]
    assert dense_mask(~mask, 1, 1, 4, 2)[0, 0].any(-1).tolist() == [False, False, True, True]


def test_functions_of_rows():
    lengths = torch.tensor(LENGTHS)
    mask = remap(key_padding(lengths), b=lambda b, q_idx: q_idx // 2, q=lambda b, q_idx: q_idx % 2)
    assert dense_mask(mask, 1, 1, 2 * ROWS, N)[0, 0].sum(-1).tolist() == [n for n in LENGTHS for _ in range(2)]


def test_microbatches_are_rows_of_the_whole():
    whole = causal() & document(torch.tensor(IDS[:4]))
    want = dense_mask(whole, 4, 1, N, N)
    first = torch.tensor(0)
    part = shift(whole, b_offset=first)
    for row in (0, 2):
        first.fill_(row)
        assert torch.equal(dense_mask(part, 2, 1, N, N), want[row : row + 2])
        assert torch.equal(block_mask(part, 2, 1, N, N, block_size=4).to_dense(), block_mask(
            lambda b, h, q, kv, row=row: whole(b + row, h, q, kv), 2, 1, N, N, block_size=4).to_dense())  # fmt: skip


def test_a_band_is_one_only_where_nothing_moves_off_the_heads():
    from maskmod import lower

    same = per_head([causal(), causal()])
    args: Any = lower(shift(same, h_offset=1), "sdpa", 1, 2, 4, 4)
    assert args.attn_mask is not None, "head 2 does not exist and sees nothing"
    assert args.attn_mask[0, 0].any()
    assert not args.attn_mask[0, 1].any()


def test_zero_is_the_first_of_more():
    whole = key_padding(torch.tensor(LENGTHS))
    for offset in (0, torch.tensor(0)):
        assert dense_mask(shift(whole, b_offset=offset), 2, 1, 1, N)[:, 0, 0].sum(-1).tolist() == LENGTHS[:2]
    with pytest.raises(MaskShapeError, match="5 rows, 2 needed"):
        dense_mask(shift(whole), 2, 1, 1, N)


def test_reprs_structure_and_pickles():
    mask = shift(causal(), b_offset=2, h_offset=torch.tensor(1))
    assert repr(mask) == "shift(causal(), b_offset=2, h_offset=int64[])"
    assert repr(remap(causal(), b=torch.tensor([0, 0]), q=torch.tensor([1, 2]))) == (
        "remap(causal(), b=int64[2], q=int64[2])"
    )
    assert repr(shift(causal(), q_offset=3)) == "shift(causal(), q_offset=3)"
    other: Mask = pickle.loads(pickle.dumps(mask))
    assert repr(other) == repr(mask)
    leaves = pytree.tree_leaves(remap(full(), b=torch.tensor([0]), kv=torch.tensor([[1]])))
    assert len(leaves) == 2


def test_errors():
    with pytest.raises(MaskTypeError, match="holds no rows"):
        remap(causal(), b=torch.tensor([0.5]))
    with pytest.raises(MaskShapeError, match=r"on q_len=3: the table has 2 columns, 3 needed"):
        dense_mask(remap(causal(), b=torch.tensor([0, 1])), 1, 1, 3, 3)
    mask = remap(causal(), b=torch.tensor([0]), kv=torch.zeros(3, 4).long(), valid=torch.ones(2, 4).long())
    with pytest.raises(MaskShapeError, match=r"on B=3: the table has 2 rows, 3 needed"):
        dense_mask(mask, 1, 1, 1, 4)
    with pytest.raises(MaskShapeError, match="3 rows, 2 needed"):
        dense_mask(shift(causal(), b_offset=torch.tensor([0, 1, 2])), 2, 1, 1, 4)
    with pytest.raises(MaskTypeError):
        shift(causal(), h_offset=1.5)  # pyright: ignore[reportArgumentType]
