"""Reads the source of a predicate for what asks a tensor for one value, and writes it anew.

A name is followed as a tensor if it is one of the four indices, a captured tensor, or computed from either. Nothing is
run here; functions that the predicate calls are read too. Without source there is nothing to say.
"""

from __future__ import annotations

import ast
import types
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskmod.testing.lint.places import Place, Plain, definition_of, place_at, plain_functions
from maskmod.testing.lint.rewrite import CONVERSIONS, called, rewritten

__all__ = ["Suspicion", "suspicions"]

_MOST_CALLS = 4  # how deep functions that call each other are followed


class Suspicion(NamedTuple):
    """Something in the source that a trace refuses, or that goes wrong silently; ``last`` line of its statement."""

    kind: str
    place: Place
    reason: str
    rewrite: str
    last: int


def suspicions(fn: Any) -> list[Suspicion]:
    """Everything suspicious in the source of a mask, in order of file and line."""
    found: list[Suspicion] = []
    for plain in plain_functions(fn):
        _read(plain, None, found, 0)
    unique = {(s.kind, s.place, s.rewrite): s for s in found}
    return sorted(unique.values(), key=lambda s: (s.place.file, s.place.line))


def _read(given: Plain, followed: set[str] | None, found: list[Suspicion], depth: int) -> None:
    plain = given.function
    tree = definition_of(plain)
    if tree is None:
        return
    names = [a.arg for a in (*tree.args.posonlyargs, *tree.args.args)]
    if followed is None:
        followed = set(names[given.bound :][:4])
    values = dict(plain.__globals__)
    cells = zip(plain.__code__.co_freevars, plain.__closure__ or (), strict=True)
    for name, cell in cells:
        try:
            values[name] = cell.cell_contents
        except ValueError:
            continue
    for name in names:
        values.pop(name, None)
    if given.held is not None and names:
        values[names[0]] = given.held
    _Reader(plain.__code__.co_filename, followed, values, found, depth).read(tree)


_UNVALUED = {"shape", "dtype", "device", "ndim", "is_cuda", "requires_grad"}
_ASKING = {"item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__"}
_RANDOM = ("rand", "randn", "randint", "randperm", "bernoulli", "multinomial", "normal", "rand_like", "randn_like")
_CHANGES = {"append", "extend", "insert", "pop", "remove", "update", "setdefault", "add", "clear"}


class _Reader(ast.NodeVisitor):
    def __init__(self, file: str, followed: set[str], values: dict[str, Any], found: list[Suspicion], depth: int):
        self.file, self.tensors, self.values, self.found, self.depth = file, set(followed), values, found, depth
        self.indices, self.local = set(followed), set(followed)

    def read(self, tree: Any) -> None:
        if isinstance(tree, ast.Lambda):
            self.visit(tree.body)
        else:
            self.block(tree.body)

    def add(self, kind: str, node: ast.AST, reason: str, rewrite: str) -> None:
        line, last = getattr(node, "lineno", 0), getattr(node, "end_lineno", 0)
        self.found.append(Suspicion(kind, place_at(self.file, line), reason, rewrite, last or line))

    # What is a tensor

    def is_tensor(self, node: ast.AST | None) -> bool:
        match node:
            case None | ast.Constant() | ast.Lambda():
                return False
            case ast.Name(id=name):
                return name in self.tensors or isinstance(self.value(node), Tensor)
            case ast.Attribute(attr=attribute) if attribute in _UNVALUED:
                return False
            case ast.Attribute():
                value = self.value(node)
                return isinstance(value, Tensor) or (value is None and self.is_tensor(node.value))
            case ast.Compare(ops=ops) if all(isinstance(op, (ast.Is, ast.IsNot)) for op in ops):
                return False
            case ast.Call(func=ast.Name(id="isinstance" | "len" | "type" | "hasattr" | "range")):
                return False
            case ast.Call(func=ast.Attribute(attr="size" | "dim" | "numel")):
                return False
        return any(self.is_tensor(child) for child in ast.iter_child_nodes(node))

    def value(self, node: ast.AST) -> Any:
        """What a name or a dotted name stands for outside the function; None if that is not known."""
        match node:
            case ast.Name(id=name):
                return None if name in self.local else self.values.get(name, _BUILTINS.get(name))
            case ast.Attribute(value=inner, attr=attribute):
                owner = self.value(inner)
                if owner is None:
                    return None
                try:
                    return getattr(owner, attribute, None)
                except Exception:  # a property of the user's
                    return None
        return None

    # Statements, in order: an assignment makes its names tensors

    def block(self, body: list[ast.stmt]) -> None:
        for place, statement in enumerate(body):
            if isinstance(statement, ast.If) and self.is_tensor(statement.test):
                self.branch(statement, body[place + 1 :])
            self.visit(statement)

    def branch(self, statement: ast.If, rest: list[ast.stmt]) -> None:
        test, yes, no = self.rewritten(statement.test), _returned(statement.body), _returned(statement.orelse or rest)
        if yes is not None and no is not None:
            text = f"return torch.where({test}, {self.rewritten(yes)}, {self.rewritten(no)})"
        else:
            text = f"compute both branches, then pick: torch.where({test}, ..., ...)"
        self.add(
            "truth-value", statement, f"`if {ast.unparse(statement.test)}` asks a tensor for one truth value", text
        )

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        self.block(node.body)
        self.block(node.orelse)

    def visit_While(self, node: ast.While) -> None:
        if self.is_tensor(node.test):
            reason = f"`while {ast.unparse(node.test)}` asks a tensor for one truth value"
            self.add("truth-value", node, reason, "loop a fixed number of times, and pick with torch.where")
        self.visit(node.test)
        self.block(node.body)

    def visit_For(self, node: ast.For) -> None:
        loops = node.iter
        if isinstance(loops, ast.Call) and called(loops) == "range" and any(map(self.is_tensor, loops.args)):
            self.add(
                "truth-value",
                node,
                "`range` asks a tensor for its number",
                "torch.arange(n), compared with the index, then .any()",
            )
        elif self.is_tensor(loops):
            self.tensors |= _names(node.target)
        self.local |= _names(node.target)
        self.visit(node.iter)
        self.block(node.body)

    def visit_Assert(self, node: ast.Assert) -> None:
        if self.is_tensor(node.test):
            self.add("truth-value", node, "`assert` asks a tensor for one truth value", "assert outside the predicate")

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self.assigned(target, self.is_tensor(node.value), node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.visit(node.value)
        if isinstance(node.target, ast.Name) and node.target.id in self.indices:
            name, op = node.target.id, ast.unparse(node).split("=")[0].split()[-1]
            self.add(
                "mutation",
                node,
                f"`{ast.unparse(node)}` changes the index in place",
                f"{name} = {name} {op} {ast.unparse(node.value)}",
            )
        self.assigned(node.target, self.is_tensor(node.target) or self.is_tensor(node.value), node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
            self.assigned(node.target, self.is_tensor(node.value), node)

    def assigned(self, target: ast.AST, tensor: bool, node: ast.AST) -> None:
        if isinstance(target, (ast.Subscript, ast.Attribute)):
            base = target
            while isinstance(base, (ast.Subscript, ast.Attribute)):
                base = base.value
            if not (isinstance(base, ast.Name) and base.id in self.local - self.indices):
                reason = f"`{ast.unparse(node)}` changes what outlives the call: a predicate runs many times, or once"
                self.add("mutation", node, reason, "compute a new value, and return it")
            return
        names = _names(target)
        if names & self.values.keys() and getattr(self, "outer", set()) & names:
            self.add(
                "mutation",
                node,
                f"`{ast.unparse(node)}` changes what outlives the call",
                "compute a new value, and return it",
            )
        self.local |= names
        self.tensors = self.tensors | names if tensor else self.tensors - names

    def visit_Nonlocal(self, node: ast.Nonlocal) -> None:
        self.outer = getattr(self, "outer", set()) | set(node.names)

    visit_Global = visit_Nonlocal  # pyright: ignore[reportAssignmentType]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.local.add(node.name)

    # Expressions

    def visit_IfExp(self, node: ast.IfExp) -> None:
        if self.is_tensor(node.test):
            reason = f"`... if {ast.unparse(node.test)} else ...` asks a tensor for one truth value"
            self.add("truth-value", node, reason, self.rewritten(node))
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        if any(map(self.is_tensor, node.values)):
            word = "and" if isinstance(node.op, ast.And) else "or"
            self.add("truth-value", node, f"`{word}` asks a tensor for one truth value", self.rewritten(node))
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not) and self.is_tensor(node.operand):
            self.add("truth-value", node, "`not` asks a tensor for one truth value", self.rewritten(node))
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        if any(isinstance(op, (ast.In, ast.NotIn)) for op in node.ops) and self.is_tensor(node):
            self.add("truth-value", node, "`in` asks a tensor for one truth value", self.rewritten(node))
        elif len(node.ops) > 1 and self.is_tensor(node):
            reason = f"the chained comparison `{ast.unparse(node)}` is an `and`: it asks a tensor for one truth value"
            self.add("truth-value", node, reason, self.rewritten(node))
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        table, inner = self.value(node.value), node.value
        if self.is_tensor(node.slice):
            name = ast.unparse(node.value)
            if type(table).__module__ == "numpy" and hasattr(table, "dtype"):
                reason = f"`{name}` is a numpy table: indexing it asks the index for its number"
                self.add("table", node, reason, f"{name} = torch.from_numpy({name}), once, outside the predicate")
            elif isinstance(table, (list, tuple, dict)):
                reason = f"`{name}` is a Python {type(table).__name__}: indexing it asks the index for its number"
                inside = name if not isinstance(table, dict) else f"[{name}[i] for i in range(n)]"
                self.add("table", node, reason, f"{name} = torch.tensor({inside}), once, outside the predicate")
            elif (
                isinstance(inner, ast.Subscript)
                and self.is_tensor(inner.slice)
                and not isinstance(inner.slice, ast.Slice)
            ):
                self.add(
                    "double-index",
                    node,
                    f"`{ast.unparse(node)}` takes a whole row first, then an entry of it",
                    self.rewritten(node),
                )
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name, function = called(node), self.value(node.func)
        given = [*node.args, *(k.value for k in node.keywords)]
        module = getattr(function, "__module__", "") or ""
        if isinstance(node.func, ast.Attribute) and node.func.attr in _ASKING and self.is_tensor(node.func.value):
            reason = f"`.{node.func.attr}()` asks a tensor for its number"
            self.add(
                "truth-value", node, reason, f"{self.rewritten(node.func.value)}, which is a tensor and may stay one"
            )
        elif name in CONVERSIONS and function is _BUILTINS.get(name) and any(map(self.is_tensor, given)):
            self.add("truth-value", node, f"`{name}()` asks a tensor for its number", self.rewritten(node))
        elif name in ("max", "min") and function is _BUILTINS[name] and any(map(self.is_tensor, given)):
            self.add(
                "truth-value",
                node,
                f"Python's `{name}` compares, and asks a tensor for one truth value",
                self.rewritten(node),
            )
        elif (
            name in ("any", "all", "sorted", "sum")
            and function is _BUILTINS[name]
            and name != "sum"
            and any(map(self.is_tensor, given))
        ):
            self.add(
                "truth-value",
                node,
                f"Python's `{name}` asks tensors for their truth values",
                f"torch.stack([...]).{name}()",
            )
        elif module == "math" and any(map(self.is_tensor, given)):
            self.add(
                "truth-value",
                node,
                f"`math.{name}` asks a tensor for its number",
                f"torch.{name}({', '.join(map(ast.unparse, given))})",
            )
        elif type(function).__module__ == "numpy" and any(map(self.is_tensor, given)):
            self.add(
                "table",
                node,
                f"numpy's `{name}` asks a tensor for its numbers",
                f"torch.{name}({', '.join(map(ast.unparse, given))})",
            )
        elif self.is_random(node, function, module):
            reason = f"`{ast.unparse(node.func)}` draws anew at each call: block table and kernel would disagree"
            self.add("random", node, reason, "draw a table once, outside the predicate, and index it")
        elif isinstance(node.func, ast.Attribute) and self.changes(node.func):
            reason = f"`{ast.unparse(node)}` changes what outlives the call: a predicate runs many times, or once"
            self.add("mutation", node, reason, "compute a new value, and return it")
        elif name == "print":
            self.add("side-effect", node, "`print` breaks the graph", "print outside the predicate")
        elif (
            isinstance(function, types.FunctionType)
            and self.depth < _MOST_CALLS
            and not module.startswith(("torch", "maskmod"))
        ):
            self.follow(node, function)
        self.generic_visit(node)

    def is_random(self, node: ast.Call, function: Any, module: str) -> bool:
        name = called(node)
        if module.startswith("random") or type(getattr(function, "__self__", None)).__module__.startswith("random"):
            return True
        if "numpy.random" in f"{module} {type(getattr(function, '__self__', None)).__module__}":
            return True
        if name in _RANDOM and isinstance(node.func, ast.Attribute) and self.value(node.func.value) is torch:
            return True
        return name in ("random_", "uniform_", "bernoulli_", "normal_")

    def changes(self, func: ast.Attribute) -> bool:
        base = func.value
        while isinstance(base, (ast.Subscript, ast.Attribute)):
            base = base.value
        outside = isinstance(base, ast.Name) and (base.id in self.indices or base.id not in self.local)
        if not outside:
            return False
        owner = self.value(func.value)
        if func.attr in _CHANGES:
            return isinstance(owner, (list, dict, set))
        return func.attr.endswith("_") and not func.attr.startswith("_") and self.is_tensor(func.value)

    def follow(self, node: ast.Call, function: types.FunctionType) -> None:
        """Read a function that the predicate calls, with the arguments that are tensors."""
        names = function.__code__.co_varnames[: function.__code__.co_argcount]
        given = {n for n, a in zip(names, node.args, strict=False) if self.is_tensor(a)}
        given |= {k.arg for k in node.keywords if k.arg and self.is_tensor(k.value)}
        if given:
            _read(Plain(function, 0, None), given, self.found, self.depth + 1)

    # Rewrites

    def rewritten(self, node: ast.AST) -> str:
        """The expression as a trace can carry it out."""
        return rewritten(node, self.is_tensor)


_BUILTINS: dict[str, Any] = {
    name: getattr(__import__("builtins"), name)
    for name in ("int", "float", "bool", "max", "min", "any", "all", "sorted", "sum", "range", "abs", "print", "len")
}


def _returned(body: list[ast.stmt]) -> ast.expr | None:
    first = body[0] if body else None
    return first.value if isinstance(first, ast.Return) else None


def _names(target: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
