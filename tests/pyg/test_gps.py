"""The GPS layer beside PyG's with its weights, and its attention over any batch."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric import nn

import graphattn as ga
from graphattn import pyg
from graphattn.graphs.structure import as_blocks, as_intervals
from tests.graphs.agree import assert_is
from tests.graphs.truth import of_pairs
from tests.pyg.test_compile import compiled
from tests.pyg.test_layers import close, randn

WIDTH, HEADS, EDGE_DIM = 8, 2, 3

BATCHES: dict[str, list[int] | None] = {  # sizes of the graphs
    "unequal": [3, 7, 1, 5],
    "equal": [4, 4, 4],
    "single nodes": [1, 1, 1],
    "one graph": [9],
    "empty between": [3, 0, 0, 4, 0, 2],
    "no batch": None,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "one head": {"heads": 1},
    "layer norm": {"norm": "layer_norm"},
    "layer norm of nodes": {"norm": "layer_norm", "norm_kwargs": {"mode": "node"}},
    "graph norm": {"norm": "graph_norm"},
    "instance norm": {"norm": "instance_norm"},
    "no norm": {"norm": None},
    "gelu": {"act": "gelu"},
    "leaky": {"act": "leaky_relu", "act_kwargs": {"negative_slope": 0.3}},
    "no bias": {"attn_kwargs": {"bias": False}},
    "dropout": {"dropout": 0.5},
    "bias of keys": {"attn_kwargs": {"add_bias_kv": True}},
    "a key of zeros": {"attn_kwargs": {"add_zero_attn": True}},
    "performer": {"attn_type": "performer"},
}
CONVS: dict[str, Any] = {
    "none": lambda: None,
    "GCN": lambda: nn.GCNConv(WIDTH, WIDTH),
    "GINE": lambda: nn.GINEConv(torch.nn.Linear(WIDTH, WIDTH), edge_dim=EDGE_DIM),
    "TransformerConv": lambda: nn.TransformerConv(WIDTH, WIDTH, edge_dim=EDGE_DIM),
}


def given(batch: str) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Nodes, edges within the graphs, batch vector, features of edges."""
    sizes = torch.tensor(BATCHES[batch] or [9])
    vector = torch.arange(len(sizes)).repeat_interleave(sizes)
    start = sizes.cumsum(0) - sizes
    src, dst = (
        start[vector] + (torch.arange(len(vector)) * step) % sizes[vector] for step in (3, 5)
    )
    x, attr = randn(len(vector), WIDTH, seed=1), randn(len(vector), EDGE_DIM, seed=2)
    vector = None if BATCHES[batch] is None else vector
    return x.requires_grad_(), torch.stack([src, dst]), vector, attr.requires_grad_()


def pair_of(conv: str = "none", **options: Any) -> tuple[Any, Any]:
    """PyG's layer and ours with its weights."""
    torch.manual_seed(0)
    options = {"heads": HEADS, **options}
    theirs = nn.GPSConv(WIDTH, CONVS[conv](), **options).double()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    ours = pyg.GPSConv(WIDTH, CONVS[conv](), **options).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs, ours


def run(layer: Any, case: str) -> tuple[Tensor, ...]:
    """Output, its gradients, and the statistics that norms keep."""
    x, edge_index, batch, attr = given(case)
    features = {"edge_attr": attr} if getattr(layer.conv, "edge_dim", None) else {}
    if isinstance(layer.conv, nn.GINEConv):
        features = {"edge_attr": attr}
    torch.manual_seed(7)
    out = layer(x, edge_index, batch, **features)
    loss = (out * randn(*out.shape, seed=3)).sum()
    wanted = [x, attr, *layer.parameters()]
    grads = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    return out, *grads, *layer.buffers()


# --- parity ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_is_pygs(options: str, batch: str) -> None:
    theirs, ours = pair_of(**OPTIONS[options])
    close(run(ours, batch), run(theirs, batch))
    close(run(ours.eval(), batch), run(theirs.eval(), batch))


@pytest.mark.parametrize("batch", ["unequal", "no batch"])
@pytest.mark.parametrize("conv", CONVS)
def test_local_layers(conv: str, batch: str) -> None:
    theirs, ours = pair_of(conv, dropout=0.3)
    close(run(ours, batch), run(theirs, batch))  # and the same numbers are dropped


@pytest.mark.parametrize("norm", ["batch_norm", "graph_norm"])
def test_order_of_nodes(norm: str) -> None:
    """PyG wants batches in order; ours gives in any order what it gives in order."""
    _, ours = pair_of("GCN", norm=norm)
    x, edge_index, batch, _ = given("unequal")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    back = order.argsort()
    close(ours(x[order], back[edge_index], batch[order])[back], ours(x, edge_index, batch))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_other_integers(dtype: torch.dtype) -> None:
    _, ours = pair_of()
    x, edge_index, batch, _ = given("unequal")
    close(ours(x, edge_index, batch.to(dtype)), ours(x, edge_index, batch))


def test_no_nodes() -> None:
    _, ours = pair_of(norm=None)
    out = ours(torch.empty(0, WIDTH).double(), torch.empty(2, 0).long(), torch.empty(0).long())
    assert out.shape == (0, WIDTH)


@pytest.mark.parametrize("norm", ["layer_norm", "graph_norm"])
@pytest.mark.parametrize("make", [pyg.batch_graph, lambda batch: batch])
def test_a_graph_in_place_of_the_batch(make: Any, norm: str) -> None:
    theirs, ours = pair_of(norm=norm)
    x, edge_index, batch, _ = given("unequal")
    close(ours(x, edge_index, make(batch)), theirs(x, edge_index, batch))


def test_any_graph_may_be_attended_over() -> None:
    _, ours = pair_of()
    x, edge_index, batch, _ = given("unequal")
    graph = ga.batch([ga.complete(n) for n in BATCHES["unequal"]])
    close(ours(x, edge_index, graph), ours(x, edge_index, batch))
    window = ours(x, edge_index, ga.sliding_window(len(x), 1))
    assert not torch.allclose(window, ours(x, edge_index, batch))


def test_weights() -> None:
    """Those of torch's own layer, graph by graph."""
    _, ours = pair_of()
    x, _, batch, _ = given("unequal")
    weights, (src, dst) = ours.attn.weights(x, batch), pyg.batch_graph(batch).edge_index
    assert weights.shape == (sum(n * n for n in BATCHES["unequal"]), HEADS)
    plain = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).double()
    plain.load_state_dict(ours.attn.state_dict())
    dense = torch.zeros(HEADS, len(x), len(x), dtype=x.dtype)
    for graph in range(len(BATCHES["unequal"])):
        nodes = (batch == graph).nonzero().squeeze(1)
        h = x[nodes][None]
        part = plain(h, h, h, average_attn_weights=False)[1][0]
        dense[:, nodes[:, None], nodes] = part
    close(weights, dense[:, dst, src].T)


def test_dropout_of_weights_is_of_training_alone() -> None:
    theirs, ours = pair_of(attn_kwargs={"dropout": 0.5})
    close(run(ours.eval(), "unequal"), run(theirs.eval(), "unequal"))
    x, edge_index, batch, _ = given("unequal")
    ours.train()
    assert not torch.equal(ours(x, edge_index, batch), ours(x, edge_index, batch))


def test_reset() -> None:
    """The parameters that PyG draws."""
    theirs, ours = pair_of("GCN")
    for layer in (theirs, ours):
        torch.manual_seed(3)
        layer.reset_parameters()
    close(list(ours.parameters()), list(theirs.parameters()))


# --- the graph of a batch -------------------------------------------------------------------------

VECTORS = {
    "in order": [0, 0, 0, 1, 2, 2],
    "empty between": [0, 0, 3, 3, 5],
    "descending": [2, 2, 1, 0, 0],
    "mixed": [1, 0, 1, 2, 0, 1],
    "one": [4],
    "none": [],
}


@pytest.mark.parametrize("case", VECTORS)
def test_batch_graph(case: str) -> None:
    vector = VECTORS[case]
    graph = pyg.batch_graph(torch.tensor(vector, dtype=torch.int64))
    pairs = [
        (src, dst)
        for dst, here in enumerate(vector)
        for src, there in enumerate(vector)
        if here == there
    ]
    assert_is(graph, of_pairs(len(vector), len(vector), pairs))
    assert as_blocks(graph).num_blocks == len(set(vector))
    assert (as_intervals(graph) is None) == (case == "mixed")


def test_batch_graph_is_made_once() -> None:
    vector = torch.tensor([0, 0, 1])
    graph = pyg.batch_graph(vector)
    assert pyg.batch_graph(vector) is graph
    vector[1] = 1
    assert pyg.batch_graph(vector).num_edges == graph.num_edges == 5
    assert pyg.batch_graph(vector).has_edge(1, 2)
    assert not graph.has_edge(1, 2)


def test_pickled() -> None:
    graph = pickle.loads(pickle.dumps(pyg.batch_graph(torch.tensor([0, 1, 1]))))
    assert graph.edge_index.tolist() == [[0, 1, 2, 1, 2], [0, 1, 1, 2, 2]]


# --- models of PyG --------------------------------------------------------------------------------


def test_accelerate() -> None:
    theirs, _ = pair_of("TransformerConv")
    before, state = run(theirs, "unequal"), list(theirs.parameters())
    report = pyg.accelerate(theirs)
    assert str(report) == "the model  replaced: GPSConv\nconv       replaced: TransformerConv"
    assert type(theirs) is pyg.GPSConv
    assert type(theirs.attn) is pyg.GraphGPSAttention
    assert all(a is b for a, b in zip(theirs.parameters(), state))
    for same in (theirs, copy.deepcopy(theirs), pickle.loads(pickle.dumps(theirs))):
        close(run(same, "unequal")[:-1], before[:-1])  # but for the number of batches seen
    assert "it is graphattn's GPSConv already" in str(pyg.accelerate(theirs))
    pyg.restore(theirs)
    assert (type(theirs), type(theirs.attn)) == (nn.GPSConv, torch.nn.MultiheadAttention)
    close(run(theirs, "unequal")[:-1], before[:-1])


class OwnAttention(torch.nn.MultiheadAttention):
    """One that somebody derived."""


class OwnGPS(nn.GPSConv):
    """A layer that somebody derived."""


def own_attention() -> nn.GPSConv:
    layer = nn.GPSConv(WIDTH, None)
    layer.attn = OwnAttention(WIDTH, 1, batch_first=True)
    return layer


LEFT: dict[str, tuple[Any, str]] = {
    "performer": (
        lambda: nn.GPSConv(WIDTH, None, attn_type="performer"),
        "its attention is PerformerAttention, and not torch's MultiheadAttention",
    ),
    "derived attention": (own_attention, "its attention is OwnAttention"),
    "derived": (lambda: OwnGPS(WIDTH, None), "OwnGPS derives from GPSConv"),
    "bias of keys": (
        lambda: nn.GPSConv(WIDTH, None, attn_kwargs={"add_bias_kv": True}),
        r"a key that is no node (add_bias_kv)",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_left(case: str) -> None:
    make, reason = LEFT[case]
    layer = make()
    kinds = type(layer), type(layer.attn)
    assert reason in pyg.accelerate(layer).left[""]
    assert (type(layer), type(layer.attn)) == kinds


class Mean(torch.nn.Module):
    """Everybody's features to everybody: an attention that a user wrote."""

    def forward(self, x: Tensor, batch: Tensor) -> Tensor:
        return nn.global_mean_pool(x, batch)[batch]


def test_attention_of_the_user() -> None:
    layer = pyg.GPSConv(WIDTH, None, norm=None, attention=Mean()).double()
    x, edge_index, batch, _ = given("unequal")
    h = x + nn.global_mean_pool(x, batch)[batch]
    close(layer(x, edge_index, batch), h + layer.mlp(h))
    assert "attn_type=Mean" in repr(layer)
    layer.reset_parameters()
    pyg.restore(layer)
    assert type(layer) is pyg.GPSConv  # PyG's would leave the attention out


# --- compiled, and half types ---------------------------------------------------------------------


def test_other_batches_are_not_compiled_anew() -> None:
    _, ours = pair_of(norm="layer_norm", norm_kwargs={"mode": "node"})
    torch.compiler.reset()
    function, times = compiled(ours)
    for count in (20, 25, 30):  # graphs of 1 to 30 nodes
        sizes = torch.randperm(30)[:count] + 1
        batch = torch.arange(count).repeat_interleave(sizes)
        x = randn(len(batch), WIDTH, seed=len(batch)).requires_grad_()
        edges = torch.empty(2, 0, dtype=torch.int64)
        out, expected = function(x, edges, pyg.batch_graph(batch)), ours(x, edges, batch)
        close(out, expected)
        close(
            torch.autograd.grad(out.square().sum(), x),
            torch.autograd.grad(expected.square().sum(), x),
        )
    assert len(times) <= 2
    torch.compiler.reset()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["batch_norm", None])
def test_autocast_returns_the_dtypes_of_pyg(norm: str | None, training: bool) -> None:
    theirs, ours = (layer.float().train(training) for layer in pair_of("GCN", norm=norm))
    x, edge_index, batch, _ = given("unequal")
    x = x.detach().float()
    exact = ours(x, edge_index, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, got = theirs(x, edge_index, batch), ours(x, edge_index, batch)
        parts = ours.attn(x, batch)
    assert got.dtype == out.dtype
    assert parts.dtype == torch.bfloat16
    assert (got - exact).abs().max() < 0.05 * exact.abs().max()


# --- bad input ------------------------------------------------------------------------------------

BATCH = torch.tensor([0, 0, 1, 1, 1])
BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "float": (BATCH.float(), TypeError, "batch must hold integers, got torch.float32"),
    "bool": (BATCH.bool(), TypeError, "batch must hold integers, got torch.bool"),
    "too short": (BATCH[:4], ValueError, "batch has 4 nodes, but x has 5"),
    "two dimensions": (BATCH[None], ValueError, r"shape \(nodes,\), got \(1, 5\)"),
    "negative": (BATCH - 1, ValueError, "batch must not be negative, got -1"),
    "elsewhere": (BATCH.to("meta"), ValueError, "x is on cpu but batch on meta"),
    "a list": (BATCH.tolist(), TypeError, "a graph, or None, got list"),
    "another graph": (ga.complete(4), ValueError, "the graph has 4 nodes, but x has 5"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_said(case: str) -> None:
    batch, kind, words = BAD[case]
    layer = pyg.GPSConv(WIDTH, None, heads=HEADS)
    with pytest.raises(kind, match=words):
        layer(torch.randn(5, WIDTH), torch.empty(2, 0).long(), batch)


def test_nodes_of_another_width() -> None:
    with pytest.raises(ValueError, match=r"x must be \(nodes, 8\), got \(5, 6\)"):
        pyg.GraphGPSAttention(WIDTH, HEADS)(torch.randn(5, 6), BATCH)


def test_a_graph_that_does_not_know_the_batch() -> None:
    layer = pyg.GPSConv(WIDTH, None, norm="graph_norm")
    with pytest.raises(ValueError, match="pass the batch vector, or the graph that batch_graph"):
        layer(torch.randn(5, WIDTH), torch.empty(2, 0).long(), ga.complete(5))
