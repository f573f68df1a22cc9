"""The installed release of transformers against this package, call by call: for releases that were not tested.

Random calls of every ``create_*`` function, over caches, padding, packing, spans and overlays, given to both libraries.
Flex attention is left out, since transformers compiles its block masks, which takes seconds a call.
"""

from __future__ import annotations

import importlib
import inspect
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskmod.compat.transformers import create, interfaces, predicates
from maskmod.compat.transformers.settings import DEFAULTS, NEWEST, RELEASES

__all__ = ["SelfCheck", "self_check"]

_HEADS, _HIDDEN, _LAYERS = 2, 4, 2
_KINDS = {
    "create_causal_mask": "full_attention",
    "create_sliding_window_causal_mask": "sliding_attention",
    "create_chunked_causal_mask": "chunked_attention",
    "create_bidirectional_mask": "full_attention",
    "create_bidirectional_sliding_window_mask": "sliding_attention",
}


class SelfCheck(NamedTuple):
    """What was compared and what differs.

    Attributes:
        version: of transformers. tested: whether `install` knows it.
        calls: how many were made. compared: how many of them gave a mask in transformers.
        missing: names here that it lacks. new: public functions there that are unknown here.
        differences: a line for each difference: a signature, or a call and both results.
    """

    version: str
    tested: bool
    calls: int
    compared: int
    missing: tuple[str, ...]
    new: tuple[str, ...]
    differences: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.differences and not self.new

    def __str__(self) -> str:
        lines = [
            f"transformers {self.version}, {'tested' if self.tested else 'not tested'}: {self.calls} calls, "
            f"{self.compared} masks compared, {len(self.differences)} differences"
        ]
        lines += [f"gone there: {name}" for name in self.missing] + [f"unknown here: {name}" for name in self.new]
        return "\n".join([*lines, *self.differences])


class _Call(NamedTuple):
    """One call, drawn from a seed; its repr says what was asked."""

    function: str
    implementation: str
    q_len: int
    past: int
    cache: str | None
    padding: str | None
    packed: bool
    spans: bool
    overlay: str | None
    local: int
    seed: int

    def arguments(self, cache_name: str) -> dict[str, Any]:
        """Fresh arguments, so that neither library sees what the other did to a cache."""
        transformers = importlib.import_module("transformers")
        generator = torch.Generator().manual_seed(self.seed)
        config = transformers.LlamaConfig(
            hidden_size=_HIDDEN,
            num_attention_heads=_HEADS,
            num_key_value_heads=_HEADS,
            num_hidden_layers=_LAYERS,
            vocab_size=8,
            sliding_window=self.local,
            attention_chunk_size=self.local,
            layer_types=[_KINDS[self.function]] * _LAYERS,
        )
        config._attn_implementation_internal = self.implementation
        keys = self.past + self.q_len
        arguments: dict[str, Any] = {
            "config": config,
            "inputs_embeds": torch.zeros(2, self.q_len, _HIDDEN),
            "attention_mask": self._padding(keys, generator),
            cache_name: self._cache(transformers, config),
        }
        table = torch.rand(2, keys + 8, generator=generator) < 0.6
        if self.overlay is not None:
            arguments[self.overlay] = lambda b, h, q_idx, kv_idx: table[b, kv_idx]
        if "bidirectional" not in self.function:
            positions = torch.arange(self.past, keys)
            arguments["position_ids"] = ((positions - self.past) % 3 if self.packed else positions).expand(2, -1)
            if self.spans:
                arguments["block_sequence_ids"] = torch.randint(-1, 2, (2, keys), generator=generator)
        return arguments

    def _padding(self, keys: int, generator: torch.Generator) -> Tensor | None:
        if self.padding is None:
            return None
        if self.padding == "ones":
            return torch.ones(2, keys, dtype=torch.long)
        return torch.arange(keys) >= torch.randint(0, keys, (2, 1), generator=generator)

    def _cache(self, transformers: Any, config: Any) -> Any:
        if self.cache is None:
            return None
        if self.cache == "static":
            cache = transformers.StaticCache(config=config, max_cache_len=self.past + self.q_len + 2)
        else:
            cache = transformers.DynamicCache(config=config)
        if self.past:
            states = torch.zeros(2, _HEADS, self.past, _HIDDEN // _HEADS)
            for layer in range(_LAYERS):
                cache.update(states, states, layer)
        return cache


def _draw(seed: int) -> _Call:
    draw = random.Random(seed)
    implementation = draw.choice(["sdpa", "sdpa", "eager", "flash_attention_2"])
    cache = draw.choice([None, "dynamic", "static"])
    extras = implementation != "flash_attention_2"  # flash drops what is added there, and refuses it here
    return _Call(
        function=draw.choice(list(_KINDS)),
        implementation=implementation,
        q_len=draw.choice([1, 2, 5, 9]),
        past=draw.choice([0, 3, 7]) if cache else 0,
        cache=cache,
        padding=draw.choice([None, None, "ones", "left"]),
        packed=draw.random() < 0.3,
        spans=extras and draw.random() < 0.2,
        overlay=draw.choice(["or_mask_function", "and_mask_function"]) if extras and draw.random() < 0.2 else None,
        local=draw.choice([1, 3, 8, 40]),
        seed=seed,
    )


def self_check(calls: int = 400) -> SelfCheck:
    """Compare the installed transformers with this package; nothing is installed, nothing of it replaced.

    Raises:
        ImportError: transformers is not installed.
    """
    version = importlib.import_module("transformers").__version__
    theirs: Any = importlib.import_module("transformers.masking_utils")
    own = {name: module for module in (create, interfaces, predicates) for name in module.__all__}
    missing = tuple(sorted(name for name in own if not hasattr(theirs, name)))
    new = tuple(
        sorted(
            name
            for name, value in vars(theirs).items()
            if inspect.isfunction(value) and value.__module__ == theirs.__name__ and name[0] != "_" and name not in own
        )
    )
    differences = list(_signatures(theirs, own))
    parameters = inspect.signature(theirs.create_causal_mask).parameters
    cache_name = "cache" if "cache" in parameters else "past_key_values"
    before, compared = DEFAULTS.release, 0
    DEFAULTS.release = RELEASES.get(version, NEWEST)
    try:
        for seed in range(calls):
            call = _draw(seed)
            want = _outcome(getattr(theirs, call.function), call, cache_name)
            got = _outcome(getattr(create, call.function), call, cache_name)
            compared += isinstance(want, Tensor)
            if not _same(want, got):
                differences.append(f"{call}: {_told(want)} there, {_told(got)} here")
    finally:
        DEFAULTS.release = before
    return SelfCheck(version, version in RELEASES, calls, compared, missing, new, tuple(differences))


def _signatures(theirs: Any, own: dict[str, Any]) -> Iterator[str]:
    """Parameters of theirs that a function here does not take."""
    for name, module in own.items():
        function = getattr(module, name)
        if inspect.isfunction(function) and inspect.isfunction(getattr(theirs, name, None)):
            want, got = (inspect.signature(f).parameters for f in (getattr(theirs, name), function))
            if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in got.values()):
                continue
            for parameter in want.keys() - got.keys() - {"cache", "past_key_values"}:
                yield f"{name}: a parameter {parameter!r} that is unknown here"


def _outcome(function: Any, call: _Call, cache_name: str) -> Any:
    try:
        return function(**call.arguments(cache_name))
    except Exception as error:
        return error


def _same(want: Any, got: Any) -> bool:
    if isinstance(want, Exception):
        return isinstance(got, Exception)
    if isinstance(want, Tensor):
        return isinstance(got, Tensor) and want.dtype == got.dtype and torch.equal(want, got)
    return got is want


def _told(result: Any) -> str:
    return f"{result.dtype} {list(result.shape)}" if isinstance(result, Tensor) else repr(result)[:120]
