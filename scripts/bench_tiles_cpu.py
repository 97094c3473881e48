"""Graphs whose rows share sources, on a CPU: ours beside SDPA over gathered chunks of queries."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from bench_sparse import attend
from timing import Call, Row, compare, leaves
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import graphattn as ga

FLEX = "FlexAttention, compiled"
Pair = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Case(NamedTuple):
    """A graph and its peers.

    pair: The graph as a mask of FlexAttention, which has no backward on a CPU.
    bound: For some peers, the ratio that ours has to reach.
    """

    name: str
    graph: ga.Graph
    shape: tuple[int, int]  # heads, head_dim
    peers: dict[str, Call]
    pair: Pair
    bound: dict[str, float]


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
    """Blocks of queries with the blocks of keys that each attends to, gathered as whole rows."""
    count, each = picked.shape

    def gather(x: Tensor) -> Tensor:
        rows = x.reshape(count, -1).index_select(0, picked.flatten())
        return rows.view(count, each * size, *x.shape[1:])

    return chunked(lambda x: x.unflatten(0, (count, size)), gather, lambda x: x.flatten(0, 1))


def flex(case: Case) -> Call:
    """FlexAttention, its mask of blocks made before."""
    nodes = case.graph.num_dst
    near = create_block_mask(case.pair, None, None, nodes, nodes, device="cpu")
    compiled = torch.compile(flex_attention)

    def call(*inputs: Tensor) -> Tensor:
        q, k, v = (x.detach().transpose(0, 1)[None] for x in inputs)
        return compiled(q, k, v, block_mask=near)[0].transpose(0, 1)

    return call


def window(nodes: int, radius: int, bound: dict[str, float]) -> Case:
    graph, sizes = ga.sliding_window(nodes, radius), (64, 128)
    peers = {f"SDPA, chunks of {size}": chunks_of_window(graph, radius, size) for size in sizes}
    return Case(
        f"sliding_window({nodes}, {radius})",
        graph,
        (4, 64),
        peers,
        lambda b, h, dst, src: (dst - src).abs() <= radius,
        bound | dict.fromkeys(peers, bound["SDPA"]),
    )


def grid(side: int, radius: int) -> Case:
    graph = ga.neighborhood((side, side), radius)

    def attends(b: Tensor, h: Tensor, dst: Tensor, src: Tensor) -> Tensor:
        row, column = (x.clamp(radius, side - 1 - radius) for x in (dst // side, dst % side))
        return ((src // side - row).abs() <= radius) & ((src % side - column).abs() <= radius)

    peers = {"SDPA, tiles of 8 x 8": tiles_of_grid(graph, side, radius, 8)}
    return Case(f"neighborhood(({side}, {side}), {radius})", graph, (4, 32), peers, attends, {})


def blocks(nodes: int, size: int, each: int, bound: float) -> Case:
    """Blocks of queries that attend to some blocks of keys each, drawn at random."""
    count, peer = nodes // size, "SDPA, gathered blocks"
    drawn = torch.rand(count, count, generator=torch.Generator().manual_seed(0))
    picked = drawn.argsort(1)[:, :each]
    layout = torch.zeros(count, count, dtype=torch.bool).scatter_(1, picked, True)
    dst, src = layout.repeat_interleave(size, 0).repeat_interleave(size, 1).nonzero().T
    return Case(
        f"{nodes:,} nodes, blocks of {size} attend to {each} blocks",
        ga.from_edges(torch.stack([src, dst]), nodes),
        (4, 64),
        {peer: chunks_of_blocks(picked, size)},
        lambda b, h, dst, src: layout[dst // size, src // size],
        {peer: bound},
    )


def suite(device: torch.device, rounds: int) -> list[Row]:
    """Every case; what is compiled comes last, as it does in `bench_sparse.suite`."""
    rows, few = [], max(3, rounds // 3)
    cases = [
        window(16_384, 64, {"SDPA": 0.6, FLEX: 1 / 3}),
        window(8_192, 256, {"SDPA": 0.9}),
        grid(64, 6),
        blocks(8_192, 128, 4, 0.8),
    ]

    def timed(case: Case, peers: dict[str, Call], *directions: str) -> list[Row]:
        heads, dim = case.shape
        inputs = leaves(case.graph.num_dst, heads, dim, device=torch.device("cpu"))
        return compare(
            f"{case.name}, {heads} x {dim}",
            inputs,
            attend(case.graph),
            peers,
            bound=case.bound,
            rounds=few,
            directions=directions,
        )

    for case in cases:
        rows += timed(case, case.peers, "forward", "forward + backward")
    for case in cases:
        rows += timed(case, {FLEX: flex(case)}, "forward")
    return rows
