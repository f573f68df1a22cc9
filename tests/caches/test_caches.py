"""Cache layouts against a simulation of each cache in plain Python, on random streams of steps."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from maskmod import causal, chunked, dense_mask, full, key_padding, prefix, sinks, sliding_window, window
from maskmod.caches import ChunkedCache, PagedCache, PrefixRingCache, RingCache, SlidingCache, StaticCache, on_cache
from maskmod.errors import MaskShapeError, MaskTypeError, MaskValueError

# ------------------------------------------------------------------------------------------------- the simulations


class Cells:
    """One row's cache as a list: the position last written into each slot, or None."""

    def __init__(self, size):
        self.cells: list = [None] * size

    def step(self, first, q_len):
        for position in range(first, first + q_len):
            self.cells[self.slot(position)] = position

    def slot(self, position):
        return position


class Ring(Cells):
    def slot(self, position):
        return position % len(self.cells)


class Sliding(Cells):
    base = 0

    def step(self, first, q_len):
        base = max(0, first + q_len - len(self.cells))
        old = {self.base + i: cell for i, cell in enumerate(self.cells)}
        self.cells = [old.get(base + i) for i in range(len(self.cells))]
        self.base = base
        super().step(first, q_len)

    def slot(self, position):
        return position - self.base


class PrefixRing(Cells):
    def slot(self, position):
        return position if position < PREFIX else PREFIX + (position - PREFIX) % (len(self.cells) - PREFIX)


class Paged(Cells):
    def __init__(self, size, pages, page_size):
        super().__init__(size)
        self.pages, self.page_size = pages, page_size

    def slot(self, position):
        return self.pages[position // self.page_size] * self.page_size + position % self.page_size


WINDOW, HEADROOM, LENGTH, PAGE, PREFIX = 5, 3, 24, 4, 3
BLOCK_TABLE = [[3, 0, 7, -1, 2, 5], [3, 1, 4, 6, 8, 9]]  # the first page is shared; row 0 misses page 3


def needed_by_window(first):
    return first - WINDOW + 1


def needed_by_chunk(first):
    return first // WINDOW * WINDOW


LAYOUTS = {
    "static": (lambda: StaticCache(LENGTH), lambda row: Cells(LENGTH), lambda first: 0),
    "sliding": (lambda: SlidingCache(WINDOW, HEADROOM), lambda row: Sliding(WINDOW + HEADROOM), needed_by_window),
    "ring": (lambda: RingCache(WINDOW, HEADROOM), lambda row: Ring(WINDOW + HEADROOM), needed_by_window),
    "prefix and ring": (
        lambda: PrefixRingCache(PREFIX, WINDOW, HEADROOM),
        lambda row: PrefixRing(PREFIX + WINDOW + HEADROOM),
        needed_by_window,
    ),
    "chunked": (lambda: ChunkedCache(WINDOW, HEADROOM), lambda row: Ring(WINDOW + HEADROOM), needed_by_chunk),
    "paged": (
        lambda: PagedCache(torch.tensor(BLOCK_TABLE), PAGE, num_pages=11),
        lambda row: Paged(11 * PAGE, BLOCK_TABLE[row], PAGE),
        lambda first: 0,
    ),
}


def streams(seed, rows):
    """Per row, a list of (first, q_len): drafts of up to headroom + 1 tokens, of which at least one is kept."""
    rng = random.Random(seed)
    firsts = [0] * rows
    while all(first < LENGTH for first in firsts):
        q_len = rng.randint(1, HEADROOM + 1)
        if max(firsts) + q_len > LENGTH:
            return
        yield tuple(firsts), q_len
        firsts = [first + rng.randint(1, q_len) for first in firsts]


def mapped(name, row, position):
    return name != "paged" or BLOCK_TABLE[row][position // PAGE] >= 0


def needed(name, oldest_needed, first, position):
    return position >= oldest_needed(first) or (name == "prefix and ring" and position < PREFIX)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("seed", range(8))
def test_slots_hold_what_a_simulated_cache_holds(name, seed):
    make, simulate, oldest_needed = LAYOUTS[name]
    layout = make()
    caches = [simulate(row) for row in range(2)]
    for firsts, q_len in streams(seed, 2):
        kv_positions, valid = layout.slots(torch.tensor(firsts)[:, None], q_len)
        assert kv_positions.shape == valid.shape == (2, layout.kv_len)
        slots = layout.write_slots(torch.tensor(firsts)[:, None], q_len)
        begins = layout.begins(torch.tensor(firsts)[:, None], q_len) if name == "sliding" else None
        for row, (first, cache) in enumerate(zip(firsts, caches, strict=True)):
            last = first + q_len - 1
            written = [p for p in range(first, last + 1) if mapped(name, row, p)]
            for position in written:
                if name == "paged":
                    cache.step(position, 1)
            if name != "paged":
                cache.step(first, q_len)
            if begins is not None:
                assert begins[row] == cache.base
            where = [cache.slot(p) if mapped(name, row, p) else -1 for p in range(first, last + 1)]
            assert slots[row].tolist() == where, f"seed={seed} row={row} first={first} q_len={q_len}"
            visible = {i: p for i, p in enumerate(kv_positions[row].tolist()) if valid[row, i]}
            for slot, position in visible.items():
                assert cache.cells[slot] == position, f"seed={seed} row={row} first={first} q_len={q_len} slot={slot}"
            wanted = [p for p in range(last + 1) if mapped(name, row, p) and needed(name, oldest_needed, first, p)]
            assert sorted(visible.values()) == wanted, f"seed={seed} row={row} first={first} q_len={q_len}"


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("q_len", [1, 3])
def test_every_form_of_position_says_the_same(name, q_len):
    layout = LAYOUTS[name][0]()
    want = layout.slots(9, q_len)
    steps = torch.arange(9, 9 + q_len)
    shared = [torch.tensor(9), torch.tensor([9]), steps, torch.tensor(9, dtype=torch.int32)]
    per_row = [torch.tensor([[9], [9]]), steps.expand(2, q_len)]
    for position in shared:
        for got, expected in zip(layout.slots(position, q_len), want, strict=True):
            assert got.shape == expected.shape
            assert torch.equal(got, expected.to(got.dtype))
    for position in per_row:
        for got, expected in zip(layout.slots(position, q_len), want, strict=True):
            assert torch.equal(got, expected.expand(2, layout.kv_len))
    written = layout.write_slots(9, q_len)
    for position in shared + per_row:
        assert (layout.write_slots(position, q_len) == written).all()


MASKS = {
    "causal": (causal, lambda b, q, kv: kv <= q),
    "full": (full, lambda b, q, kv: True),
    "sliding_window": (lambda: sliding_window(3), lambda b, q, kv: 0 <= q - kv < 3),
    "sinks": (
        lambda: causal() & (sliding_window(2) | sinks(1)),
        lambda b, q, kv: kv <= q and (q - kv < 2 or kv < 1),
    ),
    "chunked": (lambda: causal() & chunked(5), lambda b, q, kv: kv <= q and q // 5 == kv // 5),
    "padding": (
        lambda: causal() & key_padding(torch.tensor([[p >= 2 for p in range(LENGTH)], [True] * LENGTH])),
        lambda b, q, kv: kv <= q and (kv >= 2 or b == 1),
    ),
    "prefix": (
        lambda: window(2, 0) | prefix(torch.tensor([3, 0])),
        lambda b, q, kv: 0 <= q - kv <= 2 or kv < 3 - 3 * b,
    ),
    "lambda": (lambda: lambda b, h, q_idx, kv_idx: (q_idx + kv_idx) % 3 == 0, lambda b, q, kv: (q + kv) % 3 == 0),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("mask_name", MASKS)
def test_any_mask_on_any_layout(name, mask_name):
    make, simulate, oldest_needed = LAYOUTS[name]
    build, predicate = MASKS[mask_name]
    layout, mask = make(), build()
    caches = [simulate(row) for row in range(2)]
    for firsts, q_len in streams(3, 2):
        step = on_cache(mask, layout, torch.tensor(firsts)[:, None], q_len)
        visible = dense_mask(step, 2, 1, q_len, layout.kv_len)[:, 0].tolist()
        for row, (first, cache) in enumerate(zip(firsts, caches, strict=True)):
            for position in range(first, first + q_len):
                if name == "paged" and mapped(name, row, position):
                    cache.step(position, 1)
            if name != "paged":
                cache.step(first, q_len)
            for i in range(q_len):
                for slot, position in enumerate(cache.cells):
                    held = position is not None and position <= first + q_len - 1
                    held = held and needed(name, oldest_needed, first, position)
                    want = held and predicate(row, first + i, position)
                    assert visible[row][i][slot] == want, f"{name} {mask_name} firsts={firsts} q={i} slot={slot}"


def test_the_chunk_begins_where_the_mask_says():
    layout = ChunkedCache(4, start=torch.tensor([0, 1]))
    kv_positions, valid = layout.slots(torch.tensor([6]), 1)
    assert [sorted(p[v].tolist()) for p, v in zip(kv_positions, valid, strict=True)] == [[4, 5, 6], [5, 6]]


def test_pages_change_hands_in_place():
    table = torch.tensor([[0, -1], [1, -1]])
    layout = PagedCache(table, 2, num_pages=3)
    before = layout.slots(torch.tensor([[1], [1]]), 1)
    table[0, 1], table[1, 0] = 1, 2
    kv_positions, valid = layout.slots(torch.tensor([[3], [1]]), 1)
    assert before.valid.tolist() == [[True, True, False, False, False, False], [False, False, True, True, False, False]]
    assert valid.tolist() == [[True, True, True, True, False, False], [False, False, False, False, True, True]]
    assert kv_positions.tolist() == [[0, 1, 2, 3, 0, 0], [0, 0, 0, 0, 0, 1]]


@pytest.mark.parametrize("layout", [SlidingCache(4, 1), RingCache(4, 1), ChunkedCache(4, 1), PrefixRingCache(2, 4, 1)])
def test_too_little_headroom_says_how_much(layout):
    layout.slots(0, 2)
    for method in (layout.slots, layout.write_slots):
        with pytest.raises(
            MaskValueError, match=r"headroom=1.* with q_len=5: .* headroom is 1, 3 too little.*headroom=4"
        ):
            method(0, 5)


def test_a_static_cache_that_is_too_small_says_how_much():
    with pytest.raises(
        MaskValueError, match=r"StaticCache\(max_len=8\): 10 slots needed from position 7, 8 there, 2 too"
    ):
        StaticCache(8).slots(7, 3)
    with pytest.raises(MaskValueError, match="9 slots needed at once, 8 there, 1 too few"):
        StaticCache(8).slots(torch.tensor(0), 9)
    with pytest.raises(MaskValueError, match="5 slots needed at once, 4 there, 1 too few"):
        PagedCache(torch.tensor([[0, 1]]), 2, 2).slots(torch.tensor(0), 5)
    assert StaticCache(8).write_slots(torch.tensor(7), 3).tolist() == [7, -1, -1]


@pytest.mark.parametrize("name", LAYOUTS)
def test_positions_of_no_known_form_raise(name):
    layout = LAYOUTS[name][0]()
    for wrong in (torch.arange(3), torch.zeros(2, 3, dtype=torch.long), torch.zeros(1, 1, 1, dtype=torch.long)):
        with pytest.raises(MaskShapeError, match=r"with q_len=2: .*\(B, 2\)"):
            layout.slots(wrong, 2)
    with pytest.raises(MaskTypeError, match="holds no positions"):
        layout.slots(torch.tensor(1.0), 1)
    with pytest.raises(MaskValueError, match="-1 positions"):
        layout.slots(-1, 1)


def test_layouts_that_make_no_sense_raise():
    with pytest.raises(MaskValueError, match="StaticCache"):
        StaticCache(0)
    with pytest.raises(MaskValueError, match="RingCache"):
        RingCache(4, -1)
    with pytest.raises(MaskShapeError, match="1-d block table"):
        PagedCache(torch.tensor([0, 1]), 4, 2)
    with pytest.raises(MaskTypeError, match="page numbers"):
        PagedCache([[0]], 4, 2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(MaskShapeError, match="positions of 3 rows, a block table of 2"):
        PagedCache(torch.zeros(2, 2, dtype=torch.long), 4, 4).slots(torch.zeros(3, 1, dtype=torch.long), 1)
    sizes: list[Any] = [torch.tensor(4), True, 4.0]
    for size in sizes:
        for layout in (StaticCache, SlidingCache, RingCache, ChunkedCache):
            with pytest.raises(MaskTypeError, match=f"{layout.__name__}.* is not a number of"):
                layout(size)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_step_has_queries(name):
    layout = LAYOUTS[name][0]()
    for method in (layout.slots, layout.write_slots):
        for none in (0, -1):
            with pytest.raises(MaskValueError, match=f"q_len: {none} queries"):
                method(torch.tensor(3), none)
        for no_number in (True, 1.0, None, torch.tensor(1)):
            with pytest.raises(MaskTypeError, match=r"q_len: a \w+ is not a number of queries"):
                method(3, no_number)


def test_an_int_past_the_end_raises():
    for layout in (StaticCache(8), PagedCache(torch.tensor([[0, 1]]), 4, 2)):
        with pytest.raises(MaskValueError, match="10 slots needed from position 7, 8 there, 2 too few"):
            layout.slots(7, 3)


def test_rows_that_do_not_match_raise():
    position = torch.zeros(3, 1, dtype=torch.long)
    paged = PagedCache(torch.zeros(2, 2, dtype=torch.long), 4, 4)
    with pytest.raises(MaskShapeError, match="positions of 3 rows, a block table of 2"):
        paged.write_slots(position, 1)
    with pytest.raises(MaskShapeError, match="positions of 3 rows, starts of 2"):
        ChunkedCache(4, start=torch.tensor([0, 1])).slots(position, 1)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_narrow_positions_say_the_same(name, dtype):
    layout = LAYOUTS[name][0]()
    for rows in ([[2], [9]], [[2, 3], [9, 10]]):
        narrow, wide = torch.tensor(rows, dtype=dtype), torch.tensor(rows)
        for got, want in zip(layout.slots(narrow, 2), layout.slots(wide, 2), strict=True):
            assert got.dtype == want.dtype
            assert torch.equal(got, want)
        got = layout.write_slots(narrow, 2)
        assert got.dtype == torch.int64
        assert torch.equal(got, layout.write_slots(wide, 2))


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_position_has_no_slot(name):
    layout = LAYOUTS[name][0]()
    assert layout.write_slots(torch.tensor([[-1], [-3]]), 1).tolist() == [[-1], [-1]]
    kv_positions, valid = layout.slots(torch.tensor([[-1], [-3]]), 1)
    assert not valid.any()
    assert not kv_positions.any()


def test_narrow_page_numbers():
    table = torch.tensor([[100, -1], [2, -1]])
    for dtype in (torch.int8, torch.int16, torch.int32):
        wide, narrow = (PagedCache(t, 2, num_pages=200) for t in (table, table.to(dtype)))
        assert torch.equal(narrow.slots(3, 1).valid, wide.slots(3, 1).valid)
        assert torch.equal(narrow.write_slots(1, 2), wide.write_slots(1, 2))


def test_a_table_padded_with_zeros():
    layout = PagedCache(torch.tensor([[0, 2, 0, 0], [1, 0, 0, 0]], dtype=torch.int32), page_size=2, num_pages=3)
    kv_positions, valid = layout.slots(torch.tensor([[2], [1]]), 1)
    assert kv_positions.tolist() == [[0, 1, 0, 0, 2, 0], [0, 0, 0, 1, 0, 0]]
    assert valid.tolist() == [[True, True, False, False, True, False], [False, False, True, True, False, False]]
