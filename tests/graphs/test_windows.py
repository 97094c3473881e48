"""Rows in windows: read back, they are the edges; and what they say of reuse."""

from __future__ import annotations

import pytest
import torch

import graphattn as ga
from graphattn.graphs import windows
from graphattn.graphs.windows import (
    SIZES,
    TILE,
    WINDOWS_OF_COLUMNS,
    WINDOWS_OF_ROWS,
    RowWindows,
    reuse,
    sharing_order,
    window_counts,
)
from tests.oracle import BIGBIRD, NONE, PARALLEL, random_edges, shuffled

GRAPHS = {
    "window": lambda: ga.sliding_window(45, 6),
    "sparse": lambda: shuffled(random_edges(70, 300, 900) & ga.bipartite(70, 300)),
    "long rows": lambda: random_edges(35, 700, 9000) & ga.bipartite(35, 700),
    "bigbird": lambda: BIGBIRD,
    "grid": lambda: ga.neighborhood((9, 13), 2),
    "no edges": lambda: NONE,
    "no sources": lambda: ga.bipartite(3, 0),
    "no destinations": lambda: ga.bipartite(0, 3),
}


def number_of_edge(found: RowWindows, num_rows: int, num_columns: int) -> torch.Tensor:
    """Of every pair the number that its bit gives it, by row and column; -1 if it is no edge."""
    size = found.begin.shape[1]
    number = torch.full((num_rows, num_columns), -1)
    for (window, first, last, _), begin in zip(found.items.tolist(), found.begin.tolist()):
        for tile in range(first, last):
            columns = found.columns[tile * TILE : (tile + 1) * TILE].tolist()
            for place, word in enumerate(zip(*found.words[tile].tolist(), strict=True)):
                for c, column in enumerate(columns):
                    if word[c // 32] >> c % 32 & 1:
                        row = int(found.rows[window * size + place])
                        assert number[row, column] == -1, "an edge twice"
                        number[row, column] = begin[place]
                        begin[place] += 1
    return number


@pytest.mark.parametrize("most", [1, 2, 64])
@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("name", GRAPHS)
def test_they_are_the_edges(
    name: str, size: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "LONGEST", most)
    graph = GRAPHS[name]()
    for side, mask in (
        (WINDOWS_OF_ROWS, graph.mask()),
        (WINDOWS_OF_COLUMNS, graph.mask().T.contiguous()),
    ):
        found = side[size](graph)
        assert found is not None
        number = torch.full(mask.shape, -1)
        number[mask] = torch.arange(int(mask.sum()))
        assert torch.equal(number_of_edge(found, *mask.shape), number)
        tiles = found.items[:, 2] - found.items[:, 1]
        assert not len(tiles) or tiles.max() <= most
        order = found.rows[found.rows < len(mask)]
        assert torch.equal(order.sort().values.long(), torch.arange(len(mask)))
        for window, first, count in found.cut.tolist():
            parts = found.items[first : first + count]
            assert parts[:, 3].tolist() == list(range(first, first + count))
            assert parts[:, 0].tolist() == [window] * count
            assert parts[1:, 1].tolist() == parts[:-1, 2].tolist()


def test_an_order_of_nothing() -> None:
    assert sharing_order(ga.dilated(0, 1, 2)) is None
    batch = ga.batch([GRAPHS["grid"](), ga.complete(5)])
    order = sharing_order(batch)
    assert order is not None
    assert torch.equal(order.sort().values, torch.arange(batch.num_dst))
    assert sharing_order(ga.batch([ga.complete(5)])) is None


def test_parallel_edges_have_none() -> None:
    assert WINDOWS_OF_ROWS[16](PARALLEL) is None
    assert WINDOWS_OF_COLUMNS[16](PARALLEL) is None


@pytest.mark.parametrize("name", GRAPHS)
def test_reuse_of_a_small_graph_is_exact(name: str) -> None:
    graph = GRAPHS[name]()
    found = window_counts(graph)
    for size, columns, tiles in zip(SIZES, *found, strict=True):
        made = WINDOWS_OF_ROWS[size](graph)
        assert made is not None
        assert tiles == len(made.columns) // TILE
        order = made.rows.view(-1, size).long()
        mask = torch.cat([graph.mask(), torch.zeros(1, graph.num_src, dtype=torch.bool)])
        assert columns == int(mask[order].any(1).sum())


def test_reuse_of_a_large_graph_is_told_from_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = ga.neighborhood((256, 256), 3)
    whole = window_counts(graph)
    monkeypatch.setattr(windows, "SAMPLE", 2**17)
    part = window_counts(ga.neighborhood((256, 256), 3, border="clamp") | graph)  # not kept yet
    for one, other in zip((*whole.columns, *whole.tiles), (*part.columns, *part.tiles)):
        assert abs(one - other) < 0.05 * one


@pytest.mark.parametrize(
    "graph",
    [
        ga.neighborhood((16, 30), 3),
        ga.neighborhood((13, 17), 2, border="cut"),
        ga.neighborhood((6, 7, 8), 1),
        ga.neighborhood((20, 24), 2, dilation=2),
        ga.dilated(300, 4, 3),
    ],
    ids=str,
)
def test_an_order_that_shares_more(graph: ga.Graph) -> None:
    order = sharing_order(graph)
    assert order is not None
    assert torch.equal(order.sort().values, torch.arange(graph.num_dst))
    listed = ga.from_edges(graph.edge_index, graph.num_dst)
    assert sharing_order(listed) is None
    assert reuse(graph)[64] > reuse(listed)[64]
    assert torch.equal(order, sharing_order(graph & ga.complete(graph.num_dst)))
