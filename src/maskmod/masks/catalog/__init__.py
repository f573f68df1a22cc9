"""Every mask that people name, each once: how it is written, what a query sees, its source, an example that runs.

The command line's vocabulary, the tables of the documentation and the tests are made from `CATALOG`.
"""

from maskmod.masks.catalog.drafts import DRAFTS
from maskmod.masks.catalog.entry import VOCABULARY, Entry, in_vocabulary
from maskmod.masks.catalog.packed import PACKED
from maskmod.masks.catalog.positional import POSITIONAL
from maskmod.masks.catalog.sparse import SPARSE
from maskmod.masks.catalog.vision import VISION

__all__ = ["CATALOG", "VOCABULARY", "Entry", "in_vocabulary"]

CATALOG: tuple[Entry, ...] = (*POSITIONAL, *PACKED, *VISION, *SPARSE, *DRAFTS)
