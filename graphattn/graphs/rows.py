"""The edges of a graph as fused kernels read them: in short integers, or as intervals; hubs cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from graphattn.graphs.csr import CompactCSR, compact_by_destination, compact_by_source
from graphattn.graphs.facts import fact
from graphattn.graphs.structure import Intervals, as_intervals, transposed_intervals

if TYPE_CHECKING:
    from graphattn.graphs.graph import Graph

# Edges of a row that one program works through: few enough that no program outlasts the others by
# long, enough that usual windows are not cut, and that a sum for each part (4 bytes a number) is
# little beside what the edges read.
LONGEST = 512


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
    ptr = torch.nn.functional.pad(degree.cumsum(0), (1, 0))
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
