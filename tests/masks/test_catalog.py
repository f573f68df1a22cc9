"""Every mask of the catalog against its independent truth: dense, blocks, tiles, lowered, run; and the catalog."""

from __future__ import annotations

import functools
import inspect
import pickle
import re

import pytest
import torch

import maskmod
from maskmod import (
    BlockClasses,
    Mask,
    attention,
    block_mask,
    classify_blocks,
    classify_tiles,
    dense_mask,
    lower,
    masks,
    same_structure,
    vmap_mask,
)
from maskmod.cli.expressions import mask_from_text
from maskmod.errors import MaskValueError
from maskmod.masks.catalog import CATALOG, VOCABULARY, Entry
from oracle import loop_table
from reference import plain_attention
from truths import TRUTHS, Truth

BLOCK = 8
CASES = [(truth, sizes) for truth in TRUTHS for sizes in truth.sizes]
every_case = pytest.mark.parametrize(
    ("truth", "sizes"), CASES, ids=[f"{truth.name} {'x'.join(map(str, sizes))}" for truth, sizes in CASES]
)
every_entry = pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.name)


@functools.cache
def table(truth: Truth, sizes: tuple[int, int, int, int]) -> torch.Tensor:
    return torch.tensor(loop_table(truth.rule, *sizes))


def blocks_of(dense: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(all visible, some visible) for each block, cut short blocks never being full."""
    rows, columns = -dense.shape[2] % BLOCK, -dense.shape[3] % BLOCK
    x = torch.nn.functional.pad(dense, (0, columns, 0, rows)).unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    return x.all(5).all(3), x.any(5).any(3)


@functools.cache
def without_tokens(truth: Truth, sizes: tuple[int, int, int, int]) -> BlockClasses:
    return classify_blocks(truth.build(*sizes), *sizes, block_size=BLOCK, exact=False)


# ----------------------------------------------------------------------------------------------- against the truths


@every_case
def test_dense_masks_say_what_the_rule_says(truth: Truth, sizes: tuple[int, int, int, int]):
    mask = truth.build(*sizes)
    assert torch.equal(vmap_mask(mask, *sizes), table(truth, sizes))
    assert torch.equal(dense_mask(mask, *sizes), table(truth, sizes))


@every_case
def test_blocks_are_exact_and_sound(truth: Truth, sizes: tuple[int, int, int, int]):
    mask, dense = truth.build(*sizes), table(truth, sizes)
    full, seen = blocks_of(dense)
    classes = classify_blocks(mask, *sizes, block_size=BLOCK)
    assert torch.equal(classes.full, full)
    assert torch.equal(classes.empty, ~seen)
    assert torch.equal(block_mask(mask, *sizes, block_size=BLOCK).to_dense().bool(), seen)
    tiles = classify_tiles(mask, *sizes, block_size=BLOCK)
    assert tiles.visible() == int(dense.sum())
    assert torch.equal(tiles.row_counts(), dense.sum(-1))
    bounds = without_tokens(truth, sizes)
    assert not (bounds.full & ~full).any()
    assert not (bounds.empty & seen).any()


@pytest.mark.parametrize("truth", TRUTHS, ids=[truth.name for truth in TRUTHS])
def test_ints_lowered_and_attended(truth: Truth):
    sizes = truth.sizes[0]
    B, H, q_len, kv_len = sizes
    mask, dense = truth.build(*sizes), table(truth, sizes)
    for b, h, q, k in [(0, 0, 0, 0), (B - 1, H - 1, q_len - 1, kv_len - 1), (B - 1, 0, q_len // 2, kv_len // 3)]:
        assert bool(mask(b, h, q, k)) == dense[b, h, q, k]
    arguments = lower(mask, "sdpa", *sizes).kwargs()
    if arguments["attn_mask"] is not None:
        assert torch.equal(arguments["attn_mask"].expand(sizes), dense)
    else:
        assert dense.all() or arguments["is_causal"]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(B, H, n, 4, generator=generator, dtype=torch.float64) for n in (q_len, kv_len, kv_len))
    torch.testing.assert_close(attention(q, k, v, mask), plain_attention(q, k, v, dense))


def test_the_catalog_says_which_masks_need_no_block_opened():
    """Exact is what it is at every size of every truth; bounds where it is not at one of them."""
    needy = set()
    for truth, sizes in CASES:
        full, seen = blocks_of(table(truth, sizes))
        if without_tokens(truth, sizes).partial.sum() != (seen & ~full).sum():
            needy.add(truth.name)
    assert {entry.name for entry in CATALOG if entry.exactness == "bounds"} == needy
    assert len(needy) <= 0.15 * len(CATALOG)


# ------------------------------------------------------------------------------------------------------- the catalog


def test_every_pattern_has_an_entry_and_every_entry_a_truth():
    assert {entry.number for entry in CATALOG} == set(range(1, 77))
    names = [entry.name for entry in CATALOG]
    assert len(set(names)) == len(names)
    assert {truth.name for truth in TRUTHS} == set(names)


def constructors() -> set[str]:
    """The functions of the vocabulary that give a mask."""
    return {
        name
        for name in masks.__all__
        if inspect.isfunction(getattr(masks, name))
        and inspect.signature(getattr(masks, name)).return_annotation == "Mask"
    }


def test_every_constructor_is_in_an_entry():
    written = " ".join(f"{entry.expression} {entry.example} {entry.elsewhere}" for entry in CATALOG)
    assert constructors() - set(re.findall(r"\w+", written)) == BUILDING_BLOCKS
    assert constructors() <= set(VOCABULARY)


# Not a pattern by themselves: what others are made of.
BUILDING_BLOCKS = {"diagonals", "dilated", "dilated_heads", "global_tokens", "query_prefix"}


@every_entry
def test_examples_build_and_say_what_they_are(entry: Entry):
    mask = entry.build()
    assert isinstance(mask, Mask)
    seen = dense_mask(mask, *entry.size)
    assert seen.any()
    assert entry.number == 1 or not seen.all()  # a picture that shows something
    assert 0 <= entry.head < entry.size[1]
    for text in (entry.formula, entry.keys, entry.source, entry.elsewhere):
        assert text
        assert text == text.strip(" .")
    again = pickle.loads(pickle.dumps(mask))
    assert same_structure(mask, again)
    assert torch.equal(dense_mask(again, *entry.size), seen)
    assert mask.to("cpu") == mask
    assert repr(mask) == repr(entry.build())


@every_entry
def test_the_command_line_reads_every_example(entry: Entry):
    read = mask_from_text(entry.example.replace("torch.tensor(", "("))  # where a list is a tensor
    assert same_structure(read, entry.build())
    assert torch.equal(dense_mask(read, *entry.size), dense_mask(entry.build(), *entry.size))


def test_the_command_line_knows_every_mask_that_can_be_imported():
    public = [name for name in maskmod.__all__ if name in VOCABULARY]
    assert {"tree", "dfs_tree", "within", "per_head", "shift"} <= set(public)
    with pytest.raises(MaskValueError) as error:
        mask_from_text("no_such_mask()")
    assert "causal, sliding_window" in str(error.value)
    assert "listed in docs/masks.md" in str(error.value)
    assert {*public, *constructors()} <= set(VOCABULARY)
