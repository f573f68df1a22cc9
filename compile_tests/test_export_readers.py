"""torch.export, strict and not, of every reader that makes blocks and of every backend that runs here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.export import export

from maskmod import attention, block_mask, causal, classify_blocks, dense_mask, document

pytestmark = pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")

N = 160  # more than one block


def mask(ids: Tensor):
    return causal() & document(ids)


def blocks(ids: Tensor) -> Tensor:
    made = block_mask(mask(ids), 1, 1, N, N)
    assert made.full_kv_num_blocks is not None
    return torch.cat([made.kv_num_blocks.flatten(), made.full_kv_num_blocks.flatten()])


def classes(ids: Tensor) -> Tensor:
    found = classify_blocks(mask(ids), 1, 1, N, N)
    return torch.stack([part.sum() for part in tuple(found) if isinstance(part, Tensor)])


def attending(backend: str) -> Callable[[Tensor], Tensor]:
    q = torch.randn(3, 1, 2, N, 8, generator=torch.Generator().manual_seed(0))
    return lambda ids: attention(q[0], q[1], q[2], mask(ids), backend=backend)


READERS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense_mask": lambda ids: dense_mask(mask(ids), 1, 1, N, N),
    "block_mask": blocks,
    "classify_blocks": classes,
    **{f"attention({backend})": attending(backend) for backend in ("auto", "eager", "sdpa", "flex")},
}


class Reading(torch.nn.Module):
    def __init__(self, read: Callable[[Tensor], Tensor]):
        super().__init__()
        self.read = read

    def forward(self, ids: Tensor) -> Tensor:
        return self.read(ids)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
@pytest.mark.parametrize("name", READERS)
def test_export(name: str, strict: bool) -> None:
    first, second = torch.arange(N) // 50, torch.arange(N) // 70
    module = Reading(READERS[name])
    exported = export(module, (first,), strict=strict).module()
    for ids in (first, second):
        want = attending("sdpa")(ids) if "flex" in name else module(ids)
        torch.testing.assert_close(exported(ids), want, rtol=1e-4, atol=1e-5)
