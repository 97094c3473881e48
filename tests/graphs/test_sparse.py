import networkx
import numpy as np
import pytest
import scipy.sparse
import torch
from torch_geometric.data import Batch, Data, HeteroData

import graphattn as ga
from tests.graphs import truth
from tests.graphs.agree import assert_is

PAIRS = [(3, 1), (0, 1), (2, 2), (0, 1), (1, 3)]  # (src, dst): unsorted, one of them twice
INDEX = [list(row) for row in zip(*PAIRS)]


@pytest.mark.parametrize(
    "index",
    [
        INDEX,
        tuple(map(tuple, INDEX)),
        np.array(INDEX),
        np.array(INDEX, dtype=np.uint8),
        np.array(INDEX)[::-1][::-1],
        np.array([row[::-1] for row in INDEX])[:, ::-1],  # negative strides
        np.array(PAIRS).T,  # not contiguous
        torch.tensor(INDEX),
        torch.tensor(INDEX, dtype=torch.int32),
        torch.tensor(PAIRS).T,
    ],
)
def test_edges_keep_their_order_and_their_copies(index):
    graph = ga.from_edges(index, 4)
    assert_is(graph, truth.of_pairs(4, 4, PAIRS), sorted_edges=False)
    assert graph.edge_index.tolist() == INDEX
    wide = ga.from_edges(index, num_dst=np.int64(5), num_src=7)
    assert_is(wide, truth.of_pairs(5, 7, PAIRS), sorted_edges=False)


@pytest.mark.parametrize("index", [[[], []], torch.zeros(2, 0), np.zeros((2, 0), int)])
@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (1, 1), (2, 3)])
def test_no_edges(index, shape):
    graph = ga.from_edges(index, num_dst=shape[0], num_src=shape[1])
    assert_is(graph, truth.of_pairs(*shape, []))


def test_a_graph_is_kept_apart_from_the_tensor_it_came_in():
    index = torch.tensor(INDEX)
    graph = ga.from_edges(index, 4)
    index.zero_()
    assert graph.edge_index.tolist() == INDEX


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ga.from_edges(PAIRS, 4), ValueError, r"\(2, E\), got \(5, 2\); transpose it"),
        (lambda: ga.from_edges([], 4), ValueError, r"shape \(2, E\), got \(0,\)"),
        (lambda: ga.from_edges(3, 4), ValueError, r"shape \(2, E\), got \(\)"),
        (lambda: ga.from_edges([[0], [1], [2]], 4), ValueError, r"shape \(2, E\), got \(3, 1\)"),
        (lambda: ga.from_edges([[[0]], [[1]]], 4), ValueError, r"shape \(2, E\), got \(2, 1, 1\)"),
        (lambda: ga.from_edges([[0.0], [1.0]], 4), TypeError, r"hold integers, got torch.float32"),
        (lambda: ga.from_edges([[True], [False]], 4), TypeError, r"hold integers, got torch.bool"),
        (lambda: ga.from_edges([[1j], [0]], 4), TypeError, r"hold integers, got torch.complex64"),
        (lambda: ga.from_edges(None, 4), TypeError, r"edge_index must be a tensor.* got NoneType"),
        (lambda: ga.from_edges("edges", 4), TypeError, r"must be a tensor, .* got str 'edges'"),
        (lambda: ga.from_edges([[0, 1], [1]], 4), TypeError, r"got list \[\[0, 1\], \[1\]\]"),
        (lambda: ga.from_edges([[0], ["a"]], 4), TypeError, r"got list \[\[0\], \['a'\]\]"),
        (lambda: ga.from_edges([[0], [10**30]], 4), TypeError, r"must be a tensor.* got list"),
        (lambda: ga.from_edges(zip([0], [1]), 4), TypeError, r"must be a tensor.* got zip"),
        (lambda: ga.from_edges(np.array([["a"], ["b"]]), 4), TypeError, r"tensor.* got ndarray"),
        (lambda: ga.from_edges(torch.eye(2).to_sparse(), 2), TypeError, r"must be dense.*to_dense"),
        (lambda: ga.from_edges([[0], [4]], 4), IndexError, r"dest.* 4, out of range .*\(0\.\.3\)"),
        (lambda: ga.from_edges([[-1], [0]], 4), IndexError, r"the source -1, out of range for 4"),
        (lambda: ga.from_edges([[0], [0]], 0), IndexError, r"the source 0, out of range for 0"),
        (lambda: ga.from_edges([[2], [0]], num_dst=3, num_src=2), IndexError, r"the source 2,"),
        (lambda: ga.from_edges([[0], [3]], num_dst=3, num_src=9), IndexError, r"destination 3,"),
        (lambda: ga.from_edges(INDEX), TypeError, r"give num_nodes, or both num_dst and num_src"),
        (lambda: ga.from_edges(INDEX, num_dst=4), TypeError, r"num_dst=4, num_src=None"),
        (lambda: ga.from_edges(INDEX, 4, num_src=4), TypeError, r"got num_nodes=4, .*num_src=4"),
        (lambda: ga.from_edges(INDEX, -1), ValueError, r"num_nodes must be between 0 .*, got -1"),
        (lambda: ga.from_edges(INDEX, 4.0), TypeError, r"num_nodes must be an integer, got 4.0"),
        (lambda: ga.from_edges(INDEX, True), TypeError, r"num_nodes must be an integer, got True"),
        (lambda: ga.from_edges([[0], [0]], 2**31), ValueError, r"num_nodes must be between"),
        (lambda: ga.from_mask([[1, 0]]), TypeError, r"boolean, got torch.int64; write mask != 0"),
        (lambda: ga.from_mask(torch.zeros(2, 2)), TypeError, r"boolean, got torch.float32"),
        (lambda: ga.from_mask(None), TypeError, r"mask must be a tensor, .* got NoneType"),
        (lambda: ga.from_mask([[True], [True, False]]), TypeError, r"mask must be a tensor"),
        (lambda: ga.from_mask([True, False]), ValueError, r"\(num_dst, num_src\), got \(2,\)"),
        (lambda: ga.from_mask(np.ones((1, 2, 2), bool)), ValueError, r"got \(1, 2, 2\)"),
        (lambda: ga.from_mask([[True, False]], 2), ValueError, r"\(2, 2\), got \(1, 2\); leave"),
        (lambda: ga.from_mask([[True]], 2), ValueError, r"a mask of shape \(2, 2\), got \(1, 1"),
        (lambda: ga.from_mask([[True]], "1"), TypeError, r"num_nodes must be an integer, got '1'"),
        (lambda: ga.from_mask([[True]], True), TypeError, r"num_nodes must be an integer, got T"),
        (lambda: ga.from_scipy(np.eye(3)), TypeError, r"sparse matrix, got ndarray; .* from_mask"),
        (lambda: ga.from_scipy(None), TypeError, r"expected a scipy sparse matrix, got NoneType"),
        (lambda: ga.from_scipy(scipy.sparse.coo_array([0, 1])), ValueError, r"the shape \(2,\)"),
        (lambda: ga.from_pyg(HeteroData()), TypeError, r"got HeteroData; .*data\[edge_type\]"),
        (lambda: ga.from_pyg(Data(x=torch.ones(2, 1))), TypeError, r"edge_index, got Data"),
        (lambda: ga.from_pyg(3), TypeError, r"expected PyG data with an edge_index, got int"),
        (lambda: ga.from_networkx(None), TypeError, r"expected a networkx graph, got NoneType"),
        (lambda: ga.from_networkx([(0, 1)]), TypeError, r"expected a networkx graph, got list"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("shape", [(0, 0), (0, 2), (1, 1), (3, 5), (5, 3), (7, 7)])
def test_from_mask(shape):
    mask = np.random.default_rng(0).random(shape) < 0.5
    for given in (mask, torch.as_tensor(mask), mask.T.copy().T, mask[::-1].copy()[::-1]):
        assert_is(ga.from_mask(given), mask.astype(int))
    if shape[0] == shape[1]:
        assert_is(ga.from_mask(mask, num_nodes=shape[0]), mask.astype(int))


MATRIX = np.array([[0, 2, 0, -1], [0.5, 0, 0, 0], [0, 0, 0, 7]])  # (src, dst)


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "lil", "dok", "bsr"])
@pytest.mark.parametrize("family", ["matrix", "array"])
def test_from_scipy(kind, family):
    matrix = getattr(scipy.sparse, f"{kind}_{family}")(MATRIX)
    assert_is(ga.from_scipy(matrix), (MATRIX != 0).T.astype(int), sorted_edges=False)


def test_a_stored_zero_is_no_edge():
    entries = ([0.0, 1.0, 2.0, -2.0, 3.0, 4.0], ([0, 0, 1, 1, 2, 2], [0, 1, 0, 0, 2, 2]))
    graph = ga.from_scipy(scipy.sparse.coo_matrix(entries, shape=(3, 4)))
    assert_is(graph, truth.of_pairs(4, 3, [(0, 1), (2, 2)]))


def test_from_pyg():
    data = Data(edge_index=torch.tensor(INDEX), num_nodes=6)
    assert_is(ga.from_pyg(data), truth.of_pairs(6, 6, PAIRS), sorted_edges=False)
    assert_is(ga.from_pyg(Data(edge_index=torch.zeros(2, 0, dtype=int), num_nodes=2)),
              truth.of_pairs(2, 2, []))  # fmt: skip
    count = truth.of_pairs(4, 4, PAIRS)
    both = Batch.from_data_list([Data(edge_index=torch.tensor(INDEX), num_nodes=4)] * 2)
    assert_is(ga.from_pyg(both), truth.batch([count, count]), sorted_edges=False)


def test_pyg_with_too_few_nodes():
    with pytest.raises(IndexError, match="source 3, out of range for 3 source nodes"):
        ga.from_pyg(Data(edge_index=torch.tensor(INDEX), num_nodes=3))


@pytest.mark.parametrize(
    "graph", [ga.from_edges(INDEX, 4), ga.causal(4), ga.complete(0), ga.hubs(5, [2])], ids=str
)
def test_there_and_back_through_pyg(graph):
    data = graph.to_pyg()
    assert isinstance(data, Data)
    assert data.num_nodes == graph.num_dst
    assert ga.from_pyg(data).edge_index.equal(graph.edge_index)
    data.edge_index.zero_()  # is the reader's own
    assert ga.from_pyg(graph.to_pyg()).edge_index.equal(graph.edge_index)


LABELS = ["b", ("a", 1), 7, 2.5]  # any hashable, in no order


@pytest.mark.parametrize("kind", [networkx.DiGraph, networkx.MultiDiGraph])
def test_directed(kind):
    original = kind()
    original.add_nodes_from(LABELS)
    original.add_edges_from((LABELS[src], LABELS[dst]) for src, dst in PAIRS)
    graph = ga.from_networkx(original)
    pairs = PAIRS if original.is_multigraph() else set(PAIRS)
    assert graph.node_labels == tuple(LABELS)
    assert_is(graph, truth.of_pairs(4, 4, pairs), sorted_edges=False)
    again = graph.to_networkx()
    assert list(again.nodes) == LABELS
    assert again.is_directed()
    assert again.is_multigraph() == original.is_multigraph()
    assert sorted(again.edges, key=str) == sorted(original.edges, key=str)


@pytest.mark.parametrize("kind", [networkx.Graph, networkx.MultiGraph])
def test_undirected_edges_go_both_ways_and_loops_once(kind):
    original = kind()
    original.add_nodes_from(LABELS)
    original.add_edges_from((LABELS[src], LABELS[dst]) for src, dst in PAIRS)
    pairs = [pair for src, dst in PAIRS for pair in {(src, dst), (dst, src)}]
    pairs = pairs if original.is_multigraph() else set(pairs)
    assert_is(ga.from_networkx(original), truth.of_pairs(4, 4, pairs), sorted_edges=False)


def test_attributes_come_along_in_edge_order():
    original = networkx.Graph()
    original.add_edge("a", "b", weight=0.5, hops=1)
    original.add_edge("b", "b", weight=np.float32(2), hops=True, label="unread")
    graph = ga.from_networkx(original, edge_attrs=["weight", "hops"])
    assert graph.edge_index.tolist() == [[0, 1, 1], [1, 0, 1]]
    assert {name: column.tolist() for name, column in graph.edge_attrs.items()} == {
        "weight": [0.5, 0.5, 2.0],
        "hops": [1.0, 1.0, 1.0],
    }
    assert ga.from_networkx(original, "weight").edge_attrs.keys() == {"weight"}
    assert graph.to_networkx()["b"]["b"] == {"weight": 2.0, "hops": 1.0}
    assert graph.to_pyg().weight.tolist() == [0.5, 0.5, 2.0]
    moved = graph.to("meta")
    assert moved.edge_attrs["weight"].device == moved.device == torch.device("meta")


def test_no_nodes():
    assert_is(ga.from_networkx(networkx.Graph()), truth.of_pairs(0, 0, []))
    assert len(ga.complete(0).to_networkx()) == 0


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({}, r"edge \('u', 'v'\) has no attribute 'w' \(it has \[\]\); set it on every edge, or"),
        ({"z": 1, 3: 4}, r"has no attribute 'w' \(it has \['z', 3\]\)"),
        ({"w": None}, r"attribute 'w' of edge \('u', 'v'\) must be a number, got None"),
        ({"w": "3"}, r"must be a number, got '3'"),
        ({"w": [1, 2]}, r"must be a number, got \[1, 2\]"),
    ],
)
def test_attributes_that_are_no_numbers(attributes, message):
    original = networkx.DiGraph()
    original.add_edge("a", "u", w=1.0)
    original.add_edge("u", "v")
    original.edges["u", "v"].update(attributes)
    with pytest.raises(ValueError, match=message):
        ga.from_networkx(original, ["w"])


@pytest.mark.parametrize(
    "graph",
    [ga.causal(4), ga.sliding_window(5, 1), ga.complete(1), ga.from_edges(INDEX, 4)],
    ids=str,
)
def test_there_and_back_through_networkx(graph):
    there = graph.to_networkx()
    assert there.is_multigraph() == bool((graph.csr().ptr.diff() > graph.mask().sum(1)).any())
    again = ga.from_networkx(there)
    assert sorted(again.edge_index.T.tolist()) == sorted(graph.edge_index.T.tolist())


@pytest.mark.parametrize("convert", ["to_networkx", "to_pyg"])
def test_other_libraries_have_one_set_of_nodes(convert):
    with pytest.raises(ValueError, match="one set of nodes; this graph has 3 sources and 2 dest"):
        getattr(ga.bipartite(2, 3), convert)()
