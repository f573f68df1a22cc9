"""The order of spans and packing: ids of spans begin again in each document, so that packing comes after them."""

from __future__ import annotations

import torch

from maskmod import blockwise, causal, dense_mask, document, equal, key_padding, masks, sliding_window, within
from maskmod.masks.catalog import VOCABULARY

DOCUMENTS = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
IMAGES = torch.tensor([-1, 0, 0, 1, -1, 0, 0, 0, -1, 1])  # 0 and 1 in both documents
VALID = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1, 1, 0]])


def test_equal_span_ids_in_two_documents_do_not_see_each_other():
    mask = ((causal() & sliding_window(3)) | blockwise(IMAGES)) & document(DOCUMENTS) & key_padding(VALID)
    truth = [
        [
            (0 <= q - k < 3 or IMAGES[q] == IMAGES[k] != -1) and (q < 5) == (k < 5) and k != 9
            for k in range(10)
        ]
        for q in range(10)
    ]  # fmt: skip
    assert dense_mask(mask, 1, 1, 10, 10)[0, 0].tolist() == [[bool(x) for x in row] for row in truth]
    for q, k in ((5, 1), (1, 5), (9, 3), (3, 9)):  # spans 0 and 1 of the other document
        assert not mask(0, 0, q, k)
    for q, k in ((1, 2), (5, 7), (2, 1)):  # the future, inside a span
        assert mask(0, 0, q, k)


def test_packing_before_the_spans_shows_what_it_should_hide():
    """The order that leaks, and that the recipe is not: a span of one document sees that of another."""
    leaky = ((causal() & sliding_window(3) & document(DOCUMENTS)) | blockwise(IMAGES)) & key_padding(VALID)
    assert leaky(0, 0, 1, 5)
    right = ((causal() & sliding_window(3)) | blockwise(IMAGES)) & document(DOCUMENTS) & key_padding(VALID)
    assert not equal(leaky, right, 1, 1, 10, 10).holds


def test_within_is_the_recipe_where_positions_are_not_asked():
    inside = within(DOCUMENTS, causal() & sliding_window(3)) | (blockwise(IMAGES) & document(DOCUMENTS))
    recipe = ((causal() & sliding_window(3)) | blockwise(IMAGES)) & document(DOCUMENTS)
    assert equal(inside, recipe, 1, 1, 10, 10).holds


def test_the_recipe_is_the_one_in_the_docstring():
    assert "((causal() & window) | blockwise(image_ids)) & document(ids) & key_padding(valid)" in (masks.__doc__ or "")
    assert {"blockwise", "document", "key_padding"} <= set(VOCABULARY)
