"""Fused sparse attention on the GPU: any graph, each edge read once forward and twice backward.

A program for each destination gathers its sources over the CSR; backward goes once over the CSR
(queries) and once over its transpose (keys and values), and computes the weights again. Nothing of
the size of edges x head_dim is written, nothing is added up atomically, and nothing waits for the
GPU: what depends on the graph is among its facts. The functions are in `triton_jit.py`.

Where TRITON_INTERPRET=1 is set before Triton is imported, they are interpreted, on the CPU too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphattn.graphs import rows
from graphattn.graphs.rows import cut_columns, cut_rows
from graphattn.kernels.cost import Work, head_counts, milliseconds
from graphattn.kernels.fused import (
    BACKENDS,
    Backend,
    Call,
    Edges,
    attend,
    beyond_fused,
    lower,
    sink_gradient,
)
from graphattn.kernels.launch import (
    MOST_PROGRAMS,
    interpreted,
    launch,
    of_edges,
    of_nodes,
    on_device_of,
    power_of_2,
    triton_is_missing,
)
from graphattn.kernels.problem import Estimate, Kernel, Problem

LARGEST_DIM = 256


def unsupported(problem: Problem) -> str | None:
    query, value = problem.query, problem.value
    if not query.is_cuda and not interpreted():
        return f"it runs on a GPU, and the tensors are on {query.device}"
    if (dim := max(query.shape[-1], value.shape[-1])) > LARGEST_DIM:
        return f"it takes up to {LARGEST_DIM} numbers a head, and here are {dim}"
    most = max(query.shape[:-2].numel(), problem.key.shape[:-2].numel())
    if most * problem.key.shape[-2] > MOST_PROGRAMS // 2:  # the other half is for parts of rows
        return f"{most} nodes of a batch are more than one launch has programs for"
    return beyond_fused(problem) or triton_is_missing("graphattn.kernels.triton_jit")


def declines(problem: Problem) -> str | None:
    return None if problem.query.is_cuda else "it would be interpreted, which is there for tests"


def expected(problem: Problem) -> Estimate:
    heads, kv_heads, dims = head_counts(problem)
    edges, item = problem.graph.num_edges, problem.query.element_size()
    features = sum(x is not None for x in (problem.edge_key, problem.edge_value)) / 2
    work = Work(
        gathered=edges * (kv_heads * dims * item + 4),
        streamed=edges * kv_heads * dims * item * features,
        instructions=edges * heads * (2.5 * dims + 20),  # to widen, multiply and add
        host=(0.06, 0.12),
    )
    return Estimate(milliseconds(problem, work))


def _jit() -> Any:
    from graphattn.kernels import triton_jit

    return triton_jit


# --- sizes of tiles -------------------------------------------------------------------------------

# Bytes of a tile (EDGES, SLOTS, dim) that a thread loads, forward and backward; a program keeps
# some such tiles in registers. Half as many where features of edges are as many again, or rows
# can't be read 16 bytes at a time.
BYTES_PER_THREAD = (64, 32)
MOST_EDGES = 32
# Numbers of all heads of a node that one program takes; beyond, key heads are shared out.
WIDEST = 2048
WIDE_PER_WARP = 256
MOST_WARPS = 8


class Tiles(NamedTuple):
    """How a problem is shared out among programs; see `triton_jit.py`."""

    TILES: int
    KV_TILE: int
    GROUP_TILE: int
    HEAD_BLOCK: int
    VALUE_BLOCK: int
    EDGES: int
    num_warps: int


@cache
def tiles_of(
    heads: int,
    kv_heads: int,
    head_dim: int,
    value_dim: int,
    *,
    degree: int,
    size: int,
    features: bool,
    backward: bool,
) -> Tiles:
    """Tiles for rows of `degree` edges, a power of two, and numbers of `size` bytes.

    features: Whether edges have some.
    """
    head_block, value_block = power_of_2(head_dim), power_of_2(value_dim)
    group, dim = power_of_2(heads // kv_heads), max(head_block, value_block)
    kv_tile = min(power_of_2(kv_heads), max(WIDEST // (group * dim), 1))
    width = kv_tile * group * dim
    warps = min(max(width // WIDE_PER_WARP, 1), MOST_WARPS)
    uneven = any(dim * size % 16 for dim in (head_dim, value_dim))
    numbers = 32 * warps * BYTES_PER_THREAD[backward] // size // (2 if uneven or features else 1)
    edges = max(min(numbers // width, MOST_EDGES, degree), 1)
    return Tiles(
        -(-kv_heads // kv_tile), kv_tile, group, head_block, value_block, edges, num_warps=warps
    )


# --- the three operations -------------------------------------------------------------------------


def forward_of(call: Call) -> tuple[Tensor, Tensor]:
    side, query = Launch(call), call.query
    batch, heads, wide = call.batch, query.shape[-2], side.wide
    out = query.new_empty((*query.shape[:-1], call.value.shape[-1]))
    # Without softmax, the maximum counts as 0 and the sum as 1.
    stats = query.new_empty((*query.shape[:-2], 2, heads), dtype=wide)
    if call.normalizer != "softmax":
        stats[..., 0, :], stats[..., 1, :] = 0, 1
    parts = {
        "out_parts": side.parts(call.rows, heads, call.value.shape[-1]),
        "stats_parts": side.parts(call.rows, 2, heads),
    }
    given = {"sink": call.sink, "out": out, "stats": stats, **parts}
    side.over(call.rows, _jit().forward, backward=False, **given)
    if call.normalizer != "softmax":
        side.merge(call.rows, out, parts["out_parts"])
    elif hubs := len(call.rows.hub):
        names = ("HEADS", "KV_HEADS", "VALUE_DIM", "ACC")
        tiles = side.tiles(call.rows, backward=True)._asdict()
        del tiles["HEAD_BLOCK"]
        side.launch(
            _jit().merge_softmax,
            hubs * tiles["TILES"] * batch.numel(),
            **{name: side.common[name] for name in names},
            **tiles,
            **side.merged(call.rows),
            out=out,
            stats=stats,
            **parts,
        )
    return out, stats


def weights_of(call: Call, stats: Tensor) -> Tensor:
    side = Launch(call)
    size = (*call.batch, len(call.rows.index), call.query.shape[-2])
    out = call.query.new_empty(size, dtype=side.wide)
    side.over(call.rows, _jit().weights, backward=False, stats=stats, out=out)
    return out


def backward_of(
    call: Call,
    grad: Tensor,
    result: Tensor,
    stats: Tensor,
    needed: Sequence[bool],
    of_weights: bool,
) -> list[Tensor | None]:
    side, query, key, value = Launch(call), call.query, call.key, call.value
    heads, kv_heads, head_dim = query.shape[-2], key.shape[-2], query.shape[-1]
    delta = query.new_empty(query.shape[:-1], dtype=side.wide)
    given: dict[str, Any] = {"stats": stats, "delta": delta, "grad_weights": None}
    if of_weights:
        given["grad_weights"] = grad.contiguous()
        if call.normalizer == "softmax":
            side.weigh(result.contiguous(), given["grad_weights"], delta)
    nodes = of_nodes("grad_out", None if of_weights else grad)

    grads: list[Tensor | None] = [
        torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (query, key, value)
    ]
    for x, dims, need in zip((call.bias, call.edge_key, call.edge_value), (2, 3, 3), needed[3:]):
        if x is None or not need:
            grads.append(None)
        else:
            grads.append(x.new_empty((*call.batch, *x.shape[-dims:])))
    weight_parts = None
    if needed[7]:
        programs = query.shape[-3] + len(call.rows.part)
        weight_parts = query.new_zeros(
            call.batch.numel(), programs, heads, head_dim, dtype=side.wide
        )
    query_parts = side.parts(call.rows, heads, head_dim)
    side.over(
        call.rows,
        _jit().by_destination,
        backward=True,
        out=result,
        grad_query=grads[0],
        query_parts=query_parts,
        grad_bias=grads[3],
        grad_edge_key=grads[4],
        grad_edge_value=grads[5],
        weight_parts=weight_parts,
        **given,
        **nodes,
    )
    side.merge(call.rows, grads[0], query_parts)
    if needed[1] or needed[2]:
        key_parts = side.parts(call.columns, kv_heads, head_dim)
        value_parts = side.parts(call.columns, kv_heads, value.shape[-1])
        side.over(
            call.columns,
            _jit().by_source,
            backward=True,
            num_dst=query.shape[-3],
            dst_ptr=call.rows.ptr,
            dst_index=call.rows.index,
            grad_key=grads[1],
            key_parts=key_parts,
            grad_value=grads[2],
            value_parts=value_parts,
            **given,
            **nodes,
        )
        side.merge(call.columns, grads[1], key_parts)
        side.merge(call.columns, grads[2], value_parts)
    for at, x in ((3, call.bias), (4, call.edge_key), (5, call.edge_value)):
        if x is not None and (x_grad := grads[at]) is not None:
            grads[at] = x_grad.sum_to_size(x.shape).to(x.dtype)
    grads.append(None)  # it takes no `edge`
    grads.append(None if weight_parts is None else weight_parts.sum((0, 1)).to(query.dtype))
    grads.append(sink_gradient(call, stats, delta) if needed[8] else None)
    return grads


class Launch:
    """The arguments that the functions of `triton_jit.py` have in common, and how they are run."""

    def __init__(self, call: Call) -> None:
        import triton.language as tl

        query, key, value = call.query, call.key, call.value
        self.call = call
        self.wide = torch.promote_types(query.dtype, torch.float32)
        self.common: dict[str, Any] = {
            **of_nodes("query", query),
            **of_nodes("key", key),
            **of_nodes("value", value),
            **of_edges("bias", call.bias, 2, call.batch),
            **of_edges("edge_key", call.edge_key, 3, call.batch),
            **of_edges("edge_value", call.edge_value, 3, call.batch),
            "weight": None if call.weight is None else call.weight.contiguous(),
            "seed": call.seed,
            "longest": rows.LONGEST,
            "scale": call.scale,
            "slope": call.slope,
            "softcap": call.softcap,
            "drop": int(call.dropout * 2**32),
            "keep": 1 / (1 - call.dropout),
            "SCORE": call.score,
            "CAPPED": call.softcap != 0,
            "NORMALIZER": call.normalizer,
            "LISTED": call.listed,
            "ACC": tl.float64 if self.wide == torch.float64 else tl.float32,
            "HEADS": query.shape[-2],
            "KV_HEADS": key.shape[-2],
            "HEAD_DIM": query.shape[-1],
            "VALUE_DIM": value.shape[-1],
        }

    def tiles(self, edges: Edges, *, backward: bool) -> Tiles:
        names = ("HEADS", "KV_HEADS", "HEAD_DIM", "VALUE_DIM")
        # Of intervals, the number of edges is known to the GPU alone.
        listed, nodes = self.call.listed, max(len(edges.ptr) - 1, 1)
        degree = power_of_2(max(len(edges.index) // nodes, 4)) if listed else MOST_EDGES
        return tiles_of(
            *(self.common[name] for name in names),
            degree=min(degree, MOST_EDGES),
            size=self.call.query.element_size(),
            features=self.call.edge_key is not None or self.call.edge_value is not None,
            backward=backward,
        )

    def parts(self, edges: Edges, *shape: int) -> Tensor:
        """Room for what the parts of long rows write."""
        sizes = (self.call.batch.numel(), len(edges.part), *shape)
        return self.call.query.new_empty(sizes, dtype=self.wide)

    def over(self, edges: Edges, function: Any, *, backward: bool, **arguments: Any) -> None:
        """Run a function over all rows and parts of rows."""
        num_rows, tiles = len(edges.ptr) - 1, self.tiles(edges, backward=backward)
        programs = (num_rows + len(edges.part)) * tiles.TILES * self.call.batch.numel()
        self.launch(
            function,
            programs,
            ptr=edges.ptr,
            index=edges.index,
            edge=edges.edge if len(edges.edge) else None,
            part=edges.part,
            num_rows=num_rows,
            num_parts=len(edges.part),
            num_edges=len(edges.index),
            **self.common,
            **tiles._asdict(),
            **arguments,
        )

    def launch(self, function: Any, programs: int, **arguments: Any) -> None:
        with on_device_of(self.call.query):
            launch(function, programs, enable_fp_fusion=True, **arguments)

    def merged(self, edges: Edges) -> dict[str, Any]:
        return {
            "hub": edges.hub,
            "num_rows": len(edges.ptr) - 1,
            "num_parts": len(edges.part),
            "num_hubs": len(edges.hub),
        }

    def merge(self, edges: Edges, out: Tensor | None, parts: Tensor) -> None:
        """Add up the parts of long rows."""
        width = parts.shape[-2:].numel()
        if not len(edges.hub) or not width:
            return
        block = min(power_of_2(width), 256)
        tiles = -(-width // block)
        self.launch(
            _jit().merge_sum,
            len(edges.hub) * tiles * self.call.batch.numel(),
            out=out,
            parts=parts,
            WIDTH=width,
            TILES=tiles,
            BLOCK=block,
            EDGES=8,
            num_warps=2,
            **self.merged(edges),
        )

    def weigh(self, weights: Tensor, grad_weights: Tensor, delta: Tensor) -> None:
        edges, heads = self.call.rows, self.common["HEADS"]
        tile = min(power_of_2(heads), 64)
        tiles, num_rows = -(-heads // tile), len(edges.ptr) - 1
        self.launch(
            _jit().weigh_gradients,
            num_rows * tiles * self.call.batch.numel(),
            weights=weights,
            grad_weights=grad_weights,
            delta=delta,
            ptr=edges.ptr,
            edge=edges.edge if len(edges.edge) else None,
            num_rows=num_rows,
            num_edges=len(edges.index),
            ACC=self.common["ACC"],
            HEADS=heads,
            TILES=tiles,
            TILE=tile,
            EDGES=256 // tile,
            num_warps=1,
        )


BACKENDS["triton"] = Backend(
    forward_of,
    weights_of,
    backward_of,
    half=True,
    joins=False,
    edges=Edges,
    lower=partial(lower, shares=(cut_rows, cut_columns)),
)

KERNEL = Kernel(
    name="triton",
    why="edges are gathered, weighed and summed in one pass each way, and nothing of them is kept",
    unsupported=unsupported,
    run=partial(attend, backend="triton"),
    weights=partial(attend, backend="triton"),
    declines=declines,
    expected=expected,
)
