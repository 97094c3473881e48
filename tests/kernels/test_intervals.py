"""The kernel for intervals without a GPU: interpreted, compiled ahead of time, and planned."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import graphattn as ga
from graphattn import attention
from graphattn.kernels import intervals, tiles
from graphattn.kernels.problem import Problem
from graphattn.normalizers import softmax
from graphattn.plan import KERNELS, choose
from graphattn.scores import Dot
from tests.kernels.compiled import Launched, compile_for
from tests.oracle import Case, draw, results

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="Triton is not installed, or it interprets",
)

WIDE, HALF, SHORT = torch.float32, torch.float16, torch.bfloat16


@pytest.mark.slow
def test_in_the_interpreter() -> None:
    outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    file = str(Path(__file__).with_name("interpreted_intervals.py"))
    options = ["-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--show-capture=no"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, file],
        env={**outer, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


# --- compiled ahead of time -----------------------------------------------------------------------

# Of a program, without asking for more, by the generation of the GPU.
SHARED_BYTES = {8: 99 * 1024, 9: 227 * 1024, 10: 227 * 1024}
SHAPES = {
    "64": {"head_dim": 64},
    "128": {"head_dim": 128},
    "grouped, sink, soft-capping, 64": {
        "head_dim": 64,
        "kv_heads": 1,
        "normalizer": "sink",
        "softcap": 50.0,
    },
    "13 and 3": {"head_dim": 13, "value_dim": 3},
}
COMPILED = [
    (90, "64", SHORT),
    (90, "128", SHORT),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [
            (80, "64", SHORT),
            (80, "128", SHORT),
            (100, "64", SHORT),
            (100, "128", SHORT),
            (90, "64", WIDE),
            (90, "13 and 3", HALF),
            (90, "grouped, sink, soft-capping, 64", SHORT),
        ]
    ),
]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Launched]:
    """What was launched since."""
    seen: list[Launched] = []
    monkeypatch.setattr(tiles, "interpreted", lambda: True)
    monkeypatch.setattr(
        intervals,
        "launch",
        lambda function, _, **arguments: seen.append(Launched(function, arguments)),
    )
    return seen


@pytest.mark.parametrize(("capability", "name", "dtype"), COMPILED, ids=str)
def test_compiles(
    capability: int,
    name: str,
    dtype: torch.dtype,
    launched: list[Launched],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In registers alone, and half types for tensor cores."""
    monkeypatch.setattr(intervals, "generation", lambda _: capability // 10)
    inputs = draw(Case(name, ga.sliding_window(200, 40), **SHAPES[name]), dtype)
    results(inputs, attention(*inputs[:4], kernel="intervals", **inputs.options))
    names = [each.function.__name__ for each in launched]
    assert names == ["forward", "by_destination", "by_source"]
    for each in launched:
        found = compile_for(capability, each)
        assert (found.stack, found.local) == (0, 0), f"{each.function.__name__} spills: {found}"
        assert found.shared <= SHARED_BYTES[capability // 10], f"{each.function.__name__}: {found}"
        assert (found.products > 0) == (dtype != WIDE), f"{each.function.__name__}: {found}"


# --- planned --------------------------------------------------------------------------------------

DOCUMENTS = ga.batch([ga.causal(n) for n in (300, 17, 120, 64, 5, 1, 210)])
PICKS = [
    (ga.complete(64), "dense"),
    (ga.causal(5000), "dense"),
    (ga.sliding_window(4096, 64), "intervals"),
    (ga.causal(4096) & ga.sliding_window(4096, 64), "intervals"),
    (ga.prefix(600, 100), "intervals"),
    (DOCUMENTS, "intervals"),
    (ga.batch([ga.causal(60)] * 9), "blocks"),
    (ga.batch([ga.sliding_window(500, 40), ga.causal(70)]), "intervals"),
    (ga.causal(5000).rows(100, 164), "intervals"),
    (ga.sliding_window(40_000, 2), "triton"),
    (ga.expander(4000, 4), "triton"),
]


@pytest.mark.parametrize(("graph", "kernel"), PICKS, ids=lambda part: str(part)[:60])
def test_is_taken_on_a_gpu(graph: ga.Graph, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a table in which the kernels for a GPU run here, and that for the CPU does not."""
    for entry in ("tiles", "triton"):
        monkeypatch.setattr(f"graphattn.kernels.{entry}.interpreted", lambda: True)
    decline = {"intervals": intervals.declines_graph, "triton": lambda _: None}
    table = [
        replace(entry, declines=decline.get(entry.name, entry.declines))
        for entry in KERNELS
        if entry.name != "cpu"
    ]
    q, k = (torch.zeros(1, 1, 1).expand(n, 2, 64) for n in (graph.num_dst, graph.num_src))
    problem = Problem(q, k, k, graph, Dot(), None, softmax, 0.125, 0.0)
    assert choose(problem, "auto", table).name == kernel


def test_says_why_it_is_not() -> None:
    def reason(graph: ga.Graph) -> str:
        q = torch.zeros(1, 1, 1).expand(graph.num_dst, 2, 64)
        return str(intervals.declines_graph(Problem(q, q, q, graph, Dot(), None, softmax, 1, 0)))

    assert reason(ga.sliding_window(3200, 1)) == (
        "8.83% of the pairs that it would score are edges; that pays from 25% on"
    )
    assert "dense graphs of few sizes" in reason(ga.batch([ga.causal(60)] * 9))
    assert reason(ga.expander(40, 4)) == "None"


def test_is_chosen_in_compiled_code() -> None:
    """Over graphs of several sizes: what varies from one to the next is no reason to stop."""

    def is_taken(q: torch.Tensor, graph: ga.Graph) -> torch.Tensor:
        problem = Problem(q, q, q, graph, Dot(), None, softmax, 1.0, 0.0)
        return q + (intervals.declines_graph(problem) is None)

    compiled = torch.compile(is_taken, fullgraph=True, backend="eager")
    for graph, taken in [
        (ga.sliding_window(500, 40), 1),
        (ga.sliding_window(600, 1), 0),
        (ga.sliding_window(700, 1), 0),
        (ga.batch([ga.causal(9)] * 3), 0),
    ]:
        assert compiled(torch.zeros(graph.num_dst, 1, 4), graph).mean() == taken
