"""What a picture shows of the edges: sums over pairs of nodes, or over pairs of groups of nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from graphattn.graphs import Graph
from graphattn.graphs.csr import pair_keys, pairs_of
from graphattn.graphs.grid import coordinates
from graphattn.graphs.memory import require
from graphattn.graphs.structure import as_intervals, is_simple

MOST_NODES = 200
"""More nodes than these are drawn in groups."""


class Groups(NamedTuple):
    """Nodes that are drawn as one: node i is in group `label[i]`, int64 of shape (n,).

    `side` is how many nodes a group spans along each axis: one axis for a sequence, and then its
    nodes are consecutive.
    """

    label: Tensor
    count: int
    side: tuple[int, ...]

    @property
    def grouped(self) -> bool:
        return self.side != (1,) * len(self.side)

    @property
    def sizes(self) -> Tensor:
        """Nodes in each group, int64 (count,)."""
        return self.label.bincount(minlength=self.count)

    @property
    def first(self) -> Tensor:
        """The first node of each group, int64 (count,)."""
        nodes, none = torch.arange(len(self.label)), torch.full((self.count,), len(self.label))
        return none.scatter_reduce(0, self.label, nodes, "amin")

    def __str__(self) -> str:
        cells = " cells" * (len(self.side) > 1)
        return f"in groups of {' x '.join(f'{side:,}' for side in self.side)}{cells}"


def group(n: int, into: int = MOST_NODES, most: int = MOST_NODES) -> Groups:
    """Every node alone up to `most` nodes; from there on at most `into` groups of equal size."""
    size = 1 if n <= most else -(-n // into)
    return Groups(_numbers(n) // size, -(-n // size), (size,))


def group_grid(shape: Sequence[int], into: int, most: int = MOST_NODES) -> Groups:
    """The same for the cells of a grid, in squares or cubes of cells."""
    n, size = math.prod(shape), 1
    while n > most and _num_squares(shape, size) > into:
        size += 1
    nodes = _numbers(n)
    label = torch.zeros_like(nodes)
    for place, length in zip(coordinates(nodes, tuple(shape)), shape):
        label = label * -(-length // size) + place // size
    return Groups(label, _num_squares(shape, size), (size,) * len(shape))


def _num_squares(shape: Sequence[int], size: int) -> int:
    return math.prod(-(-length // size) for length in shape)


def _numbers(n: int) -> Tensor:
    """0 to n - 1, int64, if there is room for as many and what is made of them."""
    require(48 * n, torch.device("cpu"), f"numbering {n:,} nodes", "take a smaller graph")
    return torch.arange(n)


def grouping(graph: Graph, dst: Groups, src: Groups) -> str:
    """What is drawn in groups, in words; empty where every node is drawn alone."""
    if graph.num_dst == graph.num_src:
        return f"{len(dst.label):,} nodes {dst}" if dst.grouped else ""
    sides = ((dst, "destinations"), (src, "sources"))
    return ", ".join(f"{len(side.label):,} {name} {side}" for side, name in sides if side.grouped)


def summed(graph: Graph, values: Tensor, dst: Groups, src: Groups) -> Tensor:
    """Values of the edges (E,), summed over each pair of groups: float64 (dst.count, src.count)."""
    to, place = graph.edge_index.cpu().flip(0)
    return _summed(to, place, values, dst, src)


def _summed(to: Tensor, place: Tensor, values: Tensor, dst: Groups, src: Groups) -> Tensor:
    cell = dst.label[to] * src.count + src.label[place]
    total = cell.bincount(values, minlength=dst.count * src.count)
    return total.double().view(dst.count, src.count)


def shares(graph: Graph, dst: Groups, src: Groups) -> Tensor:
    """The share of the pairs that are edges, float64 (dst.count, src.count), 0 to 1."""
    if len(src.side) == 1 and as_intervals(graph) is not None:
        pairs = _pairs_of_intervals(graph, dst, src)
    else:
        to, place = graph.edge_index.cpu().flip(0)
        if not is_simple(graph):
            to, place = pairs_of(pair_keys(to, place, graph.num_src).unique(), graph.num_src)
        pairs = _summed(to, place, torch.ones(len(to), dtype=torch.float64), dst, src)
    return pairs / (dst.sizes[:, None] * src.sizes)


def _pairs_of_intervals(graph: Graph, dst: Groups, src: Groups) -> Tensor:
    """Counted from the bounds of the rows: no edge is listed."""
    start, stop = (bound.cpu() for bound in as_intervals(graph) or ())
    columns = []
    for first in range(0, graph.num_src, src.side[0]):
        heard = stop.clamp(max=first + src.side[0]) - start.clamp(min=first)
        columns.append(dst.label.bincount(heard.clamp(min=0), minlength=dst.count))
    if not columns:
        return torch.zeros(dst.count, 0, dtype=torch.float64)
    return torch.stack(columns, dim=1).double()
