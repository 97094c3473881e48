"""Attention over intervals on the tensor cores of a GPU: windows, prefixes, packed documents.

Flash attention (Dao 2023) in which a block of destinations walks from the first source of any of
them to the last, with the bounds of each as the only mask: O(nodes) of index memory, and no mask is
built. Backward goes once over the blocks of destinations (queries) and once, over the transposed
intervals, over those of sources (keys and values), and computes the weights again; nothing is added
up atomically, and nothing waits for the GPU. The functions are in `intervals_jit.py`.

A NaN or an infinity in a value reaches whole blocks, as in all attention by blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphattn.graphs import Graph, rows
from graphattn.graphs.facts import fact
from graphattn.graphs.rows import column_reach, pairs_in_reach, row_reach
from graphattn.graphs.structure import as_blocks, transposed_intervals
from graphattn.kernels.fused import BACKENDS, Backend, Call, Edges, attend, sink_gradient
from graphattn.kernels.launch import (
    MOST_PROGRAMS,
    interpreted,
    launch,
    of_nodes,
    on_device_of,
    power_of_2,
    triton_is_missing,
)
from graphattn.kernels.problem import Kernel, Problem
from graphattn.normalizers import Softmax
from graphattn.scores import Dot

LARGEST_DIM = {2: 256, 4: 128}  # by the bytes of a number
MOST_NODES = 2**30  # so that the end of a block is an int32
LN2 = 0.6931471805599453

# What follows chooses among kernels, and was not measured yet.
# Pairs of a tile that tensor cores score in the time in which an edge is gathered.
PAIRS_PER_EDGE = 4
# Sizes of dense blocks for which torch's attention is called one after the other.
FEW_SIZES = 4


def unsupported(problem: Problem) -> str | None:
    query, key = problem.query, problem.key
    if not isinstance(problem.score, Dot) or not isinstance(problem.normalizer, Softmax):
        return "it computes scaled dot products and softmax only"
    if any(x is not None for x in (problem.bias, problem.edge_key, problem.edge_value)):
        return "it knows no bias and no features of edges"
    if problem.dropout:
        return "it drops no weights"
    if query.dtype == torch.float64:
        return "it sums in float32, and the tensors are of float64"
    if not query.is_cuda and not interpreted():
        return f"it runs on a GPU, and the tensors are on {query.device}"
    dim, largest = max(query.shape[-1], problem.value.shape[-1]), LARGEST_DIM[query.element_size()]
    if dim > largest:
        return f"it takes up to {largest} numbers a head in {query.dtype}, and here are {dim}"
    nodes, size = max(query.shape[-3], key.shape[-3]), query.shape[:-3].numel() * problem.heads
    if nodes > MOST_NODES or -(-nodes // rows.BLOCK) * size > MOST_PROGRAMS:
        return (
            f"{nodes} nodes and {size} heads of a batch are more than one launch has programs for"
        )
    if transposed_intervals(problem.graph) is None:
        return "the sources of a destination, or the destinations of a source, are no interval"
    return triton_is_missing("graphattn.kernels.intervals_jit")


def declines(problem: Problem) -> str | None:
    if not problem.query.is_cuda:
        return "it would be interpreted, which is there for tests"
    return declines_graph(problem)


def declines_graph(problem: Problem) -> str | None:
    """Why another kernel is thought to be faster over the graph, if so."""
    if (reason := sparse_in_reach(problem.graph)) is not None:
        return reason
    if problem.beyond_sdpa is None and has_few_sizes(problem.graph):
        return "the graph falls apart into dense graphs of few sizes, which are batched"
    return None


@fact
def sparse_in_reach(graph: Graph) -> str | None:
    """Why blocks of rows score too many pairs that are no edges, if so.

    A sentence and no number, which compiled code would take for one that varies.
    """
    if transposed_intervals(graph) is None:
        return None  # it can't, anyway
    pairs = pairs_in_reach(graph)
    if graph.num_edges * PAIRS_PER_EDGE >= pairs:
        return None
    return (
        f"{100 * graph.num_edges / pairs:.3g}% of the pairs that it would score are edges; "
        f"that pays from {100 / PAIRS_PER_EDGE:.3g}% on"
    )


@fact
def has_few_sizes(graph: Graph) -> bool:
    """Whether the graph falls apart into dense graphs of few sizes."""
    blocks = as_blocks(graph)
    return blocks is not None and len(blocks.groups) <= FEW_SIZES


def _jit() -> Any:
    from graphattn.kernels import intervals_jit

    return intervals_jit


# --- sizes of tiles -------------------------------------------------------------------------------


class Tiles(NamedTuple):
    """How a problem is shared out among programs; see `intervals_jit.py`."""

    CHUNKS: int
    STEP: int
    num_warps: int
    num_stages: int


# By the function, the largest head dimension and the bytes of a number: as large as fits into the
# registers of a thread. (At float32, 128, by_destination spills some.) Not measured yet.
TILES = {
    ("forward", 64, 2): Tiles(4, 64, 8, 3),
    ("forward", 128, 2): Tiles(4, 64, 8, 2),
    ("forward", 256, 2): Tiles(2, 32, 8, 2),
    ("forward", 64, 4): Tiles(1, 32, 8, 2),
    ("forward", 128, 4): Tiles(1, 16, 8, 2),
    ("by_destination", 64, 2): Tiles(4, 64, 8, 2),
    ("by_destination", 128, 2): Tiles(4, 32, 8, 2),
    ("by_destination", 256, 2): Tiles(2, 16, 8, 2),
    ("by_destination", 64, 4): Tiles(1, 32, 8, 1),
    ("by_destination", 128, 4): Tiles(1, 16, 8, 1),
    ("by_source", 64, 2): Tiles(4, 32, 8, 2),
    ("by_source", 128, 2): Tiles(2, 32, 8, 2),
    ("by_source", 256, 2): Tiles(1, 16, 8, 2),
    ("by_source", 64, 4): Tiles(1, 32, 8, 1),
    ("by_source", 128, 4): Tiles(1, 16, 8, 1),
}
# By the generation of the GPU, the first number of its compute capability.
SMALLER_TILES = {
    8: {
        ("forward", 128, 2): Tiles(4, 32, 8, 3),
        ("by_destination", 128, 2): Tiles(2, 32, 8, 2),
    },
}


def tiles_of(name: str, width: int, query: Tensor) -> Tiles:
    """Tiles for a function and heads of so many numbers."""
    size = next(size for size in (64, 128, 256) if width <= size)
    key = (name, size, query.element_size())
    return SMALLER_TILES.get(generation(query), {}).get(key) or TILES[key]


def generation(x: Tensor) -> int:
    """Of the GPU that a tensor is on; 0 if it is on none."""
    return torch.cuda.get_device_capability(x.device)[0] if x.is_cuda else 0


# --- the operations -------------------------------------------------------------------------------


def forward_of(call: Call) -> tuple[Tensor, Tensor]:
    query, heads = call.query, call.query.shape[-2]
    out = query.new_empty((*query.shape[:-1], call.value.shape[-1]))
    stats = query.new_empty((*query.shape[:-2], 2, heads), dtype=torch.float32)
    over(call, call.rows, "forward", heads, sink=call.sink, out=out, stats=stats)
    return out, stats


def backward_of(
    call: Call,
    grad: Tensor,
    result: Tensor,
    stats: Tensor,
    needed: Sequence[bool],
    of_weights: bool,
) -> list[Tensor | None]:
    query, key, value = call.query, call.key, call.value
    grads: list[Tensor | None] = [
        torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (query, key, value)
    ]
    delta = query.new_empty(query.shape[:-1], dtype=torch.float32)
    given = {**of_nodes("grad_out", grad), "stats": stats, "delta": delta}
    heads, kv_heads = query.shape[-2], key.shape[-2]
    result = result.contiguous()
    over(call, call.rows, "by_destination", heads, out=result, grad_query=grads[0], **given)
    if needed[1] or needed[2]:
        given |= {"grad_key": grads[1], "grad_value": grads[2]}
        over(call, call.columns, "by_source", kv_heads, **given)
    sink = None
    if needed[8]:
        stats = stats.clone()
        stats[..., 0, :] *= LN2
        sink = sink_gradient(call, stats, delta)
    return [*grads, *[None] * 5, sink]


def over(call: Call, edges: Edges, name: str, heads: int, **arguments: Any) -> None:
    """Run a function over all blocks of rows and so many heads."""
    query, key, value = call.query, call.key, call.value
    dims = query.shape[-1], value.shape[-1]
    head_block, value_block = (max(power_of_2(dim), 16) for dim in dims)  # 16: least of a product
    tiles = tiles_of(name, max(head_block, value_block), query)
    num_rows, block_rows = len(edges.ptr) - 1, tiles.CHUNKS * rows.BLOCK
    with on_device_of(query):
        launch(
            getattr(_jit(), name),
            -(-num_rows // block_rows) * heads * call.batch.numel(),
            **of_nodes("query", query),
            **of_nodes("key", key),
            **of_nodes("value", value),
            ptr=edges.ptr,
            index=edges.index,
            some=edges.part,
            each=edges.hub,
            num_dst=query.shape[-3],
            num_src=key.shape[-3],
            num_blocks=len(edges.part),
            scale=call.scale,
            softcap=call.softcap,
            CAPPED=call.softcap != 0,
            HEADS=query.shape[-2],
            KV_HEADS=key.shape[-2],
            HEAD_DIM=dims[0],
            VALUE_DIM=dims[1],
            HEAD_BLOCK=head_block,
            VALUE_BLOCK=value_block,
            ROWS=block_rows,
            enable_fp_fusion=True,
            **tiles._asdict(),
            **arguments,
        )


BACKENDS["intervals"] = Backend(
    forward_of, None, backward_of, half=True, joins=False, shares=(row_reach, column_reach)
)

KERNEL = Kernel(
    name="intervals",
    why="destinations attend to intervals: blocks of them share their sources, on tensor cores",
    unsupported=unsupported,
    run=partial(attend, backend="intervals"),
    declines=declines,
)
