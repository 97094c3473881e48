"""Exphormer beside its formula, its expanders, and both within GPS layers."""

from __future__ import annotations

from typing import Any

import networkx
import pytest
import torch
from torch import Tensor
from torch_geometric import nn
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

from graphattn import pyg
from graphattn.pyg.exphormer import KINDS
from tests.pyg.test_layers import close, randn

WIDTH, HEADS, EDGE_DIM = 8, 2, 3


def ring(nodes: int, seed: int = 0) -> Data:
    """A cycle, with features of nodes and edges."""
    here = torch.arange(nodes)
    index = torch.stack([here, (here + 1) % nodes]) if nodes > 1 else torch.empty(2, 0).long()
    attr = randn(index.shape[1], EDGE_DIM, seed=seed + 1)
    return Data(randn(nodes, WIDTH, seed=seed), index, attr)


def rings(*sizes: int, degree: int = 4) -> Batch:
    add = pyg.AddExpander(degree)
    return Batch.from_data_list([add(ring(n, seed=i)) for i, n in enumerate(sizes)])


def layer_of(**options: Any) -> pyg.Exphormer:
    torch.manual_seed(0)
    layer = pyg.Exphormer(WIDTH, HEADS, **options).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


# --- expanders ------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [2, 4, 6])
@pytest.mark.parametrize("nodes", [8, 11, 64])
def test_regular_and_connected(nodes: int, degree: int) -> None:
    src, dst = index = pyg.AddExpander(degree)(Data(num_nodes=nodes)).expander_edge_index
    for end in index:
        assert (torch.bincount(end, minlength=nodes) == degree).all()
    assert (src != dst).all()
    pairs = [sorted(zip(*ends)) for ends in (index.tolist(), index.flip(0).tolist())]
    assert pairs[0] == pairs[1]
    assert networkx.is_connected(networkx.Graph(pairs[0]))


@pytest.mark.parametrize(("nodes", "degree"), [(1, 2), (2, 4), (3, 2), (5, 4)])
def test_small_graphs_have_every_pair(nodes: int, degree: int) -> None:
    index = pyg.AddExpander(degree)(Data(num_nodes=nodes)).expander_edge_index
    pairs = {(src, dst) for src in range(nodes) for dst in range(nodes) if src != dst}
    assert len(index[0]) == len(pairs)
    assert set(zip(*index.tolist())) == pairs


def test_it_expands() -> None:
    """The second eigenvalue is near 2 sqrt(degree - 1) (Friedman 2008); a ring lattice's is not."""
    nodes, degree = 500, 6

    def second(index: Tensor) -> float:
        matrix = torch.zeros(nodes, nodes, dtype=torch.float64)
        matrix.index_put_(tuple(index), torch.ones(len(index[0])).double(), accumulate=True)
        return torch.linalg.eigvalsh(matrix).abs().sort().values[-2].item()

    drawn = pyg.AddExpander(degree)(Data(num_nodes=nodes)).expander_edge_index
    here = torch.arange(nodes)
    lattice = torch.cat([torch.stack([here, (here + s) % nodes]) for s in (1, 2, 3)], dim=1)
    lattice = torch.cat([lattice, lattice.flip(0)], dim=1)
    assert second(drawn) < 1.1 * 2 * (degree - 1) ** 0.5 < 5 < second(lattice)


def test_seeds() -> None:
    def drawn(seed: int) -> Tensor:
        return pyg.AddExpander(seed=seed)(ring(20)).expander_edge_index

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    drawn(3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("how", ["each", "loader", "batch"])
def test_batches(how: str) -> None:
    """Drawn for each graph and then batched by PyG, or drawn for a batch: no edge goes between."""
    sizes, add = (9, 3, 1, 12), pyg.AddExpander(4)
    if how == "batch":
        batch = add(Batch.from_data_list([ring(n) for n in sizes]))
    elif how == "each":
        batch = rings(*sizes)
    else:
        batch = next(iter(DataLoader([add(ring(n)) for n in sizes], batch_size=4)))
    src, dst = batch.expander_edge_index
    assert torch.equal(batch.batch[src], batch.batch[dst])
    size = torch.tensor(sizes)[batch.batch]
    degrees = torch.bincount(dst, minlength=sum(sizes))
    assert torch.equal(degrees, torch.where(size <= 5, size - 1, 4))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"degree": 3}, "degree must be even, two for each cycle, got 3"),
        ({"degree": 0}, "degree must be between 2 and"),
        ({"attr": "expander"}, 'attr must end in "index"'),
    ],
)
def test_expanders_that_do_not_exist(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pyg.AddExpander(**options)


# --- edges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("virtual", [0, 1, 3])
def test_edges(virtual: int) -> None:
    data = rings(7, 1, 6)
    edges = pyg.exphormer_edges(data, virtual_nodes=virtual)
    parts = edges.graph.edge_index.split(edges.counts, dim=1)
    assert torch.equal(parts[0], data.edge_index)
    assert torch.equal(parts[1], data.expander_edge_index)
    assert torch.equal(parts[2], parts[3].flip(0))
    assert parts[2].shape[1] == virtual * data.num_nodes
    assert edges.num_nodes == data.num_nodes
    for src, dst in parts:
        assert torch.equal(edges.batch[src], edges.batch[dst])
    heard = torch.bincount(parts[2][1], minlength=len(edges.batch))
    assert heard.tolist() == [0] * 14 + [n for n in (7, 1, 6) for _ in range(virtual)]


def test_edges_of_one_graph() -> None:
    """Without an expander, features and a batch vector; and no node at all."""
    plain = pyg.exphormer_edges(Data(edge_index=torch.tensor([[0], [1]]), num_nodes=3))
    assert plain.counts == (1, 0, 3, 3)
    assert plain.batch.tolist() == [0, 0, 0, 0]
    nobody = pyg.exphormer_edges(Data(edge_index=torch.empty(2, 0).long(), num_nodes=0))
    assert nobody.counts == (0, 0, 0, 0)


# --- the formula ----------------------------------------------------------------------------------


def by_hand(layer: pyg.Exphormer, x: Tensor, edges: pyg.ExphormerEdges) -> tuple[Tensor, Tensor]:
    """Output and weights, node by node, edge by edge."""
    dim, src, dst = WIDTH // HEADS, *edges.graph.edge_index
    kind = torch.arange(len(KINDS)).repeat_interleave(torch.tensor(edges.counts))
    gate = layer.kinds[kind]
    if layer.edge is not None:
        added = edges.edge_attr @ layer.edge.weight.T
        gate = gate + torch.cat([added, torch.zeros(len(gate) - len(added), WIDTH).double()])
    query, key, value = (part(x) for part in (layer.query, layer.key, layer.value))
    weights, out = torch.zeros(len(src), HEADS).double(), torch.zeros_like(x)
    for head in range(HEADS):
        own = slice(head * dim, (head + 1) * dim)
        for node in range(len(x)):
            heard = (dst == node).nonzero().squeeze(1)
            gated = gate[heard][:, own] * key[src[heard]][:, own]
            w = torch.softmax(gated @ query[node, own] / dim**0.5, dim=0)
            weights[heard, head] = w
            out[node, own] = w @ value[src[heard]][:, own]
    return layer.out(out), weights


@pytest.mark.parametrize("edge_dim", [None, EDGE_DIM])
@pytest.mark.parametrize("virtual", [0, 1, 2])
def test_formula(virtual: int, edge_dim: int | None) -> None:
    layer, start = layer_of(edge_dim=edge_dim), pyg.VirtualNodes(virtual, WIDTH).double()
    edges = pyg.exphormer_edges(rings(7, 1, 6), virtual_nodes=virtual)
    x = randn(edges.num_nodes, WIDTH, seed=5).requires_grad_()
    full = start(x, edges)
    expected, weights = by_hand(layer, full, edges)
    close(layer(full, edges), expected)
    close(layer.weights(full, edges), weights)
    wanted = [x, *layer.parameters(), *start.parameters()]
    grads = [
        torch.autograd.grad((out * randn(*out.shape, seed=6)).sum(), wanted, materialize_grads=True)
        for out in (layer(full, edges), by_hand(layer, start(x, edges), edges)[0])
    ]
    close(grads[0], grads[1])


def test_every_gate_begins_as_one() -> None:
    """Then kinds of edges make no difference, and it is plain attention over all of them."""
    torch.manual_seed(0)
    layer = pyg.Exphormer(WIDTH, HEADS).double()
    edges = pyg.exphormer_edges(rings(7, 6))
    x = randn(len(edges.batch), WIDTH, seed=5)
    plain = pyg.TransformerConv(WIDTH, WIDTH // HEADS, HEADS, root_weight=False).double()
    for name in ("query", "key", "value"):
        getattr(plain, f"lin_{name}").load_state_dict(getattr(layer, name).state_dict())
    close(layer(x, edges), layer.out(plain(x, edges.graph)))


def test_reset() -> None:
    layer = layer_of(edge_dim=EDGE_DIM)
    before = [parameter.clone() for parameter in layer.parameters()]
    layer.reset_parameters()
    assert not any(torch.equal(a, b) for a, b in zip(before, layer.parameters()))
    assert (layer.kinds == 1).all()


def test_dropout_is_of_training_alone() -> None:
    layer = layer_of(dropout=0.5)
    edges = pyg.exphormer_edges(rings(7, 6))
    x = randn(len(edges.batch), WIDTH, seed=5)
    assert not torch.equal(layer(x, edges), layer(x, edges))
    layer.eval()
    close(layer(x, edges), by_hand(layer, x, edges)[0])


# --- within GPS -----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch_norm", "graph_norm"])
def test_gps_layers(norm: str) -> None:
    """What a layer gives for a batch is what it gives for each graph."""
    torch.manual_seed(0)
    attention = layer_of(edge_dim=EDGE_DIM)
    conv = nn.GINEConv(torch.nn.Linear(WIDTH, WIDTH), edge_dim=EDGE_DIM)
    layer = pyg.GPSConv(WIDTH, conv, norm=norm, attention=attention).double().eval()
    start, data = pyg.VirtualNodes(2, WIDTH).double(), rings(7, 9, 6)

    def run(data: Any) -> Tensor:
        edges = pyg.exphormer_edges(data, virtual_nodes=2)
        x = layer(start(data.x, edges), data.edge_index, edges, edge_attr=data.edge_attr)
        return x[: edges.num_nodes]

    together = run(data)
    close(together, torch.cat([run(graph) for graph in data.to_data_list()]))
    together.sum().backward()
    assert start.weight.grad is not None
    assert attention.kinds.grad is not None


def test_virtual_nodes_carry_what_they_heard() -> None:
    """From one end of a path to the other in two layers, through a virtual node alone."""
    here = torch.arange(29)
    data = Data(edge_index=torch.stack([here, here + 1]), num_nodes=30)
    for virtual, reached in ((1, True), (0, False)):
        edges = pyg.exphormer_edges(data, virtual_nodes=virtual)
        x = randn(30, WIDTH, seed=0).requires_grad_()
        h = pyg.VirtualNodes(virtual, WIDTH).double()(x, edges)
        for layer in (layer_of(), layer_of()):
            h = layer(h, edges)
        (grad,) = torch.autograd.grad(h[0].sum(), x)
        assert bool(grad[-1].abs().sum() > 0) == reached


# --- bad input ------------------------------------------------------------------------------------


def test_what_does_not_fit_is_said() -> None:
    data = rings(7, 6)
    edges = pyg.exphormer_edges(data)
    with pytest.raises(TypeError, match=r"needs the edges that exphormer_edges\(data\) makes"):
        layer_of()(data.x, data.batch)
    with pytest.raises(ValueError, match="15 destination nodes but query holds 13"):
        layer_of()(data.x, edges)
    with pytest.raises(ValueError, match="features of 2 virtual nodes, and the edges have 1"):
        pyg.VirtualNodes(2, WIDTH)(data.x, edges)
    with pytest.raises(ValueError, match="x has 12 nodes, and the edges have 13"):
        pyg.VirtualNodes(1, WIDTH)(data.x[1:], edges)
    with pytest.raises(ValueError, match="edge_dim=5, and edge_attr has width 3"):
        layer_of(edge_dim=5)(pyg.VirtualNodes(1, WIDTH).double()(data.x, edges), edges)
    with pytest.raises(ValueError, match="8 channels and 3 heads"):
        pyg.Exphormer(8, 3)
    data.edge_attr = data.edge_attr[1:]
    with pytest.raises(ValueError, match="a row for each of the 13 edges, got 12"):
        pyg.exphormer_edges(data)
