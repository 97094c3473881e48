"""Half types: the dtypes that PyG returns, and sums that it gets wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from graphattn import pyg
from tests.pyg.test_layers import DIM, EDGE_DIM, HEAD_DIM, HEADS, NAMES, inputs, pair_of

over_layers = pytest.mark.parametrize("name", NAMES)


@pytest.mark.parametrize("edge_dim", [None, EDGE_DIM])
@over_layers
def test_autocast_returns_the_dtypes_of_pyg(name: str, edge_dim: int | None) -> None:
    theirs, ours = (layer.float() for layer in pair_of(name, edge_dim=edge_dim))
    given = inputs(9, 9, 30)
    x, attr = given.src.detach().float(), given.edge_attr.detach().float()
    call = (x, given.edge_index, None if edge_dim is None else attr)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, (_, weights) = theirs(*call, return_attention_weights=True)
        got, (_, ours_weights) = ours(*call, return_attention_weights=True)
    assert (got.dtype, ours_weights.dtype) == (out.dtype, weights.dtype)
    exact, (_, exact_weights) = ours(*call, return_attention_weights=True)
    for some, truth in ((got, exact), (ours_weights, exact_weights)):
        assert (some.float() - truth).abs().max() < 0.05 * truth.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@over_layers
def test_layers_of_half_types(name: str, dtype: torch.dtype) -> None:
    _, ours = pair_of(name, edge_dim=EDGE_DIM)
    given = inputs(9, 9, 30)
    call = (given.src, given.edge_index, given.edge_attr)
    truth = ours(*call)
    out = ours.to(dtype)(given.src.to(dtype), given.edge_index, given.edge_attr.to(dtype))
    assert out.dtype == dtype
    assert (out.double() - truth).abs().max() < 0.05 * truth.abs().max()


def sums(layer: torch.nn.Module, x: Tensor, edge_index: Tensor) -> Tensor:
    """What the weights of the first node's edges sum to, for each head."""
    _, (index, weights) = layer(x, edge_index, return_attention_weights=True)
    return weights[index[1] == 0].double().sum(0)


def test_weights_sum_to_one_where_pygs_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,024 sorted edges to a node: PyG's softmax by `ptr`, where torch_scatter is missing."""
    monkeypatch.setattr("torch_geometric.typing.WITH_TORCH_SCATTER", False)
    torch.manual_seed(0)
    degree = 1024
    theirs, ours = pair_of("TransformerConv")
    x = (0.1 * torch.randn(degree, DIM)).bfloat16()
    index = torch.stack([torch.arange(degree), torch.zeros(degree, dtype=torch.int64)])
    edges = EdgeIndex(index, sparse_size=(degree, degree), sort_order="col")
    with torch.no_grad():
        assert (sums(theirs.bfloat16(), x, edges) - 1).abs().max() > 0.1
        assert (sums(ours.bfloat16(), x, edges) - 1).abs().max() < 1e-2


@over_layers
def test_weights_of_a_hub_sum_to_one(name: str) -> None:
    layer = getattr(pyg, name)(DIM, HEAD_DIM, HEADS).bfloat16()
    index = torch.stack([torch.arange(1024), torch.zeros(1024, dtype=torch.int64)])
    with torch.no_grad():
        assert (sums(layer, torch.randn(1024, DIM).bfloat16(), index) - 1).abs().max() < 1e-2
