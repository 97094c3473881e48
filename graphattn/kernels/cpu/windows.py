"""Rows in windows that share sources, as tiles read them; whether tiles are worth it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from graphattn.graphs import Graph
from graphattn.graphs.csr import CompactCSR, compact_by_destination, compact_by_source
from graphattn.graphs.facts import fact
from graphattn.graphs.rows import interval_columns, interval_rows
from graphattn.kernels.cpu.interface import call

WINDOW = 16  # rows of a window, as in loops/tiles.h
# Edges for each source of a window from which on tiles take less time: they compute all 16 pairs.
WORTH_TILES = 3.0
SAMPLE = 64  # windows by which a list is judged


class Windows(NamedTuple):
    """Sources that the rows of each window attend to.

    window: int64 (windows + 1,), where the sources of each begin; empty if tiles are not worth it.
    source: int32 (sources,), nodes; empty where rows are intervals, which need no list.
    attends: uint16 (sources,), bit r for row r of the window.
    """

    window: Tensor
    source: Tensor
    attends: Tensor


NONE = Windows(
    torch.empty(0, dtype=torch.int64),
    torch.empty(0, dtype=torch.int32),
    torch.empty(0, dtype=torch.uint16),
)


@fact
def windows_of_rows(graph: Graph) -> Windows:
    return _of_list(compact_by_destination(graph), graph.num_src)


@fact
def windows_of_columns(graph: Graph) -> Windows:
    return _of_list(compact_by_source(graph), graph.num_dst)


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


def _of_list(rows: CompactCSR, num_sources: int) -> Windows:
    num_windows = -(-(len(rows.ptr) - 1) // WINDOW)
    if not len(rows.index):
        return NONE
    step = -(-num_windows // SAMPLE)
    first = torch.arange(0, num_windows, step) * WINDOW
    last = (first + WINDOW).clamp(max=len(rows.ptr) - 1)
    edges = int((rows.ptr[last] - rows.ptr[first]).sum())
    if edges < WORTH_TILES * len(_listed(rows, num_sources, step, edges).source):
        return NONE
    found = _listed(rows, num_sources, 1, len(rows.index))
    return found._replace(source=found.source.clone(), attends=found.attends.clone())


def _listed(rows: CompactCSR, num_sources: int, step: int, edges: int) -> Windows:
    """List the sources of every window, or of every step-th one, which have so many edges."""
    num_rows = len(rows.ptr) - 1
    seen = torch.zeros(num_sources, dtype=torch.int32)
    place = torch.empty(num_sources, dtype=torch.int64)
    window = torch.empty(-(-num_rows // (WINDOW * step)) + 1, dtype=torch.int64)
    source = torch.empty(edges, dtype=torch.int32)
    attends = torch.empty(edges, dtype=torch.uint16)
    given = (rows.ptr, rows.index, num_rows, step, seen, place, window, source, attends)
    count = call("windows", *given)
    return Windows(window, source[:count], attends[:count])
