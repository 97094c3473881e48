"""The kernel for row windows in Triton's interpreter; `test_interpreted.py` runs this in a process
with TRITON_INTERPRET=1, which must be set before Triton is imported.
"""

from __future__ import annotations

import os

import pytest
import torch

import graphattn as ga
from graphattn import explain
from graphattn.graphs import windows
from graphattn.kernels import row_windows
from tests.kernels.test_kernels import check, run
from tests.oracle import BIGBIRD, ISOLATED, PARALLEL, Case, draw, shuffled

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="is run by test_interpreted.py"
)
WIDE, FINE, HALF, SHORT = torch.float32, torch.float64, torch.float16, torch.bfloat16


def sparse(num_dst: int, num_src: int, share: float) -> ga.Graph:
    """Edges drawn at random, none of them twice, in disorder."""
    generator = torch.Generator().manual_seed(num_dst)
    return shuffled(ga.from_mask(torch.rand(num_dst, num_src, generator=generator) < share))


SOME = sparse(37, 90, 0.15)
GRID = ga.neighborhood((5, 9), 2)
# Rows and columns that are long enough to be cut, where two tiles are the most.
LONG = sparse(18, 270, 0.4)
HIGH = sparse(270, 18, 0.4)
ALONE = ISOLATED & ISOLATED  # no edge twice

CASES = [
    Case("some", SOME, heads=1),
    Case("grid", GRID, heads=1, batch=(2,)),
    Case("bigbird", BIGBIRD),
    Case("long rows", LONG, heads=1),
    Case("long rows, sink", LONG, normalizer="sink", heads=1),
    Case("long columns", HIGH, heads=1),
    Case("isolated nodes", ALONE),
    Case("no edges", ga.from_edges(torch.zeros(2, 0, dtype=torch.int64), 5)),
    Case("no destinations", ga.bipartite(0, 3)),
    Case("no sources", ga.bipartite(3, 0)),
    Case("one edge", ga.bipartite(1, 1)),
    Case("batch of 0", SOME, batch=(0,)),
    Case("grouped heads", BIGBIRD, heads=6, kv_heads=2, batch=(2,)),
    Case("many grouped heads", BIGBIRD, heads=8, kv_heads=1),
    Case("narrow values", SOME, head_dim=24, value_dim=3, heads=1),
    Case("head_dim 1", SOME, head_dim=1, heads=1),
    Case("strided", SOME, layout="strided", heads=1),
    Case("heads first", BIGBIRD, layout="heads first", batch=(2,)),
    Case("expanded", GRID, layout="expanded", batch=(2,), heads=1),
    Case("large logits", SOME, spread=4096, heads=1),
    Case("large logits, long rows", LONG, spread=4096, heads=1),
    Case("negative scale, large logits", GRID, spread=4096, scale=-1.0, heads=1),
    Case("scale 0", SOME, scale=0.0, heads=1),
    Case("bias", SOME, bias="tensor, holes", batch=(2,), heads=1),
    Case("bias, grid", GRID, bias="tensor", heads=4, kv_heads=2),
    Case("bias, three to a key head", SOME, bias="tensor", heads=3, kv_heads=1),
    Case("bias, long rows", LONG, bias="tensor, batched, dead row", batch=(2,), heads=1),
    Case("bias, long columns", HIGH, bias="tensor, wide", heads=1),
    Case("bias of one head", BIGBIRD, bias="tensor, one head"),
    Case("bias function", GRID, bias="function, holes", spread=4096),
    Case("sink", GRID, normalizer="sink"),
    Case("sink, isolated nodes", ALONE, normalizer="sink", bias="tensor, dead row"),
    Case("off by one", SOME, normalizer="off by one", heads=1),
    Case("soft-capping", SOME, softcap=0.7, bias="tensor, holes"),
    Case("sigmoid", LONG, normalizer="sigmoid", heads=1),
    Case("sigmoid, bias", SOME, normalizer="sigmoid", bias="tensor, holes"),
    Case("no normalizer", LONG, normalizer="none", softcap=2.0, heads=1),
    Case("no normalizer, bias", GRID, normalizer="none", bias="tensor, holes", kv_heads=1),
]
BY_NAME = {case.name: case for case in CASES}
BY_NAME["head_dim 200"] = Case("head_dim 200", GRID, head_dim=200, value_dim=7, heads=1)
NARROW = {
    SHORT: ["some", "grouped heads", "large logits", "bias, grid", "head_dim 200"],
    HALF: ["bias, grid", "isolated nodes"],
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 16 rows, two tiles of columns to a program."""
    monkeypatch.setattr(windows, "LONGEST", 2)
    monkeypatch.setattr(row_windows, "best_size", lambda _: 16)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, WIDE) for case in CASES]
    + [(BY_NAME[name], dtype) for dtype, names in NARROW.items() for name in names],
    ids=lambda part: getattr(part, "name", str(part)),
)
def test_holds_to_the_tolerance(case: Case, dtype: torch.dtype) -> None:
    assert check("row_windows", case, dtype)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("grouped heads", 32),
        ("grouped heads", 64),
        ("bias, long rows", 32),
        ("bias, grid", 64),
        ("isolated nodes", 64),
    ],
)
def test_larger_windows(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_windows, "best_size", lambda _: size)
    assert check("row_windows", BY_NAME[name], SHORT)


def test_refuses_parallel_edges() -> None:
    got = run("row_windows", Case("parallel edges", PARALLEL), WIDE)
    assert isinstance(got, str)
    assert "parallel edges" in got


def test_is_not_taken_on_the_cpu() -> None:
    plan = explain(*draw(Case("cpu", GRID), WIDE)[:4])
    assert plan.kernel != "row_windows"
    assert not plan.expected  # nor does anything tell the time
