"""The kernel for intervals in Triton's interpreter; `test_intervals.py` runs this in a process with
TRITON_INTERPRET=1, which must be set before Triton is imported.

Blocks are of 16 rows here, so that small graphs have several.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

import graphattn as ga
from graphattn import attention, explain
from graphattn.graphs import rows
from graphattn.graphs.structure import transposed_intervals
from graphattn.kernels import intervals
from graphattn.kernels.fused import attend_op
from tests.kernels.test_kernels import check, run
from tests.oracle import Case, draw, results

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="is run by test_intervals.py"
)

WIDE, FINE, HALF, SHORT = torch.float32, torch.float64, torch.float16, torch.bfloat16


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Also multiplies the numbers of bfloat16, where the interpreter takes their bits."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot = InterpreterBuilder.create_dot

    def widened(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    monkeypatch.setattr(
        InterpreterBuilder,
        "create_dot",
        lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest),
    )
    monkeypatch.setattr(rows, "BLOCK", 16)
    with np.errstate(over="ignore", divide="ignore"):  # of what is masked
        yield


def lists(*pairs: tuple[int, int], num_src: int) -> ga.Graph:
    """Destination i attends to `start <= j < stop`; listed as edges."""
    edges = [(j, i) for i, (start, stop) in enumerate(pairs) for j in range(start, stop)]
    index = torch.tensor(edges, dtype=torch.int64).view(-1, 2).T
    return ga.from_edges(index, num_dst=len(pairs), num_src=num_src)


WINDOW = ga.sliding_window(45, 6)
BEFORE = ga.causal(45) & ga.sliding_window(45, 9)
# Long documents between short ones, one of a single node; then a window.
DOCUMENTS = ga.batch(
    [ga.causal(21), ga.causal(1), ga.causal(3), ga.complete(37), ga.sliding_window(19, 4)]
)
# Whole blocks and the first rows of others hear nobody; what is heard begins late and has gaps.
DEAF = lists(*[(0, 0)] * 20, *[(30 + i, 34 + 2 * i) for i in range(9)], *[(0, 0)] * 23, num_src=60)

CASES = [
    Case("window", WINDOW, heads=1),
    Case("window of all", ga.sliding_window(37, 30), heads=1),
    Case("wide window", ga.sliding_window(150, 60), heads=1),
    Case("window of no neighbors", ga.sliding_window(35, 0)),
    Case("causal window", BEFORE, heads=1, batch=(2,)),
    Case("causal", ga.causal(33), heads=1),
    Case("causal rows", ga.causal(41).rows(19, 38), heads=1),
    Case("prefix", ga.prefix(39, 18), heads=1),
    Case("complete", ga.bipartite(34, 70), heads=1),
    Case("more destinations", ga.bipartite(50, 3), heads=1),
    Case("packed documents", DOCUMENTS, heads=1),
    Case("ragged batch", ga.batch([ga.bipartite(5, 40), ga.bipartite(30, 2)]), heads=1),
    Case("who hears nobody", DEAF, heads=1),
    Case("jumps", lists(*[(7 * i, 7 * i + 1 + i % 3) for i in range(20)], num_src=150), heads=1),
    Case("nobody hears", lists(*[(0, 0)] * 18, num_src=20), heads=1),
    Case("one destination", ga.bipartite(1, 1)),
    Case("no destinations", ga.bipartite(0, 3)),
    Case("no sources", ga.bipartite(3, 0)),
    Case("batch of 0", WINDOW, batch=(0,)),
    Case("grouped heads", WINDOW, heads=4, kv_heads=2),
    Case("one key head", BEFORE, heads=3, kv_heads=1, value_dim=19),
    Case("narrow values", WINDOW, head_dim=24, value_dim=3, heads=1),
    Case("head_dim 1", WINDOW, head_dim=1, heads=1),
    Case("head_dim 128", BEFORE, head_dim=128, heads=1),
    Case("packed", BEFORE, layout="packed"),
    Case("heads first", WINDOW, layout="heads first"),
    Case("strided", WINDOW, layout="strided", heads=1),
    Case("expanded", WINDOW, layout="expanded", heads=1, batch=(2,)),
    Case("large logits", WINDOW, spread=4096, heads=1),
    Case("large logits, documents", DOCUMENTS, spread=4096, kv_heads=1),
    Case("negative scale, large logits", BEFORE, spread=4096, scale=-1.0, heads=1),
    Case("scale 0", WINDOW, scale=0.0, heads=1),
    Case("sink", BEFORE, normalizer="sink", kv_heads=1),
    Case("sink, who hears nobody", DEAF, normalizer="sink", heads=1),
    Case("sink, large logits", WINDOW, normalizer="sink", spread=4096, heads=1),
    Case("off by one", WINDOW, normalizer="off by one", heads=1),
    Case("soft-capping", BEFORE, softcap=0.7, heads=1),
    Case("soft-capping, large logits", WINDOW, softcap=8e3, spread=4096, heads=1),
]
BY_NAME = {case.name: case for case in CASES}
BY_NAME["head_dim 200"] = Case("head_dim 200", BEFORE, head_dim=200, value_dim=7, heads=1)
# Where blocks are larger, too.
NARROW = {
    SHORT: [
        "causal window",
        "packed documents",
        "who hears nobody",
        "grouped heads",
        "large logits",
        "sink",
        "soft-capping",
        "head_dim 200",
    ],
    HALF: ["packed documents", "who hears nobody"],
}


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, WIDE) for case in CASES]
    + [(BY_NAME[name], dtype) for dtype, names in NARROW.items() for name in names],
    ids=lambda part: getattr(part, "name", str(part)),
)
def test_holds_to_the_tolerance(case: Case, dtype: torch.dtype) -> None:
    assert transposed_intervals(case.graph) is not None
    assert isinstance(run("intervals", case, dtype), dict)
    check("intervals", case, dtype)


def test_reach_of_blocks() -> None:
    """What some and what each of the rows of a block hear."""
    for graph in (WINDOW, BEFORE, DOCUMENTS, DEAF):
        mask, scored = graph.mask(), 0
        for found, pairs in ((rows.column_reach(graph), mask.T), (rows.row_reach(graph), mask)):
            scored = 0
            for some, each, block in zip(
                *(x.tolist() for x in found), pairs.split(16), strict=True
            ):
                heard = block.any(0).nonzero().flatten().tolist()
                reach = range(heard[0], heard[-1] + 1) if heard else range(0)
                assert list(range(*some)) == list(reach)
                assert list(range(*each)) == block.all(0).nonzero().flatten().tolist()
                scored += 16 * len(reach)
        assert rows.pairs_in_reach(graph) == scored


@pytest.mark.parametrize("name", ["wide window", "who hears nobody", "jumps"])
def test_several_blocks_a_program(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    larger = {key: tiles._replace(CHUNKS=4) for key, tiles in intervals.TILES.items()}
    monkeypatch.setattr(intervals, "TILES", larger)
    check("intervals", BY_NAME[name], WIDE)


def test_same_inputs_same_bits() -> None:
    case = Case("same", DOCUMENTS, kv_heads=1)
    first, again = (run("intervals", case, WIDE) for _ in range(2))
    assert isinstance(first, dict)
    assert isinstance(again, dict)
    assert all(torch.equal(first[part], again[part]) for part in first)


def test_only_what_is_needed() -> None:
    q, k, v = (torch.randn(20, 1, 8, requires_grad=True) for _ in range(3))
    out = attention(q, k, v, ga.causal(20), kernel="intervals")
    whole = torch.autograd.grad(out.sum(), (q, k, v), retain_graph=True)
    for leaf, expected in zip((q, k, v), whole):
        assert torch.equal(torch.autograd.grad(out.sum(), leaf, retain_graph=True)[0], expected)


def test_operator_and_compiled_code() -> None:
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    found = []
    for function in (attention, compiled):
        inputs = draw(Case("compiled", WINDOW, normalizer="sink"), WIDE)
        out = function(*inputs[:4], kernel="intervals", **inputs.options)
        found.append(results(inputs, out))
    torch.testing.assert_close(*found)
    q, k, v = (torch.randn(20, 2, 4, requires_grad=True) for _ in range(3))
    graph, nothing = ga.sliding_window(20, 3), torch.empty(0, dtype=torch.int32)
    sides = []
    for side, reach in (
        (rows.interval_rows(graph), rows.row_reach(graph)),
        (rows.interval_columns(graph), rows.column_reach(graph)),
    ):
        assert side is not None
        sides += [side.ptr, side.index, nothing, *reach]
    options = ("intervals", False, "dot", 0.0, 0.5, 0.0, "softmax", 0.0, False)
    torch.library.opcheck(attend_op, (q, k, v, *[None] * 7, sides, *options))


REFUSED = {
    "head_dim 257": ("up to 256 numbers", ga.causal(5), {"head_dim": 257}, SHORT),
    "value_dim 129": ("up to 128 numbers", ga.causal(5), {"value_dim": 129}, WIDE),
    "float64": ("float64", ga.causal(5), {}, FINE),
    "bias": ("no bias", ga.causal(5), {"bias": "tensor"}, WIDE),
    "features": ("features of edges", ga.causal(5), {"edges": "key"}, WIDE),
    "additive": ("dot products and softmax", ga.causal(5), {"score": "tanh"}, WIDE),
    "sigmoid": ("dot products and softmax", ga.causal(5), {"normalizer": "sigmoid"}, WIDE),
    "no intervals": ("no interval", ga.expander(9, 4), {}, WIDE),
    "transpose": ("no interval", lists((0, 3), (0, 1), (0, 3), num_src=3), {}, WIDE),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_it_cannot(name: str) -> None:
    reason, graph, options, dtype = REFUSED[name]
    got = run("intervals", Case(name, graph, **options), dtype)
    assert isinstance(got, str)
    assert reason in got


def test_refuses_dropout_and_weights() -> None:
    q = torch.randn(5, 1, 4)
    with pytest.raises(ValueError, match="it drops no weights"):
        attention(q, q, q, ga.causal(5), dropout=0.1, kernel="intervals")
    with pytest.raises(ValueError, match="does not compute weights"):
        ga.attention_weights(q, q, ga.causal(5), kernel="intervals")


def test_is_not_taken_on_the_cpu() -> None:
    plan = explain(*draw(Case("cpu", WINDOW), WIDE)[:4])
    assert plan.rejected["intervals"] == "it would be interpreted, which is there for tests"
    assert intervals.KERNEL.declines is intervals.declines
