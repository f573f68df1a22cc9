"""Every test of this suite starts with nothing compiled."""

import pytest
import torch


@pytest.fixture(autouse=True)
def blank_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
