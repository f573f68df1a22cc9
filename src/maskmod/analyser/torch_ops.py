"""One name for each torch function, however it was spelled: operator, reflected operator, method or function.

This module only knows names; what an operation means for a rectangle of indices is in `bounds`.
"""

from __future__ import annotations

import types
from collections.abc import Callable

import torch

__all__ = [
    "CASTS",
    "CONSTANTS",
    "ELEMENTWISE",
    "IDENTITIES",
    "INFORMATION",
    "RANDOM",
    "REDUCTIONS",
    "RESHAPES",
    "canonical_name",
]

# Applied element by element, result depending on nothing else: these evaluate on any frame by broadcasting.
_ELEMENTWISE = """
    abs add bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil clamp cos div eq
    exp floor floor_divide fmod ge gt isfinite isinf isnan le log logical_and logical_not logical_or logical_xor lt
    maximum minimum mul ne neg pow reciprocal remainder round sigmoid sign sin sqrt square sub tan tanh trunc where
"""
ELEMENTWISE: dict[str, Callable] = {name: getattr(torch, name) for name in _ELEMENTWISE.split()}
REDUCTIONS = ("any", "all")
CASTS = ("bool", "byte", "char", "short", "int", "long", "half", "bfloat16", "float", "double", "to", "type", "type_as")
IDENTITIES = ("clone", "contiguous", "detach")
RESHAPES = ("unsqueeze", "squeeze", "view", "reshape", "flatten")
CONSTANTS = ("new_ones", "new_zeros", "new_full", "ones_like", "zeros_like", "full_like")
INFORMATION = ("dim", "size", "numel", "is_floating_point", "element_size", "ndimension", "get_device")

_DRAWS = """
    alpha_dropout bernoulli binomial dropout feature_alpha_dropout feature_dropout multinomial normal poisson rand
    rand_like randint randint_like randn randn_like randperm rrelu
"""
_DRAWS_OF_TENSORS = """
    bernoulli bernoulli_ cauchy_ exponential_ geometric_ log_normal_ multinomial normal_ random_ uniform_
"""
_DRAWS_OF_LAYERS = "alpha_dropout dropout dropout1d dropout2d dropout3d feature_alpha_dropout gumbel_softmax"
# What draws random numbers, by any of its names; compared with `is`.
RANDOM: tuple[Callable, ...] = (
    *(getattr(torch, name) for name in _DRAWS.split()),
    *(getattr(torch.Tensor, name) for name in _DRAWS_OF_TENSORS.split()),
    *(getattr(torch.nn.functional, name) for name in _DRAWS_OF_LAYERS.split()),
)

_OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
_IN_PLACE = tuple(f"__i{operator}__" for operator in _OPERATORS)

_SYNONYMS = {
    "absolute": "abs",
    "and": "bitwise_and",
    "clip": "clamp",
    "divide": "div",
    "floordiv": "floor_divide",
    "greater": "gt",
    "greater_equal": "ge",
    "invert": "bitwise_not",
    "less": "lt",
    "less_equal": "le",
    "lshift": "bitwise_left_shift",
    "mod": "remainder",
    "multiply": "mul",
    "negative": "neg",
    "not_equal": "ne",
    "or": "bitwise_or",
    "rshift": "bitwise_right_shift",
    "subtract": "sub",
    "true_divide": "div",
    "truediv": "div",
    "xor": "bitwise_xor",
}
# Operators whose arguments arrive the other way round.
_REFLECTED = {
    "radd": "add",
    "rand": "bitwise_and",
    "rfloordiv": "floor_divide",
    "rlshift": "bitwise_left_shift",
    "rmod": "remainder",
    "rmul": "mul",
    "ror": "bitwise_or",
    "rpow": "pow",
    "rrshift": "bitwise_right_shift",
    "rsub": "sub",
    "rxor": "bitwise_xor",
}


def _collect() -> tuple[dict, tuple]:
    # C functions key a dict; Python functions are compared with `is`, since Dynamo cannot guard on them as keys.
    by_key, by_identity = {}, {}
    known = {*ELEMENTWISE, *REDUCTIONS, *CASTS, *IDENTITIES, *RESHAPES, *CONSTANTS, *INFORMATION}
    for owner in (torch.Tensor, torch):
        for attribute in dir(owner):
            name = attribute[2:-2] if attribute.startswith("__") else attribute
            name = _SYNONYMS.get(name, name)
            if attribute in _IN_PLACE or (attribute.endswith("_") and not attribute.startswith("_")):
                name = "in_place"
            elif name not in known and name not in _REFLECTED and name != "getitem":
                continue
            if name == "where" and owner is torch.Tensor:
                name = "where_method"  # x.where(condition, y), not where(condition, x, y)
            function = getattr(owner, attribute)
            if isinstance(function, types.FunctionType):
                by_identity[function] = name
            elif callable(function) and not isinstance(function, type):
                by_key[function] = name
    return by_key, tuple(by_identity.items())


_BY_KEY, _BY_IDENTITY = _collect()


def canonical_name(function: Callable, args: tuple) -> tuple[str | None, tuple]:
    """The name this module uses for a torch function (None if it has none), and the arguments in that order."""
    name = None
    for candidate, its_name in _BY_IDENTITY:
        if function is candidate:
            name = its_name
            break
    else:
        name = _BY_KEY.get(function)
    if name in _REFLECTED:
        return _REFLECTED[name], (args[1], args[0])
    if name == "where_method":
        return "where", (args[1], args[0], *args[2:])
    return name, args
