"""Attention over row windows on the tensor cores of a GPU: graphs in which neighbors share sources.

Rows are grouped in windows of 16 to 64; the distinct sources of a window are listed once, gathered
once, and scored for all of its rows by products on tensor cores; bits say which of the pairs are
edges, and the bias of an edge is found by counting them. (Row windows with compacted columns and
bitmaps: Fused3S, Li and Chandramowlishwaran 2025.) Backward goes once over the windows of
destinations (queries, bias) and once over those of sources, a layout of its own (keys and values),
and computes the weights again. Long windows are cut, and their parts merged in order. Nothing is
added up atomically, and nothing waits for the GPU: the windows are facts of a graph. The functions
are in `row_windows_jit.py`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphattn.graphs import Graph
from graphattn.graphs.csr import row_order
from graphattn.graphs.facts import fact
from graphattn.graphs.memory import shortage
from graphattn.graphs.rows import span_rows
from graphattn.graphs.structure import as_blocks, is_simple, is_symmetric
from graphattn.graphs.windows import (
    MAKING_BYTES,
    SIZES,
    TILE,
    WINDOWS_OF_COLUMNS,
    WINDOWS_OF_ROWS,
    RowWindows,
    window_counts,
)
from graphattn.kernels.cost import Work, head_counts, milliseconds, slowest
from graphattn.kernels.fused import BACKENDS, Backend, Call, Wanted, attend
from graphattn.kernels.launch import (
    MOST_PROGRAMS,
    generation,
    launch,
    of_nodes,
    on_device_of,
    power_of_2,
)
from graphattn.kernels.problem import Estimate, Kernel, Problem
from graphattn.kernels.tiles import (
    all_gradients,
    beyond_tiles,
    blocks_of_dims,
    class_of,
    common,
    empty_gradients,
    empty_outputs,
)

# Of both layouts of a graph; a guess, as all in `cost.py`.
MAKING_MS, MAKING_MS_PER_EDGE = 3.0, 3e-6


def unsupported(problem: Problem) -> str | None:
    if (reason := beyond_tiles(problem)) is not None:
        return reason
    graph, query = problem.graph, problem.query
    nodes, size = max(query.shape[-3], problem.key.shape[-3]), query.shape[:-3].numel()
    programs = nodes // SIZES[0] * size * problem.heads
    if programs > MOST_PROGRAMS // 2:  # the other half is for parts
        return (
            f"{nodes} nodes of {size} x {problem.heads} heads are more than one launch has "
            "programs for"
        )
    if (short := shortage_of_making(graph)) is not None:
        return f"making the windows takes {short}"
    if not is_simple(graph):
        return "the graph has parallel edges, and a bit can't count them"
    return None


@fact
def shortage_of_making(graph: Graph) -> str | None:
    """Why the windows don't fit, if so; asked once, for they are made once."""
    return shortage(MAKING_BYTES * graph.num_edges, graph.device)


def declines(problem: Problem) -> str | None:
    if not problem.query.is_cuda:
        return "it would be interpreted, which is there for tests"
    return declines_graph(problem)


def declines_graph(problem: Problem) -> str | None:
    """Why another kernel is thought to be faster over the graph, if so."""
    graph = problem.graph
    if beyond_tiles(problem) is not None:
        return None  # it can't, anyway
    if span_rows(graph) is not None:
        return "destinations attend to intervals, of which nothing need be listed"
    if problem.beyond_sdpa is None and as_blocks(graph) is not None:
        return "the graph falls apart into dense graphs, of which nothing need be listed"
    return None


def expected(problem: Problem) -> Estimate | None:
    graph = problem.graph
    if beyond_tiles(problem) is not None or shortage_of_making(graph) is not None:
        return None
    size = best_size(problem)
    columns = window_counts(graph).columns[SIZES.index(size)]
    making = MAKING_MS + graph.num_edges * MAKING_MS_PER_EDGE
    ms = milliseconds(problem, work_of(problem, size))
    return Estimate(ms, graph.num_edges / max(columns, 1), making)


def best_size(problem: Problem) -> int:
    """How many rows a window has at best; the same in training and afterwards, for all batches."""
    if torch.compiler.is_compiling():
        return _best_size(problem)
    query, known = problem.query, _best_sizes(problem.graph)
    heads = (query.shape[-2:], problem.key.shape[-2], problem.value.shape[-1])
    kind = (*heads, problem.bias is None, query.dtype, query.device)
    if kind not in known:
        known[kind] = _best_size(problem)
    return known[kind]


def _best_size(problem: Problem) -> int:
    batch = max(problem.query.shape[:-3].numel(), 1)
    best, least = 0, math.inf
    for size in sizes(problem):  # torch.compile knows no min(…, key=…)
        ms = slowest(problem.query, work_of(problem, size)) / batch
        if ms < least:
            best, least = size, ms
    return best


@fact
def _best_sizes(graph: Graph) -> dict[Hashable, int]:
    """Those that were found so far; to find one takes longer than many a kernel runs."""
    return {}


def work_of(problem: Problem, size: int) -> Work:
    """What windows of so many rows ask."""
    heads, kv_heads, dims = head_counts(problem)
    counts, which = window_counts(problem.graph), SIZES.index(size)
    pairs = counts.tiles[which] * TILE * size * heads
    _, groups = group_tiles(problem.group_size, size, most_rows_of(problem))
    row = kv_heads * groups * dims * problem.query.element_size() + 4
    return Work(
        gathered=counts.columns[which] * row,
        products=2 * pairs * dims,
        share=0.4,
        instructions=pairs * (16 if problem.bias is None else 26),
        backward=(3.0, 4.5, 2.5),
        host=(0.06, 0.12),
    )


def lower(problem: Problem, wanted: Wanted) -> tuple[list[RowWindows], bool]:
    graph, size = problem.graph, best_size(problem)
    rows = _side(WINDOWS_OF_ROWS[size](graph), row_order(graph) if wanted.per_edge else None)
    if not wanted.transpose:
        return [rows], False
    if is_symmetric(graph) and not wanted.per_edge:  # its own transpose
        return [rows, rows], False
    order = graph.csc().edge if wanted.per_edge else None
    return [rows, _side(WINDOWS_OF_COLUMNS[size](graph), order)], False


def _side(windows: RowWindows | None, order: Tensor | None) -> RowWindows:
    assert windows is not None
    return windows if order is None else windows._replace(edge=order)


def _jit() -> Any:
    from graphattn.kernels import row_windows_jit

    return row_windows_jit


# --- sizes of tiles -------------------------------------------------------------------------------


class Tiles(NamedTuple):
    """How a problem is shared out among programs; see `row_windows_jit.py`."""

    GROUP_TILE: int
    GROUPS: int
    STEP: int
    num_warps: int
    num_stages: int


# By the bytes of a number and the largest head dimension: the most rows of a tile; and STEP,
# num_warps, num_stages. What fits into the registers of a thread; not measured yet.
MOST_ROWS = {(2, 64): 64, (2, 128): 64, (2, 256): 32, (4, 64): 16, (4, 128): 16}
TILES = {
    (2, 64): (64, 4, 3),
    (2, 128): (64, 4, 3),
    (2, 256): (32, 8, 2),
    (4, 64): (32, 4, 2),
    (4, 128): (32, 4, 2),
}
# The same of a function, for tiles of so many rows.
OTHER_TILES = {
    ("by_source", 64, 2, 64): (32, 4, 3),
    ("by_destination", 64, 2, 128): (32, 4, 3),
    ("by_source", 64, 2, 128): (32, 8, 3),
    ("by_source", 16, 4, 128): (32, 8, 2),
}
# By the generation of the GPU, the first number of its compute capability.
SMALLER_TILES = {
    8: {("forward", 64, 2, 128): (32, 4, 3)},
    10: {("forward", 64, 2, 128): (32, 4, 3)},
}


def most_rows(width: int, query: Tensor, *, biased: bool) -> int:
    """Of a tile, for heads of so many numbers; telling edges apart takes registers."""
    key = class_of(width, query)
    halved = key == (2, 128) or (key == (2, 64) and generation(query) == 8)
    return MOST_ROWS[key] // 2 if biased and halved else MOST_ROWS[key]


def most_rows_of(problem: Problem) -> int:
    width = max(problem.query.shape[-1], problem.value.shape[-1])
    return most_rows(width, problem.query, biased=problem.bias is not None)


def sizes(problem: Problem) -> list[int]:
    """How many rows the windows for a problem may have."""
    return [size for size in SIZES if size <= most_rows_of(problem)]


def tiles_of(name: str, size: int, call: Call) -> Tiles:
    """Tiles for a function over windows of so many rows."""
    width, biased = max(blocks_of_dims(call)), call.bias is not None
    key, most = class_of(width, call.query), most_rows(width, call.query, biased=biased)
    group = call.query.shape[-2] // call.key.shape[-2] if name != "by_source" else 1
    tile, groups = group_tiles(group, size, most)
    other = OTHER_TILES | SMALLER_TILES.get(generation(call.query), {})
    step, warps, stages = other.get((name, size * tile, *key), TILES[key])
    return Tiles(tile, groups, 32 if biased else step, warps, stages)


def group_tiles(group: int, size: int, most: int) -> tuple[int, int]:
    """Of heads that share a key head, how many a tile of windows has, and how many tiles."""
    tile = min(power_of_2(group), most // size)
    return tile, -(-group // tile)


# --- the operations -------------------------------------------------------------------------------


class Launch:
    """The arguments that the functions have in common, and how they are run."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.common = common(call)

    def parts(self, edges: RowWindows, *shape: int) -> Tensor:
        """Room for what the parts of long windows write."""
        size = edges.begin.shape[1]
        sizes = (self.call.batch.numel(), self.num_parts(edges), size, *shape)
        return self.call.query.new_empty(sizes, dtype=torch.float32)

    @staticmethod
    def num_parts(edges: RowWindows) -> int:
        """Windows and parts are items, but for the windows that are cut."""
        size = edges.begin.shape[1]
        return len(edges.items) - len(edges.rows) // size + len(edges.cut)

    def over(self, edges: RowWindows, name: str, **arguments: Any) -> None:
        """Run a function over all windows and parts of windows."""
        call, size = self.call, edges.begin.shape[1]
        tiles = tiles_of(name, size, call)
        self.launch(
            name,
            len(edges.items) * call.key.shape[-2] * tiles.GROUPS * call.batch.numel(),
            **self.common,
            rows=edges.rows,
            items=edges.items,
            begin=edges.begin,
            columns=edges.columns,
            words=edges.words,
            edge=edges.edge if len(edges.edge) else None,
            num_items=len(edges.items),
            num_parts=self.num_parts(edges),
            ROWS=size,
            **tiles._asdict(),
            **arguments,
        )

    def merge(self, edges: RowWindows, name: str, out: Tensor, parts: Tensor, **more: Any) -> None:
        """Bring the parts of long windows together."""
        if not len(edges.cut):
            return
        heads, dim = out.shape[-2:]
        self.launch(
            name,
            len(edges.cut) * heads * self.call.batch.numel(),
            rows=edges.rows,
            cut=edges.cut,
            num_cut=len(edges.cut),
            num_rows=out.shape[-3],
            num_parts=parts.shape[1],
            HEADS=heads,
            ROWS=edges.begin.shape[1],
            DIM=dim,
            BLOCK=power_of_2(dim),
            out=out,
            parts=parts,
            num_warps=8,
            **more,
        )

    def launch(self, name: str, programs: int, **arguments: Any) -> None:
        with on_device_of(self.call.query):
            launch(getattr(_jit(), name), programs, enable_fp_fusion=True, **arguments)


def forward_of(call: Call) -> tuple[Tensor, Tensor]:
    side, (out, stats) = Launch(call), empty_outputs(call)
    heads, dim = out.shape[-2:]
    out_parts, stats_parts = side.parts(call.rows, heads, dim), side.parts(call.rows, 2, heads)
    given = {"sink": call.sink, "stats": stats, "stats_parts": stats_parts}
    side.over(call.rows, "forward", out=out, out_parts=out_parts, **given)
    side.merge(call.rows, "merge_forward", out, out_parts, NORMALIZER=call.normalizer, **given)
    return out, stats


def backward_of(
    call: Call,
    grad: Tensor,
    result: Tensor,
    stats: Tensor,
    needed: Sequence[bool],
    of_weights: bool,
) -> list[Tensor | None]:
    side, grads = Launch(call), empty_gradients(call, needed)
    of_query, of_key, of_value, of_bias = grads
    assert of_query is not None
    assert of_key is not None
    assert of_value is not None
    delta = call.query.new_empty(call.query.shape[:-1], dtype=torch.float32)
    given = {**of_nodes("grad_out", grad), "stats": stats, "delta": delta}
    query_parts = side.parts(call.rows, *of_query.shape[-2:])
    side.over(
        call.rows,
        "by_destination",
        out=result.contiguous(),
        grad_query=of_query,
        query_parts=query_parts,
        grad_bias=of_bias,
        grad_bias_batch=0 if of_bias is None else of_bias.shape[-2:].numel(),
        **given,
    )
    side.merge(call.rows, "merge_sum", of_query, query_parts)
    if needed[1] or needed[2]:
        key_parts = side.parts(call.columns, *of_key.shape[-2:])
        value_parts = side.parts(call.columns, *of_value.shape[-2:])
        side.over(
            call.columns,
            "by_source",
            grad_key=of_key,
            key_parts=key_parts,
            grad_value=of_value,
            value_parts=value_parts,
            **given,
        )
        side.merge(call.columns, "merge_sum", of_key, key_parts)
        side.merge(call.columns, "merge_sum", of_value, value_parts)
    return all_gradients(call, grads, stats, delta, needed)


BACKENDS["row_windows"] = Backend(
    forward_of, None, backward_of, half=True, joins=False, edges=RowWindows, lower=lower
)

KERNEL = Kernel(
    name="row_windows",
    why="neighbors share sources: windows of rows load them once, and score them on tensor cores",
    unsupported=unsupported,
    run=partial(attend, backend="row_windows"),
    declines=declines,
    expected=expected,
)
