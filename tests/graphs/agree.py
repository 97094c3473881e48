"""One assertion for every graph: all that it says of itself agrees with a count of its edges."""

from __future__ import annotations

import copy
import itertools
from collections import Counter

import numpy as np
import pytest
import torch

import graphattn as ga
from graphattn.graphs.csr import CSR, row_order
from graphattn.graphs.order import edge_ahead, last_listener
from graphattn.graphs.spans import Spans, as_spans, transposed_spans
from graphattn.graphs.structure import Blocks, as_blocks, as_dense, as_intervals
from tests.graphs.truth import matrix, of_pairs


def assert_is(graph: ga.Graph, count: np.ndarray, *, sorted_edges: bool = True) -> None:
    """Everything that a graph says of itself is what `count` says of it."""
    assert (graph.num_dst, graph.num_src) == count.shape
    assert copy.copy(graph).num_edges == count.sum()  # a copy has no facts yet: counted first
    dst, src = graph.edges()
    assert dst.dtype == src.dtype == torch.int64
    pairs = list(zip(dst.tolist(), src.tolist()))
    assert Counter(pairs) == _pairs_of(count)
    assert graph.num_edges == len(pairs)
    assert graph.density == pytest.approx(count.sum() / max(count.size, 1))
    assert graph.edge_index.tolist() == [src.tolist(), dst.tolist()]
    if sorted_edges:
        assert pairs == sorted(pairs)
    assert graph.mask().tolist() == (count > 0).tolist()
    assert graph.in_degree().tolist() == count.sum(1).tolist()
    assert graph.out_degree().tolist() == count.sum(0).tolist()
    _assert_compressed(graph.csr(), pairs, graph.num_dst)
    _assert_compressed(graph.csc(), [(j, i) for i, j in pairs], graph.num_src)
    _assert_has_edge(graph, count)
    _assert_order(copy.copy(graph), count)
    assert_structure_is_true(graph, count)
    assert f"{count.sum():,} edges" in repr(graph)


def assert_structure_is_true(graph: ga.Graph, count: np.ndarray) -> None:
    """What is claimed of a graph gives back its edges, every one of them and once."""
    if (dense := as_dense(graph)) is not None:
        claimed = np.tril(np.ones_like(count)) if dense.causal else np.ones_like(count)
        assert not dense.causal or graph.num_dst == graph.num_src
        np.testing.assert_array_equal(claimed, count)
    if (intervals := as_intervals(graph)) is not None:
        start, stop = intervals
        assert start.dtype == stop.dtype == torch.int64
        bounds = list(zip(start.tolist(), stop.tolist(), strict=True))
        assert all(begin < end or begin == end == 0 for begin, end in bounds)
        claimed = matrix(*count.shape, lambda i, j: bounds[i][0] <= j < bounds[i][1])
        np.testing.assert_array_equal(claimed, count)
    if (spans := as_spans(graph)) is not None:
        np.testing.assert_array_equal(_count_of_spans(spans, count.shape), count)
        assert as_intervals(graph) is None or len(spans.parts) == 1
    if (spans := transposed_spans(graph)) is not None:
        np.testing.assert_array_equal(_count_of_spans(spans, count.T.shape), count.T)
    if as_spans(graph) is not None:  # nothing else keeps the transpose from being known
        assert (transposed_spans(graph) is None) == (_runs(count.T) > 2)
    assert (row_order(copy.copy(graph)) is None) == (graph.csr().edge is None)
    if (blocks := as_blocks(graph)) is not None:
        assert (blocks.num_dst, blocks.num_src) == count.shape
        np.testing.assert_array_equal(_count_of_blocks(blocks), count)


def assert_same_structure(graph: ga.Graph, listed: ga.Graph) -> None:
    """What is known of a graph is read off a bare list of its edges, too."""
    if as_dense(graph) is not None:
        assert as_dense(listed) is not None
    if (intervals := as_intervals(graph)) is not None:
        found = as_intervals(listed)
        assert found is not None
        assert [ends.tolist() for ends in found] == [ends.tolist() for ends in intervals]
    if (spans := as_spans(graph)) is not None:
        found = as_spans(listed)
        assert found is not None
        for one, other in zip(found, spans, strict=True):
            assert [ends.tolist() for ends in one] == [ends.tolist() for ends in other]
    if (blocks := as_blocks(graph)) is not None:
        found = as_blocks(listed)
        assert found is not None
        assert _parts_of(found) == _parts_of(blocks)
        assert found.num_blocks == blocks.num_blocks


def _count_of_spans(spans: Spans, shape: tuple[int, int]) -> np.ndarray:
    count = np.zeros(shape, dtype=np.int64)
    for part in spans:
        for row, (start, stop) in enumerate(zip(*(end.tolist() for end in part), strict=True)):
            assert start < stop or start == stop == 0
            count[row, start:stop] += 1
    for stop, start in zip(spans.first.stop.tolist(), spans.second.start.tolist(), strict=True):
        assert start == 0 or start > stop > 0  # with a gap between them
    return count


def _runs(count: np.ndarray) -> int:
    """The most intervals of columns that a row has."""
    edges = np.pad(count > 0, ((0, 0), (1, 0))).astype(np.int64)
    return int((np.diff(edges) == 1).sum(1).max(initial=0))


def _parts_of(blocks: Blocks) -> set:
    return {
        (frozenset(dst), frozenset(src), group.causal)
        for group in blocks.groups
        for dst, src in zip(group.dst.tolist(), group.src.tolist(), strict=True)
    }


def _count_of_blocks(blocks: Blocks) -> np.ndarray:
    pairs, listeners, speakers = [], Counter(), Counter()
    for group in blocks.groups:
        assert group.dst.ndim == group.src.ndim == 2
        assert min(*group.dst.shape, *group.src.shape) > 0
        assert not group.causal or group.dst.shape == group.src.shape
        for dst, src in zip(group.dst.tolist(), group.src.tolist(), strict=True):
            listeners.update(dst)
            speakers.update(src)
            for row, i in enumerate(dst):
                heard = src[: row + 1] if group.causal else src
                pairs.extend((j, i) for j in heard)
    assert set(listeners.values()) | set(speakers.values()) <= {1}  # disjoint
    return of_pairs(blocks.num_dst, blocks.num_src, pairs)


def _assert_compressed(rows: CSR, pairs: list[tuple[int, int]], num_rows: int) -> None:
    order = sorted(range(len(pairs)), key=lambda edge: pairs[edge])  # stable
    assert list(zip(rows.row.tolist(), rows.index.tolist())) == [pairs[edge] for edge in order]
    edge = range(len(pairs)) if rows.edge is None else rows.edge.tolist()
    assert list(edge) == order
    assert (rows.edge is None) == (pairs == sorted(pairs))
    degree = Counter(row for row, _ in pairs)
    starts = itertools.accumulate((degree[row] for row in range(num_rows)), initial=0)
    assert rows.ptr.tolist() == list(starts)
    values = torch.arange(len(pairs))
    assert rows.from_edge_order(values, 0).tolist() == order
    assert rows.to_edge_order(rows.from_edge_order(values, 0), 0).equal(values)


def _assert_has_edge(graph: ga.Graph, count: np.ndarray) -> None:
    exists = (count > 0).tolist()
    dst, src = torch.arange(graph.num_dst), torch.arange(graph.num_src)
    grid = torch.as_tensor(graph.has_edge(dst[:, None], src)).expand(count.shape)
    assert grid.tolist() == exists
    for i, j in itertools.islice(np.ndindex(count.shape), 0, None, 7):
        answer = graph.has_edge(dst=i, src=j)
        assert isinstance(answer, bool)
        assert answer == exists[i][j]


def _assert_order(graph: ga.Graph, count: np.ndarray) -> None:
    last = [max(column.nonzero()[0], default=-1) for column in count.T]
    assert last_listener(graph).tolist() == last
    edge = edge_ahead(graph)
    assert (edge is None) == (not np.triu(count, 1).any())
    if edge is not None:
        dst, src = edge
        assert src > dst
        assert count[dst, src] > 0


def _pairs_of(count: np.ndarray) -> Counter:
    return Counter({(int(i), int(j)): int(count[i, j]) for i, j in zip(*count.nonzero())})
