"""Trees of continuations: what each branch hears, against the branch as a sequence of its own."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import graphattn as ga
from graphattn.graphs.tree import Branches, grown
from tests.graphs.agree import assert_is
from tests.test_laws import trees

PARENTS = st.integers(0, 7).flatmap(
    lambda size: st.tuples(*(st.integers(-1, node - 1) for node in range(size)))
)


def path_to(node, parents):
    return [] if node < 0 else [*path_to(parents[node], parents), node]


@given(PARENTS)
def test_a_node_attends_to_its_ancestors_and_itself(parents):
    count = np.zeros((len(parents), len(parents)), dtype=np.int64)
    for node in range(len(parents)):
        count[node, path_to(node, parents)] = 1
    assert_is(ga.tree(parents), count)


@given(st.integers(0, 4), PARENTS, st.data())
def test_each_branch_hears_what_a_sequence_would(length, parents, data):
    nodes = length + max((len(path_to(node, parents)) for node in range(len(parents))), default=0)
    tree = data.draw(trees(nodes, nodes, 1))
    graph = ga.from_edges(np.argwhere(np.tril(tree.count)).T[::-1].copy(), max(nodes, 0))
    if data.draw(st.booleans()):
        graph = tree.graph & ga.causal(nodes)
    count = np.zeros((len(parents), length + len(parents)), dtype=np.int64)
    every = graph.mask().numpy()
    for node in range(len(parents)):
        path = path_to(node, parents)
        branch = [*range(length), *(length + ancestor for ancestor in path)]
        count[node, branch] = every[len(branch) - 1, : len(branch)]
    assert_is(grown(graph, length, Branches.of(parents)), count, sorted_edges=False)


def test_parallel_edges_stay():
    graph = ga.from_edges([[0, 0, 1], [1, 1, 1]], 2)
    assert grown(graph, 1, Branches.of([-1, -1])).in_degree().tolist() == [3, 3]


@pytest.mark.parametrize(
    ("parents", "error", "message"),
    [
        ([0], ValueError, r"parents\[0\] must be -1, for a root, or a node before 0, got 0"),
        ([-1, 2, 0], ValueError, r"parents\[1\] .* got 2; list every node after its parent"),
        ([-2], ValueError, "got -2"),
        ([0.5], TypeError, "parents must hold integers"),
        (torch.zeros(2, 2, dtype=torch.int64), ValueError, r"shape \(nodes,\), got \(2, 2\)"),
        (3, TypeError, "parents must be several"),
    ],
)
def test_bad_parents(parents, error, message):
    with pytest.raises(error, match=message):
        ga.tree(parents)
