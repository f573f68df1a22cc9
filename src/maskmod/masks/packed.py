"""Packed documents and padding: masks read from tables of ids, of positions, of validity, of lengths."""

from __future__ import annotations

import torch
from torch import Tensor

from maskmod.algebra import Mask, MaskMod, as_mask, spell
from maskmod.algebra.lookup import (
    check_row_count,
    check_table,
    check_table_sizes,
    is_set,
    look_up,
    row_scalar,
    wide,
)
from maskmod.errors import MaskTypeError
from maskmod.masks.head_tables import check_flags, check_lead, check_length, flag_set
from maskmod.masks.intervals import query_windows
from maskmod.masks.positional import causal, prefix, query_prefix

__all__ = [
    "Document",
    "KeyFlags",
    "KeyLengths",
    "KeyPadding",
    "QueryFlags",
    "Within",
    "document",
    "key_flags",
    "key_padding",
    "multi_item",
    "query_flags",
    "query_padding",
    "shared_prefix",
    "within",
]


class Document(Mask):
    """See `document`."""

    q_ids: Tensor
    kv_ids: Tensor | None  # None: the queries' ids serve both sides

    _name = "document"

    def __post_init__(self):
        check_table(self, self.q_ids)
        if self.kv_ids is not None:
            check_table(self, self.kv_ids)

    def __call__(self, b, h, q_idx, kv_idx):
        q_id, q_in_range = look_up(self.q_ids, b, q_idx)
        kv_id, kv_in_range = look_up(self.q_ids if self.kv_ids is None else self.kv_ids, b, kv_idx)
        return (q_id == kv_id) & q_in_range & kv_in_range

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_table_sizes(self, self.q_ids, B, q_len, "q_len")
        check_table_sizes(self, self.q_ids if self.kv_ids is None else self.kv_ids, B, kv_len, "kv_len")

    def __repr__(self) -> str:
        if self.kv_ids is None:
            return f"document({spell(self.q_ids)})"
        return f"document({spell(self.q_ids)}, {spell(self.kv_ids)})"


def document(q_ids: Tensor, kv_ids: Tensor | None = None) -> Mask:
    """Each query sees the keys that carry its own id: as many as its document has. Equality, nothing more.

    ``document(ids)`` serves both sides; ``document(q_ids, kv_ids)`` gives each its own. Packed causal training is
    ``causal() & document(ids)``. Ids need not be sorted. An index outside the table is hidden.

    Args:
        q_ids: integer ids, shape (n,) or (B, n), n at least the length it is read at.
        kv_ids: the same for keys; None takes ``q_ids``.

    >>> ids = torch.tensor([0, 0, 0, 1, 1])
    >>> [kv for kv in range(5) if document(ids)(0, 0, 3, kv)]
    [3, 4]
    """
    return Document(q_ids, kv_ids)


class KeyPadding(Mask):
    """See `key_padding`."""

    valid: Tensor

    _name = "key_padding"

    def __post_init__(self):
        check_table(self, self.valid, holds="validity", booleans=True)

    def __call__(self, b, h, q_idx, kv_idx):
        return is_set(self.valid, b, kv_idx)

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_table_sizes(self, self.valid, B, kv_len, "kv_len")


class KeyLengths(Mask):
    """See `key_padding`."""

    lengths: Tensor

    _name = "key_padding"

    def __post_init__(self):
        if self.lengths.dtype == torch.bool:
            seen = "a 1-D bool could be one row of validity or B flags"
            raise MaskTypeError(self, seen, "Pass validity as (B, n): x[None] for one row.")
        check_table(self, self.lengths, holds="lengths")

    def __call__(self, b, h, q_idx, kv_idx):
        return (kv_idx >= 0) & (kv_idx < row_scalar(self.lengths, b))

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_row_count(self, self.lengths, B)


def key_padding(x: Tensor) -> Mask:
    """Every query sees the valid keys of its row, and no others.

    Args:
        x: validity, shape (B, n), bool or integers (nonzero is valid, as in tokenizers' attention masks); or lengths,
            integers of shape (B,): keys 0..length - 1 are valid (flash-attention's ``seqused_k``).

    Raises:
        MaskTypeError: a float tensor, or a 1-D bool, which could be one row of validity or B flags.

    >>> lengths = torch.tensor([1, 3])
    >>> [kv for kv in range(4) if key_padding(lengths)(1, 0, 0, kv)]
    [0, 1, 2]
    """
    return KeyLengths(x) if isinstance(x, Tensor) and x.dim() == 1 else KeyPadding(x)


def query_padding(x: Tensor) -> Mask:
    """The valid queries of each row see every key, the others nothing: `key_padding`, turned round.

    ``key_padding(x) & query_padding(x)`` hides padding on both sides (TorchSpec's EAGLE-3 masks); rows of padding then
    see nothing.

    Args:
        x: validity, shape (B, n), bool or integers; or lengths, integers of shape (B,).

    Raises:
        MaskTypeError: a float tensor, or a 1-D bool, which could be one row of validity or B flags.

    >>> lengths = torch.tensor([1, 3])
    >>> query_padding(lengths)(1, 0, 2, 7), query_padding(lengths)(0, 0, 2, 7)
    (tensor(True), tensor(False))
    """
    if isinstance(x, Tensor) and x.dim() == 1:
        if x.dtype == torch.bool:
            seen = "a 1-D bool could be one row of validity or B flags"
            raise MaskTypeError(f"query_padding({spell(x)})", seen, "Pass validity as (B, n): x[None] for one row.")
        return query_prefix(x)
    return query_flags(x)


class KeyFlags(Mask):
    """See `key_flags`."""

    flags: Tensor

    _name = "key_flags"

    def __post_init__(self):
        check_flags(self, self.flags)

    def __call__(self, b, h, q_idx, kv_idx):
        return flag_set(self.flags, b, h, kv_idx)

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_lead(self, self.flags, B, H, 1)
        check_length(self, self.flags, -1, kv_len, "kv_len")


def key_flags(flags: Tensor) -> Mask:
    """Every query sees the flagged keys: as many as are set. `key_padding` for one row, or for each head.

    Separators that all may read (SepLLM), the vertical lines of MInference, the keys that an eviction kept (H2O,
    SnapKV).

    Args:
        flags: bool or integers (nonzero is set), shape (n,), (B, n) or (B, H, n); a B or H of 1 serves all.

    >>> [kv for kv in range(4) if key_flags(torch.tensor([1, 0, 0, 1]))(0, 0, 2, kv)]
    [0, 3]
    """
    return KeyFlags(flags)


class QueryFlags(Mask):
    """See `query_flags`."""

    flags: Tensor

    _name = "query_flags"

    def __post_init__(self):
        check_flags(self, self.flags)

    def __call__(self, b, h, q_idx, kv_idx):
        return flag_set(self.flags, b, h, q_idx)

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_lead(self, self.flags, B, H, 1)
        check_length(self, self.flags, -1, q_len, "q_len")


def query_flags(flags: Tensor) -> Mask:
    """The flagged queries see every key, the others nothing; to be combined.

    Args:
        flags: bool or integers (nonzero is set), shape (n,), (B, n) or (B, H, n); a B or H of 1 serves all.

    >>> flags = query_flags(torch.tensor([1, 0, 0, 1]))
    >>> bool(flags(0, 0, 3, 1)), bool(flags(0, 0, 2, 1))
    (True, False)
    """
    return QueryFlags(flags)


class Within(Mask):
    """See `within`."""

    inner: Mask
    q_ids: Tensor
    kv_ids: Tensor
    q_positions: Tensor
    kv_positions: Tensor

    def __post_init__(self):
        for table in (self.q_ids, self.kv_ids):
            check_table(self, table)
        for table in (self.q_positions, self.kv_positions):
            check_table(self, table, holds="positions")

    def __call__(self, b, h, q_idx, kv_idx):
        q_id, q_in_range = look_up(self.q_ids, b, q_idx)
        kv_id, kv_in_range = look_up(self.kv_ids, b, kv_idx)
        q_position, q_known = look_up(self.q_positions, b, q_idx)
        kv_position, kv_known = look_up(self.kv_positions, b, kv_idx)
        same = (q_id == kv_id) & q_in_range & kv_in_range & q_known & kv_known
        positions = wide(q_position, self.q_positions), wide(kv_position, self.kv_positions)
        return same & self.inner(b, h, *positions)

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        for table in (self.q_ids, self.q_positions):
            check_table_sizes(self, table, B, q_len, "q_len")
        for table in (self.kv_ids, self.kv_positions):
            check_table_sizes(self, table, B, kv_len, "kv_len")
        self.inner.check(B, H, None, None)  # documents may be of any length

    def __repr__(self) -> str:
        own = f", kv_ids={spell(self.kv_ids)}" if self.kv_ids is not self.q_ids else ""
        return f"within({spell(self.q_ids)}, {self.inner!r}{own})"


def within(
    ids: Tensor,
    inner: MaskMod,
    *,
    kv_ids: Tensor | None = None,
    q_positions: Tensor | None = None,
    kv_positions: Tensor | None = None,
) -> Mask:
    """``inner`` inside each document, its positions counted from the document's first token.

    A query sees the keys of its own document that inner shows it at those positions: ``within(ids, prefix(8))`` is the
    first 8 keys of *each* document, where ``document(ids) & prefix(8)`` is the first 8 of the row. attention-gym's
    ``generate_doc_mask_mod``; xformers' block-diagonal masks. Ids need not be sorted; equality is all that counts.

    Args:
        ids: integer ids, (n,) or (B, n), of the queries, and of the keys unless ``kv_ids`` says otherwise.
        inner: any mask of positions in a document.
        kv_ids: ids of the keys where these are other tokens.
        q_positions: each query's position in its document, (n,) or (B, n). None counts the tokens before it with the
            same id, once, when the mask is made: ids that are rewritten in place want positions rewritten too. Queries
            that are the last of their keys' document (xformers' bottom-right alignment) pass theirs here.
        kv_positions: the same for keys.

    >>> ids = torch.tensor([0, 0, 0, 1, 1, 1])
    >>> [kv for kv in range(6) if within(ids, prefix(2))(0, 0, 5, kv)]
    [3, 4]
    """
    check_table("within(ids, inner)", ids)
    if q_positions is None:
        q_positions = _occurrences(ids)
    if kv_ids is None:
        kv_ids = ids
        kv_positions = q_positions if kv_positions is None else kv_positions
    else:
        check_table("within(ids, inner, kv_ids=...)", kv_ids)
        kv_positions = _occurrences(kv_ids) if kv_positions is None else kv_positions
    return Within(as_mask(inner), ids, kv_ids, q_positions, kv_positions)


def _occurrences(ids: Tensor) -> Tensor:
    """How many tokens before each one carry its id: int64, the shape of ``ids``."""
    sorted_ids, order = ids.sort(dim=-1, stable=True)
    place = torch.arange(ids.shape[-1], device=ids.device).expand(ids.shape)
    begins = torch.ones_like(ids, dtype=torch.bool)
    begins[..., 1:] = sorted_ids[..., 1:] != sorted_ids[..., :-1]
    since = place - torch.where(begins, place, 0).cummax(-1).values if ids.shape[-1] else place
    return torch.zeros_like(place).scatter(-1, order, since)


def shared_prefix(ids: Tensor, prefix_ids: Tensor) -> Mask:
    """Packed causal documents, some of which also see the whole of another: their prompt, stored once.

    A query sees the keys of its own document up to itself, and every key of the document ``prefix_ids[q]`` (RLHF
    rollouts of one prompt; FlashMask's share-question mask; attention-gym's ``generate_shared_prefix_mask_mod``).

    Args:
        ids: integer ids, (n,) or (B, n).
        prefix_ids: for each token, the id of the document that it sees whole; an id that no token carries (-1) for
            none.

    >>> ids, prompt = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([-1, -1, 0, 0, 0, 0])
    >>> [kv for kv in range(6) if shared_prefix(ids, prompt)(0, 0, 5, kv)]
    [0, 1, 4, 5]
    """
    return (causal() & document(ids)) | document(prefix_ids, ids)


def multi_item(prefix_len: int | Tensor, positions: Tensor) -> Mask:
    """Items scored behind one prefix: a token sees the prefix up to itself and its own item, causally (FlashInfer).

    At most ``prefix_len + positions[q]`` keys. FlashInfer's ``token_pos_in_items`` holds the positions of the tokens
    after the prefix alone; here the prefix has entries too, zeros.

    Args:
        prefix_len: tokens in the prefix: int, or an integer tensor of shape (), (1,) or (B,).
        positions: each token's number in its item, from 1, integers (n,) or (B, n); 0 sees the prefix only.

    >>> items = multi_item(2, torch.tensor([0, 0, 1, 2, 1, 2]))  # a prefix of two, two items of two
    >>> [kv for kv in range(6) if items(0, 0, 5, kv)]
    [0, 1, 4, 5]
    """
    return (causal() & prefix(prefix_len)) | query_windows(positions)
