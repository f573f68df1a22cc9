"""Masks as Python objects: operators, reprs, equality, hash, structure."""

import ast
import operator
import re

import pytest
import torch
from hypothesis import given
from torch.utils import _pytree as pytree

import maskmod
from cases import BY_NAME, CASES, Case, Strided
from maskmod import (
    Mask,
    causal,
    choose,
    dense_mask,
    document,
    full,
    key_padding,
    mask_mod,
    per_head,
    positions,
    prefix,
    same_structure,
    shift,
    sliding_window,
    window,
)
from maskmod.algebra import And, Func, Not, Or, Xor, as_mask
from maskmod.errors import TruthValueError
from random_masks import NAMES, Expression, masks

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)

IDS = torch.tensor([0, 0, 1, 1])


def diagonal(b, h, q_idx, kv_idx):
    return q_idx == kv_idx


# --------------------------------------------------------------------------------------------------------- operators


@pytest.mark.parametrize(("op", "node"), [(operator.and_, And), (operator.or_, Or), (operator.xor, Xor)])
def test_a_function_combines_on_either_side(op, node):
    left, right = op(diagonal, causal()), op(causal(), diagonal)
    assert left == node(mask_mod(diagonal), causal())
    assert right == node(causal(), mask_mod(diagonal))
    for q in range(3):
        for kv in range(3):
            assert left(0, 0, q, kv) == op(q == kv, kv <= q) == right(0, 0, q, kv)


def test_negation_has_two_spellings():
    assert ~causal() == Not(causal()) == causal() ^ True == True ^ causal()
    assert causal() ^ False == causal()
    assert False ^ causal() == causal()


def test_mask_mod_decorates_and_leaves_masks_alone():
    @mask_mod
    def odd(b, h, q_idx, kv_idx):
        return kv_idx % 2 == 1

    assert isinstance(odd, Mask)
    assert [kv for kv in range(5) if (odd & causal())(0, 0, 3, kv)] == [1, 3]
    assert mask_mod(odd) is odd


@pytest.mark.parametrize(
    "truth",
    [
        lambda mask: mask and causal(),
        lambda mask: mask or causal(),
        lambda mask: not mask,
        lambda mask: 1 if mask else 2,
        lambda mask: bool(mask),
    ],
    ids=["and", "or", "not", "if", "bool"],
)
def test_a_mask_has_no_truth_value(truth):
    with pytest.raises(TruthValueError, match=r"^bool\(causal\(\)\): a mask has no single truth value.* Write `&`"):
        truth(causal())


# ------------------------------------------------------------------------------------------------------------- reprs


@pytest.mark.parametrize(
    "text",
    [
        "full()",
        "causal() & sliding_window(4096)",
        "window(2, None)",
        "chunked(4)",
        "chunked(4, start=2)",
        "~causal()",
        "~(causal() & full())",
        "~~causal()",
        "causal() & (full() & causal())",
        "causal() & full() & causal()",
        "causal() & (full() | sinks(2))",
        "causal() & full() | prefix(2) ^ sinks(1)",
        "(causal() | full()) ^ full()",
        "causal() | (full() | full())",
        "causal() ^ full() ^ prefix(3)",
        "~causal() & ~(full() ^ prefix(0))",
        "shift(causal() | full(), q_offset=3)",
        "shift(causal(), q_offset=3, kv_offset=-1)",
        "remap(causal())",
        "where(causal(), full(), ~full())",
    ],
)
def test_a_repr_is_the_text_that_was_written(text: str):
    assert repr(eval(text, dict(NAMES))) == text


def test_reprs_of_tensors_give_dtype_and_shape():
    assert repr(document(IDS)) == "document(int64[4])"
    assert repr(document(IDS, IDS[None].int())) == "document(int64[4], int32[1, 4])"
    assert repr(key_padding(torch.ones(2, 3).bool())) == "key_padding(bool[2, 3])"
    assert repr(key_padding(IDS)) == "key_padding(int64[4])"
    assert repr(shift(causal(), q_offset=torch.tensor(3))) == "shift(causal(), q_offset=int64[])"
    assert repr(per_head([causal(), full()])) == "per_head([causal(), full()])"
    assert repr(causal() & diagonal) == "causal() & diagonal"
    assert repr(Strided(3, torch.tensor(1))) == "Strided(3, int64[])"
    assert repr(maskmod.remap(causal(), q=IDS, valid=IDS)) == "remap(causal(), q=int64[4], valid=int64[4])"


@given(masks())
def test_a_repr_builds_the_same_tree(drawn: Expression):
    # Tensors print as dtype and shape, so trees are compared with every argument of an atom left out.
    mask = as_mask(drawn.build())
    text = re.sub(r"\w+\[[\d, ]*\]", "tensor", repr(mask)).replace("<lambda>", "function")
    assert _tree(ast.parse(text, mode="eval").body) == _nodes(mask)


def _tree(node: ast.expr):
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            return type(op).__name__, _tree(left), _tree(right)
        case ast.UnaryOp(op=ast.Invert(), operand=operand):
            return "Not", _tree(operand)
        case ast.Call(func=ast.Name(id="shift" | "remap"), args=[inner, *_]):
            return "moved", _tree(inner)
        case ast.Call(func=ast.Name(id="where"), args=parts):
            return "where", *map(_tree, parts)
        case ast.Call(func=ast.Name(id="per_head"), args=[ast.List(elts=parts)]):
            return "per_head", *map(_tree, parts)
        case ast.Call(func=ast.Name(id=name)) | ast.Name(id=name):
            return name
    raise AssertionError(ast.dump(node))


def _nodes(mask: Mask):
    match mask:
        case And() | Or() | Xor():
            return {And: "BitAnd", Or: "BitOr", Xor: "BitXor"}[type(mask)], _nodes(mask.left), _nodes(mask.right)
        case Not():
            return "Not", _nodes(mask.mask)
        case positions.Shift() | positions.Remap():
            return "moved", _nodes(mask.mask)
        case choose.Where():
            return "where", _nodes(mask.condition), _nodes(mask.a), _nodes(mask.b)
        case choose.PerHead():
            return "per_head", *map(_nodes, mask.masks)
        case Func():
            return "function"
    return mask._name


@every_case
def test_every_mask_has_a_repr_without_addresses(case: Case):
    assert " at 0x" not in repr(case.build(2, 2, 8, 8))


# -------------------------------------------------------------------------------------------------- equality and hash


@every_case
def test_masks_of_the_same_tensors_are_equal(case: Case):
    mask = case.build(2, 2, 8, 8)
    rebuilt = pytree.tree_unflatten(*pytree.tree_flatten(mask))
    assert rebuilt is not mask
    assert rebuilt == mask
    assert hash(rebuilt) == hash(mask)


def test_equality_is_by_type_number_and_tensor_object():
    assert causal() == causal()
    assert causal() != full()
    assert sliding_window(3) == sliding_window(3)
    assert sliding_window(3) != sliding_window(4)
    assert window(3, None) != window(3, 3)
    assert document(IDS) == document(IDS)
    assert document(IDS) != document(IDS.clone())  # values are never compared
    assert document(IDS) != document(IDS, IDS.clone())
    assert causal() & full() != full() & causal()
    assert causal() | full() != causal() & full()
    assert per_head([causal(), full()]) == per_head([causal(), full()])
    assert per_head([causal(), full()]) != per_head([full(), causal()])
    assert mask_mod(diagonal) == mask_mod(diagonal)
    assert mask_mod(lambda b, h, q_idx, kv_idx: True) != mask_mod(lambda b, h, q_idx, kv_idx: True)
    assert causal() != "causal()"
    assert prefix(1) != prefix(True + torch.tensor(0))


def test_equal_masks_have_equal_hashes():
    pairs = [(sliding_window(3), sliding_window(3)), (document(IDS), document(IDS)), (~causal(), causal() ^ True)]
    assert all(hash(a) == hash(b) for a, b in pairs)
    assert len({causal(), causal(), full(), sliding_window(2), sliding_window(2)}) == 3


@every_case
def test_structure_ignores_tensors(case: Case):
    mask = case.build(2, 2, 8, 8)
    clones = pytree.tree_map_only(torch.Tensor, torch.clone, mask)
    assert same_structure(mask, clones)
    assert (mask == clones) == (not pytree.tree_leaves(mask))


def test_structure_sees_types_numbers_and_tensors_apart():
    assert not same_structure(sliding_window(3), sliding_window(4))
    assert not same_structure(sliding_window(3), sliding_window(torch.tensor(3)))
    assert not same_structure(causal(), full())
    assert not same_structure(shift(causal(), q_offset=1), shift(causal(), kv_offset=1))
    assert same_structure(shift(causal(), q_offset=torch.tensor(1)), shift(causal(), q_offset=torch.tensor([1, 2])))


# ------------------------------------------------------------------------------------------------- own classes, frozen


def test_masks_are_frozen():
    with pytest.raises(AttributeError, match="size"):
        sliding_window(3).size = 4  # pyright: ignore[reportAttributeAccessIssue]


def test_a_subclass_needs_a_predicate_only():
    class Banded(Mask):
        width: int = 2

        def __call__(self, b, h, q_idx, kv_idx):
            return abs(q_idx - kv_idx) < self.width

    assert repr(Banded() | causal()) == "Banded(2) | causal()"
    assert Banded() == Banded(2)
    assert dense_mask(Banded(1), 1, 1, 3, 3)[0, 0].tolist() == [[i == j for j in range(3)] for i in range(3)]


def test_a_subclass_without_a_predicate_says_so():
    class Idle(Mask):
        pass

    with pytest.raises(NotImplementedError, match=r"Idle must define __call__\(self, b, h, q_idx, kv_idx\)"):
        Idle()(0, 0, 0, 0)


def test_tensors_are_found_wherever_a_mask_keeps_them():
    captured, offset = torch.tensor(2), torch.tensor([1, 2])
    mask = per_head([shift(document(IDS), q_offset=offset), lambda b, h, q_idx, kv_idx: q_idx - kv_idx < captured])
    found = {id(tensor) for tensor in mask.tensors()}
    assert found == {id(IDS), id(captured), id(offset)}


def test_every_name_of_the_vocabulary_has_a_case():
    constructors = {"full", "causal", "sliding_window", "window", "chunked", "prefix", "sinks", "document", "blockwise"}
    constructors |= {
        "key_padding",
        "within",
        "tree",
        "dfs_tree",
        "mask_mod",
        "shift",
        "remap",
        "at_positions",
        "where",
        "per_head",
    }
    others = {
        "AttentionPlan",
        "BlockClasses",
        "Choice",
        "plan",
        "DecodePlan",
        "RaggedPlan",
        "Mask",
        "NotSpans",
        "Element",
        "Proof",
        "disjoint",
        "equal",
        "implies",
        "is_empty",
        "is_full",
        "leaks_future",
        "Spans",
        "Tiles",
        "attention",
        "lower",
        "register_backend",
        "select_backend",
        "same_structure",
    }
    readers = {
        "row_spans",
        "column_spans",
        "additive_bias",
        "dense_mask",
        "draw",
        "plot",
        "to_html",
        "vmap_mask",
        "block_mask",
        "classify_blocks",
        "classify_tiles",
    }
    assert set(maskmod.__all__) <= constructors | others | readers, "a new name: add its case, then list it here"
    assert len(BY_NAME) == len(CASES)
