import itertools

import numpy as np
import pytest
import torch

import graphattn as ga
from graphattn.graphs.structure import as_blocks, as_dense, as_intervals, is_simple, is_symmetric
from tests.graphs import truth
from tests.graphs.agree import assert_is, assert_same_structure, assert_structure_is_true

BIG = 2**31 - 1


def is_dense(count):
    tril = np.tril(np.ones_like(count))
    return bool(count.all()) or (count.shape[0] == count.shape[1] and np.array_equal(count, tril))


def is_intervals(count):
    rows = [row.nonzero()[0] for row in count]
    return all(len(row) == 0 or row[-1] - row[0] + 1 == len(row) for row in rows)


def is_blocks(count):
    """Rows that share a source are together; together they are complete, or grow one by one."""
    parts: list[list[set[int]]] = []
    for row in count:
        heard = set(row.nonzero()[0].tolist())
        sharing = [part for part in parts if any(heard & other for other in part)]
        parts = [part for part in parts if part not in sharing]
        parts.append([*(other for part in sharing for other in part), heard])
    return all(_is_complete_or_causal(count, set.union(*part)) for part in parts)


def _is_complete_or_causal(count, sources):
    block = count[:, sorted(sources)]
    block = block[block.any(axis=1)]
    return bool(block.all()) or is_dense(block)


@pytest.mark.parametrize("shape", [(1, 3), (2, 2), (3, 3), (2, 4), (4, 2)], ids=str)
def test_every_small_graph(shape):
    """All graphs of a size: what is there is found, and what is not there is not claimed."""
    for bits in itertools.product([0, 1], repeat=shape[0] * shape[1]):
        count = np.array(bits).reshape(shape)
        graph = ga.from_mask(count > 0)
        assert_structure_is_true(graph, count)
        assert (as_dense(graph) is not None) == is_dense(count), count
        assert (as_intervals(graph) is not None) == is_intervals(count), count
        assert (as_blocks(graph) is not None) == is_blocks(count), count


# Nearly blocks, by their lists of sources; `blocks` is whether they still are.
NEAR_MISSES = [
    ("a causal block with a row left out", [[0], [], [0, 1, 2]], False),
    ("a causal block beside a row that hears nobody", [[0], [], [0, 1], [3]], True),
    ("causal, upside down", [[0, 1, 2], [0, 1], [0]], False),
    ("strictly causal", [[], [0], [0, 1], [0, 1, 2]], True),
    ("one row twice in a causal block", [[0], [0, 1], [0, 1], [0, 1, 2]], False),
    ("complete blocks that share a source", [[0, 1], [0, 1], [1, 2], [1, 2]], False),
    ("the same first source, other lists", [[0, 1, 3], [0, 2, 3], [0, 1, 3]], False),
    ("the same first source and degree, apart", [[0, 2], [1, 3], [0, 3], [1, 2]], False),
    ("interleaved complete blocks", [[0, 2], [1, 3], [0, 2], [1, 3]], True),
    ("interleaved causal blocks", [[0], [1], [0, 2], [1, 3]], True),
    ("a causal block and an interleaved complete one", [[0], [1, 3], [0, 2], [1, 3]], True),
    ("more listeners than speakers", [[0, 2]] * 5, True),
    ("a window", [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3]], False),
    ("nothing", [[], [], []], True),
]


@pytest.mark.parametrize(
    ("lists", "blocks"), [case[1:] for case in NEAR_MISSES], ids=[case[0] for case in NEAR_MISSES]
)
def test_near_misses(lists, blocks):
    pairs = [(j, i) for i, row in enumerate(lists) for j in row]
    count = truth.of_pairs(len(lists), 4, pairs)
    graph = ga.from_edges(np.array(pairs, int).reshape(-1, 2).T, num_dst=len(lists), num_src=4)
    assert_is(graph, count)
    assert (as_blocks(graph) is not None) == blocks == is_blocks(count)


@pytest.mark.parametrize("graph", [ga.complete(3), ga.causal(3), ga.batch([ga.complete(2)] * 2)])
@pytest.mark.parametrize("twice", [0, 1, -1])
def test_a_parallel_edge_is_never_lost_in_structure(graph, twice):
    index = torch.cat([graph.edge_index, graph.edge_index[:, twice, None]], dim=1)
    listed = ga.from_edges(index, graph.num_dst)
    count = truth.of_pairs(listed.num_dst, listed.num_src, index.T.tolist())
    assert_is(listed, count, sorted_edges=False)
    assert [as_dense(listed), as_intervals(listed), as_blocks(listed)] == [None] * 3
    assert not is_simple(listed)


def kinds(graph):
    """The strongest facts that are known: how it is dense, and how many blocks of which size."""
    dense, blocks = as_dense(graph), as_blocks(graph)
    sizes = blocks and sorted(
        (*group.dst.shape, group.src.shape[1], group.causal) for group in blocks.groups
    )
    return dense and ("causal" if dense.causal else "complete"), sizes


RECOGNISED = [
    (ga.complete(5), "complete", [(1, 5, 5, False)]),
    (ga.causal(5), "causal", [(1, 5, 5, True)]),
    (ga.bipartite(2, 5), "complete", [(1, 2, 5, False)]),
    (ga.prefix(4, 4), "complete", [(1, 4, 4, False)]),
    (ga.prefix(4, 1), "causal", [(1, 4, 4, True)]),
    (ga.sliding_window(4, 3), "complete", [(1, 4, 4, False)]),
    (ga.sliding_window(4, 0), None, [(4, 1, 1, False)]),
    (ga.sliding_window(5, 1), None, None),
    (ga.shifted_windows((4, 4), 2), None, [(4, 4, 4, False)]),
    (ga.shifted_windows((4, 4), 2, 1), None,
     [(1, 4, 4, False), (4, 1, 1, False), (4, 2, 2, False)]),
    (ga.shifted_windows((4, 4), 4), "complete", [(1, 16, 16, False)]),
    (ga.neighborhood((3, 3), 1), "complete", [(1, 9, 9, False)]),
    (ga.neighborhood((3, 3), 2, border="cut"), "complete", [(1, 9, 9, False)]),
    (ga.neighborhood((4, 4), 1), None, None),
    (ga.axial((1, 5)), "complete", [(1, 5, 5, False)]),
    (ga.axial((2, 2)), None, None),
    (ga.hubs(4, range(4)), "complete", [(1, 4, 4, False)]),
    (ga.hubs(4, []), None, []),
    (ga.hubs(4, [1]), None, None),
    (ga.batch([ga.complete(2), ga.causal(3), ga.complete(2)]), None,
     [(1, 3, 3, True), (2, 2, 2, False)]),
    (ga.batch([ga.causal(3), ga.shifted_windows((2, 4), 2)]), None,
     [(1, 3, 3, True), (2, 4, 4, False)]),
    (ga.batch([ga.complete(2), ga.sliding_window(4, 1)]), None, None),
    (ga.batch([ga.causal(3)]), "causal", [(1, 3, 3, True)]),
    (ga.causal(4) | ga.causal(4).T, "complete", [(1, 4, 4, False)]),
    (ga.prefix(4, 2) & ga.causal(4), "causal", [(1, 4, 4, True)]),
    (ga.complete(4).permuted([2, 0, 1, 3]), "complete", [(1, 4, 4, False)]),
    (ga.complete(4) - ga.causal(4) | ga.causal(4), "complete", [(1, 4, 4, False)]),
    (ga.causal(4).without_self_loops(), None, [(1, 3, 3, True)]),
    (ga.causal(4).rows(3, 4), "complete", [(1, 1, 4, False)]),
    (ga.causal(4).rows(0, 3), None, [(1, 3, 3, True)]),
]  # fmt: skip


@pytest.mark.parametrize(("graph", "dense", "blocks"), RECOGNISED)
def test_recognised(graph, dense, blocks):
    assert kinds(graph) == (dense, blocks)
    shuffled = graph.edge_index[:, torch.randperm(graph.num_edges, generator=torch.manual_seed(0))]
    listed = ga.from_edges(shuffled, num_dst=graph.num_dst, num_src=graph.num_src)
    assert kinds(listed) == (dense, blocks)
    assert_same_structure(graph, listed)


@pytest.mark.parametrize(
    "graph",
    [
        ga.complete(1_000_000).without_self_loops(),
        ga.causal(1_000_000).permuted(range(1_000_000)[::-1]),
        ga.complete(1_000_000) - ga.hubs(1_000_000, [1, 5]),
    ],
    ids=str,
)
def test_what_cannot_be_listed_is_not_known(graph):
    assert as_dense(graph) is as_intervals(graph) is as_blocks(graph) is None


def test_dense_is_known_at_no_cost():
    assert as_dense(ga.complete(BIG)) == (False,)
    assert as_dense(ga.causal(BIG)) == (True,)


SYMMETRIC = [
    ga.complete(5),
    ga.sliding_window(5, 1),
    ga.dilated(5, 1, 2),
    ga.neighborhood((4, 4), 1, border="cut"),
    ga.shifted_windows((4, 3), 2, 1),
    ga.axial((2, 3)),
    ga.hubs(5, [1, 3]),
    ga.expander(8, 3, seed=1),
    ga.sliding_window(5, 1) | ga.hubs(5, [0]),
    ga.hubs(5, [0]) & ga.axial(5),
    ga.complete(5).without_self_loops(),
    ga.batch([ga.complete(2), ga.hubs(3, [0])]),
]


@pytest.mark.parametrize("graph", SYMMETRIC, ids=str)
def test_a_symmetric_graph_is_its_own_transpose(graph):
    assert is_symmetric(graph)
    assert graph.T is graph
    assert graph.mask().equal(graph.mask().T)


@pytest.mark.parametrize(
    "graph", [ga.causal(4), ga.neighborhood(5, 1), ga.bipartite(2, 2)], ids=str
)
def test_transpose_of_others(graph):
    assert graph.T.mask().equal(graph.mask().T)
