"""Nodes and edges of several types: batches of NeighborLoader and HGTLoader, and small graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric import nn
from torch_geometric.data import Batch, HeteroData
from torch_geometric.loader import HGTLoader, NeighborLoader
from torch_geometric.nn import HeteroConv, to_hetero

from graphattn import pyg
from tests.pyg.sampling import needs_sampler, needs_torch_sparse
from tests.pyg.test_fallback import Net
from tests.pyg.test_layers import DIM, EDGE_DIM, HEAD_DIM, HEADS, NAMES, inputs
from tests.pyg.test_transforms import same

pytestmark = pytest.mark.filterwarnings("ignore:.*without a 'pyg-lib' installation")
SIZES = {"a": 40, "b": 30}
TYPES = [("a", "to", "b"), ("b", "at", "a"), ("a", "on", "a")]


def whole(sizes: dict[str, int] = SIZES, edges: int = 90) -> HeteroData:
    data = HeteroData()
    for seed, (kind, size) in enumerate(sizes.items()):
        data[kind].x = inputs(size, size, 1, seed=seed).src.detach().float()
    for seed, key in enumerate(TYPES):
        given = inputs(sizes[key[0]], sizes[key[2]], edges, seed=seed)
        order = given.edge_index[1].argsort(stable=True)
        data[key].edge_index = given.edge_index[:, order]
        data[key].edge_attr = given.edge_attr.detach().float()[order]
    return data


def batch(num_seeds: int = 5) -> HeteroData:
    """All of the data, of which the first of one type are the seeds."""
    data = whole()
    data["b"].batch_size = num_seeds
    return data


class TwoLayers(torch.nn.Module):
    """Two `HeteroConv` of one kind of layer, whose edges have features."""

    def __init__(self, layers: Any, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        kind, wide = getattr(layers, name), HEADS * HEAD_DIM
        options = {"edge_dim": EDGE_DIM}
        options |= {} if name == "TransformerConv" else {"add_self_loops": False}
        self.convs = torch.nn.ModuleList(
            HeteroConv({key: kind((dim, dim), HEAD_DIM, HEADS, **options) for key in TYPES})
            for dim in (DIM, wide)
        )

    def forward(self, x: Any, edges: Any, attr: Any) -> dict[str, Tensor]:
        for conv in self.convs:
            x = {k: v.relu() for k, v in conv(x, edges, edge_attr_dict=attr).items()}
        return x

    def layered(self, x: Any, layers: list[Any], attr: Any) -> dict[str, Tensor]:
        for hetero, graphs in zip(self.convs, layers):
            outs: dict[str, Any] = {}
            for key, graph in graphs.items():
                pair = x[key[0]][: graph.num_src], x[key[2]][: graph.num_dst]
                out = hetero.convs[key](pair, graph, attr[key][: graph.num_edges])
                outs[key[2]] = outs.get(key[2], 0) + out
            x = {kind: out.relu() for kind, out in outs.items()}
        return x


def outputs(net: TwoLayers, call: Any, data: HeteroData) -> tuple[Tensor, ...]:
    """What the seeds get, and gradients."""
    x = {kind: part.clone().requires_grad_() for kind, part in data.x_dict.items()}
    out = call(net, x, data)["b"][: data["b"].batch_size]
    wanted = [*x.values(), *net.parameters()]
    grads = torch.autograd.grad(
        out.square().sum(), wanted, allow_unused=True, materialize_grads=True
    )
    return out, *grads


def by_edge_index(net: TwoLayers, x: Any, data: HeteroData) -> dict[str, Tensor]:
    return net(x, data.edge_index_dict, data.edge_attr_dict)


WAYS: dict[str, Any] = {
    "edge_index": by_edge_index,
    "graph": lambda net, x, data: net(x, pyg.ToGraph()(data).collect("graph"), data.edge_attr_dict),
    "layers": lambda net, x, data: net.layered(
        x, pyg.ToLayers(2)(data).layers, data.edge_attr_dict
    ),
}


def agree(name: str, way: str, data: HeteroData) -> None:
    theirs, ours = (TwoLayers(layers, name) for layers in (nn, pyg))
    expected, got = outputs(theirs, by_edge_index, data), outputs(ours, WAYS[way], data)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_seeds_get_what_pyg_gives_them(name: str, way: str) -> None:
    agree(name, way, batch())


@needs_sampler
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_neighbor_loader(name: str, way: str) -> None:
    loader = NeighborLoader(whole(), [4, 3], input_nodes="b", batch_size=12)
    for loaded in loader:
        agree(name, way, loaded)


@needs_torch_sparse
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_hgt_loader(name: str, way: str) -> None:
    """It samples types as often, and keeps all edges between what it has sampled."""
    loader = HGTLoader(whole(), [8, 8], input_nodes=("b", torch.arange(20)), batch_size=10)
    for loaded in loader:
        assert loaded["b"].batch_size == 10
        agree(name, way, loaded)


@needs_sampler
@pytest.mark.parametrize("workers", [0, 2])
def test_workers_make_the_graphs_of_all_types(workers: int) -> None:
    transform = Both()
    options = {"batch_size": 15, "num_workers": workers, "transform": transform}
    for loaded in NeighborLoader(whole(), [4, 3], input_nodes="b", **options):
        for key in TYPES:
            sizes = [loaded[kind].num_nodes for kind in (key[0], key[2])]
            same(loaded[key].graph, loaded[key].edge_index, *sizes)
        assert loaded.layers[-1]["a", "to", "b"].num_dst == 15
        assert loaded.layers[-1]["b", "at", "a"].num_edges == 0


class Both:
    """A transform that workers can be sent."""

    def __call__(self, data: HeteroData) -> HeteroData:
        return pyg.ToLayers(2)(pyg.ToGraph()(data))


@needs_sampler
@pytest.mark.parametrize("name", NAMES)
def test_to_hetero_over_batches(name: str) -> None:
    data = whole()
    nets = [to_hetero(Net(layers, name, (-1, -1)), data.metadata()) for layers in (nn, pyg)]
    for net in nets:
        net(data.x_dict, data.edge_index_dict)
    nets[1].load_state_dict(nets[0].state_dict(), strict=True)
    for loaded in NeighborLoader(data, [4, 3], input_nodes="a", batch_size=20):
        expected = nets[0](loaded.x_dict, loaded.edge_index_dict)
        torch.testing.assert_close(nets[1](loaded.x_dict, loaded.edge_index_dict), expected)
        graphs = pyg.ToGraph()(loaded).collect("graph")
        torch.testing.assert_close(nets[1](loaded.x_dict, graphs), expected)


def test_edges_of_a_type_that_the_seeds_do_not_hear() -> None:
    last = pyg.ToLayers(1)(batch()).layers[0]
    assert last["a", "to", "b"].num_dst == 5
    assert last["b", "at", "a"].num_edges == last["a", "on", "a"].num_edges == 0


def test_a_type_without_edges_in_a_batch() -> None:
    data = batch()
    data["a", "on", "a"].edge_index = torch.zeros(2, 0, dtype=torch.int64)
    data["a", "on", "a"].edge_attr = torch.zeros(0, EDGE_DIM)
    for way in WAYS:
        agree("GATv2Conv", way, data)


def test_small_graphs_of_several_types() -> None:
    sets = [whole({"a": 5, "b": 4}, 9), whole({"a": 3, "b": 6}, 7)]
    together = pyg.ToGraph()(Batch.from_data_list([pyg.ToGraph()(data) for data in sets]))
    net = TwoLayers(pyg, "TransformerConv")
    out = net(together.x_dict, together.collect("graph"), together.edge_attr_dict)
    for kind in SIZES:
        alone = [net(d.x_dict, d.edge_index_dict, d.edge_attr_dict)[kind] for d in sets]
        torch.testing.assert_close(out[kind], torch.cat(alone), rtol=1e-4, atol=1e-5)
    for data, apart in zip(sets, together.to_data_list()):
        assert apart.num_nodes == data.num_nodes


def test_layers_move_with_the_data() -> None:
    moved = pyg.ToLayers(2)(batch()).to("meta")
    assert all(g.device.type == "meta" for graphs in moved.layers for g in graphs.values())
