"""A server of many requests at once in one compiled graph: a flat step of chunks, single tokens and trees of drafts.

The tokens of all requests stand end to end, as many of each as there is room for: first the next token of every request
that writes, with a tree of guesses behind it, then chunks of prompts. Whole pages that begin alike are shared. One step
that fails is tried again request by request, so that what breaks it goes alone.

Requests, their checks and their counts are `maskmod.demo.server`'s, whose rows by columns this is compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maskmod import causal, dfs_tree, prefix
from maskmod.caches import Paged
from maskmod.demo.model import Attend, Model
from maskmod.demo.server import BadRequest, Request, Server
from maskmod.packing import PackedTree, pack_tree
from maskmod.serving import RaggedPlan

__all__ = ["FlatServer", "Part", "guesses"]


class Part(NamedTuple):
    """What a request does in one step: its own next tokens, and a tree of guesses of what follows the last of them."""

    request: Request
    own: list[int]
    tree: PackedTree

    @property
    def count(self) -> int:
        return len(self.own) + self.tree.tokens.shape[0]


class FlatServer(Server):
    """Greedy generation for a changing set of requests, in one graph.

    Args:
        max_tokens: tokens of a step, of all requests together.
        per_client: requests of one named client that may wait or run; one more is refused.

    The others are `Server`'s; ``rows`` is the most requests that run at a time, ``chunk`` bounds a tree of guesses.
    """

    def __init__(self, model: Model, *, max_tokens: int = 24, per_client: int = 8, **options: Any):
        self.max_tokens, self.per_client = max_tokens, per_client
        self.failed: dict[str, str] = {}
        self.clients: dict[str, str] = {}
        super().__init__(model, **options)
        self._users = [0] * self._layout.num_pages
        self._known: dict[tuple[int, ...], int] = {}  # whole pages by all tokens up to their end
        self._of_page: dict[int, tuple[int, ...]] = {}

    def _prepare(self, compiler: str) -> None:
        rows, nodes = self.rows, self.chunk

        def ints(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64)

        self._starts, self._lengths, self._table = ints(rows + 1), ints(rows), ints(*self._block_table.shape)
        self._row_tokens, self._row_positions = ints(1, self.max_tokens), ints(1, self.max_tokens)
        self._begin, self._ends = ints(rows), ints(rows, nodes)  # of each request's tree of guesses
        layout = Paged(self._layout.num_pages, self._layout.page_size, max_pages=self._block_table.shape[1])
        mask = (causal() & prefix(self._begin)) | dfs_tree(self._ends, start=self._begin)
        heads = self.model.config.q_heads
        self._plan = RaggedPlan(mask, layout, self.max_tokens, rows, heads, backend="sdpa")
        self._next = torch.compile(self._next_tokens, fullgraph=True, dynamic=False, backend=compiler)

    def submit(self, name: str, prompt: Sequence[int], new_tokens: int, client: str | None = None) -> None:
        """Take a request in; see `Server.submit`.

        Raises:
            BadRequest: also where the client has as many requests here as one may have.
        """
        if client is not None:
            present = [request.name for request in self._all()]
            if sum(self.clients.get(other) == client for other in present) >= self.per_client:
                seen = f"client {client!r} has {self.per_client} requests here"
                raise BadRequest(name, seen, "Wait for one of them.")
        super().submit(name, prompt, new_tokens)
        if client is not None:
            self.clients[name] = client

    def cancel(self, name: str) -> None:
        super().cancel(name)
        self.clients.pop(name, None)

    # -- steps ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self) -> None:
        """Run what fits into one flat step."""
        self._admit()
        parts = self._parts()
        if parts:
            self._run(parts)
            self.counts.steps += 1

    def _parts(self) -> list[Part]:
        """Writers first, then prompts, each as far as there is room; those that wait longest come first in turn."""
        running = [request for request in self._running if request is not None]
        writers = [request for request in running if len(request.tokens) - request.held == 1]
        prompts = [request for request in running if len(request.tokens) - request.held > 1]
        parts, room = [], self.max_tokens
        for at, request in enumerate(writers):
            left = len(writers) - at - 1
            most = min(self.chunk, room - left - min(len(prompts), 1), request.to_come)
            tree = guesses(request.tokens, max(most - 1, 0))
            parts.append(Part(request, request.tokens[request.held :], tree))
            room -= parts[-1].count
        for request in prompts:
            own = request.tokens[request.held : request.held + room]
            if own:
                parts.append(Part(request, own, pack_tree([])))
                room -= len(own)
        return parts

    def _run(self, parts: list[Part]) -> None:
        """One step; where it fails, each request by itself, and those that fail again leave with the reason."""
        try:
            answers = self._answers(parts)
        except Exception as error:  # whatever it is, the other requests have a right to their answers
            if len(parts) > 1:
                for part in parts:
                    self._run([part])
                return
            request = parts[0].request
            self.failed[request.name] = f"{type(error).__name__}: {error}"
            self._leave(self._running.index(request))
            return
        self.counts.chunk_steps += any(part.count > 1 for part in parts)
        moves: list[tuple[int, int]] = []
        at = 0
        for part in parts:
            moves += self._keep(part, answers[at : at + part.count])
            at += part.count
            if part.request.done:
                self._finished[part.request.name] = part.request
                self._leave(self._running.index(part.request))
        self._move(moves)

    def _answers(self, parts: list[Part]) -> list[int]:
        """After each token of the step, the one that the model would write next."""
        tokens, positions, starts, lengths = [], [], [0], []
        self._ends.zero_()
        for row, (request, own, tree) in enumerate(parts):
            begin = request.held + len(own)
            tokens += own + tree.tokens.tolist()
            positions += [*range(request.held, begin), *(begin + tree.position_ids).tolist()]
            starts.append(len(tokens))
            lengths.append(begin + tree.tokens.shape[0])
            self._begin[row] = begin
            self._ends[row, : tree.ends.shape[0]] = tree.ends
            self._table[row] = self._block_table[self._running.index(request)]
        unused = self.max_tokens - len(tokens)
        self._row_tokens.copy_(torch.tensor([tokens + [0] * unused]))
        self._row_positions.copy_(torch.tensor([positions + [0] * unused]))
        starts += starts[-1:] * (self.rows + 1 - len(starts))
        self._starts.copy_(torch.tensor(starts))
        self._lengths.copy_(torch.tensor(lengths + [0] * (self.rows - len(lengths))))
        return self._next(self._row_tokens)[0].tolist()  # the one wait for the device

    def _next_tokens(self, tokens: Tensor) -> Tensor:  # (1, max_tokens) -> (1, max_tokens)
        args = self._plan.step_(self._starts, self._lengths, self._table)
        slots = self._plan.write_slots()
        slots = torch.where(slots < 0, self._layout.kv_len, slots)  # the last slot takes what has no page
        return self.model(tokens, self._row_positions, self._attend(slots, args.kwargs())).argmax(-1)

    def _attend(self, slots: Tensor, kwargs: dict) -> Attend:
        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            pool = []
            for store, new in ((self._keys[layer], k), (self._values[layer], v)):
                store.index_copy_(1, slots, new[0])
                pool.append(store[None, :, :-1])  # (1, kv_heads, slots, D)
            # A token that is not used sees nothing; what softmax makes of it is read by nobody.
            return torch.nan_to_num(F.scaled_dot_product_attention(q, *pool, enable_gqa=True, **kwargs))

        return attend

    def _keep(self, part: Part, answers: list[int]) -> list[tuple[int, int]]:
        """Keep the guesses that the model would have written, and its own next token; which slots' keys move where."""
        request, own, tree = part
        request.held += len(own)
        if request.held < len(request.tokens):
            return []  # more of the prompt is to come
        begin, node, path = request.held, -1, []
        written = answers[len(own) - 1]
        children = tree.parents.tolist()
        while True:
            request.tokens.append(written)
            self.counts.new_tokens += 1
            if request.done:
                break
            step = [i for i, parent in enumerate(children) if parent == node and int(tree.tokens[i]) == written]
            if not step:
                break
            node = step[0]
            path.append(node)
            written = answers[len(own) + node]
        self.counts.drafted += len(children)
        self.counts.accepted += len(path)
        request.held += len(path)
        self._remember(request)
        slots = [(self._slot(request, begin + node), self._slot(request, begin + i)) for i, node in enumerate(path)]
        return [(source, target) for source, target in slots if source != target]

    def _move(self, moves: list[tuple[int, int]]) -> None:
        """An accepted branch lies apart in the cache: its keys come together behind the prefix."""
        if moves:
            source, target = torch.tensor(moves).unbind(1)
            for store in (*self._keys, *self._values):
                store[:, target] = store[:, source]

    # -- pages ------------------------------------------------------------------------------------------------

    def _slot(self, request: Request, position: int) -> int:
        size = self._layout.page_size
        return request.pages[position // size] * size + position % size

    def _remember(self, request: Request) -> None:
        """Whole pages, which nobody writes again, may serve others that begin with the same tokens."""
        size = self._layout.page_size
        for number in range(request.held // size):
            beginning = tuple(request.tokens[: (number + 1) * size])
            page = request.pages[number]
            if beginning not in self._known and page not in self._of_page:
                self._known[beginning], self._of_page[page] = page, beginning

    def _shared(self, tokens: list[int]) -> list[int]:
        """Pages that already hold the beginning of a prompt; its last token is left, for its answer is wanted."""
        size, pages = self._layout.page_size, []
        for number in range((len(tokens) - 1) // size):
            page = self._known.get(tuple(tokens[: (number + 1) * size]))
            if page is None:
                break
            pages.append(page)
        return pages

    def _admit(self) -> None:
        """First come, first served: a request starts once a row is free and pages for all of its tokens are."""
        for row, running in enumerate(self._running):
            if running is not None or not self._waiting:
                continue
            request = self._waiting[0]
            shared = self._shared(request.tokens)
            needed = -(-(request.prompt_len + request.new_tokens) // self._layout.page_size) - len(shared)
            if needed > len(self._free):
                return
            self._running[row] = self._waiting.popleft()
            request.pages = shared + [self._free.pop() for _ in range(needed)]
            request.held = len(shared) * self._layout.page_size
            for page in request.pages:
                self._users[page] += 1
            self._block_table[row, : len(request.pages)] = torch.tensor(request.pages)
            self.counts.pages_taken += needed
            self.counts.pages_shared += len(shared)
            self.counts.pages_at_once = max(self.counts.pages_at_once, len(self._users) - len(self._free))

    def _leave(self, row: int) -> None:
        request = self._running[row]
        assert request is not None
        for page in request.pages:
            self._users[page] -= 1
            if not self._users[page]:
                self._free.append(page)
                self._known.pop(self._of_page.pop(page, ()), None)
        self._block_table[row] = -1
        self._running[row] = None
        self.clients.pop(request.name, None)


def guesses(tokens: Sequence[int], room: int, *, ngram: int = 3, branches: int = 2) -> PackedTree:
    """What followed the last ``ngram`` tokens where they stood before, as a tree of at most ``room`` nodes.

    Prompt lookup decoding with branches: the latest places first, each different one a branch.

    >>> guesses([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], 4).tokens.tolist()
    [5, 1, 4, 1]
    """
    last, found = list(tokens[-ngram:]), []
    for begin in range(len(tokens) - ngram - 1, -1, -1):
        if room > 0 and list(tokens[begin : begin + ngram]) == last:
            branch = list(tokens[begin + ngram : begin + ngram + -(-room // branches)])
            if not any(other[: len(branch)] == branch for other in found):
                found.append(branch)
            if len(found) == branches:
                break
    while found and pack_tree(found).tokens.shape[0] > room:
        found.pop()
    return pack_tree(found)
