"""What tests of the layouts share: which forms there are, and the check that a lowering is exact or refused."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

import maskmod
from maskmod import Element, vmap_mask
from maskmod.backends import registry
from maskmod.backends.refusals import Inexpressible

__all__ = ["FORMS", "Form", "check", "checked", "lower"]


class Form(NamedTuple):
    """A backend and its options."""

    name: str
    options: dict[str, Any]

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{k}={v}".replace(" ", "") for k, v in self.options.items())])


FORMS = [
    Form("csr", {}),
    Form("csr", {"block_size": (4, 2)}),
    Form("flashmask", {}),
    Form("flashmask", {"causal": False, "columns": 4}),
    Form("fa4", {"block_size": (8, 4), "backward": True}),
    Form("fa4", {"block_size": (4, 16), "bits": True}),
    Form("flashinfer", {}),
    Form("flashinfer", {"form": "bsr", "block_size": (1, 1)}),
    Form("flashinfer", {"form": "paged", "page_size": 3}),
    Form("magi", {}),
    Form("hstu", {"block_size": (4, 8)}),
    Form("hstu", {"block_size": (8, 4), "max_spans": 2}),
    Form("splash", {"block_size": (8, 8)}),
    Form("splash", {"block_size": (1, 1), "shrink": False}),
    Form("sglang", {}),
    Form("sglang", {"form": "qlen_only"}),
    Form("sglang", {"form": "bitpacking"}),
    Form("sglang", {"form": "spans"}),
]


def lower(mask: Any, name: str, B: int, H: int, q_len: int, kv_len: int, **options: Any) -> Any:
    """`maskmod.lower`, whose fields each layout has of its own."""
    return maskmod.lower(mask, name, B, H, q_len, kv_len, **options)


def checked(form: Form, mask: Any, sizes: tuple[int, int, int, int], truth: torch.Tensor) -> bool:
    """Lower and compare: True where it was taken, exactly; False where it was refused, with an element that exists."""
    args = _lowered(form, mask, sizes)
    if isinstance(args, Element):
        assert all(0 <= i < max(n, 1) for i, n in zip(args, sizes, strict=True)), (form, args, sizes)
        return False
    back = registry.get(form.name).read_back(args)
    assert back.dtype == torch.bool
    assert back.shape == sizes
    assert torch.equal(back, truth), f"{form} accepted {mask!r} on {sizes} and says something else"
    assert args.why
    assert args.kwargs()
    return True


def check(form: Form, mask: Any, sizes: tuple[int, int, int, int]) -> bool:
    return checked(form, mask, sizes, vmap_mask(mask, *sizes))


def _lowered(form: Form, mask: Any, sizes: tuple[int, int, int, int]) -> Any:
    try:
        return lower(mask, form.name, *sizes, **form.options)
    except Inexpressible as refused:
        return refused.element
