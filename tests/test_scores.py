"""Scores are those of the papers, and of PyG's layers that compute them."""

from __future__ import annotations

import math

import pytest
import torch
from torch_geometric.nn import GATv2Conv, TransformerConv

import graphattn as ga
from graphattn import attention, attention_weights
from graphattn.scores import Additive, Dot, as_score
from tests.oracle import ISOLATED, MIXED, PARALLEL, WINDOWS

over_graphs = pytest.mark.parametrize("graph", [ISOLATED, PARALLEL, MIXED, WINDOWS], ids=str)


def test_dot_by_hand() -> None:
    q_i, k_j = (
        torch.tensor([[[1.0, 2.0]], [[0.0, -1.0]]]),
        torch.tensor([[[3.0, 4.0]], [[5.0, 6.0]]]),
    )
    assert Dot()(q_i, k_j, torch.arange(2)).tolist() == [[11.0], [-6.0]]


@pytest.mark.parametrize(
    ("activation", "function"),
    [("tanh", math.tanh), ("leaky_relu", lambda x: x if x > 0 else 0.1 * x)],
)
def test_additive_by_hand(activation, function) -> None:
    score = Additive(torch.tensor([[2.0, -3.0]]), activation, negative_slope=0.1)
    value = score(torch.tensor([[[1.0, -2.0]]]), torch.tensor([[[0.5, 0.25]]]), torch.arange(1))
    assert value.item() == pytest.approx(2 * function(1.5) - 3 * function(-1.75))


@over_graphs
def test_dot_is_transformer_conv(graph: ga.Graph) -> None:
    conv = TransformerConv((6, 6), 4, heads=3, root_weight=False)
    x_src, x_dst = torch.randn(graph.num_src, 6), torch.randn(graph.num_dst, 6)
    q = conv.lin_query(x_dst).unflatten(-1, (3, 4))
    k, v = (linear(x_src).unflatten(-1, (3, 4)) for linear in (conv.lin_key, conv.lin_value))
    out = attention(q, k, v, graph)
    expected, (_, weights) = conv((x_src, x_dst), graph.edge_index, return_attention_weights=True)
    torch.testing.assert_close(out.flatten(-2), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(attention_weights(q, k, graph), weights, rtol=1e-5, atol=1e-5)


@over_graphs
def test_additive_is_gatv2(graph: ga.Graph) -> None:
    conv = GATv2Conv((6, 6), 4, heads=3, add_self_loops=False, bias=False, negative_slope=0.3)
    x_src, x_dst = torch.randn(graph.num_src, 6), torch.randn(graph.num_dst, 6)
    q, k = conv.lin_r(x_dst).unflatten(-1, (3, 4)), conv.lin_l(x_src).unflatten(-1, (3, 4))
    score = Additive(conv.att[0], "leaky_relu", negative_slope=0.3)
    out = attention(q, k, k, graph, score=score)
    expected = conv((x_src, x_dst), graph.edge_index)
    torch.testing.assert_close(out.flatten(-2), expected, rtol=1e-5, atol=1e-5)


def test_additive_is_not_scaled_but_takes_a_scale() -> None:
    """1 / sqrt(head_dim) belongs to dot products; any other score is taken as it is."""
    graph = ga.causal(5)
    q, k = torch.randn(5, 2, 16), torch.randn(5, 2, 16)
    score = Additive(torch.randn(2, 16))

    def own(q_i, k_j, edge):
        return 0.5 * ((q_i + k_j).tanh() * score.weight).sum(-1)

    half = attention_weights(q, k, graph, score=score, scale=0.5)
    torch.testing.assert_close(half, attention_weights(q, k, graph, score=own))
    assert not torch.allclose(half, attention_weights(q, k, graph, score=score))


def test_a_name_or_a_function() -> None:
    assert as_score("dot") == Dot() == as_score(Dot())
    assert as_score(max) is max
