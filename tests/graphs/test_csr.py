import pytest
import torch

import graphattn as ga
from graphattn.graphs.csr import pair_keys, pairs_of


def test_values_follow_their_edges():
    graph = ga.from_edges([[2, 0, 1, 0], [1, 2, 1, 0]], 3)
    rows, columns = graph.csr(), graph.csc()
    assert rows.ptr.tolist() == [0, 1, 3, 4]
    assert rows.edge.tolist() == [3, 2, 0, 1]
    assert columns.edge.tolist() == [3, 1, 2, 0]
    values = torch.randn(5, 4, 2)
    for order in (rows, columns):
        assert order.from_edge_order(values, -2).equal(values[:, order.edge])
        assert order.to_edge_order(order.from_edge_order(values, -2), -2).equal(values)


def test_what_is_in_order_is_not_copied():
    rows, values = ga.causal(3).csr(), torch.randn(6)
    assert rows.edge is None
    assert rows.from_edge_order(values, 0) is rows.to_edge_order(values, 0) is values


def test_parallel_edges_keep_their_order():
    graph = ga.from_edges([[1, 0, 1, 1], [0, 0, 0, 1]], 2)
    assert graph.csr().edge.tolist() == [1, 0, 2, 3]
    assert graph.csc().edge.tolist() == [1, 0, 2, 3]


@pytest.mark.parametrize("num_src", [0, 1, 5, 2**31 - 1])
def test_pairs_are_numbers_and_back(num_src):
    last = max(num_src - 1, 0)
    pairs = [(0, 0), (0, last), (3, last // 2), (2**31 - 2, last)] if num_src else []
    dst, src = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T
    keys = pair_keys(dst, src, num_src)
    assert [keys.tolist() for keys in pairs_of(keys, num_src)] == [dst.tolist(), src.tolist()]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_edges_are_found_among_many_nodes(dtype):
    """Also where the number of a pair is too large for the integers that were given."""
    last = 999_999
    graph = ga.from_edges([[last, 7, 100_000], [last, 7, 100_000]], last + 1)
    dst = torch.tensor([last, 7, 100_000, 100_000, 0], dtype=dtype)
    src = torch.tensor([last, 7, 100_000, 99_999, last], dtype=dtype)
    assert graph.has_edge(dst, src).tolist() == [True, True, True, False, False]
    assert graph.T.has_edge(src, dst).tolist() == [True, True, True, False, False]
