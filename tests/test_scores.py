"""Scores are those of the papers, and of PyG's layers that compute them."""

from __future__ import annotations

import math

import pytest
import torch
from torch_geometric.nn import GATv2Conv, TransformerConv

import graphattn as ga
from graphattn import attention, attention_weights
from graphattn.scores import (
    GAT,
    Additive,
    Bilinear,
    Concat,
    Cosine,
    Dot,
    Location,
    Score,
    Uniform,
    as_score,
)
from tests.oracle import ISOLATED, KERNEL_NAMES, MIXED, PARALLEL, WINDOWS

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


# --- every score, against its formula over all pairs ----------------------------------------------

HEADS, KV_HEADS, Q_DIM, K_DIM = 4, 2, 3, 3


def leaky(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x > 0, x, 0.3 * x)


def every(k: torch.Tensor) -> torch.Tensor:
    """(num_src, KV_HEADS, …) -> (num_src, HEADS, …)."""
    return torch.stack([k[:, head * KV_HEADS // HEADS] for head in range(HEADS)], dim=1)


# Parameters by shape, the score of them, and its formula: q (m, HEADS, d), k (n, HEADS, d) ->
# (m, n, HEADS).
FORMULAS = {
    "uniform": ((), lambda: Uniform(), lambda q, k: torch.ones(len(q), len(k), HEADS)),
    "cosine": (
        (),
        lambda: Cosine(),
        lambda q, k: torch.einsum(
            "ihd,jhd->ijh", q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
        ),
    ),
    "cosine with temperatures": (
        ((HEADS,),),
        lambda t: Cosine(t),
        lambda q, k, t: torch.cosine_similarity(q[:, None], k[None], dim=-1) / t,
    ),
    "bilinear": (
        ((HEADS, Q_DIM, K_DIM),),
        lambda w: Bilinear(w),
        lambda q, k, w: torch.einsum("ihd,hde,jhe->ijh", q, w, k),
    ),
    "concat": (
        ((HEADS, Q_DIM, 5), (KV_HEADS, K_DIM, 5), (HEADS, 5)),
        lambda u, v, a: Concat(u, v, a),
        lambda q, k, u, v, a: torch.einsum(
            "ijhe,he->ijh",
            torch.einsum(
                "ijhd,hde->ijhe",
                torch.cat(
                    [q[:, None].expand(-1, len(k), -1, -1), k[None].expand(len(q), -1, -1, -1)], -1
                ),
                torch.cat([u, every(v[None])[0]], dim=1),
            ).tanh(),
            a,
        ),
    ),
    "gat": (
        ((HEADS, Q_DIM), (KV_HEADS, K_DIM)),
        lambda a, b: GAT(a, b, negative_slope=0.3),
        lambda q, k, a, b: leaky((q * a).sum(-1)[:, None] + (k * every(b[None])[0]).sum(-1)[None]),
    ),
    "gatv2": (
        ((HEADS, Q_DIM),),
        lambda a: Additive(a, "leaky_relu", 0.3),
        lambda q, k, a: (leaky(q[:, None] + k[None]) * a).sum(-1),
    ),
    "location": (
        ((40, KV_HEADS, Q_DIM),),
        lambda w: Location(w),
        lambda q, k, w: torch.einsum("ihd,jhd->ijh", q, every(w[: len(k)])),
    ),
}


def formula_call(name: str, graph: ga.Graph):
    """Tensors that require gradients; attention of them, and the formula's own output."""
    shapes, make, formula = FORMULAS[name]
    generator = torch.Generator().manual_seed(len(name))
    nodes = [
        (graph.num_dst, HEADS, Q_DIM),
        (graph.num_src, KV_HEADS, K_DIM),
        (graph.num_src, KV_HEADS, 2),
    ]
    tensors = [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in (*nodes, *shapes)
    ]
    src, dst = graph.edge_index

    def ours(q, k, v, *parameters, kernel="auto"):
        return attention(q, k, v, graph, score=make(*parameters), kernel=kernel)

    def truth(q, k, v, *parameters):
        logits = formula(q, every(k), *parameters).to(q.dtype)[dst, src]
        out = []
        for node in range(graph.num_dst):
            w = logits[dst == node].softmax(0)
            out.append(torch.einsum("eh,ehd->hd", w, every(v)[src[dst == node]]))
        return torch.stack(out)

    return tensors, ours, truth


@over_graphs
@pytest.mark.parametrize("name", FORMULAS)
def test_scores_are_their_formulas(name: str, graph: ga.Graph) -> None:
    tensors, ours, truth = formula_call(name, graph)
    expected = truth(*tensors)
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, tensors, grad, allow_unused=True)
    for kernel in KERNEL_NAMES:
        try:
            out = ours(*tensors, kernel=kernel)
        except ValueError:
            continue
        got = torch.autograd.grad(out, tensors, grad, allow_unused=True)
        for mine, its in zip((out, *got), (expected, *wanted), strict=True):
            mine, its = (torch.zeros(()) if x is None or not x.any() else x for x in (mine, its))
            torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", FORMULAS)
def test_scores_pass_gradients_to_all(name: str) -> None:
    tensors, ours, _ = formula_call(name, ISOLATED)
    assert torch.autograd.gradcheck(ours, tensors)


@pytest.mark.parametrize("name", [name for name in FORMULAS if name not in ("location",)])
def test_a_score_is_the_function_that_its_form_computes(name: str) -> None:
    """What `lower` makes of nodes is what the score says of pairs; features come between."""
    shapes, make, _ = FORMULAS[name]
    graph, score = ISOLATED, make(*(torch.randn(shape) for shape in shapes))
    q, k = torch.randn(graph.num_dst, HEADS, Q_DIM), torch.randn(graph.num_src, KV_HEADS, K_DIM)
    nothing = torch.zeros(graph.num_edges, KV_HEADS, K_DIM)
    lowered = attention_weights(q, k, graph, score=score)
    of_pairs = attention_weights(q, k, graph, score=score, edge_key=nothing)
    torch.testing.assert_close(lowered, of_pairs, rtol=1e-5, atol=1e-6)
    features = torch.randn_like(nothing)
    assert name == "uniform" or not torch.allclose(
        of_pairs, attention_weights(q, k, graph, score=score, edge_key=features), atol=1e-3
    )


def test_a_temperature_of_each_query() -> None:
    """As a Neural Turing Machine emits it: its heads are as sharp as they like."""
    graph, t = ga.bipartite(3, 5), torch.rand(2, 3, 4) + 0.1
    q, k = torch.randn(2, 3, 4, 8), torch.randn(2, 5, 4, 8)
    got = attention_weights(q, k, graph, score=Cosine(t)).unflatten(1, (3, 5))
    cosine = torch.cosine_similarity(q[:, :, None], k[:, None], dim=-1)
    torch.testing.assert_close(got, (cosine / t[:, :, None]).softmax(2))


MODULES: dict[str, tuple[ga.nn.Additive, type]] = {
    "Additive": (ga.nn.Additive(4, 8), Additive),
    "Bilinear": (ga.nn.Bilinear(4, 8), Bilinear),
    "Concat": (ga.nn.Concat(4, 8, hidden=5), Concat),
    "Cosine": (ga.nn.Cosine(4), Cosine),
    "GAT": (ga.nn.GAT(4, 8), GAT),
    "GATv2": (ga.nn.GATv2(4, 8), Additive),
    "Location": (ga.nn.Location(16, 4, 8), Location),
}  # pyright: ignore


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_trained_along(name: str) -> None:
    module, kind = MODULES[name]
    assert isinstance(as_score(module), kind)
    layer = ga.nn.GraphAttention(32, 4, score=module)
    layer(torch.randn(2, 10, 32), ga.sliding_window(10, 3)).square().sum().backward()
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    assert set(dict(layer.named_parameters())) > {
        f"score.{n}" for n, _ in module.named_parameters()
    }


@pytest.mark.parametrize(
    "score",
    ["cosine", "uniform", Bilinear(torch.randn(4, 8, 8))],
    ids=["cosine", "uniform", "bilinear"],
)
def test_dot_products_of_transformed_nodes_run_dense(score: str | Score) -> None:
    x = torch.randn(2, 64, 4, 8)
    assert ga.explain(x, x, x, ga.complete(64), score=score).kernel == "dense"


def test_plain_message_passing() -> None:
    """q = k = v = x, and no projection; uniform, it is the mean of the neighbors."""
    x, graph = torch.randn(13, 1, 4), ga.sliding_window(13, 2)
    mask = graph.mask()
    mean = mask.float() @ x[:, 0] / mask.sum(1, keepdim=True)
    torch.testing.assert_close(attention(x, x, x, graph, score="uniform")[:, 0], mean)
    total = attention(x, x, x, graph, score="uniform", normalizer="none")[:, 0]
    torch.testing.assert_close(total, mask.float() @ x[:, 0])
    logits = (x[:, 0] @ x[:, 0].T).masked_fill(~mask, -math.inf)
    torch.testing.assert_close(
        attention(x, x, x, graph, scale=1.0)[:, 0], logits.softmax(1) @ x[:, 0]
    )
