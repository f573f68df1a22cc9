"""Whether masks say the same, and whether they hide what they must: proven at every index, and shown where they do not.

The proofs are those of `maskmod.equal` and its siblings; this module words their failures.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskmod.algebra import MaskMod, Sizes, as_mask, sizes_of, spell
from maskmod.errors import MaskShapeError
from maskmod.facts.proofs import Element, disjoint, equal, implies
from maskmod.masks import document
from maskmod.oracle import vmap_at
from maskmod.pictures.around import draw_around

__all__ = ["assert_hidden", "assert_no_leak", "assert_same_mask"]


def assert_same_mask(
    a: MaskMod,
    b: MaskMod,
    B: int | None,
    H: int | None,
    q_len: int,
    kv_len: int,
    *,
    device: torch.device | str | None = None,
) -> None:
    """Fail unless both masks show the same at every index, which is proven and not sampled.

    Raises:
        AssertionError: with both expressions, one element where they differ, and a picture around it.

    >>> from maskmod import causal, sliding_window
    >>> assert_same_mask(causal(), lambda b, h, q_idx, kv_idx: q_idx - kv_idx >= 0, 1, 1, 1 << 20, 1 << 20)
    >>> try:
    ...     assert_same_mask(causal(), sliding_window(2), 1, 1, 4, 4)
    ... except AssertionError as error:
    ...     print(error)
    assert_same_mask on B=1, H=1, q_len=4, kv_len=4: they differ at b=0, h=0, q_idx=2, kv_idx=0
      a: visible there causal()
      b: hidden there  sliding_window(2)
    keys 0 to 3  (# both, a or b one of them, . neither)
    query 0   #  .  .  .
    query 1   #  #  .  .
    query 2  [a] #  #  .
    query 3   a  a  #  #
    """
    __tracebackhide__ = True
    found = equal(a, b, B, H, q_len, kv_len, device=device).counterexample
    if found is not None:
        _fail("assert_same_mask", "they differ", {"a": a, "b": b}, found, (B, H, q_len, kv_len), device)


def assert_hidden(
    mask: MaskMod,
    region: MaskMod,
    B: int | None,
    H: int | None,
    q_len: int,
    kv_len: int,
    *,
    device: torch.device | str | None = None,
) -> None:
    """Fail unless the mask hides every element of a region, which is a mask too: True is what must not be seen.

    Raises:
        AssertionError: with both expressions, a visible element of the region, and a picture around it.

    >>> from maskmod import causal
    >>> assert_hidden(causal(), lambda b, h, q_idx, kv_idx: kv_idx > q_idx + 2, 1, 1, 1 << 20, 1 << 20)
    """
    __tracebackhide__ = True
    found = disjoint(mask, region, B, H, q_len, kv_len, device=device).counterexample
    if found is not None:
        both = {"mask": mask, "region": region}
        _fail("assert_hidden", "the mask shows what must be hidden", both, found, (B, H, q_len, kv_len), device)


def assert_no_leak(
    mask: MaskMod, document_ids: Tensor, *, B: int | None = None, H: int | None = None, kv_ids: Tensor | None = None
) -> None:
    """Fail if some query sees a key of another document.

    Args:
        document_ids: the document of each token, (n,) or (B, n): equal for tokens that may see each other. It says the
            sizes that the mask is read at, and the device.
        B, H: rows and heads, where the mask has more than the ids: B must be the ids' own if they have rows.
        kv_ids: the same of each key, where keys are not the queries.

    Raises:
        AssertionError: with both expressions, the pair that leaks and the documents of both, and a picture around it.

    >>> from maskmod import causal
    >>> ids = torch.tensor([0, 0, 1, 1])
    >>> assert_no_leak(causal() & document(ids), ids)
    >>> try:
    ...     assert_no_leak(causal(), ids)
    ... except AssertionError as error:
    ...     print(str(error).replace("H=1, q_len=4, kv_len=4", "..."))
    assert_no_leak on B=1, ...: query 2 of document 1 sees key 0 of document 0 at b=0, h=0, q_idx=2, kv_idx=0
      mask: visible there    causal()
      document: hidden there document(int64[4])
    keys 0 to 3  (# both, m only the mask, d only the documents, . neither)
    query 0   #  d  .  .
    query 1   #  #  .  .
    query 2  [m] m  #  d
    query 3   m  m  #  #
    """
    __tracebackhide__ = True
    keys = document_ids if kv_ids is None else kv_ids
    rows = {ids.shape[0] for ids in (document_ids, keys) if ids.dim() == 2}
    if document_ids.dim() not in (1, 2) or keys.dim() not in (1, 2) or len(rows | ({B} - {None})) > 1:
        raise MaskShapeError(
            f"assert_no_leak(mask, {spell(document_ids)}, B={B}, kv_ids={spell(kv_ids)})",
            "ids are one row for all, or a row each",
            "Pass (n,) or (B, n), and B only where it is theirs.",
        )
    sizes = (next(iter(rows), B), H, document_ids.shape[-1], keys.shape[-1])
    own = document(document_ids) if kv_ids is None else document(document_ids, kv_ids)
    found = implies(mask, own, *sizes, device=document_ids.device).counterexample
    if found is None:
        return
    ids = [int(x[..., i] if x.dim() == 1 else x[found.b, i]) for x, i in ((document_ids, found[2]), (keys, found[3]))]
    what = f"query {found.q_idx} of document {ids[0]} sees key {found.kv_idx} of document {ids[1]}"
    _fail("assert_no_leak", what, {"mask": mask, "document": own}, found, sizes, document_ids.device)


_LEGENDS = {
    "assert_same_mask": (".ab#", "# both, a or b one of them, . neither"),
    "assert_hidden": (".m-#", "# shown and in the region, m only shown, - only in the region, . neither"),
    "assert_no_leak": (".md#", "# both, m only the mask, d only the documents, . neither"),
}


def _fail(
    name: str,
    what: str,
    masks: dict[str, MaskMod],
    place: Element,
    asked: tuple[int | None, int | None, int, int],
    device: torch.device | str | None,
) -> None:
    __tracebackhide__ = True
    sizes = sizes_of(as_mask(next(iter(masks.values()))), *asked)
    symbols, legend = _LEGENDS[name]
    lines = [f"{name} on {_named(sizes)}: {what} at {_named(place)}"]
    heads = [
        f"{label}: {'visible' if _shows(mask, place, device) else 'hidden'} there" for label, mask in masks.items()
    ]
    width = max(map(len, heads))
    lines += [f"  {head:{width}} {as_mask(mask)!r}" for head, mask in zip(heads, masks.values(), strict=True)]
    picture = draw_around(list(masks.values()), place, sizes, symbols=symbols, device=device)
    first, _, rest = picture.partition("\n")
    raise AssertionError("\n".join([*lines, f"{first}  ({legend})", rest]))


def _named(fields: Sizes | Element) -> str:
    return ", ".join(f"{name}={value}" for name, value in fields._asdict().items())


def _shows(mask: MaskMod, place: Element, device: torch.device | str | None) -> bool:
    b, h, q_idx, kv_idx = (torch.tensor([x], device=device) for x in place)
    return bool(vmap_at(as_mask(mask), b, h, q_idx.view(1, 1), kv_idx.view(1, 1)))
