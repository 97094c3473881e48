"""Rows in windows that share sources, as tiles read them; whether tiles are worth it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from graphattn.graphs import Graph
from graphattn.graphs.csr import CompactCSR, compact_by_destination, compact_by_source
from graphattn.graphs.facts import fact
from graphattn.graphs.rows import interval_columns, interval_rows
from graphattn.graphs.windows import sharing_order
from graphattn.kernels.cpu.interface import call

WINDOW = 16  # rows of a window, as in loops/tiles.h
# Edges for each source of a window from which on tiles take less time: they compute all 16 pairs.
# On 2,048 nodes with random edges, forward and backward met at 4.4 and 4.7 (AVX-512).
WORTH_TILES = 4.5
SAMPLE = 64  # windows by which a list is judged


class Windows(NamedTuple):
    """Sources that the rows of each window attend to.

    window: int64 (windows + 1,), where the sources of each begin; empty if tiles are not worth it.
    source: int32 (sources,), nodes; empty where rows are intervals, which need no list.
    attends: uint16 (sources,), bit r for row r of the window.
    row: int32 (rows,), the rows of each window in turn; empty where that is 0, 1, 2, ...
    """

    window: Tensor
    source: Tensor
    attends: Tensor
    row: Tensor


NONE = Windows(
    torch.empty(0, dtype=torch.int64),
    torch.empty(0, dtype=torch.int32),
    torch.empty(0, dtype=torch.uint16),
    torch.empty(0, dtype=torch.int32),
)


@fact
def windows_of_rows(graph: Graph) -> Windows:
    return _of_list(graph, compact_by_destination(graph), graph.num_src)


@fact
def windows_of_columns(graph: Graph) -> Windows:
    return _of_list(graph, compact_by_source(graph), graph.num_dst)


@fact
def windows_of_interval_rows(graph: Graph) -> Windows:
    return _of_intervals(interval_rows(graph))


@fact
def windows_of_interval_columns(graph: Graph) -> Windows:
    return _of_intervals(interval_columns(graph))


def _of_intervals(rows: CompactCSR | None) -> Windows:
    if rows is None:
        return NONE
    degree, start = rows.ptr.diff(), rows.index.long()
    lost = -len(degree) % WINDOW
    low = start.masked_fill(degree == 0, torch.iinfo(torch.int64).max)
    low = torch.nn.functional.pad(low, (0, lost), value=torch.iinfo(torch.int64).max)
    high = torch.nn.functional.pad((start + degree).masked_fill(degree == 0, 0), (0, lost))
    spans = (high.view(-1, WINDOW).amax(1) - low.view(-1, WINDOW).amin(1)).clamp(min=0)
    if int(rows.ptr[-1]) < WORTH_TILES * int(spans.sum()):
        return NONE
    return NONE._replace(window=torch.nn.functional.pad(spans.cumsum(0), (1, 0)))


def _of_list(graph: Graph, rows: CompactCSR, num_sources: int) -> Windows:
    num_rows = len(rows.ptr) - 1
    if not len(rows.index):
        return NONE
    order = sharing_order(graph)
    row = NONE.row if order is None else order.to(torch.int32)
    step = -(-num_rows // (WINDOW * SAMPLE))
    first = torch.arange(num_rows).view(-1, 1)[:: WINDOW * step] + torch.arange(WINDOW)
    sample = first[first < num_rows] if order is None else order[first[first < num_rows]]
    edges = int(rows.ptr.diff()[sample].sum())
    if edges < WORTH_TILES * len(_listed(rows, row, num_sources, step, edges).source):
        return NONE
    found = _listed(rows, row, num_sources, 1, len(rows.index))
    return found._replace(source=found.source.clone(), attends=found.attends.clone())


def _listed(rows: CompactCSR, row: Tensor, num_sources: int, step: int, edges: int) -> Windows:
    """List the sources of every window, or of every step-th one, which have so many edges."""
    num_rows = len(rows.ptr) - 1
    newest = torch.zeros(num_sources, dtype=torch.int64)
    before = torch.empty(edges, dtype=torch.int64)
    window = torch.empty(-(-num_rows // (WINDOW * step)) + 1, dtype=torch.int64)
    source = torch.empty(edges, dtype=torch.int32)
    attends = torch.empty(edges, dtype=torch.uint16)
    given = (rows.ptr, rows.index, row, num_rows, step, newest, before, window, source, attends)
    count = call("windows", *given)
    return Windows(window, source[:count], attends[:count], row)
