"""Scores and normalizers on a CPU: ours beside the same formula by gather and scatter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from bench_sparse import random_edges
from timing import Call, Row, compare, leaves
from torch import Tensor

import graphattn as ga
from graphattn import normalizers, scores

NODES, EDGES, HEADS, DIM = 20_000, 400_000, 4, 32

Map = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Of queries and keys of nodes to others."""

Logits = Callable[[Tensor, Tensor], Tensor]
"""Of gathered queries and keys (E, heads, dim): (E, heads)."""

Weights = Callable[[Tensor, Tensor], Tensor]
"""Of logits (E, heads) and destinations (E,): (E, heads)."""


def dot(q_i: Tensor, k_j: Tensor) -> Tensor:
    return (q_i * k_j).sum(-1) / math.sqrt(DIM)


def distance(q_i: Tensor, k_j: Tensor, *_: Tensor) -> Tensor:
    return -(q_i - k_j).square().sum(-1) / DIM


def softmax(logits: Tensor, dst: Tensor, sink: float = -math.inf) -> Tensor:
    row = dst[:, None].expand_as(logits)
    top = logits.detach().new_full((NODES, HEADS), sink)
    top = top.scatter_reduce(0, row, logits.detach(), "amax")
    p = (logits - top.index_select(0, dst)).exp()
    total = torch.zeros_like(top).index_add(0, dst, p) + (sink - top).exp()
    return p / total.index_select(0, dst).clamp(min=1e-16)


def capped(q_i: Tensor, k_j: Tensor) -> Tensor:
    return 5.0 * torch.tanh(dot(q_i, k_j) / 5.0)


def usual(index: Tensor, nodes: Map, logits: Logits, weights: Weights) -> Call:
    """The formula as it is usually written: what can be done to nodes is done before the gather."""
    src, dst = index

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        x, y = nodes(q, k)
        w = weights(logits(x.index_select(0, dst), y.index_select(0, src)), dst)
        return torch.zeros_like(q).index_add(0, dst, w[..., None] * v.index_select(0, src))

    return call


def as_they_are(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return q, k


def suite(device: torch.device, rounds: int) -> list[Row]:
    """Every kind that is fused in a way of its own; those with compiled peers once more, last."""
    index = random_edges(NODES, EDGES)
    graph = ga.from_edges(index, NODES)
    torch.manual_seed(1)
    matrix, vector = torch.randn(HEADS, DIM, DIM) / DIM, torch.randn(HEADS, DIM)

    def per_head(x: Tensor) -> Tensor:
        return torch.einsum("ehd,hdf->ehf", x, matrix)

    def ours(**options: Any) -> Call:
        return lambda q, k, v: ga.attention(q, k, v, graph, **options)

    def by_rows(normalizer: normalizers.Normalizer) -> Weights:
        return lambda logits, dst: csr.to_edge_order(
            normalizer(csr.from_edge_order(logits, dim=0), csr), dim=0
        )

    csr = graph.csr()
    concat_score = scores.Concat(matrix, matrix, vector)
    sink = normalizers.Softmax(1.0)
    cosine: tuple[Map, Logits] = (
        lambda q, k: (F.normalize(q, dim=-1), F.normalize(k, dim=-1)),
        lambda q_i, k_j: (q_i * k_j).sum(-1),
    )
    bilinear: tuple[Map, Logits] = (
        lambda q, k: (per_head(q), k),
        lambda q_i, k_j: (q_i * k_j).sum(-1),
    )
    concat: tuple[Map, Logits] = (
        lambda q, k: (per_head(q), per_head(k)),
        lambda q_i, k_j: ((q_i + k_j).tanh() * vector).sum(-1),
    )
    plain: tuple[Map, Logits] = (as_they_are, dot)
    cases: list[tuple[str, Call, Map, Logits, Weights]] = [
        ("cosine", ours(score="cosine"), *cosine, softmax),
        ("bilinear", ours(score=scores.Bilinear(matrix)), *bilinear, softmax),
        ("concat", ours(score=concat_score), *concat, softmax),
        ("a user's function", ours(score=distance), as_they_are, distance, softmax),
        ("soft-capping", ours(softcap=5.0), as_they_are, capped, softmax),
        ("a sink", ours(normalizer=sink), *plain, lambda s, dst: softmax(s, dst, 1.0)),
        ("sigmoid", ours(normalizer="sigmoid"), *plain, lambda s, _: s.sigmoid()),
        ("none", ours(normalizer="none"), *plain, lambda s, _: s),
    ]
    # Here both sides take the same function; ours is fused around it.
    same = [
        (name, ours(normalizer=name), *plain, by_rows(normalizers.NORMALIZERS[name]))
        for name in ("sparsemax", "entmax15", "argmax")
    ]
    rows = []
    for peer, some in (("gather and scatter", cases + same), ("the same, compiled", cases)):
        for name, mine, nodes, logits, weights in some:
            theirs = usual(index, nodes, logits, weights)
            torch.compiler.reset()  # of one function, few forms are compiled; then it runs as it is
            rows += compare(
                f"{name}, {NODES:,} nodes, {EDGES:,} edges, {HEADS} x {DIM}",
                leaves(NODES, HEADS, DIM, device=device),
                mine,
                {peer: torch.compile(theirs) if "compiled" in peer else theirs},
                bound={},
                rounds=max(3, rounds // 3),
            )
    return rows
