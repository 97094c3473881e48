"""The GPU kernel without a GPU: `interpreted.py` in a process where Triton interprets."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

# Run side by side where tests are.
PARTS = ["test_holds_to_the_tolerance", "not test_holds_to_the_tolerance"]


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_in_the_interpreter(part: str) -> None:
    outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    file = str(Path(__file__).with_name("interpreted.py"))
    options = ["-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-k", part]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, file],
        env={**outer, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
