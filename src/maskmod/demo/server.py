"""A server of many requests at once, in two compiled graphs: continuous batching, chunked prefill, paged keys, drafts.

Every step runs all rows at once. A row gets up to ``chunk`` tokens: the next part of its prompt, or its last token and
drafts of what may follow; the model says after each which token it would have written, and a row keeps its drafts up to
the first that differs. A step in which no row has more than one token runs in the second graph, of one token a row.
What a row does not need is filled with tokens that nobody sees: they stand behind the row's end, and are written over.

This module knows neither where requests come from nor what their text means.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from maskmod import DecodePlan, causal
from maskmod.caches import PagedCache
from maskmod.demo.model import Attend, Model
from maskmod.demo.text import VOCABULARY
from maskmod.errors import MaskError

__all__ = ["BadRequest", "Counts", "Request", "Server", "draft"]

NO_PAGE = -1


class BadRequest(MaskError, ValueError):
    """A request that cannot be served; every other request goes on."""

    template = "request {written}: {seen}. {todo}"


@dataclass
class Request:
    """One request on its way; ``tokens`` holds the prompt and all that was written so far."""

    name: str
    tokens: list[int]
    prompt_len: int
    new_tokens: int
    held: int = 0  # tokens whose keys are in the cache
    pages: list[int] = field(default_factory=list)

    @property
    def written(self) -> list[int]:
        return self.tokens[self.prompt_len :]

    @property
    def to_come(self) -> int:
        """Tokens that are still to be written."""
        return self.prompt_len + self.new_tokens - len(self.tokens)

    @property
    def done(self) -> bool:
        return len(self.tokens) - self.prompt_len >= self.new_tokens


@dataclass
class Counts:
    """What a server did so far."""

    steps: int = 0
    chunk_steps: int = 0  # of these, in the graph of several tokens a row
    new_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    pages_taken: int = 0
    pages_at_once: int = 0  # most pages in use at a time
    pages_shared: int = 0  # taken over from a request that begins alike


class Server:
    """Greedy generation for a changing set of requests, in tensors whose shapes and addresses never change.

    Args:
        rows: requests that run at a time; others wait.
        max_len: tokens of one request, prompt and answer.
        num_pages, page_size: the pool of keys and values that all rows share.
        chunk: most tokens of a row in one step.
        waiting: requests that may wait; one more is refused.
        compiler: the backend of ``torch.compile``.

    The keys of every layer lie in one pool, (kv_heads, slots + 1, D); the last slot takes what has no page.
    """

    def __init__(
        self,
        model: Model,
        *,
        rows: int = 4,
        max_len: int = 128,
        num_pages: int = 32,
        page_size: int = 16,
        chunk: int = 8,
        waiting: int = 16,
        compiler: str = "inductor",
    ):
        config = model.config
        self.model, self.rows, self.max_len, self.chunk, self.waiting_limit = model, rows, max_len, chunk, waiting
        self.counts = Counts()
        self._block_table = torch.full((rows, -(-max_len // page_size)), NO_PAGE)
        self._layout = PagedCache(self._block_table, page_size, num_pages=num_pages)
        self._free = list(range(num_pages))
        pool = (config.kv_heads, self._layout.kv_len + 1, config.head_dim)
        self._keys = [torch.zeros(pool) for _ in range(config.layers)]
        self._values = [torch.zeros(pool) for _ in range(config.layers)]
        self._running: list[Request | None] = [None] * rows
        self._waiting: deque[Request] = deque()
        self._finished: dict[str, Request] = {}
        self._prepare(compiler)

    def _prepare(self, compiler: str) -> None:
        """What a step reads, allocated once, and the step itself, compiled."""
        rows, chunk, config = self.rows, self.chunk, self.model.config
        self._position = torch.zeros(rows, 1, dtype=torch.int64)
        self._tokens = {q_len: torch.zeros(rows, q_len, dtype=torch.int64) for q_len in (1, chunk)}
        self._plans = {
            q_len: DecodePlan(causal(), self._layout, rows, config.q_heads, q_len, backend="sdpa")
            for q_len in self._tokens
        }
        self._next = torch.compile(self._next_tokens, fullgraph=True, dynamic=False, backend=compiler)

    # -- requests ---------------------------------------------------------------------------------------------

    def submit(self, name: str, prompt: Sequence[int], new_tokens: int) -> None:
        """Take a request in.

        Raises:
            BadRequest: an empty prompt, one that holds no tokens of the model, a request too long to ever fit, a name
                in use, or too many requests waiting.
        """
        if not len(prompt):
            raise BadRequest(name, "the prompt is empty", "Send at least one token.")
        for token in prompt:
            if type(token) is not int or not 0 <= token < VOCABULARY:  # else it would fail in every row's step
                raise BadRequest(name, f"{token!r} is no token", f"Send integers from 0 to {VOCABULARY - 1}.")
        if type(new_tokens) is not int or new_tokens < 1:
            raise BadRequest(name, f"it asks for {new_tokens!r} tokens", "Ask for one or more.")
        length = len(prompt) + new_tokens
        room = min(self.max_len, self._layout.kv_len)
        if length > room:
            raise BadRequest(name, f"{length} tokens with its answer, {room} fit", f"Send {length - room} fewer.")
        if name in self._finished or any(name == request.name for request in self._all()):
            raise BadRequest(name, "another request has this name", "Choose a new one.")
        if len(self._waiting) >= self.waiting_limit:
            raise BadRequest(name, f"{self.waiting_limit} requests are waiting, no more may", "Send it again later.")
        self._waiting.append(Request(name, list(prompt), len(prompt), new_tokens))

    def cancel(self, name: str) -> None:
        """Drop a request that waits or runs; its pages are free at once.

        Raises:
            BadRequest: no such request.
        """
        for row, request in enumerate(self._running):
            if request is not None and request.name == name:
                self._leave(row)
                return
        for request in self._waiting:
            if request.name == name:
                self._waiting.remove(request)
                return
        raise BadRequest(name, "it neither waits nor runs", "Cancel a request before it is done.")

    def take(self, name: str) -> list[int]:
        """What was written for a request that is done; its name is free again.

        Raises:
            BadRequest: it is not done, or unknown.
        """
        if name not in self._finished:
            raise BadRequest(name, "it is not done", "Run more steps.")
        return self._finished.pop(name).written

    @property
    def busy(self) -> bool:
        return bool(self._waiting) or any(self._running)

    @property
    def finished(self) -> list[str]:
        return list(self._finished)

    @property
    def free_pages(self) -> int:
        return len(self._free)

    # -- steps ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self) -> None:
        """Run every row once."""
        self._admit()
        inputs = [self._input(request) if request else [] for request in self._running]
        if not any(inputs):
            return
        q_len = self.chunk if any(len(tokens) > 1 for tokens in inputs) else 1
        rows = [tokens + [0] * (q_len - len(tokens)) for tokens in inputs]
        self._tokens[q_len].copy_(torch.tensor(rows))
        self._position.copy_(torch.tensor([[request.held if request else 0] for request in self._running]))
        answers = self._next(self._tokens[q_len]).tolist()  # the one wait for the device
        self.counts.steps += 1
        self.counts.chunk_steps += q_len > 1
        for row, (request, tokens, answer) in enumerate(zip(list(self._running), inputs, answers, strict=True)):
            if request is not None:
                self._advance(request, tokens, answer)
                if request.done:
                    self._finished[request.name] = request
                    self._leave(row)

    def _next_tokens(self, tokens: Tensor) -> Tensor:  # (rows, q_len) -> (rows, q_len)
        """After each token, the one that the model would write next; keys and values go to their slots."""
        q_len = tokens.shape[1]
        args = self._plans[q_len].step_(self._position)
        slots = self._layout.write_slots(self._position, q_len)  # (rows, q_len), -1 without a page
        slots = torch.where(slots < 0, self._layout.kv_len, slots).view(-1)
        positions = self._position + torch.arange(q_len)
        return self.model(tokens, positions, self._attend(slots, args.kwargs())).argmax(-1)

    def _attend(self, slots: Tensor, kwargs: dict) -> Attend:
        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            pool = []
            for store, new in ((self._keys[layer], k), (self._values[layer], v)):
                store.index_copy_(1, slots, new.transpose(0, 1).reshape(new.shape[1], -1, new.shape[3]))
                pool.append(store[:, :-1].expand(q.shape[0], -1, -1, -1))  # (rows, kv_heads, slots, D)
            return F.scaled_dot_product_attention(q, *pool, enable_gqa=True, **kwargs)

        return attend

    def _input(self, request: Request) -> list[int]:
        """The tokens of a row's next step, of which the first are its own and the rest drafts."""
        own = request.tokens[request.held : request.held + self.chunk]
        if len(request.tokens) - request.held > 1:
            return own  # the prompt goes on
        room = min(self.chunk - 1, request.prompt_len + request.new_tokens - len(request.tokens) - 1)
        return own + draft(request.tokens, room)

    def _advance(self, request: Request, tokens: list[int], answer: list[int]) -> None:
        """Keep the drafts that the model would have written, and its own next token."""
        own = min(len(tokens), len(request.tokens) - request.held)
        request.held += own
        if request.held < len(request.tokens):
            return  # more of the prompt is to come
        drafts = tokens[own:]
        accepted = 0
        while accepted < len(drafts) and drafts[accepted] == answer[own - 1 + accepted]:
            accepted += 1
        # An accepted draft's key is in the cache already; the key of the model's own token is not.
        request.held += accepted
        request.tokens += answer[own - 1 : own + accepted]
        self.counts.drafted += len(drafts)
        self.counts.accepted += accepted
        self.counts.new_tokens += accepted + 1

    # -- rows and pages ---------------------------------------------------------------------------------------

    def _all(self) -> list[Request]:
        return [*self._waiting, *(request for request in self._running if request is not None)]

    def _admit(self) -> None:
        """First come, first served: a request starts once a row is free and pages for all of its tokens are."""
        for row, running in enumerate(self._running):
            if running is not None or not self._waiting:
                continue
            request = self._waiting[0]
            needed = -(-(request.prompt_len + request.new_tokens) // self._layout.page_size)
            if needed > len(self._free):
                return
            self._running[row] = self._waiting.popleft()
            request.pages = [self._free.pop() for _ in range(needed)]
            self._block_table[row, :needed] = torch.tensor(request.pages)
            self.counts.pages_taken += needed
            in_use = self._layout.kv_len // self._layout.page_size - len(self._free)
            self.counts.pages_at_once = max(self.counts.pages_at_once, in_use)

    def _leave(self, row: int) -> None:
        request = self._running[row]
        assert request is not None
        self._free += request.pages
        self._block_table[row] = NO_PAGE
        self._running[row] = None


def draft(tokens: Sequence[int], room: int, *, ngram: int = 3) -> list[int]:
    """What followed the last ``ngram`` tokens where they stood before: up to ``room`` tokens, often none.

    Prompt lookup decoding: a draft without a model, right wherever a text repeats itself.

    >>> draft([1, 2, 3, 4, 9, 1, 2, 3], 2)
    [4, 9]
    """
    last = list(tokens[-ngram:])
    for begin in range(len(tokens) - ngram - 1, -1, -1):
        if list(tokens[begin : begin + ngram]) == last:
            return list(tokens[begin + ngram : begin + ngram + room])
    return []
