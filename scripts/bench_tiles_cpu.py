"""Graphs whose rows share sources, on a CPU: ours beside SDPA over gathered chunks of queries."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from bench_sparse import attend, gather_scatter
from timing import Call, Row, compare, leaves
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import graphattn as ga


class Case(NamedTuple):
    """A graph and its peers.

    bound: For some peers, the ratio that ours has to reach.
    forward_only: Peers that have no backward on a CPU, or are too slow for it.
    """

    graph: ga.Graph
    heads: int
    dim: int
    peers: dict[str, Call]
    bound: dict[str, float]
    forward_only: dict[str, Call]


def chunked(
    split: Callable[[Tensor], Tensor],
    gather: Callable[[Tensor], Tensor],
    join: Callable[[Tensor], Tensor],
    attends: Tensor | None = None,
) -> Call:
    """One call of SDPA for all chunks of queries.

    Args:
        split: From (nodes, heads, dim) to chunks of queries (chunks, queries, heads, dim).
        gather: The same to what each chunk attends to (chunks, keys, heads, dim).
        join: The inverse of `split`.
        attends: bool (chunks, queries, keys), or None if all queries attend to all keys.
    """
    mask = None
    if attends is not None:  # a mask of bools is converted in every call
        mask = torch.zeros(attends.shape).masked_fill_(~attends, -math.inf)[:, None]

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (split(q), gather(k), gather(v)))
        return join(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2))

    return call


def chunks_of_window(graph: ga.Graph, radius: int, size: int) -> Call:
    """Chunks of a sliding window; keys are views into padded nodes, so that nothing is copied."""
    nodes, span = graph.num_dst, size + 2 * radius
    dst = torch.arange(nodes).view(-1, size)[:, :, None]
    src = torch.arange(-radius, nodes + radius).unfold(0, span, size)[:, None]
    attends = graph.has_edge(dst, src) & (src >= 0) & (src < nodes)

    def gather(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, radius, radius)).unfold(0, span, size).movedim(-1, 1)

    return chunked(lambda x: x.unflatten(0, (-1, size)), gather, lambda x: x.flatten(0, 1), attends)


def tiles_of_grid(graph: ga.Graph, side: int, radius: int, size: int) -> Call:
    """Tiles of size x size cells, each with the region of the grid that its cells attend to."""
    cells, span = torch.arange(side**2).view(side, side), size + 2 * radius
    queries = cells.unfold(0, size, size).unfold(1, size, size).reshape(-1, size**2)
    first = (torch.arange(0, side, size) - radius).clamp(0, side - span)
    along = first[:, None] + torch.arange(span)
    keys = cells[along[:, None, :, None], along[None, :, None, :]].reshape(-1, span**2)
    order, inverse = queries.flatten(), queries.flatten().argsort()
    return chunked(
        lambda x: x.index_select(0, order).unflatten(0, queries.shape),
        lambda x: x.index_select(0, keys.flatten()).unflatten(0, keys.shape),
        lambda x: x.flatten(0, 1).index_select(0, inverse),
        graph.has_edge(queries[:, :, None], keys[:, None]),
    )


def chunks_of_blocks(picked: Tensor, size: int) -> Call:
    """Blocks of queries with the blocks of keys that each attends to, whole rows of which are read."""
    count, each = picked.shape

    def gather(x: Tensor) -> Tensor:
        rows = x.reshape(count, -1).index_select(0, picked.flatten())
        return rows.view(count, each * size, *x.shape[1:])

    return chunked(lambda x: x.unflatten(0, (count, size)), gather, lambda x: x.flatten(0, 1))


def heads_first(call: Callable[..., Tensor]) -> Call:
    """A call over (1, heads, nodes, dim) as one over (nodes, heads, dim)."""
    return lambda *x: call(*(y.transpose(0, 1)[None] for y in x))[0].transpose(0, 1)


def flex(graph: ga.Graph) -> Call:
    """Compiled FlexAttention, its mask made before."""

    def attends(b: Tensor, h: Tensor, dst: Tensor, src: Tensor) -> Tensor:
        return graph.has_edge(dst, src)

    near = create_block_mask(attends, None, None, graph.num_dst, graph.num_src, device="cpu")
    return heads_first(partial(torch.compile(flex_attention), block_mask=near))


def masked(graph: ga.Graph) -> Call:
    return heads_first(partial(F.scaled_dot_product_attention, attn_mask=graph.mask()))


def window(nodes: int, radius: int, bound: float) -> Case:
    graph = ga.sliding_window(nodes, radius)
    peers = {
        f"SDPA, chunks of {size}": chunks_of_window(graph, radius, size) for size in (64, 128, 256)
    }
    forward_only = {"FlexAttention, compiled": flex(graph), "SDPA with a mask": masked(graph)}
    bounds = {**dict.fromkeys(peers, bound), "FlexAttention, compiled": 1 / 3}
    return Case(graph, 4, 64, peers, bounds, forward_only)


def grid(side: int, radius: int) -> Case:
    graph = ga.neighborhood((side, side), radius)
    peers = {
        f"SDPA, tiles of {size} x {size}": tiles_of_grid(graph, side, radius, size)
        for size in (8, 16)
    }
    peers["gather and scatter"] = gather_scatter(graph.edge_index, graph.num_dst)
    return Case(graph, 4, 32, peers, {}, {"FlexAttention, compiled": flex(graph)})


def blocks(nodes: int, size: int, each: int, bound: float) -> Case:
    """Blocks of queries that attend to some blocks of keys each, drawn at random."""
    count = nodes // size
    drawn = torch.rand(count, count, generator=torch.Generator().manual_seed(0))
    picked = drawn.argsort(1)[:, :each]
    layout = torch.zeros(count, count, dtype=torch.bool).scatter_(1, picked, True)
    dst, src = layout.repeat_interleave(size, 0).repeat_interleave(size, 1).nonzero().T
    graph, peer = ga.from_edges(torch.stack([src, dst]), nodes), "SDPA, gathered blocks"
    peers = {peer: chunks_of_blocks(picked, size)}
    return Case(graph, 4, 64, peers, {peer: bound}, {})


def cases() -> Iterator[tuple[str, Case]]:
    yield "sliding_window(16384, 64)", window(16_384, 64, 0.6)
    yield "sliding_window(8192, 256)", window(8_192, 256, 0.9)
    yield "neighborhood((64, 64), 6)", grid(64, 6)
    yield "8,192 nodes, blocks of 128 attend to 4 blocks", blocks(8_192, 128, 4, 0.8)


def suite(device: torch.device, rounds: int) -> list[Row]:
    """Every case; what is compiled comes last in each."""
    rows, few = [], max(3, rounds // 3)
    for name, case in cases():
        inputs = leaves(case.graph.num_dst, case.heads, case.dim, device=torch.device("cpu"))
        for peers, directions in (
            (case.peers, ("forward", "forward + backward")),
            (case.forward_only, ("forward",)),
        ):
            rows += compare(
                f"{name}, {case.heads} x {case.dim}",
                inputs,
                attend(case.graph),
                peers,
                bound=case.bound,
                rounds=few,
                directions=directions,
            )
    return rows
