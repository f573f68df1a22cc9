"""Conversions between descriptions of packed sequences, against plain Python."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from maskmod import packing
from maskmod.errors import MaskTypeError, MaskValueError

LENGTHS = st.lists(st.integers(0, 5), min_size=1, max_size=6)


def prefix_sums(lengths: list[int]) -> list[int]:
    sums = [0]
    for n in lengths:
        sums.append(sums[-1] + n)
    return sums


def ids_of(lengths: list[int], total: int) -> list[int]:
    ids = [number for number, n in enumerate(lengths) for _ in range(n)]
    return (ids + [-1] * total)[:total]


def positions_of(lengths: list[int], total: int) -> list[int]:
    positions = [position for n in lengths for position in range(n)]
    return (positions + list(range(total)))[:total]


def runs(ids: list[int]) -> list[int]:
    """Lengths of the runs of equal ids, those of -1 left out."""
    lengths: list[tuple[int, int]] = []
    for i in ids:
        if lengths and lengths[-1][0] == i:
            lengths[-1] = (i, lengths[-1][1] + 1)
        else:
            lengths.append((i, 1))
    return [n for i, n in lengths if i != -1]


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def described(lengths: list[int], total: int) -> dict[str, torch.Tensor]:
    return {
        "lengths": torch.tensor(lengths, dtype=torch.int32),
        "cu_seqlens": torch.tensor(prefix_sums(lengths), dtype=torch.int32),
        "document_ids": ints(*ids_of(lengths, total)),
        "position_ids": ints(*positions_of(lengths, total)),
    }


CONVERSIONS = [
    (new, old)
    for new in ("lengths", "cu_seqlens", "document_ids", "position_ids")
    for old in ("lengths", "cu_seqlens", "document_ids", "position_ids")
    if new != old
]


def convert(new: str, old: str, value: torch.Tensor, **size: int) -> torch.Tensor:
    return getattr(packing, f"{new}_from_{old}")(value, **size)


def same(seen: torch.Tensor, expected: torch.Tensor) -> bool:
    return seen.dtype == expected.dtype and seen.tolist() == expected.tolist()


def test_every_conversion_is_there():
    names = {f"{new}_from_{old}" for new, old in CONVERSIONS}
    assert set(packing.__all__) == names | {"PackedTree", "Tokens", "pack_tree"}


@pytest.mark.parametrize(("new", "old"), CONVERSIONS)
@given(lengths=LENGTHS)
def test_each_to_each(new: str, old: str, lengths: list[int]):
    if old in ("document_ids", "position_ids"):
        lengths = [n for n in lengths if n]  # documents without tokens leave no trace in either
    known = described(lengths, sum(lengths))
    assert same(convert(new, old, known[old]), known[new])


@pytest.mark.parametrize(("new", "old"), CONVERSIONS)
@given(rows=st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=4))
def test_a_batch_is_its_rows(new: str, old: str, rows: list[list[int]]):
    total = max(map(sum, rows))
    batch = {name: torch.stack([described(row, total)[name] for row in rows]) for name in described(rows[0], total)}
    if old in ("document_ids", "position_ids") and new in ("lengths", "cu_seqlens"):
        seen = convert(new, old, batch[old], num_documents=3)
        alone = torch.stack([convert(new, old, row, num_documents=3) for row in batch[old]])
    elif old in ("lengths", "cu_seqlens") and new in ("document_ids", "position_ids"):
        seen = convert(new, old, batch[old])
        alone = torch.stack([convert(new, old, row, total=total) for row in batch[old]])
        assert same(seen, batch[new])
    else:
        seen = convert(new, old, batch[old])
        alone = torch.stack([convert(new, old, row) for row in batch[old]])
    assert same(seen, alone)


@given(st.lists(st.integers(-1, 3), max_size=12))
def test_runs_of_any_ids_are_documents(ids: list[int]):
    lengths = runs(ids)
    tensor = ints(*ids)
    assert packing.lengths_from_document_ids(tensor).tolist() == lengths
    assert packing.cu_seqlens_from_document_ids(tensor).tolist() == prefix_sums(lengths)
    positions = []
    for i, number in enumerate(ids):
        positions.append(positions[-1] + 1 if i and ids[i - 1] == number else 0)
    assert packing.position_ids_from_document_ids(tensor).tolist() == positions


def test_sizes_given_cut_and_pad():
    lengths = ints(2, 3)
    assert packing.document_ids_from_lengths(lengths, total=7).tolist() == [0, 0, 1, 1, 1, -1, -1]
    assert packing.document_ids_from_lengths(lengths, total=3).tolist() == [0, 0, 1]
    assert packing.position_ids_from_lengths(lengths, total=7).tolist() == [0, 1, 0, 1, 2, 0, 1]
    ids = ints(0, 0, 1, -1, 2)
    assert packing.lengths_from_document_ids(ids, num_documents=5).tolist() == [2, 1, 1, 0, 0]
    assert packing.lengths_from_document_ids(ids, num_documents=2).tolist() == [2, 1]
    assert packing.lengths_from_document_ids(ids, num_documents=0).tolist() == []


def test_nothing_is_packed_too():
    nothing = ints()
    assert packing.document_ids_from_lengths(ints(0, 0)).tolist() == []
    assert packing.position_ids_from_document_ids(nothing).tolist() == []
    assert packing.lengths_from_document_ids(nothing).tolist() == []
    assert packing.cu_seqlens_from_document_ids(nothing).tolist() == [0]
    assert packing.document_ids_from_position_ids(nothing).tolist() == []
    assert packing.cu_seqlens_from_lengths(nothing).tolist() == [0]
    assert packing.document_ids_from_cu_seqlens(ints(0)).tolist() == []
    assert packing.lengths_from_document_ids(torch.zeros(2, 0, dtype=torch.int64)).tolist() == [[], []]


def test_positions_that_start_elsewhere():
    # A continued document keeps its positions; each break in them begins another.
    assert packing.document_ids_from_position_ids(ints(5, 6, 7, 0, 1, 1)).tolist() == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize(("new", "old"), CONVERSIONS)
def test_narrow_and_wide_integers_are_the_same(new: str, old: str):
    known = described([2, 1, 3], 6)
    assert same(convert(new, old, known[old].to(torch.int16)), known[new])


@pytest.mark.parametrize(("new", "old"), CONVERSIONS)
def test_sizes_cannot_be_read_from_data_inside_a_trace(new: str, old: str):
    size = {"lengths": "num_documents", "cu_seqlens": "num_documents"}.get(new, "total")
    pair = {frozenset(("lengths", "cu_seqlens")), frozenset(("document_ids", "position_ids"))}
    with FakeTensorMode() as mode:
        value = mode.from_tensor(described([2, 1, 3], 6)[old])
        if frozenset((new, old)) in pair:
            assert convert(new, old, value).shape == described([2, 1, 3], 6)[new].shape
            return
        with pytest.raises(MaskValueError, match=f"^{size}=None inside a trace: .* Pass {size}= as an int"):
            convert(new, old, value)
        assert convert(new, old, value, **{size: 3}).shape == ((4,) if new == "cu_seqlens" else (3,))


@pytest.mark.parametrize(("new", "old"), CONVERSIONS)
def test_other_dtypes_are_refused(new: str, old: str):
    with pytest.raises(MaskTypeError, match=r"float32\[2\] holds no .*Pass a tensor of integer dtype"):
        convert(new, old, torch.ones(2))
