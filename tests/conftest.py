"""Options and settings of every test."""

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("short", max_examples=60, deadline=None, print_blob=False)
hypothesis.settings.register_profile("long", max_examples=3000, deadline=None, print_blob=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run randomised tests fifty times longer")


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.load_profile("long" if config.getoption("--long") else "short")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="chosen by --long"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
