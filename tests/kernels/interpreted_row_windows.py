"""The kernel for row windows in Triton's interpreter; `test_row_windows.py` runs this in a process
with TRITON_INTERPRET=1, which must be set before Triton is imported.
"""

from __future__ import annotations

import os

import pytest
import torch

import graphattn as ga
from graphattn import attention, explain
from graphattn.graphs import windows
from graphattn.kernels import row_windows
from graphattn.kernels.fused import attend_op
from tests.kernels.dropout import check_dropout
from tests.kernels.test_kernels import check, run
from tests.oracle import BIGBIRD, ISOLATED, PARALLEL, Case, draw, results, shuffled

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="is run by test_row_windows.py"
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
    Case("long rows, sink", LONG, normalizer="sink", kv_heads=1),
    Case("long columns", HIGH, heads=1),
    Case("isolated nodes", ALONE),
    Case("no edges", ga.from_edges(torch.zeros(2, 0, dtype=torch.int64), 5)),
    Case("no destinations", ga.bipartite(0, 3)),
    Case("no sources", ga.bipartite(3, 0)),
    Case("one edge", ga.bipartite(1, 1)),
    Case("batch of 0", SOME, batch=(0,)),
    Case("grouped heads", SOME, heads=6, kv_heads=2, batch=(2,)),
    Case("many grouped heads", BIGBIRD, heads=8, kv_heads=1),
    Case("narrow values", SOME, head_dim=24, value_dim=3, heads=1),
    Case("head_dim 1", SOME, head_dim=1, heads=1),
    Case("strided", SOME, layout="strided", heads=1),
    Case("heads first", SOME, layout="heads first", batch=(2,)),
    Case("expanded", GRID, layout="expanded", batch=(2,), heads=1),
    Case("large logits", SOME, spread=4096, heads=1),
    Case("large logits, long rows", LONG, spread=4096, heads=1),
    Case("negative scale, large logits", GRID, spread=4096, scale=-1.0, heads=1),
    Case("scale 0", SOME, scale=0.0, heads=1),
    Case("bias", SOME, bias="tensor, holes", batch=(2,)),
    Case("bias, grid", GRID, bias="tensor", heads=4, kv_heads=2),
    Case("bias, three to a key head", SOME, bias="tensor", heads=3, kv_heads=1),
    Case("bias, long rows", LONG, bias="tensor, batched, dead row", batch=(2,), heads=1),
    Case("bias, long columns", HIGH, bias="tensor, one head, wide"),
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
    SHORT: ["some", "grouped heads", "large logits", "bias, long rows", "head_dim 200"],
    HALF: ["bias, grid", "isolated nodes"],
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 16 rows, two tiles of columns to a program."""
    monkeypatch.setattr(windows, "LONGEST", 2)
    monkeypatch.setattr(row_windows, "sizes", lambda _: [16])


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, WIDE) for case in CASES]
    + [(BY_NAME[name], dtype) for dtype, names in NARROW.items() for name in names],
    ids=lambda part: getattr(part, "name", str(part)),
)
def test_holds_to_the_tolerance(case: Case, dtype: torch.dtype) -> None:
    assert isinstance(run("row_windows", case, dtype), dict)
    check("row_windows", case, dtype)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", ["grouped heads", "bias, long rows", "isolated nodes"])
def test_larger_windows(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_windows, "sizes", lambda _: [size])
    check("row_windows", BY_NAME[name], SHORT)


def test_zero_and_very_negative_logits() -> None:
    """Neither is taken for a pair that is no edge: all are equal, and so are the weights."""
    graph = GRID
    v = torch.randn(graph.num_src, 1, 8)
    degree = graph.in_degree()[:, None, None]
    mean = torch.einsum("ij,jhd->ihd", graph.mask().float(), v) / degree
    for logit, bias in ((0.0, None), (-1e4, None), (-1e37, None), (1.0, torch.finfo().min)):
        q = torch.full((graph.num_dst, 1, 4), logit / 4)
        k = torch.ones(graph.num_src, 1, 4)
        edges = None if bias is None else torch.full((graph.num_edges, 1), bias)
        out = attention(q, k, v, graph, scale=1.0, bias=edges, kernel="row_windows")
        torch.testing.assert_close(out, mean)


def test_same_inputs_same_bits() -> None:
    first, again = (run("row_windows", BY_NAME["bias, long rows"], WIDE) for _ in range(2))
    assert isinstance(first, dict)
    assert isinstance(again, dict)
    assert all(torch.equal(first[part], again[part]) for part in first)


@pytest.mark.parametrize("biased", [False, True])
def test_dropout(biased: bool) -> None:
    check_dropout("row_windows", ga.expander(21, 4), WIDE, biased=biased)


def test_only_what_is_needed() -> None:
    q, k, v = (torch.randn(20, 1, 8, requires_grad=True) for _ in range(3))
    out = attention(q, k, v, ga.expander(20, 3), kernel="row_windows")
    whole = torch.autograd.grad(out.sum(), (q, k, v), retain_graph=True)
    for leaf, expected in zip((q, k, v), whole):
        assert torch.equal(torch.autograd.grad(out.sum(), leaf, retain_graph=True)[0], expected)


def test_operator_and_compiled_code() -> None:
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    found = []
    for function in (attention, compiled):
        inputs = draw(Case("compiled", GRID, normalizer="sink", bias="tensor"), WIDE)
        out = function(*inputs[:4], kernel="row_windows", **inputs.options)
        found.append(results(inputs, out))
    torch.testing.assert_close(*found)
    q, k, v = (torch.randn(20, 2, 4, requires_grad=True) for _ in range(3))
    graph = ga.expander(20, 3)
    sides: list[torch.Tensor] = []
    for side in (windows.WINDOWS_OF_ROWS, windows.WINDOWS_OF_COLUMNS):
        found_windows = side[16](graph)
        assert found_windows is not None
        sides += found_windows
    options = ("row_windows", False, "dot", 0.0, 0.5, 0.0, "softmax", 0.0, False)
    torch.library.opcheck(attend_op, (q, k, v, *[None] * 7, sides, *options))


REFUSED = {
    "parallel edges": ("parallel edges", PARALLEL, {}, WIDE),
    "head_dim 257": ("up to 256 numbers", GRID, {"head_dim": 257}, SHORT),
    "value_dim 129": ("up to 128 numbers", GRID, {"value_dim": 129}, WIDE),
    "float64": ("float64", GRID, {}, FINE),
    "features": ("features of edges", GRID, {"edges": "key"}, WIDE),
    "additive": ("scaled dot products", GRID, {"score": "tanh"}, WIDE),
    "sparsemax": ("scaled dot products", GRID, {"normalizer": "sparsemax"}, WIDE),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_it_cannot(name: str) -> None:
    reason, graph, options, dtype = REFUSED[name]
    got = run("row_windows", Case(name, graph, **options), dtype)
    assert isinstance(got, str)
    assert reason in got


def test_is_not_taken_on_the_cpu() -> None:
    plan = explain(*draw(Case("cpu", GRID), WIDE)[:4])
    assert plan.kernel != "row_windows"
    assert not plan.expected  # nor does anything tell the time
