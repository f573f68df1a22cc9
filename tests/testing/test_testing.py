"""``maskmod.testing``: counts against torch's own counters, messages, and nothing left behind."""

import doctest
import functools
import importlib
import inspect
import logging

import pytest
import torch
from torch._C._dynamo.eval_frame import _get_total_cache_entry_count
from torch._dynamo import convert_frame, eval_frame, pgo
from torch._dynamo import utils as dynamo_utils
from torch._dynamo.testing import CompileCounter

import maskmod.testing
from maskmod.errors import MaskTypeError, MaskValueError
from maskmod.testing import assert_max_graphs, assert_no_graph_breaks, count_graphs, watch_graphs

X = torch.ones(3)


def scale(x, n=2):
    return x * n


def read_item(x):
    return x * x.max().item()  # breaks here


def say(x):
    x = x + 1
    print("hello")  # breaks here
    return x * 2


def branch(x):
    if x.sum() > 0:  # breaks here
        return x * 2
    return x


def break_in_loop(x):
    for _ in range(2):
        x = x + 1
        torch._dynamo.graph_break()  # breaks here
    return x


def length(x, word):
    return x + len(word)


def two_breaks(x):
    x = say(x)
    return branch(x)


class Affine(torch.nn.Module):
    def __init__(self, n=1):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(n))

    def forward(self, x, flip=False):
        return -x * self.weight if flip else x * self.weight


class Noisy(torch.nn.Module):
    def forward(self, x):
        x = x + 1
        print("hello")  # breaks here
        return x * 2


class Shift:
    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return x + self.by

    def method(self, x, *, twice=False):
        return x + self.by * (1 + twice)

    @torch.compile(backend="eager")
    def compiled_method(self, x):
        return x + self.by


def breaking_line(fn):
    lines, start = inspect.getsourcelines(fn)
    return next(start + i for i, line in enumerate(lines) if "# breaks here" in line)


def failure(assertion, *args, **kwargs):
    with pytest.raises(AssertionError) as caught:
        assertion(*args, **kwargs)
    return str(caught.value)


CLEAN = {
    "function": (scale, (X,), {"n": 3}),
    "lambda": (lambda x: x + 1, (X,), {}),
    "keyword default": (lambda x, *, by=2: x + by, (X,), {}),
    "module": (Affine(), (X,), {"flip": True}),
    "method": (Shift(2).method, (X,), {"twice": True}),
    "callable object": (Shift(2), (X,), {}),
    "partial": (functools.partial(scale, n=4), (X,), {}),
    "builtin": (torch.add, (X, X), {}),
    "no tensor argument": (lambda n: torch.ones(n), (3,), {}),
    "nothing to compute": (lambda x: x, (X,), {}),
    "compiled function": (torch.compile(scale, backend="eager"), (X,), {"n": 3}),
    "compiled module": (torch.compile(Affine(), backend="eager"), (X,), {}),
    "compiled method": (Shift(2).compiled_method, (X,), {}),
    "nested vmap": (torch.vmap(torch.vmap(lambda i, j: i >= j, (None, 0)), (0, None)), (X, X), {}),
}


@pytest.mark.parametrize("case", CLEAN)
def test_clean_functions_pass(case):
    fn, args, kwargs = CLEAN[case]
    assert_no_graph_breaks(fn, *args, **kwargs)
    assert_max_graphs(functools.partial(fn, **kwargs), [args, args])


@pytest.mark.parametrize(
    ("fn", "where", "reason"),
    [
        (read_item, read_item, "Tensor.item()"),
        (say, say, "print"),
        (branch, branch, "Data-dependent branching"),
        (break_in_loop, break_in_loop, "torch._dynamo.graph_break()"),
        (Noisy(), Noisy.forward, "print"),
        (torch.compile(say, backend="eager"), say, "print"),
    ],
)
def test_a_break_names_its_reason_and_the_users_line(fn, where, reason, capsys):
    (found,) = count_graphs(fn, [(X,)]).breaks
    assert (found.file, found.line) == (__file__, breaking_line(where))
    assert found.function == where.__name__
    assert found.code.endswith("# breaks here") or found.code in inspect.getsource(where)
    assert reason in found.reason
    message = failure(assert_no_graph_breaks, fn, X)
    assert f"{__file__}:{found.line}" in message
    assert found.reason.splitlines()[0] in message
    assert "torch/_dynamo" not in message


def test_every_break_is_named_once(capsys):
    lines = [(b.file, b.line) for b in count_graphs(two_breaks, [(X,), (X.double(),)]).breaks]
    assert lines == [(__file__, breaking_line(say)), (__file__, breaking_line(branch))]


def test_a_break_in_another_file_names_that_file(tmp_path, monkeypatch):
    path = tmp_path / "maskmod_elsewhere.py"
    path.write_text("def inner(x):\n    x = x + 1\n    return x if x.sum() > 0 else -x\n")
    monkeypatch.syspath_prepend(tmp_path)
    elsewhere = importlib.import_module("maskmod_elsewhere")
    message = failure(assert_no_graph_breaks, lambda x: elsewhere.inner(x) * 2, X)
    assert f"{path}:3 in inner" in message


def test_a_break_in_torchs_code_or_ours_names_the_caller(capsys):
    (found,) = count_graphs(print, [(X,)]).breaks
    assert found.file == __file__
    assert "count_graphs(print" in found.code


@pytest.mark.parametrize("wrap", [lambda module: module, functools.partial(torch.compile, backend="eager")])
def test_hooks_of_a_module_are_seen(wrap, capsys):
    module = Affine()
    module.register_forward_hook(lambda *_: print("hook"))
    assert len(count_graphs(wrap(module), [(X,)]).breaks) == 1


def test_what_runs_without_any_graph_fails_both(capsys):
    def generator(x):
        yield x + 1

    assert count_graphs(break_in_loop, [(X,), (X,)]).eager_calls == [1, 2]
    for fn, said in ((break_in_loop, "1 eager calls"), (generator, "Dynamo traced nothing")):
        assert said in failure(assert_no_graph_breaks, fn, X)
        assert said in failure(assert_max_graphs, fn, [(X,)], max_graphs=5)


@pytest.mark.parametrize(
    ("calls", "guard", "change"),
    [
        ([(X, 3), (X, 4)], "n == 3", "n: 3 -> 4"),
        (
            [(X, 3), (torch.ones(5), 3)],
            "size mismatch at index 0. expected 3, actual 5",
            "x: float32[3] -> float32[5]",
        ),
        ([(X, 3), (X.double(), 3)], "dtype mismatch", "x: float32[3] -> float64[3]"),
        ([(X, 3), (X,)], "n == 3", "n: 3 -> absent"),
    ],
)
def test_a_recompile_names_its_call_the_guard_and_the_input(calls, guard, change):
    report = count_graphs(scale, [calls[0], calls[0], calls[1]])
    (recompile,) = report.recompiles
    assert (recompile.function, recompile.call, recompile.refused) == ("scale", 3, False)
    assert (recompile.file, recompile.line) == (__file__, inspect.getsourcelines(scale)[1])
    (line,) = recompile.guards
    assert line.startswith("not the graph of call 1: ")
    assert guard in line
    assert f"[{change}]" in line
    assert line in failure(assert_max_graphs, scale, [calls[0], calls[0], calls[1]])


def test_a_recompiled_module_goes_by_its_own_name_and_argument_names():
    (recompile,) = count_graphs(Affine(), [(X, False), (X, True)]).recompiles
    assert recompile.function == "Affine"
    assert "flip: False -> True" in recompile.guards[0]


def test_max_graphs_is_inclusive():
    calls = [(X, "a"), (X, "ab"), (X, "abc")]
    assert_max_graphs(length, calls, max_graphs=3)
    assert "3 graphs" in failure(assert_max_graphs, length, calls, max_graphs=2)


def test_dynamic_is_passed_on():
    calls = [(torch.ones(n),) for n in (3, 4, 5, 6)]
    assert [count_graphs(scale, calls, dynamic=d).graphs for d in (True, None, False)] == [1, 2, 4]
    assert_max_graphs(scale, calls, dynamic=True)


def test_the_recompile_limit_is_reported():
    calls = [(X, "a" * n) for n in range(11)] + [(X, "")]
    report = count_graphs(length, calls)
    assert (report.graphs, report.eager_calls) == (8, [9, 10, 11])
    assert [(r.call, r.refused) for r in report.recompiles] == [(n, n == 9) for n in range(2, 10)]
    assert report.recompiles[-1].function == "length"
    assert "recompile_limit is 8" in failure(assert_max_graphs, length, calls, max_graphs=100)


@pytest.mark.parametrize("fn", [scale, two_breaks, branch, length, break_in_loop, Noisy(), Affine()])
def test_counts_agree_with_torchs_own(fn, capsys):
    inputs = [X, torch.ones(4), torch.ones(5), torch.ones(2, 2)]
    calls = [(x, "ab") if fn is length else (x,) for x in inputs]
    torch._dynamo.reset()
    counter = CompileCounter()
    with watch_graphs() as watched:
        compiled = torch.compile(fn, backend=counter)
        for call in calls:
            compiled(*call)
    assert count_graphs(fn, calls).graphs == watched.graphs == counter.frame_count
    assert len(watched.breaks) == len(count_graphs(fn, calls).breaks)


def test_errors_of_the_function_come_through_unchanged():
    def refuse(x):
        x = x + 1
        raise error

    error = LookupError("mine")
    with pytest.raises(LookupError) as caught:
        assert_no_graph_breaks(refuse, X)
    assert caught.value is error
    with pytest.raises(RuntimeError, match="size of tensor a") as caught:
        count_graphs(torch.add, [(X, torch.ones(4))])
    assert type(caught.value) is RuntimeError
    with pytest.raises(TypeError, match="required positional argument"):
        count_graphs(scale, [()])


def test_bad_input():
    with pytest.raises(MaskValueError, match="no calls"):
        assert_max_graphs(scale, [])
    with pytest.raises(MaskTypeError, match="a call of type Tensor"):
        assert_max_graphs(scale, [X])  # pyright: ignore[reportArgumentType]
    with pytest.raises(MaskTypeError, match="3"):
        assert_no_graph_breaks(3)  # pyright: ignore[reportArgumentType]


def dynamo_memory():
    return {
        "config": torch._dynamo.config.save_config(),
        "counters": {name: dict(counts) for name, counts in dynamo_utils.counters.items()},
        "guard failures": {code: list(reasons) for code, reasons in dynamo_utils.guard_failures.items()},
        "breaks": list(dynamo_utils.graph_break_reasons),
        "backends": set(eval_frame.cached_backends),
        "codes": [code for ref in convert_frame.input_codes.seen if (code := ref()) is not None],
        "graphs": [_get_total_cache_entry_count(fn.__code__) for fn in (scale, say, branch, length)],
        "profile": (pgo._CODE_STATE, dict(pgo._CODE_STATE or {})),
        "handlers": list(logging.getLogger("torch.__trace").handlers),
        "modes": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_rng_state().tolist()),
    }


def test_nothing_is_left_behind(capsys):
    def refuse(x):
        raise LookupError("mine")

    torch.compile(scale, backend="eager")(X)  # the first compilation of a process sets handlers up
    before = dynamo_memory()
    for fn, calls in (
        (two_breaks, [(X,)]),
        (length, [(X, "a" * n) for n in range(10)]),
        (scale, [(torch.ones(n),) for n in (3, 4)]),
        (Noisy(), [(X,)]),
        (refuse, [(X,)]),
    ):
        try:
            count_graphs(fn, calls)
        except LookupError:
            assert fn is refuse
        after = dynamo_memory()
        assert [name for name in before if before[name] != after[name]] == []


def test_counts_do_not_depend_on_what_ran_before(capsys):
    calls = [(torch.ones(n),) for n in (3, 4, 5)]
    torch.compile(scale, backend="eager")(torch.ones(7))
    torch.compile(scale, backend="eager")(torch.ones(8))
    first, second = (count_graphs(scale, calls) for _ in range(2))
    assert first == second
    assert first.graphs == 2
    assert count_graphs(two_breaks, [(X,)]) == count_graphs(two_breaks, [(X,)])


def test_compiled_functions_keep_their_graphs(capsys):
    counter = CompileCounter()
    module = Affine()
    compiled = [torch.compile(fn, backend=counter) for fn in (scale, two_breaks, say, module)]
    for fn in compiled:
        fn(X)
    graphs = counter.frame_count
    for fn in (scale, two_breaks, say, module, *compiled):
        count_graphs(fn, [(X,), (torch.ones(4),)])
    for fn in compiled:
        fn(X)
    assert counter.frame_count == graphs


def test_compiled_functions_keep_their_room_for_more_graphs(capsys):
    counter = CompileCounter()
    compiled = torch.compile(branch, backend=counter)
    compiled(X)
    graphs = counter.frame_count
    for _ in range(9):  # each leaves the caller at the break and compiles ``branch`` as a frame of its own
        assert count_graphs(lambda x: branch(x) + 1, [(X,)]).graphs >= 2
    compiled(X.double())
    assert counter.frame_count == 2 * graphs


def test_watching_counts_every_backend_and_leaves_graphs_alone():
    prefill = torch.compile(lambda x, n: x * n, backend="aot_eager", dynamic=False)
    decode = torch.compile(lambda x: x - 1, backend="eager", dynamic=True)
    with watch_graphs() as warm_up:
        prefill(X, 2)
        assert warm_up.graphs == 1
        decode(X)
    with watch_graphs() as steady:
        for n in (3, 4, 5):
            prefill(X, 2)
            decode(torch.ones(n))
    with watch_graphs() as changed, watch_graphs() as inner:
        prefill(X, 3)
    assert (warm_up.graphs, steady.graphs, changed.graphs) == (2, 0, 1)
    assert steady.recompiles == []
    assert [(r.call, r.guards) for r in changed.recompiles] == [(0, (f"n == 2 (read at {__file__}:{here()})",))]
    assert inner == changed


def here():
    """The line of ``prefill``, where its guard on ``n`` comes from."""
    source, start = inspect.getsourcelines(test_watching_counts_every_backend_and_leaves_graphs_alone)
    return next(start + i for i, line in enumerate(source) if "lambda x, n" in line)


def test_watching_ends_with_the_block():
    handlers = list(logging.getLogger("torch.__trace").handlers)
    watching = watch_graphs()
    report = watching.__enter__()
    assert len(logging.getLogger("torch.__trace").handlers) == len(handlers) + 1
    assert not watching.__exit__(LookupError, LookupError(), None)
    torch.compile(lambda x: x * 3, backend="eager")(X)
    assert report.graphs == 0
    assert logging.getLogger("torch.__trace").handlers == handlers


def test_examples_run():
    assert doctest.testmod(maskmod.testing).failed == 0
