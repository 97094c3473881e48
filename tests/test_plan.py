"""Which kernel runs, and what `explain` says of it."""

from __future__ import annotations

import pytest
import torch

import graphattn as ga
from graphattn import attention, attention_weights, explain
from graphattn.normalizers import Softmax
from graphattn.plan import KERNELS
from graphattn.scores import Additive
from tests.oracle import KERNEL_NAMES, MIXED, NONE, PARALLEL, WINDOWS, shuffled


def inputs(graph: ga.Graph, heads: int = 2, kv_heads: int = 2):
    """q, k, v of the right shapes that take no memory."""
    one = torch.zeros(1, 1, 1)
    q = one.expand(graph.num_dst, heads, 4)
    k = one.expand(graph.num_src, kv_heads, 4)
    return q, k, k


FULL_HUBS = ga.hubs(5, range(5))
SPARSE = ga.sliding_window(4000, 1)

PICKS = [
    (ga.complete(64), "dense"),
    (ga.complete(1), "dense"),
    (ga.complete(0), "dense"),
    (ga.complete(1_000_000), "dense"),
    (ga.causal(64), "dense"),
    (ga.causal(100_000), "dense"),
    (ga.bipartite(5, 9), "dense"),
    (ga.bipartite(0, 9), "dense"),
    (ga.prefix(9, 0), "dense"),
    (ga.prefix(9, 9), "dense"),
    (ga.sliding_window(9, 9), "dense"),
    (ga.causal(9) & ga.sliding_window(9, 8), "dense"),
    (ga.causal(9) | ga.complete(9), "dense"),
    (ga.axial((1, 7)), "dense"),
    (ga.neighborhood((3,), 1), "dense"),
    (ga.shifted_windows((4, 4), 4), "dense"),
    (ga.batch([ga.causal(5)]), "dense"),
    (ga.causal(64).rows(63, 64), "dense"),
    (ga.complete(9).rows(2, 4), "dense"),
    (ga.complete(7).permuted([6, 5, 4, 3, 2, 1, 0]), "dense"),
    (FULL_HUBS, "dense"),
    (shuffled(ga.complete(64)), "dense"),
    (shuffled(ga.causal(64)), "dense"),
    (shuffled(ga.bipartite(5, 9)), "dense"),
    (ga.from_mask(torch.ones(6, 6, dtype=torch.bool).tril()), "dense"),
    (ga.shifted_windows((8, 8), 4), "blocks"),
    (ga.shifted_windows((8, 8), 4, 2), "blocks"),
    (ga.shifted_windows(100, 10, 3), "blocks"),
    (WINDOWS, "blocks"),
    (WINDOWS.permuted(torch.randperm(35)), "blocks"),
    (MIXED, "blocks"),
    (ga.batch([ga.complete(n) for n in range(7)]), "blocks"),
    (ga.batch([ga.complete(n) for n in range(5, 60)]), "cpu"),
    (ga.batch([ga.complete(n) for n in range(50, 60)]), "blocks"),
    (ga.batch([ga.complete(9)] * 20), "blocks"),
    (ga.batch([shuffled(ga.causal(5)), ga.complete(3)]), "blocks"),
    (ga.causal(64).rows(10, 11), "blocks"),
    (ga.sliding_window(9, 0), "blocks"),
    (shuffled(ga.shifted_windows((8, 8), 4, 2)), "blocks"),
    (shuffled(MIXED), "blocks"),
    (ga.from_edges([[0, 1], [2, 2]], 4), "blocks"),
    (ga.prefix(9, 4), "masked"),
    (ga.complete(9).without_self_loops(), "masked"),
    (ga.complete(9) - ga.causal(9), "masked"),
    (ga.causal(9).T, "masked"),
    (ga.sliding_window(64, 4), "masked"),
    (ga.neighborhood((6, 6), 1), "masked"),
    (ga.hubs(11, [0]), "masked"),
    (SPARSE, "cpu"),
    (ga.sliding_window(400, 1), "masked"),  # small
    (ga.expander(4000, 4), "cpu"),
    (PARALLEL, "cpu"),
    (ga.batch([ga.sliding_window(20, 1)] * 200), "cpu"),
    (NONE, "masked"),
]


@pytest.mark.parametrize(("graph", "kernel"), PICKS, ids=lambda part: str(part)[:60])
def test_auto_picks(graph: ga.Graph, kernel: str) -> None:
    plan = explain(*inputs(graph), graph)
    assert plan.kernel == kernel, plan
    assert explain(*inputs(graph, heads=4, kv_heads=1), graph).kernel == kernel


@pytest.mark.parametrize("graph", [ga.causal(9), MIXED, ga.prefix(9, 4)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"score": lambda q_i, k_j, edge: (q_i - k_j).square().sum(-1)},
        {"normalizer": lambda logits, csr: logits},
    ],
    ids=["own score", "own normalizer"],
)
def test_what_users_write_runs_fused_if_it_is_worth_it(graph: ga.Graph, options) -> None:
    for batch, kernel in ((1, "reference"), (2000, "cpu")):
        tensors = [x.expand(batch, *x.shape) for x in inputs(graph)]
        plan = explain(*tensors, graph, **options)
        assert plan.kernel == kernel
        assert "it runs on a GPU" in plan.rejected.pop("triton")
        other = plan.rejected.pop("cpu" if kernel == "reference" else "reference")
        assert ("so few that gathering" if kernel == "reference" else "cpu stands before") in other
        assert all("it computes scaled dot products" in why for why in plan.rejected.values())


@pytest.mark.parametrize("options", [{"softcap": 5.0}, {"normalizer": Softmax(0.0)}], ids=str)
def test_what_dense_kernels_do_not_know(options) -> None:
    plan = explain(*inputs(ga.causal(9)), ga.causal(9), **options)
    assert plan.kernel == "cpu"
    assert plan.rejected["dense"] == "it knows neither a sink nor soft-capping"


@pytest.mark.parametrize("graph", [ga.causal(9), MIXED, ga.prefix(9, 4), SPARSE], ids=str)
def test_what_only_sparse_kernels_compute(graph: ga.Graph) -> None:
    assert explain(*inputs(graph), graph, score=Additive(torch.ones(2, 4))).kernel == "cpu"
    features = torch.zeros(1, 1, 1).expand(graph.num_edges, 2, 4)
    for name in ("edge_key", "edge_value"):
        plan = explain(*inputs(graph), graph, **{name: features})
        assert plan.kernel == "cpu"
        assert "features of edges" in plan.rejected["dense"]


@pytest.mark.parametrize("bias", [None, "tensor", "function"])
@pytest.mark.parametrize("graph", [ga.causal(9), MIXED, ga.prefix(9, 4), SPARSE], ids=str)
def test_a_bias_changes_nothing(graph: ga.Graph, bias: str | None) -> None:
    table = torch.zeros(graph.num_edges, 2)
    given = {
        None: None,
        "tensor": table,
        "function": lambda dst, src: table[:1].expand(len(dst), 2),
    }
    bare = explain(*inputs(graph), graph)
    assert explain(*inputs(graph), graph, bias=given[bias]).kernel == bare.kernel


@pytest.mark.parametrize(("graph", "_"), PICKS, ids=lambda part: str(part)[:60])
def test_every_kernel_has_a_line_with_a_reason(graph: ga.Graph, _: str) -> None:
    plan = explain(*inputs(graph), graph)
    lines = str(plan).splitlines()
    assert len(lines) == len(KERNELS) == len({line.split()[0] for line in lines})
    assert lines[0].startswith(plan.kernel)
    assert "  runs: " in lines[0]
    assert all("  refused: " in line and len(line.split(": ", 1)[1]) > 10 for line in lines[1:])
    assert plan.rejected.keys() | {plan.kernel} == set(KERNEL_NAMES)
    assert repr(plan) == str(plan)


def test_a_named_kernel_runs_or_says_why_not() -> None:
    q, k, v = inputs(SPARSE)
    for kernel in ("dense", "blocks"):
        reason = explain(q, k, v, SPARSE).rejected[kernel]
        for call in (attention, explain):
            with pytest.raises(ValueError, match="can't compute this") as caught:
                call(q, k, v, SPARSE, kernel=kernel)
            assert reason in str(caught.value)
            assert 'kernel="auto" takes one that can' in str(caught.value)
    plan = explain(q, k, v, SPARSE, kernel="masked")  # slow, but it can
    assert plan.kernel == "masked"
    assert "it was named" in str(plan).splitlines()[0]
    assert plan.rejected["reference"] == "masked was named"


def test_slow_is_better_than_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = inputs(SPARSE)

    def little(num_bytes: int, device: torch.device) -> str:
        return "1 TB, and 1 kB are free"

    monkeypatch.setattr("graphattn.kernels.pairs.shortage", little)
    monkeypatch.setattr("graphattn.kernels.cpu.kernel.library_is_missing", lambda: "it is gone")
    plan = explain(q, k, v, SPARSE)
    assert plan.kernel == "masked"
    assert "no other kernel can" in str(plan).splitlines()[0]
    assert "and 1 kB are free" in plan.rejected["reference"]
    monkeypatch.setattr("graphattn.kernels.masked.shortage", little)
    with pytest.raises(ValueError, match=r"no kernel can compute .*dense: .*reference: .* sparser"):
        attention(q, k, v, SPARSE)
    with pytest.raises(ValueError, match=r"no kernel can compute .*reference: "):
        attention_weights(q, k, SPARSE)


def test_huge_graphs_are_explained_without_listing_their_edges() -> None:
    for graph in (ga.complete(1_000_000), ga.causal(1_000_000)):
        plan = explain(*inputs(graph), graph)
        assert plan.kernel == "dense"
        assert "TB, and" in plan.rejected["masked"]
        assert "TB, and" in plan.rejected["reference"]
