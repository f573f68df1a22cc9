"""Layouts of others' kernels: masks go out and come back by a reader of its own, or are refused with an element."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layouts import FORMS, Form, check, checked, lower
from maskmod import (
    attention,
    causal,
    dfs_tree,
    document,
    full,
    key_padding,
    mask_mod,
    per_head,
    prefix,
    select_backend,
    shift,
    sinks,
    sliding_window,
    tree,
    vmap_mask,
    window,
)
from maskmod.backends import registry
from maskmod.backends.refusals import Inexpressible
from maskmod.errors import MaskShapeError, MaskTypeError, MaskValueError, UnsupportedMask
from random_masks import Case, masks

IDS = torch.tensor([0] * 7 + [1] * 1 + [2] * 9 + [3] * 7)
NOWHERE = ~full()
SHAPES = [(1, 1, 24, 24), (2, 3, 24, 24), (2, 1, 8, 24), (1, 2, 24, 8), (3, 1, 5, 7), (1, 1, 1, 1)]


def read_back(args, name: str) -> torch.Tensor:
    return registry.get(name).read_back(args)


@given(st.sampled_from(FORMS), masks(depth=3))
def test_any_expression_is_exact_or_refused(form: Form, drawn):
    q_len, kv_len = drawn.size[2:]
    if form.name == "sglang" and kv_len < q_len:
        return  # drafts are keys too
    check(form, drawn.build(), drawn.size)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_random_predicates_are_exact_or_refused(form: Form):
    taken = 0
    for seed in range(12):
        taken += _random(form, seed)
    rare = form.options.get("block_size") in ((8, 8), (4, 2)) or form.options.get("form") in ("qlen_only", "bitpacking")
    assert taken or rare, "nothing was taken: the test shows nothing"


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_more_random_predicates_are_exact_or_refused(form: Form):
    for seed in range(12, 400):
        _random(form, seed)


def _random(form: Form, seed: int) -> bool:
    case = Case(seed)
    sizes = (case.B, case.H, case.q_len, case.kv_len)
    if case.truth is None or max(sizes) > 40 or (form.name == "sglang" and case.kv_len < case.q_len):
        return False
    return checked(form, case.mask, sizes, case.truth)


# What each layout is for, and what it cannot say

CLASSES = {
    "flashmask": [
        causal(),
        full(),
        sliding_window(5),
        causal() & document(IDS),
        document(IDS),
        causal() & (sinks(2) | sliding_window(4)),
        dfs_tree(torch.tensor([24, 12, 12, 4, 12, 12, 9, 8, 9] + list(range(10, 25)))),
        prefix(5) | causal(),
        NOWHERE,
        shift(causal(), q_offset=3),
    ],
    "hstu": [causal(), full(), causal() & (sinks(2) | sliding_window(4)), document(IDS), ~window(2, 2), NOWHERE],
    "magi": [causal(), ~causal(), full(), window(3, 2), causal() & document(IDS), causal() | prefix(6), NOWHERE],
}


@pytest.mark.parametrize(("name", "mask"), [(n, m) for n, ms in CLASSES.items() for m in ms], ids=str)
def test_masks_of_the_class_are_taken(name: str, mask):
    assert check(Form(name, {}), mask, (2, 1, 24, 24))


@pytest.mark.parametrize("name", ["csr", "fa4", "flashinfer", "hstu", "magi"])
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_every_shape(name: str, sizes: tuple[int, int, int, int]):
    rows = torch.tensor([3, 1, 2])[: sizes[0]]
    for mask in (causal(), NOWHERE, full(), causal() & key_padding(rows), shift(sliding_window(3), q_offset=rows)):
        assert check(Form(name, {}), mask, sizes)


@pytest.mark.parametrize("name", ["csr", "fa4", "flashinfer", "flashmask", "hstu", "magi", "sglang"])
@pytest.mark.parametrize("sizes", [(0, 1, 4, 4), (1, 1, 0, 4), (1, 1, 0, 0), (2, 1, 4, 0)], ids=str)
def test_zero_sizes(name: str, sizes: tuple[int, int, int, int]):
    if name == "sglang" and sizes[2] > sizes[3]:
        pytest.skip("drafts are keys too")
    assert check(Form(name, {}), causal(), sizes)


@pytest.mark.parametrize("name", ["flashinfer", "magi", "sglang"])
def test_layouts_without_heads_refuse_masks_that_differ_between_heads(name: str):
    differs = per_head([causal(), causal(), sliding_window(3)])
    with pytest.raises(Inexpressible, match=r'one mask for every head.*Use backend="flex"') as refused:
        lower(differs, name, 1, 3, 8, 8)
    b, h, q_idx, kv_idx = refused.value.element
    truth = vmap_mask(differs, 1, 3, 8, 8)
    assert truth[b, h, q_idx, kv_idx] != truth[b, 0, q_idx, kv_idx]
    lower(differs, "flex", 1, 3, 8, 8)
    # Read, and yet the same for all: taken.
    assert check(Form(name, {}), per_head([causal(), window(None, 0)]), (1, 2, 8, 8))


def test_splash_refuses_masks_that_differ_between_rows():
    mask = causal() & key_padding(torch.tensor([8, 3]))
    with pytest.raises(Inexpressible, match="one mask for every batch row") as refused:
        lower(mask, "splash", 2, 1, 8, 8, block_size=4)
    truth = vmap_mask(mask, 2, 1, 8, 8)
    b, h, q_idx, kv_idx = refused.value.element
    assert truth[b, h, q_idx, kv_idx] != truth[0, h, q_idx, kv_idx]
    assert check(Form("splash", {"block_size": 4}), causal() & key_padding(torch.tensor([8, 8])), (2, 1, 8, 8))


def test_flashmask_shows_the_third_interval():
    mask = mask_mod(lambda b, h, q, k: (q % 3 == 1) | (k != 5))
    with pytest.raises(Inexpressible, match=r'key 5 is hidden from more than two intervals of rows.*"hstu"') as refused:
        lower(mask, "flashmask", 1, 1, 12, 12)
    assert refused.value.element == (0, 0, 5, 5)  # rows 0, 2-3, 5-6, ... are hidden: the third begins at 5
    assert not mask(0, 0, 5, 5)
    lower(mask, "hstu", 1, 1, 12, 12)


@pytest.mark.parametrize(("name", "option"), [("hstu", {"max_spans": 2}), ("sglang", {"form": "spans"}), ("magi", {})])
def test_too_many_intervals_of_a_row(name: str, option: dict):
    mask = mask_mod(lambda b, h, q, k: (k % 2 == 0) | (q < 100))
    with pytest.raises(Inexpressible, match=r"query 100 sees more than (2|16|64) intervals of keys") as refused:
        lower(mask, name, 1, 1, 160, 160, **option)
    element = refused.value.element
    assert element.q_idx == 100
    assert element.kv_idx == {"hstu": 4, "sglang": 32, "magi": 128}[name]
    assert mask(*element)
    assert not mask(*element[:3], element.kv_idx - 1)


def test_blocks_that_are_visible_in_part():
    with pytest.raises(Inexpressible, match="a block of 4 x 4 is visible in part") as refused:
        lower(causal(), "csr", 1, 1, 8, 8, block_size=4)
    q_idx, kv_idx = refused.value.element[2:]
    assert q_idx // 4 == kv_idx // 4
    assert kv_idx > q_idx
    blocks = document(torch.arange(8) // 4)
    args = lower(blocks, "csr", 1, 1, 8, 8, block_size=4)
    assert (args.crow_indices.tolist(), args.col_indices.tolist()) == ([0, 1, 2], [0, 1])
    assert check(Form("csr", {"block_size": 4}), blocks, (1, 1, 8, 8))


# Layouts word for word, and the traps of their conventions


def test_flashmask_polarity_is_that_of_hiding():
    args = lower(document(torch.tensor([0, 0, 1, 1])), "flashmask", 1, 1, 4, 4)
    assert not args.causal
    assert args.startend_row_indices.dtype == torch.int32
    assert args.startend_row_indices[0, 0].tolist() == [[2, 0], [2, 0], [4, 2], [4, 2]]  # LTS, UTE


@pytest.mark.parametrize(
    ("mask", "is_causal", "columns"),
    [
        (causal(), True, [[4], [4], [4], [4]]),
        (causal() & document(torch.tensor([0, 0, 1, 1])), True, [[2], [2], [4], [4]]),
        (sliding_window(2), True, [[2], [3], [4], [4]]),
        (causal() & ((sliding_window(1)) | (lambda b, h, q, k: q == 3)), True, [[1, 3], [2, 3], [4, 4], [4, 4]]),
        (~causal(), False, [[4, 4], [1, 0], [2, 0], [3, 0]]),
        (full(), False, [[4, 0]] * 4),
    ],
    ids=str,
)
def test_flashmask_takes_the_fewest_columns(mask, is_causal: bool, columns: list):
    args = lower(mask, "flashmask", 1, 1, 4, 4)
    assert (args.causal, args.startend_row_indices[0, 0].tolist()) == (is_causal, columns)
    assert torch.equal(read_back(args, "flashmask"), vmap_mask(mask, 1, 1, 4, 4))


def test_flashmask_causal_is_bottom_right():
    mask = shift(causal(), q_offset=2)
    args = lower(mask, "flashmask", 1, 1, 3, 5)
    assert args.causal
    assert args.startend_row_indices.flatten().tolist() == [3] * 5
    top_left = lower(causal(), "flashmask", 1, 1, 3, 5)  # two diagonals to hide below theirs
    assert top_left.startend_row_indices[0, 0].tolist() == [[3, 3], [0, 1], [0, 2], [1, 3], [2, 3]]
    assert torch.equal(read_back(args, "flashmask"), vmap_mask(mask, 1, 1, 3, 5))


def test_flashmask_forms_that_were_asked_for():
    assert lower(causal(), "flashmask", 1, 1, 4, 4, causal=False).startend_row_indices.shape[-1] == 2
    assert lower(causal(), "flashmask", 1, 1, 4, 4, columns=4).startend_row_indices[0, 0, 1].tolist() == [4, 4, 0, 1]
    with pytest.raises(Inexpressible, match="visible above the diagonal") as refused:
        lower(full(), "flashmask", 1, 1, 4, 4, causal=True)
    q_idx, kv_idx = refused.value.element[2:]
    assert kv_idx > q_idx
    with pytest.raises(Inexpressible, match="hidden from more rows than"):
        lower(causal() & ((sliding_window(1)) | (lambda b, h, q, k: q == 3)), "flashmask", 1, 1, 4, 4, columns=1)


@pytest.mark.parametrize(
    ("mask", "slices"),
    [
        (full(), [((0, 4), (0, 4), 0)]),
        (causal(), [((0, 4), (0, 4), 1)]),
        (~shift(causal(), q_offset=-1), [((0, 4), (0, 4), 2)]),
        (window(0, 0), [((0, 4), (0, 4), 3)]),
        (causal() & document(torch.tensor([0, 0, 1, 1])), [((0, 2), (0, 2), 1), ((2, 4), (2, 4), 1)]),
        (causal() | prefix(2), [((0, 2), (0, 2), 0), ((2, 4), (0, 4), 1)]),
        (NOWHERE, []),
    ],
    ids=str,
)
def test_magi_slices(mask, slices: list):
    args = lower(mask, "magi", 1, 1, 4, 4)
    found = zip(args.q_ranges.tolist(), args.k_ranges.tolist(), args.attn_type_map.tolist(), strict=True)
    assert [(tuple(q), tuple(k), kind) for q, k, kind in found] == slices
    assert torch.equal(read_back(args, "magi"), vmap_mask(mask, 1, 1, 4, 4))


@pytest.mark.parametrize("seed", range(30))
def test_magi_slices_are_the_fewest_for_rows_of_one_interval(seed: int):
    rng = random.Random(seed)
    n, kv_len = rng.randint(1, 9), 6
    rows = [sorted((rng.randint(0, kv_len), rng.randint(0, kv_len))) for _ in range(n)]
    for i in range(1, n):  # so that runs are not all short
        if rng.random() < 0.6:
            move = rng.choice([(0, 0), (0, 1), (1, 0), (1, 1)])
            rows[i] = [min(a + d, kv_len) for a, d in zip(rows[i - 1], move, strict=True)]
    table = torch.tensor([[a <= k < z for k in range(kv_len)] for a, z in rows])
    mask = mask_mod(lambda b, h, q, k: table[q, k])
    args = lower(mask, "magi", 1, 1, n, kv_len)
    assert torch.equal(read_back(args, "magi")[0, 0], table)
    assert args.q_ranges.shape[0] == _fewest(rows)


def _fewest(rows: list[list[int]]) -> int:
    """The least number of slices over all ways to cut the visible rows into runs, by dynamic programming."""

    def even(first: int, last: int) -> bool:
        if any(a >= z for a, z in rows[first : last + 1]):
            return False
        moves = {(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(rows[first : last + 1])}
        return len(moves) <= 1 and moves <= {(0, 0), (0, 1), (1, 0), (1, 1)}

    best = [0]
    for last, (a, z) in enumerate(rows):
        ways = [best[first] + 1 for first in range(last + 1) if even(first, last)]
        best.append(best[-1] if a >= z else min(ways))
    return best[-1]


def test_hstu_endpoints():
    mask = causal() & (sinks(1) | sliding_window(2))
    args = lower(mask, "hstu", 1, 1, 5, 5, block_size=2)
    assert args.func.dtype == torch.int32
    assert args.func[0, 0].T.tolist() == [[1, 5, 5], [2, 5, 5], [3, 5, 5], [1, 2, 4], [1, 3, 5]]
    assert args.partial_blocks.cnt.tolist() == [1, 2, 3]
    assert args.partial_blocks.offset.tolist() == [0, 1, 3, 6]
    late = lower(window(0, 0), "hstu", 1, 1, 3, 3, block_size=2).func
    assert late[0, 0].T.tolist() == [[1, 3, 3], [0, 1, 2], [0, 2, 3]]


def test_flashinfer_bits_are_numpy_packbits_little():
    mask = causal() & key_padding(torch.tensor([5, 3]))
    args = lower(mask, "flashinfer", 2, 1, 3, 5)
    truth = vmap_mask(mask, 2, 1, 3, 5)[:, 0].numpy()
    requests = [np.packbits(row.reshape(-1), bitorder="little") for row in truth]
    assert args.packed_custom_mask.tolist() == np.concatenate(requests).tolist()
    assert args.mask_indptr.tolist() == [0, 2, 4]  # 15 bits: two bytes each, a request begins with a byte
    assert args.mask_indptr.dtype == torch.int32
    assert lower(lambda b, h, q, k: k == 3, "flashinfer", 1, 1, 1, 9).packed_custom_mask.tolist() == [8, 0]


@pytest.mark.parametrize("kv_len", [1, 7, 8, 13, 64, 129])
def test_bits_from_intervals_are_bits_from_tokens(kv_len: int):
    mask = causal() & (sinks(2) | sliding_window(11)) & (lambda b, h, q, k: (k // 5) % 4 != 2)
    packed = lower(mask, "flashinfer", 1, 1, 40, kv_len).packed_custom_mask
    bits = np.unpackbits(packed.numpy(), bitorder="little")[: 40 * kv_len]
    assert torch.equal(torch.from_numpy(bits).bool().view(1, 1, 40, kv_len), vmap_mask(mask, 1, 1, 40, kv_len))


def test_flashinfer_bsr():
    args = lower(causal(), "flashinfer", 1, 1, 4, 4, form="bsr", block_size=2)
    assert (args.indptr.tolist(), args.indices.tolist(), args.R, args.C) == ([0, 1, 3], [0, 0, 1], 2, 2)
    assert args.mask.int().tolist() == [[[1, 0], [1, 1]], [[1, 1], [1, 1]], [[1, 0], [1, 1]]]
    assert lower(full(), "flashinfer", 1, 1, 4, 4, form="bsr", block_size=2).mask is None
    for B in (1, 3):
        assert check(Form("flashinfer", {"form": "bsr", "block_size": (2, 4)}), causal(), (B, 2, 8, 8))
    with pytest.raises(Inexpressible, match="blocks of 3 queries do not divide 4"):
        lower(causal(), "flashinfer", 1, 1, 4, 4, form="bsr", block_size=3)


def test_flashinfer_pages_flags_and_windows():
    lengths = torch.tensor([7, 12, 0])
    decode = shift(causal(), q_offset=lengths - 2) & key_padding(lengths)
    args = lower(decode, "flashinfer", 3, 1, 2, 12, form="paged", page_size=4)
    assert args.kv_indptr.tolist() == [0, 2, 5, 5]
    assert args.kv_last_page_len.tolist() == [3, 4, 0]
    assert args.kv_indices.tolist() == [0, 1, 2, 3, 4]
    assert (args.causal, args.window_left, args.packed_custom_mask) == (True, -1, None)
    assert torch.equal(read_back(args, "flashinfer"), vmap_mask(decode, 3, 1, 2, 12))
    # A window of n keys, itself included, is window_left = n - 1 neighbours.
    args = lower(shift(sliding_window(5), q_offset=9), "flashinfer", 1, 1, 3, 12, form="paged")
    assert (args.causal, args.window_left) == (True, 4)
    # Pages where they are.
    table = torch.tensor([[9, 4, 7], [1, 2, 3]])
    args = lower(full(), "flashinfer", 2, 1, 2, 9, form="paged", page_size=4, block_table=table)
    assert args.kv_indices.tolist() == [9, 4, 7, 1, 2, 3]
    assert not args.causal
    # What flags cannot say gets bits.
    args = lower(causal() | prefix(2), "flashinfer", 2, 1, 4, 8, form="paged")
    assert args.packed_custom_mask is not None
    assert torch.equal(read_back(args, "flashinfer"), vmap_mask(causal() | prefix(2), 2, 1, 4, 8))


def test_fa4_lists():
    args = lower(causal(), "fa4", 1, 1, 8, 8, block_size=(4, 2), backward=True)
    lists = args.forward
    assert lists.mask_block_cnt.tolist() == [[[2, 2]]]
    assert lists.mask_block_idx.tolist() == [[[[0, 1], [2, 3]]]]
    assert lists.full_block_cnt.tolist() == [[[0, 2]]]
    assert lists.full_block_idx[0, 0, 1].tolist() == [0, 1]
    assert lists.block_size == (4, 2)
    assert args.backward.mask_block_idx[0, 0, :, 0].tolist() == [0, 0, 1, 1]
    assert args.backward.dq_write_order[0, 0, :, 0].tolist() == [0, 1, 2, 3]  # after both full ones
    assert args.backward.dq_write_order_full[0, 0, :2, 0].tolist() == [0, 1]
    assert all(x.dtype == torch.int32 for x in lists if isinstance(x, torch.Tensor))
    ragged = lower(full(), "fa4", 1, 1, 5, 4, block_size=(4, 2)).forward
    assert ragged.full_block_cnt.tolist() == [[[2, 0]]]  # a block cut short is never full
    assert ragged.mask_block_cnt.tolist() == [[[0, 2]]]


def test_fa4_bits():
    args = lower(causal(), "fa4", 2, 3, 3, 40, bits=True)
    assert args.bits.shape == (1, 3, 4)  # words of 32 keys, in fours
    assert args.bits[0, :, 0].tolist() == [1, 3, 7]
    assert check(Form("fa4", {"bits": True}), lambda b, h, q, k: (q + k + b) % 3 == 0, (2, 1, 40, 133))
    with pytest.raises(Inexpressible, match="Pass bits=False"):
        lower(lambda b, h, q, k: k <= q + h, "fa4", 1, 2, 4, 4, bits=True)


def test_splash_tables():
    args = lower(causal(), "splash", 1, 1, 8, 8, block_size=2)
    tables = args.forward
    assert tables.block_mask.tolist() == [[[1, 0, 0, 0], [2, 1, 0, 0], [2, 2, 1, 0], [2, 2, 2, 1]]]
    assert tables.data_next.tolist() == [[[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 2, 0], [0, 1, 2, 3]]]
    assert tables.partial_mask_blocks.shape == (1, 2, 2)  # one partial block, four times
    assert tables.data_next.dtype == torch.int8
    shrunk = lower(window(1, 1), "splash", 1, 1, 16, 16, block_size=2).forward
    assert shrunk.block_mask.shape == (1, 8, 3)
    assert shrunk.data_next[0, 5].tolist() == [4, 5, 6]
    heads = lower(per_head([causal(), full()]), "splash", 1, 2, 8, 8, block_size=4).forward
    assert heads.block_mask.shape == (2, 2, 2)
    with pytest.raises(Inexpressible, match="blocks of 3 queries do not divide 8"):
        lower(causal(), "splash", 1, 1, 8, 8, block_size=(3, 2))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_csr_is_torchs_own():
    mask = causal() & sliding_window(3)
    args = lower(mask, "csr", 1, 1, 6, 6)
    sparse = torch.sparse_csr_tensor(values=torch.ones_like(args.col_indices), check_invariants=True, **args.kwargs())
    assert torch.equal(sparse.to_dense().bool(), vmap_mask(mask, 1, 1, 6, 6)[0, 0])


def test_sglang_trees():
    parents = torch.tensor([-1, 0, 0, 1])
    drafts = tree(parents)
    seq_lens = torch.tensor([3, 5])
    mask = mask_mod(
        lambda b, h, q, k: (k < seq_lens[b]) | ((k < seq_lens[b] + 4) & drafts(b, h, q, (k - seq_lens[b]).clamp(0, 3)))
    )
    own = vmap_mask(drafts, 1, 1, 4, 4)[0, 0]
    args = lower(mask, "sglang", 2, 1, 4, 9, seq_lens=seq_lens)
    assert args.custom_mask.shape == (4 * (3 + 4) + 4 * (5 + 4),)
    assert args.custom_mask[:28].view(4, 7)[:, 3:].tolist() == own.tolist()
    assert torch.equal(read_back(args, "sglang"), vmap_mask(mask, 2, 1, 4, 9))
    only = lower(mask, "sglang", 2, 1, 4, 9, seq_lens=seq_lens, form="qlen_only")
    assert only.custom_mask.tolist() == [own.tolist()] * 2
    packed = lower(mask, "sglang", 2, 1, 4, 9, seq_lens=seq_lens, form="bitpacking")
    assert packed.custom_mask.dtype == torch.uint8
    assert packed.custom_mask.tolist() == [1, 3, 5, 11] * 2  # each sees itself and its ancestors, the lowest bit first
    for each in (only, packed):
        assert torch.equal(read_back(each, "sglang"), vmap_mask(mask, 2, 1, 4, 9))


def test_sglang_refusals_name_an_element():
    for options, mask, seen in (
        ({"seq_lens": torch.tensor([2])}, full(), "a key past a request's own"),
        ({"form": "qlen_only"}, shift(sliding_window(3), q_offset=4), "a key before the drafts is hidden"),
        ({"form": "bitpacking"}, full(), "40 drafts, and a row holds 32 bits"),
    ):
        q_len = 40 if seen.startswith("40") else 4
        with pytest.raises(Inexpressible, match=seen) as refused:
            lower(mask, "sglang", 1, 1, q_len, q_len + 4, **options)
        truth = vmap_mask(mask, 1, 1, q_len, q_len + 4)[refused.value.element]
        assert truth == (options.get("form") != "qlen_only")


def test_bit_widths_of_packed_rows():
    for n, dtype in ((8, torch.uint8), (9, torch.uint16), (16, torch.uint16), (17, torch.uint32), (32, torch.uint32)):
        args = lower(causal(), "sglang", 1, 1, n, n, form="bitpacking")
        assert args.custom_mask.dtype == dtype
        assert torch.equal(read_back(args, "sglang"), vmap_mask(causal(), 1, 1, n, n))


# Rows that see nothing, options, traces, attention


def test_rows_that_see_nothing_stay_empty():
    mask = causal() & key_padding(torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]]))  # padded on the left: rows 0, 1 are empty
    for form in FORMS:
        if form.options.get("form") in ("qlen_only", "bitpacking") or form.options.get("block_size") == (4, 2):
            continue
        assert check(form, mask, (1, 1, 8, 8)), form
        with pytest.raises(UnsupportedMask, match=r'leaves its output to the kernel.*Pass empty_rows="keep"'):
            lower(mask, form.name, 1, 1, 8, 8, empty_rows="uniform", **form.options)


@pytest.mark.parametrize(
    ("name", "options", "error", "seen"),
    [
        ("flashinfer", {"form": "bitmap"}, MaskValueError, "no such form"),
        ("sglang", {"form": "bits"}, MaskValueError, "no such form"),
        ("sglang", {"seq_lens": torch.tensor([1, 2])}, MaskShapeError, "1 requests"),
        ("sglang", {"seq_lens": torch.tensor([9])}, MaskValueError, "drafts follow them"),
        ("flashinfer", {"form": "paged", "block_table": torch.zeros(1, 0)}, MaskShapeError, "need up to 1 pages"),
        ("magi", {"block_size": 4}, MaskTypeError, "no option 'block_size'"),
    ],
)
def test_options_are_checked(name: str, options: dict, error: type[Exception], seen: str):
    with pytest.raises(error, match=seen):
        lower(causal(), name, 1, 1, 4, 8, **options)


@pytest.mark.parametrize("name", sorted({form.name for form in FORMS}))
def test_a_graph_has_no_shapes_that_depend_on_values(name: str):
    @torch.compile(backend="eager", fullgraph=True)
    def inside(x):
        return x, lower(causal(), name, 1, 1, 8, 8)

    with pytest.raises(Exception, match="depend on values, and a graph cannot"):
        inside(torch.ones(1))


@pytest.mark.parametrize("name", sorted({form.name for form in FORMS} - {"csr"}))
def test_kernels_that_are_not_called_say_so(name: str):
    q = torch.randn(1, 1, 8, 4)
    with pytest.raises(UnsupportedMask, match=f"maskmod lowers masks for {name} and does not call it"):
        attention(q, q, q, causal(), backend=name)
    assert name in select_backend(causal(), 1, 1, 8, 8).rejected


@pytest.mark.parametrize("policy", ["zero", "uniform"])
def test_csr_attends(policy: str):
    torch.manual_seed(0)
    q = torch.randn(2, 4, 12, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, 2, 16, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for mask in (
        causal() & key_padding(torch.tensor([9, 0])),
        per_head([causal(), sliding_window(3), full(), NOWHERE]),
        lambda b, h, q_idx, kv_idx: (q_idx * 7 + kv_idx * 3) % 5 < 2,
    ):
        outs = [attention(q, k, v, mask, backend=name, enable_gqa=True, empty_rows=policy) for name in ("csr", "eager")]
        torch.testing.assert_close(*outs)
        grads = [torch.autograd.grad(out.square().sum(), (q, k, v)) for out in outs]
        torch.testing.assert_close(*grads)
