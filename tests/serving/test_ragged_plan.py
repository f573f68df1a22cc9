"""Ragged plans against requests simulated slot by slot: every mask, layout and backend, at addresses that stay."""

from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask

from looks import Looks
from maskmod import key_padding, shift
from maskmod.caches import Gathered, Paged, StaticCache
from maskmod.errors import BackendError, MaskShapeError, MaskTypeError, MaskValueError, UnsupportedMask
from maskmod.serving import RaggedPlan
from ragged_lives import CASES, HEADS, LENGTH, Lives, Rows, arguments, seen_over_keys, seen_over_pages, tokens

TOKENS, REQUESTS, PAGES, PAGE = 14, 4, 23, 4
COLUMNS = -(-LENGTH // PAGE)
PAGED = Paged(PAGES, PAGE, max_pages=COLUMNS)
GATHERED = Gathered(90)


def seen(plan: RaggedPlan) -> torch.Tensor:
    """What a plan's arguments let through, bool (H, max_tokens, slots)."""
    value: Any = plan.args[0]  # pyright: ignore[reportIndexIssue]
    if isinstance(value, BlockMask):
        return from_blocks(value, plan.sizes)
    visible = value if value.dtype == torch.bool else value == 0
    return visible.expand(plan.sizes)[0]


def from_blocks(blocks: BlockMask, sizes) -> torch.Tensor:
    shown = torch.zeros(sizes[1:], dtype=torch.bool)
    rows, columns = blocks.BLOCK_SIZE
    tables = (
        (blocks.kv_num_blocks, blocks.kv_indices, False),
        (blocks.full_kv_num_blocks, blocks.full_kv_indices, True),
    )
    truth = torch.stack([lifted(blocks.mask_mod, h, sizes) for h in range(sizes.H)])
    for count, indices, is_full in tables:
        assert count is not None
        assert indices is not None
        count, indices = count.expand(1, sizes.H, -1), indices.expand(1, sizes.H, -1, -1)
        for h in range(sizes.H):
            for row in range(count.shape[2]):
                for column in indices[0, h, row, : count[0, h, row]].tolist():
                    block = (h, slice(row * rows, (row + 1) * rows), slice(column * columns, (column + 1) * columns))
                    shown[block] = True if is_full else truth[block]
    return shown


def lifted(mask_mod, h, sizes):
    b, h = torch.tensor(0), torch.tensor(h)
    each = torch.vmap(torch.vmap(mask_mod, in_dims=(None, None, None, 0)), in_dims=(None, None, 0, None))
    return each(b, h, torch.arange(sizes.q_len), torch.arange(sizes.kv_len))


def lives_of(seed: int, most: int = 9) -> Lives:
    return Lives(seed, pages=PAGES, page_size=PAGE, max_tokens=TOKENS, max_requests=REQUESTS, most=most)


def addresses(plan: RaggedPlan) -> list:
    return [(t.data_ptr(), t.shape, t.stride()) for t in (*plan._where.buffers(), *plan._holder.buffers())]


def check_pages(name: str, backend: str, seed: int, steps: int, **options: Any) -> None:
    case = CASES[name]
    rows, server = Rows(case, REQUESTS), lives_of(seed)
    plan = RaggedPlan(rows.mask, PAGED, TOKENS, REQUESTS, HEADS, backend=backend, **options)
    before = addresses(plan)
    for number, lives in enumerate(server.steps(steps)):
        rows.write(lives)
        starts, lengths, table = arguments(lives, REQUESTS, COLUMNS, fill=number % 2 == 0)
        assert plan.step_(starts, lengths, table) is plan.args
        want = torch.tensor(seen_over_pages(case, lives, server, TOKENS))
        assert torch.equal(seen(plan), want), f"{name} {backend} seed={seed} step={number}"
        check_tokens(plan, lives, [life.pages[q // PAGE] * PAGE + q % PAGE for life, q in tokens(lives)])
    assert addresses(plan) == before


def check_keys(name: str, backend: str, seed: int, steps: int, **options: Any) -> None:
    case, rng = CASES[name], random.Random(seed)
    rows, server = Rows(case, REQUESTS), lives_of(seed)
    plan = RaggedPlan(rows.mask, GATHERED, TOKENS, REQUESTS, HEADS, backend=backend, **options)
    before = addresses(plan)
    for number, lives in enumerate(server.steps(steps)):
        rows.write(lives)
        starts, lengths, _ = arguments(lives, REQUESTS, COLUMNS, fill=number % 2 == 0)
        kept = [life.length for life in lives]
        keys = None
        if number % 3:  # a window's keys: the last ones, those of this step at least
            kept = [rng.randint(life.count, life.length) for life in lives]
            sums = [sum(kept[:i]) for i in range(len(kept) + 1)]
            keys = torch.tensor(sums + sums[-1:] * (len(starts) - len(sums)))
        plan.step_(starts, lengths, key_start_loc=keys)
        want = torch.tensor(seen_over_keys(case, lives, kept, TOKENS, GATHERED.max_keys))
        assert torch.equal(seen(plan), want), f"{name} {backend} seed={seed} step={number}"
        begins = {id(life): sum(kept[:i]) - life.length + kept[i] for i, life in enumerate(lives)}
        slots = [begins[id(life)] + q for life, q in tokens(lives)]
        check_tokens(plan, lives, [slot if slot < GATHERED.max_keys else -1 for slot in slots])
    assert addresses(plan) == before


def check_tokens(plan: RaggedPlan, lives, slots) -> None:
    where = tokens(lives)
    unused = TOKENS - len(where)
    of = {id(life): row for row, life in enumerate(lives)}
    assert plan.requests.tolist() == [of[id(life)] for life, _ in where] + [-1] * unused
    assert plan.positions[: len(where)].tolist() == [q for _, q in where]
    assert plan.write_slots().tolist() == slots + [-1] * unused


@pytest.mark.parametrize("name", CASES)
def test_a_boolean_over_pages(name):
    check_pages(name, "sdpa", seed=1, steps=12)


@pytest.mark.parametrize("name", CASES)
def test_a_boolean_over_gathered_keys(name):
    check_keys(name, "sdpa", seed=2, steps=12)


@pytest.mark.parametrize("name", ["causal", "image spans", "per head", "tree", "lambda"])
@pytest.mark.parametrize("backend", ["eager", "flex"])
def test_a_bias_and_blocks_over_pages(name, backend):
    check_pages(name, backend, seed=3, steps=5, dtype=torch.bfloat16)


@pytest.mark.parametrize("name", ["window", "image spans", "per head", "depth-first tree", "where"])
@pytest.mark.parametrize("backend", ["eager", "flex"])
def test_a_bias_and_blocks_over_gathered_keys(name, backend):
    check_keys(name, backend, seed=4, steps=5, dtype=torch.bfloat16)


@pytest.mark.parametrize("block_size", [1, 3, 4, 8])
@pytest.mark.parametrize("name", ["causal", "window", "two-sided", "full", "negated", "documents", "image spans"])
def test_small_blocks(name, block_size):
    """Many blocks of tokens and slots, whole pages and parts of pages in each."""
    for seed in (8, 9):
        check_pages(name, "flex", seed=seed, steps=4, block_size=block_size)
        check_keys(name, "flex", seed=seed, steps=4, block_size=block_size)


@pytest.mark.parametrize("name", ["causal", "window", "two-sided", "full"])
@pytest.mark.parametrize(("layout", "size"), [(GATHERED, 2), (PAGED, PAGE), (PAGED, 2 * PAGE)])
def test_blocks_of_bands_are_few(name, layout, size):
    """No block is visited without need where whole pages make a block, and full blocks are called full."""
    server = lives_of(10, most=14)
    plan = RaggedPlan(CASES[name].build(), layout, TOKENS, REQUESTS, 1, backend="flex", block_size=size)
    full = 0
    for lives in server.steps(20):
        starts, lengths, table = arguments(lives, REQUESTS, COLUMNS, fill=False)
        args: Any = plan.step_(starts, lengths, *((table,) if layout is PAGED else ()))
        blocks = args.block_mask
        visible = lifted(plan.mask, 0, plan.sizes)
        padding = (0, -visible.shape[1] % size, 0, -visible.shape[0] % size)
        tiles = torch.nn.functional.pad(visible, padding).unflatten(1, (-1, size)).unflatten(0, (-1, size))
        some, every = tiles.any(3).any(1), tiles.all(3).all(1)
        visited = blocks.kv_num_blocks + blocks.full_kv_num_blocks
        assert torch.equal(visited[0, 0], some.sum(-1).int())
        assert torch.equal(blocks.full_kv_num_blocks[0, 0], every.sum(-1).int())
        full += int(every.sum())
    assert full or (layout is PAGED and (size > PAGE or name in ("window", "two-sided")))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("check", [check_pages, check_keys])
def test_long_lives(name, check):
    for backend, steps in (("sdpa", 300), ("eager", 20), ("flex", 40)):
        check(name, backend, seed=5, steps=steps)


# ------------------------------------------------------------------------------------------------------------ lengths


def kernel_sees(args: Any, lives, row: int, kept: int) -> list[set[int]]:
    """flash-attention's variable lengths as documented: the positions that each token of a request reads."""
    count = int(args.cu_seqlens_q[row + 1] - args.cu_seqlens_q[row])
    left, right = args.window_size
    if args.causal:
        right = 0
    rows = []
    for i in range(count):
        own = kept - count + i  # the last query stands on the last key
        reads = [kv for kv in range(kept) if (left < 0 or kv >= own - left) and (right < 0 or kv <= own + right)]
        rows.append({lives[row].length - kept + kv for kv in reads})
    return rows


@pytest.mark.parametrize("backend", ["flash", "varlen"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.is_band and name != "negated"])
def test_lengths_and_pages(name, backend):
    case, server = CASES[name], lives_of(6)
    plans = {
        layout: RaggedPlan(case.build(), layout, TOKENS, REQUESTS, HEADS, backend=backend)
        for layout in (PAGED, GATHERED)
    }
    before = {layout: addresses(plan) for layout, plan in plans.items()}
    for lives in server.steps(20):
        starts, lengths, table = arguments(lives, REQUESTS, COLUMNS, fill=False)
        paged: Any = plans[PAGED].step_(starts, lengths, table)
        gathered: Any = plans[GATHERED].step_(starts, lengths)
        for args in (paged, gathered):
            assert {t.dtype for t in args[:4] if t is not None} == {torch.int32}
            assert args.cu_seqlens_q.tolist() == starts.tolist() + starts.tolist()[-1:] * (REQUESTS + 1 - len(starts))
        for row, life in enumerate(lives):
            want = [
                {kv for kv in range(life.length) if case.says(life, 0, life.held + i, kv)} for i in range(life.count)
            ]
            assert kernel_sees(paged, lives, row, life.length) == want
            assert kernel_sees(gathered, lives, row, life.length) == want
            if life.count:
                assert paged.seqused_k[row] == life.length
                assert paged.block_table[row, : len(life.pages)].tolist() == life.pages
            begin, end = gathered.cu_seqlens_k[row : row + 2].tolist()
            assert end - begin == life.length
        assert paged.seqused_k[len(lives) :].sum() == 0
        assert paged.block_table.min() >= 0
    assert {layout: addresses(plan) for layout, plan in plans.items()} == before


def test_the_names_of_two_kernels():
    starts, lengths, table = torch.tensor([0, 2]), torch.tensor([5]), torch.tensor([[3, 1]])
    plan = RaggedPlan(CASES["window"].build(), PAGED, TOKENS, REQUESTS, HEADS, backend="flash")
    kwargs = plan.step_(starts, lengths, table).kwargs()
    assert sorted(kwargs) == [
        "block_table", "causal", "cu_seqlens_k", "cu_seqlens_q", "max_seqlen_k", "max_seqlen_q", "seqused_k",
        "window_size",
    ]  # fmt: skip
    assert (kwargs["causal"], kwargs["window_size"], kwargs["cu_seqlens_k"]) == (True, (3, 0), None)
    plan = RaggedPlan(CASES["window"].build(), PAGED, TOKENS, REQUESTS, HEADS, backend="varlen")
    kwargs = plan.step_(starts, lengths, table).kwargs()
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    inspect.signature(varlen_attn).bind(None, None, None, **kwargs)
    assert kwargs["window_size"] == (3, 0)


# --------------------------------------------------------------------------------------------------------------- bits


@pytest.mark.parametrize("name", [name for name in CASES if name != "per head"])
def test_bits(name):
    """FlashInfer's layout, read back by its definition: bit q * keys + k of each request, lowest first."""
    case = CASES[name]
    rows, server = Rows(case, REQUESTS), lives_of(7)
    plan = RaggedPlan(rows.mask, PAGED, TOKENS, REQUESTS, HEADS, backend="flashinfer")
    before = addresses(plan)
    for lives in server.steps(6):
        rows.write(lives)
        starts, lengths, table = arguments(lives, REQUESTS, COLUMNS, fill=False)
        args: Any = plan.step_(starts, lengths, table)
        bits = [bool(byte >> i & 1) for byte in args.packed_custom_mask.tolist() for i in range(8)]
        for row, life in enumerate(lives):
            first = int(args.mask_indptr[row]) * 8
            assert (int(args.mask_indptr[row + 1]) * 8 - first) == -(-life.count * life.length // 8) * 8
            for i in range(life.count):
                got = bits[first + i * life.length : first + (i + 1) * life.length]
                assert got == [bool(case.says(life, 0, life.held + i, kv)) for kv in range(life.length)]
            begin, end = args.paged_kv_indptr[row : row + 2].tolist()
            if life.count:
                held = -(-life.length // PAGE)
                assert args.paged_kv_indices[begin:end].tolist() == life.pages[:held]
                assert args.paged_kv_last_page_len[row] == life.length - (held - 1) * PAGE
            else:
                assert begin == end
    assert addresses(plan) == before


# ------------------------------------------------------------------------------------------------- promises and errors


BACKENDS = ["sdpa", "eager", "flex", "flash", "varlen", "flashinfer"]
STEP = (torch.tensor([0, 2, 3]), torch.tensor([5, 1]), torch.tensor([[3, 1], [2, -1]]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_waits_for_no_value(backend):
    for layout in (PAGED, GATHERED) if backend != "flashinfer" else (PAGED,):
        for name in ("causal",) if backend in ("flash", "varlen") else ("causal", "documents", "tree"):
            plan = RaggedPlan(Rows(CASES[name], REQUESTS).mask, layout, TOKENS, REQUESTS, HEADS, backend=backend)
            with Looks() as looks:
                plan.step_(*(STEP if layout is PAGED else STEP[:2]))
                plan.write_slots()
            assert not looks.found, (name, layout)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda plan: pickle.loads(pickle.dumps(plan))])
def test_a_copy_is_a_plan_of_its_own(backend, how):
    plan = RaggedPlan(CASES["window"].build(), PAGED, TOKENS, REQUESTS, HEADS, backend=backend, dtype=torch.bfloat16)
    plan.step_(*STEP)
    other = how(plan)
    assert repr(other) == repr(plan)
    assert not (set(addresses(other)) & set(addresses(plan)))
    assert (other.requests == -1).all()
    before = [t.clone() for t in plan._holder.buffers()]
    other.step_(torch.tensor([0, 1]), torch.tensor([3]), torch.tensor([[4]]))
    for old, new in zip(before, plan._holder.buffers(), strict=True):
        assert torch.equal(old, new)
    other.step_(*STEP)
    for old, new in zip(before, other._holder.buffers(), strict=True):
        assert old.dtype == new.dtype
        assert torch.equal(old, new)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_plan_made_in_inference_mode_works_outside(backend):
    with torch.inference_mode():
        plan = RaggedPlan(CASES["causal"].build(), PAGED, TOKENS, REQUESTS, HEADS, backend=backend)
        plan.step_(*STEP)
    plan.step_(*STEP)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_plan_lives_where_it_is_told(backend):
    plan = RaggedPlan(CASES["causal"].build(), PAGED, TOKENS, REQUESTS, HEADS, backend=backend, device="meta")
    assert {t.device.type for t in (*plan._where.buffers(), *plan._holder.buffers())} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_narrow_integers_say_the_same(dtype):
    plans = [RaggedPlan(CASES["causal"].build(), PAGED, TOKENS, REQUESTS, HEADS, backend="sdpa") for _ in range(2)]
    table = torch.tensor([[3, 1], [2, 30]])  # the pool has no page 30
    plans[0].step_(*STEP[:2], table)
    plans[1].step_(STEP[0].to(dtype), STEP[1].to(dtype), table.to(dtype))
    assert torch.equal(seen(plans[0]), seen(plans[1]))
    assert seen(plans[0])[0].sum(-1).tolist() == [4, 5, 1] + [0] * (TOKENS - 3)


def test_a_page_named_twice_holds_what_the_first_entry_says():
    plan = RaggedPlan(CASES["full"].build(), Paged(3, 2), 2, 1, 1, backend="sdpa")
    plan.step_(torch.tensor([0, 1]), torch.tensor([6]), torch.tensor([[0, 2, 0]]))
    assert seen(plan)[0, 0].int().tolist() == [1, 1, 0, 0, 1, 1]
    plan = RaggedPlan(CASES["causal"].build(), Paged(3, 2), 2, 1, 1, backend="eager")
    plan.step_(torch.tensor([0, 1]), torch.tensor([5]), torch.tensor([[2, 0, 2]]))
    assert seen(plan)[0, 0].int().tolist() == [1, 1, 0, 0, 1, 1]


def test_blocks_of_other_requests_are_not_visited():
    """128 tokens and slots a block: the pages of one request are not those of another."""
    layout = Paged(64, 16)
    plan = RaggedPlan(CASES["causal"].build(), layout, 256, 2, 1, backend="flex")
    table = torch.full((2, 9), -1)
    table[0], table[1, :1] = torch.arange(9), 40
    blocks: Any = plan.step_(torch.tensor([0, 128, 129]), torch.tensor([144, 3]), table).kwargs()["block_mask"]
    both = blocks.kv_num_blocks + blocks.full_kv_num_blocks
    assert both[0, 0].tolist() == [2, 1]
    assert blocks.kv_indices[0, 0, 1, 0] == 40 * 16 // 128


def test_the_cost_of_a_pool_is_told():
    def lines(name: str, backend: str = "sdpa", layout: Any = PAGED) -> str:
        mask = Rows(CASES[name], REQUESTS).mask
        return str(RaggedPlan(mask, layout, TOKENS, REQUESTS, HEADS, backend=backend).explain())

    cost = "cost: every token meets all 92 slots of the pool, whatever the 4 requests hold"
    assert f'{cost}; backend="flash" reads a request\'s own pages alone' in lines("causal")
    assert f'{cost}; backend="flex" reads a request\'s own pages alone' in lines("documents")
    assert cost in lines("causal", "eager")
    assert "cost" not in lines("causal", "flex")
    assert "cost" not in lines("causal", "sdpa", GATHERED)
    layout = "Paged(num_pages=23, page_size=4, max_pages=10)"
    assert lines("window", "flash") == (
        "mask: causal() & sliding_window(4)\n"
        f"layout: {layout}: 92 slots; a table of the pages that each request maps\n"
        "step: 14 tokens of at most 4 requests, 2 heads\n"
        "backend: flash: a band: lengths at fixed addresses, no mask\n"
        "  cu_seqlens_q [5], seqused_k [4], block_table [4, 10]; causal=True, window_size=(3, 0)\n"
        "memory: 1500 bytes in 10 buffers"
    )


@pytest.mark.parametrize(
    ("name", "backend", "layout", "seen"),
    [
        ("documents", "flash", PAGED, "one diagonal band"),
        ("lengths", "varlen", GATHERED, "one diagonal band"),
        ("negated", "flash", PAGED, "one diagonal band"),
        ("lambda", "flash", PAGED, "one diagonal band"),
        ("causal", "flashinfer", GATHERED, "FlashInfer reads its keys from pages"),
        ("per head", "flashinfer", PAGED, "bits have no heads"),
    ],
)
def test_what_a_backend_cannot_say_is_refused(name, backend, layout, seen):
    with pytest.raises(UnsupportedMask, match=seen):
        RaggedPlan(Rows(CASES[name], REQUESTS).mask, layout, TOKENS, REQUESTS, HEADS, backend=backend)


def test_a_band_without_the_own_key_is_refused():
    with pytest.raises(UnsupportedMask, match="leaves out the query's own key"):
        RaggedPlan(shift(CASES["causal"].build(), kv_offset=1), PAGED, TOKENS, REQUESTS, HEADS, backend="flash")


def test_errors():
    causal = CASES["causal"].build()
    with pytest.raises(MaskTypeError, match="a StaticCache is no flat layout"):
        RaggedPlan(causal, StaticCache(8), 4, 2, 1, backend="sdpa")  # pyright: ignore[reportArgumentType]
    with pytest.raises(BackendError, match="no such backend"):
        RaggedPlan(causal, PAGED, 4, 2, 1, backend="fast")
    with pytest.raises(MaskValueError, match="0 tokens"):
        RaggedPlan(causal, PAGED, 0, 2, 1, backend="sdpa")
    with pytest.raises(MaskValueError, match="0 requests"):
        RaggedPlan(causal, PAGED, 4, 0, 1, backend="sdpa")
    with pytest.raises(MaskShapeError, match="2 rows, 3 needed"):
        RaggedPlan(key_padding(torch.tensor([1, 2])), PAGED, 4, 3, 1, backend="sdpa")
    with pytest.raises(MaskTypeError, match=r"torch\.int32.*Pass a floating dtype"):
        RaggedPlan(causal, PAGED, 4, 2, 1, backend="eager", dtype=torch.int32)
    for name, layout in (
        ("Paged", lambda: Paged(0, 4)),
        ("Paged", lambda: Paged(4, 0)),
        ("Gathered", lambda: Gathered(0)),
    ):
        with pytest.raises(MaskValueError, match=name):
            layout()
    paged = RaggedPlan(causal, PAGED, 4, 2, 1, backend="sdpa")
    gathered = RaggedPlan(causal, GATHERED, 4, 2, 1, backend="sdpa")
    starts, lengths, table = STEP
    before = seen(paged).clone()
    with pytest.raises(MaskTypeError, match="the keys lie in pages"):
        paged.step_(starts, lengths)
    with pytest.raises(MaskTypeError, match="the keys lie in pages"):
        paged.step_(starts, lengths, table, key_start_loc=starts)
    with pytest.raises(MaskTypeError, match="the keys lie end to end"):
        gathered.step_(starts, lengths, table)
    with pytest.raises(MaskShapeError, match="one says how many requests there are, the other says otherwise"):
        paged.step_(starts, lengths[:1], table)
    with pytest.raises(MaskShapeError, match="it describes 3 requests, the plan holds 2"):
        paged.step_(torch.zeros(4).long(), torch.zeros(3).long(), table)
    with pytest.raises(MaskShapeError, match="the plan holds 2 requests of 10 pages"):
        paged.step_(starts, lengths, torch.zeros(2, 11).long())
    with pytest.raises(MaskShapeError, match="a 1-d tensor"):
        paged.step_(starts, lengths, torch.zeros(2).long())
    with pytest.raises(MaskTypeError, match="holds no integers"):
        paged.step_(starts.float(), lengths, table)
    with pytest.raises(MaskTypeError, match="a list"):
        paged.step_([0, 1], lengths, table)  # pyright: ignore[reportArgumentType]
    assert torch.equal(seen(paged), before), "a step that is refused changes nothing"
