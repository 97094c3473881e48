"""What is known of a graph beyond its edges; `None` where nothing is known.

From the strongest fact to the weakest: dense, blocks, intervals. A class of graphs that knows
better than its edge list registers a rule beside the class; for all others the facts are read off
the CSR in O(E), so that a plain edge list is recognised too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from graphattn.graphs.csr import compact_by_destination, ends, pair_keys
from graphattn.graphs.facts import fact
from graphattn.graphs.memory import fits

if TYPE_CHECKING:
    from graphattn.graphs.graph import Graph


# Destination and source, 8 bytes each, and as much again while they are made.
LISTED_EDGE_BYTES = 32


class Dense(NamedTuple):
    """Every destination attends to every source, or to those up to itself if causal."""

    causal: bool


class Intervals(NamedTuple):
    """Destination i attends to the sources `start[i] <= j < stop[i]`, int64 of shape (num_dst,).

    Rows that hear nobody have start = stop = 0.
    """

    start: Tensor
    stop: Tensor


class Block(NamedTuple):
    """Dense graphs of one size: block b joins `dst[b]` with `src[b]`, int64 (blocks, size).

    `causal` holds for all of them, in the order in which they list their nodes.
    """

    dst: Tensor
    src: Tensor
    causal: bool


class Blocks(NamedTuple):
    """Disjoint dense graphs; nodes in none of them are isolated."""

    groups: tuple[Block, ...]
    num_dst: int
    num_src: int

    @property
    def num_blocks(self) -> int:
        return sum(len(group.dst) for group in self.groups)


@fact
def as_dense(graph: Graph) -> Dense | None:
    """`Dense` if all pairs, or all causal pairs, are edges."""
    if (intervals := as_intervals(graph)) is None:
        return None
    start, stop = intervals
    if bool((start != 0).any()):
        return None
    if bool((stop == graph.num_src).all()):
        return Dense(causal=False)
    square = graph.num_dst == graph.num_src
    if square and torch.equal(stop, torch.arange(1, len(stop) + 1, device=stop.device)):
        return Dense(causal=True)
    return None


@fact
def as_intervals(graph: Graph) -> Intervals | None:
    """`Intervals` if the sources of every destination are consecutive."""
    if not can_be_listed(graph) or not _begins_like_intervals(graph):
        return None
    ptr, index, row, _ = graph.csr()
    degree = ptr.diff()
    if len(index) == 0:
        return Intervals(torch.zeros_like(degree), torch.zeros_like(degree))
    first = index[ptr[:-1].clamp(max=len(index) - 1)]
    position = torch.arange(len(index), device=index.device) - ptr[row]
    if not torch.equal(index, first[row] + position):
        return None
    start = torch.where(degree > 0, first, 0)
    return Intervals(start, start + degree)


@fact
def transposed_intervals(graph: Graph) -> Intervals | None:
    """For each source the destinations `start <= i < stop` that attend to it, if they are so.

    They are wherever the intervals of the destinations begin and end in the order of these.
    """
    if (intervals := as_intervals(graph)) is None:
        return None
    rows = (intervals.stop > intervals.start).nonzero().squeeze(1)
    start, stop = intervals.start[rows], intervals.stop[rows]
    if bool((start.diff() < 0).any()) or bool((stop.diff() < 0).any()):
        return None
    source = torch.arange(graph.num_src, device=start.device)
    first = torch.searchsorted(stop, source, right=True)
    last = torch.searchsorted(start, source, right=True)  # exclusive
    heard = last > first
    first, last = first.masked_fill(~heard, 0), last.masked_fill(~heard, 0)
    if len(rows) < len(intervals.start):  # destinations that hear nobody may lie between
        rows = torch.cat([rows, rows[-1:] + 1])
        spread = torch.where(heard, rows[last - 1] + 1 - rows[first], 0) if len(rows) else last
        if not torch.equal(spread, last - first):
            return None
        begin = rows[first].masked_fill(~heard, 0) if len(rows) else first
        return Intervals(begin, begin + spread)
    return Intervals(first, last)


@fact
def as_blocks(graph: Graph) -> Blocks | None:
    """`Blocks` if the graph falls apart into dense graphs, complete or causal."""
    if (intervals := as_intervals(graph)) is not None:
        return _blocks_of_intervals(intervals, graph.num_src)
    if not can_be_listed(graph) or not _begins_like_blocks(graph):
        return None
    return _blocks_of_rows(graph)


# A look at the first edges spares most irregular graphs the sorting of all.
FIRST_EDGES = 2**16


@fact
def _first_rows(graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
    """Smallest and largest source and the degree of some first destinations that hear somebody."""
    ptr, index, _ = compact_by_destination(graph)
    count = int((ptr[1:] <= FIRST_EDGES).sum())
    degree = ptr[: count + 1].diff()
    row = torch.arange(count, device=ptr.device).repeat_interleave(degree)
    index = index[: len(row)].long()
    low, high = torch.full_like(degree, graph.num_src), torch.full_like(degree, -1)
    low.scatter_reduce_(0, row, index, "amin")
    high.scatter_reduce_(0, row, index, "amax")
    hears = degree > 0
    return low[hears], high[hears], degree[hears]


def _begins_like_intervals(graph: Graph) -> bool:
    low, high, degree = _first_rows(graph)
    return torch.equal(high - low + 1, degree)


def _begins_like_blocks(graph: Graph) -> bool:
    """Rows of one block hear its first source, and no row of another block hears any of them."""
    low, _, degree = _first_rows(graph)
    index = compact_by_destination(graph).index[: int(degree.sum())].long()
    owner = torch.full((graph.num_src,), -1, device=index.device)
    of_edge = low.repeat_interleave(degree)
    owner[index] = of_edge
    return torch.equal(owner[index], of_edge)


@fact
def count_edges(graph: Graph) -> int:
    """Number of edges."""
    return graph.edge_index.shape[1]


@fact
def is_symmetric(graph: Graph) -> bool | None:
    """True if every edge is known to have its reverse; such a graph is its own transpose."""
    return None


@fact
def density_in_words(graph: Graph) -> str:
    """The share of pairs that are edges, such as "6.41%".

    In words, because compiled code would take a number for one that varies, and can't print it.
    """
    return f"{100 * graph.density:.3g}%"


@fact
def is_simple(graph: Graph) -> bool:
    """True if no pair is an edge twice."""
    src, dst = ends(graph)
    keys = pair_keys(dst, src, graph.num_src)
    if not bool((keys[1:] >= keys[:-1]).all()):
        keys = keys.sort().values
    return not bool((keys[1:] == keys[:-1]).any())


def can_be_listed(graph: Graph) -> bool:
    """Whether the edges fit into memory; of a graph too large for that, less is known."""
    return fits(LISTED_EDGE_BYTES * graph.num_edges, graph.device)


def count_intervals(graph: Graph) -> int:
    """A rule for `count_edges`: without listing edges wherever the intervals are known."""
    intervals = as_intervals(graph)
    if intervals is None:
        return graph.edge_index.shape[1]
    return int((intervals.stop - intervals.start).sum())


def stack_blocks(blocks: list[tuple[Tensor, Tensor, bool]], num_dst: int, num_src: int) -> Blocks:
    """Blocks `(dst, src, causal)`, 1-D each, with those of one size stacked."""
    groups: dict[tuple[int, int, bool], list[tuple[Tensor, Tensor]]] = {}
    for dst, src, causal in blocks:
        groups.setdefault((len(dst), len(src), causal), []).append((dst, src))
    stacked = (
        Block(torch.stack([dst for dst, _ in same]), torch.stack([src for _, src in same]), causal)
        for (_, _, causal), same in groups.items()
    )
    return Blocks(tuple(stacked), num_dst, num_src)


def label_blocks(dst_label: Tensor, src_label: Tensor, causal: Tensor | None = None) -> Blocks:
    """Nodes of one label form a block; a negative label is in none.

    Args:
        dst_label: int64 (num_dst,).
        src_label: int64 (num_src,).
        causal: bool, one for each label up to the largest; no block is causal by default.
    """
    num_labels = 1 + max(
        (int(label.max()) for label in (dst_label, src_label) if len(label)), default=-1
    )
    dst_order, dst_size = _by_label(dst_label, num_labels)
    src_order, src_size = _by_label(src_label, num_labels)
    dst_start, src_start = dst_size.cumsum(0) - dst_size, src_size.cumsum(0) - src_size
    if causal is None:
        causal = torch.zeros_like(dst_size, dtype=torch.bool)
    kind = torch.stack([dst_size, src_size, causal.long()], dim=1)
    kind[(dst_size == 0) | (src_size == 0)] = 0
    kinds, kind_of = kind.unique(dim=0, return_inverse=True)
    groups = []
    for number, (rows, columns, is_causal) in enumerate(kinds.tolist()):
        if rows == 0:
            continue
        which = (kind_of == number).nonzero()  # (blocks, 1)
        step = torch.arange(max(rows, columns), device=which.device)
        groups.append(
            Block(
                dst_order[dst_start[which] + step[:rows]],
                src_order[src_start[which] + step[:columns]],
                bool(is_causal),
            )
        )
    return Blocks(tuple(groups), len(dst_label), len(src_label))


def _by_label(label: Tensor, num_labels: int) -> tuple[Tensor, Tensor]:
    """Nodes sorted by label, those without left out, and how many have each label."""
    order = torch.argsort(label, stable=True)
    return order[(label < 0).sum() :], torch.bincount(label[label >= 0], minlength=num_labels)


def _blocks_of_intervals(intervals: Intervals, num_src: int) -> Blocks | None:
    """Rows with one start form a block, if no other block starts before they stop."""
    start, stop = intervals
    rows = (stop > start).nonzero().squeeze(1)
    starts, label = start[rows].unique(return_inverse=True)
    stops = torch.zeros_like(starts).scatter_reduce_(0, label, stop[rows], "amax")
    causal = _causal_blocks(label, (stop - start)[rows], len(starts))
    if causal is None or bool((starts[1:] < stops[:-1]).any()):
        return None
    dst_label = torch.full_like(start, -1).index_put_((rows,), label)
    source = torch.arange(num_src, device=start.device)
    src_label = torch.searchsorted(starts, source, right=True) - 1
    if len(starts):
        inside = source < stops[src_label.clamp(min=0)]
        src_label = torch.where(inside, src_label, -1)
    return label_blocks(dst_label, src_label, causal)


def _blocks_of_rows(graph: Graph) -> Blocks | None:
    """Rows whose sources begin the same list form a block, if no other block has one of them."""
    if not is_simple(graph):
        return None
    ptr, index, row, _ = graph.csr()
    degree = ptr.diff()
    rows = (degree > 0).nonzero().squeeze(1)
    first = index[ptr[rows]]
    # In disjoint blocks the smallest source names the block; its longest row lists them all.
    longest = torch.zeros(graph.num_src, dtype=torch.int64, device=index.device)
    longest.scatter_reduce_(0, first, degree[rows], "amax")
    lists_all = degree[rows] == longest[first]
    leader_of = torch.full_like(longest, graph.num_dst)
    leader_of.scatter_reduce_(0, first[lists_all], rows[lists_all], "amin")
    leader = torch.full_like(degree, -1).index_put_((rows,), leader_of[first])
    position = torch.arange(len(index), device=index.device) - ptr[row]
    if not torch.equal(index, index[ptr[leader[row]] + position]):
        return None
    owner = torch.full_like(longest, -1).index_put_((index,), leader[row])
    if not torch.equal(owner[index], leader[row]):
        return None
    names, label = torch.cat([leader, owner]).unique(return_inverse=True)
    in_no_block = int((names < 0).sum())
    dst_label, src_label = (label - in_no_block).split([graph.num_dst, graph.num_src])
    causal = _causal_blocks(dst_label[rows], degree[rows], len(names) - in_no_block)
    return None if causal is None else label_blocks(dst_label, src_label, causal)


def _causal_blocks(label: Tensor, degree: Tensor, num_blocks: int) -> Tensor | None:
    """Which blocks are causal, bool (num_blocks,); None if one is neither that nor complete.

    Args:
        label: The block of each row that hears somebody, rows ascending.
        degree: How many sources each of them hears, of one list from its beginning.
        num_blocks: Number of labels.
    """
    size = torch.bincount(label, minlength=num_blocks)
    order = torch.argsort(label, stable=True)
    place = torch.arange(len(label), device=label.device)
    rank = torch.empty_like(label)
    rank[order] = place - (size.cumsum(0) - size)[label[order]]
    longest = torch.zeros_like(size).scatter_reduce_(0, label, degree, "amax")
    incomplete, irregular = (torch.zeros_like(size, dtype=torch.bool) for _ in range(2))
    incomplete[label[degree != longest[label]]] = True
    irregular[label[degree != rank + 1]] = True
    return None if bool((incomplete & irregular).any()) else incomplete
