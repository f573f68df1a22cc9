"""Booleans and biases of a flat step, (1, H|1, max_tokens, slots), at fixed addresses."""

from __future__ import annotations

import torch
from torch import Tensor

from maskmod._torch.tracing import tracing
from maskmod._torch.workarounds import storable
from maskmod.algebra import Mask, Sizes
from maskmod.analyser.replay import replay_of
from maskmod.backends.eager import EagerArgs
from maskmod.backends.sdpa import SdpaArgs
from maskmod.dense import bias_from_bool
from maskmod.errors import MaskTypeError
from maskmod.facts.structure import Band
from maskmod.oracle import vmap_mask
from maskmod.serving.ragged_bands import Runs
from maskmod.serving.ragged_step import Holder, RaggedStep, band_of_any_length
from maskmod.serving.tokens import OfGathered, OfPages

__all__ = ["Bias", "Dense"]


class Dense(Holder):
    """A boolean (1, H|1, max_tokens, slots)."""

    def __init__(self, step: RaggedStep):
        self.step, self.sizes = step, step.sizes
        self.visible = torch.zeros(step.sizes, dtype=torch.bool, device=step.device)
        self.reader = _reader(step)
        self.reads_keys = isinstance(self.reader, _Reader)
        self.args = SdpaArgs(self.visible, False, "a boolean at a fixed address, rewritten each step")

    def buffers(self) -> list[Tensor]:
        return [self.visible]

    def lines(self) -> list[str]:
        lines = [f"boolean {list(self.sizes)}; {self.reader.why}"]
        if isinstance(self.step.where, OfPages):
            requests = self.step.where.max_requests
            better = '"flash"' if band_of_any_length(self.step.written) is not None else '"flex"'
            lines.append(
                f"cost: every token meets all {self.sizes.kv_len} slots of the pool, whatever the {requests} requests "
                f"hold; backend={better} reads a request's own pages alone"
            )
        return lines

    def write_(self) -> None:
        if isinstance(self.reader, _Bands) and not tracing(self.visible):
            self.reader.read_into_(self.visible.view(self.sizes[2:]))
        else:
            self.visible.copy_(self.reader.read().expand(self.sizes))


class Bias(Dense):
    """A bias (1, H|1, max_tokens, slots): 0 where visible, the dtype's minimum where hidden."""

    def __init__(self, step: RaggedStep):
        if not step.dtype.is_floating_point:
            written = step.spelled.replace(")", f", dtype={step.dtype})")
            raise MaskTypeError(written, "a bias is added to scores", "Pass a floating dtype.")
        super().__init__(step)
        self.bias = torch.zeros(step.sizes, dtype=step.dtype, device=step.device)
        self.hidden = torch.finfo(step.dtype).min
        self.zero, self.least = self.bias.new_zeros(()), self.bias.new_full((), self.hidden)
        self.args = EagerArgs(self.bias, "a bias at a fixed address, rewritten each step")

    def buffers(self) -> list[Tensor]:
        return [self.bias]

    def lines(self) -> list[str]:
        return [line.replace("boolean", f"bias {self.bias.dtype}", 1) for line in super().lines()]

    def write_(self) -> None:
        if isinstance(self.reader, _Bands) and not tracing(self.bias):
            self.reader.read_into_(self.visible.view(self.sizes[2:]))
            torch.where(self.visible, self.zero, self.least, out=self.bias)
            return
        visible = self.reader.read()
        self.bias.copy_(bias_from_bool(visible, self.bias.dtype, self.hidden).expand(self.sizes))


class _Reader:
    """Any mask over tokens and slots: recorded once and replayed, or lifted."""

    def __init__(self, mask: Mask, sizes: Sizes, device: torch.device):
        self.mask, self.sizes, self.device = mask, sizes, device
        self.replay = replay_of(mask, sizes, device)
        how = "recorded once and replayed" if self.replay else "evaluated by vmap, since it holds a user's function"
        self.why = f"outside a graph the mask is {how}"

    def read(self) -> Tensor:
        if self.replay is None or tracing(*self.mask.tensors()):
            return vmap_mask(self.mask, *self.sizes, device=self.device)
        return self.replay.read()


class _Bands:
    """A diagonal band over gathered keys: each token's keys are one run of slots, copied from rows that are known."""

    why = "a band: each token's keys are one run of slots"

    def __init__(self, where: OfGathered, band: Band, device: torch.device):
        self.runs, n = Runs(where, band), where.layout.max_keys
        self.kv_len, self.slot = n, torch.arange(n, device=device)
        first = torch.arange(2 * n, device=device) < n
        self.rows = first.as_strided((n + 1, n), (1, 1))  # row i is True for the first n - i slots
        self.before = torch.zeros(where.max_tokens, n, dtype=torch.bool, device=device)  # memory that stays in reach

    def read(self) -> Tensor:
        begin, end = self.runs.read()
        return storable((self.slot >= begin[:, None]) & (self.slot < end[:, None]))[None, None]

    def read_into_(self, visible: Tensor) -> None:
        """The same outside a graph, (max_tokens, slots), at the speed of copying."""
        begin, end = self.runs.read()
        torch.index_select(self.rows, 0, self.kv_len - end, out=visible)
        torch.index_select(self.rows, 0, self.kv_len - begin, out=self.before)
        visible.bitwise_xor_(self.before)


class _InOrder:
    """Any mask over pages: read in the order of each request's own positions, then copied page by page to the pool."""

    def __init__(self, step: RaggedStep, where: OfPages):
        self.where, layout = where, where.layout
        length = layout.columns * layout.page_size
        self.inner = _Reader(where.in_order(step.written), step.sizes._replace(kv_len=length), step.device)
        self.why = f"{self.inner.why}, in the order of positions, and copied page by page"
        self.sizes = step.sizes
        lanes = torch.arange(step.sizes.H * step.sizes.q_len, device=step.device)
        self.base = (lanes * layout.num_pages)[:, None]
        self.columns = torch.arange(layout.columns, device=step.device)

    def read(self) -> Tensor:
        layout, (_, H, q_len, kv_len) = self.where.layout, self.sizes
        in_order = self.inner.read().expand(1, H, q_len, -1).reshape(-1, layout.page_size)
        rows = self.where.requests.clamp(min=0)
        table = self.where.table.to(torch.int64)
        # A page that a request names twice holds what the first entry says.
        real = (table >= 0) & (table < layout.num_pages)
        safe = torch.where(real, table, 0)
        real = real & (self.where.logical.gather(1, safe) == self.columns)
        place = torch.where(real, safe, -1).index_select(0, rows).repeat(H, 1)  # (H * tokens, columns)
        place = torch.where(place < 0, H * q_len * layout.num_pages, place + self.base)  # the last row is cut off
        pool = in_order.new_zeros(H * q_len * layout.num_pages + 1, layout.page_size)
        pool = (
            pool.index_copy(0, place.view(-1), in_order)
            if tracing(pool)
            else pool.index_copy_(0, place.view(-1), in_order)
        )
        return pool[:-1].view(1, H, q_len, kv_len)


def _reader(step: RaggedStep) -> _Reader | _Bands | _InOrder:
    if isinstance(step.where, OfPages):
        return _InOrder(step, step.where)
    band = band_of_any_length(step.written)
    if band is not None and step.sizes.H == 1:
        return _Bands(step.where, band, step.device)
    return _Reader(step.mask, step.sizes, step.device)
