"""Nodes that come one after another: who is heard last, and how long a node must be remembered."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from graphattn.graphs.facts import fact
from graphattn.graphs.structure import Intervals, as_intervals

if TYPE_CHECKING:
    from graphattn.graphs.graph import Graph


@fact
def edge_ahead(graph: Graph) -> tuple[int, int] | None:
    """An edge `(dst, src)` whose source comes after its destination; None in a causal graph."""
    if (intervals := as_intervals(graph)) is not None:
        row = torch.arange(graph.num_dst, device=graph.device)
        ahead = (intervals.stop > row + 1).nonzero()
        return (int(ahead[0]), int(intervals.stop[ahead[0]]) - 1) if len(ahead) else None
    src, dst = graph.edge_index
    ahead = (src > dst).nonzero()
    return (int(dst[ahead[0]]), int(src[ahead[0]])) if len(ahead) else None


def sources_of(graph: Graph, row: int) -> range | Tensor:
    """The sources of one destination, ascending: a range if they are known as intervals."""
    if (intervals := as_intervals(graph)) is not None:
        return range(int(intervals.start[row]), int(intervals.stop[row]))
    rows = graph.csr()
    return rows.index[int(rows.ptr[row]) : int(rows.ptr[row + 1])]


@fact
def last_listener(graph: Graph) -> Tensor:
    """The largest destination that hears each source, int64 (num_src,); -1 where there is none."""
    if (intervals := as_intervals(graph)) is not None:
        destinations = torch.arange(graph.num_dst, device=graph.device)
        return largest_over(intervals, destinations, graph.num_src).clamp(min=-1)
    src, dst = graph.edge_index
    last = torch.full((graph.num_src,), -1, device=graph.device)
    return last.scatter_reduce_(0, src, dst, "amax")


def largest_over(intervals: Intervals, value: Tensor, num_src: int) -> Tensor:
    """Of the intervals that each source is in, the largest value; int64 (num_src,).

    A number below all values where there is none. Nothing is listed; it takes O(n log n): an
    interval is the union of two of a length that is a power of two. From the longest on, each is
    cut in halves, and those that begin together are one with the largest value.
    """
    start, stop = intervals
    length = stop - start
    largest = torch.full((num_src,), torch.iinfo(torch.int64).min, device=start.device)
    for level in reversed(range(num_src.bit_length())):
        size = 2**level
        if 2 * size <= num_src:
            largest[size:] = torch.maximum(largest[size:], largest[:-size])  # the second halves
        own = (length >= size) & (length < 2 * size)
        for begin in (start[own], stop[own] - size):
            largest.scatter_reduce_(0, begin, value[own], "amax")
    return largest


class Slots(NamedTuple):
    """Where the nodes of a causal graph are remembered, as long as somebody is yet to hear them.

    slot: The place of each node, int64 (n,); -1 if nobody hears it.
    used: How many places were ever taken when it comes, its own among them, int64 (n,).
    """

    slot: Tensor
    used: Tensor

    @property
    def capacity(self) -> int:
        """The most nodes that must be remembered at once."""
        return int(self.used[-1]) if len(self.used) else 0


@fact
def slots(graph: Graph) -> Slots:
    """The fewest places that do: one is free again after the last listener of its node.

    They are taken in the order in which they became free. In a sliding window, that is a ring.
    """
    last = last_listener(graph)
    node = torch.arange(len(last), device=last.device)
    heard = (last >= node).nonzero().squeeze(1)
    end, order = last[heard].sort(stable=True)
    number = torch.arange(1, len(heard) + 1, device=last.device)
    alive = number - torch.searchsorted(end, heard)  # those that ended before are not
    used = alive.cummax(0).values if len(alive) else alive
    is_new = used.diff(prepend=used.new_zeros(1)) > 0
    before = torch.where(is_new, number - 1, order[(number - used - 1).clamp(min=0)])
    while not torch.equal(earlier := before[before], before):  # whose place it takes, at last
        before = earlier
    slot = torch.full_like(last, -1).index_put_((heard,), used[before] - 1)
    so_far = torch.zeros_like(last).index_put_((heard,), used)
    return Slots(slot, so_far.cummax(0).values if len(so_far) else so_far)
