"""Layouts of a flat batch: where the keys of many requests lie while their queries stand end to end.

Sizes only. Which page holds what, and where each request's keys begin, is data that changes from step to step.
"""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

from torch import Tensor

from maskmod.algebra import Mask
from maskmod.algebra.lookup import check_size, check_table, look_up
from maskmod.errors import MaskShapeError

__all__ = ["FlatLayout", "Gathered", "OnPages", "Paged"]


@dataclasses.dataclass(frozen=True)
class Paged:
    """One pool of pages for all requests (vLLM, SGLang): slot ``page * page_size + offset`` of the pool.

    Requests may share pages, a common prefix say.

    Args:
        num_pages: pages in the pool, ``k_cache.shape[0]``.
        page_size: positions in a page.
        max_pages: pages that one request may hold, the columns of the block table; None lets it hold the pool.

    >>> Paged(num_pages=64, page_size=16).kv_len
    1024
    """

    num_pages: int
    page_size: int
    max_pages: int | None = None

    def __post_init__(self):
        check_size(self, self.num_pages, unit="pages")
        check_size(self, self.page_size, unit="positions")
        if self.max_pages is not None:
            check_size(self, self.max_pages, unit="pages")

    @property
    def kv_len(self) -> int:
        """Slots that a query may look at: the whole pool."""
        return self.num_pages * self.page_size

    @property
    def columns(self) -> int:
        """Columns of the block table."""
        return self.num_pages if self.max_pages is None else self.max_pages


@dataclasses.dataclass(frozen=True)
class Gathered:
    """The keys of all requests, gathered end to end like their queries (transformers' continuous batching).

    A request's keys are its last ones, this step's included: all of them, or those that a window still reaches.

    Args:
        max_keys: keys of all requests together.

    >>> Gathered(4096).kv_len
    4096
    """

    max_keys: int

    def __post_init__(self):
        check_size(self, self.max_keys, unit="keys")

    @property
    def kv_len(self) -> int:
        """Slots that a query may look at."""
        return self.max_keys


FlatLayout: TypeAlias = "Paged | Gathered"
"""Where the keys of a flat batch lie."""


class OnPages(Mask):
    """A mask read over the slots of a pool: slot s of a page that is row b's i-th holds position ``i * page_size + s``.

    Args:
        logical: (B, num_pages) integers: which page of row b a physical page is; negative where row b does not map it.
    """

    mask: Mask
    logical: Tensor
    page_size: int

    def __post_init__(self):
        check_table(self, self.logical, holds="page numbers")
        if self.logical.dim() != 2:
            raise MaskShapeError(self, "a 1-d table of pages", "Pass page numbers of shape (B, num_pages).")
        check_size(self, self.page_size, unit="positions")

    def __call__(self, b, h, q_idx, kv_idx):
        page, in_range = look_up(self.logical, b, kv_idx // self.page_size)
        position = page * self.page_size + kv_idx % self.page_size
        return self.mask(b, h, q_idx, position) & (page >= 0) & in_range

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        self.mask.check(B, H, q_len, None)
