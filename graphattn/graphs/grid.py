"""Graphs of grids in 1 to 3 dimensions: images, videos, volumes. Cells are numbered row by row."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from graphattn.graphs.checks import axes, grid, integer
from graphattn.graphs.csr import pair_keys, pairs_of, row_order
from graphattn.graphs.graph import Graph, destinations, require_edges
from graphattn.graphs.structure import (
    Blocks,
    Intervals,
    as_blocks,
    as_intervals,
    count_edges,
    is_simple,
    is_symmetric,
    label_blocks,
)
from graphattn.graphs.windows import sharing_order

Shape = tuple[int, ...]


def coordinates(node, shape: Shape) -> list:
    """The coordinate along each axis, of a node or of a tensor of nodes."""
    places = []
    for size in reversed(shape):
        places.append(node % size)
        node = node // size
    return places[::-1]


class GridGraph(Graph):
    """A graph on the cells of a grid: `shape` says how many in each direction."""

    shape: Shape

    @property
    def num_dst(self) -> int:
        return math.prod(self.shape)

    @property
    def num_src(self) -> int:
        return math.prod(self.shape)


@is_simple.register
def _(graph: GridGraph) -> bool:
    return True


@row_order.register
def _(graph: GridGraph) -> None:
    return None


def _all_pairs(graph: GridGraph) -> Intervals | None:
    """What is known of a grid of several axes: whether it is complete."""
    if graph.num_edges < graph.num_dst * graph.num_src:
        return None
    start = torch.zeros_like(destinations(graph))
    return Intervals(start, start + graph.num_src)


@dataclass(frozen=True, repr=False)
class ShiftedWindows(GridGraph):
    shape: Shape
    size: Shape
    shift: Shape

    def labels(self, node) -> list:
        """The window of a node along each axis; the cuts are at shift, shift + size, ..."""
        return [
            (place + size - shift) // size
            for place, size, shift in zip(
                coordinates(node, self.shape), self.size, self.shift, strict=True
            )
        ]

    def edges(self) -> tuple[Tensor, Tensor]:
        require_edges(self, self.num_edges)
        blocks = as_blocks(self)
        assert blocks is not None
        keys = [
            pair_keys(dst[:, :, None], src[:, None, :], self.num_src).reshape(-1)
            for dst, src, _ in blocks.groups
        ]
        return pairs_of(torch.cat(keys).sort().values, self.num_src)

    def has_edge(self, dst, src):
        same = True
        for dst_label, src_label in zip(self.labels(dst), self.labels(src), strict=True):
            same = same & (dst_label == src_label)
        return same

    def __str__(self) -> str:
        return f"shifted_windows({self.shape}, size={self.size}, shift={self.shift})"


@as_blocks.register
def _(graph: ShiftedWindows) -> Blocks:
    nodes = destinations(graph)
    label = torch.zeros_like(nodes)
    for axis_label, length, size in zip(graph.labels(nodes), graph.shape, graph.size, strict=True):
        label = label * (length // size + 2) + axis_label
    label = label.unique(return_inverse=True)[1]
    return label_blocks(label, label)


@as_intervals.register
def _(graph: ShiftedWindows) -> Intervals | None:
    if len(graph.shape) > 1:
        return _all_pairs(graph)
    (label,) = graph.labels(destinations(graph))
    size, shift = graph.size[0], graph.shift[0]
    start = (label - 1) * size + shift
    return Intervals(start.clamp(min=0), (start + size).clamp(max=graph.num_src))


@count_edges.register
def _(graph: ShiftedWindows) -> int:
    """The product over the axes of the sum of the squared window lengths."""
    count = 1
    for length, size, shift in zip(graph.shape, graph.size, graph.shift, strict=True):
        first = min(shift, length)
        full, last = divmod(length - first, size)
        count *= first**2 + full * size**2 + last**2
    return count


@dataclass(frozen=True, repr=False)
class Neighborhood(GridGraph):
    shape: Shape
    radius: Shape
    dilation: Shape
    border: str

    def reach(self, axis: int) -> int:
        """How many neighbors there can be along an axis, in each direction."""
        length, radius = self.shape[axis], self.radius[axis]
        if self.border == "clamp":
            return radius
        return min(radius, max(length - 1, 0) // self.dilation[axis])

    def steps(self, axis: int, place):
        """Where the neighbors of a place along an axis begin, before any cut at the border."""
        length, reach, dilation = self.shape[axis], self.reach(axis), self.dilation[axis]
        first = place - reach * dilation
        if self.border == "cut":
            return first
        # Cells of one residue modulo the dilation form a line of their own; stay on that line.
        residue = place % dilation
        line = (length - residue + dilation - 1) // dilation
        last_start = residue + (line - 2 * reach - 1) * dilation
        first = first + (residue - first) * (first < residue)
        return first + (last_start - first) * (first > last_start)

    def neighbors(self, axis: int) -> tuple[Tensor, Tensor]:
        """The neighbors along an axis, (length, 2 * reach + 1), and which of them exist."""
        length = self.shape[axis]
        first = self.steps(axis, torch.arange(length, device=self.device))
        step = torch.arange(2 * self.reach(axis) + 1, device=self.device) * self.dilation[axis]
        places = first[:, None] + step
        return places, (places >= 0) & (places < length)

    def edges(self) -> tuple[Tensor, Tensor]:
        width = math.prod(2 * self.reach(axis) + 1 for axis in range(len(self.shape)))
        require_edges(self, width * self.num_dst)
        src = torch.zeros(1, 1, dtype=torch.int64, device=self.device)  # (cells, neighbors)
        exists = torch.ones_like(src, dtype=torch.bool)
        for axis, length in enumerate(self.shape):
            places, inside = self.neighbors(axis)
            src = (src * length)[:, None, :, None] + places[:, None, :]
            exists = exists[:, None, :, None] & inside[:, None, :]
            src, exists = src.flatten(2).flatten(0, 1), exists.flatten(2).flatten(0, 1)
        dst = destinations(self)[:, None].expand_as(src)
        return dst[exists], src[exists]

    def has_edge(self, dst, src):
        found = True
        pairs = zip(coordinates(dst, self.shape), coordinates(src, self.shape), strict=True)
        for axis, (to, place) in enumerate(pairs):
            offset = place - self.steps(axis, to)
            dilation = self.dilation[axis]
            last = 2 * self.reach(axis) * dilation
            found = found & (offset >= 0) & (offset <= last) & (offset % dilation == 0)
        return found

    def __str__(self) -> str:
        return (
            f"neighborhood({self.shape}, radius={self.radius}, dilation={self.dilation}, "
            f"border={self.border!r})"
        )


@as_intervals.register
def _(graph: Neighborhood) -> Intervals | None:
    if len(graph.shape) > 1 or graph.dilation != (1,):
        return _all_pairs(graph)
    start = graph.steps(0, destinations(graph))
    stop = start + 2 * graph.reach(0) + 1
    return Intervals(start.clamp(min=0), stop.clamp(max=graph.num_src))


@sharing_order.register
def _(graph: Neighborhood) -> Tensor | None:
    """Strips that are 8 cells wide (in 3-D 4 x 4), line by line: 64 cells are as good as a cube.

    Along dilated axes, cells that hear each other come together.
    """
    if not graph.num_dst or (len(graph.shape) == 1 and graph.dilation == (1,)):
        return None
    cells, width = destinations(graph), 8 if len(graph.shape) == 2 else 4
    places, steps = coordinates(cells, graph.shape), graph.dilation
    residues = [place % step for place, step in zip(places, steps)]
    *across, along = [place // step for place, step in zip(places, steps)]
    strips, within = [place // width for place in across], [place % width for place in across]
    key = torch.zeros_like(cells)
    for part in (*residues, *strips, along, *within):  # from the first that counts to the last
        key = key * (int(part.max()) + 1) + part
    return key.argsort()


@count_edges.register
def _(graph: Neighborhood) -> int:
    """The product over the axes of the neighbors that all places have along it."""
    count = 1
    for axis, (length, step) in enumerate(zip(graph.shape, graph.dilation, strict=True)):
        reach = graph.reach(axis)
        missing = reach * (reach + 1) * step if graph.border == "cut" else 0
        count *= length * (2 * reach + 1) - missing
    return count


@dataclass(frozen=True, repr=False)
class Axial(GridGraph):
    shape: Shape

    def edges(self) -> tuple[Tensor, Tensor]:
        require_edges(self, self.num_edges)
        cell = destinations(self)
        sources = [cell[:, None]]
        stride = self.num_dst
        for place, length in zip(coordinates(cell, self.shape), self.shape, strict=True):
            stride //= length
            line = torch.arange(length - 1, device=self.device)
            line = line + (line >= place[:, None])  # all places but its own
            sources.append(cell[:, None] + (line - place[:, None]) * stride)
        src = torch.cat(sources, dim=1).sort(dim=1).values
        return cell[:, None].expand_as(src).reshape(-1), src.reshape(-1)

    def has_edge(self, dst, src):
        pairs = zip(coordinates(dst, self.shape), coordinates(src, self.shape), strict=True)
        differing = sum(0 + (to != place) for to, place in pairs)
        return differing <= 1

    def __str__(self) -> str:
        return f"axial({self.shape})"


@count_edges.register
def _(graph: Axial) -> int:
    return graph.num_dst * (1 + sum(length - 1 for length in graph.shape))


@as_intervals.register
def _(graph: Axial) -> Intervals | None:
    return _all_pairs(graph)


@is_symmetric.register
def _(graph: ShiftedWindows | Axial) -> bool:
    return True


@is_symmetric.register
def _(graph: Neighborhood) -> bool | None:
    return graph.border == "cut" or None


def shifted_windows(shape: int | Shape, size: int | Shape, shift: int | Shape = 0) -> Graph:
    """Cells attend within their window (Swin, Liu et al. 2021, section 3.2).

    A shift moves the windows, and the cells of a window that wraps around the border attend only
    to those that are their neighbors in the image, as the mask of Swin's shifted attention has it:
    along each axis the cuts are at shift, shift + size, shift + 2 size, and so on. A grid that is
    no multiple of the window ends in smaller windows.

    Args:
        shape: Size of the grid, 1 to 3 positive integers.
        size: Size of a window, an integer or one per axis.
        shift: By how much the windows are moved, 0 to size - 1, an integer or one per axis.

    Returns:
        A graph on prod(shape) nodes; its windows are disjoint complete graphs.

    Raises:
        ValueError: If a size is not positive, or a shift is not below its window size.

    Example:
        >>> shifted_windows((4, 4), 2, shift=1).in_degree().view(4, 4).tolist()
        [[1, 2, 2, 1], [2, 4, 4, 2], [2, 4, 4, 2], [1, 2, 2, 1]]
    """
    shape = grid(shape)
    size = axes("size", size, len(shape), low=1)
    shift = axes("shift", shift, len(shape))
    if any(moved >= window for moved, window in zip(shift, size, strict=True)):
        raise ValueError(f"shift must be below the window size, got shift {shift} and size {size}")
    return ShiftedWindows(shape, size, shift)


def neighborhood(
    shape: int | Shape,
    radius: int | Shape,
    *,
    dilation: int | Shape = 1,
    border: str = "clamp",
) -> Graph:
    """Each cell of a grid attends to the cells around it (Hassani et al. 2023, section 3).

    Args:
        shape: Size of the grid, 1 to 3 positive integers.
        radius: Cells in each direction, an integer or one per axis.
        dilation: Step between attended cells, an integer or one per axis.
        border: "clamp" moves the neighborhood inside the grid, so that every cell has the same
            number of neighbors (as NATTEN); "cut" drops what falls outside.

    Returns:
        A graph on prod(shape) nodes.

    Raises:
        ValueError: If a size is not positive, or a clamped neighborhood does not fit the grid.

    Example:
        >>> neighborhood((3, 3), radius=1, border="cut").in_degree().tolist()
        [4, 6, 4, 6, 9, 6, 4, 6, 4]
        >>> neighborhood((3, 3), radius=1).in_degree().tolist()
        [9, 9, 9, 9, 9, 9, 9, 9, 9]
    """
    shape = grid(shape)
    radius = axes("radius", radius, len(shape))
    dilation = axes("dilation", dilation, len(shape), low=1)
    if border not in ("clamp", "cut"):
        raise ValueError(f'border must be "clamp" or "cut", got {border!r}')
    for length, reach, step in zip(shape, radius, dilation, strict=True):
        if border == "clamp" and (2 * reach + 1) * step > length:
            raise ValueError(
                f"a neighborhood of {2 * reach + 1} cells at dilation {step} does not fit an axis "
                f'of {length}; take a smaller radius, or border="cut"'
            )
    return Neighborhood(shape, radius, dilation, border)


def dilated(n: int, radius: int, step: int) -> Graph:
    """A sliding window with gaps (dilated window of Longformer, Beltagy et al. 2020, 3.1).

    Args:
        n: Number of nodes.
        radius: Attended nodes to each side.
        step: Distance between attended nodes.

    Returns:
        A graph on n nodes: i attends to i + k * step for -radius <= k <= radius.

    Raises:
        ValueError: If n or radius is negative, or step is not positive.

    Example:
        >>> dilated(5, 1, 2).mask().int()[2].tolist()
        [1, 0, 1, 0, 1]
    """
    shape, radii = (integer("n", n),), (integer("radius", radius),)
    return Neighborhood(shape, radii, (integer("step", step, low=1),), "cut")


def axial(shape: int | Shape) -> Graph:
    """Each cell attends to all cells on its own row and column (Ho et al. 2019).

    Args:
        shape: Size of the grid, 1 to 3 positive integers.

    Returns:
        A graph on prod(shape) nodes: an edge wherever at most one coordinate differs.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> axial((2, 3)).mask().int()[0].tolist()
        [1, 1, 1, 1, 0, 0]
    """
    return Axial(grid(shape))
