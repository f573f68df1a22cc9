"""What a frozen node of tensors and structure is: its fields, its identity, its place in a pytree, its tensors.

It refuses to know what the node means: a mask, to everybody else.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from maskmod.errors import MaskTypeError

__all__ = ["Structured", "as_int", "closure_tensors", "register_pytree", "spell", "structure"]


class Structured:
    """A frozen dataclass whose fields are tensors and other nodes (dynamic), or hashable values (structure)."""

    _fields: ClassVar[tuple[str, ...]] = ()

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Structured) or type(self) is not type(other):
            return NotImplemented
        open_: list[tuple[Any, Any]] = [(self, other)]
        while open_:
            a, b = open_.pop()
            if a is b:
                continue
            if isinstance(a, Tensor) or isinstance(b, Tensor) or type(a) is not type(b):
                return False
            if isinstance(a, (tuple, Structured)):
                a, b = (x if isinstance(x, tuple) else _values(x) for x in (a, b))
                if len(a) != len(b):
                    return False
                open_ += zip(a, b, strict=True)
            elif a != b:
                return False
        return True

    def __hash__(self) -> int:
        return hash(tuple(id(x) if isinstance(x, Tensor) else x for x in _flat(self)))

    def _parts(self) -> Iterator[Any]:
        for value in _values(self):
            if isinstance(value, (list, dict, set)):
                seen = f"a field that is a {type(value).__name__}: it can change, and tensors in it would go unseen"
                raise MaskTypeError(self, seen, "Hold a tensor, a tuple, or a frozen dataclass.")
            yield from value if isinstance(value, tuple) else (value,)

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor that the node holds, closures of plain functions included where Python shows them."""
        open_: list[Any] = [self]
        while open_:
            part = open_.pop()
            if isinstance(part, Tensor):
                yield part
            elif isinstance(part, Structured):
                open_ += [*part._parts()][::-1]
            elif callable(part):
                yield from closure_tensors(part)


def structure(node: Structured) -> tuple:
    """Everything about a node but its tensors, as one hashable value."""
    return tuple(Tensor if isinstance(x, Tensor) else x for x in _flat(node))


def _flat(node: Structured) -> Iterator[Any]:
    """A node's types and values in one row: a type says how many fields follow, a tuple how many entries."""
    open_: list[Any] = [node]
    while open_:
        part = open_.pop()
        if isinstance(part, Structured):
            yield type(part)
            open_ += _values(part)[::-1]
        elif isinstance(part, tuple):
            yield (type(part), len(part))
            open_ += part[::-1]
        else:
            yield part


def _values(node: Structured) -> tuple:
    return tuple(getattr(node, name) for name in node._fields)


def _is_dynamic(value: Any) -> bool:
    """Whether a field holds tensors or masks, so that it belongs to the pytree's children."""
    return isinstance(value, (Tensor, Structured)) or (isinstance(value, tuple) and any(map(_is_dynamic, value)))


def register_pytree(cls: type[Structured]) -> None:
    def flatten(node: Structured):
        children, static = {}, []
        for name, value in zip(node._fields, _values(node), strict=True):
            if _is_dynamic(value):
                children[name] = value
            else:
                static.append((name, value))
        return list(children.values()), (tuple(children), tuple(static))

    def flatten_with_keys(node: Structured) -> Any:  # torch's KeyEntry protocol does not admit its own GetAttrKey
        children, context = flatten(node)
        keys = [pytree.GetAttrKey(name) for name in context[0]]
        return list(zip(keys, children, strict=True)), context

    def unflatten(children, context):
        node = object.__new__(cls)  # leaves may be placeholders: no constructor, no checks
        names, static = context
        for name, value in (*zip(names, children, strict=True), *static):
            object.__setattr__(node, name, value)
        return node

    pytree.register_pytree_node(
        cls,
        flatten,
        unflatten,
        flatten_with_keys_fn=flatten_with_keys,
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        to_dumpable_context=lambda context: [list(context[0]), [list(pair) for pair in context[1]]],
        from_dumpable_context=lambda dumped: (tuple(dumped[0]), tuple((n, v) for n, v in dumped[1])),
    )


def closure_tensors(fn: Any, met: tuple[Any, ...] = ()) -> Iterator[Tensor]:
    """Tensors that a plain callable holds, as far as Python shows them.

    They are looked for in closure cells and partials, in the attributes of a callable object or of the one behind a
    method, and in a module's parameters and buffers; not in globals.
    """
    if torch.compiler.is_compiling():  # once it has shown a closure's cells, Dynamo cannot call the function any more
        return
    while isinstance(fn, functools.partial):
        yield from (value for value in (*fn.args, *fn.keywords.values()) if isinstance(value, Tensor))
        fn = fn.func
    if inspect.ismethod(fn):
        yield from _attribute_tensors(fn.__self__)
        return
    if not inspect.isroutine(fn):
        yield from _attribute_tensors(fn)
        return
    for cell in getattr(fn, "__closure__", None) or ():
        try:
            value = cell.cell_contents
        except ValueError:  # a cell that is not filled yet
            continue
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Structured):
            yield from value.tensors()
        elif inspect.isfunction(value) and value is not fn and not any(value is other for other in met):
            yield from closure_tensors(value, (*met, fn))


def _attribute_tensors(instance: Any) -> Iterator[Tensor]:
    if isinstance(instance, torch.nn.Module):
        yield from instance.parameters()
        yield from instance.buffers()
    else:
        yield from (value for value in getattr(instance, "__dict__", {}).values() if isinstance(value, Tensor))


def as_int(value: Any) -> Any:
    """A numpy integer as the int it is; anything else as it is."""
    if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0 and hasattr(value, "__index__"):
        return value if value.dtype.kind == "b" else operator.index(value)
    return value


def spell(value: Any) -> str:
    """A field or argument as it stands in a repr: tensors as dtype and shape, never their values."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if type(value) is tuple:
        return f"({', '.join(map(spell, value))}{',' * (len(value) == 1)})"
    return repr(value)
