"""Writes an expression of Python's so that a trace can carry it out: `and` as `&`, `if` as `torch.where`, and so on."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable
from typing import Any

__all__ = ["CONVERSIONS", "called", "rewritten"]

CONVERSIONS = {"int": "long", "float": "float", "bool": "bool"}  # Python's, and the tensor's method


def rewritten(node: ast.AST, is_tensor: Callable[[ast.AST], bool]) -> str:
    """The expression anew; ``is_tensor`` says which parts of it are tensors, and only those are touched."""
    copy = ast.parse(ast.unparse(node), mode="eval").body
    return ast.unparse(ast.fix_missing_locations(_Rewriter(is_tensor).visit(copy)))


def called(node: ast.Call) -> str:
    """The last name of what is called."""
    func = node.func
    return func.id if isinstance(func, ast.Name) else func.attr if isinstance(func, ast.Attribute) else ""


class _Rewriter(ast.NodeTransformer):
    def __init__(self, is_tensor: Callable[[ast.AST], bool]):
        self.is_tensor = is_tensor

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        if not any(map(self.is_tensor, node.values)):
            return node
        op = ast.BitAnd() if isinstance(node.op, ast.And) else ast.BitOr()
        parts = [self.visit(v) for v in node.values]
        return functools.reduce(lambda a, b: ast.BinOp(a, op, b), parts)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        if isinstance(node.op, ast.Not) and self.is_tensor(node.operand):
            return ast.BinOp(self.visit(node.operand), ast.BitXor(), ast.Constant(True))
        return self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> Any:
        if not self.is_tensor(node):
            return node
        if len(node.ops) == 1 and isinstance(node.ops[0], (ast.In, ast.NotIn)):
            among = node.comparators[0]
            if isinstance(among, (ast.Tuple, ast.List, ast.Set)) and among.elts:
                equal = [ast.Compare(self.visit(node.left), [ast.Eq()], [e]) for e in among.elts]
                found = functools.reduce(lambda a, b: ast.BinOp(a, ast.BitOr(), b), equal)
            else:
                call = ast.Call(ast.Name("torch.isin", ast.Load()), [self.visit(node.left), among], [])
                found = call
            return found if isinstance(node.ops[0], ast.In) else ast.BinOp(found, ast.BitXor(), ast.Constant(True))
        sides = [self.visit(side) for side in (node.left, *node.comparators)]
        parts = [ast.Compare(a, [op], [b]) for a, op, b in zip(sides, node.ops, sides[1:], strict=False)]
        return functools.reduce(lambda a, b: ast.BinOp(a, ast.BitAnd(), b), parts)

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        if not self.is_tensor(node.test):
            return self.generic_visit(node)
        return ast.Call(
            ast.Name("torch.where", ast.Load()), [self.visit(x) for x in (node.test, node.body, node.orelse)], []
        )

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        inner = node.value
        if isinstance(inner, ast.Subscript) and self.is_tensor(node.slice) and self.is_tensor(inner.slice):
            entries = []
            for part in (inner.slice, node.slice):
                entries += part.elts if isinstance(part, ast.Tuple) else [part]
            return self.visit(
                ast.Subscript(inner.value, ast.Tuple([self.visit(e) for e in entries], ast.Load()), ast.Load())
            )
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> Any:
        name = called(node)
        if (
            isinstance(node.func, ast.Attribute)
            and node.func.attr in ("item", "tolist")
            and self.is_tensor(node.func.value)
        ):
            return self.visit(node.func.value)
        if (
            name in CONVERSIONS
            and isinstance(node.func, ast.Name)
            and len(node.args) == 1
            and self.is_tensor(node.args[0])
        ):
            return ast.Call(ast.Attribute(self.visit(node.args[0]), CONVERSIONS[name], ast.Load()), [], [])
        if name in ("max", "min") and isinstance(node.func, ast.Name) and len(node.args) >= 2:
            return functools.reduce(functools.partial(self.extreme, name), map(self.visit, node.args))
        return self.generic_visit(node)

    def extreme(self, name: str, a: ast.expr, b: ast.expr) -> ast.expr:
        for x, y in ((a, b), (b, a)):
            if self.is_tensor(x) and not self.is_tensor(y):
                bound = ast.keyword("min" if name == "max" else "max", y)
                return ast.Call(ast.Attribute(x, "clamp", ast.Load()), [], [bound])
        return ast.Call(ast.Name(f"torch.{name}imum", ast.Load()), [a, b], [])
