"""Masks that users bring: classes with fields of every kind, methods, modules, partials, decorated functions."""

import functools
import pickle
from dataclasses import KW_ONLY, field
from typing import Any

import pytest
import torch

from maskmod import Mask, causal, dense_mask, mask_mod, per_head, sliding_window
from maskmod.errors import MaskTypeError
from maskmod.masks import Causal
from maskmod.testing import assert_no_graph_breaks

IDS = torch.tensor([0, 0, 1, 1])


class Ids:
    def __init__(self, ids):
        self.ids = ids

    def __call__(self, b, h, q_idx, kv_idx):
        return self.ids[q_idx] == self.ids[kv_idx]

    def method(self, b, h, q_idx, kv_idx):
        return self(b, h, q_idx, kv_idx)


class IdsModule(torch.nn.Module):
    ids: torch.Tensor

    def __init__(self, ids):
        super().__init__()
        self.register_buffer("ids", ids)

    def forward(self, b, h, q_idx, kv_idx):
        return self.ids[q_idx] == self.ids[kv_idx]


def nested(ids):
    def inner(b, h, q_idx, kv_idx):
        return ids[q_idx] == ids[kv_idx]

    return lambda b, h, q_idx, kv_idx: inner(b, h, q_idx, kv_idx)


def in_partial(ids, b, h, q_idx, kv_idx):
    return ids[q_idx] == ids[kv_idx]


HOLDERS = {
    "object": Ids,
    "method": lambda ids: Ids(ids).method,
    "module": IdsModule,
    "closure": nested,
    "partial": lambda ids: functools.partial(in_partial, ids),
    "partial of a method": lambda ids: functools.partial(Ids(ids).method),
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_tensors_behind_a_callable_are_found_and_not_left_behind(hold):
    mask = causal() & hold(IDS)
    assert [tensor is IDS for tensor in mask.tensors()] == [True]
    assert dense_mask(mask, 1, 1, 4, 4).sum() == 6
    assert mask.to("cpu") == mask
    with pytest.raises(MaskTypeError, match="only fields are moved"):
        mask.to("meta")


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_every_holder_traces(hold):
    fn = hold(IDS)
    assert_no_graph_breaks(lambda x: x + dense_mask(causal() & fn, 1, 1, 4, 4), torch.zeros(4, 4))


def test_a_function_made_in_the_graph_traces():
    def made_inside(x, ids):
        mask = causal() & (lambda b, h, q_idx, kv_idx: ids[q_idx] == ids[kv_idx])
        return x + dense_mask(mask, 1, 1, 4, 4)

    assert_no_graph_breaks(made_inside, torch.zeros(4, 4), IDS)


def test_functions_that_call_each_other_end_the_search():
    def even(b, h, q_idx, kv_idx):
        return q_idx == kv_idx if odd is None else IDS[q_idx] == 0

    def odd(b, h, q_idx, kv_idx):
        return even(b, h, q_idx, kv_idx)

    assert list(mask_mod(even).tensors()) == []


class Keywords(Mask):
    sizes: tuple
    _: KW_ONLY
    near: int = 3
    far: int = field(init=False, default=9)

    def __call__(self, b, h, q_idx, kv_idx):
        return q_idx - kv_idx < self.near


def test_a_repr_is_an_expression_for_the_mask():
    for mask in (Keywords((1, 2), near=4), Keywords((1,)), Keywords(())):
        assert eval(repr(mask)) == mask
    mask = per_head([causal(), sliding_window(2)])
    assert repr(mask) == "per_head([causal(), sliding_window(2)])"
    assert eval(repr(mask)) == mask


def test_a_subclass_is_not_spelled_as_its_base():
    class Strict(Causal):
        pass

    assert repr(Strict()) == "Strict()"


@pytest.mark.parametrize("name", ["to", "check", "tensors", "_fields"])
def test_a_field_cannot_take_the_name_of_what_every_mask_has(name):
    with pytest.raises(MaskTypeError, match=f"with a field '{name}': every mask has an attribute"):
        type("Broken", (Mask,), {"__annotations__": {name: int}})


class Holds(Mask):
    value: Any

    def __call__(self, b, h, q_idx, kv_idx):
        return q_idx == kv_idx


@pytest.mark.parametrize("value", [[IDS], {"a": IDS}, {1}], ids=["list", "dict", "set"])
def test_a_field_that_can_change_is_refused(value):
    mask = Holds(value)
    for read in (lambda: dense_mask(mask, 1, 1, 4, 4), lambda: mask.to("cpu"), lambda: list(mask.tensors())):
        with pytest.raises(MaskTypeError, match=r"a field that is a (list|dict|set): it can change.*Hold a tensor"):
            read()


@mask_mod
def decorated(b, h, q_idx, kv_idx):
    return q_idx == kv_idx


def test_a_decorated_function_pickles_by_its_name():
    assert pickle.loads(pickle.dumps(causal() & decorated)) == causal() & decorated


def test_a_partial_of_a_lambda_says_why_it_does_not_pickle():
    mask = mask_mod(functools.partial(lambda n, b, h, q_idx, kv_idx: q_idx - kv_idx < n, 3))
    with pytest.raises(MaskTypeError, match="no importable name"):
        pickle.dumps(mask)
