"""Every kernel of the table over every case: it holds to the tolerance, or says why it can't."""

from __future__ import annotations

import pytest
import torch

from graphattn import attention, explain
from tests.oracle import CASES, DTYPES, KERNEL_NAMES, Case, assert_close, draw, expected, results


def refusal(kernel: str, inputs) -> str | None:
    """The reason why a kernel can't compute a call, None if it can."""
    try:
        explain(*inputs[:4], kernel=kernel, **inputs.options)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_holds_to_the_tolerance(kernel: str, case: Case, dtype: torch.dtype) -> None:
    inputs = draw(case, dtype)
    if (reason := refusal(kernel, inputs)) is not None:
        assert f'"{kernel}" can\'t compute this: ' in reason
        return
    plain, truth, size = expected(case, dtype)
    got = results(inputs, attention(*inputs[:4], kernel=kernel, **inputs.options))
    assert got["output"].dtype == dtype
    for name, number in got.items():
        factor = 1 if name == "output" else 3
        assert_close(name, number, plain[name], truth[name], factor=factor, size=size[name])
