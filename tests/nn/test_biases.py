"""Learned biases: their buckets, offsets and hops against independent definitions."""

import networkx
import pytest
import torch

import graphattn as ga
from graphattn import nn
from graphattn.biases import grid_offset, hop_distance, t5_bucket


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20)])
def test_t5_buckets_are_those_of_transformers(bidirectional, num_buckets, max_distance):
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    offset = torch.arange(-300, 301)
    expected = t5.T5Attention._relative_position_bucket(
        offset, bidirectional, num_buckets, max_distance
    )
    buckets = t5_bucket(
        offset, num_buckets=num_buckets, max_distance=max_distance, bidirectional=bidirectional
    )
    assert torch.equal(buckets, expected)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 2)])
def test_offsets_are_numbered_without_a_clash(shape):
    nodes = torch.arange(torch.Size(shape).numel())
    dst, src = nodes[:, None].expand(-1, len(nodes)), nodes.expand(len(nodes), -1)
    numbers = grid_offset(dst, src, shape, shape)
    coordinates = torch.stack(torch.unravel_index(nodes, shape), dim=-1)
    offsets = coordinates[:, None] - coordinates[None]
    known = {}
    for offset, number in zip(offsets.reshape(-1, len(shape)).tolist(), numbers.reshape(-1)):
        assert known.setdefault(tuple(offset), int(number)) == int(number)
    assert sorted(known.values()) == list(range(len(known)))


def test_offsets_beyond_reach_share_the_farthest():
    bias = nn.RelativePositionBias((1, 9), heads=2, reach=(1, 3))
    dst = torch.full((9,), 8)
    values = bias(dst, torch.arange(9))  # offsets 8, 7, ..., 0
    assert torch.equal(values[:7], values[6].expand(7, 2))
    assert not torch.equal(values[6], values[7])


@pytest.mark.parametrize(
    "graph",
    [
        ga.sliding_window(9, 2),
        ga.expander(12, 3, seed=0),
        ga.causal(5),
        ga.from_edges([[0], [1]], 4),
    ],
    ids=str,
)
def test_hops_are_the_paths_of_networkx(graph):
    lengths = dict(networkx.all_pairs_shortest_path_length(graph.to_networkx()))
    for src in range(graph.num_src):
        for dst in range(graph.num_dst):
            expected = min(lengths[src][dst], 3) if dst in lengths[src] else 4
            assert hop_distance(graph, max_distance=3)[dst, src] == expected


def test_hops_need_one_set_of_nodes():
    with pytest.raises(ValueError, match="one set of nodes"):
        nn.ShortestPathBias(ga.bipartite(2, 3), heads=1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.T5Bias(4),
        lambda: nn.RelativePositionBias((3, 4), 4, reach=2),
        lambda: nn.ShortestPathBias(ga.sliding_window(12, 1), 4, max_distance=3),
    ],
)
def test_biases_learn_over_every_kernel(make):
    grads = []
    bias = make()
    q, k, v = torch.randn(3, 2, 12, 4, 8)
    graph = ga.neighborhood((3, 4), 1)
    for kernel in ("masked", "reference"):
        bias.table.grad = None
        ga.attention(q, k, v, graph, bias=bias, kernel=kernel).square().sum().backward()
        grads.append(bias.table.grad.clone())
    assert grads[0].any()
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
