"""Rows in windows: the distinct nodes that the rows of a window hear, and which row hears which.

Where rows share sources, a window lists them once. Bits say which of the pairs are edges: of a row
in a tile of columns, bit c of word w is about column 32 w + c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from graphattn.graphs.csr import compact_by_destination, compact_by_source, ends
from graphattn.graphs.facts import fact
from graphattn.graphs.structure import is_simple

if TYPE_CHECKING:
    from graphattn.graphs.graph import Graph

SIZES = (16, 32, 64)  # rows of a window
TILE = 64  # columns of a tile
WORDS = TILE // 32
# Tiles that one program works through: few enough that no program outlasts the others by long, and
# so many that sums of parts (4 bytes a number) are little beside what the tiles read.
LONGEST = 64
# Of an edge, at most, while windows are made of rows and columns; measured on a CPU.
MAKING_BYTES = 160
# Edges of the windows by which reuse is told.
SAMPLE = 2**20


class RowWindows(NamedTuple):
    """The edges of a graph by windows of as many rows; see above.

    rows: int32 (windows * size,), the rows of each window; num_rows where there is none.
    items: int32 (items, 4), of what one program works through, parts of long windows first:
        the window; its first tile; the one behind its last; its number among the parts, or -1 if
        it is a whole window.
    begin: int64 (items, size), the number of the first edge of each row, by row and then column.
    columns: int32 (tiles * TILE,), nodes; behind the last of a window it is repeated.
    words: int32 (tiles, WORDS, size).
    cut: int32 (long windows, 3), the window, its first part and how many there are.
    edge: The place of each edge in edge order, (E,); empty where that is this order, or not asked.
    """

    rows: Tensor
    items: Tensor
    begin: Tensor
    columns: Tensor
    words: Tensor
    cut: Tensor
    edge: Tensor


@fact
def sharing_order(graph: Graph) -> Tensor | None:
    """An order of the nodes in which neighbors share sources, int64 (n,); None if none is known.

    Of a graph from a set of nodes to itself: it orders the rows, and the columns for the transpose.
    """
    return None


def _by(side: Callable[[Graph], Side], size: int, name: str) -> fact:
    def windows(graph: Graph) -> RowWindows | None:
        return _windows(side(graph), sharing_order(graph), size) if is_simple(graph) else None

    windows.__name__ = f"{name}_{size}"
    return fact(windows)


class Side(NamedTuple):
    """The edges by row: where they begin, (rows + 1,); of each, in any order, row and column."""

    ptr: Tensor
    row: Tensor
    column: Tensor
    num_columns: int


def _by_row(graph: Graph) -> Side:
    src, dst = ends(graph)
    return Side(compact_by_destination(graph).ptr, dst, src, graph.num_src)


def _by_column(graph: Graph) -> Side:
    src, dst = ends(graph)
    return Side(compact_by_source(graph).ptr, src, dst, graph.num_dst)


WINDOWS_OF_ROWS = {size: _by(_by_row, size, "rows") for size in SIZES}
"""For each size, the fact of a graph's `RowWindows`; None if it has parallel edges."""

WINDOWS_OF_COLUMNS = {size: _by(_by_column, size, "columns") for size in SIZES}
"""The same by source."""


def _windows(side: Side, order: Tensor | None, size: int) -> RowWindows:
    num_rows, device = len(side.ptr) - 1, side.ptr.device
    if order is None:
        order, place = torch.arange(num_rows, device=device), side.row
    else:
        places = torch.arange(num_rows, device=device)
        place = torch.empty_like(order).scatter_(0, order, places)[side.row]
    num_windows = -(-num_rows // size)
    keys, by_key = (place // size * max(side.num_columns, 1) + side.column).sort()
    slot, columns, first_tile, tiles = _compacted(keys, num_windows, max(side.num_columns, 1))
    place = place[by_key] % size
    words = _bits(slot, place, len(columns) // TILE, size)
    items, cut = _items(tiles, first_tile)
    rows = F.pad(order, (0, num_windows * size - num_rows), value=num_rows)
    begin = side.ptr[rows].view(num_windows, size)[items[:, 0]]
    if len(cut):
        begin += _edges_before(items, slot // TILE, place, size)
    narrow = torch.int32
    return RowWindows(
        rows.to(narrow),
        items.to(narrow),
        begin,
        columns.to(narrow),
        words,
        cut.to(narrow),
        torch.empty(0, dtype=narrow, device=device),
    )


def _compacted(
    keys: Tensor, num_windows: int, num_columns: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The distinct columns of each window, in tiles.

    Args:
        keys: Of every edge, `window * num_columns + column`, ascending.

    Returns:
        Of every edge the place of its column among all; these columns, the last of a window
        repeated until its tiles are full; of every window its first tile, and how many it has.
    """
    is_new = keys.diff(prepend=keys.new_full((1,), -1)) != 0
    distinct = is_new.cumsum(0) - 1  # of every edge the number of its column
    keys = keys[is_new]
    window = keys // num_columns
    count = torch.bincount(window, minlength=num_windows)
    tiles = (count + TILE - 1) // TILE
    first_tile, first = tiles.cumsum(0) - tiles, count.cumsum(0) - count
    slot = (first_tile * TILE - first)[window] + torch.arange(len(keys), device=keys.device)
    column = keys - window * num_columns
    return slot[distinct], _padded(column, tiles, first_tile, first, count), first_tile, tiles


def _padded(
    columns: Tensor, tiles: Tensor, first_tile: Tensor, first: Tensor, count: Tensor
) -> Tensor:
    """The columns of each window, the last of them repeated until its tiles are full."""
    window = torch.arange(len(tiles), device=tiles.device).repeat_interleave(tiles * TILE)
    within = torch.arange(len(window), device=tiles.device) - (first_tile * TILE)[window]
    return columns[first[window] + torch.minimum(within, count[window] - 1)]


def _bits(slot: Tensor, row: Tensor, num_tiles: int, size: int) -> Tensor:
    """The words of all tiles, int32 (tiles, WORDS, size).

    slot, row: Of every edge the place of its column among all, and of its row in the window.
    """
    words = torch.zeros(num_tiles * WORDS * size, dtype=torch.int32, device=slot.device)
    bits = torch.ones_like(slot).bitwise_left_shift(slot % 32).to(torch.int32)
    words.index_add_(0, slot // 32 * size + row, bits)  # each bit once
    return words.view(num_tiles, WORDS, size)


def _items(tiles: Tensor, first_tile: Tensor) -> tuple[Tensor, Tensor]:
    """`items` and `cut` of windows of so many tiles; the parts of long ones come first."""
    window = torch.arange(len(tiles), device=tiles.device)
    long = tiles > LONGEST
    parts = (tiles[long] + LONGEST - 1) // LONGEST
    cut = torch.stack([window[long], parts.cumsum(0) - parts, parts], 1)
    of_part = torch.arange(len(parts), device=tiles.device).repeat_interleave(parts)
    number = torch.arange(len(of_part), device=tiles.device)
    begin = first_tile[long][of_part] + (number - cut[of_part, 1]) * LONGEST
    end = torch.minimum(begin + LONGEST, (first_tile + tiles)[long][of_part])
    whole = torch.stack([window, first_tile, first_tile + tiles, torch.full_like(window, -1)], 1)
    return torch.cat([torch.stack([cut[of_part, 0], begin, end, number], 1), whole[~long]]), cut


def _edges_before(items: Tensor, tile: Tensor, row: Tensor, size: int) -> Tensor:
    """How many edges of each row are in the parts of its window before an item, (items, size).

    tile, row: Of every edge the tile, and the place of its row in the window.
    """
    item = torch.arange(len(items), device=items.device)
    order = items[:, 1].argsort(stable=True)  # by tile; those of no tile may stand anywhere
    item_of_tile = item[order].repeat_interleave((items[:, 2] - items[:, 1])[order])
    edges = torch.bincount(item_of_tile[tile] * size + row, minlength=len(items) * size)
    edges = edges.view(len(items), size)
    before = edges.cumsum(0) - edges
    is_part = items[:, 3] >= 0
    first = torch.searchsorted(items[is_part, 0].contiguous(), items[:, 0].contiguous())
    return torch.where(is_part[:, None], before - before[first.clamp(max=len(items) - 1)], 0)


# --- reuse ----------------------------------------------------------------------------------------


class WindowCounts(NamedTuple):
    """How many columns and tiles the windows of a graph have, by their size; an estimate."""

    columns: tuple[int, ...]
    tiles: tuple[int, ...]


def reuse(graph: Graph) -> dict[int, float]:
    """By the size of windows, how many edges each source serves that one of them loads.

    Example:
        >>> import graphattn as ga
        >>> reuse(ga.sliding_window(64, 2))
        {16: 4.1..., 32: 4.6..., 64: 4.9...}
    """
    columns = window_counts(graph).columns
    return {size: graph.num_edges / max(n, 1) for size, n in zip(SIZES, columns)}


@fact
def window_counts(graph: Graph) -> WindowCounts:
    """What some windows tell of all, drawn at random, of SAMPLE edges or a few more."""
    ptr, index, _ = compact_by_destination(graph)
    device, largest = ptr.device, SIZES[-1]
    num_windows = -(-graph.num_dst // largest)
    wanted = max(SAMPLE * num_windows // max(graph.num_edges, 1), 16)
    window = torch.randperm(num_windows, generator=torch.Generator().manual_seed(0))[:wanted]
    window = window.sort().values.to(device)
    place = (window[:, None] * largest + torch.arange(largest, device=device)).view(-1)
    place = place[place < graph.num_dst]
    order = sharing_order(graph)
    row = place if order is None else order[place]
    degree = ptr[row + 1] - ptr[row]
    of_edge = torch.arange(len(row), device=device).repeat_interleave(degree)
    within = torch.arange(len(of_edge), device=device) - (degree.cumsum(0) - degree)[of_edge]
    column, place = index[ptr[row][of_edge] + within].long(), place[of_edge]
    share = graph.num_edges / max(len(of_edge), 1)
    columns, tiles = [], []
    for size in SIZES:
        keys = (place // size * max(graph.num_src, 1) + column).unique()
        _, count = (keys // max(graph.num_src, 1)).unique_consecutive(return_counts=True)
        columns.append(round(share * len(keys)))
        tiles.append(round(share * int((-(-count // TILE)).sum())))
    return WindowCounts(tuple(columns), tuple(tiles))
