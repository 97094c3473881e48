import pytest
import torch

import graphattn as ga
from tests.graphs.agree import assert_is

CASES = [
    (0, 0, 0), (1, 0, 0), (5, 0, 3), (2, 1, 0), (5, 4, 0), (6, 3, 1), (8, 7, 0), (13, 4, 2),
    (16, 9, 5), (24, 22, 0),
]  # fmt: skip


@pytest.mark.parametrize(("n", "degree", "seed"), CASES)
def test_expander(n, degree, seed):
    graph = ga.expander(n, degree, seed)
    mask = graph.mask()
    assert_is(graph, mask.long().numpy())
    assert graph.num_edges == n * degree
    assert mask.sum(0).tolist() == mask.sum(1).tolist() == [degree] * n
    assert mask.equal(mask.T)
    assert not mask.diagonal().any()


def test_the_seed_names_the_graph():
    first, again, other = ga.expander(32, 3, 7), ga.expander(32, 3, 7), ga.expander(32, 3, 8)
    assert first == again
    assert first.edge_index.equal(again.edge_index)
    assert first != other
    assert not first.edge_index.equal(other.edge_index)


@pytest.mark.parametrize("degree", [3, 4, 6])
def test_an_expander_expands(degree):
    """Friedman 2008: all eigenvalues but the first are near 2 sqrt(degree - 1)."""
    graph = ga.expander(256, degree, seed=0)
    values = torch.linalg.eigvalsh(graph.mask().double())
    assert values[-1] == pytest.approx(degree)
    assert values[:-1].abs().max() < 1.1 * 2 * (degree - 1) ** 0.5
    walks = torch.linalg.matrix_power(graph.mask().double() + torch.eye(256), 10)
    assert walks.min() > 0  # any two nodes are at most 10 hops apart


@pytest.mark.parametrize(("n", "degree"), [(64, 60), (100, 50), (128, 126), (101, 100)])
def test_dense_ones_are_drawn_in_no_time(n, degree):
    assert ga.expander(n, degree, seed=0).in_degree().tolist() == [degree] * n


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((5, 3), ValueError, r"each of 5 nodes has 3 neighbors does not exist: .* even"),
        ((4, 4), ValueError, r"each of 4 nodes has 4 neighbors does not exist: .* below n"),
        ((0, 1), ValueError, r"does not exist"),
        ((4, -1), ValueError, r"degree must be between 0 and .*, got -1"),
        ((-4, 1), ValueError, r"n must be between 0 and .*, got -4"),
        ((4, 1.0), TypeError, r"degree must be an integer, got 1.0"),
        ((4, 1, None), TypeError, r"seed must be an integer, got None"),
        ((4, 1, -1), ValueError, r"seed must be between 0 and .*, got -1"),
    ],
)
def test_bad_input(args, error, message):
    with pytest.raises(error, match=message):
        ga.expander(*args)
