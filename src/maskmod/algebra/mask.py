"""Masks as objects: the `Mask` base class and the boolean nodes.

A mask is a callable ``(b, h, q_idx, kv_idx) -> bool``. This module gives it operators, a readable repr and a size
check. It refuses to know any particular mask, any backend, and how a mask is evaluated.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, overload

import torch
from torch.utils import _pytree as pytree

from maskmod.algebra.structure import Structured, as_int, closure_tensors, register_pytree, spell, structure
from maskmod.errors import MaskTypeError, TruthValueError

if TYPE_CHECKING:
    from typing_extensions import Self, dataclass_transform
else:

    def dataclass_transform(**_):  # read by type checkers only
        return lambda cls: cls


__all__ = [
    "And",
    "Func",
    "Index",
    "Mask",
    "MaskMod",
    "Not",
    "Or",
    "Xor",
    "as_mask",
    "conjuncts",
    "fold",
    "leaves",
    "mask_mod",
    "same_structure",
]

Index: TypeAlias = Any
"""One index: a Python int, a 0-d tensor, or whatever a reader substitutes for it."""

MaskMod: TypeAlias = Callable[[Index, Index, Index, Index], Any]
"""Any callable ``(b, h, q_idx, kv_idx) -> bool``; a `Mask` is one."""


def same_structure(a: MaskMod, b: MaskMod) -> bool:
    """Whether two masks differ at most in their tensors: such masks share one compiled graph.

    >>> from maskmod import document
    >>> same_structure(document(torch.zeros(8).long()), document(torch.ones(8).long()))
    True
    """
    return structure(as_mask(a)) == structure(as_mask(b))


# ------------------------------------------------------------------------------------------------- the base class


def _taking_numpys_ints(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def __init__(self: Mask, *args: Any, **kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            init(self, *args, **kwargs)
        else:
            init(self, *map(as_int, args), **{name: as_int(value) for name, value in kwargs.items()})

    return __init__


@dataclass_transform(frozen_default=True, eq_default=False)
class Mask(Structured):
    """A predicate ``(b, h, q_idx, kv_idx) -> bool`` that composes with ``& | ^ ~``; True means visible.

    A subclass becomes a frozen dataclass, without the decorator, whose fields are tensors (dynamic: new contents never
    recompile) or anything else (structure: hashable, compared with ``==``). It writes ``__call__`` and nothing more::

        >>> class Diagonal(Mask):
        ...     width: int
        ...
        ...     def __call__(self, b, h, q_idx, kv_idx):
        ...         return abs(q_idx - kv_idx) < self.width
        >>> band = Diagonal(2)
        >>> band(0, 0, 5, 4), (~band)(0, 0, 5, 4)
        (True, False)
        >>> band | (lambda b, h, q_idx, kv_idx: kv_idx == 0)
        Diagonal(2) | <lambda>

    Two masks are equal when they have the same types, the same structure and the same tensor *objects*; tensor values
    are never compared. ``hash`` agrees. A mask is a pytree whose leaves are its tensors.

    Negation is written ``mask ^ True`` inside a compiled graph, where Dynamo cannot trace ``~`` on user objects.
    """

    _precedence: ClassVar[int] = 5  # an atom binds tighter than any operator
    _name: ClassVar[str | None] = None  # the constructor's name in a repr, where it differs from the class's

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        # A generated __repr__ guards against recursion by thread id, which Dynamo cannot trace; a generated __eq__
        # compares tensors by value. Both are written below instead.
        dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
        cls.__init__ = _taking_numpys_ints(cls.__init__)
        cls._fields = tuple(field.name for field in dataclasses.fields(cls))  # pyright: ignore[reportArgumentType]
        taken = sorted(name for name in cls._fields if hasattr(Mask, name))
        if taken:
            seen = f"every mask has an attribute {taken[0]!r} of its own"
            raise MaskTypeError(f"class {cls.__qualname__} with a field {taken[0]!r}", seen, "Rename the field.")
        if "_name" not in vars(cls):
            cls._name = None  # a subclass is not spelled as its base
        register_pytree(cls)

    @overload
    def __call__(self, b: int, h: int, q_idx: int, kv_idx: int) -> bool: ...
    @overload
    def __call__(self, b: Index, h: Index, q_idx: Index, kv_idx: Index) -> Any: ...
    def __call__(self, b: Index, h: Index, q_idx: Index, kv_idx: Index) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must define __call__(self, b, h, q_idx, kv_idx)")

    # -- algebra ----------------------------------------------------------------------------------------------

    def __and__(self, other: MaskMod) -> Mask:
        return And(self, as_mask(other))

    def __rand__(self, other: MaskMod) -> Mask:
        return And(as_mask(other), self)

    def __or__(self, other: MaskMod) -> Mask:
        return Or(self, as_mask(other))

    def __ror__(self, other: MaskMod) -> Mask:
        return Or(as_mask(other), self)

    def __xor__(self, other: MaskMod | bool) -> Mask:
        if other is True:
            return Not(self)
        if other is False:
            return self
        return Xor(self, as_mask(other))

    def __rxor__(self, other: MaskMod | bool) -> Mask:
        if isinstance(other, bool):
            return self ^ other
        return Xor(as_mask(other), self)

    def __invert__(self) -> Mask:
        return Not(self)

    def __bool__(self) -> bool:
        raise TruthValueError(
            f"bool({self!r})",
            "a mask has no single truth value; `and`, `or`, `not` and `if` ask for one",
            "Write `&` for `and`, `|` for `or`, `~mask` (in a compiled graph `mask ^ True`) for `not`.",
        )

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
        parts = [
            f"{field.name}=" * (field.kw_only is True) + spell(getattr(self, field.name))
            for field in fields
            if field.init
        ]
        return f"{self._name or type(self).__name__}({', '.join(parts)})"

    if TYPE_CHECKING:  # `maskmod.pictures`, which lies below this room, gives it

        def _repr_html_(self) -> str: ...

    # -- what readers ask -------------------------------------------------------------------------------------

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        """Raise if a field cannot serve these sizes: a table too short, say. Values of tensors are never read.

        None marks an index that reaches the mask through a tensor, so that its range is not known.
        """
        for part in self._parts():
            if isinstance(part, Mask):
                part.check(B, H, q_len, kv_len)

    def to(self, device: torch.device | str) -> Self:
        """The same mask with every tensor on ``device``; an equal one where nothing moves.

        Raises:
            MaskTypeError: a plain function, method or module holds a tensor that would stay behind.
        """
        target = torch.empty(0, device=device).device
        functions = (part for part in self._parts() if callable(part) and not isinstance(part, Mask))
        if any(tensor.device != target for fn in functions for tensor in closure_tensors(fn)):
            raise MaskTypeError(
                f"{self!r}.to({str(device)!r})",
                "the function captured a tensor that lives on another device, and only fields are moved",
                "Hold the tensor in a field of a Mask subclass, or build the function again from moved tensors.",
            )
        return pytree.tree_map(
            lambda part: part.to(device),
            self,
            is_leaf=lambda node: isinstance(node, Mask) and node is not self,  # each part moves itself, or refuses
        )


class _Boolean(Mask):
    """Masks and an operator. Long chains are walked, never recursed into: servers write thousands of terms."""

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        for part in leaves(self):
            part.check(B, H, q_len, kv_len)

    def to(self, device: torch.device | str) -> Self:
        if type(self) not in _BOOLEANS:  # a subclass may hold more
            return super().to(device)
        return fold(self, lambda leaf: leaf.to(device), lambda kind, parts: kind(*parts))

    def __repr__(self) -> str:
        # The right operand of an equal precedence keeps its parentheses: a & (b & c) is another tree than a & b & c.
        pieces: list[str] = []
        open_: list[Mask | str] = [self]
        while open_:
            part = open_.pop()
            if isinstance(part, str):
                pieces.append(part)
            elif part is not self and type(part) not in _BOOLEANS:
                pieces.append(repr(part))
            elif isinstance(part, Not):
                open_ += _enclosed(part.mask, part.mask._precedence < part._precedence)
                open_.append("~")
            elif isinstance(part, _Binary):
                open_ += _enclosed(part.right, part.right._precedence <= part._precedence)
                open_.append(f" {part._symbol} ")
                open_ += _enclosed(part.left, part.left._precedence < part._precedence)
        return "".join(pieces)


def _enclosed(mask: Mask, parentheses: bool) -> list[Mask | str]:
    return [")", mask, "("] if parentheses else [mask]  # last piece first


class _Binary(_Boolean):
    """Two masks and an operator; the repr keeps the operands in the order they were written."""

    left: Mask
    right: Mask

    _symbol: ClassVar[str] = "?"


class And(_Binary):
    """Visible where both masks are."""

    _precedence, _symbol = 3, "&"

    def __call__(self, b, h, q_idx, kv_idx):
        return _call(self.left, b, h, q_idx, kv_idx) & _call(self.right, b, h, q_idx, kv_idx)


class Xor(_Binary):
    """Visible where exactly one of the masks is."""

    _precedence, _symbol = 2, "^"

    def __call__(self, b, h, q_idx, kv_idx):
        return _call(self.left, b, h, q_idx, kv_idx) ^ _call(self.right, b, h, q_idx, kv_idx)


class Or(_Binary):
    """Visible where at least one of the masks is."""

    _precedence, _symbol = 1, "|"

    def __call__(self, b, h, q_idx, kv_idx):
        return _call(self.left, b, h, q_idx, kv_idx) | _call(self.right, b, h, q_idx, kv_idx)


class Not(_Boolean):
    """Visible where the mask is hidden."""

    mask: Mask

    _precedence = 4

    def __call__(self, b, h, q_idx, kv_idx):
        # `~True` is -2 on Python ints; `^ True` is right on ints, tensors and abstract scalars alike.
        return _call(self.mask, b, h, q_idx, kv_idx) ^ True


_BOOLEANS = (And, Or, Xor, Not)  # exactly these: a subclass may say something else than its base


def fold(mask: Mask, leaf: Callable[[Mask], Any], join: Callable[[type, list], Any]) -> Any:
    """A value of every mask between the operators, joined along them from the bottom up, without recursion.

    `join(kind, values)` gets `And`, `Or`, `Xor` or `Not`, and one value for each operand.

    >>> from maskmod import causal, prefix
    >>> fold(causal() & ~prefix(2), lambda mask: 1, lambda kind, values: sum(values))
    2
    """
    open_: list[tuple[Mask, bool]] = [(mask, False)]
    values: list[Any] = []
    while open_:
        node, ready = open_.pop()
        kind = type(node)
        if kind not in _BOOLEANS:
            values.append(leaf(node))
        elif isinstance(node, Not):
            if ready:
                values.append(join(kind, [values.pop()]))
            else:
                open_ += [(node, True), (node.mask, False)]
        elif isinstance(node, _Binary):
            if ready:
                right, left = values.pop(), values.pop()
                values.append(join(kind, [left, right]))
            else:
                open_ += [(node, True), (node.right, False), (node.left, False)]
    return values[0]


def _call(mask: Mask, b: Index, h: Index, q_idx: Index, kv_idx: Index) -> Any:
    if type(mask) not in _BOOLEANS:
        return mask(b, h, q_idx, kv_idx)

    def join(kind: type, values: list) -> Any:
        if kind is Not:
            return values[0] ^ True
        left, right = values
        return left & right if kind is And else left | right if kind is Or else left ^ right

    return fold(mask, lambda leaf: leaf(b, h, q_idx, kv_idx), join)


def leaves(mask: Mask) -> Iterator[Mask]:
    """The masks that operators join, from left to right, whatever the operators; any other mask is its own only one."""
    open_ = [mask]
    while open_:
        node = open_.pop()
        if isinstance(node, _Binary) and (node is mask or type(node) in _BOOLEANS):
            open_ += [node.right, node.left]
        elif isinstance(node, Not) and (node is mask or type(node) in _BOOLEANS):
            open_.append(node.mask)
        else:
            yield node


def conjuncts(mask: Mask) -> Iterator[Mask]:
    """The masks that an intersection is made of, from left to right; any other mask is its own only one."""
    open_ = [mask]
    while open_:
        node = open_.pop()
        if type(node) is And:  # a subclass may say something else than its base
            open_ += [node.right, node.left]
        else:
            yield node


class Func(Mask):
    """A plain function as a mask; compared by identity, pickled by its importable name."""

    fn: MaskMod

    def __call__(self, b, h, q_idx, kv_idx):
        return self.fn(b, h, q_idx, kv_idx)

    def __repr__(self) -> str:
        return getattr(self.fn, "__qualname__", None) or repr(self.fn)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # as Python does for functions

    def __reduce__(self):
        fn = self.fn
        while isinstance(fn, functools.partial):
            fn = fn.func
        name = getattr(fn, "__qualname__", "")
        if "<lambda>" in name or "<locals>" in name:
            raise MaskTypeError(
                f"pickle of {self!r}",
                "a lambda or a local function has no importable name",
                "Define it with `def` at the top of a module, or as a subclass of Mask.",
            )
        if _importable(getattr(fn, "__module__", None), name) == self:  # `mask_mod` as a decorator took the name
            return _importable, (fn.__module__, name)
        return Func, (self.fn,)


def _importable(module: str | None, name: str) -> Any:
    found: Any = sys.modules.get(module or "") or importlib.import_module(module or "builtins")
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def mask_mod(fn: MaskMod) -> Mask:
    """Wrap a plain function ``(b, h, q_idx, kv_idx) -> bool`` as a `Mask`; also a decorator.

    Every entrance of the library does this by itself; call it to use ``& | ^ ~`` on two plain functions.

    >>> @mask_mod
    ... def diagonal(b, h, q_idx, kv_idx):
    ...     return q_idx == kv_idx
    >>> (~diagonal)(0, 0, 3, 3)
    False

    Raises:
        MaskTypeError: ``fn`` is not callable, or cannot take four positional arguments.
    """
    return as_mask(fn)


def as_mask(mask: MaskMod) -> Mask:
    """``mask`` itself if it is a `Mask`, a callable wrapped in `Func`, an error for anything else."""
    if isinstance(mask, Mask):
        return mask
    if not callable(mask):
        raise MaskTypeError(
            f"{spell(mask)} used as a mask",
            f"it has type {type(mask).__name__} and is no callable (b, h, q_idx, kv_idx) -> bool",
            "A precomputed table becomes a mask with `lambda b, h, q_idx, kv_idx: table[q_idx, kv_idx]`.",
        )
    if not torch.compiler.is_compiling():  # a signature cannot be inspected inside a graph, only by an eager caller
        _check_signature(mask)
    return Func(mask)


def _check_signature(fn: MaskMod) -> None:
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # builtins hide theirs
        return
    try:
        signature.bind(None, None, None, None)
    except TypeError:
        name = getattr(fn, "__name__", repr(fn))
        todo = "Write a function of (b, h, q_idx, kv_idx)."
        if (
            not signature.parameters
            or inspect.isclass(fn)
            or (getattr(fn, "__module__", "") or "").startswith("maskmod")
        ):
            todo += f" If {name} builds a mask, call it: {name}(...)."
        raise MaskTypeError(
            f"{name} used as a mask", f"its signature is {name}{signature}, not four positional indices", todo
        ) from None
