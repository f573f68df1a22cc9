"""The switch: the mask functions of every loaded model become maskmod's, and back.

transformers is looked up here, when `install` is called, and nowhere else. Models import mask functions by name, so a
registry alone would leave transformers' own front half running: every name that *is* one of its functions is replaced,
in every module that is loaded. Modules loaded later import the replaced names.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

from maskmod.compat import transformers_legacy
from maskmod.compat.transformers import create, interfaces, predicates
from maskmod.compat.transformers.settings import DEFAULTS, NEWEST, RELEASES
from maskmod.errors import MaskError

__all__ = ["InstallError", "Installation", "install", "uninstall"]

_LEGACY_MODULE = "transformers.modeling_attn_mask_utils"  # deleted in 5.24
_LEGACY = (
    "AttentionMaskConverter",
    "_create_4d_causal_attention_mask",
    "_prepare_4d_attention_mask",
    "_prepare_4d_attention_mask_for_sdpa",
    "_prepare_4d_causal_attention_mask",
    "_prepare_4d_causal_attention_mask_for_sdpa",
)


class InstallError(MaskError, RuntimeError):
    """A version of transformers that `install` has not seen, or a second `install`."""


class Installation(NamedTuple):
    """What `install` did. As a context manager it uninstalls at the end of the block.

    Attributes:
        version: of transformers.
        replaced: each place, as ``module.name`` or ``table['key']``.
        missing: names of earlier releases that this one no longer has; models of it cannot be using them.
    """

    version: str
    replaced: tuple[str, ...]
    missing: tuple[str, ...] = ()

    def __enter__(self) -> Installation:
        return self

    def __exit__(self, *exception: object) -> None:
        uninstall()


class _Change(NamedTuple):
    """One entry of a module's names, or of a table, that was given another object."""

    where: str
    table: dict[str, Any]
    key: str
    before: Any
    after: Any


class _Pair(NamedTuple):
    """One of transformers' functions, and the one that stands in for it."""

    name: str
    theirs: Any
    own: Any


class _Tables(NamedTuple):
    """What a library looks mask functions up in: of a kind of layer, of an implementation, and of one here alone."""

    LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING: dict[str, Any]
    AttentionMaskInterface: dict[str, Any]
    ALL_MASK_ATTENTION_FUNCTIONS: dict[str, Any]


class _Installed(NamedTuple):
    pairs: list[_Pair]
    changes: list[_Change]
    tables: _Tables
    kept: set[str]  # places that had maskmod's functions before


_ABSENT = object()
_installed: _Installed | None = None


def install(*, allow_untested: bool = False, strict: bool = False, packed: bool | None = None) -> Installation:
    """Make transformers' models use maskmod's masks, those loaded now and those loaded later, until `uninstall`.

    ``with install(): ...`` uninstalls at the end of the block.

    Args:
        allow_untested: go on with a version of transformers that this module was not tested with, as if it were the
            newest that was, without the names that it lacks. ``python -m maskmod compat check`` compares it first.
        strict: raise wherever an attention implementation would not show what a model asks for.
        packed: False declares that no batch is packed, which keeps the maskless path inside compiled graphs.

    Raises:
        InstallError: an untested version, or maskmod is installed already.
    """
    global _installed
    if _installed is not None:
        raise InstallError("install()", "maskmod is installed already", "Call uninstall() first.")
    version = importlib.import_module("transformers").__version__
    masking_utils = importlib.import_module("transformers.masking_utils")
    pairs, missing = _pairs(masking_utils, _legacy_module())
    if version not in RELEASES and not allow_untested:
        lacking = f"; it has no {', '.join(missing)}" if missing else ""
        raise InstallError(
            f"install() with transformers {version}",
            f"tested with {', '.join(RELEASES)} only{lacking}",
            "Run `python -m maskmod compat check`; where nothing differs, pass allow_untested=True.",
        )
    tables = _tables(masking_utils, masking_utils)
    kept = {change.where for change in _places(_back(pairs), tables)}
    changes = [*_places(pairs, tables), *_additions(tables)]
    for change in changes:
        change.table[change.key] = change.after
    _look_up_in(tables)
    DEFAULTS.strict, DEFAULTS.packed, DEFAULTS.release = strict, packed, RELEASES.get(version, NEWEST)
    _installed = _Installed(pairs, changes, tables, kept)
    return Installation(version, tuple(change.where for change in changes), tuple(missing))


def uninstall() -> None:
    """Put transformers' own functions back, also where its modules and tables got ours since. Else nothing."""
    global _installed
    if _installed is None:
        return
    for change in _installed.changes:
        if change.table.get(change.key) is not change.after:
            continue  # somebody has set it to a third thing since
        if change.before is _ABSENT:
            del change.table[change.key]
        else:
            change.table[change.key] = change.before
    theirs = ("transformers.", "transformers_modules.", *(f"{name}[" for name in _Tables._fields))
    for change in _places(_back(_installed.pairs), _installed.tables):
        if change.where.startswith(theirs) and change.where not in _installed.kept:
            change.table[change.key] = change.after
    _look_up_in(_OWN)
    DEFAULTS.strict, DEFAULTS.packed, DEFAULTS.release = False, None, NEWEST
    _installed = None


def _tables(kinds: Any, implementations: Any) -> _Tables:
    return _Tables(
        kinds.LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING,
        implementations.AttentionMaskInterface._global_mapping,
        implementations.ALL_MASK_ATTENTION_FUNCTIONS._local_mapping,
    )


_OWN = _tables(create, interfaces)


def _look_up_in(tables: _Tables) -> None:
    """Make maskmod's functions look others up in these tables: transformers' own while installed."""
    create.LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING = tables.LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING
    interfaces.AttentionMaskInterface._global_mapping = tables.AttentionMaskInterface
    interfaces.ALL_MASK_ATTENTION_FUNCTIONS._local_mapping = tables.ALL_MASK_ATTENTION_FUNCTIONS


def _additions(tables: _Tables) -> Iterator[_Change]:
    """What was registered with maskmod alone."""
    for where, own, theirs in zip(_Tables._fields, _OWN, tables, strict=True):
        for key, value in own.items():
            if key not in theirs:
                yield _Change(f"{where}[{key!r}]", theirs, key, _ABSENT, value)


def _back(pairs: list[_Pair]) -> list[_Pair]:
    return [_Pair(name, own, theirs) for name, theirs, own in pairs]


def _places(pairs: list[_Pair], tables: _Tables) -> Iterator[_Change]:
    yield from _in_modules(pairs)
    for where, table in zip(_Tables._fields, tables, strict=True):
        yield from _in_table(where, table, pairs)


def _legacy_module() -> ModuleType | None:
    return importlib.import_module(_LEGACY_MODULE) if importlib.util.find_spec(_LEGACY_MODULE) else None


def _pairs(masking_utils: ModuleType, legacy: ModuleType | None) -> tuple[list[_Pair], list[str]]:
    """Their functions beside ours, and the names of ours that they lack. Classes and tables keep their identity."""
    own = [(name, module, masking_utils) for module in (create, interfaces, predicates) for name in module.__all__]
    if legacy is not None:
        own += [(name, transformers_legacy, legacy) for name in _LEGACY]
    pairs = [
        _Pair(name, getattr(theirs, name), getattr(module, name))
        for name, module, theirs in own
        if inspect.isfunction(getattr(theirs, name, None))
    ]
    return pairs, sorted(name for name, _, theirs in own if not hasattr(theirs, name))


def _in_modules(pairs: list[_Pair]) -> Iterator[_Change]:
    """Modules that have a function under its own name. Other references to it were kept on purpose."""
    for module, loaded in list(sys.modules.items()):
        names = getattr(loaded, "__dict__", None)
        if isinstance(names, dict) and module.partition(".")[0] != "maskmod":
            for name, theirs, own in pairs:
                if names.get(name) is theirs:
                    yield _Change(f"{module}.{name}", names, name, theirs, own)


def _in_table(where: str, table: dict[str, Any], pairs: list[_Pair]) -> Iterator[_Change]:
    """Entries that are a function, a partial of one, or a table of them."""
    own = {id(pair.theirs): pair.own for pair in pairs}
    for key, value in list(table.items()):
        here = f"{where}[{key!r}]"
        if isinstance(value, dict):
            yield from _in_table(here, value, pairs)
        elif isinstance(value, functools.partial) and id(value.func) in own:
            after = functools.partial(own[id(value.func)], *value.args, **value.keywords)
            yield _Change(here, table, key, value, after)
        elif id(value) in own:
            yield _Change(here, table, key, value, own[id(value)])
