"""What attention means, whatever the kernel: properties that hold over any graph."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

import graphattn as ga
from graphattn import attention, attention_weights, explain
from graphattn.biases import ALiBi
from graphattn.segments import segment_sum
from tests.oracle import (
    BIGBIRD,
    ISOLATED,
    KERNEL_NAMES,
    MIXED,
    PARALLEL,
    WINDOWS,
    dense_attention,
    shuffled,
)

GRAPHS = [
    ga.complete(7),
    ga.bipartite(3, 8),
    ga.causal(8),
    ga.sliding_window(11, 2),
    WINDOWS,
    MIXED,
    BIGBIRD,
    PARALLEL,
    ISOLATED,
]
over_graphs = pytest.mark.parametrize("graph", GRAPHS, ids=str)


def tensors(graph: ga.Graph, *batch: int, heads: int = 2, grad: bool = False, dtype=torch.float32):
    """q, k, v of 4 numbers a head, the same at every call."""
    generator = torch.Generator().manual_seed(7)
    nodes = (graph.num_dst, graph.num_src, graph.num_src)
    drawn = (torch.randn(*batch, n, heads, 4, generator=generator, dtype=dtype) for n in nodes)
    return tuple(x.requires_grad_(grad) for x in drawn)


def close(got: Tensor, truth: Tensor) -> None:
    torch.testing.assert_close(got, truth, rtol=1e-5, atol=1e-5)


# --- symmetries -----------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [g for g in GRAPHS if g.num_dst == g.num_src], ids=str)
def test_renumbered_nodes_give_the_renumbered_output(graph: ga.Graph) -> None:
    order = torch.randperm(graph.num_dst, generator=torch.Generator().manual_seed(0))
    q, k, v = tensors(graph, 2)
    moved = graph if graph == ga.complete(7) else graph.permuted(order)
    out = attention(q[:, order], k[:, order], v[:, order], moved)
    close(out, attention(q, k, v, graph)[:, order])


@over_graphs
def test_order_of_edges_does_not_matter(graph: ga.Graph) -> None:
    q, k, v = tensors(graph)
    other = shuffled(graph)
    bias = torch.randn(graph.num_edges, 2)
    order = torch.randperm(graph.num_edges, generator=torch.Generator().manual_seed(1))
    close(attention(q, k, v, other), attention(q, k, v, graph))
    # `shuffled` takes the edges in this order, and the bias goes with them
    assert torch.equal(other.edge_index, graph.edge_index[:, order])
    close(attention(q, k, v, other, bias=bias[order]), attention(q, k, v, graph, bias=bias))


@over_graphs
def test_transposed_graph_exchanges_the_roles(graph: ga.Graph) -> None:
    """The weights of i -> j in the transpose are softmax over j's hearers: column sums are 1."""
    q, k, _ = tensors(graph)
    turned = graph.T
    src, dst = turned.edge_index
    weights = attention_weights(k, q, turned)
    truth = dense_attention(k, q, q, turned).weights
    close(weights, truth)
    sums = torch.zeros(turned.num_dst, 2).index_add(0, dst, weights)
    close(sums, (turned.in_degree() > 0).float()[:, None].expand(-1, 2))
    assert (src < turned.num_src).all()


def test_leading_dimensions_share_the_graph() -> None:
    for graph in GRAPHS:
        q, k, v = tensors(graph, 2, 3)
        out = attention(q, k, v, graph)
        for i in range(2):
            for j in range(3):
                close(out[i, j], attention(q[i, j], k[i, j], v[i, j], graph))


def test_shared_key_heads_are_repeated_ones() -> None:
    for graph in GRAPHS:
        q, _, _ = tensors(graph, heads=6)
        _, k, v = tensors(graph, heads=2)
        every_k, every_v = (x.repeat_interleave(3, dim=-2) for x in (k, v))
        close(attention(q, k, v, graph), attention(q, every_k, every_v, graph))


# --- weights --------------------------------------------------------------------------------------


@over_graphs
@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_output_is_the_weighted_sum_of_values(kernel: str, graph: ga.Graph) -> None:
    q, k, v = tensors(graph)
    src, dst = graph.edge_index
    bias = torch.randn(graph.num_edges, 2)
    weights = attention_weights(q, k, graph, bias=bias)
    out = torch.zeros_like(q).index_add(0, dst, weights[..., None] * v[src])
    try:
        got = attention(q, k, v, graph, bias=bias, kernel=kernel)
    except ValueError:
        return
    close(got, out)


def test_parallel_edges_count() -> None:
    """Two edges are one of twice the weight: a bias of log 2."""
    twice = ga.from_edges([[0, 1, 1, 2], [0, 0, 0, 0]], num_dst=1, num_src=3)
    once = ga.from_edges([[0, 1, 2], [0, 0, 0]], num_dst=1, num_src=3)
    q, k, v = tensors(once)
    bias = torch.tensor([[0.0], [2.0], [0.0]]).log().clamp(min=0)
    close(attention(q, k, v, twice), attention(q, k, v, once, bias=bias.expand(3, 2)))


def test_minus_infinity_switches_an_edge_off() -> None:
    for graph in GRAPHS:
        q, k, v = tensors(graph)
        src, dst = graph.edge_index
        kept = (src + dst) % 3 > 0
        bias = torch.zeros(graph.num_edges, 2).masked_fill(~kept[:, None], -torch.inf)
        fewer = ga.from_edges(
            graph.edge_index[:, kept], num_dst=graph.num_dst, num_src=graph.num_src
        )
        close(attention(q, k, v, graph, bias=bias), attention(q, k, v, fewer))


# --- causality ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "graph",
    [ga.causal(67), ga.causal(67) & ga.sliding_window(67, 9), BIGBIRD, shuffled(ga.causal(40))],
    ids=str,
)
def test_causal_output_knows_nothing_of_what_comes(graph: ga.Graph) -> None:
    q, k, v = tensors(graph, 2)
    after = graph.num_dst // 2
    before = attention(q, k, v, graph)
    changed = [x.clone() for x in (q, k, v)]
    for x in changed:
        x[:, after:] = 100 * torch.randn_like(x[:, after:])
    out = attention(*changed, graph)
    assert torch.equal(out[:, :after], before[:, :after])
    assert not torch.equal(out[:, after:], before[:, after:])


# --- dropout --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "graph", [ga.complete(24), ga.causal(24), ga.batch([ga.complete(9)] * 3), BIGBIRD], ids=str
)
@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_dropout_keeps_the_mean_and_the_seed(kernel: str, graph: ga.Graph) -> None:
    q, k, v = tensors(graph, 400)
    q, k, v = (x[:1].expand_as(x) for x in (q, k, v))
    call = partial(attention, q, k, v, graph, kernel=kernel)
    try:
        still = call()
    except ValueError:
        return
    torch.manual_seed(0)
    first = call(dropout=0.25)
    torch.manual_seed(0)
    assert torch.equal(first, call(dropout=0.25))
    assert not torch.equal(first, call(dropout=0.25))
    deviation = first.std(0) / 400**0.5
    assert ((first.mean(0) - still[0]).abs() <= 5 * deviation + 1e-6).all()
    assert not torch.equal(first[0], still[0])


def test_dropout_drops_that_many_weights() -> None:
    ones = torch.zeros(50, 8, 4), torch.zeros(400, 8, 4), torch.ones(400, 8, 4)
    torch.manual_seed(0)
    out = attention(*ones, ga.bipartite(50, 400), dropout=0.5, kernel="reference")
    # Of 400 equal weights of 2/400 each about half remain, independently in every head.
    assert (out.mean() - 1).abs() < 0.01
    assert (out[..., 0].std() - 1 / 20).abs() < 0.01


# --- torch's modes --------------------------------------------------------------------------------


@over_graphs
def test_autocast(graph: ga.Graph) -> None:
    q, k, v = tensors(graph, grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(q, k, v.bfloat16(), graph, bias=lambda dst, src: (dst - src)[:, None] / 9.0)
        weights = attention_weights(q, k.bfloat16(), graph)
        plan = explain(q.bfloat16(), k, v, graph)
    assert out.dtype == weights.dtype == torch.bfloat16
    assert plan.kernel == explain(q, k, v, graph).kernel
    out.float().sum().backward()
    assert all(x.grad.dtype == torch.float32 and x.grad.isfinite().all() for x in (q, k, v))
    close(
        out.float(),
        attention(
            *(x.bfloat16() for x in (q, k, v)),
            graph,
            bias=lambda dst, src: (dst - src)[:, None] / 9.0,
        ).float(),
    )


def test_autocast_leaves_float64() -> None:
    q, k, v = tensors(ga.causal(5), dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(q, k, v, ga.causal(5)).dtype == torch.float64
        with pytest.raises(TypeError, match="one dtype"):
            attention(q, k.float(), v, ga.causal(5))


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_trains_after_inference_mode(kernel: str) -> None:
    """Facts of a graph that were first asked for, or made, under inference_mode."""
    with torch.inference_mode():
        made = [
            ga.from_edges(torch.tensor([[2, 0, 1], [1, 1, 3]]), 4),
            ga.from_mask(torch.ones(4, 4, dtype=torch.bool).tril(1)),
            ga.causal(4).permuted(torch.tensor([3, 1, 0, 2])),
        ]
    for graph in [*made, ga.causal(4), ga.batch([ga.complete(2)] * 2), ga.sliding_window(4, 1)]:
        q, k, v = tensors(graph, grad=True)
        bias = torch.randn(graph.num_edges, 2, requires_grad=True)
        try:
            with torch.inference_mode():
                attention(q, k, v, graph, bias=bias, kernel=kernel)
        except ValueError:
            continue
        attention(q, k, v, graph, bias=bias, kernel=kernel).sum().backward()
        assert bias.grad is not None


@over_graphs
def test_no_grad_gives_the_same(graph: ga.Graph) -> None:
    q, k, v = tensors(graph, grad=True)
    with torch.no_grad():
        out = attention(q, k, v, graph)
    assert not out.requires_grad
    close(out, attention(q, k, v, graph).detach())


@pytest.mark.parametrize("needs", range(4))
@over_graphs
def test_gradients_only_where_asked(graph: ga.Graph, needs: int) -> None:
    q, k, v = tensors(graph)
    given = [q, k, v, torch.randn(graph.num_edges, 2)]
    given[needs].requires_grad_()
    attention(*given[:3], graph, bias=given[3]).square().sum().backward()
    assert [x.grad is not None for x in given] == [i == needs for i in range(4)]


def test_structured_graphs_follow_their_inputs() -> None:
    q, k, v = (x.to("meta") for x in tensors(ga.complete(5)))
    assert attention(q, k, v, ga.complete(5)).device.type == "meta"
    assert attention(q, k, v, ga.causal(5)).device.type == "meta"


@pytest.mark.gpu
@over_graphs
def test_on_a_gpu(graph: ga.Graph) -> None:
    q, k, v = tensors(graph, 2)
    on_gpu = graph.to("cuda") if graph.stores_tensors else graph
    out = attention(q.cuda(), k.cuda(), v.cuda(), on_gpu)
    torch.testing.assert_close(out.cpu(), attention(q, k, v, graph), rtol=1e-4, atol=1e-4)


# --- extension ------------------------------------------------------------------------------------


def test_own_normalizer() -> None:
    """Linear attention's: scores divided by their sum."""

    def share(logits: Tensor, csr) -> Tensor:
        positive = logits.square() + 0.1
        return positive / segment_sum(positive, csr, dim=-2).index_select(-2, csr.row)

    graph = shuffled(ga.sliding_window(6, 1))
    q, k, v = tensors(graph)
    src, dst = graph.edge_index
    positive = ((q[dst] * k[src]).sum(-1) / 2).square() + 0.1
    total = torch.zeros(6, 2).index_add(0, dst, positive)
    weights = positive / total[dst]
    close(attention_weights(q, k, graph, normalizer=share), weights)
    out = torch.zeros_like(q).index_add(0, dst, weights[..., None] * v[src])
    close(attention(q, k, v, graph, normalizer=share), out)


def test_a_bias_may_be_anything_that_is_called() -> None:
    graph = ga.causal(6)
    q, k, v = tensors(graph)
    dst, src = graph.edges()
    close(
        attention(q, k, v, graph, bias=ALiBi(2)),
        attention(q, k, v, graph, bias=ALiBi(2)(dst, src)),
    )
