"""Graphs renumbered: the same edges, in an order that a method finds."""

from __future__ import annotations

import sys

import pytest
import torch

import graphattn as ga
from graphattn import attention
from graphattn.graphs.reorder import METHODS
from graphattn.graphs.windows import reuse
from tests.oracle import ISOLATED, NONE, random_edges


def shuffled(graph: ga.Graph) -> ga.Graph:
    order = torch.randperm(graph.num_dst, generator=torch.Generator().manual_seed(0))
    return ga.from_edges(graph.permuted(order).edge_index, graph.num_dst)


GRAPHS = {
    "grid": shuffled(ga.neighborhood((40, 50), 2)),
    "directed": random_edges(300, 300, 900),
    "parallel edges": random_edges(9, 9, 120),
    "isolated nodes": ga.from_edges(ISOLATED.edge_index, 200),
    "no edges": NONE,
    "no nodes": ga.complete(0),
    "one node": ga.complete(1),
    "parts": shuffled(ga.batch([ga.complete(5), ga.causal(70), ga.hubs(40, [3])])),
    "unlisted": ga.sliding_window(200, 3),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", GRAPHS)
def test_the_same_edges(name: str, method: str) -> None:
    graph = GRAPHS[name]
    found, order, seconds = graph.reordered(method)
    assert 0 < seconds < 60
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(graph.num_dst))
    edges = graph.reordered(method).edge_order()
    assert torch.equal(order[found.edge_index], graph.edge_index[:, edges])
    assert torch.equal(edges.sort().values, torch.arange(graph.num_edges))
    assert torch.equal(graph.reordered(method).order, order)


@pytest.mark.parametrize("method", METHODS)
def test_attention_in_another_order(method: str) -> None:
    graph = GRAPHS["grid"]
    q, k, v = torch.randn(3, graph.num_dst, 2, 8).unbind()
    expected = attention(q, k, v, graph)
    found, order, _ = graph.reordered(method)
    out = attention(q[order], k[order], v[order], found)
    back = torch.empty_like(out).index_copy(0, order, out)
    torch.testing.assert_close(back, expected)


@pytest.mark.parametrize(("method", "least"), [("rcm", 4.0), ("metis", 8.0)])
def test_neighbors_share_sources(method: str, least: float) -> None:
    graph = GRAPHS["grid"]
    before = reuse(graph)[64]
    found = graph.reordered(method).graph
    assert before < 1.5
    assert reuse(found)[64] > least


def test_from_the_most_edges_to_the_fewest() -> None:
    graph = GRAPHS["directed"]
    found = graph.reordered("degree").graph
    degree = found.in_degree() + found.out_degree()
    assert (degree.diff() <= 0).all()


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r'method must be one of "rcm", .*, got \'amd\''):
        ga.complete(3).reordered("amd")
    with pytest.raises(ValueError, match=r"method must be one of .*, got \['rcm'\]"):
        ga.complete(3).reordered(["rcm"])
    with pytest.raises(ValueError, match="3 sources and 2 destinations; number both sets in one"):
        ga.bipartite(2, 3).reordered()
    monkeypatch.setitem(sys.modules, "pymetis", None)
    with pytest.raises(ImportError, match='pip install pymetis, or take method="rcm"'):
        ga.complete(3).reordered("metis")
