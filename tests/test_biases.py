"""ALiBi against its published code; one bias on edges, on the grid and on blocks."""

from __future__ import annotations

import math

import pytest
import torch

import graphattn as ga
from graphattn import attention
from graphattn.biases import ALiBi, bias_of_edges, bias_of_grid
from tests.oracle import BIGBIRD, ISOLATED, KERNEL_NAMES, MIXED, NONE, SCATTERED, WINDOWS, shuffled


def published_slopes(n: int) -> list[float]:
    """`get_slopes` of github.com/ofirpress/attention_with_linear_biases, fairseq's models."""

    def of_power(n: int) -> list[float]:
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]

    if math.log2(n).is_integer():
        return of_power(n)
    closest = 2 ** math.floor(math.log2(n))
    return of_power(closest) + published_slopes(2 * closest)[0::2][: n - closest]


@pytest.mark.parametrize("heads", range(1, 17))
def test_alibi_slopes_are_the_published_ones(heads: int) -> None:
    assert ALiBi(heads).slopes() == pytest.approx(published_slopes(heads), rel=1e-12)


def test_alibi_falls_with_distance_on_both_sides() -> None:
    values = ALiBi(4)(torch.tensor([3, 3, 3, 0]), torch.tensor([3, 1, 5, 10]))
    distance = torch.tensor([0.0, 2.0, 2.0, 10.0])
    torch.testing.assert_close(values, -distance[:, None] * torch.tensor(published_slopes(4)))


@pytest.mark.parametrize("heads", [0, -1, 2.0, "4"])
def test_alibi_needs_heads(heads) -> None:
    with pytest.raises((TypeError, ValueError), match="heads must be"):
        ALiBi(heads)


GRAPHS = [ga.causal(6), ga.bipartite(3, 5), WINDOWS, MIXED, BIGBIRD, ISOLATED, SCATTERED, NONE]
over_graphs = pytest.mark.parametrize("graph", [*GRAPHS, shuffled(BIGBIRD)], ids=str)


def per_pair(dst, src):
    """A number that tells the pair and the head."""
    return torch.stack([100.0 * dst + src, -100.0 * dst - src], dim=-1)


@over_graphs
def test_edges_and_grid_agree(graph: ga.Graph) -> None:
    src, dst = graph.edge_index
    simple = ga.from_mask(graph.mask())  # a grid has one place for a pair
    graph = graph if len(set(zip(src.tolist(), dst.tolist()))) == len(src) else simple
    src, dst = graph.edge_index
    table = per_pair(dst, src)
    truth = torch.full((graph.num_dst, graph.num_src, 2), -torch.inf)
    truth[dst, src] = table
    rows, columns = torch.arange(graph.num_dst)[:, None], torch.arange(graph.num_src)
    for bias in (table, table.expand(3, *table.shape), per_pair):
        grid = bias_of_grid(bias, graph, 2, rows, columns)
        assert torch.equal(grid, truth.expand_as(grid))
        edges = bias_of_edges(bias, graph, 2)
        in_order = graph.csr().to_edge_order(edges, dim=-2)
        assert torch.equal(in_order, table.expand_as(in_order))


@over_graphs
@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_function_and_tensor_agree(kernel: str, graph: ga.Graph) -> None:
    q = torch.randn(2, graph.num_dst, 2, 4)
    k, v = torch.randn(2, 2, graph.num_src, 2, 4).unbind()
    dst, src = graph.edges()
    given = {"kernel": kernel, "bias": ALiBi(2)}
    try:
        out = attention(q, k, v, graph, **given)
    except ValueError:
        return
    given["bias"] = ALiBi(2)(dst, src)
    torch.testing.assert_close(attention(q, k, v, graph, **given), out)
    one = attention(q[:, :, :1], k[:, :, :1], v[:, :, :1], graph, kernel=kernel, bias=ALiBi(1))
    assert not torch.allclose(one, out[:, :, :1]) or graph.num_edges == 0


def test_a_bias_function_sees_flat_pairs_in_range() -> None:
    for graph in GRAPHS:

        def bias(dst, src, graph=graph):
            assert dst.shape == src.shape == (dst.numel(),)
            assert dst.dtype == src.dtype == torch.int64
            assert ((dst >= 0) & (dst < graph.num_dst)).all()
            assert ((src >= 0) & (src < graph.num_src)).all()
            return torch.zeros(len(dst), 1)

        q, k = torch.randn(graph.num_dst, 2, 4), torch.randn(graph.num_src, 2, 4)
        out = attention(q, k, k, graph, bias=bias)
        torch.testing.assert_close(out, attention(q, k, k, graph))
