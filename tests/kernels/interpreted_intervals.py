"""The kernel for intervals in Triton's interpreter; `test_interpreted.py` runs this in a process
with TRITON_INTERPRET=1, which must be set before Triton is imported.

Blocks are of 16 rows here, so that small graphs have several.
"""

from __future__ import annotations

import os

import pytest
import torch

import graphattn as ga
from graphattn import explain
from graphattn.graphs import rows
from graphattn.graphs.spans import as_spans, transposed_spans
from graphattn.kernels import intervals
from tests.kernels.test_kernels import check, run
from tests.oracle import Case, draw, shuffled

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="is run by test_interpreted.py"
)

WIDE, FINE, HALF, SHORT = torch.float32, torch.float64, torch.float16, torch.bfloat16


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BLOCK", 16)


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

# A window and global tokens, all ways; and all but the nodes themselves.
GLOBAL = ga.sliding_window(50, 4) | ga.hubs(50, [0, 1])
SINKS = ga.causal(50) & GLOBAL
LOOPLESS = ga.complete(41).without_self_loops()

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
    Case("global tokens", GLOBAL, heads=1),
    Case("global tokens, grouped", GLOBAL, heads=2, kv_heads=1, batch=(2,)),
    Case("window of the past, first tokens", SINKS, heads=1),
    Case("no loops", LOOPLESS, heads=1),
    Case("batch of gaps", ga.batch([SINKS, ga.causal(20), LOOPLESS]), heads=1),
    Case("bias", WINDOW, bias="tensor", batch=(2,)),
    Case("bias, gaps", GLOBAL, bias="tensor, holes", heads=2, kv_heads=1),
    Case("bias, gaps of the past", SINKS, bias="tensor, batched, dead row", batch=(2,)),
    Case("bias, documents", DOCUMENTS, bias="tensor, one head", kv_heads=1),
    Case("bias, edges in disorder", shuffled(SINKS), bias="tensor, wide"),
    Case("bias function, large logits", BEFORE, bias="function", spread=4096),
    Case("sigmoid", GLOBAL, normalizer="sigmoid", heads=1),
    Case("sigmoid, bias", BEFORE, normalizer="sigmoid", bias="tensor, holes"),
    Case("no normalizer", SINKS, normalizer="none", softcap=2.0, heads=1),
    Case("no normalizer, bias", WINDOW, normalizer="none", bias="tensor, holes", kv_heads=1),
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
    assert rows.span_rows(case.graph) is not None
    assert check("intervals", case, dtype)


def test_reach_of_blocks() -> None:
    """What some and what each of the rows of a block hear."""
    for graph in (WINDOW, BEFORE, DOCUMENTS, DEAF, GLOBAL, LOOPLESS):
        scored = 0
        for side, spans in (
            (rows.span_columns(graph), transposed_spans(graph)),
            (rows.span_rows(graph), as_spans(graph)),
        ):
            assert side is not None
            assert spans is not None
            scored = 0
            for part, some, each in zip(spans.parts, side.some, side.each, strict=True):
                bounds = torch.stack(part, 1).split(16)
                for some_of, each_of, block in zip(some, each, bounds, strict=True):
                    heard = [set(range(*row)) for row in block.tolist()]
                    anybody = sorted(set.union(*heard)) or [0, -1]
                    reach = range(anybody[0], anybody[-1] + 1)
                    assert list(range(*some_of.tolist())) == list(reach)
                    assert set(range(*each_of.tolist())) == set.intersection(*heard)
                    scored += 16 * len(reach)
        assert rows.pairs_in_reach(graph) == scored


@pytest.mark.parametrize("name", ["wide window", "who hears nobody", "jumps"])
def test_several_blocks_a_program(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    larger = {key: tiles._replace(CHUNKS=4) for key, tiles in intervals.TILES.items()}
    monkeypatch.setattr(intervals, "TILES", larger)
    assert check("intervals", BY_NAME[name], WIDE)


REFUSED = {
    "three intervals": ("more than two intervals", ga.hubs(9, [0, 4, 8])),
    "no intervals": ("than two", ga.expander(9, 4)),
    "transpose": ("than two", lists((0, 3), (0, 1), (0, 3), (0, 1), (0, 3), num_src=3)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_it_cannot(name: str) -> None:
    reason, graph = REFUSED[name]
    got = run("intervals", Case(name, graph), WIDE)
    assert isinstance(got, str)
    assert reason in got


def test_is_not_taken_on_the_cpu() -> None:
    plan = explain(*draw(Case("cpu", WINDOW), WIDE)[:4])
    assert plan.rejected["intervals"] == "it would be interpreted, which is there for tests"
