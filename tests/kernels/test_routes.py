"""Which kernel a GPU is expected to run fastest, and how that is told; planned on a CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

import graphattn as ga
from graphattn import plan
from graphattn.graphs import memory
from graphattn.graphs.facts import KEPT
from graphattn.graphs.rows import span_rows
from graphattn.graphs.structure import as_blocks, is_simple
from graphattn.graphs.windows import window_counts
from graphattn.kernels import cost, intervals, row_windows, triton
from graphattn.kernels.problem import Problem
from graphattn.normalizers import Softmax, softmax
from graphattn.plan import KERNELS, choose
from graphattn.scores import Additive, Dot
from tests.oracle import PARALLEL, random_edges

ON_GPU = {"intervals": lambda _: None, "row_windows": row_windows.declines_graph}


@pytest.fixture(autouse=True)
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the tensors were on one: kernels for it accept, and the one for the CPU does not."""
    for module in ("tiles", "triton"):
        monkeypatch.setattr(f"graphattn.kernels.{module}.interpreted", lambda: True)
    table = tuple(
        replace(entry, declines=ON_GPU.get(entry.name, lambda _: None))
        for entry in KERNELS
        if entry.name != "cpu"
    )
    monkeypatch.setattr(plan, "KERNELS", table)
    monkeypatch.setattr(plan, "expected", lambda entry, problem: entry.expected(problem))


def problem(graph: ga.Graph, heads: int = 8, dim: int = 64, **options: Any) -> Problem:
    """In bfloat16, of tensors that take no memory."""
    q, k = (
        torch.zeros(1, 1, 1, dtype=torch.bfloat16).expand(n, heads, dim)
        for n in (graph.num_dst, graph.num_src)
    )
    given = Problem(q, k, k, graph, Dot(), None, softmax, 0.125, 0.0)
    return replace(given, **options)


def explain(graph: ga.Graph, **options: Any) -> plan.Plan:
    asked = problem(graph, **options)
    found = plan.plan(asked, "auto")
    assert choose(asked, "auto", plan.KERNELS).name == found.kernel
    return found


DOCUMENTS = ga.batch([ga.causal(n) for n in range(300, 3000, 150)])
# 512 groups of 96 nodes in which half of the pairs are edges, in disorder.
GROUPS = ga.batch([random_edges(96, 96, 8000) & ga.complete(96)] * 512)
PICKS = [
    (ga.complete(64), "dense"),
    (ga.complete(10_000), "dense"),
    (ga.causal(5000), "dense"),
    (ga.sliding_window(65_536, 256), "intervals"),
    (ga.causal(65_536) & ga.sliding_window(65_536, 256), "intervals"),
    (ga.sliding_window(40_000, 256) | ga.hubs(40_000, [0, 1]), "intervals"),
    (ga.complete(9000).without_self_loops(), "intervals"),
    (ga.prefix(9000, 1000), "intervals"),
    (DOCUMENTS, "intervals"),
    (ga.batch([ga.causal(2048)] * 8), "blocks"),
    (ga.shifted_windows((224, 224), 16, 8), "blocks"),
    (ga.neighborhood((128, 128), 6), "row_windows"),
    (ga.neighborhood((32, 32, 32), 2), "row_windows"),
    (GROUPS, "row_windows"),
    (random_edges(20_000, 20_000, 200_000) & ga.complete(20_000), "triton"),
    (random_edges(20_000, 20_000, 200_000), "triton"),
    (ga.from_mask(torch.rand(1500, 1500, generator=torch.manual_seed(0)) < 0.5), "masked"),
    (ga.sliding_window(300, 2), "masked"),  # small
]


@pytest.mark.parametrize(("graph", "kernel"), PICKS, ids=lambda part: str(part)[:60])
def test_the_fastest_is_taken(graph: ga.Graph, kernel: str) -> None:
    found = explain(graph)
    assert found.kernel == kernel, found
    assert found.expected[kernel].cost == min(each.cost for each in found.expected.values())


def test_what_is_told() -> None:
    """The time and the reuse of every kernel that could run, behind its reason."""
    found = explain(ga.neighborhood((64, 64), 6))
    lines = dict(line.split(maxsplit=1) for line in str(found).splitlines())
    reuse = found.expected["row_windows"].reuse
    assert reuse is not None
    assert 25 < reuse < 35
    assert lines["row_windows"].startswith("runs: neighbors share sources: ")
    assert lines["row_windows"].endswith(f" ms, {reuse:.3g} edges per loaded source")
    assert "refused: row_windows is expected to be faster; expected 0.2" in lines["triton"]
    assert lines["intervals"].endswith("are more than two intervals")
    assert set(found.expected) == {"masked", "triton", "row_windows", "reference"}


def test_what_a_kernel_cannot_has_no_time() -> None:
    found = explain(PARALLEL)
    assert "row_windows" not in found.expected
    assert "bit can't count them" in found.rejected["row_windows"]
    sink = replace(problem(ga.complete(64)), normalizer=Softmax(0.0))
    assert set(plan.plan(sink, "auto").expected) == {"intervals", "triton", "reference"}


@pytest.mark.parametrize("graph", [ga.sliding_window(9000, 90), ga.neighborhood((64, 64), 6)])
def test_what_tensor_cores_cannot(graph: ga.Graph) -> None:
    """Is told before anybody asks for the time."""
    fine, wide = problem(graph), problem(graph, dim=300)
    fine = replace(
        fine, query=fine.query.double(), key=fine.key.double(), value=fine.value.double()
    )
    assert plan.plan(fine, "auto").kernel == "triton"
    assert "float64" in plan.plan(fine, "auto").rejected["row_windows"]
    found = plan.plan(wide, "auto")
    assert found.kernel == "masked"
    assert "up to 256 numbers" in found.rejected["intervals"]
    features = torch.zeros(1, 1, 1, dtype=torch.bfloat16).expand(graph.num_edges, 8, 64)
    assert plan.plan(problem(graph, edge_key=features), "auto").kernel == "triton"


def kept(graph: ga.Graph) -> int:
    """Bytes of the tensors of its facts."""
    facts = (fact for name, fact in vars(graph).items() if name.startswith(KEPT))
    return sum(x.nbytes for x in tree_leaves(list(facts)) if isinstance(x, torch.Tensor))


@pytest.mark.parametrize(
    ("graph", "kernel"),
    [
        (ga.shifted_windows((1024, 1024), 128), "blocks"),
        (ga.sliding_window(65_536, 256) | ga.hubs(65_536, [0]), "intervals"),
        (ga.causal(65_536).T, "intervals"),
        (ga.complete(65_536), "dense"),
    ],
    ids=str,
)
def test_what_has_structure_is_not_listed(graph: ga.Graph, kernel: str) -> None:
    assert choose(problem(graph), "auto", plan.KERNELS).name == kernel
    assert kept(graph) < 400 * graph.num_dst < graph.num_edges


@pytest.mark.parametrize("graph", [ga.axial((4096, 4096)), ga.dilated(4_000_000, 40_000, 3)])
def test_what_nobody_can_is_told(graph: ga.Graph) -> None:
    with pytest.raises(ValueError, match=r"row_windows: making the windows takes .* TB"):
        choose(problem(graph), "auto", plan.KERNELS)


def test_other_scores_ask_for_no_structure() -> None:
    graph = random_edges(3000, 3000, 20_000)
    other = problem(graph, score=Additive(torch.zeros(8, 64, dtype=torch.bfloat16), "tanh"))
    assert choose(other, "auto", plan.KERNELS).name == "triton"
    asked = {fact.key for fact in (as_blocks, is_simple, span_rows, window_counts)}
    assert not asked & set(vars(graph))


def test_a_graph_too_large_to_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is planned all the same, and no estimate lists it."""
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**9)
    graph = ga.neighborhood((600, 600), 12)
    with pytest.raises(ValueError, match=r"making the windows takes .* GB, and 1 GB are free"):
        choose(problem(graph), "auto", plan.KERNELS)
    assert row_windows.expected(problem(graph)) is None


def test_the_choice_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """For alike problems; unless its kernel can't any more."""
    asked = []
    choose_anew = plan._choose
    monkeypatch.setattr(plan, "_choose", lambda *given: asked.append(given) or choose_anew(*given))
    graph = ga.neighborhood((64, 64), 6)
    for other in ({}, {}, {"heads": 4}, {"dim": 32}, {"dropout": 0.1}, {"softcap": 3.0}, {}):
        plan._remembered(problem(graph, **other), plan.KERNELS)
    assert len(asked) == 5
    found = plan._remembered(problem(graph), plan.KERNELS)
    assert found.name == "row_windows"
    with monkeypatch.context() as short:
        short.setattr("graphattn.kernels.row_windows.is_simple", lambda _: False)
        assert plan._remembered(problem(graph), plan.KERNELS).name != "row_windows"
    assert plan._remembered(problem(graph), plan.KERNELS).name == "row_windows"
    for dim in range(1, 300):
        plan._remembered(problem(graph, dim=dim), plan.KERNELS)
    assert len(plan._routes(graph)) <= plan.MOST_ROUTES


def test_a_named_kernel_is_not_compared() -> None:
    found = plan.plan(problem(ga.neighborhood((64, 64), 6)), "reference")
    assert found.kernel == "reference"
    assert found.rejected["row_windows"] == "reference was named"


@pytest.mark.parametrize("entry", KERNELS, ids=lambda entry: entry.name)
def test_more_takes_longer(entry) -> None:
    """Edges, heads, dimensions, gradients."""
    if entry.name == "cpu":
        assert entry.expected(problem(ga.complete(9))) is None
        return
    small, large = (ga.batch([ga.sliding_window(64, 9)] * n) for n in (256, 512))
    if entry.name in ("dense", "blocks"):
        small, large = ga.complete(2048), ga.complete(4096)

    def ms(graph: ga.Graph, **options: Any) -> float:
        estimate = entry.expected(problem(graph, **options))
        assert estimate is not None
        return estimate.ms

    base = ms(small)
    assert base < ms(large)
    assert base < ms(small, heads=32)
    assert base < ms(small, dim=128)
    trained = replace(problem(small), query=problem(small).query.float().requires_grad_())
    assert cost.trains(trained)
    assert not cost.trains(problem(small))
    bare = replace(trained, query=trained.query.detach())
    assert entry.expected(bare).ms < entry.expected(trained).ms


def test_size_of_windows() -> None:
    """Those share more that are larger; in float32 and with wide heads they are small."""
    grid = ga.neighborhood((64, 64), 6)
    assert row_windows.best_size(problem(grid)) == 64
    trained = problem(grid)
    trained = replace(trained, query=trained.query.detach().requires_grad_())
    assert row_windows.best_size(trained) == 64
    wide = problem(grid)
    wide = replace(wide, query=wide.query.float(), key=wide.key.float(), value=wide.value.float())
    assert row_windows.sizes(wide) == [16]
    assert row_windows.sizes(problem(grid, dim=200)) == [16, 32]


def test_is_chosen_in_compiled_code() -> None:
    """Over graphs of several sizes: what varies from one to the next is no reason to stop."""

    def fastest(q: torch.Tensor, graph: ga.Graph) -> torch.Tensor:
        asked = Problem(q, q, q, graph, Dot(), None, softmax, 1.0, 0.0)
        span = intervals.expected(asked)
        gathered, windows = triton.expected(asked).cost, row_windows.expected(asked).cost
        if span is not None and span.cost < min(gathered, windows):
            return q + 2
        return q + (windows < gathered)

    compiled = torch.compile(fastest, fullgraph=True, backend="eager")
    for graph, taken in [
        (ga.sliding_window(5000, 40), 2),
        (ga.neighborhood((48, 48), 6), 1),
        (ga.neighborhood((50, 48), 6), 1),
        (ga.expander(600, 4), 0),
        (ga.expander(700, 4), 0),
    ]:
        q = torch.zeros(graph.num_dst, 8, 64, dtype=torch.bfloat16)
        assert compiled(q, graph).mean() == taken
