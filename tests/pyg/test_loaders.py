"""Batches of PyG's loaders: whole, trimmed, as layers; and data that travels with graphs."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric import nn
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader, NeighborLoader
from torch_geometric.utils import trim_to_layer

import graphattn as ga
from graphattn import pyg
from graphattn.graphs.csr import compact_both
from graphattn.pyg.reach import first_nodes
from tests.pyg.sampling import needs_sampler, sampled
from tests.pyg.test_layers import DIM, EDGE_DIM, HEAD_DIM, HEADS, NAMES, close, inputs, randn
from tests.pyg.test_transforms import same

pytestmark = pytest.mark.filterwarnings("ignore:.*without a 'pyg-lib' installation")
NODES, SEEDS = 60, 4


def whole() -> Data:
    """A graph of which a batch sees a part; its edges are in no order."""
    given = inputs(NODES, NODES, 200, seed=3)
    return Data(given.src.detach(), given.edge_index, given.edge_attr.detach())


def batch(hops: int = 2) -> Data:
    return sampled(whole(), torch.tensor([7, 3, 50, 12]), [3] * hops)


class Net(torch.nn.Module):
    """Two layers, called in each of the ways in which a batch may be given."""

    def __init__(self, layers: Any, name: str, edge_dim: int | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        kind, wide = getattr(layers, name), HEADS * HEAD_DIM
        one = kind(DIM, HEAD_DIM, HEADS, edge_dim=edge_dim)
        self.convs = torch.nn.ModuleList([one, kind(wide, 3, edge_dim=edge_dim)])
        self.edge_dim = edge_dim
        self.double()

    def forward(self, x: Tensor, edges: Any, attr: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x, edges, attr if self.edge_dim else None).relu()
        return x

    def trimmed(self, x: Tensor, edges: Tensor, attr: Tensor, data: Data) -> Tensor:
        sizes = (data.num_sampled_nodes, data.num_sampled_edges)
        for number, conv in enumerate(self.convs):
            x, edges, attr = trim_to_layer(number, *sizes, x, edges, attr)
            x = conv(x, edges, attr if self.edge_dim else None).relu()
        return x

    def layered(self, x: Tensor, layers: list[ga.Graph], attr: Tensor) -> Tensor:
        for conv, graph in zip(self.convs, layers):
            edges = attr[: graph.num_edges] if self.edge_dim else None
            x = conv((x[: graph.num_src], x[: graph.num_dst]), graph, edges).relu()
        return x


def outputs(net: Net, call: Any, data: Data) -> tuple[Tensor, ...]:
    """What the seeds get, and the gradients of nodes, edges and parameters."""
    x, attr = (part.clone().requires_grad_() for part in (data.x, data.edge_attr))
    out = call(net, x, attr)[:SEEDS]
    loss = (out * randn(*out.shape, seed=7)).sum()
    wanted = [x, attr, *net.parameters()]
    grads = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    return out, *grads


WAYS: dict[str, Any] = {
    "edge_index": lambda net, x, attr, data: net(x, data.edge_index, attr),
    "int32": lambda net, x, attr, data: net(x, data.edge_index.int(), attr),
    "graph": lambda net, x, attr, data: net(x, pyg.ToGraph()(data).graph, attr),
    "trimmed": lambda net, x, attr, data: net.trimmed(x, data.edge_index, attr, data),
    "layers": lambda net, x, attr, data: net.layered(x, pyg.ToLayers(2)(data).layers, attr),
}


@pytest.mark.parametrize("edge_dim", [None, EDGE_DIM])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_seeds_get_what_pyg_gives_them(name: str, way: str, edge_dim: int | None) -> None:
    data = batch()
    theirs, ours = (Net(layers, name, edge_dim) for layers in (nn, pyg))
    expected = outputs(theirs, lambda net, x, attr: net(x, data.edge_index, attr), data)
    close(outputs(ours, lambda *call: WAYS[way](*call, data), data), expected)


@pytest.mark.parametrize("name", NAMES)
def test_all_nodes_of_a_batch_get_what_pyg_gives_them(name: str) -> None:
    """Those that hear nobody, too."""
    data = batch()
    theirs, ours = (Net(layers, name, None) for layers in (nn, pyg))
    for options in ({}, {"concat": False}, {"root_weight": False}, {"beta": True}):
        if options and name != "TransformerConv":
            continue
        for net, layers in ((theirs, nn), (ours, pyg)):
            torch.manual_seed(1)
            net.convs[0] = getattr(layers, name)(DIM, HEAD_DIM, HEADS, **options).double()
        out, expected = (net.convs[0](data.x, data.edge_index) for net in (ours, theirs))
        close(out, expected)
        assert out[-1].abs().sum() > 0 or "root_weight" in options


@needs_sampler
def test_batches_by_hand_are_those_of_the_loader() -> None:
    """All neighbors are taken, so that nothing is left to chance."""
    data, seeds = whole().sort(sort_by_row=False), torch.tensor([7, 3, 50, 12])
    loader = NeighborLoader(data, [-1, -1], seeds, batch_size=SEEDS, is_sorted=True)
    for loaded in loader:
        made = sampled(data, seeds, [-1, -1])
        for key in ("n_id", "edge_index", "x", "edge_attr", "e_id"):
            assert torch.equal(loaded[key], made[key]), key
        assert loaded.batch_size == made.batch_size


@needs_sampler
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_loader_end_to_end(name: str, workers: int) -> None:
    """Graphs are made by the workers; training on them goes as with PyG's layers."""
    data = whole()
    compose: list[Any] = [pyg.ToGraph(), pyg.ToLayers(2)]
    loader = NeighborLoader(
        data,
        [3, 2],
        batch_size=25,
        num_workers=workers,
        transform=lambda batch: compose[1](compose[0](batch)),
    )
    theirs, ours, layered = (Net(layers, name, EDGE_DIM) for layers in (nn, pyg, pyg))
    nets = (theirs, ours, layered)
    optimizers = [torch.optim.SGD(net.parameters(), 0.1) for net in nets]
    for loaded in loader:
        same(loaded.graph, loaded.edge_index, loaded.num_nodes, loaded.num_nodes)
        size, attr = loaded.batch_size, loaded.edge_attr
        assert loaded.layers[-1].num_dst == size
        outs = [net(loaded.x, loaded.graph, attr)[:size] for net in (ours,)]
        outs.append(theirs(loaded.x, loaded.edge_index, attr)[:size])
        outs.append(layered.layered(loaded.x, loaded.layers, attr))
        for out, optimizer in zip(outs, (optimizers[1], optimizers[0], optimizers[2])):
            optimizer.zero_grad()
            out.square().mean().backward()
            optimizer.step()
    expected = list(theirs.state_dict().values())
    for net in (ours, layered):
        close(list(net.state_dict().values()), expected)


@needs_sampler
@pytest.mark.parametrize("v2", [False, True])
def test_models_of_pyg_train_alike(v2: bool) -> None:
    data, results = whole(), []
    for accelerated in (False, True):
        torch.manual_seed(0)
        # In float64: Adam makes steps of full size of gradients that are mere roundings.
        model = nn.GAT(DIM, 8, 2, 3, heads=2, v2=v2).double()
        if accelerated:
            assert len(pyg.accelerate(model).replaced) == 2
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for loaded in NeighborLoader(data, [3, 2], batch_size=20, shuffle=True):
            optimizer.zero_grad()
            model(loaded.x, loaded.edge_index)[: loaded.batch_size].square().mean().backward()
            optimizer.step()
        results.append(model(data.x, data.edge_index))
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-8)


def test_layers_hold_what_the_seeds_hear_of() -> None:
    data = batch(hops=3)
    layers = pyg.ToLayers(3)(data).layers
    sizes = torch.tensor(data.num_sampled_nodes).cumsum(0).tolist()
    edges = torch.tensor(data.num_sampled_edges).cumsum(0).tolist()
    for graph, hop in zip(layers, (2, 1, 0)):
        assert (graph.num_src, graph.num_dst) == (sizes[hop + 1], sizes[hop])
        same(graph, data.edge_index[:, : edges[hop]], sizes[hop + 1], sizes[hop])


@pytest.mark.parametrize("num_layers", [1, 4])
def test_another_number_of_layers_than_of_hops(num_layers: int) -> None:
    """Fewer see less; more see what there is."""
    data = batch()
    layers = pyg.ToLayers(num_layers)(data).layers
    assert len(layers) == num_layers
    net, x = pyg.TransformerConv(DIM, DIM).double(), data.x
    expected = data.x
    for graph in layers:
        x = net((x[: graph.num_src], x[: graph.num_dst]), graph)
        expected = net(expected, data.edge_index)
    close(x, expected[:SEEDS])


def test_seeds_that_hear_nobody() -> None:
    data = Data(torch.randn(3, DIM), torch.zeros(2, 0, dtype=torch.int64), batch_size=3)
    for graph in pyg.ToLayers(2)(data).layers:
        assert (graph.num_src, graph.num_dst, graph.num_edges) == (3, 3, 0)


def with_seeds(edge_index: list[list[int]], **more: Any) -> Data:
    return Data(torch.randn(3, 1), torch.tensor(edge_index), **more)


def test_what_is_no_batch_of_a_loader_is_said() -> None:
    with pytest.raises(ValueError, match="the data has no batch_size"):
        pyg.ToLayers(2)(with_seeds([[0], [1]]))
    with pytest.raises(ValueError, match=r"sorted by destination.*sort_by_row=False"):
        pyg.ToLayers(2)(with_seeds([[0, 1], [1, 0]], batch_size=1))
    with pytest.raises(IndexError, match="source 3, out of range"):
        pyg.ToLayers(2)(with_seeds([[3], [0]], batch_size=1))
    with pytest.raises(ValueError, match="num_layers must be positive, got 0"):
        pyg.ToLayers(0)


# --- the first nodes ------------------------------------------------------------------------------


@pytest.mark.parametrize("travels", [False, True])
def test_first_nodes(travels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that comes sorted stays so."""
    whole = ga.from_edges(batch().edge_index, NODES)
    if travels:
        whole = pyg.ToGraph()(Data(edge_index=batch().edge_index, num_nodes=NODES)).graph
        monkeypatch.setattr("graphattn.graphs.csr._compact", None)
    graph = first_nodes(whole)
    sizes = (batch().edge_index.amax(1) + 1).tolist()
    assert [graph.num_src, graph.num_dst] == sizes
    if travels:
        compact_both(graph)
        monkeypatch.undo()
    same(graph, batch().edge_index, *sizes)


@pytest.mark.parametrize("kind", ["most take part", "a rule", "no edges"])
def test_graphs_of_which_nothing_is_left_out(kind: str) -> None:
    index = torch.tensor([[7], [8]]) if kind == "most take part" else torch.zeros(2, 0).long()
    graph = ga.causal(9) if kind == "a rule" else ga.from_edges(index, 9)
    first = first_nodes(graph)
    assert (first is graph) == (kind != "no edges")
    assert first.num_edges == graph.num_edges
    x = randn(9, DIM, seed=0)
    theirs, ours = (layers.TransformerConv(DIM, HEAD_DIM).double() for layers in (nn, pyg))
    ours.load_state_dict(theirs.state_dict())
    close(ours(x, graph), theirs(x, graph.edge_index))


# --- data that travels ----------------------------------------------------------------------------


def small(nodes: int, seed: int) -> Data:
    given = inputs(nodes, nodes, 3 * nodes, seed=seed)
    return Data(given.src.detach(), given.edge_index, given.edge_attr.detach())


TRIPS: dict[str, Any] = {
    "clone": lambda data: data.clone(),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda data: pickle.loads(pickle.dumps(data)),
    "to(device)": lambda data: data.to("cpu"),
    "detach": lambda data: data.detach(),
    "contiguous": lambda data: data.contiguous(),
    "share_memory_": lambda data: data.share_memory_(),
}


@pytest.mark.parametrize("trip", TRIPS)
def test_graphs_survive(trip: str) -> None:
    data = TRIPS[trip](pyg.ToLayers(2)(pyg.ToGraph()(batch())))
    same(data.graph, batch().edge_index, data.num_nodes, data.num_nodes)
    assert [graph.num_dst for graph in data.layers][-1] == SEEDS


@pytest.mark.parametrize("before", [False, True], ids=["after only", "before and after"])
def test_batches_of_small_graphs(before: bool) -> None:
    """Graphs that the data had are lists on their batch; those made anew are of the whole."""
    sets = [small(nodes, seed=nodes) for nodes in (5, 1, 7)]
    made = [pyg.ToGraph()(data) for data in sets] if before else sets
    both = Batch.from_data_list(made)
    assert not before or [graph.num_dst for graph in both.graph] == [5, 1, 7]
    together = pyg.ToGraph()(both)
    same(together.graph, together.edge_index, 13, 13)
    assert [data.num_nodes for data in together.to_data_list()] == [5, 1, 7]
    assert not before or both[2].graph.num_dst == 7
    net = Net(pyg, "GATConv", EDGE_DIM)
    out = net(together.x, together.graph, together.edge_attr)
    alone = [net(data.x, data.edge_index, data.edge_attr) for data in sets]
    close(out, torch.cat(alone))


def test_a_list_of_graphs_is_no_graph() -> None:
    both = Batch.from_data_list([pyg.ToGraph()(small(5, 0)) for _ in range(2)])
    with pytest.raises(TypeError, match=r"edge_index must be a tensor .* got list"):
        pyg.GATConv(DIM, HEAD_DIM).double()(both.x, both.graph)


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_of_small_graphs(workers: int) -> None:
    sets = [small(nodes, seed=nodes) for nodes in (5, 2, 7, 3)]
    net = Net(pyg, "TransformerConv", EDGE_DIM)
    for number, loaded in enumerate(DataLoader(sets, batch_size=2, num_workers=workers)):
        out = net(loaded.x, pyg.ToGraph()(loaded).graph, loaded.edge_attr)
        two = sets[2 * number : 2 * number + 2]
        close(out, torch.cat([net(d.x, d.edge_index, d.edge_attr) for d in two]))


def test_the_cache_forgets_batches() -> None:
    """A batch takes its graph along when it goes."""
    pyg.graph_cache.clear()
    net = Net(pyg, "GATv2Conv", None)
    for _ in range(3):
        data = batch()
        net(data.x, data.edge_index, data.edge_attr)
        assert len(pyg.graph_cache) == 1
    del data
    assert len(pyg.graph_cache) == 0


def test_nothing_of_the_user_is_written_into() -> None:
    """The part that hears is added in place, to what the layer itself has made."""
    data = batch()
    conv = pyg.TransformerConv(DIM, DIM, heads=1).double()
    x, before = data.x.clone(), data.x.clone()
    expected = nn.TransformerConv.forward(conv, x, data.edge_index)
    close(conv(x, data.edge_index), expected)
    seen: list[Tensor] = []
    conv.lin_skip.register_forward_hook(lambda _, args, out: seen.append(out))
    close(conv(x, data.edge_index), expected)
    close(seen[0], torch.nn.functional.linear(x, conv.lin_skip.weight, conv.lin_skip.bias))
    conv.lin_skip = torch.nn.Identity()
    close(conv(x, data.edge_index), nn.TransformerConv.forward(conv, x, data.edge_index))
    assert torch.equal(x, before)
