"""torch_sparse's matrices, which PyG's own code reads; and data that holds them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch_geometric import nn, transforms
from torch_geometric.data import Data
from torch_geometric.loader import NeighborLoader
from torch_geometric.typing import SparseTensor

from graphattn import pyg
from graphattn.pyg.fallback import why_not_now
from tests.pyg.sampling import needs_torch_sparse
from tests.pyg.test_layers import DIM, EDGE_DIM, NAMES, close, inputs, pair_of, randn

pytestmark = [
    needs_torch_sparse,
    pytest.mark.filterwarnings("ignore:.*without a 'pyg-lib' installation"),
]


def matrix(edge_dim: int | None, num_dst: int) -> tuple[Any, torch.Tensor]:
    """Transposed, as PyG has it, with its values in the order of its rows; and sources."""
    given = inputs(11, num_dst, 40)
    src, dst = given.edge_index.unique(dim=1)
    value = None if edge_dim is None else randn(len(src), edge_dim, seed=3).requires_grad_()
    adj = SparseTensor(row=dst, col=src, value=value, sparse_sizes=(num_dst, 11))
    return adj, given.src


@pytest.mark.parametrize("asked", [None, True])
@pytest.mark.parametrize("edge_dim", [None, EDGE_DIM])
@pytest.mark.parametrize("num_dst", [11, 8])
@pytest.mark.parametrize("name", NAMES)
def test_layers_take_them(name: str, num_dst: int, edge_dim: int | None, asked: Any) -> None:
    """By PyG's own code, which can't be told from ours but by time."""
    loops = num_dst == 11 and edge_dim is None  # PyG adds none to matrices of features
    options = {} if name == "TransformerConv" else {"add_self_loops": loops}
    theirs, ours = pair_of(name, (DIM, DIM), edge_dim=edge_dim, **options)
    adj, x = matrix(edge_dim, num_dst)
    assert why_not_now(ours, adj) == "torch_sparse's tensors are PyG's to read"
    results = []
    for layer in (theirs, ours):
        out = layer((x, x[:num_dst]), adj, return_attention_weights=asked)
        out, weights = (out[0], out[1].storage.value()) if asked else (out, x.new_zeros(0))
        grads = torch.autograd.grad(out.square().sum(), [x, *layer.parameters()], allow_unused=True)
        results.append((out, weights, grads))
    close(results[1], results[0])


@pytest.mark.parametrize("name", NAMES)
def test_matrix_graph_and_edges_are_one(name: str) -> None:
    """The features of a matrix are in the order of its rows, and so is its graph."""
    options = {} if name == "TransformerConv" else {"add_self_loops": False}
    _, ours = pair_of(name, edge_dim=EDGE_DIM, **options)
    given = inputs(9, 9, 30)
    data = Data(given.src, given.edge_index.unique(dim=1))
    data.edge_attr = randn(data.num_edges, EDGE_DIM, seed=3)
    as_matrix = transforms.ToSparseTensor(attr="edge_attr")(data.clone())
    made = pyg.ToGraph()(as_matrix)
    expected = ours(data.x, data.edge_index, data.edge_attr)
    close(ours(data.x, as_matrix.adj_t), expected)
    close(ours(data.x, made.graph, as_matrix.adj_t.storage.value()), expected)


@pytest.mark.parametrize("name", NAMES)
def test_loaders_of_matrices(name: str) -> None:
    theirs, ours = (getattr(layers, name)(DIM, DIM).double() for layers in (nn, pyg))
    ours.load_state_dict(theirs.state_dict())
    given = inputs(40, 40, 150)
    data = transforms.ToSparseTensor()(Data(given.src.detach(), given.edge_index.unique(dim=1)))
    layers = pyg.ToLayers(1)
    for batch in NeighborLoader(data, [4], batch_size=15, transform=pyg.ToGraph()):
        expected = theirs(batch.x, batch.adj_t)
        close(ours(batch.x, batch.adj_t), expected)
        close(ours(batch.x, batch.graph), expected)
        [graph] = layers(batch).layers
        pair = batch.x[: graph.num_src], batch.x[: graph.num_dst]
        close(ours(pair, graph), expected[: batch.batch_size])
