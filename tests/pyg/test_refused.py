"""Bad input of transforms and folded layers is refused with words that fit it."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Data

from graphattn import pyg

EDGES = torch.tensor([[0, 1, 2], [0, 0, 1]])
BAD_EDGES = {
    "float": (EDGES.float(), TypeError, "must hold integers"),
    "transposed": (EDGES.T.contiguous(), ValueError, "must have shape"),
    "a virtual node": (torch.tensor([[0, 3], [1, 1]]), IndexError, "out of range for 3"),
}


@pytest.mark.parametrize(("edges", "error", "words"), BAD_EDGES.values(), ids=BAD_EDGES)
@pytest.mark.parametrize(
    "make", [pyg.exphormer_edges, pyg.ToLayers(2)], ids=["exphormer", "layers"]
)
def test_edges_are_checked(make, edges, error, words):
    with pytest.raises(error, match=words):
        make(Data(torch.randn(3, 4), edges, batch_size=1))


def test_a_folded_layer_says_that_x_is_too_narrow():
    layer, edges = pyg.TransformerConv((16, 16), 64), torch.tensor([[2999, 5], [0, 1]])
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        layer((torch.randn(3000, 9), torch.randn(2, 16)), edges)


def test_a_second_derivative_is_refused():
    x, layer = torch.randn(3, 4, requires_grad=True), pyg.GATConv(4, 4)
    (grad,) = torch.autograd.grad(layer(x, EDGES).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        grad.square().sum().backward()
