"""An edge_index is sorted once, and again when it was written into."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from graphattn import pyg
from graphattn.pyg import GraphCache
from tests.pyg.test_layers import DIM, HEAD_DIM


def index() -> Tensor:
    return torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])


def graph(cache: GraphCache, edge_index: Tensor, num_src: int = 5):
    return cache.graph(edge_index, num_src=num_src, num_dst=5)


WRITES: dict[str, Callable[[Tensor], object]] = {
    "an entry": lambda x: x[0].fill_(4),
    "a view of a view": lambda x: x.T[1:].neg_().abs_().add_(1).clamp_(max=4),
    "detached": lambda x: x.detach().fill_(4),
    "copied into": lambda x: x.copy_(x.flip(0)),
    "other memory": lambda x: setattr(x, "data", torch.tensor([[0], [4]])),
    "set": lambda x: x.set_(torch.tensor([[3], [4]])),
    "resized": lambda x: x.resize_(2, 1),
    "transposed": lambda x: x.resize_(2, 2).t_(),
}


@pytest.mark.parametrize("write", WRITES)
def test_never_stale(write: str) -> None:
    cache, edge_index = GraphCache(), index()
    before = graph(cache, edge_index)
    assert graph(cache, edge_index) is before
    WRITES[write](edge_index)
    assert torch.equal(graph(cache, edge_index).edge_index, edge_index)
    assert before.edge_index.tolist() == index().tolist()


def test_other_nodes_are_another_graph() -> None:
    cache, edge_index = GraphCache(), index()
    assert graph(cache, edge_index, 6).num_src == 6
    assert graph(cache, edge_index, 7).num_src == 7


def test_equal_tensors_are_not_one() -> None:
    cache, one, other = GraphCache(), index(), index()
    assert graph(cache, one) is not graph(cache, other)


def test_the_latest_are_kept() -> None:
    cache, tensors = GraphCache(2), [index() for _ in range(3)]
    first, second = (graph(cache, x) for x in tensors[:2])
    assert graph(cache, tensors[0]) is first  # now the second is the oldest
    graph(cache, tensors[2])
    assert len(cache) == 2
    assert graph(cache, tensors[0]) is first
    assert graph(cache, tensors[1]) is not second


def test_a_graph_goes_with_its_tensor() -> None:
    cache, edge_index = GraphCache(), index()
    graph(cache, edge_index)
    del edge_index
    gc.collect()
    assert len(cache) == 0


def test_a_bad_edge_index_is_bad_again() -> None:
    cache, edge_index = GraphCache(), index() + 5
    for _ in range(2):
        with pytest.raises(IndexError, match="out of range"):
            graph(cache, edge_index)


@pytest.mark.parametrize("limit", [0, 1])
def test_switch(limit: int) -> None:
    cache, edge_index = GraphCache(limit), index()
    assert (graph(cache, edge_index) is graph(cache, edge_index)) == bool(limit)
    cache.clear()
    assert len(cache) == 0


def test_inference_tensors_have_no_version() -> None:
    with torch.inference_mode():
        edge_index = index()
        assert graph(GraphCache(), edge_index).num_edges == 4
        edge_index[0, 0] = 3
        assert graph(GraphCache(), edge_index).edge_index[0, 0] == 3


def test_layers_share_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, edge_index, x = GraphCache(), index(), torch.randn(5, DIM)
    monkeypatch.setattr("graphattn.pyg.edges.graph_cache", cache)
    layers = [pyg.TransformerConv(DIM, HEAD_DIM), pyg.GATConv(DIM, HEAD_DIM)]
    before = [layer(x, edge_index) for layer in layers]
    assert len(cache) == 1
    edge_index[1] = edge_index[1].roll(1)
    for layer, old in zip(layers, before):
        assert not torch.equal(layer(x, edge_index), old)
        torch.testing.assert_close(layer(x, edge_index), layer(x, edge_index.clone()))
