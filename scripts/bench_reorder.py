"""Graphs whose numbers mean nothing, on a CPU: after `Graph.reordered`, beside before.

Nodes of a mesh, of a grid, and of a random graph are numbered at random. Both sides get their
values in their own order; the time that finding the order took is printed, and is no part of the
ratio.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from bench_sparse import random_edges
from timing import Row, against, agree, in_turn, leaves
from torch import Tensor

import graphattn as ga

METHODS = ("rcm", "metis", "degree")


def shuffled(graph: ga.Graph) -> ga.Graph:
    """A list of the edges, the nodes numbered at random."""
    order = torch.randperm(graph.num_dst, generator=torch.Generator().manual_seed(0))
    return ga.from_edges(graph.permuted(order).edge_index, graph.num_dst)


def suite(device: torch.device, rounds: int) -> list[Row]:
    cases = {
        "mesh of 48 x 48 x 48": shuffled(ga.neighborhood((48, 48, 48), 1)),
        "grid of 512 x 512": shuffled(ga.neighborhood((512, 512), 2)),
        "random": ga.from_edges(random_edges(100_000, 2_000_000), 100_000),
    }
    rows = []
    for name, graph in cases.items():
        graph = graph.to(device)
        inputs = leaves(graph.num_dst, 4, 32, device=device)
        grad = torch.randn_like(inputs[0])
        for method in METHODS:
            found, order, seconds = graph.reordered(method)
            case = f"{name}, {graph.num_edges:,} edges, 4 x 32, {method} in {seconds:.2f} s"
            brought = [x.detach()[order].requires_grad_() for x in inputs]
            both = {"ours": (found, brought, grad[order]), "as it came": (graph, inputs, grad)}
            mine, theirs = (_both(*side) for side in both.values())
            for one, other in zip(mine, theirs, strict=True):
                agree(one, other[order], case, "as it came")
            for direction, step in (("forward", _forward), ("forward + backward", _both)):
                runs: dict[str, Callable[[], object]] = {
                    who: functools.partial(step, *side) for who, side in both.items()
                }
                times = in_turn(f"{case}, {direction}", runs, device, rounds)
                rows += against(case, direction, times, {})
    return rows


def _both(graph: ga.Graph, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    q, k, v = inputs
    out = ga.attention(q, k, v, graph)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def _forward(graph: ga.Graph, inputs: list[Tensor], _: Tensor) -> Tensor:
    q, k, v = inputs
    with torch.no_grad():
        return ga.attention(q, k, v, graph)
