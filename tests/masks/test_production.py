"""The twelve predicates of systems in production: against rules on ints, and against the vocabulary's own words."""

from __future__ import annotations

import pytest
import torch
from benchmarks import production

from maskmod import (
    Mask,
    block_mask,
    blockwise,
    causal,
    classify_blocks,
    dense_mask,
    document,
    key_padding,
    shift,
)
from maskmod.masks import block_diffusion, dflash, eagle3, p_eagle
from oracle import Spec, loop_table

DOCUMENTS = [0] * 9 + [1] * 4 + [2] * 15 + [-1] * 4  # 32 places, four of padding
ids = torch.tensor(DOCUMENTS)
ANCHORS, BLOCK = [3, 8, 11, 20, 27], 4
SAMPLES = [(i, 0) for i in range(32)] + [(i, 1) for i in (0, 3, 8, 12, 20)] + [(i, 2) for i in (3, 20)]
KEEP = [[True, True, False, True, True], [True, False, True, True, True]]
ROW_ANCHORS = [ANCHORS, [1, 9, 13, 22, 26]]
VALID = [[k < 20 for k in range(24)], [k % 7 != 3 for k in range(24)]]
TOKENS = [[5, 0, 3, 3, 3, 0, 0, 7, 7, 7, 7, 7, 0, 1, 1, 1], [2] * 9 + [0] + [4] * 6]

# A cache of eight pages of four: three requests, their pages scattered, queries end to end.
LENGTHS, QUERIES, PAGES = [10, 3, 13], [4, 1, 5], [[2, 7, 0], [5], [6, 1, 3, 4]]
page_of = torch.full((3, 8), -1)
for request, own in enumerate(PAGES):
    page_of[request, own] = torch.arange(len(own))
CACHE = {
    "requests": torch.repeat_interleave(torch.arange(3), torch.tensor(QUERIES)),
    "page_of": page_of,
    "page": 4,
    "starts": torch.tensor([0, 4, 5]),
    "cached": torch.tensor(LENGTHS) - torch.tensor(QUERIES),
    "lengths": torch.tensor(LENGTHS),
}
IMAGES = [(0, 5, 8), (2, 2, 11)]


def slots(q: int, k: int) -> tuple[int, int, int] | None:
    """(request, position of the query, position of the key), None where the slot is not the request's."""
    request = 0 if q < 4 else 1 if q < 5 else 2
    if k // 4 not in PAGES[request]:
        return None
    position = PAGES[request].index(k // 4) * 4 + k % 4
    at = LENGTHS[request] - QUERIES[request] + q - (0, 4, 5)[request]
    return (request, at, position) if position < LENGTHS[request] else None


def paged(b: int, h: int, q: int, k: int) -> bool:
    found = slots(q, k)
    return found is not None and found[2] <= found[1]


def window_or_images(b: int, h: int, q: int, k: int) -> bool:
    found = slots(q, k)
    if found is None:
        return False
    request, at, position = found
    spans = [range(first, last + 1) for owner, first, last in IMAGES if owner == request]
    return position in range(at - 2, at + 1) or any(at in span and position in span for span in spans)


def packed_copies(b: int, h: int, q: int, k: int) -> bool:
    if k % 32 == q:
        return True
    return k <= q and DOCUMENTS[q] == DOCUMENTS[k] != -1


def with_documents(b: int, h: int, q: int, k: int) -> bool:
    anchor = ANCHORS[q // BLOCK]
    if k >= 32:
        return (k - 32) // BLOCK == q // BLOCK
    return k < anchor and DOCUMENTS[k] == DOCUMENTS[anchor] != -1


def rollouts(b: int, h: int, q: int, k: int) -> bool:
    (anchor, depth), (start, level) = SAMPLES[q], SAMPLES[k]
    if DOCUMENTS[anchor] == -1 or DOCUMENTS[anchor] != DOCUMENTS[start]:
        return False
    return (level == 0 and start <= anchor) or (start == anchor and level <= depth)


def row_blocks(b: int, h: int, q: int, k: int) -> bool:
    if not KEEP[b][q // BLOCK]:
        return False
    return k < ROW_ANCHORS[b][q // BLOCK] if k < 32 else (k - 32) // BLOCK == q // BLOCK


def row_blocks_near(b: int, h: int, q: int, k: int) -> bool:
    if not row_blocks(b, h, q, k):
        return False
    anchor = ROW_ANCHORS[b][q // BLOCK]
    if k < 32:
        return DOCUMENTS[k] == DOCUMENTS[anchor] and k in range(anchor + q % BLOCK - 5, anchor)
    return k - 32 <= q


def noisy_and_clean(b: int, h: int, q: int, k: int) -> bool:
    if not VALID[b][k % 24]:
        return False
    if q >= 24:
        return 24 <= k <= q
    return (k - 24) // 5 < q // 5 if k >= 24 else q - q % 5 <= k <= q


def documents(b: int, h: int, q: int, k: int) -> bool:
    return k <= q and 0 not in TOKENS[b][k:q]  # no end between them


def side_by_side(b: int, h: int, q: int, k: int) -> bool:
    if q == k:
        return True
    if q < 30:
        return k < q
    step, number = divmod(q - 30, 6)
    if k < 30:
        return k < min(number * 4 + 5, 30 - 5)
    return (k - 30) % 6 == number and (k - 30) // 6 < step


CASES: dict[str, tuple[production.Mask, Spec, tuple[int, int, int, int]]] = {
    "torchspec eagle3": (
        production.torchspec_eagle3(torch.tensor([11, 16]), 16),
        lambda b, h, q, k: (k <= q < (11, 16)[b]) or (k in (q + 16, q + 32, q + 48) and q < (11, 16)[b]),
        (2, 1, 16, 64),
    ),
    "speculators eagle3": (production.speculators_eagle3(ids), packed_copies, (1, 1, 32, 32)),
    "speculators eagle3 x4": (production.speculators_eagle3(ids), packed_copies, (1, 1, 32, 128)),
    "speculators dflash": (
        production.speculators_dflash(ids, torch.tensor(ANCHORS), BLOCK),
        with_documents,
        (1, 1, 20, 52),
    ),
    "speculators peagle": (
        production.speculators_peagle(ids, *torch.tensor(SAMPLES).unbind(1)),
        rollouts,
        (1, 1, len(SAMPLES), len(SAMPLES)),
    ),
    "automodel dflash": (
        production.automodel_dflash(torch.tensor(ROW_ANCHORS), torch.tensor(KEEP), 32, BLOCK),
        row_blocks,
        (2, 1, 20, 52),
    ),
    "automodel dflash, packed, window": (
        production.automodel_dflash(
            torch.tensor(ROW_ANCHORS), torch.tensor(KEEP), 32, BLOCK, documents=ids.expand(2, -1), window=6
        ),
        row_blocks_near,
        (2, 1, 20, 52),
    ),
    "automodel idlm": (production.automodel_idlm(torch.tensor(VALID), 24, 5), noisy_and_clean, (2, 1, 48, 48)),
    "torchtitan documents": (
        production.torchtitan_documents(torch.tensor(TOKENS), 0),
        documents,
        (2, 1, 16, 16),
    ),
    "vllm paged": (production.vllm_paged(**CACHE), paged, (1, 1, 10, 32)),
    "vllm window or images": (
        production.vllm_window_or_images(**CACHE, window=3, images=IMAGES),
        window_or_images,
        (1, 1, 10, 32),
    ),
    "axolotl ebft": (
        production.axolotl_ebft(prompt=30, context=5, longest=5, stride=4, blocks=6),
        side_by_side,
        (1, 1, 60, 60),
    ),
}


def test_twelve():
    assert set(CASES) == set(production.PRODUCTION)
    assert len(CASES) == 12


@pytest.mark.parametrize("name", CASES)
def test_each_says_what_its_rule_says(name: str):
    mask, rule, sizes = CASES[name]
    truth = torch.tensor(loop_table(rule, *sizes))
    assert torch.equal(dense_mask(mask, *sizes), truth)
    rows, columns = -sizes[2] % 4, -sizes[3] % 4
    blocks = torch.nn.functional.pad(truth, (0, columns, 0, rows)).unflatten(3, (-1, 4)).unflatten(2, (-1, 4))
    classes = classify_blocks(mask, *sizes, block_size=4)
    assert torch.equal(classes.full, blocks.all(5).all(3))
    assert torch.equal(classes.empty, ~blocks.any(5).any(3))
    assert torch.equal(block_mask(mask, *sizes, block_size=4).to_dense().bool(), blocks.any(5).any(3))


def same_place(b, h, q_idx, kv_idx):
    return kv_idx % 32 == q_idx


WRITTEN: dict[str, Mask] = {
    "torchspec eagle3": eagle3(16, torch.tensor([11, 16])),
    "speculators eagle3 x4": (causal() & blockwise(torch.cat([ids, torch.full((96,), -1)]))) | same_place,
    "speculators peagle": (p_eagle(*torch.tensor(SAMPLES).unbind(1)) & blockwise(ids[torch.tensor(SAMPLES)[:, 0]])),
    "automodel dflash": shift(
        dflash(torch.tensor(ROW_ANCHORS), torch.tensor(KEEP), block=BLOCK, start=32), q_offset=32
    ),
    "automodel idlm": block_diffusion(24, 5, causal=True) & key_padding(torch.tensor(VALID).repeat(1, 2)),
    "torchtitan documents": causal()
    & document(torch.tensor([[sum(t == 0 for t in row[:i]) for i in range(16)] for row in TOKENS])),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_the_vocabulary_says_the_same(name: str):
    mask, _, sizes = CASES[name]
    assert torch.equal(dense_mask(WRITTEN[name], *sizes), dense_mask(mask, *sizes))


@pytest.mark.parametrize("name", production.PRODUCTION)
def test_at_the_sizes_of_their_systems_few_blocks_are_opened(name: str):
    predicate = production.PRODUCTION[name]()
    exact = classify_blocks(predicate.mask, *predicate.sizes)
    bounds = classify_blocks(predicate.mask, *predicate.sizes, exact=False)
    assert not (bounds.full & ~exact.full).any()
    assert not (bounds.empty & ~exact.empty).any()
    assert int(bounds.partial.sum() - exact.partial.sum()) <= OPENED.get(name, 0)


# Blocks that are opened in vain, of 1024: pages of several requests in one block.
OPENED = {"vllm paged": 55, "vllm window or images": 197}
