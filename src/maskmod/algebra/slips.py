"""Where in a user's predicate an error arose, and which slip it looks like: what to write instead.

It reads source text and tracebacks; it knows no tensors' values, and it guesses only where Python shows the spelling.
"""

from __future__ import annotations

import ast
import builtins
import linecache
import os
from types import FrameType, TracebackType
from typing import Any, NamedTuple

import torch

__all__ = ["Place", "Slip", "place_of", "slip_at"]

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep


class Place(NamedTuple):
    """A line of a user's predicate, and the part of it that was running."""

    file: str
    line: int
    text: str  # the part, or the whole line where Python does not tell (before 3.11)
    whole: str
    names: dict[str, Any]  # what the names there stand for

    def __str__(self) -> str:
        return f"{self.file}:{self.line}, `{self.text}`" if self.text else f"{self.file}:{self.line}"


class Slip(NamedTuple):
    """What was written that cannot work, and what to write."""

    seen: str
    todo: str
    kind: str


def place_of(error: BaseException) -> Place | None:
    """The innermost line that is neither torch's nor this library's."""
    found: TracebackType | None = None
    trace = error.__traceback__
    while trace is not None:
        file = os.path.abspath(trace.tb_frame.f_code.co_filename)
        if not file.startswith((_TORCH, _PACKAGE)):
            found = trace
        trace = trace.tb_next
    return None if found is None else _place(found)


def _place(trace: TracebackType) -> Place:
    code, line = trace.tb_frame.f_code, trace.tb_lineno
    whole = linecache.getline(code.co_filename, line).strip()
    text = whole
    positions = getattr(code, "co_positions", None)  # Python 3.11
    if positions is not None:
        first, last, begin, end = [*positions()][trace.tb_lasti // 2]
        if first is not None and first == last and begin is not None and end is not None:
            raw = linecache.getline(code.co_filename, first).encode()[begin:end].decode(errors="replace")
            text, line = raw or whole, first
    return Place(code.co_filename, line, text, whole, _names(trace.tb_frame))


def _names(frame: FrameType) -> dict[str, Any]:
    return {**frame.f_builtins, **frame.f_globals, **frame.f_locals}


_ENCLOSING = ("word", "not", "chain", "parentheses", "in")  # what can fail at a part of it that looks innocent


def slip_at(place: Place) -> Slip | None:
    """The likely slip, from the part that was running, else from what encloses it on its line."""
    for text in (place.text, place.whole):
        tree = _parsed(text)
        if tree is None:
            continue
        for node in ast.walk(tree):
            found = _slip(node, place.names)
            if found is not None and (text is place.text or found.kind in _ENCLOSING):
                return found
    return None


def _parsed(text: str) -> ast.AST | None:
    """The text as Python; of a line that begins or ends amid something, what stands from its lambda or `return` on."""
    begins = [text[text.index("lambda") :] if "lambda" in text else text, text.removeprefix("return "), text]
    for begin in begins:
        for end in range(len(begin), len(begin) // 2, -1):
            try:
                return ast.parse(begin[:end].strip(), mode="eval")
            except (SyntaxError, ValueError):
                continue
    return None


def _slip(node: ast.AST, names: dict[str, Any]) -> Slip | None:
    if isinstance(node, ast.Compare):
        return _comparison(node)
    if isinstance(node, ast.Call):
        return _call(node, names)
    if isinstance(node, ast.Subscript):
        return _look_up(node, names)
    words = {ast.BoolOp: "`and` or `or`", ast.IfExp: "`if`"}
    for kind, word in words.items():
        if isinstance(node, kind):
            return Slip(
                f"{word} asks a tensor for its truth value", "Write `&`, `|`, torch.where(condition, a, b).", "word"
            )
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        todo = f"Write `({ast.unparse(node.operand)}) ^ True`."
        return Slip("`not` asks a tensor for its truth value", todo, "not")
    return None


def _comparison(node: ast.Compare) -> Slip | None:
    spelled = ast.unparse(node)
    if isinstance(node.ops[0], (ast.In, ast.NotIn)):
        values = getattr(node.comparators[0], "elts", None)
        todo = "Write torch.isin(x, table), or compare with each value."
        if values and len(values) <= 4:
            each = " | ".join(f"({ast.unparse(node.left)} == {ast.unparse(value)})" for value in values)
            todo = f"Write `{each}`." if isinstance(node.ops[0], ast.In) else f"Write `({each}) ^ True`."
        return Slip("`in` asks each comparison for its truth value", todo, "in")
    if len(node.ops) < 2:
        return None
    pieces, left, kind = [], node.left, "chain"
    for op, right in zip(node.ops, node.comparators, strict=True):
        joins, rest = "&", right
        if isinstance(right, ast.BinOp) and isinstance(right.op, (ast.BitAnd, ast.BitOr)):
            kind, joins, rest = "parentheses", "&" if isinstance(right.op, ast.BitAnd) else "|", right.right
            right = right.left
        pieces += [f"({ast.unparse(ast.Compare(left, [op], [right]))})", joins]
        left = rest
    todo = f"Write `{' '.join(pieces[:-1])}`."
    if kind == "parentheses":
        return Slip(f"`&` and `|` bind tighter than comparisons in `{spelled}`", todo, kind)
    return Slip(f"the chain `{spelled}` asks its first half for a truth value", todo, kind)


_BUILTINS = {
    "max": "Write torch.maximum(a, b), or x.clamp(min=n) with a number.",
    "min": "Write torch.minimum(a, b), or x.clamp(max=n) with a number.",
    "int": "Indices stay tensors: leave it out, or write `//` and `.long()`.",
    "float": "Indices stay tensors: write `.float()`.",
    "bool": "Indices stay tensors: compare, `x != 0`.",
    "any": "Join the conditions with `|`.",
    "all": "Join the conditions with `&`.",
    "range": "Compare the index with both ends.",
    "sorted": "Sort a table outside the predicate.",
}


def _call(node: ast.Call, names: dict[str, Any]) -> Slip | None:
    function = node.func
    name = function.id if isinstance(function, ast.Name) else None
    if name in _BUILTINS and names.get(name) is getattr(builtins, name):
        return Slip(f"Python's `{name}` asks a tensor for its value", _BUILTINS[name], name)
    if isinstance(function, ast.Attribute):
        if function.attr in ("item", "tolist", "numpy"):
            seen = f"`.{function.attr}()` asks a tensor for its value"
            return Slip(seen, "Leave it out: a 0-d tensor is a number to torch.", "item")
        owner = names.get(function.value.id) if isinstance(function.value, ast.Name) else None
        if getattr(owner, "__name__", "") == "numpy":
            todo = f"Write torch's own `{function.attr}`, or an operator."
            return Slip(f"numpy's `{function.attr}` takes no tensor that stands for every index", todo, "numpy")
    return None


def _look_up(node: ast.Subscript, names: dict[str, Any]) -> Slip | None:
    table = names.get(node.value.id) if isinstance(node.value, ast.Name) else None
    spelled = ast.unparse(node.value)
    if isinstance(table, (list, tuple)):
        todo = f"Hold it as a tensor, made once outside: `torch.tensor({spelled})`."
        return Slip(f"`{spelled}` is a {type(table).__name__}, which a tensor cannot index", todo, "list")
    if type(table).__module__ == "numpy":
        todo = f"Hold it as a tensor, made once outside: `torch.from_numpy({spelled})`."
        return Slip(f"`{spelled}` is a numpy array, which no tensor of indices reaches", todo, "numpy")
    return None
