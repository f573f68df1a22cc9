"""Every example in a docstring runs as printed."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import maskmod

MODULES = [
    info.name
    for info in pkgutil.walk_packages(maskmod.__path__, "maskmod.")
    if not info.name.endswith("__main__") and not info.name.startswith("maskmod.testing")  # has its own
]


@pytest.mark.parametrize("name", ["maskmod", *MODULES])
def test_examples(name: str):
    module = importlib.import_module(name)
    finder = doctest.DocTestFinder(exclude_empty=True)
    for example in finder.find(module, globs=vars(module) | {"torch": torch}):
        if example.examples:
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
            printed: list[str] = []
            runner.run(example, out=printed.append, clear_globs=False)
            torch._dynamo.reset()  # while the globals live: Dynamo's clean-up of what an example compiled needs them
            assert not runner.failures, "".join(printed)


def test_public_functions_have_an_example():
    without = [
        name
        for name in maskmod.__all__
        if callable(getattr(maskmod, name)) and ">>>" not in (getattr(maskmod, name).__doc__ or "")
    ]
    assert set(without) <= {"AttentionPlan", "BlockClasses", "Choice", "NotSpans", "Spans", "Tiles", "register_backend"}
