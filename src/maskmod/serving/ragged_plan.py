"""One plan for every step of a server whose requests stand end to end: prefill, decoding and drafts mixed.

A `RaggedPlan` knows a mask, where keys lie, and a backend. It does not know the model, and it holds no keys.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from maskmod.algebra import Mask, MaskMod, Sizes, as_mask, sizes_of, spell
from maskmod.algebra.lookup import check_size
from maskmod.backends.protocol import Lowered
from maskmod.caches import device_for
from maskmod.caches.flat import FlatLayout, Gathered, Paged
from maskmod.errors import BackendError, MaskTypeError
from maskmod.masks import full
from maskmod.oracle import reads_b_and_h
from maskmod.serving.decode_plan import Explanation
from maskmod.serving.ragged_blocks import Blocks
from maskmod.serving.ragged_dense import Bias, Dense
from maskmod.serving.ragged_lengths import Bits, Lengths, Varlen
from maskmod.serving.ragged_step import Holder, RaggedStep
from maskmod.serving.tokens import OfGathered, OfPages, tokens_of

__all__ = ["RaggedPlan"]

_HOLDERS: dict[str, Callable[[RaggedStep], Holder]] = {
    "sdpa": Dense,
    "eager": Bias,
    "flex": Blocks,
    "flash": Lengths,
    "varlen": Varlen,
    "flashinfer": Bits,
}


class RaggedPlan:
    """The mask of a flat step, allocated once: ``step_`` rewrites it in place and returns the same arguments.

    The queries of all requests stand end to end in one row of ``max_tokens``, as vLLM, SGLang and transformers'
    continuous batching run them: chunks of prompts, single tokens and drafts in one step. Requests join and leave from
    step to step; tokens and requests that are not used see nothing. Shapes, strides and storage addresses of
    ``plan.args`` never change, so that one compiled graph (and one CUDA graph) serves every step; ``step_`` asks no
    tensor for its value. A copy, and what pickle makes of a plan, is a new plan without requests.

    Args:
        mask: any callable ``(b, h, q_idx, kv_idx) -> bool``, where ``b`` is the request, by its place in this step, and
            the indices are positions in it. Its tensors are held by reference: rewrite them in place and the next step
            follows. Tables with rows have ``max_requests`` of them.
        layout: `maskmod.caches.Paged`, or `maskmod.caches.Gathered`.
        max_tokens: queries of a step, of all requests together.
        max_requests: requests of a step.
        H: query heads. The mask is built for all heads when the predicate does not read ``h``.
        backend: "sdpa" (a boolean ``(1, 1, max_tokens, slots)``), "eager" (a bias of that shape), "flex" (a BlockMask
            of each request's own blocks), "flash" and "varlen" (lengths and pages, by the names of flash-attention and
            of torch: causal masks and windows only), "flashinfer" (pages and bits).
        dtype: of the bias; None is torch's default dtype.
        device: None takes the device of the mask's own tensors, else torch's default.
        block_size: of the BlockMask, tokens and slots alike.

    Raises:
        MaskTypeError: the layout is no flat one.
        MaskShapeError: a table of the mask has other rows than ``max_requests``.
        BackendError: no such backend.
        UnsupportedMask: the backend cannot express this mask on this layout exactly.

    >>> from maskmod import causal
    >>> plan = RaggedPlan(causal(), Paged(num_pages=4, page_size=2), 4, 2, 1, backend="sdpa")
    >>> args = plan.step_(
    ...     torch.tensor([0, 1, 3]),  # one token of request 0, then two of request 1
    ...     torch.tensor([3, 2]),  # which then hold 3 and 2 tokens
    ...     torch.tensor([[2, 0], [1, -1]]),
    ... )
    >>> args.attn_mask[0, 0].int().tolist()  # request 0 has its positions 0, 1 on page 2 and position 2 on page 0
    [[1, 0, 0, 0, 1, 1, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]]
    """

    @torch.inference_mode(False)  # buffers made under it could not be rewritten outside
    def __init__(
        self,
        mask: MaskMod,
        layout: FlatLayout,
        max_tokens: int,
        max_requests: int,
        H: int,
        *,
        backend: str,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        block_size: int = 128,
    ):
        written = as_mask(mask)
        if not isinstance(layout, (Paged, Gathered)):
            raise MaskTypeError(
                f"RaggedPlan({written!r}, {spell(layout)})",
                f"a {type(layout).__name__} is no flat layout",
                "Pass Paged(num_pages, page_size) or Gathered(max_keys) of maskmod.caches.",
            )
        spelled = f"RaggedPlan({written!r}, {layout!r}, {max_tokens}, {max_requests}, {H}, backend={backend!r})"
        check_size(spelled, max_tokens, unit="tokens")
        check_size(spelled, max_requests, unit="requests")
        check_size(spelled, block_size, unit="tokens in a block")
        if backend not in _HOLDERS:
            raise BackendError(spelled, "no such backend", f"Pass one of {sorted(_HOLDERS)}.")
        _, H, _, _ = sizes_of(full(), 1, H, 0, 0)
        written.check(max_requests, H, None, None)
        found = device_for(written, device)
        device = torch.empty(0).device if found is None else found
        dtype = torch.get_default_dtype() if dtype is None else dtype
        self.layout, self.backend = layout, backend
        self._options = {"backend": backend, "dtype": dtype, "device": device, "block_size": block_size}
        self._written, self._spelled = written, spelled
        self._where = tokens_of(layout, max_tokens, max_requests, device)
        self._mask = self._where.of(written)
        self.sizes: Sizes = sizes_of(self._mask, 1, H, max_tokens, layout.kv_len)
        stored = self.sizes._replace(H=H if reads_b_and_h(written, device=device)[1] else 1)
        self._holder: Holder = _HOLDERS[backend](
            RaggedStep(written, self._where, self._mask, stored, dtype, device, spelled, block_size)
        )
        self.args = self._holder.args
        if isinstance(self._where, OfGathered):
            self._where.reads_keys = self._holder.reads_keys
        for buffer in (*self._where.buffers(), *self._holder.buffers()):
            # Unguarded: a second plan of the same structure, at other addresses, shares the compiled graph.
            torch._dynamo.mark_static_address(buffer, guard=False)
        with torch.no_grad():
            self._holder.write_()

    def step_(
        self,
        query_start_loc: Tensor,
        seq_lens: Tensor,
        block_table: Tensor | None = None,
        *,
        key_start_loc: Tensor | None = None,
    ) -> Lowered:
        """Rewrite the buffers for this step; returns ``self.args``.

        Integer tensors of any width and device, for as many requests as there are, at most ``max_requests``. To keep
        one shape, and so one graph, fill up: repeat the last entry of ``query_start_loc``.

        Args:
            query_start_loc: (requests + 1,): where each request's tokens begin; the last entry is their number.
            seq_lens: (requests,): tokens of each request, this step's included, which are its last.
            block_table: (requests, pages): the physical page of each of a request's pages, -1 where there is none; over
                pages only.
            key_start_loc: (requests + 1,): where each request's keys begin; over gathered keys only. A request with
                fewer keys than tokens holds its last ones. None: every request has all of its keys.

        Raises:
            MaskShapeError, MaskTypeError: an argument has none of these shapes, or is missing, or belongs to the other
                layout. Values are not looked at.
        """
        if isinstance(self._where, OfPages):
            if block_table is None or key_start_loc is not None:
                raise self._refusal("the keys lie in pages", "Pass block_table, and no key_start_loc.")
            self._where.write_(query_start_loc, seq_lens, block_table)
        else:
            if block_table is not None:
                raise self._refusal("the keys lie end to end", "Pass key_start_loc or nothing, and no block_table.")
            self._where.write_(query_start_loc, seq_lens, key_start_loc)
        self._holder.write_()
        return self.args

    @property
    def mask(self) -> Mask:
        """The mask over this step's tokens and the slots; it reads the plan's buffers."""
        if isinstance(self._where, OfGathered) and not self._where.reads_keys:
            self._where.write_keys_()
        return self._mask

    def _refusal(self, seen: str, todo: str) -> MaskTypeError:
        return MaskTypeError(f"{self!r}.step_(...)", seen, todo)

    @property
    def requests(self) -> Tensor:
        """(max_tokens,) int64: the request of each token of this step; -1 for one that is not used."""
        return self._where.requests

    @property
    def positions(self) -> Tensor:
        """(max_tokens,) int64: where each token stands in its request; of no meaning for one that is not used."""
        return self._where.positions

    def write_slots(self) -> Tensor:
        """(max_tokens,) int64: the slot that each token's key goes to; -1 where it is not used or has no page."""
        return self._where.write_slots()

    def explain(self) -> Explanation:
        """What the plan holds and why."""
        _, H, max_tokens, slots = self.sizes
        buffers = [*self._where.buffers(), *self._holder.buffers()]
        held = sum(t.numel() * t.element_size() for t in buffers)
        return Explanation(
            (
                f"mask: {self._written!r}",
                f"layout: {self.layout!r}: {slots} slots; {self._where.why}",
                f"step: {max_tokens} tokens of at most {self._where.max_requests} requests, {H} heads",
                f"backend: {self.backend}: {self.args.why}",
                *(f"  {line}" for line in self._holder.lines()),
                f"memory: {held} bytes in {len(buffers)} buffers",
            )
        )

    def __repr__(self) -> str:
        return self._spelled

    def __reduce__(self):
        # Built anew: addresses mean nothing elsewhere, and a copy's buffers would not be marked.
        sizes = (self._where.max_tokens, self._where.max_requests, self.sizes.H)
        return partial(type(self), **self._options), (self._written, self.layout, *sizes)
