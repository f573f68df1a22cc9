"""Where a predicate is written: the user's own functions behind a mask, their lines and their syntax trees."""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import textwrap
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskmod.algebra import Func, Mask

__all__ = ["Place", "Plain", "definition_of", "place_at", "place_of", "plain_functions", "return_place"]


class Place(NamedTuple):
    """A line of the user's."""

    file: str
    line: int
    code: str


class Plain(NamedTuple):
    """A Python function, how many of its leading arguments are bound already, and the object it is a method of."""

    function: Any  # types.FunctionType; pyright takes one in a field for a method
    bound: int
    held: Any


def place_at(file: str, line: int) -> Place:
    return Place(file, line, linecache.getline(file, line).strip())


def place_of(fn: Any) -> Place:
    """Where a callable is defined; line 0 without source."""
    for plain in plain_functions(fn):
        code = plain.function.__code__
        return place_at(code.co_filename, code.co_firstlineno)
    return Place(f"<{type(fn).__name__}>", 0, "")


def return_place(fn: Any) -> Place:
    """The last line of a callable that returns something."""
    for plain in plain_functions(fn):
        tree = definition_of(plain.function)
        if isinstance(tree, ast.Lambda):
            return place_at(plain.function.__code__.co_filename, tree.body.lineno)
        lines = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Return)] if tree is not None else []
        if lines:
            return place_at(plain.function.__code__.co_filename, max(lines))
    return place_of(fn)


def plain_functions(fn: Any, bound: int = 0, held: Any = None) -> Iterator[Plain]:
    """The users' own Python functions that a mask is made of."""
    while isinstance(fn, functools.partial):
        bound, fn = bound + len(fn.args), fn.func
    if isinstance(fn, Func):
        yield from plain_functions(fn.fn)
    elif isinstance(fn, Mask):
        if not type(fn).__module__.startswith("maskmod."):
            yield Plain(type(fn).__call__, 1, fn)
        for part in fn._parts():
            if isinstance(part, Mask) or (callable(part) and not isinstance(part, (type, Tensor))):
                yield from plain_functions(part)
    elif inspect.ismethod(fn):
        yield from plain_functions(fn.__func__, bound + 1, fn.__self__)
    elif isinstance(fn, types.FunctionType):
        yield Plain(inspect.unwrap(fn), bound, held)  # pyright: ignore[reportArgumentType]
    elif isinstance(fn, torch.nn.Module):
        yield from plain_functions(fn.forward, bound)
    elif not isinstance(fn, type) and isinstance(called_as := vars(type(fn)).get("__call__"), types.FunctionType):
        yield Plain(called_as, bound + 1, fn)


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except SyntaxError:
        return None


def definition_of(plain: types.FunctionType) -> Any:
    """The syntax tree of a function, found in its file by line, name and argument names."""
    code = plain.__code__
    text = "".join(linecache.getlines(code.co_filename))
    tree = _parsed(text) if text else None
    if tree is None:
        try:
            tree = _parsed(textwrap.dedent(inspect.getsource(plain)))
        except (OSError, TypeError):
            return None
        if tree is None:
            return None
        ast.increment_lineno(tree, code.co_firstlineno - 1)
    names = code.co_varnames[: code.co_argcount]
    fitting = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            arguments = tuple(a.arg for a in (*node.args.posonlyargs, *node.args.args))
            if first == code.co_firstlineno and arguments == names:
                fitting.append(node)
    if len(fitting) > 1:
        fitting.sort(key=lambda node: _distance(node, code))
    return fitting[0] if fitting else None


def _distance(node: Any, code: types.CodeType) -> int:
    """How little a function of several on one line looks like this code: by column, else by names and constants."""
    positions = getattr(code, "co_positions", None)  # Python 3.11 and later
    if positions is not None:
        columns = [c for line, _, c, _ in positions() if c and line == node.lineno]
        return sum(not node.col_offset <= c <= node.end_col_offset for c in columns)
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} - set(code.co_varnames)
    constants = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
    return len(names ^ {*code.co_names, *code.co_freevars}) + len(constants ^ (set(code.co_consts) - {None}))
