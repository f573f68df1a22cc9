"""The switch: the mask functions of every loaded model become maskmod's, and back.

transformers is looked up here, when `install` is called, and nowhere else. Models import mask functions by name, so a
registry alone would leave transformers' own front half running: every name that *is* one of its functions is replaced,
in every module that is loaded. Modules loaded later import the replaced names.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

from maskmod.compat import transformers_legacy
from maskmod.compat.transformers import create, interfaces, predicates
from maskmod.compat.transformers.settings import DEFAULTS
from maskmod.errors import MaskError

__all__ = ["InstallError", "Installation", "install", "uninstall"]

_TESTED = ("5.23.0",)
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
    """

    version: str
    replaced: tuple[str, ...]

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


class _Installed(NamedTuple):
    pairs: list[tuple[Any, Any]]
    """transformers' functions, each with the one that stands in for it."""
    changes: list[_Change]


_installed: _Installed | None = None
_own_registry = interfaces.AttentionMaskInterface._global_mapping


def install(*, allow_untested: bool = False, strict: bool = False, packed: bool | None = None) -> Installation:
    """Make transformers' models use maskmod's masks, those loaded now and those loaded later, until `uninstall`.

    ``with install(): ...`` uninstalls at the end of the block.

    Args:
        allow_untested: go on with a version of transformers that this module was not tested with.
        strict: raise wherever an attention implementation would not show what a model asks for.
        packed: False declares that no batch is packed, which keeps the maskless path inside compiled graphs.

    Raises:
        InstallError: an untested version, or maskmod is installed already.
    """
    global _installed
    if _installed is not None:
        raise InstallError("install()", "maskmod is installed already", "Call uninstall() first.")
    version = importlib.import_module("transformers").__version__
    if version not in _TESTED and not allow_untested:
        raise InstallError(
            f"install() with transformers {version}",
            f"tested with {', '.join(_TESTED)} only",
            "Pass allow_untested=True, and compare the logits of a batch with and without.",
        )
    masking_utils = importlib.import_module("transformers.masking_utils")
    registry, mapping = masking_utils.AttentionMaskInterface, "LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING"
    pairs = list(_pairs(masking_utils, importlib.import_module("transformers.modeling_attn_mask_utils")))
    ours = {id(theirs): own for theirs, own in pairs}
    changes = [
        *(change for name, names in _modules() for change in _swaps(f"{name}.{{}}", names, ours)),
        *_swaps(f"{mapping}[{{!r}}]", getattr(masking_utils, mapping), ours),
        *_swaps("AttentionMaskInterface[{!r}]", registry._global_mapping, ours),
    ]
    for change in changes:
        change.table[change.key] = change.after
    for key, function in _own_registry.items():
        if key not in registry._global_mapping:
            registry.register(key, function)
    interfaces.AttentionMaskInterface._global_mapping = registry._global_mapping  # one registry while installed
    DEFAULTS.strict, DEFAULTS.packed = strict, packed
    _installed = _Installed(pairs, changes)
    return Installation(version, tuple(change.where for change in changes))


def uninstall() -> None:
    """Put transformers' own functions back, also in its modules that were loaded since. Without `install`, nothing."""
    global _installed
    if _installed is None:
        return
    for change in _installed.changes:
        if change.table.get(change.key) is change.after:  # else somebody has set it to a third thing since
            change.table[change.key] = change.before
    theirs = {id(own): theirs for theirs, own in _installed.pairs}
    for name, names in _modules():
        if name.partition(".")[0] in ("transformers", "transformers_modules"):
            for change in _swaps(name, names, theirs):
                change.table[change.key] = change.after
    interfaces.AttentionMaskInterface._global_mapping = _own_registry
    DEFAULTS.strict, DEFAULTS.packed = False, None
    _installed = None


def _pairs(masking_utils: ModuleType, legacy: ModuleType) -> Iterator[tuple[Any, Any]]:
    for module in (create, interfaces, predicates):
        for name in module.__all__:
            if inspect.isfunction(getattr(masking_utils, name)):  # classes and tables keep their identity
                yield getattr(masking_utils, name), getattr(module, name)
    for name in _LEGACY:
        yield getattr(legacy, name), getattr(transformers_legacy, name)


def _modules() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, module in list(sys.modules.items()):
        names = getattr(module, "__dict__", None)
        if isinstance(names, dict) and name.partition(".")[0] != "maskmod":
            yield name, names


def _swaps(where: str, table: dict[str, Any], replacements: dict[int, Any]) -> Iterator[_Change]:
    """The changes that replace, by identity, a table's functions, those bound in partials and in inner tables too."""
    for key, value in list(table.items()):
        after = replacements.get(id(value))
        if type(value) is functools.partial and id(value.func) in replacements:
            after = functools.partial(replacements[id(value.func)], *value.args, **value.keywords)
        if after is not None:
            yield _Change(where.format(key), table, key, value, after)
        elif where.startswith("LAYER") and isinstance(value, dict):
            yield from _swaps(f"{where.format(key)}[{{!r}}]", value, replacements)
