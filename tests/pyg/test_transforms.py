"""Graphs that travel on PyG's data."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.utils.data import DataLoader
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data, HeteroData

import graphattn as ga
from graphattn import pyg
from graphattn.graphs.csr import compact_both
from tests.graphs.agree import assert_is
from tests.graphs.truth import of_pairs
from tests.pyg.test_layers import DIM, HEAD_DIM, inputs


def data(nodes: int = 9, edges: int = 30, seed: int = 0) -> Data:
    given = inputs(nodes, nodes, edges, seed=seed)
    return Data(given.src.detach().float(), given.edge_index)


def same(graph: ga.Graph, edge_index: torch.Tensor, num_src: int, num_dst: int) -> None:
    """The graph of the edges, and what it travels with is what these say."""
    expected = ga.from_edges(edge_index, num_src=num_src, num_dst=num_dst)
    assert torch.equal(graph.edge_index, expected.edge_index)
    for got, side in zip(compact_both(graph), compact_both(expected)):
        assert all(a is b or torch.equal(a, b) for a, b in zip(got, side))


def test_data() -> None:
    plain = data()
    made = pyg.ToGraph()(plain)
    assert "graph" not in plain  # a transform leaves what it is given
    same(made.graph, made.edge_index, 9, 9)
    assert_is(made.graph, of_pairs(9, 9, zip(*made.edge_index.tolist())), sorted_edges=False)


def test_pickles_bring_the_order_along(monkeypatch: pytest.MonkeyPatch) -> None:
    made = pickle.loads(pickle.dumps(pyg.ToGraph()(data())))
    with monkeypatch.context() as patch:
        patch.setattr("graphattn.graphs.csr._compact", None)  # nothing is sorted again
        sides = compact_both(made.graph)
    assert len(sides[0].index) == 30
    same(made.graph, made.edge_index, 9, 9)


def test_edge_index_of_its_own_class() -> None:
    plain = data()
    plain.edge_index = EdgeIndex(plain.edge_index, sparse_size=(9, 9))
    same(pyg.ToGraph("g")(plain).g, plain.edge_index.as_tensor(), 9, 9)


def test_hetero_data() -> None:
    made = HeteroData()
    made["a"].x, made["b"].num_nodes = torch.randn(7, DIM), 9
    made["a", "to", "b"].edge_index = inputs(7, 9, 20).edge_index
    made["b", "at", "a"].edge_index = inputs(9, 7, 20).edge_index
    made = pyg.ToGraph()(made)
    same(made["a", "to", "b"].graph, made["a", "to", "b"].edge_index, 7, 9)
    same(made["b", "at", "a"].graph, made["b", "at", "a"].edge_index, 9, 7)


def test_batches_of_small_graphs() -> None:
    batch = Batch.from_data_list([data(5, 9, 1), data(4, 6, 2)])
    same(pyg.ToGraph()(batch).graph, batch.edge_index, 9, 9)


def test_workers_sort() -> None:
    """What a layer makes of the graph is what it makes of the edges."""
    torch.manual_seed(0)
    layer = pyg.GATConv(DIM, HEAD_DIM)
    sets = [data(seed=seed) for seed in range(3)]
    loader = DataLoader(sets, batch_size=None, collate_fn=pyg.ToGraph(), num_workers=1)
    for loaded in loader:
        same(loaded.graph, loaded.edge_index, 9, 9)
        expected = layer(loaded.x, loaded.edge_index)
        torch.testing.assert_close(layer(loaded.x, loaded.graph), expected)


def test_graphs_move_with_the_data() -> None:
    moved = pyg.ToGraph()(data()).to("meta")
    assert moved.x.device.type == moved.graph.device.type == "meta"
    assert all(part.device.type == "meta" for part in compact_both(moved.graph)[0][:2])


def test_edges_that_do_not_fit_the_data() -> None:
    with pytest.raises(IndexError, match="out of range for 2 destination nodes"):
        pyg.ToGraph()(Data(torch.randn(2, 1), torch.tensor([[0], [2]])))
