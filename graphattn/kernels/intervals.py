"""Attention over intervals on the tensor cores of a GPU: windows, prefixes, packed documents.

Flash attention (Dao 2023) in which a block of destinations walks from the first source of any of
them to the last, with the bounds of each as the only mask: O(nodes) of index memory, and no mask is
built. A destination may hear two intervals, as of a window and of leading global tokens; they are
walked over one after the other. Backward goes once over the blocks of destinations (queries, bias)
and once, over the transpose, over those of sources (keys and values), and computes the weights
again; nothing is added up atomically, and nothing waits for the GPU. The functions are in
`intervals_jit.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphattn.graphs import rows
from graphattn.graphs.csr import row_order
from graphattn.graphs.rows import SpanRows, pairs_in_reach, span_columns, span_rows
from graphattn.kernels.cost import Work, head_counts, milliseconds
from graphattn.kernels.fused import BACKENDS, Backend, Call, Wanted, attend
from graphattn.kernels.launch import MOST_PROGRAMS, generation, launch, of_nodes, on_device_of
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


def unsupported(problem: Problem) -> str | None:
    if (reason := beyond_tiles(problem)) is not None:
        return reason
    query, key = problem.query, problem.key
    nodes, size = max(query.shape[-3], key.shape[-3]), query.shape[:-3].numel() * problem.heads
    if -(-nodes // rows.BLOCK) * size > MOST_PROGRAMS:
        return (
            f"{nodes} nodes and {size} heads of a batch are more than one launch has programs for"
        )
    if span_rows(problem.graph) is None:
        return (
            "the sources of a destination, or the destinations of a source, are more than two "
            "intervals"
        )
    return None


def declines(problem: Problem) -> str | None:
    return None if problem.query.is_cuda else "it would be interpreted, which is there for tests"


def expected(problem: Problem) -> Estimate | None:
    if beyond_tiles(problem) is not None or (reached := pairs_in_reach(problem.graph)) is None:
        return None
    heads, _, dims = head_counts(problem)
    width = max(problem.query.shape[-1], problem.value.shape[-1])
    lean = problem.bias is not None or problem.dropout > 0
    tiles = tiles_of("forward", width, problem.query, lean=lean)
    # A program takes several blocks, of which each reaches as much further as it is long.
    further = (tiles.CHUNKS - 1) * rows.BLOCK * problem.graph.num_dst
    scored = reached + further
    work = Work(
        products=2 * scored * heads * dims,
        share=0.45,
        instructions=scored * heads * (10 if problem.bias is None else 20),
        backward=(3.0, 4.5, 2.5),
        host=(0.06, 0.12),
    )
    loaded = max(scored // (tiles.CHUNKS * rows.BLOCK), 1)
    return Estimate(milliseconds(problem, work), problem.graph.num_edges / loaded)


def lower(problem: Problem, wanted: Wanted) -> tuple[list[SpanRows], bool]:
    graph = problem.graph
    order = row_order(graph) if wanted.per_edge else None
    sides = []
    for side_of in (span_rows, span_columns)[: 1 + wanted.transpose]:
        side = side_of(graph)
        assert side is not None
        sides.append(side if order is None else side._replace(edge=order))
    return sides, False


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


# By the function, the bytes of a number and the largest head dimension: as large as fits into the
# registers of a thread. (At float32, 128, by_destination spills some.) Not measured yet.
TILES = {
    ("forward", 2, 64): Tiles(4, 64, 8, 3),
    ("forward", 2, 128): Tiles(4, 64, 8, 2),
    ("forward", 2, 256): Tiles(2, 32, 8, 2),
    ("forward", 4, 64): Tiles(1, 32, 8, 2),
    ("forward", 4, 128): Tiles(1, 16, 8, 2),
    ("by_destination", 2, 64): Tiles(4, 64, 8, 2),
    ("by_destination", 2, 128): Tiles(4, 32, 8, 2),
    ("by_destination", 2, 256): Tiles(2, 16, 8, 2),
    ("by_destination", 4, 64): Tiles(1, 32, 8, 1),
    ("by_destination", 4, 128): Tiles(1, 16, 8, 1),
    ("by_source", 2, 64): Tiles(4, 32, 8, 2),
    ("by_source", 2, 128): Tiles(2, 32, 8, 2),
    ("by_source", 2, 256): Tiles(1, 16, 8, 2),
    ("by_source", 4, 64): Tiles(1, 32, 8, 1),
    ("by_source", 4, 128): Tiles(1, 16, 8, 1),
}
# By the generation of the GPU, the first number of its compute capability.
SMALLER_TILES = {
    8: {
        ("forward", 2, 128): Tiles(4, 32, 8, 3),
        ("by_destination", 2, 128): Tiles(2, 32, 8, 2),
    },
    10: {
        ("by_destination", 2, 64): Tiles(4, 32, 8, 2),
        ("by_destination", 2, 128): Tiles(2, 32, 8, 2),
        ("forward", 2, 256): Tiles(1, 32, 8, 2),
        ("by_destination", 2, 256): Tiles(1, 16, 8, 2),
    },
}


def tiles_of(name: str, width: int, query: Tensor, *, lean: bool) -> Tiles:
    """Tiles for a function and heads of so many numbers.

    lean: Whether registers are needed for more, to tell edges apart or for random numbers.
    """
    key = (name, *class_of(width, query))
    tiles = SMALLER_TILES.get(generation(query), {}).get(key) or TILES[key]
    if not lean:
        return tiles
    most = 16 if generation(query) == 8 else 32
    return tiles._replace(CHUNKS=max(tiles.CHUNKS // 2, 1), STEP=min(tiles.STEP, most))


# --- the operations -------------------------------------------------------------------------------


def forward_of(call: Call) -> tuple[Tensor, Tensor]:
    out, stats = empty_outputs(call)
    heads = call.query.shape[-2]
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
    grads = empty_gradients(call, needed)
    delta = call.query.new_empty(call.query.shape[:-1], dtype=torch.float32)
    given = {**of_nodes("grad_out", grad), "stats": stats, "delta": delta}
    heads, kv_heads = call.query.shape[-2], call.key.shape[-2]
    over(
        call,
        call.rows,
        "by_destination",
        heads,
        out=result.contiguous(),
        grad_query=grads[0],
        grad_bias=grads[3],
        **given,
    )
    if needed[1] or needed[2]:
        over(
            call,
            call.columns,
            "by_source",
            kv_heads,
            grad_key=grads[1],
            grad_value=grads[2],
            dst_ptr=call.rows.ptr,
            dst_bounds=call.rows.bounds,
            DST_PARTS=len(call.rows.bounds),
            **given,
        )
    return all_gradients(call, grads, stats, delta, needed)


def over(call: Call, edges: SpanRows, name: str, heads: int, **arguments: Any) -> None:
    """Run a function over all blocks of rows and so many heads."""
    lean = call.bias is not None or call.seed is not None
    tiles = tiles_of(name, max(blocks_of_dims(call)), call.query, lean=lean)
    num_rows, block_rows = len(edges.ptr) - 1, tiles.CHUNKS * rows.BLOCK
    with on_device_of(call.query):
        launch(
            getattr(_jit(), name),
            -(-num_rows // block_rows) * heads * call.batch.numel(),
            **common(call),
            ptr=edges.ptr,
            bounds=edges.bounds,
            some=edges.some,
            each=edges.each,
            edge=edges.edge if len(edges.edge) else None,
            num_blocks=edges.some.shape[1],
            PARTS=len(edges.bounds),
            ROWS=block_rows,
            enable_fp_fusion=True,
            **tiles._asdict(),
            **arguments,
        )


BACKENDS["intervals"] = Backend(
    forward_of, None, backward_of, half=True, joins=False, edges=SpanRows, lower=lower
)

KERNEL = Kernel(
    name="intervals",
    why="destinations attend to intervals: blocks of them share their sources, on tensor cores",
    unsupported=unsupported,
    run=partial(attend, backend="intervals"),
    declines=declines,
    expected=expected,
)
