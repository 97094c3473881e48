"""Compressed sparse rows: the lowering that every graph has."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from graphattn.graphs.facts import fact
from graphattn.graphs.memory import require

if TYPE_CHECKING:
    from graphattn.graphs.graph import Graph


class CSR(NamedTuple):
    """Edges grouped by row; within a row, columns ascend and parallel edges keep their order.

    `ptr` (rows + 1,): the edges of row r are at positions ptr[r] to ptr[r + 1] (exclusive).
    `index` (E,): the column of each.
    `row` (E,): the row of each.
    `edge` (E,): its place in edge order; None where edge order is this order.
    All are int64.
    """

    ptr: Tensor
    index: Tensor
    row: Tensor
    edge: Tensor | None

    def to_edge_order(self, values: Tensor, dim: int) -> Tensor:
        """Per-edge values of this order, brought into edge order along `dim`."""
        if self.edge is None:
            return values
        return values.index_select(
            dim,
            torch.empty_like(self.edge).scatter_(
                0, self.edge, torch.arange(len(self.edge), device=self.edge.device)
            ),
        )

    def from_edge_order(self, values: Tensor, dim: int) -> Tensor:
        """Per-edge values of edge order, brought into this order along `dim`."""
        return values if self.edge is None else values.index_select(dim, self.edge)


@fact
def edge_index(graph: Graph) -> Tensor:
    dst, src = graph.edges()
    index = torch.stack([src, dst]).to(graph.device)
    check_range(index, graph.num_dst, graph.num_src)
    return index


@fact
def ends(graph: Graph) -> tuple[Tensor, Tensor]:
    """Sources and destinations of all edges, checked."""
    src, dst = graph.edge_index
    return src, dst


def check_range(index: Tensor | tuple[Tensor, Tensor], num_dst: int, num_src: int) -> None:
    """Raise IndexError if sources or destinations (2, E) name a node that does not exist."""
    if len(index[0]) == 0:
        return
    for row, what, count in ((0, "source", num_src), (1, "destination", num_dst)):
        low, high = (int(bound) for bound in index[row].aminmax())
        if low < 0 or high >= count:
            raise IndexError(
                f"edge_index holds the {what} {low if low < 0 else high}, out of range for "
                f"{count} {what} nodes (0..{count - 1})"
            )


@fact
def by_destination(graph: Graph) -> CSR:
    src, dst = graph.edge_index
    return _compress(graph, dst, src, graph.num_dst, graph.num_src)


@fact
def by_source(graph: Graph) -> CSR:
    src, dst = graph.edge_index
    return _compress(graph, src, dst, graph.num_src, graph.num_dst)


@fact
def row_order(graph: Graph) -> Tensor | None:
    """The places in edge order of the edges by destination, then source; None if they are so.

    Structured graphs have them so, and then nothing is listed.
    """
    return graph.csr().edge


class CompactCSR(NamedTuple):
    """A CSR as fused kernels read it, in half the bytes and sooner made; see `CSR`.

    `ptr` int64, `index` int32, `edge` int32 (int64 from 2^31 edges on) or None. Within a row, edges
    keep their order.
    """

    ptr: Tensor
    index: Tensor
    edge: Tensor | None


@fact
def compact_by_destination(graph: Graph) -> CompactCSR:
    src, dst = ends(graph)
    return _compact(graph, dst, src, graph.num_dst)


@fact
def compact_by_source(graph: Graph) -> CompactCSR:
    src, dst = ends(graph)
    return _compact(graph, src, dst, graph.num_src)


@fact
def compact_both(graph: Graph) -> tuple[CompactCSR, CompactCSR]:
    """By destination and by source, made at once: on a CPU each on a thread of its own."""
    if graph.device.type != "cpu":  # a thread would not know the stream that the caller is on
        return compact_by_destination(graph), compact_by_source(graph)
    with ThreadPoolExecutor(2) as pool:
        rows, columns = pool.map(
            lambda side: side(graph), (compact_by_destination, compact_by_source)
        )
    return rows, columns


def _compact(graph: Graph, row: Tensor, column: Tensor, num_rows: int) -> CompactCSR:
    _require_rows(graph, num_rows)
    num_edges, device = len(row), row.device
    if all(bool((some[1:] >= some[:-1]).all()) for some in (row[:1000], row)):
        ptr = torch.searchsorted(row, torch.arange(num_rows + 1, device=device))
        return CompactCSR(ptr, column.to(torch.int32), None)
    group = GROUP.get(device.type) if num_edges < 2**31 else None
    if group is not None and (found := group(row, column, num_rows)) is not None:
        return found
    narrow = torch.int32 if num_edges < 2**31 else torch.int64
    row, edge = torch.sort(row.to(torch.int32), stable=True)
    ptr = torch.searchsorted(row, torch.arange(num_rows + 1, device=device, dtype=row.dtype))
    return CompactCSR(ptr, column[edge].to(torch.int32), edge.to(narrow))


GROUP: dict[str, Callable[[Tensor, Tensor, int], CompactCSR | None]] = {}
"""By the type of device, what groups edges by row sooner than sorting; kernels enter theirs."""


@fact
def mask(graph: Graph) -> Tensor:
    size = graph.num_dst * graph.num_src
    require(size, graph.device, f"the mask of {graph}", "work with its edges instead")
    mask = torch.zeros(size, dtype=torch.bool, device=graph.device)
    src, dst = graph.edge_index
    mask[pair_keys(dst, src, graph.num_src)] = True
    return mask.view(graph.num_dst, graph.num_src)


@fact
def sorted_keys(graph: Graph) -> Tensor:
    """Every edge as the number `dst * num_src + src`, ascending; to look edges up."""
    rows = graph.csr()
    return pair_keys(rows.row, rows.index, graph.num_src)


def pair_keys(dst: Tensor, src: Tensor, num_src: int) -> Tensor:
    """A pair as one number; numbers are ordered by destination, then source."""
    return dst * num_src + src


def pairs_of(keys: Tensor, num_src: int) -> tuple[Tensor, Tensor]:
    """The `(dst, src)` that `pair_keys` made numbers of."""
    dst = torch.div(keys, max(num_src, 1), rounding_mode="floor")
    return dst, keys - dst * num_src


def has_listed_edge(graph: Graph, dst, src):
    """`has_edge` for a graph that knows its edges only as a list."""
    keys = sorted_keys(graph)
    wanted = pair_keys(
        torch.as_tensor(dst, dtype=torch.int64, device=keys.device),
        torch.as_tensor(src, dtype=torch.int64, device=keys.device),
        graph.num_src,
    )
    if len(keys) == 0:
        found = torch.zeros_like(wanted, dtype=torch.bool)
    else:
        place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        found = keys[place] == wanted
    return found if isinstance(dst, Tensor) or isinstance(src, Tensor) else bool(found)


def _require_rows(graph: Graph, num_rows: int) -> None:
    require(24 * num_rows, graph.device, f"a CSR row for each node of {graph}", "take fewer nodes")


def _compress(graph: Graph, row: Tensor, column: Tensor, num_rows: int, num_columns: int) -> CSR:
    _require_rows(graph, num_rows)
    keys = pair_keys(row, column, num_columns)
    edge = None
    if not bool((keys[1:] >= keys[:-1]).all()):
        keys, edge = torch.sort(keys, stable=True)
        row, column = pairs_of(keys, num_columns)
    ptr = torch.searchsorted(row, torch.arange(num_rows + 1, device=row.device))
    return CSR(ptr, column.contiguous(), row.contiguous(), edge)
