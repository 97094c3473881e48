"""All that a kernel may know of a call, checked once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphattn.biases import Bias
from graphattn.features import Features, Projected
from graphattn.graphs import Graph
from graphattn.normalizers import Normalizer, Softmax
from graphattn.scores import Dot, Score


@dataclass(frozen=True)
class Problem:
    """One call of attention, its arguments checked against each other.

    query (*batch, num_dst, heads, head_dim), key (*batch, num_src, kv_heads, head_dim), value
    (*batch, num_src, kv_heads, value_dim): one dtype, one device, heads a multiple of kv_heads.
    bias: None, (…, E, heads) in edge order, or a function of pairs.
    edge_key, edge_value: None, or (…, E, kv_heads, head_dim or value_dim) in edge order, as tensors
        or projected.
    of_weights: Whether the weights of the edges are asked for, and not the output.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    graph: Graph
    score: Score
    bias: Bias | None
    normalizer: Normalizer
    scale: float
    dropout: float
    edge_key: Features | None = None
    edge_value: Features | None = None
    softcap: float | None = None
    of_weights: bool = False

    @property
    def heads(self) -> int:
        return self.query.shape[-2]

    @property
    def group_size(self) -> int:
        """Query heads that share one key head."""
        return self.query.shape[-2] // max(self.key.shape[-2], 1)

    @property
    def beyond_sdpa(self) -> str | None:
        """Why torch's fused attention can't compute this over any graph, if it can't."""
        normalizer = self.normalizer
        if not isinstance(self.score, Dot) or not isinstance(normalizer, Softmax):
            return "it computes scaled dot products and softmax only"
        if normalizer.sink is not None or self.softcap is not None:
            return "it knows neither a sink nor soft-capping"
        if self.edge_key is not None or self.edge_value is not None:
            return "it can't add features of edges to keys and values"
        return None


class Estimate(NamedTuple):
    """What is expected of a kernel on a GPU.

    ms: Milliseconds; forward, and backward where a gradient may be asked for.
    reuse: Edges for each source that it loads, if it loads them for several destinations.
    once: Milliseconds to prepare the graph before the first call.
    """

    ms: float
    reuse: float | None = None
    once: float = 0.0

    @property
    def cost(self) -> float:
        """What kernels are compared by: the time of a call, and its share of what is done once."""
        return self.ms + self.once / CALLS

    def __str__(self) -> str:
        words = f"expected {_short(self.ms)} ms"
        if self.reuse is None:
            return words
        return f"{words}, {_short(self.reuse)} edges per loaded source"


CALLS = 100  # that share what is done once for a graph


def _short(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


@dataclass(frozen=True)
class Kernel:
    """One way to compute attention.

    name: What users call it.
    why: What it is the right choice for, as `explain()` says it.
    unsupported: The reason why it can't compute a problem, or None if it can.
    run: Output of shape (*batch, num_dst, heads, value_dim).
    weights: Weights of all edges in edge order, (*batch, E, heads); None if it can't tell them.
    declines: The reason why another kernel would be faster, or None; asked unless the user
        names the kernel.
    expected: How long it will take on a GPU, of a problem that it may turn out not to support; None
        if it can't tell.
    level: The instructions that its loops were compiled for, or None.
    """

    name: str
    why: str
    unsupported: Callable[[Problem], str | None]
    run: Callable[[Problem], Tensor]
    weights: Callable[[Problem], Tensor] | None = None
    declines: Callable[[Problem], str | None] = lambda problem: None
    expected: Callable[[Problem], Estimate | None] = lambda problem: None
    level: Callable[[], str | None] = lambda: None


def autocast(query: Tensor, *others: Features | None) -> tuple[Any, ...]:
    """Tensors in the dtype of an autocast region around them; float64 stays, as in torch's own."""
    given, kind = (query, *others), query.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return given
    dtype = torch.get_autocast_dtype(kind)

    def cast(x: Tensor) -> Tensor:
        return x if x.dtype == torch.float64 else x.to(dtype)

    return tuple(
        None if x is None else x.map(cast) if isinstance(x, Projected) else cast(x) for x in given
    )


def check(problem: Problem) -> Problem:
    """The problem itself, if its parts fit together.

    Raises:
        TypeError: If something is not of the right kind or dtype.
        ValueError: If shapes, devices or numbers don't fit.
    """
    query, key, value, graph = problem.query, problem.key, problem.value, problem.graph
    if not isinstance(graph, Graph):
        raise TypeError(
            f"graph must be a graphattn graph, got {type(graph).__name__}; "
            "an edge_index becomes one with from_edges(edge_index, num_nodes)"
        )
    for name, tensor in (("key", key), ("value", value)):
        _check_alike(name, tensor, query)
    _check_shapes(problem)
    if graph.device != query.device:
        raise ValueError(
            f"graph {graph} is on {graph.device} but query is on {query.device}; "
            f'use graph.to("{query.device}"), once, before the call'
        )
    if problem.bias is not None:
        _check_bias(problem)
    for name, features, like in (
        ("edge_key", problem.edge_key, key),
        ("edge_value", problem.edge_value, value),
    ):
        if features is not None:
            _check_features(name, features, like, problem)
    if not isinstance(problem.scale, int | float) or not abs(problem.scale) < math.inf:
        raise ValueError(
            f"scale must be a finite float, got {problem.scale!r}; "
            "multiply query by a factor that is a tensor"
        )
    cap = problem.softcap
    if cap is not None and (not isinstance(cap, int | float) or not 0 < cap < math.inf):
        raise ValueError(f"softcap must be a positive finite float or None, got {cap!r}")
    if isinstance(problem.normalizer, Softmax):
        problem.normalizer.check(problem.heads, query.device)
    if not isinstance(problem.dropout, int | float) or not 0 <= problem.dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {problem.dropout!r}")
    return problem


def check_tensor(name: str, tensor: object, rows: str = "nodes") -> None:
    """Raise unless it is a dense floating tensor of at least three dimensions."""
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"{name} must be a tensor, got {type(tensor).__name__}; use torch.as_tensor"
        )
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be dense, got {tensor.layout}; use {name}.to_dense()")
    if not tensor.is_floating_point():
        raise TypeError(
            f"{name} must be of a floating dtype, got {tensor.dtype}; use {name}.float()"
        )
    if tensor.ndim < 3:
        raise ValueError(
            f"{name} must have shape (*batch, {rows}, heads, head_dim), got {tuple(tensor.shape)}; "
            f"{name}.unsqueeze(-2) has a single head"
        )


def _check_alike(name: str, tensor: Tensor, query: Tensor) -> None:
    if tensor.dtype != query.dtype:
        raise TypeError(
            f"query and {name} must have one dtype, got {query.dtype} and {tensor.dtype}; "
            f"use {name}.to({query.dtype})"
        )
    if tensor.device != query.device:
        raise ValueError(
            f"query and {name} must be on one device, got {query.device} and {tensor.device}; "
            f'use {name}.to("{query.device}")'
        )


def _check_shapes(problem: Problem) -> None:
    query, key, value, graph = problem.query, problem.key, problem.value, problem.graph
    if query.shape[-3] != graph.num_dst:
        remedy = f"build the graph with num_dst={query.shape[-3]}"
        if query.shape[-2] == graph.num_dst:
            remedy = "bring (batch, heads, nodes, head_dim) into order with transpose(-3, -2)"
        raise ValueError(
            f"graph has {graph.num_dst} destination nodes but query holds {query.shape[-3]} "
            f"(shape {tuple(query.shape)}, nodes third from the end); {remedy}"
        )
    if key.shape[-3] != graph.num_src:
        raise ValueError(
            f"graph has {graph.num_src} source nodes but key holds {key.shape[-3]} "
            f"(shape {tuple(key.shape)}, nodes third from the end); "
            f"build the graph with num_src={key.shape[-3]}"
        )
    if value.shape[:-1] != key.shape[:-1]:
        raise ValueError(
            "key and value must agree in all but the last dimension, got "
            f"{tuple(key.shape)} and {tuple(value.shape)}"
        )
    if key.shape[:-3] != query.shape[:-3]:
        raise ValueError(
            f"query and key must have the same leading batch dimensions, got "
            f"{tuple(query.shape[:-3])} and {tuple(key.shape[:-3])}; expand() the smaller"
        )
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(
            f"query and key must have one head_dim, got {query.shape[-1]} and {key.shape[-1]}"
        )
    if query.shape[-1] == 0 or query.shape[-2] == 0:
        raise ValueError(f"heads and head_dim must be positive, got query {tuple(query.shape)}")
    if key.shape[-2] == 0 or query.shape[-2] % key.shape[-2]:
        raise ValueError(
            f"the heads of query must be a multiple of those of key, got {query.shape[-2]} and "
            f"{key.shape[-2]}, each second from the end"
        )


def _check_bias(problem: Problem) -> None:
    bias, query = problem.bias, problem.query
    if not isinstance(bias, Tensor):
        if not callable(bias):
            raise TypeError(
                f"bias must be an (E, heads) tensor or a function (dst, src), got {bias!r}"
            )
        return
    edges = (problem.graph.num_edges, problem.heads)
    fits = bias.ndim >= 2 and bias.shape[-2] == edges[0] and bias.shape[-1] in (1, edges[1])
    if not fits or bias.ndim > query.ndim - 1:
        raise ValueError(
            f"bias must have shape {edges}, (E, heads) in edge order, optionally behind the batch "
            f"dimensions of query, got {tuple(bias.shape)}; a bias of all pairs is a function, "
            "lambda dst, src: table[dst, src]"
        )
    _check_batch("bias", bias.shape[:-2], query)
    if not bias.is_floating_point():
        raise TypeError(f"bias must be of a floating dtype, got {bias.dtype}; use bias.float()")
    if bias.device != query.device:
        raise ValueError(
            f'bias is on {bias.device} but query on {query.device}; use bias.to("{query.device}")'
        )


def _check_features(name: str, features: Features, like: Tensor, problem: Problem) -> None:
    if isinstance(features, Projected):
        _check_projected(name, features, like, problem)
        return
    _check_alike(name, features, problem.query)
    shape = (problem.graph.num_edges, *like.shape[-2:])
    if features.shape[-3:] != shape or features.ndim > like.ndim:
        raise ValueError(
            f"{name} must have shape {shape}, (E, kv_heads, dim) in edge order, "
            f"optionally behind the batch dimensions of query, got {tuple(features.shape)}"
        )
    _check_batch(name, features.shape[:-3], problem.query)


def _check_projected(name: str, given: Projected, like: Tensor, problem: Problem) -> None:
    features, weight = given.features, given.weight
    for part, tensor in (("features", features), ("weight", weight)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}.{part} must be a tensor, got {type(tensor).__name__}")
        _check_alike(f"{name}.{part}", tensor, problem.query)
    rows = problem.graph.num_edges
    if not 2 <= features.ndim < like.ndim or features.shape[-2] != rows:
        raise ValueError(
            f"{name}.features must have shape ({rows}, edge_dim), in edge order, optionally behind "
            f"the batch dimensions of query, got {tuple(features.shape)}"
        )
    if weight.shape != (*like.shape[-2:], features.shape[-1]):
        raise ValueError(
            f"{name}.weight must have shape {(*like.shape[-2:], features.shape[-1])}, "
            f"(kv_heads, dim, edge_dim), got {tuple(weight.shape)}"
        )
    _check_batch(f"{name}.features", features.shape[:-2], problem.query)


def _check_batch(name: str, batch: torch.Size, query: Tensor) -> None:
    try:
        fits = torch.broadcast_shapes(batch, query.shape[:-3]) == query.shape[:-3]
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"the batch dimensions {tuple(batch)} of {name} don't fit those of query, "
            f"{tuple(query.shape[:-3])}"
        )
