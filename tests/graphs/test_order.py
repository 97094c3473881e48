"""Which nodes are still to be heard, and the places where they are remembered meanwhile."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import graphattn as ga
from graphattn.graphs.order import edge_ahead, last_listener, slots
from tests.test_laws import trees

N = 30
WINDOW = ga.sliding_window(N, 3) & ga.causal(N)


def heard_until(count, node):
    return max(count[:, node].nonzero()[0], default=-1)


def assert_slots_are_right(graph, count):
    """No two nodes share a place while both are to be heard, and there are no more than needed."""
    found, n = slots(graph), len(count)
    slot, used = found.slot.tolist(), found.used.tolist()
    most = 0
    for now in range(n):
        alive = [node for node in range(now + 1) if heard_until(count, node) >= now]
        taken = [slot[node] for node in alive]
        assert len(set(taken)) == len(taken)
        most = max(most, len(alive))
        assert used[now] == most
        assert all(0 <= place < most for place in taken)
    assert found.capacity == most
    assert [place < 0 for place in slot] == [heard_until(count, node) < 0 for node in range(n)]


@given(st.integers(0, 9).flatmap(lambda n: trees(n, n, 2)))
def test_places_of_any_causal_graph(tree):
    causal = ga.causal(tree.graph.num_dst)
    assert_slots_are_right(tree.graph & causal, np.tril(tree.count))
    assert_slots_are_right(causal & tree.graph, np.tril(tree.count))


def test_parallel_edges_take_one_place():
    graph = ga.from_edges([[0, 0, 1, 0], [1, 1, 2, 2]], 3)
    assert_slots_are_right(graph, (graph.mask().numpy()).astype(int))


@pytest.mark.parametrize(
    ("graph", "capacity"),
    [
        (ga.causal(N), N),
        (WINDOW, 4),
        ((ga.sliding_window(N, 3) | ga.hubs(N, [0, 1])) & ga.causal(N), 6),
        (ga.dilated(N, 2, 3) & ga.causal(N), 7),
        (ga.sliding_window(N, 0), 1),
        (ga.causal(N) - ga.causal(N), 0),
        (ga.causal(0), 0),
    ],
    ids=str,
)
def test_how_many_are_remembered_at_once(graph, capacity):
    assert slots(graph).capacity == capacity


def test_a_window_is_a_ring():
    assert slots(WINDOW).slot.tolist() == [node % 4 for node in range(N)]


def test_a_long_causal_graph_is_never_listed():
    n = 1_000_000
    window_and_sinks = (ga.sliding_window(n, 256) | ga.hubs(n, [0, 1, 2, 3])) & ga.causal(n)
    assert slots(ga.causal(n)).capacity == n
    assert slots(ga.causal(n) & ga.sliding_window(n, 256)).capacity == 257
    assert slots(window_and_sinks).capacity == 261
    assert edge_ahead(window_and_sinks) is None
    assert edge_ahead(ga.prefix(n, 1000)) == (0, 999)
    for graph in (ga.causal(n), window_and_sinks):
        assert "_kept_graphattn_graphs_csr_edge_index" not in vars(graph)


def test_the_last_listener_of_intervals_without_order():
    """Rows whose ends do not ascend, as a random mask of runs has them."""
    start = torch.randint(0, 40, (64,))
    stop = torch.minimum(start + torch.randint(0, 20, (64,)), torch.tensor(40))
    mask = (torch.arange(40) >= start[:, None]) & (torch.arange(40) < stop[:, None])
    expected = [heard_until(mask.numpy(), node) for node in range(40)]
    assert last_listener(ga.from_mask(mask)).tolist() == expected
