"""Graphs whose destinations attend to one or two intervals of sources: a window and global tokens.

The algebra leads beyond two, but much that people draw keeps to them: the intervals that the
parts of a graph bring to a row are put in order and joined where they meet, and if one or two are
left in each, the graph is known.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from graphattn.graphs.csr import compact_by_destination, pair_keys, pairs_of
from graphattn.graphs.facts import fact
from graphattn.graphs.order import largest_over
from graphattn.graphs.structure import (
    FIRST_EDGES,
    Intervals,
    as_intervals,
    can_be_listed,
    is_symmetric,
    transposed_intervals,
)

if TYPE_CHECKING:
    from graphattn.graphs.graph import Graph

Ends = tuple[Tensor, Tensor]


class Spans(NamedTuple):
    """Destination i attends to the sources of `first` and of `second`.

    The second begins at least one node after the first has stopped; where a destination hears one
    interval it is 0 to 0, and so are both where it hears nobody.
    """

    first: Intervals
    second: Intervals

    @property
    def parts(self) -> tuple[Intervals, ...]:
        """The intervals without the second ones if nobody hears any."""
        return self if bool((self.second.stop > 0).any()) else (self.first,)


@fact
def as_spans(graph: Graph) -> Spans | None:
    """`Spans` if the sources of every destination are consecutive but for one gap, or none."""
    if (intervals := as_intervals(graph)) is not None:
        return without_gaps(intervals)
    if as_intervals.has_rule(graph):  # is not listed to find more than its class knows
        return None
    if not can_be_listed(graph) or not _begins_like_spans(graph):
        return None
    return _spans_of_runs(*graph.csr()[:3])


@fact
def transposed_spans(graph: Graph) -> Spans | None:
    """For each source the destinations that attend to it, if they are such."""
    if (intervals := transposed_intervals(graph)) is not None:
        return without_gaps(intervals)
    spans = as_spans(graph)
    return spans if spans is None or is_symmetric(graph) else _transposed(spans, graph.num_src)


def without_gaps(intervals: Intervals) -> Spans:
    """Intervals as spans without second ones."""
    return Spans(intervals, Intervals(*(torch.zeros_like(end) for end in intervals)))


def only_intervals(spans: Spans | None) -> Intervals | None:
    """Spans as intervals, if none has a gap."""
    return spans.first if spans is not None and len(spans.parts) == 1 else None


def count_spans(graph: Graph) -> int:
    """A rule for `count_edges`: without listing edges wherever the spans are known."""
    if (spans := as_spans(graph)) is None:
        return graph.edge_index.shape[1]
    return sum(int((part.stop - part.start).sum()) for part in spans.parts)


# --- read off edges -------------------------------------------------------------------------------


def _begins_like_spans(graph: Graph) -> bool:
    """A look at the first destinations spares most irregular graphs the sorting of all."""
    ptr, index, _ = compact_by_destination(graph)
    count = int((ptr[1:] <= FIRST_EDGES).sum())
    row = torch.arange(count, device=ptr.device).repeat_interleave(ptr[: count + 1].diff())
    keys = pair_keys(row, index[: len(row)].long(), graph.num_src).sort().values
    row, index = pairs_of(keys, graph.num_src)
    return _spans_of_runs(ptr[: count + 1], index, row) is not None


def _spans_of_runs(ptr: Tensor, index: Tensor, row: Tensor) -> Spans | None:
    """The spans of the rows of a sorted CSR, if each has one or two runs of consecutive columns."""
    new_row = row.diff(prepend=row.new_full((1,), -1)) != 0
    step = index.diff(prepend=index.new_zeros(1))
    begins = new_row | (step != 1)
    if bool(((step == 0) & ~new_row).any()):  # parallel edges
        return None
    begin = begins.nonzero().squeeze(1)
    last = torch.cat([begin[1:], begin.new_full((1,), len(index))])[: len(begin)] - 1
    number = new_row[begin].long().cumsum(0)  # of the row, among those that hear somebody
    second = ~new_row[begin]
    if len(begin) and int(torch.bincount(number).max()) > 2:
        return None
    ends = []
    for runs in (~second, second):
        for place, more in ((begin[runs], 0), (last[runs], 1)):
            end = torch.zeros(len(ptr) - 1, dtype=torch.int64, device=index.device)
            ends.append(end.index_put_((row[place],), index[place] + more))
    return Spans(Intervals(*ends[:2]), Intervals(*ends[2:]))


# --- the algebra ----------------------------------------------------------------------------------


def union_of(left: Spans | None, right: Spans | None) -> Spans | None:
    """The spans of a union."""
    if left is None or right is None:
        return None
    return _joined([*left.parts, *right.parts])


def intersection_of(left: Spans | None, right: Spans | None) -> Spans | None:
    """The spans of an intersection."""
    if left is None or right is None:
        return None
    return _joined([_meet(a, b) for a in left.parts for b in right.parts])


def difference_of(left: Spans | None, right: Spans | None, num_src: int) -> Spans | None:
    """The spans of what is left of one without the other."""
    if left is None or right is None:
        return None
    return _joined([_meet(a, gap) for a in left.parts for gap in _gaps(right, num_src)])


def of_parts(spans: Spans | None, change: Callable[[Intervals], Intervals]) -> Spans | None:
    """Spans each part of which is changed; what is empty then is left out, what meets is one."""
    return None if spans is None else _joined([change(part) for part in spans.parts])


def register_change(kind: type[Graph], change: Callable[[Any, Intervals], Intervals]) -> None:
    """What a class of graphs, made of `graph.graph`, hears is what that does, each part changed."""

    @as_intervals.register(kind)
    def _(graph: Any) -> Intervals | None:
        intervals = as_intervals(graph.graph)
        return None if intervals is None else change(graph, intervals)

    @as_spans.register(kind)
    def _(graph: Any) -> Spans | None:
        return of_parts(as_spans(graph.graph), partial(change, graph))


def _meet(a: Intervals, b: Intervals) -> Intervals:
    return empty_as_zero(torch.maximum(a.start, b.start), torch.minimum(a.stop, b.stop))


def empty_as_zero(start: Tensor, stop: Tensor) -> Intervals:
    """Intervals of which those are 0 to 0 that are empty."""
    empty = start >= stop
    return Intervals(start.masked_fill(empty, 0), stop.masked_fill(empty, 0))


def _gaps(spans: Spans, num_src: int) -> list[Intervals]:
    """Of every row the intervals that it does not hear: before, between and behind its own."""
    (first, stop), parts = spans.first, spans.parts
    whole = torch.full_like(first, num_src)
    ends = [(torch.zeros_like(first), first), (stop, whole)]
    if len(parts) == 2:
        start, behind = spans.second
        has_two = behind > 0
        ends[1] = (stop, torch.where(has_two, start, num_src))
        ends.append((torch.where(has_two, behind, num_src), whole))
    return [empty_as_zero(*gap) for gap in ends]


def _joined(intervals: list[Intervals]) -> Spans | None:
    """The intervals of a row as two at most, if they are so many once those that meet are one."""
    if len(intervals) == 1:
        return without_gaps(intervals[0])
    last = torch.iinfo(torch.int64).max  # where empty ones are put
    ends: list[Ends] = []
    for start, stop in intervals:
        empty = start == stop
        ends.append((start.masked_fill(empty, last), stop.masked_fill(empty, last)))
    for turn in range(len(ends)):  # a sorting network: neighbors are exchanged in turns
        for i in range(turn % 2, len(ends) - 1, 2):
            ends[i], ends[i + 1] = _in_order(ends[i], ends[i + 1])
    start, stop = ends[0]
    count = zero = torch.zeros_like(start)
    found: list[Ends] = [(zero, zero), (zero, zero)]
    behind_all = torch.full_like(start, last)
    for next_start, next_stop in [*ends[1:], (behind_all, behind_all)]:
        apart = next_start > stop
        if bool((apart & (count == 2)).any()):
            return None
        for i, so_far in enumerate(found):
            found[i] = _where(apart & (count == i), (start, stop), so_far)
        count = count + apart
        start = torch.where(apart, next_start, start)
        stop = torch.where(apart, next_stop, torch.maximum(stop, next_stop))
    return Spans(*(Intervals(*ends) for ends in found))


def _in_order(a: Ends, b: Ends) -> tuple[Ends, Ends]:
    swap = a[0] > b[0]
    return _where(swap, b, a), _where(swap, a, b)


def _where(condition: Tensor, a: Ends, b: Ends) -> Ends:
    return torch.where(condition, a[0], b[0]), torch.where(condition, a[1], b[1])


# --- the transpose --------------------------------------------------------------------------------


def _transposed(spans: Spans, num_src: int) -> Spans | None:
    """Without listing edges, in O(n log n).

    What a destination hears beyond the one before it is a few intervals of sources, for which a run
    of destinations begins; and what it ceases to hear, those for which one ends. Where two begin,
    they do so at the smallest and at the largest such destination.
    """
    padded = _each(spans, lambda end: F.pad(end, (1, 1)))  # nothing is heard before and after
    here, before = _each(padded, lambda end: end[1:]), _each(padded, lambda end: end[:-1])
    begun, ended = _novel(here, before, num_src), _novel(before, here, num_src)
    runs = _cover(begun.intervals, num_src)
    if bool((runs > 2).any()):
        return None
    first, second = (
        Intervals(*(extreme(each, num_src) for each in (begun, ended)))
        for extreme in (_smallest, _largest)
    )
    first = Intervals(first.start, torch.where(runs == 1, second.stop, first.stop))
    return Spans(
        Intervals(*(end.masked_fill(runs == 0, 0) for end in first)),
        Intervals(*(end.masked_fill(runs < 2, 0) for end in second)),
    )


class _Events(NamedTuple):
    """Something happens to the sources of each interval at a destination."""

    intervals: Intervals
    destination: Tensor


def _each(spans: Spans, change: Callable[[Tensor], Tensor]) -> Spans:
    return Spans(*(Intervals(*(change(end) for end in part)) for part in spans))


def _novel(spans: Spans, other: Spans, num_src: int) -> _Events:
    """What each row of one hears and the same row of the other does not."""
    found = [_meet(part, gap) for part in spans.parts for gap in _gaps(other, num_src)]
    start, stop = (torch.stack(ends) for ends in zip(*found))
    _, row = some = (start < stop).nonzero(as_tuple=True)
    return _Events(Intervals(start[some], stop[some]), row)


def _cover(intervals: Intervals, num_src: int) -> Tensor:
    """In how many intervals each source is."""
    change = torch.zeros(num_src + 1, dtype=torch.int64, device=intervals.start.device)
    for ends, by in zip(intervals, (1, -1)):
        change.index_add_(0, ends, torch.full_like(ends, by))
    return change.cumsum(0)[:-1]


def _largest(events: _Events, num_src: int) -> Tensor:
    return largest_over(events.intervals, events.destination, num_src)


def _smallest(events: _Events, num_src: int) -> Tensor:
    return -largest_over(events.intervals, -events.destination, num_src)
