"""Twelve predicates of systems in production, as plain functions: written anew from what each system's mask shows.

Trainers of draft models (TorchSpec, speculators, Automodel), packed pretraining (torchtitan), a server's paged cache
(vLLM), block-parallel fine-tuning (axolotl). They are measured as they are, and tests hold them to rules on plain ints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "PRODUCTION",
    "Predicate",
    "automodel_dflash",
    "automodel_idlm",
    "axolotl_ebft",
    "speculators_dflash",
    "speculators_eagle3",
    "speculators_peagle",
    "torchspec_eagle3",
    "torchtitan_documents",
    "vllm_paged",
    "vllm_window_or_images",
]

Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Predicate(NamedTuple):
    """A predicate and the sizes that its system reads it at."""

    name: str
    mask: Mask
    sizes: tuple[int, int, int, int]


def torchspec_eagle3(lengths: Tensor, length: int) -> Mask:
    """Text, causal between real tokens; then copies of it, of which a query sees its own place."""

    def mask(b, h, q, k):
        text = (q >= k) & (k < lengths[b]) & (q < lengths[b])
        own_place = (k >= length) & ((k - q) % length == 0) & (k % length < lengths[b])
        return text | own_place

    return mask


def speculators_eagle3(documents: Tensor) -> Mask:
    """Packed causal text, -1 for padding, and the diagonal of every copy behind it."""
    length = documents.shape[0]

    def mask(b, h, q, k):
        mine = documents[q]
        text = (mine != -1) & (mine == documents[k % length]) & (q >= k)
        return text | (k % length == q)

    return mask


def speculators_dflash(documents: Tensor, anchors: Tensor, block: int) -> Mask:
    """Blocks of drafts: a block sees the text of its anchor's document before the anchor, and itself."""
    length = documents.shape[0]
    anchor_of = anchors.repeat_interleave(block)

    def mask(b, h, q, k):
        anchor = anchor_of[q]
        at = k % length
        text = (k < length) & (documents[at] == documents[anchor]) & (documents[anchor] != -1) & (at < anchor)
        own = (k >= length) & ((k - length) // block == q // block)
        return text | own

    return mask


def speculators_peagle(documents: Tensor, anchors: Tensor, depths: Tensor) -> Mask:
    """Parallel groups: the text up to the anchor, in its document, and the token's own rollout so far."""

    def mask(b, h, q, k):
        mine, theirs = anchors[q], anchors[k]
        in_document = (documents[mine] == documents[theirs]) & (documents[mine] != -1)
        text = (depths[k] == 0) & (theirs <= mine)
        rollout = (theirs == mine) & (depths[k] <= depths[q])
        return in_document & (text | rollout)

    return mask


def automodel_dflash(
    anchors: Tensor,
    keep: Tensor,
    length: int,
    block: int,
    *,
    documents: Tensor | None = None,
    window: int | None = None,
) -> Mask:
    """DFlash with rows of a batch; packed, and with a window, where these are given."""
    blocks = anchors.shape[1]

    def mask(b, h, q, k):
        number = q // block
        known = number.clamp(max=blocks - 1)
        anchor = anchors[b, known]
        text = (k < length) & (k < anchor)
        own = (k >= length) & ((k - length) // block == number)
        if documents is not None:
            text = text & (documents[b, k.clamp(max=length - 1)] == documents[b, anchor])
        if window is not None:
            text = text & (k > anchor + q % block - window)
            own = own & ((k - length) % block <= q % block)
        return (text | own) & keep[b, known] & (number < blocks)

    return mask


def automodel_idlm(valid: Tensor, length: int, block: int) -> Mask:
    """Noisy copy, then clean one: causal inside noisy blocks, clean blocks before them, clean text causally."""

    def mask(b, h, q, k):
        q_clean, k_clean = q >= length, k >= length
        q_block = torch.where(q_clean, q - length, q) // block
        k_block = torch.where(k_clean, k - length, k) // block
        noisy = (q_block == k_block) & ~q_clean & ~k_clean & (k <= q)
        before = (k_block < q_block) & ~q_clean & k_clean
        clean = (k <= q) & q_clean & k_clean
        return (noisy | before | clean) & valid[b, k % length]

    return mask


def torchtitan_documents(tokens: Tensor, end: int) -> Mask:
    """Packed causal text, documents ending with an end-of-text token."""
    ends = (tokens == end).long()
    documents = ends.cumsum(1) - ends  # the token belongs to the document that it ends

    def mask(b, h, q, k):
        return (documents[b, q] == documents[b, k]) & (q >= k)

    return mask


def _logical(requests: Tensor, page_of: Tensor, page: int, starts: Tensor, cached: Tensor, lengths: Tensor, q, k):
    """(valid, request, position of the query, position of the key) for a slot of the cache."""
    request = requests[q]
    number = page_of[request, k // page]
    position = number * page + k % page
    valid = (number >= 0) & (position < lengths[request])
    return valid, request, q - starts[request] + cached[request], position


def vllm_paged(requests: Tensor, page_of: Tensor, page: int, starts: Tensor, cached: Tensor, lengths: Tensor) -> Mask:
    """Queries of all requests end to end against a paged cache, causal in each.

    ``page_of[request, physical page]`` is the number of the page in the request, -1 where it is another's.
    """

    def mask(b, h, q, k):
        valid, _, q_at, k_at = _logical(requests, page_of, page, starts, cached, lengths, q, k)
        return valid & (q_at >= k_at)

    return mask


def vllm_window_or_images(
    requests: Tensor,
    page_of: Tensor,
    page: int,
    starts: Tensor,
    cached: Tensor,
    lengths: Tensor,
    window: int,
    images: Sequence[tuple[int, int, int]],
) -> Mask:
    """The same with a window, ORed with the images (request, first, last) whose tokens see each other."""

    def mask(b, h, q, k):
        valid, request, q_at, k_at = _logical(requests, page_of, page, starts, cached, lengths, q, k)
        near = valid & (q_at >= k_at) & (torch.abs(q_at - k_at) < window)
        inside = torch.zeros_like(valid)
        for owner, first, last in images:
            both = (q_at >= first) & (q_at <= last) & (k_at >= first) & (k_at <= last)
            inside = inside | ((request == owner) & both)
        return near | (valid & inside)

    return mask


def axolotl_ebft(prompt: int, context: int, longest: int, stride: int, blocks: int) -> Mask:
    """Rollouts of many anchors generated side by side: causal prompt, then each block its context and itself so far."""
    p, c, g, s, n = (torch.tensor(value) for value in (prompt, context, longest, stride, blocks))

    def mask(b, h, q, k):
        q_text, k_text = q < p, k < p
        number = (q - p) % n
        end = torch.clamp(number * s + c, max=p - g)
        text = q_text & k_text & (q >= k)
        seen = ~q_text & k_text & (k < end)
        before = ~q_text & ~k_text & ((k - p) % n == number) & ((k - p) // n < (q - p) // n)
        return text | seen | (q == k) | before

    return mask


# ------------------------------------------------------------------------------------- at the sizes of their systems


def _packed(n: int, seed: int) -> Tensor:
    lengths = torch.randint(100, 900, (n // 100,), generator=torch.Generator().manual_seed(seed))
    ids = torch.repeat_interleave(torch.arange(lengths.shape[0]), lengths)[: n - 200]
    return torch.cat([ids, torch.full((200,), -1)])


def _anchors(n: int, count: int) -> Tensor:
    return torch.randperm(n - 300, generator=torch.Generator().manual_seed(2))[:count].sort().values + 50


def _eagle3() -> Predicate:
    return Predicate("TorchSpec eagle3", torchspec_eagle3(torch.tensor([3900]), 4096), (1, 1, 4096, 7 * 4096))


def _speculators(copies: int) -> Predicate:
    name = "speculators eagle3" if copies == 1 else f"speculators eagle3 x{copies}"
    return Predicate(name, speculators_eagle3(_packed(4096, 1)), (1, 1, 4096, copies * 4096))


def _speculators_dflash() -> Predicate:
    mask = speculators_dflash(_packed(4096, 1), _anchors(4096, 256), 8)
    return Predicate("speculators dflash", mask, (1, 1, 2048, 6144))


def _peagle() -> Predicate:
    groups = [torch.arange(4096)] + [_anchors(4096, n) for n in (2048, 1024, 512)]
    depths = torch.cat([torch.full_like(group, i) for i, group in enumerate(groups)])
    mask = speculators_peagle(_packed(4096, 1), torch.cat(groups), depths)
    return Predicate("speculators peagle", mask, (1, 1, len(depths), len(depths)))


def _dflash(packed: bool) -> Predicate:
    anchors = torch.stack([_anchors(4096, 256), _anchors(4000, 256)])
    keep = torch.rand(2, 256, generator=torch.Generator().manual_seed(4)) < 0.9
    documents = torch.stack([_packed(4096, 1), _packed(4096, 5)]) if packed else None
    mask = automodel_dflash(anchors, keep, 4096, 16, documents=documents, window=1024 if packed else None)
    return Predicate(f"Automodel dflash{', packed, window' * packed}", mask, (2, 1, 4096, 8192))


def _idlm() -> Predicate:
    valid = torch.arange(2048) < torch.tensor([[2048], [1800]])
    return Predicate("Automodel idlm", automodel_idlm(valid, 2048, 32), (2, 1, 4096, 4096))


def _torchtitan() -> Predicate:
    tokens = torch.randint(0, 400, (1, 8192), generator=torch.Generator().manual_seed(6))
    return Predicate("torchtitan documents", torchtitan_documents(tokens, 0), (1, 1, 8192, 8192))


def _paged() -> dict[str, object]:
    page, pages = 16, 512
    lengths = torch.tensor([3000, 1500, 700, 2600])
    queries = torch.tensor([512, 1, 700, 835])
    order = torch.randperm(pages, generator=torch.Generator().manual_seed(7))
    page_of, used = torch.full((4, pages), -1), 0
    for request, length in enumerate(lengths.tolist()):
        own = order[used : used + -(-length // page)]
        page_of[request, own] = torch.arange(len(own))
        used += len(own)
    return {
        "requests": torch.repeat_interleave(torch.arange(4), queries),
        "page_of": page_of,
        "page": page,
        "starts": torch.cat([torch.zeros(1, dtype=torch.long), queries.cumsum(0)[:-1]]),
        "cached": lengths - queries,
        "lengths": lengths,
    }


def _vllm(images: bool) -> Predicate:
    cache = _paged()
    if not images:
        return Predicate("vLLM paged causal", vllm_paged(**cache), (1, 1, 2048, 8192))  # pyright: ignore[reportArgumentType]
    spans = [(0, 2500, 2755), (2, 40, 295), (3, 1800, 2055), (3, 2300, 2555)]
    mask = vllm_window_or_images(**cache, window=1024, images=spans)  # pyright: ignore[reportArgumentType]
    return Predicate("vLLM window or images", mask, (1, 1, 2048, 8192))


def _ebft() -> Predicate:
    mask = axolotl_ebft(prompt=2048, context=64, longest=64, stride=32, blocks=60)
    n = 2048 + 60 * 64
    return Predicate("axolotl ebft strided", mask, (1, 1, n, n))


PRODUCTION: dict[str, Callable[[], Predicate]] = {
    "torchspec eagle3": _eagle3,
    "speculators eagle3": lambda: _speculators(1),
    "speculators eagle3 x4": lambda: _speculators(4),
    "speculators dflash": _speculators_dflash,
    "speculators peagle": _peagle,
    "automodel dflash, packed, window": lambda: _dflash(True),
    "automodel dflash": lambda: _dflash(False),
    "automodel idlm": _idlm,
    "torchtitan documents": _torchtitan,
    "vllm paged": lambda: _vllm(False),
    "vllm window or images": lambda: _vllm(True),
    "axolotl ebft": _ebft,
}
"""Each at the sizes that it is measured at, made when it is called."""
