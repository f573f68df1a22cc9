"""Bad input inside a graph: the error reaches the user with our words in it."""

import pytest
import torch
from torch._dynamo.exc import Unsupported

from maskmod import dense_mask, document

IDS = torch.zeros(4, dtype=torch.int64)


def read(x: torch.Tensor) -> torch.Tensor:
    return dense_mask(document(IDS), 1, 1, x.shape[0], 8)


def test_a_refusal_inside_a_graph_keeps_its_message():
    with pytest.raises(Unsupported, match="the table has 4 columns, 8 needed"):
        torch.compile(read, fullgraph=True, backend="eager")(torch.ones(8))
