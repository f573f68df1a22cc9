"""Checks of what ``torch.compile`` makes of a function: graph breaks, graphs, recompiles, and why.

This module knows nothing about masks, about speed, or about whether a compiled result is right.
"""

from __future__ import annotations

import inspect
import reprlib
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import indent
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch._dynamo.eval_frame import OptimizedModule, innermost_fn
from torch._dynamo.exc import TorchDynamoException

from maskmod._torch.dynamo_trace import GraphBreak, GraphReport, Recompile, blank_dynamo, listening
from maskmod._torch.workarounds import isolated
from maskmod.errors import MaskTypeError, MaskValueError
from maskmod.testing.cures import cure_of_break, cure_of_guard

__all__ = [
    "Explanation",
    "GraphBreak",
    "GraphReport",
    "Recompile",
    "assert_max_graphs",
    "assert_no_graph_breaks",
    "count_graphs",
    "explain_graph_breaks",
    "outputs_and_graphs",
    "watch_graphs",
]


def assert_no_graph_breaks(fn: Callable, *args: Any, dynamic: bool | None = None, **kwargs: Any) -> None:
    """Fail unless ``fn(*args, **kwargs)`` compiles without a graph break; the message names every break.

    ``fn`` and ``dynamic`` are those of :func:`count_graphs`. Use ``functools.partial`` for a ``fn`` that
    itself takes a keyword ``dynamic``.

    Raises:
        AssertionError: with each break's reason and the file and line of the code that caused it.

    >>> import torch
    >>> assert_no_graph_breaks(lambda x, n: x.relu() * n, torch.ones(3), n=2)
    """
    __tracebackhide__ = True
    report = _count(fn, [(args, kwargs)], dynamic)
    if report.breaks or not report.frames:
        raise AssertionError(f"assert_no_graph_breaks({_name(fn)}, ...): {_seen(report)}.\n{Explanation(report)}")


def assert_max_graphs(
    fn: Callable, calls: Sequence[tuple], max_graphs: int = 1, *, dynamic: bool | None = None
) -> None:
    """Fail if calling ``fn`` with each argument tuple of ``calls`` takes more than ``max_graphs`` graphs.

    A call that ran eagerly fails too, however few the graphs. ``fn``, ``calls`` and ``dynamic`` are those of
    :func:`count_graphs`.

    Raises:
        AssertionError: with every break, and for every recompile its call and the guards that failed.

    >>> import torch
    >>> assert_max_graphs(lambda x: x + 1, [(torch.ones(n),) for n in (3, 4, 5)], dynamic=True)
    """
    __tracebackhide__ = True
    calls = list(calls)
    report = count_graphs(fn, calls, dynamic=dynamic)
    if report.graphs > max_graphs or report.eager_calls or not report.frames:
        raise AssertionError(
            f"assert_max_graphs({_name(fn)}, {len(calls)} calls, max_graphs={max_graphs}): {_seen(report)}. "
            f"Keep changing values in tensors, and changing lengths dynamic (dynamic=True).\n{Explanation(report)}"
        )


@dataclass(frozen=True)
class Explanation:
    """A report with a likely cure beside each break and each recompile; ``str()`` is what to read."""

    report: GraphReport

    def __str__(self) -> str:
        report = self.report
        counts = len(report.breaks), len(report.recompiles)
        lines = ["graphs: {}, graph breaks: {}, recompiles: {}".format(report.graphs, *counts)]
        for each in report.breaks:
            lines += [indent(f"graph break: {each}", "  "), f"      likely cure: {cure_of_break(each.reason)}"]
        for each in report.recompiles:
            cures = dict.fromkeys(cure_of_guard(guard) for guard in each.guards[:3])
            lines.append(indent(f"recompile: {each}", "  "))
            lines += [f"      likely cure: {cure}" for cure in cures]
        if report.eager_calls:
            lines.append(f"  calls that ran eagerly, without any graph: {report.eager_calls}")
        return "\n".join(lines)


def explain_graph_breaks(
    fn: Callable, *args: Any, calls: Sequence[tuple] = (), dynamic: bool | None = None, **kwargs: Any
) -> Explanation:
    """Why ``fn(*args, **kwargs)`` is not one graph: each break with its reason, the user's line and a likely cure.

    Nothing is asserted. ``fn`` and ``dynamic`` are those of :func:`count_graphs`.

    Args:
        calls: argument tuples of further calls; the guard of each recompile that they take is explained too.

    >>> import torch
    >>> print(explain_graph_breaks(lambda x: x * 2, torch.ones(3)))
    graphs: 1, graph breaks: 0, recompiles: 0
    """
    return Explanation(_count(fn, [(args, kwargs), *((call, {}) for call in calls)], dynamic))


def count_graphs(fn: Callable, calls: Sequence[tuple], *, dynamic: bool | None = None) -> GraphReport:
    """Compile ``fn`` afresh, call it with each argument tuple, and report graphs, breaks and recompiles.

    Args:
        fn: a function, bound method, ``nn.Module`` or other callable. Of what ``torch.compile`` returned, the
            function inside is compiled anew: the graphs it has are neither counted nor touched.
        calls: tuples of positional arguments, at least one. ``functools.partial`` carries keywords.
        dynamic: as in ``torch.compile``.

    Tracing is what is counted; the graphs run through torch's eager kernels. For a count under inductor, or
    over a program's own compiled functions, see :func:`watch_graphs`. What Dynamo compiled before has no
    influence; its caches, counters and shape profiles are left as they were. Errors of ``fn`` come through
    unchanged.

    Raises:
        MaskTypeError: ``fn`` is not callable, or a call is not a tuple.
        MaskValueError: there are no calls.

    >>> import torch
    >>> report = count_graphs(lambda x, mode: x * len(mode), [(torch.ones(3), "ab"), (torch.ones(3), "abc")])
    >>> report.graphs, report.recompiles[0].call
    (2, 2)
    >>> report.recompiles[0].guards[0]  # doctest: +ELLIPSIS
    "not the graph of call 1: mode == 'ab' (read at ...) [mode: 'ab' -> 'abc']"
    """
    calls = list(calls)
    if not calls:
        raise MaskValueError(f"count_graphs({_name(fn)}, [])", "no calls", "Give at least one tuple.")
    for call in calls:
        if not isinstance(call, tuple):
            raise MaskTypeError(
                f"count_graphs({_name(fn)}, calls)",
                f"a call of type {type(call).__name__}",
                "Each call is a tuple of arguments: [(x,), (y,)].",
            )
    return _count(fn, [(call, {}) for call in calls], dynamic)


def outputs_and_graphs(
    fn: Callable, calls: Sequence[tuple], *, dynamic: bool | None = None
) -> tuple[list, GraphReport]:
    """What ``fn`` returned, compiled afresh, for each argument tuple, and the report of :func:`count_graphs`."""
    outputs: list = []
    report = _count(fn, [(call, {}) for call in calls], dynamic, outputs)
    return outputs, report


@contextmanager
def watch_graphs() -> Iterator[GraphReport]:
    """Count the graphs that any ``torch.compile`` of this process makes inside the block, under any backend.

    The report fills while the block runs. Nothing is compiled that would not be outside, and all graphs stay.

    >>> import torch
    >>> step = torch.compile(lambda x: x + 1, backend="eager", dynamic=True)
    >>> with watch_graphs() as warm_up:
    ...     _ = step(torch.ones(3))
    >>> with watch_graphs() as afterwards:
    ...     _ = step(torch.ones(4)), step(torch.ones(5))
    >>> warm_up.graphs, afterwards.graphs, len(afterwards.recompiles)
    (1, 0, 0)
    """
    with listening() as trace:
        yield trace.report


def _count(
    fn: Callable, calls: list[tuple[tuple, dict[str, Any]]], dynamic: bool | None, outputs: list | None = None
) -> GraphReport:
    if not callable(fn):
        written = f"count_graphs({reprlib.repr(fn)}, ...)"
        raise MaskTypeError(written, f"a {type(fn).__name__}", "Give something to call.")
    plain = _uncompiled(fn)
    runs = 0

    def backend(graph: torch.fx.GraphModule, _inputs: list) -> Callable:
        def run(*inputs: Any) -> Any:
            nonlocal runs
            runs += 1
            return graph.forward(*inputs)

        return run

    options: dict[str, Any] = {"backend": backend, "dynamic": dynamic}
    options |= isolated()  # functions met after a break keep their own code objects
    with blank_dynamo(backend), listening() as trace:
        compiled, report = torch.compile(_with_own_code(plain), **options), trace.report
        for number, (args, kwargs) in enumerate(calls, 1):
            trace.inputs.append(_describe(plain, args, kwargs))
            runs_before = runs
            answer = _call(compiled, plain, args, kwargs)
            if outputs is not None:
                outputs.append(answer)
            # Without a break or a refusal, a call without a graph had nothing to compute.
            if runs == runs_before and (report.breaks or any(each.refused for each in report.recompiles)):
                report.eager_calls.append(number)
    return report


def _call(compiled: Callable, plain: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    try:
        return compiled(*args, **kwargs)
    except TorchDynamoException as error:
        wrapped = error
    # An error met while tracing arrives wrapped in Dynamo's; the function itself raises its own.
    plain(*args, **kwargs)
    raise wrapped


def _uncompiled(fn: Callable) -> Callable:
    if isinstance(fn, types.MethodType):
        return types.MethodType(_uncompiled(fn.__func__), fn.__self__)
    if isinstance(fn, OptimizedModule):
        return fn._orig_mod  # innermost_fn would give its forward, without hooks
    return innermost_fn(fn)


def _with_own_code(fn: Callable) -> Callable:
    """``fn`` with a new code object: Dynamo keys its caches by code, so nobody else's graphs are met."""
    if isinstance(fn, types.MethodType):
        return types.MethodType(_with_own_code(fn.__func__), fn.__self__)
    if not isinstance(fn, types.FunctionType):
        return _with_own_code(_entry(fn))
    code, defaults = fn.__code__.replace(), fn.__defaults__
    copy = types.FunctionType(code, fn.__globals__, fn.__name__, defaults, fn.__closure__)
    copy.__kwdefaults__ = fn.__kwdefaults__
    copy.__dict__.update(fn.__dict__)
    return copy


def _entry(fn: Callable) -> Callable:
    def entry(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    entry.__code__ = entry.__code__.replace(co_name=_name(fn))  # the name that recompiles are reported under
    return entry


def _describe(fn: Callable, args: tuple, kwargs: dict[str, Any]) -> dict[str, str]:
    """Every leaf of the arguments by name: ``{"x": "float32[3]", "sizes[0]": "4"}``."""
    try:
        signature = inspect.signature(fn.forward if isinstance(fn, torch.nn.Module) else fn)
        named = dict(signature.bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):  # a builtin without a signature, or a call that fn will refuse itself
        named = {"args": args, **kwargs}
    return {
        name + pytree.keystr(path): _describe_leaf(leaf)
        for name, value in named.items()
        for path, leaf in pytree.tree_flatten_with_path(value)[0]
    }


def _describe_leaf(leaf: Any) -> str:
    if not isinstance(leaf, torch.Tensor):
        return reprlib.repr(leaf)
    text = f"{leaf.dtype}{list(leaf.shape)}".removeprefix("torch.")
    return text + " requires_grad" * leaf.requires_grad + f" on {leaf.device}" * (not leaf.is_cpu)


def _seen(report: GraphReport) -> str:
    if not report.frames:
        return "Dynamo traced nothing, as for a generator function"
    return f"{report.graphs} graphs, {len(report.breaks)} graph breaks, {len(report.eager_calls)} eager calls"


def _name(fn: Any) -> str:
    return getattr(fn, "__qualname__", type(fn).__qualname__)
