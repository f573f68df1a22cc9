"""Masks as trees of tensors: flattening, serialisation, pickling, copying, moving."""

import copy
import functools
import io
import pickle
import types

import pytest
import torch
from torch.utils import _pytree as pytree

from cases import CASES, Case
from maskmod import causal, dense_mask, document, full, mask_mod, per_head, remap, same_structure, shift, sliding_window
from maskmod.errors import MaskTypeError

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)

WITHOUT_LAMBDAS = [case for case in CASES if case.name not in ("remap_functions", "lambda_left", "where")]
importable = pytest.mark.parametrize("case", WITHOUT_LAMBDAS, ids=lambda case: case.name)

IDS = torch.tensor([0, 0, 1, 1])
SIZE = (2, 2, 7, 9)


def diagonal(b, h, q_idx, kv_idx):
    return q_idx == kv_idx


@every_case
def test_flatten_and_unflatten(case: Case):
    mask = case.build(*SIZE)
    leaves, spec = pytree.tree_flatten(mask)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    assert pytree.tree_unflatten(leaves, spec) == mask
    clones = pytree.tree_unflatten([leaf.clone() for leaf in leaves], spec)
    assert torch.equal(dense_mask(clones, *SIZE), dense_mask(mask, *SIZE))


def test_leaves_have_the_names_of_their_fields():
    mask = per_head([causal() & document(IDS), shift(causal(), q_offset=torch.tensor(1))])
    paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(mask)[0]]
    assert paths == [".masks[0].right.q_ids", ".masks[1].q_offset"]


def test_placeholders_pass_through_unchecked():
    _, spec = pytree.tree_flatten(document(IDS))
    placeholder = pytree.tree_unflatten([None], spec)
    assert type(placeholder) is type(document(IDS))


def test_specs_differ_with_structure_and_not_with_contents():
    def spec(mask):
        return pytree.tree_flatten(mask)[1]

    assert spec(sliding_window(3)) == spec(sliding_window(3))
    assert spec(sliding_window(3)) != spec(sliding_window(4))
    assert spec(document(IDS)) == spec(document(IDS.clone()))


@every_case
def test_the_spec_survives_serialisation(case: Case):
    mask = case.build(*SIZE)
    leaves, spec = pytree.tree_flatten(mask)
    if any(isinstance(value, types.FunctionType) for value in _statics(spec)):
        with pytest.raises(TypeError, match="not JSON serializable"):
            pytree.treespec_dumps(spec)
    else:
        assert pytree.tree_unflatten(leaves, pytree.treespec_loads(pytree.treespec_dumps(spec))) == mask


def _statics(spec) -> list:
    here = [value for _, value in spec.context[1]] if isinstance(spec.context, tuple) else []
    return here + [value for child in spec.children() for value in _statics(child)]


@every_case
def test_deepcopy_copies_tensors(case: Case):
    mask = case.build(*SIZE)
    copied = copy.deepcopy(mask)
    assert same_structure(copied, mask)
    assert torch.equal(dense_mask(copied, *SIZE), dense_mask(mask, *SIZE))
    mine, theirs = pytree.tree_leaves(mask), pytree.tree_leaves(copied)
    assert all(a is not b for a, b in zip(mine, theirs, strict=True))


def test_a_deepcopy_keeps_shared_tensors_shared():
    copied = copy.deepcopy(document(IDS) & document(IDS))
    assert len({id(tensor) for tensor in copied.tensors()}) == 1


@importable
def test_pickle(case: Case):
    mask = case.build(*SIZE)
    again = pickle.loads(pickle.dumps(mask))
    assert same_structure(again, mask)
    assert repr(again) == repr(mask)
    assert torch.equal(dense_mask(again, *SIZE), dense_mask(mask, *SIZE))


def test_torch_save_and_load():
    mask, file = causal() & document(IDS), io.BytesIO()
    torch.save(mask, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(dense_mask(again, 1, 1, 4, 4), dense_mask(mask, 1, 1, 4, 4))


def test_a_lambda_refuses_to_pickle():
    message = r"^pickle of .*<lambda>: a lambda or a local function has no importable name\. Define it with `def`"
    with pytest.raises(MaskTypeError, match=message):
        pickle.dumps(causal() & (lambda b, h, q_idx, kv_idx: True))


def test_a_function_with_an_importable_name_pickles():
    mask = causal() & diagonal
    assert pickle.loads(pickle.dumps(mask)) == mask


# ------------------------------------------------------------------------------------------------------------ moving


@every_case
def test_to_moves_every_tensor(case: Case):
    mask = case.build(*SIZE)
    moved = mask.to("meta")
    assert same_structure(moved, mask)
    assert {leaf.device.type for leaf in pytree.tree_leaves(moved)} <= {"meta"}
    assert mask.to("cpu") == mask  # nothing moves


def test_a_moved_mask_reads_on_its_new_device():
    seen = dense_mask((causal() & document(IDS)).to("meta"), 1, 1, 4, 4)
    assert seen.device.type == "meta"
    assert seen.shape == (1, 1, 4, 4)


def test_a_captured_tensor_cannot_be_moved():
    limit = torch.tensor(3)
    mask = causal() & (lambda b, h, q_idx, kv_idx: q_idx - kv_idx < limit)
    assert mask.to("cpu") == mask
    with pytest.raises(MaskTypeError, match=r"\.to\('meta'\): the function captured a tensor that lives on another"):
        mask.to("meta")


def test_a_tensor_in_a_partial_cannot_be_moved_either():
    def limited(limit, b, h, q_idx, kv_idx):
        return q_idx - kv_idx < limit

    with pytest.raises(MaskTypeError, match="captured a tensor"):
        mask_mod(functools.partial(limited, torch.tensor(3))).to("meta")


def test_a_tensor_in_an_index_map_cannot_be_moved_either():
    table = torch.arange(4)
    mask = full() | remap(causal(), kv=lambda b, idx: table[idx])
    assert [id(tensor) for tensor in mask.tensors()] == [id(table)]
    with pytest.raises(MaskTypeError, match=r"^remap\(causal\(\), kv=.*\)\.to\('meta'\): the function captured"):
        mask.to("meta")


def test_two_devices_in_one_mask_are_an_error():
    mask = document(IDS) & document(IDS.to("meta"))
    with pytest.raises(MaskTypeError, match=r"its tensors live on cpu and meta\. Move them together with mask\.to"):
        dense_mask(mask, 1, 1, 4, 4)


def test_a_scalar_of_another_device_does_not_decide():
    assert dense_mask(shift(document(IDS.to("meta")), q_offset=torch.tensor(0)), 1, 1, 4, 4).device.type == "meta"


def test_the_default_device_is_where_masks_without_tensors_live():
    with torch.device("meta"):
        assert dense_mask(full(), 1, 1, 2, 2).device.type == "meta"
    assert dense_mask(full(), 1, 1, 2, 2, device="meta").device.type == "meta"
    assert dense_mask(remap(full(), kv=IDS), 1, 1, 2, 2).device.type == "cpu"
