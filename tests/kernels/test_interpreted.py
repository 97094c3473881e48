"""The GPU kernels without a GPU: `interpreted*.py`, in processes where Triton interprets."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="Triton is not installed, or it interprets",
)

# Of files, these tests: run side by side where tests are.
PARTS = [
    (["interpreted.py"], "test_holds_to_the_tolerance"),
    (["interpreted.py"], "not test_holds_to_the_tolerance"),
    (["interpreted_intervals.py"], ""),
    (["interpreted_row_windows.py", "interpreted_tiles.py"], ""),
]


@pytest.mark.slow
@pytest.mark.parametrize(("files", "part"), PARTS)
def test_in_the_interpreter(files: list[str], part: str) -> None:
    outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    paths = [str(Path(__file__).with_name(file)) for file in files]
    options = ["-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--show-capture=no", "-k", part]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *paths],
        env={**outer, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
