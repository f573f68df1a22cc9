"""Masks written as text: an expression in the vocabulary, or ``module:attribute``.

An expression is read as a syntax tree and never evaluated by Python: it can name the vocabulary and nothing else.
"""

from __future__ import annotations

import ast
import importlib
import operator
import sys
from collections.abc import Callable
from typing import Any

import torch

from maskmod.algebra import Mask, as_mask
from maskmod.errors import MaskTypeError, MaskValueError
from maskmod.masks.catalog import VOCABULARY

__all__ = ["mask_from_text", "predicate_from_text"]

_INT_BITS = 62  # of an index, with room for a sum

_DEEPEST = 100  # levels of an expression that a person still reads
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
}


def mask_from_text(text: str) -> Mask:
    """The mask that the text describes.

    In an expression, ``[0, 0, 1]`` and ``[[1, 0], [1, 1]]`` are tensors; a list of masks is a list, ``(4, 4)`` a shape.

    Raises:
        MaskValueError: the text is neither an expression in the vocabulary nor the name of something importable.
        MaskTypeError: it describes something that is no mask.

    >>> mask_from_text("causal() & document([0, 0, 1])")
    causal() & document(int64[3])
    """
    if (named := _named(text)) is not None:
        return as_mask(_imported(text, *named))
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        raise _unreadable(text, f"no expression: {error.msg}") from error
    except (RecursionError, MemoryError) as error:  # what a deep expression comes to differs between Pythons
        raise _unreadable(text[:40] + "...", "nested too deeply") from error
    if _depth(tree) > _DEEPEST:
        raise _unreadable(text[:40] + "...", "nested too deeply")
    mask = _value(tree.body, text)
    if not isinstance(mask, Mask):
        raise MaskTypeError(repr(text), f"a {type(mask).__name__}, not a mask", _TODO)
    return mask


def predicate_from_text(text: str) -> Any:
    """What ``module:attribute`` names, whatever it is, for a check to judge; else the mask of an expression."""
    named = _named(text)
    return mask_from_text(text) if named is None else _imported(text, *named)


def _named(text: str) -> tuple[str, str] | None:
    module, colon, attribute = text.partition(":")
    is_name = colon and module.replace(".", "").isidentifier() and attribute.replace(".", "").isidentifier()
    return (module, attribute) if is_name else None


def _depth(tree: ast.AST) -> int:
    """Levels of a syntax tree, counted without recursion: how deep Python may recurse depends on who called."""
    depth, level = 0, [tree]
    while level:
        depth, level = depth + 1, [child for node in level for child in ast.iter_child_nodes(node)]
    return depth


def _value(node: ast.expr, text: str) -> Any:
    match node:
        case ast.Constant(value=int() as value) if value.bit_length() > _INT_BITS:
            raise _unreadable(text, f"{value} does not fit an index")
        case ast.Constant(value=bool() | int() | float() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as value)):
            return -value
        case ast.UnaryOp(op=ast.Invert(), operand=operand):
            return ~_mask_value(operand, text)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_mask_value(left, text), _mask_value(right, text))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in VOCABULARY:
            by_name = {keyword.arg: _value(keyword.value, text) for keyword in keywords if keyword.arg is not None}
            if len(by_name) == len(keywords):
                return _called(name, [_value(arg, text) for arg in args], by_name, ast.unparse(node))
        case ast.List(elts=elements):
            values = [_value(element, text) for element in elements]
            return values if any(isinstance(value, (Mask, tuple)) for value in values) else _table(values, text)
        case ast.Tuple(elts=elements):  # a shape, or a size for queries and one for keys
            return tuple(_value(element, text) for element in elements)
        case ast.Name(id=name) if name in VOCABULARY:
            raise _unreadable(text, f"{name} is named, not called")
    raise _unreadable(text, f"{ast.unparse(node)!r} is not in the vocabulary")


def _mask_value(node: ast.expr, text: str) -> Any:
    value = _value(node, text)
    if isinstance(value, (Mask, bool)):  # `mask ^ True` is a negation
        return value
    raise MaskTypeError(repr(text), f"{ast.unparse(node)!r} is no mask, yet an operator combines it", _TODO)


def _called(name: str, args: list, by_name: dict[str, Any], written: str) -> Any:
    try:
        return VOCABULARY[name](*args, **by_name)
    except TypeError as error:
        if isinstance(error, MaskTypeError):
            raise
        raise MaskTypeError(written, str(error), f"See help({VOCABULARY[name].__module__}.{name}).") from error


def _table(values: list, text: str) -> torch.Tensor:
    rows = [value.tolist() if isinstance(value, torch.Tensor) else value for value in values]
    try:
        return torch.tensor(rows)
    except (TypeError, ValueError) as error:
        raise _unreadable(text, f"{rows} is no table") from error


def _imported(text: str, module: str, attribute: str) -> Any:
    if "" not in sys.path:
        sys.path.insert(0, "")  # modules of the working directory, as under `python -m`
    try:
        found = importlib.import_module(module)
        for name in attribute.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise MaskValueError(
            repr(text), str(error), "Name a module that can be imported, and what it holds."
        ) from error
    return found


_COMMON = ("causal", "sliding_window", "window", "chunked", "prefix", "sinks", "document", "blockwise", "key_padding")
_TODO = (
    "Write masks and `& | ^ ~`, as in 'causal() & sliding_window(4)', or module:attribute. Known: "
    f"{', '.join(_COMMON)}, and {len(VOCABULARY) - len(_COMMON)} more, listed in docs/masks.md"
)


def _unreadable(text: str, seen: str) -> MaskValueError:
    return MaskValueError(repr(text), seen, f"{_TODO}.")
