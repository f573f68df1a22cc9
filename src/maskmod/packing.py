"""Four descriptions of packed sequences, each from each: document ids, cumulative lengths, position ids, lengths.

    lengths       (D,)  or (B, D)      tokens of each document; zeros are documents without tokens
    cu_seqlens    (D+1,) or (B, D+1)   int32 prefix sums, starting with 0 (flash-attention's varlen layout)
    document_ids  (n,)  or (B, n)      the number of each token's document, 0, 1, 2, ... in order; -1 after the last one
    position_ids  (n,)  or (B, n)      each token's position in its document

All are pure tensor functions and trace without graph breaks when the size they produce is given: ``total`` tokens, or
``num_documents``. Left out, that size is read from the data, which a compiled graph cannot do. This module never
guesses whether a batch is packed.

`pack_tree` packs sequences that begin alike as one tree: every shared token once, one forward for all of them. It knows
no model and no loss; it says which node answers for which token of which sequence.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from maskmod._torch.tracing import known_true, readable
from maskmod.algebra.lookup import check_table
from maskmod.errors import MaskShapeError, MaskTypeError, MaskValueError

__all__ = [
    "PackedTree",
    "Tokens",
    "cu_seqlens_from_document_ids",
    "cu_seqlens_from_lengths",
    "cu_seqlens_from_position_ids",
    "document_ids_from_cu_seqlens",
    "document_ids_from_lengths",
    "document_ids_from_position_ids",
    "lengths_from_cu_seqlens",
    "lengths_from_document_ids",
    "lengths_from_position_ids",
    "pack_tree",
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


# ------------------------------------------------------------------------------------------------------------- trees

Tokens: TypeAlias = "Sequence[int] | Tensor"
"""One sequence of token numbers: ints, or an integer tensor (n,)."""


class PackedTree(NamedTuple):
    """A forest of n nodes, numbered depth first, and the way back to its S sequences of ``total`` tokens together.

    ``logits[tree.gather]`` are the logits of all sequences end to end. What a node's token cost is read where its
    parent is: with ``child = tree.parents >= 0``, ``cross_entropy(logits[tree.parents[child]], tree.tokens[child])``
    is the loss of each node but the roots; weighted by ``tree.counts[child]`` it sums to that of the sequences read one
    by one.
    """

    tokens: Tensor
    """(n,) int64."""
    position_ids: Tensor
    """(n,) int64: how many tokens of its sequence stand before a node."""
    parents: Tensor
    """(n,) int64: the node of the token before; -1 for the first of a sequence."""
    ends: Tensor
    """(n,) int64: one past the last node of each node's subtree, for `dfs_tree`."""
    counts: Tensor
    """(n,) int64: how many sequences a node belongs to."""
    gather: Tensor
    """(total,) int64: the node of every token of every sequence, end to end."""
    scatter: Tensor
    """(n,) int64: where among the ``total`` tokens each node stands first: ``per_token[scatter]`` packs."""
    lengths: Tensor
    """(S,) int64: tokens of each sequence."""

    def rows(self) -> tuple[Tensor, ...]:
        """`gather` sequence by sequence: S tensors of nodes."""
        return self.gather.split(self.lengths.tolist())

    def padded(self, length: int, token: int = 0) -> PackedTree:
        """The same with ``length`` nodes, for shapes that stay: each new one is a root of no sequence, and sees itself.

        Raises:
            MaskValueError: there are more nodes than ``length``.
        """
        n = self.tokens.shape[0]
        if length < n:
            raise MaskValueError(f"padded({length})", f"the tree has {n} nodes", f"Pass {n} or more.")
        new = torch.arange(n, length, device=self.tokens.device)

        def longer(values: Tensor, rest: Tensor) -> Tensor:
            return torch.cat((values, rest))

        zero = torch.zeros_like(new)
        return self._replace(
            tokens=longer(self.tokens, zero + token),
            position_ids=longer(self.position_ids, zero),
            parents=longer(self.parents, zero - 1),
            ends=longer(self.ends, new + 1),
            counts=longer(self.counts, zero),
            scatter=longer(self.scatter, zero),
        )

    def saved(self) -> str:
        """Tokens and visible pairs, in rows of their own and packed, in one line.

        >>> pack_tree([[7, 1, 2], [7, 1, 3]]).saved()
        '2 sequences: 6 tokens, packed 4 (1.5 times fewer); 12 pairs, packed 9 (1.3 times fewer)'
        """
        held = self.counts > 0
        tokens, packed = int(self.lengths.sum()), int(held.sum())
        pairs = int((self.lengths * (self.lengths + 1) // 2).sum())
        packed_pairs = int((self.position_ids + 1)[held].sum())
        fewer = [f"{a / b:.1f} times fewer" if b else "none" for a, b in ((tokens, packed), (pairs, packed_pairs))]
        return (
            f"{self.lengths.shape[0]} sequences: {tokens} tokens, packed {packed} ({fewer[0]}); "
            f"{pairs} pairs, packed {packed_pairs} ({fewer[1]})"
        )


def pack_tree(
    sequences: Sequence[Tokens | tuple[Tokens, Sequence[Tokens]]], *, device: torch.device | str | None = None
) -> PackedTree:
    """Pack sequences as the tree of their common beginnings, in time and memory O(tokens).

    Under ``dfs_tree(tree.ends)`` with ``tree.position_ids``, node i computes what its token would in any of its
    sequences alone: rollouts of one prompt share it, and each other's beginnings (AReaL; verl's prefix trees).

    Args:
        sequences: token lists; or groups ``(prompt, continuations)``, whose prompt is then read only once. Sequences
            that begin alike share those nodes whether they come from one group or not. Branches keep the order in which
            they first appear.
        device: where the result lives; None is torch's default.

    Raises:
        MaskTypeError: an item is no sequence of ints.

    >>> tree = pack_tree([[5, 6, 7], [5, 6, 8, 9], [4]])
    >>> tree.tokens.tolist(), tree.position_ids.tolist(), tree.parents.tolist(), tree.ends.tolist()
    ([5, 6, 7, 8, 9, 4], [0, 1, 2, 2, 3, 0], [-1, 0, 1, 1, 3, -1], [5, 5, 3, 5, 5, 6])
    >>> [row.tolist() for row in tree.rows()]
    [[0, 1, 2], [0, 1, 3, 4], [5]]
    """
    trie = _Trie()
    path, lengths = array("q"), []  # the nodes of all sequences, end to end
    for number, item in enumerate(sequences):
        prompt, continuations = _parts(item, number)
        begin = None
        for tokens in continuations:
            begin = trie.walk(-1, prompt) if begin is None else begin
            path += begin
            rest = trie.walk(begin[-1] if begin else -1, tokens)
            path += rest
            lengths.append(len(begin) + len(rest))
    return _numbered(trie, path, lengths, device)


class _Trie:
    """Nodes in the order in which they were met, each after its parent."""

    def __init__(self):
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self._next: dict[tuple[int, int], int] = {}

    def walk(self, node: int, tokens: list[int]) -> array[int]:
        """The nodes of ``tokens`` behind ``node``, made where there are none yet."""
        path, known = array("q"), self._next
        for at, token in enumerate(tokens):
            child = known.get((node, token))
            if child is None:  # from here on nothing is known
                self._grow(node, tokens[at:])
                path.extend(range(len(self.tokens) - len(tokens) + at, len(self.tokens)))
                break
            path.append(child)
            node = child
        return path

    def _grow(self, node: int, tokens: list[int]) -> None:
        first = len(self.tokens)
        parents = [node, *range(first, first + len(tokens) - 1)]
        self._next.update(zip(zip(parents, tokens, strict=True), range(first, first + len(tokens)), strict=True))
        self.tokens += tokens
        self.parents += parents


def _numbered(trie: _Trie, path: array[int], lengths: list[int], device: torch.device | str | None) -> PackedTree:
    """Depth-first numbers: a node's is its parent's, plus one, plus the nodes below its elder siblings."""
    parents = trie.parents
    n, total = len(parents), len(path)
    below = [1] * (n + 1)  # nodes in each subtree; the last entry, which is also entry -1, is a root over all
    for node in range(n - 1, -1, -1):
        below[parents[node]] += below[node]
    free, numbers, depth = [0] * (n + 1), [0] * n, [-1] * (n + 1)
    for node, parent in enumerate(parents):
        numbers[node] = here = free[parent]
        free[parent] = here + below[node]
        free[node] = here + 1
        depth[node] = depth[parent] + 1
    number, nodes = _tensor(numbers).clone(), torch.arange(n, device="cpu")
    gather = number[_tensor(path)]
    order = _tensor(numbers).scatter_(0, number, nodes)  # the node of each number
    first = torch.full_like(nodes, total).scatter_reduce(0, gather, torch.arange(total, device="cpu"), "amin")
    of_parents = torch.cat((number, number.new_tensor([-1])))[_tensor(parents)]
    packed = PackedTree(
        tokens=_tensor(trie.tokens)[order],
        position_ids=_tensor(depth[:n])[order],
        parents=of_parents[order],
        ends=nodes + _tensor(below[:n])[order],
        counts=torch.bincount(gather, minlength=n),
        gather=gather,
        scatter=first,
        lengths=_tensor(lengths),
    )
    target = torch.empty(0, device=device).device
    return PackedTree(*(values.to(target) for values in packed))


def _tensor(numbers: list[int] | array[int]) -> Tensor:
    """int64 on CPU; an array is a third of the way that torch.tensor goes over a list."""
    numbers = numbers if isinstance(numbers, array) else array("q", numbers)
    return (
        torch.frombuffer(numbers, dtype=torch.int64)
        if len(numbers)
        else torch.zeros(0, dtype=torch.int64, device="cpu")
    )


def _parts(item: Any, number: int) -> tuple[list[int], Iterator[list[int]]]:
    """A token list, or a group, as ``(prompt, continuations)``."""
    is_group = isinstance(item, tuple) and len(item) == 2 and not isinstance(item[1], int)
    prompt, continuations = item if is_group else (item, [()])
    return _ints(prompt, number), (_ints(tokens, number) for tokens in continuations)


def _ints(tokens: Any, number: int) -> list[int]:
    if isinstance(tokens, Tensor):
        check_table(f"pack_tree(sequences), sequence {number}", tokens, holds="tokens")
        if tokens.dim() == 1:
            return tokens.tolist()
    if isinstance(tokens, (list, tuple, range)) and all(type(token) is int for token in tokens):
        return list(tokens)
    seen = f"sequence {number} is a {type(tokens).__name__} that holds no token numbers"
    todo = "Pass lists of ints, or integer tensors (n,); or groups (prompt, lists)."
    raise MaskTypeError("pack_tree(sequences)", seen, todo)
