"""Decode plans against four nested loops on ints: every backend, every layout, at addresses that never change."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask

from looks import Looks
from maskmod import (
    at_positions,
    causal,
    chunked,
    document,
    full,
    key_padding,
    per_head,
    prefix,
    sinks,
    sliding_window,
    window,
)
from maskmod.algebra import And
from maskmod.analyser.replay import replay_of
from maskmod.caches import (
    ChunkedCache,
    PagedCache,
    PrefixRingCache,
    RingCache,
    SlidingCache,
    Slots,
    StaticCache,
    on_cache,
)
from maskmod.errors import BackendError, MaskShapeError, MaskTypeError, MaskValueError, UnsupportedMask
from maskmod.masks import Causal, KeyLengths
from maskmod.serving import DecodePlan

B, H, LENGTH = 2, 2, 300
PADS = [0, 3]
VALID = torch.arange(LENGTH) >= torch.tensor(PADS)[:, None]
DOCUMENTS = torch.arange(LENGTH).expand(2, LENGTH) // torch.tensor([[7], [5]])

MASKS = {
    "causal": (causal(), lambda b, h, q, kv: kv <= q),
    "full": (full(), lambda b, h, q, kv: True),
    "padded": (causal() & key_padding(VALID), lambda b, h, q, kv: kv <= q and kv >= PADS[b]),
    "lengths": (key_padding(torch.tensor([9, 150])), lambda b, h, q, kv: kv < [9, 150][b]),
    "window": (causal() & sliding_window(4), lambda b, h, q, kv: 0 <= q - kv < 4),
    "two-sided": (window(2, 1), lambda b, h, q, kv: -2 <= kv - q <= 1),
    "sinks": (
        causal() & (sliding_window(2) | sinks(torch.tensor(1))),
        lambda b, h, q, kv: kv <= q and (q - kv < 2 or kv == 0),
    ),
    "chunked": (
        causal() & chunked(6, start=torch.tensor(PADS)),
        lambda b, h, q, kv: kv <= q and (q - PADS[b]) // 6 == (kv - PADS[b]) // 6,
    ),
    "documents": (
        causal() & document(DOCUMENTS),
        lambda b, h, q, kv: kv <= q and q // [7, 5][b] == kv // [7, 5][b],
    ),
    "prefix": (causal() | prefix(torch.tensor([2, 5])), lambda b, h, q, kv: kv <= q or kv < [2, 5][b]),
    "negated": (causal() & (sliding_window(3) ^ True), lambda b, h, q, kv: q - kv >= 3),
    "per head": (
        per_head([causal(), causal() & sliding_window(3)]),
        lambda b, h, q, kv: kv <= q and (h == 0 or q - kv < 3),
    ),
    "lambda": (lambda b, h, q_idx, kv_idx: (q_idx + kv_idx) % 3 == b, lambda b, h, q, kv: (q + kv) % 3 == b),
}


def pages():
    return torch.stack([torch.arange(0, 19), torch.arange(37, 18, -1)])


def row_of(layout, row, first, q_len):
    """The position that each slot of a row holds after this step, or None; written without the library."""
    last = first + q_len - 1
    if isinstance(layout, StaticCache):
        return [slot if slot <= last else None for slot in range(layout.kv_len)]
    if isinstance(layout, PagedCache):
        held: list = [None] * layout.kv_len
        for position in range(last + 1):
            page = pages()[row].tolist()[position // 16]
            held[page * 16 + position % 16] = position
        return held
    size = layout.kv_len
    if isinstance(layout, ChunkedCache):
        oldest = first // layout.chunk * layout.chunk
    else:
        oldest = first - layout.window + 1
    held = [None] * size
    if isinstance(layout, PrefixRingCache):
        for position in range(last + 1):
            if position < layout.prefix:
                held[position] = position
            elif position >= oldest:
                held[layout.prefix + (position - layout.prefix) % (size - layout.prefix)] = position
        return held
    for position in range(max(0, oldest), last + 1):
        shift = max(0, last - size + 1)
        held[position - shift if isinstance(layout, SlidingCache) else position % size] = position
    return held


LAYOUTS = {
    "static": StaticCache(LENGTH),
    "sliding": SlidingCache(6, 3),
    "ring": RingCache(6, 3),
    "prefix and ring": PrefixRingCache(3, 6, 3),
    "chunked": ChunkedCache(6, 3),
    "paged": PagedCache(pages(), 16, num_pages=38),
}


def held_by(layout, mask, predicate):
    """The mask, cut to what a cache that forgets can hold of it, where it shows more; for the others as it is."""
    if layout in ("sliding", "ring"):
        return sliding_window(6) & mask, lambda b, h, q, kv: 0 <= q - kv < 6 and predicate(b, h, q, kv)
    if layout == "prefix and ring":
        held = causal() & (sliding_window(6) | sinks(3))
        return held & mask, lambda b, h, q, kv: kv <= q and (q - kv < 6 or kv < 3) and predicate(b, h, q, kv)
    if layout == "chunked":
        chunk = causal() & chunked(6)
        return chunk & mask, lambda b, h, q, kv: kv <= q and q // 6 == kv // 6 and predicate(b, h, q, kv)
    return mask, predicate


@pytest.mark.parametrize("backend", ["sdpa", "eager", "flex"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_waits_for_no_value(layout, backend):
    for q_len, case in zip([1, 4] * len(MASKS), MASKS.values(), strict=False):
        mask, _ = held_by(layout, *case)
        plan = DecodePlan(mask, LAYOUTS[layout], B, H, q_len, backend=backend)
        with Looks() as looks:
            plan.step_(torch.full((B, 1), 7))
            plan.step_(7)
        assert not looks.found, (mask, q_len)


def expected(predicate, layout, firsts, q_len):
    """Lists [b][h][q][slot] of bools."""
    held = [row_of(layout, row, first, q_len) for row, first in enumerate(firsts)]
    return [
        [
            [[p is not None and predicate(b, h, firsts[b] + i, p) for p in held[b]] for i in range(q_len)]
            for h in range(H)
        ]
        for b in range(B)
    ]


def step_args(plan) -> Any:
    return plan.args


def step(plan, position) -> Any:
    return plan.step_(position)


def seen(plan):
    """What a plan's arguments let through, bool (B, H, q_len, kv_len)."""
    value = step_args(plan)[0]
    if isinstance(value, BlockMask):
        return from_blocks(value, plan.sizes)
    visible = value if value.dtype == torch.bool else value == 0
    return visible.expand(plan.sizes)


def from_blocks(block_mask, sizes):
    out = torch.zeros(sizes, dtype=torch.bool)
    bq, bkv = block_mask.BLOCK_SIZE
    tables = (
        (block_mask.kv_num_blocks, block_mask.kv_indices, False),
        (block_mask.full_kv_num_blocks, block_mask.full_kv_indices, True),
    )
    for count, indices, is_full in tables:
        count, indices = count.expand(*sizes[:2], -1), indices.expand(*sizes[:2], -1, -1)
        for b in range(sizes.B):
            for h in range(sizes.H):
                for row in range(count.shape[2]):
                    for column in indices[b, h, row, : count[b, h, row]].tolist():
                        for q in range(row * bq, min(row * bq + bq, sizes.q_len)):
                            keys = torch.arange(column * bkv, min(column * bkv + bkv, sizes.kv_len))
                            if is_full:
                                out[b, h, q, keys] = True
                            else:
                                b_, h_, q_ = (torch.tensor(i) for i in (b, h, q))
                                one = torch.vmap(block_mask.mask_mod, in_dims=(None, None, None, 0))
                                out[b, h, q, keys] = one(b_, h_, q_, keys)
    return out


def addresses(plan):
    value = step_args(plan)[0]
    tensors = value.as_tuple() if isinstance(value, BlockMask) else (value,)
    return [(t.data_ptr(), t.shape, t.stride()) for t in tensors if isinstance(t, torch.Tensor)]


STEPS = [(0, 0), (2, 1), (3, 5), (7, 6), (11, 12), (130, 9), (131, 140), (257, 280)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("q_len", [1, 4])
def test_sdpa_plan_is_the_mask_over_the_cache(mask, layout, q_len):
    mask, predicate = held_by(layout, *MASKS[mask])
    plan = DecodePlan(mask, LAYOUTS[layout], B, H, q_len, backend="sdpa")
    before = addresses(plan)
    for firsts in STEPS:
        args = step(plan, torch.tensor(firsts)[:, None])
        assert args is plan.args
        want = torch.tensor(expected(predicate, LAYOUTS[layout], firsts, q_len))
        assert torch.equal(seen(plan), want), f"firsts={firsts}"
    assert addresses(plan) == before


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("mask", "q_len"), [("padded", 1), ("window", 4), ("prefix", 4), ("per head", 1), ("full", 1)])
@pytest.mark.parametrize("backend", ["eager", "flex"])
def test_other_backends_see_the_same(mask, layout, q_len, backend):
    mask, predicate = held_by(layout, *MASKS[mask])
    plan = DecodePlan(mask, LAYOUTS[layout], B, H, q_len, backend=backend, dtype=torch.bfloat16)
    before = addresses(plan)
    for firsts in [(0, 1), (7, 12), (131, 140)]:
        plan.step_(torch.tensor(firsts)[:, None])
        assert torch.equal(seen(plan), torch.tensor(expected(predicate, LAYOUTS[layout], firsts, q_len)))
    assert addresses(plan) == before
    if backend == "eager":
        assert step_args(plan)[0].dtype == torch.bfloat16
        assert step_args(plan)[0].min() == torch.finfo(torch.bfloat16).min


def test_flex_skips_blocks():
    plan = DecodePlan(causal() & sliding_window(4), StaticCache(1024), 2, 1, 1, backend="flex")
    block_mask = plan.step_(torch.tensor([[3], [700]])).kwargs()["block_mask"]
    assert block_mask.kv_num_blocks.tolist() == [[[1]], [[1]]]
    assert block_mask.kv_indices[:, 0, 0, 0].tolist() == [0, 5]


@pytest.mark.parametrize("q_len", [1, 3])
@pytest.mark.parametrize("backend", ["sdpa", "flex"])
def test_every_form_of_position(backend, q_len):
    plan = DecodePlan(sliding_window(6) & MASKS["padded"][0], LAYOUTS["ring"], B, H, q_len, backend=backend)
    plan.step_(17)
    want = seen(plan).clone()
    steps = torch.arange(17, 17 + q_len)
    forms = [
        torch.tensor(17),
        torch.tensor([17]),
        steps,
        torch.tensor([[17], [17]]),
        steps.expand(B, q_len),
        steps[None],
    ]
    for form in forms + [form.int() for form in forms]:
        plan.step_(0)
        plan.step_(form)
        assert torch.equal(seen(plan), want), f"{form}"


def test_tensors_of_the_mask_are_followed():
    valid, offset = torch.ones(1, 8, dtype=torch.bool), torch.tensor(0)
    mask = at_positions(causal() & key_padding(valid), offset, 1)
    plan = DecodePlan(mask, StaticCache(8), 1, 1, 1, backend="sdpa")
    step(plan, 4)
    valid[0, 1], offset[...] = False, -1
    assert step(plan, 5).attn_mask.flatten().tolist() == [True, False, True, True, True, False, False, False]


def test_a_users_function_is_not_replayed():
    limit = torch.tensor(2)
    mask = causal() & (lambda b, h, q_idx, kv_idx: kv_idx < limit + 1)
    plan = DecodePlan(mask, StaticCache(8), 1, 1, 1, backend="sdpa")
    limit.fill_(4)
    assert step(plan, 7).attn_mask.sum() == 5
    assert "vmap" in str(plan.explain())
    assert replay_of(plan.mask, plan.sizes, torch.device("cpu")) is None


# ------------------------------------------------------------------------------------------------------------ flash


def flash_sees(args, layout, row, q_len):
    """``flash_attn_with_kvcache`` as its documentation has it: the positions that each query of a row reads."""
    length = int(args.cache_seqlens[row])
    left, right = args.window_size
    rows = []
    for i in range(q_len):
        own = length - q_len + i
        reads = [kv for kv in range(length) if (left < 0 or kv >= own - left) and (right < 0 or kv <= own + right)]
        rows.append({kv for kv in reads if not args.causal or kv <= own})
    return rows


@pytest.mark.parametrize("layout", ["static", "paged"])
@pytest.mark.parametrize(
    ("mask", "q_len"),
    [
        ("causal", 1),
        ("causal", 4),
        ("window", 1),
        ("window", 4),
        ("two-sided", 4),
        ("full", 1),
        ("full", 4),
        ("lengths", 4),
    ],
)
def test_flash_reads_what_the_mask_shows(mask, q_len, layout):
    mask, predicate = MASKS[mask]
    layout = LAYOUTS[layout]
    plan = DecodePlan(mask, layout, B, H, q_len, backend="flash")
    address = step(plan, 0).cache_seqlens.data_ptr()
    for firsts in STEPS:
        args = step(plan, torch.tensor(firsts)[:, None])
        if isinstance(layout, PagedCache):
            assert torch.equal(args.block_table, layout.block_table.int())
        else:
            assert args.block_table is None
        assert args.cache_seqlens.dtype == torch.int32
        for row, first in enumerate(firsts):
            want = [{p for p in range(first + q_len) if predicate(row, 0, first + i, p)} for i in range(q_len)]
            assert flash_sees(args, layout, row, q_len) == want
    assert step(plan, 0).cache_seqlens.data_ptr() == address


def test_flash_reads_the_pages_that_are_mapped():
    """No page is taken for another: `num_pages` that was guessed from the table moved pages 5 and 7 to page 1."""
    plan = DecodePlan(causal(), PagedCache(torch.tensor([[5, 7]]), 2, num_pages=8), 1, 1, 1, backend="flash")
    assert step(plan, 3).block_table.tolist() == [[5, 7]]
    with pytest.raises(TypeError, match="num_pages"):
        PagedCache(torch.tensor([[5, 7]]), 2)  # pyright: ignore[reportCallIssue]


def test_flash_gets_a_page_where_there_is_none():
    """The kernel reads int32 entries up to the length, whatever they are: a row without a page, one of -1."""
    table = torch.tensor([[2, -1], [-1, -1], [1, 9]])
    plan = DecodePlan(causal(), PagedCache(table, 4, num_pages=3), 3, 1, 1, backend="flash")
    held = plan.args.kwargs()["block_table"]
    assert (held.dtype, held.tolist()) == (torch.int32, [[2, 0], [0, 0], [1, 9]])
    table[0, 1], table[1, 0] = 0, 1
    assert step(plan, 5).block_table is held
    assert held.tolist() == [[2, 0], [1, 0], [1, 9]]


def test_flash_takes_no_negative_length():
    plan = DecodePlan(key_padding(torch.tensor([-3, 2])), StaticCache(8), 2, 1, 1, backend="flash")
    assert step(plan, 5).cache_seqlens.tolist() == [0, 2]


@pytest.mark.parametrize("layout", [RingCache(4), SlidingCache(4)])
def test_flash_reads_a_whole_ring(layout):
    plan = DecodePlan(causal() & sliding_window(4), layout, 1, 1, 1, backend="flash")
    for first in range(9):
        args = step(plan, first)
        assert (args.cache_seqlens.tolist(), args.causal, args.window_size) == ([min(first + 1, 4)], False, (-1, -1))


@pytest.mark.parametrize(
    ("mask", "layout", "q_len"),
    [
        (causal() & document(DOCUMENTS), "static", 1),
        (MASKS["prefix"][0], "static", 1),
        (MASKS["lambda"][0], "static", 1),
        (MASKS["padded"][0], "static", 1),
        (causal() & key_padding(torch.tensor([1, 2])), "static", 4),
        (MASKS["negated"][0], "static", 1),
        (causal(), "chunked", 1),
        (causal(), "ring", 1),
        (causal(), "ring", 4),
    ],
)
def test_flash_refuses_the_rest(mask, layout, q_len):
    with pytest.raises(UnsupportedMask, match='Use backend="flex" or "sdpa"'):
        DecodePlan(mask, LAYOUTS[layout], B, H, q_len, backend="flash")


# ------------------------------------------------------------------------------------- masks wider than their cache


STATIC_SINKS = causal() & (sliding_window(3) | sinks(2))


@pytest.mark.parametrize(
    ("mask", "layout", "seen"),
    [
        (sliding_window(8), RingCache(4), "sees the key at 0, 4 before it, and the cache then holds the 4 newest keys"),
        (causal(), RingCache(4), "the 4 newest keys"),
        (causal(), SlidingCache(4, 3), "the 4 newest keys"),
        (full(), RingCache(4), "the 4 newest keys"),
        (sliding_window(5), RingCache(4), "the 4 newest keys"),
        (window(4, 0), SlidingCache(4), "the 4 newest keys"),
        (STATIC_SINKS, RingCache(4), "sees the key at 0"),
        (causal() & (sliding_window(3) ^ True), RingCache(4), "the 4 newest keys"),
        (per_head([sliding_window(4), causal()]), RingCache(4), "the 4 newest keys"),
        (causal() | prefix(torch.tensor(2)), RingCache(4), "the 4 newest keys"),
        (causal(), PrefixRingCache(2, 4), "the 4 newest keys and the first 2"),
        (causal() & (sliding_window(4) | sinks(3)), PrefixRingCache(2, 4), "the 4 newest keys and the first 2"),
        (causal(), ChunkedCache(4), "the query's own chunk of 4 keys"),
        (causal() & chunked(8), ChunkedCache(4), "the query's own chunk of 4 keys"),
        (causal() & sliding_window(4), ChunkedCache(4), "the query's own chunk of 4 keys"),
        (causal(), ChunkedCache(4, start=torch.tensor(1)), "the query's own chunk of 4 keys"),
        (causal() & chunked(4), ChunkedCache(4, start=1), "the query's own chunk of 4 keys"),
    ],
)
@pytest.mark.parametrize("backend", ["sdpa", "flash"])
def test_a_mask_wider_than_its_cache_is_refused(mask, layout, seen, backend):
    """It was accepted, and lost the keys."""
    with pytest.raises(UnsupportedMask) as caught:
        DecodePlan(mask, layout, 1, 2, 1, backend=backend)
    # flash's own holder may have said no before: slots out of order, or a mask that is no band.
    assert seen in str(caught.value) or (backend == "flash" and 'Use backend="flex" or "sdpa"' in str(caught.value))


def test_flash_on_a_ring_names_the_keys_it_would_lose():
    with pytest.raises(UnsupportedMask) as caught:
        DecodePlan(causal(), RingCache(4), 1, 1, 1, backend="flash")
    assert str(caught.value) == (
        "DecodePlan(causal(), RingCache(window=4, headroom=0), 1, 1, 1, backend='flash'): not supported, the query at "
        "position 4 sees the key at 0, 4 before it, and the cache then holds the 4 newest keys. Make the cache hold "
        "what the mask shows, narrow the mask (`& sliding_window(n)`), or take a StaticCache."
    )


@pytest.mark.parametrize(
    ("mask", "layout"),
    [
        (sliding_window(4), RingCache(4)),
        (window(3, 1), SlidingCache(4, 2)),
        (sliding_window(3) & full(), RingCache(4)),
        (causal() & (sliding_window(4) | sinks(2)), PrefixRingCache(2, 4)),
        (causal() & chunked(4), ChunkedCache(4)),
        (causal() & chunked(4, start=3), ChunkedCache(4, start=3)),
        (per_head([sliding_window(4), sliding_window(2)]), RingCache(4)),
        (causal() & key_padding(torch.tensor([9])), StaticCache(16)),
    ],
)
def test_a_mask_that_its_cache_holds_is_not(mask, layout):
    assert "assumed" not in str(DecodePlan(mask, layout, 1, 2, 1, backend="sdpa").explain())


@pytest.mark.parametrize(
    ("mask", "layout", "held"),
    [
        (sliding_window(torch.tensor(4)), RingCache(4), "the 4 newest keys"),
        (causal() & document(DOCUMENTS), SlidingCache(6), "the 6 newest keys"),
        (MASKS["lambda"][0], RingCache(6), "the 6 newest keys"),
        (MASKS["sinks"][0], PrefixRingCache(1, 4), "the 4 newest keys and the first 1"),
        (causal() & chunked(4, start=torch.tensor([1, 2])), ChunkedCache(4), "the query's own chunk of 4 keys"),
    ],
)
def test_what_structure_does_not_show_is_told(mask, layout, held):
    lines = DecodePlan(mask, layout, B, H, 1, backend="sdpa").explain().lines
    assert f"assumed: no query sees a key that the cache has forgotten; it holds {held}" in lines


# --------------------------------------------------------------------------------------------------------- subclasses


class Anticausal(Causal):
    def __call__(self, b, h, q_idx, kv_idx):
        return kv_idx >= q_idx


class Either(And):
    def __call__(self, b, h, q_idx, kv_idx):
        return self.left(b, h, q_idx, kv_idx) | self.right(b, h, q_idx, kv_idx)


class AtLeast(KeyLengths):
    def __call__(self, b, h, q_idx, kv_idx):
        return kv_idx >= self.lengths[b]


class AllButFirst(StaticCache):
    def slots(self, cache_position, q_len, *, device=None):
        kv_positions, valid = super().slots(cache_position, q_len, device=device)
        return Slots(kv_positions, valid & (kv_positions > 0))


def test_a_subclass_is_not_taken_for_its_base():
    """It may say something else: slots that were never written stay hidden, and flash refuses."""
    for mask, want in ((Anticausal(), [3]), (Either(causal(), full()), [0, 1, 2, 3])):
        plan = DecodePlan(mask, StaticCache(8), 1, 1, 1, backend="sdpa")
        assert step(plan, 3).attn_mask.flatten().nonzero().flatten().tolist() == want
    plan = DecodePlan(causal(), AllButFirst(8), 1, 1, 1, backend="sdpa")
    assert step(plan, 3).attn_mask.flatten().nonzero().flatten().tolist() == [1, 2, 3]
    lengths = torch.tensor([1, 2])
    for mask, layout in (
        (causal() & AtLeast(lengths), StaticCache(8)),
        (Either(causal(), key_padding(lengths)), StaticCache(8)),
        (causal(), AllButFirst(8)),
    ):
        with pytest.raises(UnsupportedMask):
            DecodePlan(mask, layout, 2, 1, 1, backend="flash")


# ------------------------------------------------------------------------------------------------- copies and modes


BACKENDS = ["sdpa", "eager", "flex", "flash"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda plan: pickle.loads(pickle.dumps(plan))])
def test_a_copy_is_a_plan_of_its_own(backend, how):
    mask, predicate = MASKS["window"]
    plan = DecodePlan(mask, LAYOUTS["paged"], B, H, 1, backend=backend, dtype=torch.bfloat16)
    plan.step_(30)
    other = how(plan)
    assert repr(other) == repr(plan)
    for moved, still in ((plan, other), (other, plan)):
        before = [t.clone() for t in still._holder.buffers()]
        moved.step_(torch.tensor([[7], [12]]))
        for old, new in zip(before, still._holder.buffers(), strict=True):
            assert torch.equal(old, new)
    if backend != "flash":
        assert torch.equal(seen(other), torch.tensor(expected(predicate, LAYOUTS["paged"], (7, 12), 1)))
    for mine, theirs in zip(plan._holder.buffers(), other._holder.buffers(), strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_plan_made_in_inference_mode_works_outside(backend):
    with torch.inference_mode():
        layout = LAYOUTS["ring" if backend != "flash" else "paged"]
        plan = DecodePlan(causal() & sliding_window(6), layout, B, H, 1, backend=backend)
        plan.step_(3)
    plan.step_(torch.tensor([[7], [12]]))
    with torch.no_grad():
        plan.step_(8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_plan_lives_where_its_pages_do(backend):
    layout = PagedCache(torch.zeros(B, 2, dtype=torch.int32, device="meta"), 4, num_pages=4)
    assert {t.device.type for t in on_cache(causal(), layout, 3, 1).tensors()} == {"meta"}
    plan = DecodePlan(causal(), layout, B, H, 1, backend=backend)
    assert {t.device.type for t in plan._holder.buffers()} == {"meta"}


# ----------------------------------------------------------------------------------------------------------- errors


def test_errors():
    with pytest.raises(MaskValueError, match="headroom is 3, 2 too little"):
        DecodePlan(causal(), RingCache(6, 3), B, H, 6, backend="sdpa")
    with pytest.raises(MaskValueError, match="301 slots needed from position 0, 300 there, 1 too few"):
        DecodePlan(causal(), StaticCache(300), B, H, 301, backend="sdpa")
    with pytest.raises(BackendError, match="no such backend"):
        DecodePlan(causal(), StaticCache(300), B, H, 1, backend="fast")
    plan = DecodePlan(causal(), StaticCache(300), B, H, 2, backend="sdpa")
    with pytest.raises(MaskShapeError, match="3 rows, the plan has 2"):
        plan.step_(torch.zeros(3, 1, dtype=torch.long))
    with pytest.raises(MaskShapeError, match=r"Pass an int, or a tensor of shape \(\), \(1,\), \(2,\)"):
        plan.step_(torch.zeros(3, dtype=torch.long))
    for past_the_end in (LAYOUTS["static"], LAYOUTS["paged"]):
        for q_len in (1, 4):
            plan = DecodePlan(causal(), past_the_end, B, H, q_len, backend="sdpa")
            plan.step_(9)
            before = seen(plan).clone()
            with pytest.raises(MaskValueError, match="slots needed from position 304"):
                plan.step_(304)
            assert torch.equal(seen(plan), before)
    for rows in (1, 3):
        with pytest.raises(MaskShapeError, match=f"the cache has 2 rows, the plan {rows}. Pass B=2"):
            DecodePlan(causal(), LAYOUTS["paged"], rows, H, 1, backend="flash")
    with pytest.raises(MaskShapeError, match="the cache has 3 rows, the plan 2"):
        DecodePlan(causal(), ChunkedCache(4, start=torch.zeros(3, dtype=torch.long)), B, H, 1, backend="sdpa")
    with pytest.raises(MaskTypeError, match="a int is no cache layout"):
        DecodePlan(causal(), 300, B, H, 1, backend="sdpa")  # pyright: ignore[reportArgumentType, reportCallIssue]
    with pytest.raises(MaskTypeError, match=r"torch\.int32.*Pass a floating dtype"):
        DecodePlan(causal(), StaticCache(300), B, H, 1, backend="eager", dtype=torch.int32)
    with pytest.raises(MaskValueError, match="q_len: 0 queries"):
        DecodePlan(causal(), StaticCache(300), B, H, 0, backend="sdpa")
    with pytest.raises(MaskValueError, match="q_len=-1"):
        DecodePlan(causal(), StaticCache(300), B, H, -1, backend="sdpa")
    with pytest.raises(MaskShapeError, match="3 rows, 2 needed"):
        DecodePlan(chunked(4, start=torch.zeros(3, dtype=torch.long)), StaticCache(300), B, H, 1, backend="sdpa")


def test_explain_says_what_is_held():
    plan = DecodePlan(causal() & key_padding(VALID), StaticCache(LENGTH), B, H, 1, backend="sdpa")
    assert str(plan.explain()) == (
        "mask: causal() & key_padding(bool[2, 300])\n"
        "layout: StaticCache(max_len=300): 300 slots; slot i holds position i, up to the query's own\n"
        "step: 1 query in each of 2 rows, 2 heads\n"
        "backend: sdpa: a boolean at a fixed address, rewritten each step\n"
        "  boolean [2, 1, 1, 300]; outside a graph the mask is recorded once and replayed\n"
        "memory: 616 bytes in 2 buffers"
    )
    assert repr(plan) == (
        "DecodePlan(causal() & key_padding(bool[2, 300]), StaticCache(max_len=300), 2, 2, 1, backend='sdpa')"
    )
    per = DecodePlan(MASKS["per head"][0], StaticCache(LENGTH), B, H, 1, backend="flex")
    assert "tables of [2, 2, 1, 3] blocks of 128" in str(per.explain())
