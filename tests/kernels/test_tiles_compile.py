"""The kernels on tensor cores, compiled ahead of time: every function to machine code.

A call on the CPU is planned as it would be on a GPU, and what it would launch is compiled instead.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import pytest
import torch

import graphattn as ga
from graphattn import attention
from graphattn.graphs import windows
from graphattn.kernels import intervals, row_windows, tiles
from tests.kernels.compiled import Launched, compile_for
from tests.oracle import Case, draw, results

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="Triton is not installed, or it interprets",
)

WIDE, HALF, SHORT = torch.float32, torch.float16, torch.bfloat16
# By the generation of the GPU. Of a program, what it may take without asking for more; and of a
# thread, what ptxas may keep in memory to have room for more programs at a time.
SPILLED_BYTES = {8: 64, 9: 0, 10: 64}
SHARED_BYTES = {8: 99 * 1024, 9: 227 * 1024, 10: 227 * 1024}
WINDOW, GRID = ga.sliding_window(200, 40), ga.neighborhood((24, 24), 4)
GLOBAL = WINDOW | ga.hubs(200, [0])  # whose second intervals take twice as long to compile
SHAPES: dict[str, dict[str, Any]] = {
    "64": {"head_dim": 64},
    "128": {"head_dim": 128},
    "256": {"head_dim": 256},
    "64, bias": {"head_dim": 64, "bias": "tensor"},
    "128, bias": {"head_dim": 128, "bias": "tensor"},
    "grouped": {"head_dim": 64, "heads": 4, "kv_heads": 1, "normalizer": "sink", "softcap": 50.0},
    "grouped, bias": {"head_dim": 64, "heads": 4, "kv_heads": 1, "bias": "tensor", "softcap": 50.0},
    "13 and 3": {"head_dim": 13, "value_dim": 3, "normalizer": "sigmoid"},
}
# GPU, kernel, rows of a window (of which intervals have none), shape, dtype.
ALWAYS = [
    (90, "intervals", None, "64", SHORT),
    (90, "row_windows", 16, "64", SHORT),
    (90, "row_windows", 64, "128", SHORT),
]
SLOW = [
    *((90, "intervals", None, shape, SHORT) for shape in ("128", "grouped, bias")),
    (90, "row_windows", 64, "64, bias", SHORT),
    (90, "row_windows", 32, "128, bias", SHORT),
    (90, "row_windows", 16, "grouped", SHORT),
    (90, "row_windows", 32, "256", SHORT),
    (90, "intervals", None, "64", WIDE),
    (90, "row_windows", 16, "64", WIDE),
    (90, "intervals", None, "13 and 3", HALF),
    (90, "row_windows", 16, "13 and 3", HALF),
    (80, "intervals", None, "64, bias", SHORT),
    (80, "row_windows", 32, "64, bias", SHORT),
    (100, "intervals", None, "64, bias", SHORT),
    (100, "row_windows", 32, "64, bias", SHORT),
]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Launched]:
    """What was launched since."""
    seen: list[Launched] = []
    monkeypatch.setattr(tiles, "interpreted", lambda: True)
    monkeypatch.setattr(windows, "LONGEST", 1)
    for kernel in (intervals, row_windows):
        monkeypatch.setattr(
            kernel,
            "launch",
            lambda function, _, **arguments: seen.append(Launched(function, arguments)),
        )
    return seen


def machine_code(
    case: tuple[int, str, int | None, str, torch.dtype],
    launched: list[Launched],
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    """What the functions of a call become, by their name."""
    capability, kernel, size, shape, dtype = case
    for module in (intervals, row_windows):
        monkeypatch.setattr(module, "generation", lambda _: capability // 10)
    monkeypatch.setattr(row_windows, "best_size", lambda _: size)
    two = (capability, shape, dtype) in ((90, "64", SHORT), (90, "grouped, bias", SHORT))
    graph = GRID if kernel == "row_windows" else GLOBAL if two else WINDOW
    inputs = draw(Case(shape, graph, **SHAPES[shape]), dtype)
    results(inputs, attention(*inputs[:4], kernel=kernel, **inputs.options))
    return {each.function.__name__: compile_for(capability, each) for each in launched}


@pytest.mark.parametrize(
    "case", [*ALWAYS, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)], ids=str
)
def test_compiles(case, launched: list[Launched], monkeypatch: pytest.MonkeyPatch) -> None:
    """In registers, with products on tensor cores: by all warps of a group if rows are 64."""
    capability, kernel, size, shape, dtype = case
    found = machine_code(case, launched, monkeypatch)
    merged = {"merge_forward", "merge_sum"} if kernel == "row_windows" else set()
    assert set(found) == {"forward", "by_destination", "by_source", *merged}
    for name, code in found.items():
        spilled = code.stack + code.local
        assert spilled <= SPILLED_BYTES[capability // 10], f"{name} spills: {code}"
        assert code.shared <= SHARED_BYTES[capability // 10], f"{name}: {code}"
        if name in merged:
            continue
        assert (code.products > 0) == (dtype != WIDE), f"{name}: {code}"
        rows = (size or 64) * (4 if "grouped" in shape and name != "by_source" else 1)
        wide = rows >= 64 and not (kernel == "intervals" and shape == "13 and 3")
        if capability == 90 and dtype != WIDE and wide:
            assert code.warp_group_products == code.products, f"{name}: {code}"
