import numpy as np
import pytest
import torch

import graphattn as ga
from tests.graphs import truth
from tests.graphs.agree import assert_is

MILLION = 1_000_000


@pytest.mark.parametrize(
    ("n", "nodes"),
    [(0, []), (1, [0]), (1, []), (5, []), (5, [0]), (5, [4, 1]), (5, [2, 2, 3]), (4, range(4))],
)
def test_hubs(n, nodes):
    assert_is(ga.hubs(n, nodes), truth.hubs(n, nodes))


@pytest.mark.parametrize(
    "nodes", [[1, 3], (3, 1), {1, 3}, np.array([1, 3]), torch.tensor([1, 3]), iter([1, 3, 3])]
)
def test_hubs_in_any_container(nodes):
    assert ga.hubs(5, nodes) == ga.hubs(5, [1, 3])


PARALLEL = [(0, 1), (2, 2), (0, 1), (1, 0)]  # 0 -> 1 is there twice


def parallel():
    return ga.from_edges(list(zip(*PARALLEL)), 3)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda g: g | g, lambda count: count > 0),
        (lambda g: g & g, lambda count: count > 0),
        (lambda g: g - g, lambda count: count * 0),
        (lambda g: g - ga.hubs(3, [2]), lambda count: (count > 0) * (1 - truth.hubs(3, [2]))),
        (lambda g: g.with_self_loops(), lambda count: (count > 0) | np.eye(3, dtype=bool)),
        (lambda g: g.without_self_loops(), lambda count: (count > 0) & ~np.eye(3, dtype=bool)),
    ],
)
def test_set_operations_leave_no_parallel_edges(make, expected):
    count = truth.of_pairs(3, 3, PARALLEL)
    assert_is(make(parallel()), expected(count).astype(int))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda g: g.T, lambda count: count.T),
        (lambda g: g.permuted([2, 0, 1]), lambda count: truth.permuted(count, [2, 0, 1])),
        (lambda g: g.rows(1, 3), lambda count: count[1:3]),
    ],
)
def test_renumbering_keeps_parallel_edges(make, expected):
    assert_is(make(parallel()), expected(truth.of_pairs(3, 3, PARALLEL)))


def test_batch_keeps_the_order_of_edges():
    graph = ga.batch([parallel(), ga.bipartite(1, 2), parallel()])
    count = truth.of_pairs(3, 3, PARALLEL)
    expected = truth.batch([count, truth.bipartite(1, 2), count])
    assert_is(graph, expected, sorted_edges=False)
    assert graph.edge_index[:, :4].T.tolist() == [list(pair) for pair in PARALLEL]


def test_permuted_takes_node_i_from_order_i():
    order = [3, 0, 2, 1]
    graph = ga.causal(4).permuted(order)
    for i in range(4):
        for j in range(4):
            assert graph.has_edge(i, j) == (order[j] <= order[i])


@pytest.mark.parametrize(
    "order", [[1, 2, 0], (1, 2, 0), np.array([1, 2, 0]), torch.tensor([1, 2, 0])]
)
def test_orders_in_any_container(order):
    assert ga.causal(3).permuted(order) == ga.causal(3).permuted([1, 2, 0])


def test_a_permutation_is_kept_apart_from_the_tensor_it_came_in():
    order = torch.tensor([1, 2, 0])
    graph = ga.causal(3).permuted(order)
    order.zero_()
    assert graph == ga.causal(3).permuted([1, 2, 0])


def test_the_example():
    n = 4096
    expander = ga.expander(n, 4, seed=0)
    graph = (ga.sliding_window(n, 64) | ga.hubs(n, [0]) | expander) & ga.causal(n)
    i, j = np.ogrid[:n, :n]
    drawn = np.zeros((n, n), bool)
    drawn[tuple(expander.edge_index.flip(0).numpy())] = True
    expected = ((abs(i - j) <= 64) | (i == 0) | (j == 0) | drawn) & (j <= i)
    assert graph.num_edges == expected.sum()
    np.testing.assert_array_equal(graph.mask().numpy(), expected)
    assert str(graph) == (
        "(((sliding_window(4096, 64) | hubs(4096, [0])) | expander(4096, 4, seed=0))"
        " & causal(4096))"
    )


@pytest.mark.parametrize(
    ("graph", "num_edges"),
    [
        (ga.causal(MILLION) & ga.sliding_window(MILLION, 9), 10 * MILLION - 45),
        (ga.complete(MILLION) | ga.causal(MILLION), MILLION**2),
        (ga.complete(MILLION).without_self_loops(), MILLION**2 - MILLION),
        (ga.causal(MILLION).without_self_loops(), MILLION * (MILLION - 1) // 2),
        (ga.causal(MILLION).without_self_loops().with_self_loops(), 500_000_500_000),
        (ga.causal(MILLION).T, 500_000_500_000),
        (ga.prefix(MILLION, 10).rows(0, 20), 10 * 10 + sum(range(11, 21))),
        (ga.complete(MILLION).permuted(range(MILLION)[::-1]), MILLION**2),
        (ga.hubs(MILLION, [0, 5]), MILLION**2 - (MILLION - 2) ** 2),
        (ga.batch([ga.complete(MILLION), ga.causal(MILLION)]), MILLION**2 + 500_000_500_000),
        (ga.bipartite(MILLION, 7).T, 7 * MILLION),
    ],
    ids=str,
)
def test_edges_of_large_graphs_are_counted_unlisted(graph, num_edges, monkeypatch):
    for kind in subclasses(ga.Graph):
        monkeypatch.setattr(kind, "edges", unlistable)
    assert graph.num_edges == num_edges


def subclasses(kind):
    return {kind}.union(*map(subclasses, kind.__subclasses__()))


def unlistable(graph):
    raise AssertionError(f"the edges of {graph} were listed")


N = 200_000


@pytest.mark.parametrize(
    ("graph", "num_edges"),
    [
        (ga.complete(N) - ga.hubs(N, [1, 5]), (N - 2) ** 2),
        (ga.causal(N).T & ga.sliding_window(N, 4), 5 * N - 10),
        ((ga.complete(N) - ga.hubs(N, [5])) & ga.sliding_window(N, 1), 3 * N - 2 - 5),
        (ga.sliding_window(N, 1) | ga.hubs(N, [0, 7]), 3 * N - 2 + 4 * N - 4 - (5 + 3)),
    ],
    ids=str,
)
def test_of_two_large_graphs_the_smaller_one_is_listed(graph, num_edges):
    assert graph.num_edges == num_edges


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ga.hubs(5, [5]), IndexError, r"hub 5 is not among the nodes 0\.\.4"),
        (lambda: ga.hubs(5, [0, -1]), IndexError, r"hub -1 is not among the nodes 0\.\.4"),
        (lambda: ga.hubs(5, 1), TypeError, r"nodes must be several, as a list, got int"),
        (lambda: ga.hubs(5, None), TypeError, r"nodes must be several, as a list, got NoneType"),
        (lambda: ga.hubs(5, "01"), TypeError, r"nodes must be several, as a list, got str"),
        (lambda: ga.hubs(5, [0.7]), TypeError, r"nodes must hold integers, got torch.float32"),
        (lambda: ga.hubs(5, [True]), TypeError, r"nodes must hold integers, got torch.bool"),
        (lambda: ga.hubs(5, ["a"]), TypeError, r"nodes must be a tensor, .*got list \['a'\]"),
        (lambda: ga.causal(3) | ga.causal(4), ValueError, r"same nodes, got 3 .*causal\(3\) and 4"),
        (
            lambda: ga.bipartite(2, 3) & ga.bipartite(3, 2),
            ValueError,
            r"3 sources -> 2 dest.* 2 -> 3",
        ),
        (lambda: ga.causal(3) - 4, TypeError, r"expected a graph, got int 4"),
        (lambda: ga.causal(3) & None, TypeError, r"expected a graph, got NoneType"),
        (lambda: ga.causal(3) | torch.ones(3, 3), TypeError, r"expected a graph, got Tensor"),
        (lambda: ga.batch([]), ValueError, r"at least one graph, got none"),
        (lambda: ga.batch(ga.causal(3)), TypeError, r"graphs must be several, .* got Causal"),
        (lambda: ga.batch([ga.causal(3), 3]), TypeError, r"expected a graph, got int 3"),
        (lambda: ga.causal(3).permuted([0, 1]), ValueError, r"each of 0\.\.2 once, got 2 numbers"),
        (lambda: ga.causal(3).permuted([0, 1, 1]), ValueError, r"each of 0\.\.2 once, got"),
        (lambda: ga.causal(3).permuted([1, 2, 3]), ValueError, r"each of 0\.\.2 once, got"),
        (lambda: ga.causal(3).permuted([[0, 1, 2]]), ValueError, r"shape \(1, 3\)"),
        (lambda: ga.causal(2).permuted(torch.ones(3, 2).long().T), ValueError, r"shape \(2, 3\)"),
        (lambda: ga.causal(2).permuted([0.2, 1.7]), TypeError, r"order must hold integers, got"),
        (lambda: ga.causal(2).permuted([True, False]), TypeError, r"order must hold integers, got"),
        (lambda: ga.causal(2).permuted(1), TypeError, r"order must be several, .*got int"),
        (lambda: ga.bipartite(2, 3).permuted([0, 1]), ValueError, r"got 3 sources and 2 dest"),
        (lambda: ga.bipartite(2, 3).with_self_loops(), ValueError, r"self loops need .* got 3 so"),
        (lambda: ga.bipartite(2, 3).without_self_loops(), ValueError, r"self loops need .* got 3"),
        (lambda: ga.causal(5).rows(0, 6), ValueError, r"stop must be between 0 and 5, got 6"),
        (lambda: ga.causal(5).rows(4, 3), ValueError, r"start must be between 0 and 3, got 4"),
        (lambda: ga.causal(5).rows(-1, 3), ValueError, r"start must be between 0 and 3, got -1"),
        (lambda: ga.causal(5).rows(0.0, 3), TypeError, r"start must be an integer, got 0.0"),
        (lambda: ga.causal(5).rows(0, None), TypeError, r"stop must be an integer, got None"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_graph_on_the_right_of_something_else():
    with pytest.raises(TypeError, match="unsupported operand"):
        4 | ga.causal(4)
