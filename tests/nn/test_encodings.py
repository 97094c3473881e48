"""Encodings of a node's place, through PyG's transforms."""

import pytest
import torch

import graphattn as ga
from graphattn import nn


def test_laplacian_encoding_holds_eigenvectors():
    graph, n = ga.sliding_window(12, 1).without_self_loops(), 12
    vectors = nn.laplacian_encoding(graph, k=3)
    degree = graph.in_degree().float()
    laplacian = torch.eye(n) - graph.mask().float() / (degree[:, None] * degree).sqrt()
    for vector in vectors.T:
        value = vector @ laplacian @ vector / (vector @ vector)
        torch.testing.assert_close(laplacian @ vector, value * vector, rtol=1e-3, atol=1e-4)
        assert value > 1e-4  # the constant one is left out


def test_random_walk_encoding_holds_chances_of_return():
    graph = ga.expander(10, 3, seed=0)
    walk = graph.mask().float() / 3
    expected = torch.stack([torch.linalg.matrix_power(walk, k).diagonal() for k in (1, 2, 3)], -1)
    torch.testing.assert_close(nn.random_walk_encoding(graph, 3), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.laplacian_encoding(ga.complete(4), k=4),
        lambda: nn.laplacian_encoding(ga.complete(4), k=0),
        lambda: nn.random_walk_encoding(ga.complete(4), steps=0),
        lambda: nn.laplacian_encoding(ga.bipartite(4, 5), k=1),
    ],
)
def test_bad_input_is_refused(make):
    with pytest.raises(ValueError, match=r"eigenvectors|positive|one set of nodes"):
        make()
