"""Four descriptions of packed sequences, each from each: document ids, cumulative lengths, position ids, lengths.

    lengths       (D,)  or (B, D)      tokens of each document; zeros are documents without tokens
    cu_seqlens    (D+1,) or (B, D+1)   int32 prefix sums, starting with 0 (flash-attention's varlen layout)
    document_ids  (n,)  or (B, n)      the number of each token's document, 0, 1, 2, ... in order; -1 after the last one
    position_ids  (n,)  or (B, n)      each token's position in its document

All are pure tensor functions and trace without graph breaks when the size they produce is given: ``total`` tokens, or
``num_documents``. Left out, that size is read from the data, which a compiled graph cannot do. This module never
guesses whether a batch is packed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskmod._torch.tracing import known_true, readable
from maskmod.algebra.lookup import check_table
from maskmod.errors import MaskShapeError, MaskValueError

__all__ = [
    "cu_seqlens_from_document_ids",
    "cu_seqlens_from_lengths",
    "cu_seqlens_from_position_ids",
    "document_ids_from_cu_seqlens",
    "document_ids_from_lengths",
    "document_ids_from_position_ids",
    "lengths_from_cu_seqlens",
    "lengths_from_document_ids",
    "lengths_from_position_ids",
    "position_ids_from_cu_seqlens",
    "position_ids_from_document_ids",
    "position_ids_from_lengths",
]


def cu_seqlens_from_lengths(lengths: Tensor) -> Tensor:
    """Prefix sums of ``lengths`` (D,) or (B, D), as int32 (D+1,) or (B, D+1).

    >>> cu_seqlens_from_lengths(torch.tensor([3, 2])).tolist()
    [0, 3, 5]
    """
    check_table("cu_seqlens_from_lengths(lengths)", lengths, holds="lengths")
    return torch.nn.functional.pad(lengths.cumsum(-1), (1, 0)).to(torch.int32)


def lengths_from_cu_seqlens(cu_seqlens: Tensor) -> Tensor:
    """Tokens of each document, int32 (D,) or (B, D).

    >>> lengths_from_cu_seqlens(torch.tensor([0, 3, 5])).tolist()
    [3, 2]
    """
    check_table("lengths_from_cu_seqlens(cu_seqlens)", cu_seqlens, holds="prefix sums")
    return cu_seqlens.long().diff(dim=-1).to(torch.int32)


def document_ids_from_cu_seqlens(cu_seqlens: Tensor, *, total: int | None = None) -> Tensor:
    """The document number of each of ``total`` tokens, int64 (total,) or (B, total).

    Tokens after the last document get -1.

    >>> document_ids_from_cu_seqlens(torch.tensor([0, 3, 5]), total=6).tolist()
    [0, 0, 0, 1, 1, -1]
    """
    check_table("document_ids_from_cu_seqlens(cu_seqlens)", cu_seqlens, holds="prefix sums")
    if known_true(cu_seqlens.shape[-1] == 0):
        raise MaskShapeError(
            "document_ids_from_cu_seqlens(cu_seqlens)",
            "no prefix sums, though even no documents have one: 0",
            "Begin them with 0.",
        )
    if total is None:
        total = _size_in_data("total", cu_seqlens[..., -1])
    _check_size("document_ids_from_cu_seqlens", "total", total)
    cu_seqlens = cu_seqlens.long()  # a narrow dtype need not hold ``total``
    tokens = torch.arange(total, device=cu_seqlens.device)
    ends = cu_seqlens[..., 1:].contiguous()
    tokens = tokens.expand(*cu_seqlens.shape[:-1], total).contiguous()
    # The number of documents that end at or before a token is the number of its own.
    ids = torch.searchsorted(ends, tokens, right=True)
    return torch.where(tokens < cu_seqlens[..., -1:], ids, -1)


def document_ids_from_lengths(lengths: Tensor, *, total: int | None = None) -> Tensor:
    """The document number of each of ``total`` tokens; see `document_ids_from_cu_seqlens`.

    >>> document_ids_from_lengths(torch.tensor([3, 0, 2])).tolist()
    [0, 0, 0, 2, 2]
    """
    return document_ids_from_cu_seqlens(cu_seqlens_from_lengths(lengths), total=total)


def document_ids_from_position_ids(position_ids: Tensor) -> Tensor:
    """A new document begins wherever a position does not follow the one before it, int64 (n,) or (B, n).

    >>> document_ids_from_position_ids(torch.tensor([0, 1, 2, 0, 1])).tolist()
    [0, 0, 0, 1, 1]
    """
    check_table("document_ids_from_position_ids(position_ids)", position_ids, holds="positions")
    begins = torch.ones_like(position_ids, dtype=torch.bool)
    begins[..., 1:] = position_ids.long().diff(dim=-1) != 1  # in uint8, 0 follows 255
    return begins.cumsum(-1) - 1


def position_ids_from_document_ids(document_ids: Tensor) -> Tensor:
    """Each token's position in its run of equal ids, int64 (n,) or (B, n).

    >>> position_ids_from_document_ids(torch.tensor([0, 0, 0, 1, 1])).tolist()
    [0, 1, 2, 0, 1]
    """
    check_table("position_ids_from_document_ids(document_ids)", document_ids)
    tokens = torch.arange(document_ids.shape[-1], device=document_ids.device)
    begins = torch.where(_run_begins(document_ids), tokens, 0)
    return tokens - begins.cummax(-1).values if document_ids.shape[-1] else begins


def lengths_from_document_ids(document_ids: Tensor, *, num_documents: int | None = None) -> Tensor:
    """Tokens of each run of equal ids, int32 (D,) or (B, D).

    A run of -1 is no document; a row with fewer documents than another ends in zeros, and documents past
    ``num_documents`` are left out. Lengths say nothing of where documents lie: padding before or between them is lost.

    >>> lengths_from_document_ids(torch.tensor([0, 0, 0, 1, 1, -1])).tolist()
    [3, 2]
    """
    check_table("lengths_from_document_ids(document_ids)", document_ids)
    real = document_ids.long() != -1  # in uint8, -1 is 255
    number = (_run_begins(document_ids) & real).cumsum(-1) - 1
    if num_documents is None:
        num_documents = _size_in_data("num_documents", number.amax() + 1) if number.numel() else 0
    _check_size("lengths_from_document_ids", "num_documents", num_documents)
    # Tokens outside every document, and documents past num_documents, are counted in a slot that is then cut off.
    slot = torch.where(real, number.clamp(max=num_documents), num_documents)
    lengths = torch.zeros(*number.shape[:-1], num_documents + 1, dtype=torch.int32, device=document_ids.device)
    return lengths.scatter_add(-1, slot, torch.ones_like(slot, dtype=torch.int32))[..., :num_documents]


def cu_seqlens_from_document_ids(document_ids: Tensor, *, num_documents: int | None = None) -> Tensor:
    """Prefix sums of the runs of equal ids; see `lengths_from_document_ids`.

    They describe the tokens in place only where -1 stands after the last document, if anywhere: pack left-padded rows.

    >>> cu_seqlens_from_document_ids(torch.tensor([0, 0, 0, 1, 1])).tolist()
    [0, 3, 5]
    """
    return cu_seqlens_from_lengths(lengths_from_document_ids(document_ids, num_documents=num_documents))


def position_ids_from_cu_seqlens(cu_seqlens: Tensor, *, total: int | None = None) -> Tensor:
    """Each token's position in its document, int64 (total,) or (B, total).

    Tokens after the last document count from 0 again.

    >>> position_ids_from_cu_seqlens(torch.tensor([0, 3, 5])).tolist()
    [0, 1, 2, 0, 1]
    """
    return position_ids_from_document_ids(document_ids_from_cu_seqlens(cu_seqlens, total=total))


def position_ids_from_lengths(lengths: Tensor, *, total: int | None = None) -> Tensor:
    """Each token's position in its document; see `position_ids_from_cu_seqlens`.

    >>> position_ids_from_lengths(torch.tensor([3, 2])).tolist()
    [0, 1, 2, 0, 1]
    """
    return position_ids_from_document_ids(document_ids_from_lengths(lengths, total=total))


def lengths_from_position_ids(position_ids: Tensor, *, num_documents: int | None = None) -> Tensor:
    """Tokens of each document; see `document_ids_from_position_ids`.

    >>> lengths_from_position_ids(torch.tensor([0, 1, 2, 0, 1])).tolist()
    [3, 2]
    """
    return lengths_from_document_ids(document_ids_from_position_ids(position_ids), num_documents=num_documents)


def cu_seqlens_from_position_ids(position_ids: Tensor, *, num_documents: int | None = None) -> Tensor:
    """Prefix sums of the documents' lengths; see `document_ids_from_position_ids`.

    >>> cu_seqlens_from_position_ids(torch.tensor([0, 1, 2, 0, 1])).tolist()
    [0, 3, 5]
    """
    return cu_seqlens_from_lengths(lengths_from_position_ids(position_ids, num_documents=num_documents))


def _run_begins(ids: Tensor) -> Tensor:
    begins = torch.ones_like(ids, dtype=torch.bool)
    begins[..., 1:] = ids[..., 1:] != ids[..., :-1]
    return begins


def _check_size(written: str, name: str, size: int) -> None:
    if isinstance(size, bool) or not isinstance(size, (int, torch.SymInt)) or known_true(size < 0):
        raise MaskValueError(
            f"{written}({name}={size!r})", "not a number of tokens or documents", "Pass an int from 0."
        )


def _size_in_data(name: str, sizes: Tensor) -> int:
    """The one size that every row of the data asks for; impossible in a graph, where shapes cannot follow values."""
    if not readable(sizes):
        raise MaskValueError(
            f"{name}=None inside a trace",
            "the size of the result depends on tensor values",
            f"Pass {name}= as an int.",
        )
    return int(sizes.max()) if sizes.numel() else 0
