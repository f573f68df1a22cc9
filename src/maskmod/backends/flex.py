"""torch's flex attention: a `BlockMask` that skips empty blocks; the predicate goes to torch unmodified."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, FlexKernelOptions, flex_attention

from maskmod._torch.tracing import known_true, tracing
from maskmod._torch.workarounds import isolated
from maskmod.algebra import as_mask, structure
from maskmod.analyser.reading import Reading
from maskmod.analyser.replay_blocks import blocks_replay_of
from maskmod.analyser.solve import solved
from maskmod.backends.costs import pairs, rates
from maskmod.backends.empty_rows import fill_empty_rows
from maskmod.backends.protocol import Backend, Bid, Call, Holder, Request, Step, moved
from maskmod.blocks.block_mask import block_mask_of
from maskmod.blocks.classify import classify_blocks, cut_short
from maskmod.blocks.index_tables import from_classes
from maskmod.dense import dense_of
from maskmod.errors import MaskTypeError, UnsupportedMask
from maskmod.facts.span_blocks import hulls
from maskmod.facts.tiles import checked_block_size, tiles_of

__all__ = ["Flex", "FlexArgs"]

_BLOCK_SIZE = 128  # flex's own default
_KERNEL_OPTIONS = frozenset(FlexKernelOptions.__annotations__)
_WRAPPERS = 64  # compiled wrappers kept, one for each structure of mask; the least recently used goes first


class FlexArgs(NamedTuple):
    """The ``block_mask`` and ``kernel_options`` of ``flex_attention``.

    sees: bool (B, H, q_len, 1), which queries see anything, where another output than zero was asked for the others.
    """

    block_mask: BlockMask
    why: str
    kernel_options: dict[str, Any] | None = None
    sees: Tensor | None = None

    def kwargs(self) -> dict[str, Any]:
        """For ``flex_attention(q, k, v, **kwargs)``."""
        options = {} if self.kernel_options is None else {"kernel_options": self.kernel_options}
        return {"block_mask": self.block_mask, **options}


class Flex(Backend):
    name = "flex"

    options = ("block_size", "kernel_options")
    takes = frozenset({"return_lse", "softcap", "sink_logits"})

    def lower(
        self,
        reading: Reading,
        *,
        dtype: torch.dtype,
        empty_rows: str = "keep",
        block_size: int | tuple[int, int] = _BLOCK_SIZE,
        kernel_options: dict[str, Any] | None = None,
    ) -> FlexArgs:
        """See `Backend.lower`.

        Args:
            block_size: tokens of a block, or (queries, keys); FlashAttention 4's kernels want (256, 128).
            kernel_options: handed to ``flex_attention``; its names are checked.
        """
        if empty_rows == "uniform":
            raise UnsupportedMask(
                f'lower({reading.mask!r}, "flex", empty_rows="uniform")',
                "a BlockMask holds booleans, and uniform weights need a bias",
                'Use backend="sdpa" or "eager", or attention(..., empty_rows="uniform").',
            )
        for name in kernel_options or ():
            if name not in _KERNEL_OPTIONS:
                known = f"torch's are {', '.join(sorted(_KERNEL_OPTIONS))}."
                raise MaskTypeError(f"kernel_options={{{name!r}: ...}}", "flex_attention has no such option", known)
        blocks = block_mask_of(reading, checked_block_size(block_size))
        return FlexArgs(blocks, f"a table of blocks of {blocks.BLOCK_SIZE}", kernel_options)

    def read_back(self, args: FlexArgs) -> Tensor:
        """Tokens of the blocks that the forward tables name: all of a full one, those of the predicate of a partial."""
        blocks = args.block_mask
        B, H, q_len, kv_len = blocks.shape
        seen = torch.zeros((B, H, q_len, kv_len), dtype=torch.bool, device=blocks.kv_indices.device)
        tables = (
            (blocks.kv_num_blocks, blocks.kv_indices, False),
            (blocks.full_kv_num_blocks, blocks.full_kv_indices, True),
        )
        bq, bkv = blocks.BLOCK_SIZE
        for count, index, full in tables:
            if count is None or index is None:
                continue
            for b, h, row in itertools.product(range(B), range(H), range(count.shape[-1])):
                for column in index[b, h, row, : int(count[b, h, row])].tolist():
                    for q in range(row * bq, min((row + 1) * bq, q_len)):
                        for kv in range(column * bkv, min((column + 1) * bkv, kv_len)):
                            point = (torch.tensor(i) for i in (b, h, q, kv))
                            seen[b, h, q, kv] = True if full else blocks.mask_mod(*point)
        return seen

    def bid(self, reading: Reading, request: Request) -> Bid | str:
        sizes = reading.sizes
        if request.device.type == "cpu":
            if request.requires_grad:
                return "flex attention has no backward on CPU"
            if request.dtype == torch.float64:
                return "compiled flex attention has no float64 on CPU"
        if known_true(sizes.q_len == 0) or known_true(sizes.kv_len == 0):
            return "flex attention takes no empty sequences"
        if reading.traced:  # a rank
            on_gpu = request.device.type == "cuda" and not known_true(sizes.q_len < _BLOCK_SIZE)
            return Bid(1.0 if on_gpu else 3.0, _GPU_WHY if on_gpu else _WHY)
        asked = request.allow_compile or (request.allow_compile is None and request.calls >= _MANY)
        if request.device.type == "cpu" and not asked:
            return Bid(math.inf, _COMPILES)
        rate = rates(request.device)
        every = request.B * request.H * (-(-sizes.q_len // _BLOCK_SIZE) * _BLOCK_SIZE) * sizes.kv_len
        cost = pairs(request, every * _SLOWER * _visible(reading, request))
        cost += rate.launch + rate.read / request.calls
        if request.device.type == "cpu" and not request.allow_compile:
            cost += _COMPILE / request.calls
        return Bid(cost, _WHY)

    def prepare(self, reading: Reading, request: Request, **options: Any) -> FlexArgs:
        args = self.lower(reading, dtype=request.dtype, **options)
        sees = None
        if request.empty_rows == "uniform" and not request.sinks:
            sees = _rows_that_see(reading)
        if reading.traced:
            return args._replace(sees=sees)
        promises = _promises(reading, args.block_mask) if request.device.type != "cpu" else {}
        return args._replace(sees=sees, kernel_options={**promises, **(args.kernel_options or {})} or None)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, args: FlexArgs, call: Call) -> Tensor | tuple[Tensor, Tensor]:
        if q.device.type == "cpu" and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
            raise UnsupportedMask(
                'attention(backend="flex")', "flex attention has no backward on CPU", 'Use backend="spans" or "sdpa".'
            )
        mask_mod = args.block_mask.mask_mod
        run: Any = flex_attention if tracing(q) else _compiled(_by_code(structure(as_mask(mask_mod))), q.device.type)
        needs_lse = call.return_lse or call.sink_logits is not None
        found = run(
            q,
            k,
            v,
            score_mod=None if call.softcap is None else (_capped if tracing(q) else _capped_once)(call.softcap),
            block_mask=args.block_mask,
            scale=call.scale,
            enable_gqa=call.enable_gqa,
            kernel_options=args.kernel_options,
            return_aux=AuxRequest(lse=True) if needs_lse else None,
        )
        out, lse = (found[0], found[1].lse) if needs_lse else (found, found)
        if call.sink_logits is not None:
            total = torch.logaddexp(lse, call.sink_logits.to(lse.dtype).view(1, -1, 1))
            out, lse = out * torch.exp(lse - total).unsqueeze(-1).to(out.dtype), total
        if args.sees is not None:  # zero is flex's own answer
            out = fill_empty_rows(out, args.sees, v, call.empty_rows)
        return (out, lse) if call.return_lse else out

    def move(self, args: FlexArgs, device: torch.device) -> FlexArgs:
        blocks, mask_mod = args.block_mask.to(device), args.block_mask.mask_mod
        blocks.mask_mod = moved(as_mask(mask_mod), device)  # torch leaves the predicate's own tensors behind
        return moved(args._replace(block_mask=None), device)._replace(block_mask=blocks)

    def holder(self, step: Step) -> Holder:
        return _BlocksHolder(step)


_MANY = 100  # calls that pay for a compile on CPU
_COMPILE = 8000.0  # milliseconds
_COMPILES = "on CPU a compile of seconds comes first: pass allow_compile=True, or plan(..., calls=) of 100 or more"
_WHY = "it skips empty blocks, by a kernel that is compiled first"
_GPU_WHY = "on a GPU it skips the empty blocks of a long query"
_SLOWER = 1.05  # than the fused kernel, for each pair of a block that it visits
_UNKNOWN_PART = 0.5  # of all pairs, where nothing was looked at


def _visible(reading: Reading, request: Request) -> float:
    """The part of all pairs that lies in blocks with something to see, as far as this is found without much work."""
    if request.device.type != "cpu" or (found := solved(reading)) is None:
        return _UNKNOWN_PART
    low, high, *_ = hulls(found, _BLOCK_SIZE)
    keys = ((high + _BLOCK_SIZE - 1) // _BLOCK_SIZE - low // _BLOCK_SIZE).clamp(min=0) * _BLOCK_SIZE
    return min(1.0, float(keys.sum()) / (keys.shape[0] * keys.shape[1] * reading.sizes.kv_len))


def _rows_that_see(reading: Reading) -> Tensor:  # bool (B, H, q_len, 1)
    """Which queries see something, from the tiles; in a graph from the dense mask."""
    if reading.traced:
        return dense_of(reading).any(-1, keepdim=True)
    return (tiles_of(reading, (_BLOCK_SIZE, _BLOCK_SIZE), exact=True).empty_rows() ^ True).unsqueeze(-1)


def _promises(reading: Reading, blocks: BlockMask) -> dict[str, Any]:
    """What flex's kernels may rely on, derived from the mask and its tables."""
    promises: dict[str, Any] = {}
    found = solved(reading)
    if found is not None and bool((found.start < found.end).any(-1).all()):
        promises["ROWS_GUARANTEED_SAFE"] = True
    tables = ((blocks.kv_num_blocks, blocks.kv_indices), (blocks.full_kv_num_blocks, blocks.full_kv_indices))
    if all(count is None or index is None or _contiguous(count, index) for count, index in tables):
        promises["BLOCKS_ARE_CONTIGUOUS"] = True
    return promises


def _contiguous(count: Tensor, index: Tensor) -> bool:
    """Whether the blocks that each row names follow each other."""
    last = index.gather(-1, (count.long() - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return bool(((count == 0) | (last - index[..., 0] + 1 == count)).all())


def _capped(cap: float):
    def capped(score, b, h, q_idx, kv_idx):
        return cap * torch.tanh(score / cap)

    return capped


_capped_once = functools.lru_cache(maxsize=_WRAPPERS)(_capped)  # outside a trace: Dynamo ignores a cache, and warns


def _by_code(part: Any) -> Any:
    """A structure with code in place of functions: a lambda written in a loop is a new function each time around."""
    return tuple(map(_by_code, part)) if isinstance(part, tuple) else getattr(part, "__code__", part)


@functools.lru_cache(maxsize=_WRAPPERS)
def _compiled(structure: tuple, device_type: str):
    """A compiled flex_attention for one structure of mask: uncompiled, flex materialises the scores, and says so.

    A wrapper serves one structure because Dynamo keeps eight graphs a code object and then runs eagerly; with fullgraph
    it raises instead. CPU compiles for static shapes: its code generator corrupts symbolic ones.
    """
    return torch.compile(
        flex_attention,
        fullgraph=True,
        dynamic=False if device_type == "cpu" else None,
        **isolated(256),
    )


class _BlocksHolder:
    """A BlockMask whose tables have full width, so that any step fits; the predicate itself reads the buffers."""

    def __init__(self, step: Step):
        mask, sizes, device = step.mask, step.sizes, step.device
        self.mask, self.sizes, self.device = mask, sizes, device
        self.replay = blocks_replay_of(mask, sizes, device, (_BLOCK_SIZE, _BLOCK_SIZE))
        n_q, n_kv = (-(-n // _BLOCK_SIZE) for n in (sizes.q_len, sizes.kv_len))
        lanes = (sizes.B, sizes.H)
        count, indices = (*lanes, n_q), (*lanes, n_q, n_kv)
        self.tables = [torch.zeros(s, dtype=torch.int32, device=device) for s in (count, indices, count, indices)]
        lengths, block_size = (sizes.q_len, sizes.kv_len), (_BLOCK_SIZE, _BLOCK_SIZE)
        no_q_blocks = (None,) * 4  # only a backward needs them
        block_mask = BlockMask(lengths, *self.tables, *no_q_blocks, BLOCK_SIZE=block_size, mask_mod=mask)  # pyright: ignore
        self.args = FlexArgs(block_mask, "a BlockMask whose full-width tables are rewritten in place each step")

    def buffers(self) -> list[Tensor]:
        return self.tables

    def lines(self) -> list[str]:
        how = "recorded once" if self.replay else "recorded at each step, since it holds a user's function"
        return [f"tables of {list(self.tables[1].shape)} blocks of {_BLOCK_SIZE}; outside a graph the mask is {how}"]

    def write_(self) -> None:
        # Not exact: static shapes and no look at values; a block called partial in doubt changes no result.
        if self.replay is None or tracing(self.tables[0]):
            found = classify_blocks(self.mask, *self.sizes, block_size=_BLOCK_SIZE, exact=False, device=self.device)
            full, partial = found.full, found.partial
        else:
            full, partial = cut_short(*self.replay.read(), self.sizes, (_BLOCK_SIZE, _BLOCK_SIZE))
        for tables, blocks in ((self.tables[:2], partial), (self.tables[2:], full)):
            for table, new in zip(tables, from_classes(blocks), strict=True):
                table.copy_(new)
