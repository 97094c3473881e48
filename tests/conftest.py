import os

import hypothesis
import pytest
import torch

pytest.register_assert_rewrite("tests.graphs.agree")

# The same examples on every run: what fails is a bug, and fails again.
hypothesis.settings.register_profile("graphattn", max_examples=150, deadline=None, derandomize=True)
hypothesis.settings.load_profile("graphattn")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores already

torch.manual_seed(0)  # of what test modules draw as they are imported


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Every test draws the same numbers on every run, whatever ran before it."""
    torch.manual_seed(0)
