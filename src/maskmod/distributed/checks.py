"""All ranks speak of the same attention, or each of them ends with an error that names the rank and the difference.

Shapes, dtype, layout and mask are compared as hashes in one small collective; only a difference makes the ranks send
words. A rank that is late or gone is named by what each rank last wrote to the process group's store.
"""

from __future__ import annotations

import ctypes
import hashlib
import time
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from maskmod._torch.groups import all_gather, store_of
from maskmod.algebra import Mask, spell, structure
from maskmod.errors import RankError

__all__ = ["Fact", "agree", "content_fact", "guarded", "layout_fact", "mask_fact", "spell_ranks"]

_STEPS: dict[str, int] = {}  # collectives that this process began, by group
SIGN_OF_LIFE = 3.0  # seconds in which a living rank notices that a collective failed, and says so


class Fact(NamedTuple):
    """Something that ranks compare: its words for an error, and in more detail what is hashed."""

    words: str
    detail: str


def agree(group: ProcessGroup, what: str, facts: Mapping[str, int | str | Fact]) -> list[list[int]]:
    """Compare facts with those of every other rank; ints are exchanged as they are, anything else by hash.

    Args:
        what: what the ranks are about to do, for the error's first words.
        facts: by name. One whose name begins with "own" may differ between ranks: it is exchanged, not compared.

    Returns:
        The numbers of each rank, one a fact.

    Raises:
        RankError: a rank differs from the others, is late, or is gone.
    """
    numbers = [_number(fact) for fact in facts.values()]
    if group.size() == 1:
        return [numbers]
    device = _device_of(group)
    mine = torch.tensor([_number(",".join(facts)), *numbers], dtype=torch.int64, device=device)
    table = torch.empty(group.size() * mine.shape[0], dtype=torch.int64, device=device)
    with guarded(group, what):
        all_gather(table, mine, group=group)
    rows = table.view(group.size(), -1).tolist()
    compared = [0, *(place for place, name in enumerate(facts, 1) if not name.startswith("own"))]
    if any(row[place] != rows[0][place] for row in rows for place in compared):
        words: list[Any] = [None] * group.size()
        with guarded(group, what):
            dist.all_gather_object(words, {name: _words(fact) for name, fact in facts.items()}, group=group)
        raise RankError(what, _difference(words), "Every rank must pass the same; only its own tokens differ.")
    return [row[1:] for row in rows]


def _number(fact: int | str | Fact) -> int:
    if isinstance(fact, int):
        return fact
    text = fact.detail if isinstance(fact, Fact) else fact
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def _words(fact: int | str | Fact) -> tuple[str, int]:
    return (fact.words if isinstance(fact, Fact) else str(fact)), _number(fact)


def _difference(words: Sequence[Mapping[str, tuple[str, int]]]) -> str:
    """What sets ranks apart from the most common value, the ranks named."""
    found = []
    for name in dict.fromkeys(name for each in words for name in each if not name.startswith("own")):
        ranks: dict[tuple[str, int], list[int]] = {}
        for rank, each in enumerate(words):
            ranks.setdefault(each.get(name, ("nothing", 0)), []).append(rank)
        common = max(ranks, key=lambda value: len(ranks[value]))
        for value in ranks:
            if value != common:
                here, there = spell_ranks(ranks[value]), spell_ranks(ranks[common])
                seen, other = value[0], common[0]
                if seen == other:
                    seen, other = (
                        f"{seen} (detail {value[1] & 0xFFFF:04x})",
                        f"{other} (detail {common[1] & 0xFFFF:04x})",
                    )
                found.append(f"{name} is {seen} on {here}, {other} on {there}")
    return "; ".join(found) or "they compare different facts"


def spell_ranks(ranks: Sequence[int]) -> str:
    """Ranks in words, the first eight of them."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {', '.join(map(str, ranks[:8]))}{', ...' * (len(ranks) > 8)}"


@contextmanager
def guarded(group: ProcessGroup, what: str, *, begins: bool = True) -> Iterator[None]:
    """A failing collective becomes a `RankError` that names the ranks that never came to it, or died in it.

    Args:
        begins: False waits for a collective that an earlier `guarded` began.
    """
    name, rank = group.group_name, group.rank()
    step = _STEPS[name] = _STEPS.get(name, 0) + begins
    store = store_of(group)
    try:
        if store is not None and begins:
            store.set(f"maskmod/{name}/{rank}", str(step))
        yield
    except RankError:
        raise
    except RuntimeError as error:
        missing = _missing(store, f"maskmod/{name}", group.size(), rank, step)
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        todo = "Look at that rank's own error, or raise the group's timeout."
        raise RankError(what, f"{missing} ({first})", todo) from error


def _missing(store: Any, prefix: str, world: int, rank: int, step: int) -> str:
    """Who did not come to collective number `step`, or gives no sign of life after it, in words."""
    if store is None:
        return "some rank did not take part, and the process group has no store to say which"
    others = [other for other in range(world) if other != rank]
    try:
        reached = {other: _written(store, f"{prefix}/{other}") for other in others}
        behind = [other for other in others if reached[other] < step]
        if behind:
            last = min(reached[other] for other in behind)
            return f"{spell_ranks(behind)} did not come to it: late, or gone after collective {last} of {step}"
        store.set(f"{prefix}/{rank}/failed", str(step))
        end = time.monotonic() + SIGN_OF_LIFE
        silent = others
        while silent and time.monotonic() < end:
            time.sleep(0.05)
            silent = [
                other
                for other in silent
                if _written(store, f"{prefix}/{other}") <= step and _written(store, f"{prefix}/{other}/failed") < step
            ]
    except RuntimeError:
        return "the process that holds the store (rank 0, unless a launcher holds it) is gone"
    if silent:
        return f"{spell_ranks(silent)} came to it and then gave no sign of life"
    return "every rank came to it and is alive; the connection failed"


def _written(store: Any, key: str) -> int:
    return int(store.get(key)) if store.check([key]) else 0


def mask_fact(mask: Mask) -> Fact:
    """A mask without its tensors' contents, alike on every rank that built it alike."""
    return Fact(repr(mask), repr((_named(structure(mask)), [spell(tensor) for tensor in mask.tensors()])))


def layout_fact(layout: object) -> Fact:
    """A layout without its tensors' contents."""
    fields = {name: _named(value) for name, value in sorted(vars(layout).items()) if not name.startswith("_")}
    return Fact(repr(layout), f"{type(layout).__qualname__} {fields}")


def content_fact(tensors: Iterable[Tensor]) -> str:
    """The values of these tensors, hashed; it waits for them."""
    digest = hashlib.sha256()
    for tensor in tensors:
        here = tensor.detach().cpu().contiguous()
        digest.update(spell(here).encode())
        digest.update(ctypes.string_at(here.data_ptr(), here.nbytes))
    return digest.hexdigest()[:12]


def _named(part: Any) -> Any:
    """A part of a structure in words that do not hold an address: another process must find the same."""
    if isinstance(part, tuple):
        return tuple(map(_named, part))
    if isinstance(part, type):
        return f"{part.__module__}.{part.__qualname__}"
    if isinstance(part, Tensor):
        return spell(part)
    if isinstance(part, Mask):
        return _named(structure(part))
    if isinstance(part, types.CodeType):
        return part.co_code.hex(), part.co_names, tuple(map(_named, part.co_consts))
    if isinstance(part, types.FunctionType):
        return (
            part.__qualname__,
            _named(part.__code__),
            tuple(_named(cell.cell_contents) for cell in part.__closure__ or ()),
        )
    words = repr(part)
    return f"{type(part).__module__}.{type(part).__qualname__}" if " at 0x" in words else words


def _device_of(group: ProcessGroup) -> torch.device:
    return (
        torch.device("cpu") if "gloo" in dist.get_backend(group) else torch.device("cuda", torch.cuda.current_device())
    )
