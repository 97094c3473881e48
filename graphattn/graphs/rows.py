"""The edges of a graph as fused kernels read them, lists or intervals; rows cut, or in blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from graphattn.graphs.csr import CompactCSR, compact_by_destination, compact_by_source
from graphattn.graphs.facts import fact
from graphattn.graphs.spans import Spans, as_spans, transposed_spans
from graphattn.graphs.structure import Intervals, as_intervals, transposed_intervals

if TYPE_CHECKING:
    from graphattn.graphs.graph import Graph

# Edges of a row that one program works through: few enough that no program outlasts the others by
# long, enough that usual windows are not cut, and that a sum for each part (4 bytes a number) is
# little beside what the edges read.
LONGEST = 512
# Rows that are intervals in a block; programs take one block or several.
BLOCK = 32


class Cut(NamedTuple):
    """The rows of more than LONGEST edges, in parts of LONGEST.

    part: int64 (parts, 2), its row and its first edge; the parts of a row follow each other.
    hub: int64 (hubs, 3), the row, its first part and how many there are.
    """

    part: Tensor
    hub: Tensor


@fact
def interval_rows(graph: Graph) -> CompactCSR | None:
    """As `compact_by_destination`, but `index` (num_dst,) is the first source of each row."""
    return _of_intervals(as_intervals(graph))


@fact
def interval_columns(graph: Graph) -> CompactCSR | None:
    """The same by source."""
    return _of_intervals(transposed_intervals(graph))


def _of_intervals(intervals: Intervals | None) -> CompactCSR | None:
    if intervals is None:
        return None
    degree = intervals.stop - intervals.start
    ptr = F.pad(degree.cumsum(0), (1, 0))
    return CompactCSR(ptr, intervals.start.to(torch.int32), None)


@fact
def cut_rows(graph: Graph) -> Cut:
    return _cut((interval_rows(graph) or compact_by_destination(graph)).ptr)


@fact
def cut_columns(graph: Graph) -> Cut:
    return _cut((interval_columns(graph) or compact_by_source(graph)).ptr)


def _cut(ptr: Tensor) -> Cut:
    degree = ptr.diff()
    row = (degree > LONGEST).nonzero().squeeze(1)
    count = (degree[row] + LONGEST - 1) // LONGEST
    first = count.cumsum(0) - count
    row_of_part, first_of_part = (x.repeat_interleave(count) for x in (row, first))
    number = torch.arange(len(row_of_part), device=ptr.device) - first_of_part
    begin = ptr[row_of_part] + LONGEST * number
    return Cut(torch.stack([row_of_part, begin], 1), torch.stack([row, first, count], 1))


class SpanRows(NamedTuple):
    """Rows of one or two intervals (PARTS), and the reach of every BLOCK of them.

    ptr: int64 (rows + 1,), where the edges of each row begin.
    bounds: int32 (PARTS, 2, rows), where each interval starts and stops.
    some: int32 (PARTS, blocks, 2), the first node of any of the rows, and where the last of them
        ends; of a block that hears nobody 2^31 - 1 and 0.
    each: int32 (PARTS, blocks, 2), the range that is part of every row; may end before it begins.
    edge: The place of each edge in edge order, (E,); empty where that is this order.
    """

    ptr: Tensor
    bounds: Tensor
    some: Tensor
    each: Tensor
    edge: Tensor


@fact
def span_rows(graph: Graph) -> SpanRows | None:
    """The destinations of a graph, if they and its sources are rows of one or two intervals."""
    return None if transposed_spans(graph) is None else _span_rows(as_spans(graph))


@fact
def span_columns(graph: Graph) -> SpanRows | None:
    """The same by source."""
    return _span_rows(transposed_spans(graph))


def _span_rows(spans: Spans | None) -> SpanRows | None:
    if spans is None:
        return None
    first, second = (part.stop - part.start for part in spans)
    ends = torch.stack([torch.stack(part) for part in spans.parts]).to(torch.int32)
    reach = [_reach(*part) for part in ends]
    some, each = (torch.stack(of_parts) for of_parts in zip(*reach))
    nothing = torch.empty(0, dtype=torch.int32, device=ends.device)
    return SpanRows(F.pad((first + second).cumsum(0), (1, 0)), ends, some, each, nothing)


def _reach(start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """What some and what each of the rows of a block hear, int32 (blocks, 2)."""
    blocks, largest = -(-len(start) // BLOCK), torch.iinfo(torch.int32).max
    start = start.masked_fill(start == stop, largest)

    def of_blocks(x: Tensor, neutral: int) -> Tensor:
        """(rows,) -> (blocks, BLOCK), filled up with what changes no extreme."""
        return F.pad(x, (0, blocks * BLOCK - len(x)), value=neutral).view(blocks, BLOCK)

    some = of_blocks(start, largest).amin(1), of_blocks(stop, 0).amax(1)
    each = of_blocks(start, 0).amax(1), of_blocks(stop, largest).amin(1)
    return torch.stack(some, 1), torch.stack(each, 1)


@fact
def pairs_in_reach(graph: Graph) -> int | None:
    """How many pairs of a row and a node in the reach of its block there are, if that is known."""
    if (rows := span_rows(graph)) is None:
        return None
    return BLOCK * int(rows.some.long().diff().clamp(min=0).sum())
