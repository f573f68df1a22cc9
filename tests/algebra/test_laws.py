"""Laws of the algebra and of index substitution, on random masks."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from maskmod import causal, dense_mask, full, per_head, remap, shift, where
from maskmod.algebra import as_mask
from random_masks import Expression, Size, masks, shapes

OFFSETS = st.integers(-3, 5)
AT = Size(2, 2, 5, 6)


def same(a, b, size: Size) -> bool:
    return torch.equal(dense_mask(a, *size), dense_mask(b, *size))


def mask_of(drawn: Expression):
    return as_mask(drawn.build())


@given(masks(AT), masks(AT))
def test_de_morgan(drawn_a: Expression, drawn_b: Expression):
    a, b = mask_of(drawn_a), mask_of(drawn_b)
    assert same(~(a & b), ~a | ~b, AT)
    assert same(~(a | b), ~a & ~b, AT)


@given(masks(AT))
def test_negation(drawn: Expression):
    mask = mask_of(drawn)
    assert same(~~mask, mask, AT)
    assert same(~mask, mask ^ True, AT)
    assert same(mask ^ False, mask, AT)
    assert not (dense_mask(mask, *AT) & dense_mask(~mask, *AT)).any()


@given(masks(AT), masks(AT))
def test_xor_is_one_but_not_both(drawn_a: Expression, drawn_b: Expression):
    a, b = mask_of(drawn_a), mask_of(drawn_b)
    assert same(a ^ b, (a | b) & ~(a & b), AT)


@given(masks(AT), masks(AT), masks(AT))
def test_and_distributes_over_or(drawn_a: Expression, drawn_b: Expression, drawn_c: Expression):
    a, b, c = mask_of(drawn_a), mask_of(drawn_b), mask_of(drawn_c)
    assert same(a & (b | c), (a & b) | (a & c), AT)


@given(masks(AT), masks(AT), masks(AT))
def test_where_is_a_choice(drawn_condition: Expression, drawn_a: Expression, drawn_b: Expression):
    condition, a, b = mask_of(drawn_condition), mask_of(drawn_a), mask_of(drawn_b)
    assert same(where(condition, a, b), (condition & a) | (~condition & b), AT)


@given(masks(Size(2, 2, 5 + 10, 6 + 10)), OFFSETS, OFFSETS, OFFSETS, OFFSETS)
def test_shifts_add_up(drawn: Expression, q1: int, q2: int, kv1: int, kv2: int):
    # The tables of the mask reach 10 positions further than it is read, which is as far as two shifts go.
    mask = drawn.build()
    twice = shift(shift(mask, q_offset=q1, kv_offset=kv1), q_offset=q2, kv_offset=kv2)
    assert same(twice, shift(mask, q_offset=q1 + q2, kv_offset=kv1 + kv2), AT)


@given(masks(Size(2, 2, 5 + 5, 6 + 5)), OFFSETS, OFFSETS)
def test_every_form_of_an_offset_shifts_alike(drawn: Expression, q_offset: int, kv_offset: int):
    mask = drawn.build()
    ints = shift(mask, q_offset=q_offset, kv_offset=kv_offset)
    for form in (torch.tensor, lambda n: torch.tensor([n]), lambda n: torch.tensor([n, n], dtype=torch.int32)):
        assert same(shift(mask, q_offset=form(q_offset), kv_offset=form(kv_offset)), ints, AT)


@given(masks(Size(2, 2, 10, 10)), st.integers(0, 5), st.integers(0, 4))
def test_a_shift_reads_a_slice_of_the_larger_mask(drawn: Expression, q_offset: int, kv_offset: int):
    mask = drawn.build()
    larger = dense_mask(mask, 2, 2, 10, 10)
    shifted = dense_mask(shift(mask, q_offset=q_offset, kv_offset=kv_offset), *AT)
    assert torch.equal(shifted, larger[:, :, q_offset : q_offset + 5, kv_offset : kv_offset + 6])


@given(masks(Size(2, 2, 9, 9)), st.permutations(range(9)), st.permutations(range(9)))
def test_a_remap_by_tables_gathers_the_larger_mask(drawn: Expression, q: list[int], kv: list[int]):
    mask = drawn.build()
    gathered = dense_mask(mask, 2, 2, 9, 9)[:, :, q][:, :, :, kv]
    assert torch.equal(dense_mask(remap(mask, q=torch.tensor(q), kv=torch.tensor(kv)), 2, 2, 9, 9), gathered)


@given(masks(AT))
def test_substitution_distributes_over_the_algebra(drawn: Expression):
    mask = mask_of(drawn)
    q = torch.tensor([3, 1, 0, 2, 4])
    assert same(remap(~mask, q=q), ~remap(mask, q=q), AT)  # within the table, a map commutes with negation
    assert same(remap(mask & causal(), q=q), remap(mask, q=q) & remap(causal(), q=q), AT)


@given(masks(AT), masks(AT))
def test_per_head_is_a_choice_by_head(drawn_a: Expression, drawn_b: Expression):
    a, b = drawn_a.build(), drawn_b.build()
    seen = dense_mask(per_head([a, b]), *AT)
    assert torch.equal(seen[:, 0], dense_mask(a, *AT)[:, 0])
    assert torch.equal(seen[:, 1], dense_mask(b, *AT)[:, 1])


@given(masks())
def test_full_is_neutral(drawn: Expression):
    mask = mask_of(drawn)
    assert same(mask & full(), mask, drawn.size)
    assert same(mask | ~full(), mask, drawn.size)


@given(shapes(), st.data())
def test_heads_and_rows_are_read_by_their_index(size: Size, data: st.DataObject):
    drawn = data.draw(masks(size))
    whole = dense_mask(drawn.build(), *size)
    if drawn.source.count("per_head") == 0:  # a list of heads fits one number of heads only
        fewer = dense_mask(drawn.build(), size.B, 1, size.q_len, size.kv_len)
        assert torch.equal(whole[:, :1], fewer)
