"""Whole layers of torch and PyG, computed by ours with their weights: outputs and gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch_geometric.nn import GATConv, GATv2Conv, TransformerConv

import graphattn as ga
from graphattn import attention, nn
from graphattn.scores import Additive
from tests.oracle import shuffled

DIM, EDGE_DIM, HEADS, HEAD_DIM = 6, 3, 3, 4


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def close(got, expected) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


# --- torch ----------------------------------------------------------------------------------------

ENCODER_NAMES = {
    "self_attn.out_proj": "attention.out",
    "linear1": "mlp.0",
    "linear2": "mlp.2",
    "norm1": "attention_norm",
    "norm2": "mlp_norm",
}


def as_ours(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameters or gradients of torch's layer, by the names of our block."""
    ours = {}
    for name, value in named.items():
        for theirs, own in ENCODER_NAMES.items():
            name = name.replace(theirs, own)
        if "in_proj_" in name:
            for part, third in zip(("query", "key", "value"), value.chunk(3)):
                ours[f"attention.{part}.{name.split('_')[-1]}"] = third
        else:
            ours[name] = value
    return ours


def gradients(out: Tensor, x: Tensor, layer: torch.nn.Module) -> dict[str, Tensor]:
    parameters = {"x": x, **dict(layer.named_parameters())}
    grads = torch.autograd.grad(out, parameters.values(), randn(*out.shape, seed=9))
    return dict(zip(parameters, grads))


@pytest.mark.parametrize(
    "graph",
    [ga.complete(7), ga.causal(7), ga.sliding_window(7, 2), ga.hubs(7, [3]).with_self_loops()],
    ids=str,
)
@pytest.mark.parametrize(
    ("norm_first", "residual"), [(True, nn.pre_norm), (False, nn.post_norm)], ids=["pre", "post"]
)
def test_a_block_is_an_encoder_layer_of_torch(norm_first, residual, graph) -> None:
    torch.manual_seed(0)
    theirs = torch.nn.TransformerEncoderLayer(
        16, 4, 40, 0.0, "gelu", batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = nn.TransformerBlock(16, 4, mlp_ratio=2.5, residual=residual).double()
    ours.load_state_dict(as_ours(dict(theirs.named_parameters())))
    x = randn(2, 7, 16).requires_grad_()
    got, expected = ours(x, graph), theirs(x, src_mask=~graph.mask())
    close(got, expected)
    close(gradients(got, x, ours), as_ours(gradients(expected, x, theirs)))


# --- PyG ------------------------------------------------------------------------------------------


def random_graph(num_dst: int, num_src: int, seed: int) -> ga.Graph:
    """About a third of all pairs; the first and the last node neither speak nor hear."""
    edges = randn(num_dst, num_src, seed=seed) > 0.4
    edges[[0, -1]], edges[:, [0, -1]] = False, False
    return ga.from_mask(edges)


LOOPS = random_graph(14, 14, seed=1)  # some nodes hear themselves
PARALLEL = ga.from_edges(LOOPS.edge_index.repeat(1, 2), 14)
GRAPHS = {
    "self loops, isolated nodes": LOOPS,
    "edges in any order": shuffled(LOOPS),
    "parallel edges": PARALLEL,
    "bipartite": random_graph(9, 13, seed=2),
    "complete": ga.complete(5),
}
over_graphs = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
over_kernels = pytest.mark.parametrize("kernel", ["auto", "reference", "cpu"])
with_edges = pytest.mark.parametrize("edge_dim", [None, EDGE_DIM], ids=["plain", "edge_attr"])


def drawn(make, graph: ga.Graph, edge_dim: int | None, **options):
    """A layer of PyG, nodes of both kinds, and features of edges; all of them want gradients."""
    torch.manual_seed(0)
    size = {"edge_dim": edge_dim, "heads": HEADS, **options}
    conv = make((DIM, DIM), HEAD_DIM, **size).double()
    for parameter in conv.parameters():
        torch.nn.init.normal_(parameter)
    inputs = [randn(graph.num_src, DIM), randn(graph.num_dst, DIM, seed=1)]
    if edge_dim is not None:
        inputs.append(randn(graph.num_edges, edge_dim, seed=2))
    inputs = [x.requires_grad_() for x in inputs]
    edge_attr = inputs[2] if edge_dim is not None else None
    return conv, inputs, conv(tuple(inputs[:2]), graph.edge_index, edge_attr)


def split(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1))


def same_layer(got: Tensor, expected: Tensor, inputs, conv) -> None:
    """Outputs agree, and so do the gradients of the inputs and of the parameters."""
    close(got, expected)
    leaves, upstream = [*inputs, *conv.parameters()], randn(*got.shape, seed=9)
    grads = torch.autograd.grad(got, leaves, upstream)
    close(grads, torch.autograd.grad(expected, leaves, upstream))


def gatv2(conv: GATv2Conv, inputs, graph: ga.Graph, kernel: str) -> Tensor:
    """`<a, leaky_relu(W_r x_i + W_l x_j + W_e e_ij)>` (Brody et al. 2022, eq. 7)."""
    query, key = split(conv.lin_r(inputs[1])), split(conv.lin_l(inputs[0]))
    edge_key = split(conv.lin_edge(inputs[2])) if conv.lin_edge else None
    score = Additive(conv.att[0], "leaky_relu")
    out = attention(query, key, key, graph, score=score, edge_key=edge_key, kernel=kernel)
    return out.flatten(-2) + conv.bias


def gat(conv: GATConv, inputs, graph: ga.Graph, kernel: str) -> Tensor:
    """`leaky_relu(<a_i, W x_i> + <a_j, W x_j> + <a_e, W_e e_ij>)` (Velickovic et al. 2018, eq. 3).

    Queries and keys are single numbers, and the vector of the score is 1.
    """
    sent, heard = split(conv.lin_src(inputs[0])), split(conv.lin_dst(inputs[1]))
    dot = partial(torch.sum, dim=-1, keepdim=True)
    query, key = dot(heard * conv.att_dst), dot(sent * conv.att_src)
    edge_key = dot(split(conv.lin_edge(inputs[2])) * conv.att_edge) if conv.lin_edge else None
    score = Additive(query.new_ones(HEADS, 1), "leaky_relu")
    out = attention(query, key, sent, graph, score=score, edge_key=edge_key, kernel=kernel)
    return out.flatten(-2) + conv.bias


over_layers = pytest.mark.parametrize(
    ("make", "ours"), [(GATv2Conv, gatv2), (GATConv, gat)], ids=["GATv2", "GAT"]
)


@over_graphs
@over_kernels
@with_edges
@over_layers
def test_additive_scores_are_gat(make, ours, graph, kernel, edge_dim) -> None:
    conv, inputs, expected = drawn(make, graph, edge_dim, add_self_loops=False)
    same_layer(ours(conv, inputs, graph, kernel), expected, inputs, conv)


@over_layers
def test_self_loops_that_pyg_adds(make, ours) -> None:
    """PyG lets every node hear itself once: `with_self_loops`."""
    conv, inputs, expected = drawn(make, LOOPS, None, add_self_loops=True)
    got = ours(conv, inputs, LOOPS.with_self_loops(), "auto")
    same_layer(got, expected, inputs, conv)


@over_graphs
@over_kernels
@with_edges
def test_dot_products_are_transformer_conv(graph, kernel, edge_dim) -> None:
    """`<W_q x_i, W_k x_j + W_e e_ij>` weighs `W_v x_j + W_e e_ij` (Shi et al. 2021, 3.1)."""
    conv, inputs, expected = drawn(TransformerConv, graph, edge_dim)
    query = split(conv.lin_query(inputs[1]))
    key, value = (split(linear(inputs[0])) for linear in (conv.lin_key, conv.lin_value))
    edge = split(conv.lin_edge(inputs[2])) if edge_dim else None
    out = attention(query, key, value, graph, edge_key=edge, edge_value=edge, kernel=kernel)
    out = out.flatten(-2) + conv.lin_skip(inputs[1])
    same_layer(out, expected, inputs, conv)
