"""Attention over a graph: one function, whatever the graph, the score and the kernel."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from graphattn.biases import Bias
from graphattn.features import Features, Projected
from graphattn.graphs import Graph
from graphattn.kernels.problem import Problem, autocast, check, check_tensor
from graphattn.normalizers import Normalizer, NormalizerModule, as_normalizer
from graphattn.plan import KERNELS, Plan, choose, plan
from graphattn.scores import Dot, Score, ScoreModule, as_score, lowered


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    graph: Graph,
    *,
    score: str | Score | ScoreModule = "dot",
    bias: Bias | None = None,
    edge_key: Features | None = None,
    edge_value: Features | None = None,
    normalizer: str | Normalizer | NormalizerModule = "softmax",
    scale: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    kernel: str = "auto",
) -> Tensor:
    """Every destination takes the weighted sum of the values of its sources.

    `out_i = sum_j w_ij v_j` over the edges j -> i of the graph, with
    `w_ij = softmax_j(scale * <q_i, k_j> + b_ij)` (Vaswani et al. 2017, eq. 1, on a graph), or with
    another score and another normalizer.

    Args:
        query: (*batch, num_dst, heads, head_dim), of any floating dtype. The leading dimensions
            share the graph.
        key: (*batch, num_src, kv_heads, head_dim), of the same dtype and on the same device. heads
            is a multiple of kv_heads (grouped-query attention).
        value: (*batch, num_src, kv_heads, value_dim).
        graph: Who attends to whom.
        score: "dot", "cosine", "uniform", a score of `graphattn.scores`, a module of `graphattn.nn`
            that has one, or a function `(q_i, k_j, edge) -> (*batch, E, heads)` of gathered pairs.
        bias: Added to the scores: a tensor (E, heads) in the edge order of the graph, or a function
            `(dst, src) -> (pairs, heads)` of two int64 tensors (pairs,). -inf switches an edge off.
        edge_key: Features of the edges, added to the keys that travel along them (Shaw et al. 2018,
            eq. 4): (E, kv_heads, head_dim) in the edge order of the graph, of the dtype of query;
            or `Projected`, a linear map of smaller ones.
        edge_value: The same for the values (eq. 3), (E, kv_heads, value_dim).
        normalizer: "softmax", "sigmoid", "none", "mean", "sparsemax", "entmax15", "argmax", one of
            `graphattn.normalizers`, a module of `graphattn.nn` that has one, or a function
            `(logits, csr) -> weights`.
        scale: Factor of the scores; by default 1 / sqrt(head_dim) for "dot" and 1 for all others.
        softcap: Scaled scores are bent to stay below it, `softcap * tanh(scores / softcap)`, before
            the bias is added (Gemma 2, section 2).
        dropout: Probability with which a weight is dropped; applied whenever it is above 0.
        kernel: "auto", or the name of a kernel, which then runs or says why it can't; see
            `explain`.

    Returns:
        (*batch, num_dst, heads, value_dim) of the dtype of query. A destination that hears from
        nobody is 0, and passes no gradient.

    Raises:
        TypeError: If something is not of the right kind or dtype.
        ValueError: If shapes, devices or numbers don't fit, or the kernel can't compute it.

    Example:
        >>> import torch
        >>> from graphattn import attention, causal, sliding_window
        >>> q = k = v = torch.randn(2, 16, 4, 8)
        >>> attention(q, k, v, causal(16) & sliding_window(16, 3)).shape
        torch.Size([2, 16, 4, 8])
    """
    nodes, edges = (query, key, value), (bias, edge_key, edge_value)
    problem = _problem(nodes, graph, edges, score, normalizer, scale, softcap, dropout)
    return choose(problem, kernel).run(problem)


def attention_weights(
    query: Tensor,
    key: Tensor,
    graph: Graph,
    *,
    score: str | Score | ScoreModule = "dot",
    bias: Bias | None = None,
    edge_key: Features | None = None,
    normalizer: str | Normalizer | NormalizerModule = "softmax",
    scale: float | None = None,
    softcap: float | None = None,
    kernel: str = "auto",
) -> Tensor:
    """The weight of every edge, as `attention` computes it.

    Args:
        query: (*batch, num_dst, heads, head_dim).
        key: (*batch, num_src, kv_heads, head_dim).
        graph, score, bias, edge_key, normalizer, scale, softcap: As in `attention`.
        kernel: "auto", or the name of a kernel that can tell the weights.

    Returns:
        (*batch, E, heads) in the edge order of the graph; of "softmax", the weights of a
        destination's edges sum to 1, or are all 0.

    Raises:
        TypeError, ValueError: As in `attention`.

    Example:
        >>> import torch
        >>> from graphattn import attention_weights, complete
        >>> q = k = torch.zeros(3, 1, 4)
        >>> attention_weights(q, k, complete(3))[:, 0].tolist()  # doctest: +ELLIPSIS
        [0.333..., 0.333..., ...]
    """
    nodes, edges = (query, key, key), (bias, edge_key, None)
    problem = _problem(nodes, graph, edges, score, normalizer, scale, softcap, 0.0)
    problem = replace(problem, of_weights=True)
    able = [entry for entry in KERNELS if entry.weights is not None]
    chosen = choose(problem, kernel, able if kernel == "auto" else KERNELS)
    if chosen.weights is None:
        raise ValueError(f'kernel "{chosen.name}" does not compute weights; use kernel="auto"')
    return chosen.weights(problem)


def explain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    graph: Graph,
    *,
    score: str | Score | ScoreModule = "dot",
    bias: Bias | None = None,
    edge_key: Features | None = None,
    edge_value: Features | None = None,
    normalizer: str | Normalizer | NormalizerModule = "softmax",
    scale: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    kernel: str = "auto",
) -> Plan:
    """Which kernel `attention` would run with these arguments, and why not the others.

    Args:
        query, key, value, graph, score, bias, edge_key, edge_value, normalizer, scale, softcap,
            dropout, kernel: As in `attention`. Nothing is computed but what a score does to nodes.

    Returns:
        A `Plan`; printed, it has a line for every kernel.

    Raises:
        TypeError, ValueError: As in `attention`.

    Example:
        >>> import torch
        >>> from graphattn import causal, explain
        >>> q = k = v = torch.randn(16, 4, 8)
        >>> explain(q, k, v, causal(16)).kernel
        'dense'
    """
    nodes, edges = (query, key, value), (bias, edge_key, edge_value)
    problem = _problem(nodes, graph, edges, score, normalizer, scale, softcap, dropout)
    return plan(problem, kernel)


def _problem(
    nodes: tuple[Tensor, Tensor, Tensor],
    graph: Graph,
    edges: tuple[Bias | None, Features | None, Features | None],
    score: str | Score | ScoreModule,
    normalizer: str | Normalizer | NormalizerModule,
    scale: float | None,
    softcap: float | None,
    dropout: float,
) -> Problem:
    """nodes: query, key and value; edges: bias, edge_key and edge_value."""
    for name, tensor in zip(("query", "key", "value"), nodes):
        check_tensor(name, tensor)
    bias, *features = edges
    for name, tensor in zip(("edge_key", "edge_value"), features):
        if tensor is not None and not isinstance(tensor, Projected):
            check_tensor(name, tensor, "E")
    query, key, value, edge_key, edge_value = autocast(*nodes, *features)
    score = as_score(score)
    factor = _default_scale(score, query) if scale is None else scale
    query, key, score = lowered(score, query, key, edge_key)
    if isinstance(graph, Graph) and graph.device != query.device and not graph.stores_tensors:
        graph = graph.to(query.device)
    normal, per_edge = as_normalizer(normalizer), (edge_key, edge_value)
    return check(
        Problem(query, key, value, graph, score, bias, normal, factor, dropout, *per_edge, softcap)
    )


def _default_scale(score: Score, query: Tensor) -> float:
    """`1 / sqrt(head_dim)` for dot products (Vaswani et al. 2017, section 3.2.1), 1 for others."""
    return max(query.shape[-1], 1) ** -0.5 if isinstance(score, Dot) else 1.0
