"""What `import graphattn` costs: nothing heavy that torch does not load anyway."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import {module}
print(*sys.modules)
"""
HEAVY = [
    "triton",
    "torch_geometric",
    "torch_scatter",
    "transformers",
    "accelerate",
    "safetensors",
    "matplotlib",
    "networkx",
    "scipy",
    "sklearn",
    "entmax",
    "faiss",
    "pandas",
    "torch._dynamo",
    "torch._inductor",
]


def modules_after(module: str) -> set[str]:
    program = [sys.executable, "-c", PROGRAM.format(module=module)]
    return set(subprocess.run(program, check=True, capture_output=True, text=True).stdout.split())


@pytest.fixture(scope="module")
def added() -> set[str]:
    return modules_after("graphattn") - modules_after("torch")


@pytest.fixture(scope="module")
def of_viz() -> set[str]:
    return modules_after("graphattn.viz")


@pytest.mark.parametrize("package", HEAVY)
def test_is_not_loaded(package: str, added: set[str]) -> None:
    loaded = {name for name in added if name == package or name.startswith(f"{package}.")}
    assert not loaded


@pytest.mark.parametrize("package", ["matplotlib", "networkx", "scipy"])
def test_pictures_load_what_draws_when_they_draw(package: str, of_viz: set[str]) -> None:
    assert "graphattn.viz.picture" in of_viz
    assert package not in of_viz


def test_loads_itself(added: set[str]) -> None:
    assert {"graphattn.attention", "graphattn.plan", "graphattn.kernels.reference"} <= added
