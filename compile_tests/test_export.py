"""torch.export, strict and not, with dynamic lengths; one packaged AOTInductor model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim, export

from maskmod import Mask, additive_bias, attention, causal, dense_mask, document, key_padding, shift, sliding_window

# Entering torch's own index mode counts as a side effect in a strict export, which reports it without a source.
pytestmark = pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")

ids = pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])


class Dense(torch.nn.Module):
    def forward(self, q: Tensor, valid: Tensor, position: Tensor) -> Tensor:
        mask = shift(causal() & sliding_window(4), q_offset=position) & key_padding(valid)
        return dense_mask(mask, 2, 1, q.shape[1], valid.shape[1])


class Biased(torch.nn.Module):
    def forward(self, q: Tensor, valid: Tensor, position: Tensor) -> Tensor:
        mask = shift(causal(), q_offset=position) & key_padding(valid)
        return additive_bias(mask, 2, 1, q.shape[1], valid.shape[1], dtype=torch.float32)


class Attending(torch.nn.Module):
    def forward(self, q: Tensor, valid: Tensor, position: Tensor) -> Tensor:
        q = q[:, None]
        k = (q.sum(2, keepdim=True) * valid[:, None, :, None]).float()
        return attention(q, k, k, shift(causal(), q_offset=position) & key_padding(valid))


def inputs(q_len: int, kv_len: int, t: int) -> tuple[Tensor, Tensor, Tensor]:
    valid = (torch.arange(kv_len) + torch.tensor([[0], [1]])) % 5 != 0
    return torch.randn(2, q_len, 4), valid, torch.tensor(t)


SHAPES: dict[str, Any] = {"q": {1: Dim("q_len", min=2)}, "valid": {1: Dim("kv_len", min=2)}, "position": None}


@ids
@pytest.mark.parametrize("module", [Dense, Biased, Attending])
def test_export_with_dynamic_lengths(module: type[torch.nn.Module], strict: bool):
    exported = export(module(), inputs(5, 9, 2), dynamic_shapes=SHAPES, strict=strict).module()
    for q_len, kv_len, t in ((5, 9, 2), (7, 4, 0), (3, 12, 9)):
        call = inputs(q_len, kv_len, t)
        torch.testing.assert_close(exported(*call), module()(*call), rtol=0, atol=1e-6)


@ids
def test_a_mask_is_an_input_of_an_export(strict: bool):
    class Read(torch.nn.Module):
        def forward(self, mask: Mask, x: Tensor) -> Tensor:
            return dense_mask(mask, 1, 1, 6, 6) & (x > 0)

    def mask(t: int) -> Mask:
        return causal() & document((torch.arange(6) + t) // 2)

    exported = export(Read(), (mask(0), torch.ones(())), strict=strict).module()
    for t in range(3):
        assert torch.equal(exported(mask(t), torch.ones(())), dense_mask(mask(t), 1, 1, 6, 6))


def test_a_packaged_model_runs_at_two_lengths(tmp_path: Path):
    exported = export(Dense(), inputs(5, 9, 2), dynamic_shapes=SHAPES)
    package = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "dense.pt2"))
    loaded = torch._inductor.aoti_load_package(package)
    for q_len, kv_len, t in ((5, 9, 2), (8, 13, 5)):
        call = inputs(q_len, kv_len, t)
        assert torch.equal(loaded(*call), Dense()(*call))
