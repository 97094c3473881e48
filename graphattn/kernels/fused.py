"""What the fused sparse kernels share: one operator for PyTorch, forward and backward.

It is registered with torch.library, so that autograd and torch.compile know it; the kernel that was
chosen computes it, as its backend. What it is given of a graph are tensors, its `Edges`.

It knows two scores and three normalizers. A score that is a function of the user takes the gathered
pairs, and its logits are given to the operator; a normalizer that is one takes the logits that the
operator computes, (…, E, heads), and its weights are given back to it, to sum the values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from graphattn.biases import bias_of_edges
from graphattn.features import Projected, dense
from graphattn.graphs import Graph
from graphattn.graphs.csr import compact_both, compact_by_destination
from graphattn.graphs.memory import shortage
from graphattn.graphs.rows import Cut, interval_columns, interval_rows
from graphattn.graphs.structure import LISTED_EDGE_BYTES, is_symmetric, transposed_intervals
from graphattn.kernels.pairs import edge_logits, normalized, too_many
from graphattn.kernels.problem import Problem
from graphattn.normalizers import Normalizer, Softmax, identity, sigmoid
from graphattn.scores import Additive, Dot


class Edges(NamedTuple):
    """The edges, grouped by destination or by source.

    ptr: int64 (rows + 1,), where the edges of each row begin.
    index: int32 (E,), the node at the other end; of intervals (rows,), the first such node.
    edge: The place of each edge in edge order, (E,); empty where that is this order, or not asked.
    part, hub: The `Cut` of long rows, if the backend asks for it; else empty.
    """

    ptr: Tensor
    index: Tensor
    edge: Tensor
    part: Tensor
    hub: Tensor


class Call(NamedTuple):
    """The arguments of the operator, for a backend.

    All floating tensors have one dtype, but for bias and sink, which may be wider where the backend
    takes half types.

    query, key, value: As in `Problem`.
    bias (…, E, heads), edge_key (…, E, kv_heads, head_dim), edge_value (…, E, kv_heads, value_dim):
        in edge order, or None; behind the batch dimensions of query, or some that broadcast.
    edge: (…, E, edge_dim), the same, or None: numbers that join those of the key and those of the
        value that travel along an edge, for all heads; those of query and output are so much more.
    weight: Of an additive score, (heads, head_dim), or None.
    sink: Logits that nodes may attend to instead, (heads,), or None.
    seed: int64 (1,) if weights are dropped, else None.
    rows, columns: The edges by destination and by source, as the backend has them; `columns` only
        for backward.
    listed: Of `Edges`, whether they are listed, or given as intervals; these have none of the
        tensors in edge order.
    score: "dot", "tanh" or "leaky_relu", with its slope. Of head_dim 0, the bias is the logits.
    softcap: 0 if there is none.
    normalizer: "softmax", "sigmoid" or "none".
    """

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    edge_key: Tensor | None
    edge_value: Tensor | None
    edge: Tensor | None
    weight: Tensor | None
    sink: Tensor | None
    seed: Tensor | None
    rows: Any
    columns: Any
    listed: bool
    score: str
    slope: float
    scale: float
    softcap: float
    normalizer: str
    dropout: float

    @property
    def batch(self) -> torch.Size:
        return self.query.shape[:-3]


class Wanted(NamedTuple):
    """What a call reads of a graph.

    per_edge: Whether there are tensors in edge order, given or asked for.
    in_order: Whether edges must be told apart: their places in edge order are read.
    transpose: Whether backward will ask for the edges by source.
    """

    per_edge: bool
    in_order: bool
    transpose: bool


class Backend(NamedTuple):
    """How one kernel computes the operator.

    forward: `(call) -> out, stats`: out (*batch, num_dst, heads, value_dim); stats (*batch,
        num_dst, 2, heads): the maximum of the logits of a row and 1 / the sum of their
        exponentials, both 0 if there are none. (A log-sum-exp in one number loses the gradients
        of large logits.) Without softmax 0 and 1.
    weights: `(call, stats) -> weights`, (*batch, E, heads) in edge order, float32 at least; of the
        normalizer "none" the logits, -inf where an edge is switched off. None if it can't tell.
    backward: `(call, grad, result, stats, needed, of_weights) -> gradients` of the first nine
        fields of the call, where needed; of what belongs to edges, summed over the batch where it
        shares them. `grad` and `result` are those of out, or of the weights.
    half: Whether it takes half types; otherwise it is given them in float32.
    joins: Whether it takes `edge`.
    edges: A type of named tuples of tensors: of a graph, what the backend reads of one side.
    lower: `(problem, wanted) -> sides, listed`: the rows of the graph and, if wanted, its columns.
    """

    forward: Callable[[Call], tuple[Tensor, Tensor]]
    weights: Callable[[Call, Tensor], Tensor] | None
    backward: Callable[..., Sequence[Tensor | None]]
    half: bool
    joins: bool
    edges: type[tuple[Tensor, ...]]
    lower: Callable[[Problem, Wanted], tuple[Sequence[tuple[Tensor, ...]], bool]]


BACKENDS: dict[str, Backend] = {}
"""By the name of the kernel; each enters its own."""


@dataclass(frozen=True)
class Given:
    """The score of a problem whose logits are its bias: dot products of head_dim 0."""


def beyond_fused(problem: Problem) -> str | None:
    """Why no fused sparse kernel can compute this, if so."""
    graph, is_form = problem.graph, isinstance(problem.score, Dot | Additive)
    if not is_form:
        # Of each pair: query, key, their product, and four numbers.
        return too_many(problem, 3 * problem.query.shape[-1] + 4)
    per_edge = (problem.bias, problem.edge_key, problem.edge_value)
    listed = problem.of_weights or any(x is not None for x in per_edge)
    if mode_of(problem.normalizer) is None:
        return too_many(problem, 4)  # logits and weights, and as many again for the gradients
    if not listed and transposed_intervals(graph) is not None:
        return None
    needed = LISTED_EDGE_BYTES * graph.num_edges
    if (short := shortage(needed, graph.device)) is not None:
        return f"the list of edges takes {short}"
    return None


def is_fused(problem: Problem) -> bool:
    """Whether one call of the operator computes all of it."""
    return isinstance(problem.score, Dot | Additive) and mode_of(problem.normalizer) is not None


def mode_of(normalizer: Normalizer) -> str | None:
    """The name of a normalizer that the operator knows."""
    if isinstance(normalizer, Softmax):
        return "softmax"
    return "sigmoid" if normalizer is sigmoid else "none" if normalizer is identity else None


def attend(problem: Problem, backend: str) -> Tensor:
    """The output of attention, or the weights of its edges, by the backend of that name."""
    csr, dtype = problem.graph.csr, problem.query.dtype
    if not isinstance(problem.score, Dot | Additive):
        problem = _given(problem, csr().to_edge_order(edge_logits(problem), dim=-2))
    if mode_of(problem.normalizer) is not None:
        result = _operate(problem, backend)
        if problem.of_weights and problem.normalizer is identity:
            result = result.masked_fill(result == -torch.inf, 0.0)
        return result if result.dtype == dtype else result.to(dtype)
    if isinstance(problem.score, Given):
        logits: Any = problem.bias
    else:
        logits = _operate(replace(problem, normalizer=identity, of_weights=True), backend)
    w = csr().to_edge_order(normalized(problem, csr().from_edge_order(logits, dim=-2)), dim=-2)
    if problem.of_weights:
        return w.to(dtype)
    return _operate(replace(_given(problem, w), normalizer=identity), backend).to(dtype)


def _given(problem: Problem, logits: Tensor) -> Problem:
    """The problem whose logits are these, (*batch, E, heads) in edge order."""
    query, key = problem.query[..., :0], problem.key[..., :0]
    logits_only: dict[str, Any] = {"scale": 1.0, "softcap": None, "edge_key": None, "bias": logits}
    return replace(problem, query=query, key=key, score=Given(), **logits_only)


def _operate(problem: Problem, backend: str) -> Tensor:
    """The output, or the weights, of a problem whose score and normalizer the operator knows."""
    if BACKENDS[backend].joins and (edge := _common_edge(problem)) is not None:
        return _join(problem, edge, backend)
    return _call_operator(problem, problem.query, None, backend)


def _call_operator(problem: Problem, query: Tensor, edge: Tensor | None, backend: str) -> Tensor:
    """The result for a query that may be wider by the width of edge, as in `Call`."""
    score, dropout, of_weights = problem.score, problem.dropout, problem.of_weights
    dropout = 0.0 if of_weights else dropout
    weight, name, slope = None, "dot", 0.0
    if isinstance(score, Additive):
        score.check(problem.query)
        weight, name, slope = score.weight, score.activation, score.negative_slope
    value = problem.key[..., :0] if of_weights else problem.value
    features = (problem.edge_key, None if of_weights else problem.edge_value)
    per_edge = (None if x is None or edge is not None else dense(x) for x in features)
    given = (query, problem.key, value, _bias(problem), *per_edge, edge, weight, _sink(problem))
    wide, stay = _wide_dtype(problem, backend), MAY_BE_WIDER if BACKENDS[backend].half else ()
    tensors = [
        x if x is None or x.dtype == wide or i in stay else x.to(wide) for i, x in enumerate(given)
    ]
    of_edges = of_weights or any(x is not None for x in tensors[3:7])
    needs_grad = (x is not None and x.requires_grad for x in tensors)
    transpose = torch.is_grad_enabled() and any(needs_grad)
    sides, listed = BACKENDS[backend].lower(
        problem, Wanted(of_edges, of_edges or dropout > 0, transpose)
    )
    device = problem.query.device
    seed = torch.randint(2**63 - 1, (1,), device=device) if dropout else None
    numbers = (slope, float(problem.scale), float(problem.softcap or 0))
    options = (listed, name, *numbers, mode_of(problem.normalizer), float(dropout))
    if _is_traced(tensors):
        graph = [tensor for side in sides for tensor in side]
        return attend_op(*tensors, seed, graph, backend, *options, of_weights)[0]
    rest = (seed, sides[0], sides[-1], *options)
    return _Attend.apply(*tensors, rest, backend, of_weights)  # pyright: ignore


MAY_BE_WIDER = (3, 8)  # bias and sink, among the tensors of a call


def _common_edge(problem: Problem) -> Tensor | None:
    """Of what keys and values along edges are linear maps, if that is one tensor, and small."""
    given = (problem.edge_key, None if problem.of_weights else problem.edge_value)
    maps = [x for x in given if isinstance(x, Projected)]
    if not maps or any(isinstance(x, Tensor) for x in given):
        return None
    edge, small = maps[0].features, max(x.weight[..., 0].numel() for x in maps)
    if not isinstance(problem.score, Dot | Given) or any(x.features is not edge for x in maps):
        return None
    return edge if edge.shape[-1] <= small else None


def _join(problem: Problem, edge: Tensor, backend: str) -> Tensor:
    """`<q, k + W e> = <[q, W^T q], [k, e]>`, and `sum w (v + W e) = sum w v + W sum w e`."""
    wide, width = _wide_dtype(problem, backend), problem.value.shape[-1]
    group, query = problem.group_size, problem.query.to(wide)
    if isinstance(problem.edge_key, Projected):
        of_heads = problem.edge_key.weight.to(wide).repeat_interleave(group, dim=0)
        behind = torch.einsum("...hd,hde->...he", query, of_heads)
    else:
        behind = query.new_zeros((*query.shape[:-1], edge.shape[-1]))
    result = _call_operator(problem, torch.cat([query, behind], dim=-1), edge, backend)
    if problem.of_weights:
        return result
    out, of_edges = result[..., :width], result[..., width:]
    if isinstance(problem.edge_value, Projected):
        of_heads = problem.edge_value.weight.to(wide).repeat_interleave(group, dim=0)
        out = out + torch.einsum("...he,hve->...hv", of_edges, of_heads)
    return out


def _is_traced(tensors: Sequence[Tensor | None]) -> bool:
    """Whether somebody else has to see the operator: a compiler, a tracer, a tensor subclass.

    If not, an autograd function goes the same way in two thirds of the time on a small graph.
    """
    return (
        torch.compiler.is_compiling()
        or is_in_torch_dispatch_mode()
        or any(x is not None and type(x) not in (Tensor, Parameter) for x in tensors)
    )


def _wide_dtype(problem: Problem, backend: str) -> torch.dtype:
    """The dtype that a backend is given: half types only if it converts them as it loads them."""
    dtype = problem.query.dtype
    return dtype if BACKENDS[backend].half else torch.promote_types(dtype, torch.float32)


def _bias(problem: Problem) -> Tensor | None:
    """The bias as a tensor in edge order, (…, E, heads)."""
    bias, graph = problem.bias, problem.graph
    if bias is None:
        return None
    if not isinstance(bias, Tensor):
        bias = graph.csr().to_edge_order(bias_of_edges(bias, graph, problem.heads), dim=-2)
    return bias.expand(*bias.shape[:-1], problem.heads)


def _sink(problem: Problem) -> Tensor | None:
    if not isinstance(problem.normalizer, Softmax):
        return None
    wide = torch.promote_types(problem.query.dtype, torch.float32)
    sink = problem.normalizer.sink_of(problem.heads, wide, problem.query.device)
    return None if sink is None else sink.contiguous()


def sink_gradient(call: Call, stats: Tensor, delta: Tensor) -> Tensor | None:
    """What a sink takes away: minus its weight times delta, sum_j of weight times its gradient.

    stats (*batch, num_dst, 2, heads) and delta (*batch, num_dst, heads), as in `Backend`.
    """
    if call.sink is None:
        return None
    weight = torch.exp(call.sink.to(stats.dtype) - stats[..., 0, :]) * stats[..., 1, :]
    return -(weight * delta).flatten(0, -2).sum(0).to(call.sink.dtype)


Shares = tuple[Callable[[Graph], Cut], Callable[[Graph], Cut]]


def lower(
    problem: Problem, wanted: Wanted, shares: Shares | None = None
) -> tuple[list[Edges], bool]:
    """The `Edges` by destination and, if wanted, by source; whether they are listed.

    shares: The facts that tell how the rows and the columns of a graph are shared out.
    """
    graph, in_order = problem.graph, wanted.in_order
    listed = wanted.per_edge or interval_rows(graph) is None or interval_columns(graph) is None
    if not listed:
        sides = (interval_rows(graph), interval_columns(graph))
    elif wanted.transpose and not in_order and is_symmetric(graph):  # its own transpose
        sides = (compact_by_destination(graph),) * 2
        shares = None if shares is None else (shares[0], shares[0])
    else:
        sides = compact_both(graph) if wanted.transpose else (compact_by_destination(graph),)
    nothing = torch.empty(0, dtype=torch.int32, device=graph.device)
    found = []
    for side, cut_of in zip(sides, shares or (lambda _: Cut(nothing, nothing),) * 2):
        ptr, index, edge = side  # pyright: ignore[reportGeneralTypeIssues]
        places = edge if in_order and edge is not None else nothing
        found.append(Edges(ptr, index, places, *cut_of(graph)))
    return found, listed


# --- the operator ---------------------------------------------------------------------------------


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    edge_key: Tensor | None,
    edge_value: Tensor | None,
    edge: Tensor | None,
    weight: Tensor | None,
    sink: Tensor | None,
    seed: Tensor | None,
    graph: Sequence[Tensor],
    backend: str,
    listed: bool,
    score: str,
    slope: float,
    scale: float,
    softcap: float,
    normalizer: str,
    dropout: float,
    of_weights: bool,
) -> tuple[Tensor, Tensor]:
    """Output or weights, and the statistics of every row; see `Call` and `Backend`."""
    tensors = (query, key, value, bias, edge_key, edge_value, edge, weight, sink, seed)
    options = (listed, score, slope, scale, softcap, normalizer, dropout)
    return _run(_call(backend, tensors, graph, *options), backend, of_weights)


def _run(call: Call, backend: str, of_weights: bool) -> tuple[Tensor, Tensor]:
    forward, weights = BACKENDS[backend][:2]
    out, stats = forward(call)
    if not of_weights:
        return out, stats
    if weights is None:
        raise NotImplementedError(f"{backend} can't tell the weights of edges")
    return weights(call, stats), stats


attend_op = torch.library.custom_op("graphattn::attend", _attend, mutates_args=())


@attend_op.register_fake
def _(query, key, value, bias, edge_key, edge_value, edge, weight, sink, seed, graph, *options):
    wide = torch.promote_types(query.dtype, torch.float32)
    stats = query.new_empty((*query.shape[:-2], 2, query.shape[-2]), dtype=wide)
    if options[-1]:
        size = (*query.shape[:-3], graph[1].shape[0], query.shape[-2])
        return query.new_empty(size, dtype=wide), stats
    width = value.shape[-1] + (0 if edge is None else edge.shape[-1])
    return query.new_empty((*query.shape[:-1], width)), stats


def _attend_backward(
    grad: Tensor,
    result: Tensor,
    stats: Tensor,
    needed: Sequence[bool],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    edge_key: Tensor | None,
    edge_value: Tensor | None,
    edge: Tensor | None,
    weight: Tensor | None,
    sink: Tensor | None,
    seed: Tensor | None,
    graph: Sequence[Tensor],
    backend: str,
    listed: bool,
    score: str,
    slope: float,
    scale: float,
    softcap: float,
    normalizer: str,
    dropout: float,
    of_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the first nine tensors of a call; empty where not needed."""
    if len(graph) != 2 * _tensors_a_side(backend):
        raise ValueError("the operator was given no transpose of the graph, which backward needs")
    tensors = (query, key, value, bias, edge_key, edge_value, edge, weight, sink, seed)
    options = (listed, score, slope, scale, softcap, normalizer, dropout)
    call = _call(backend, tensors, graph, *options)
    grads = BACKENDS[backend].backward(call, grad, result, stats, needed, of_weights)
    return tuple(
        x_grad if need else query.new_empty(0)  # pyright: ignore[reportReturnType]
        for x_grad, need in zip(grads, needed)
    )


attend_backward_op = torch.library.custom_op(
    "graphattn::attend_backward", _attend_backward, mutates_args=()
)


@attend_backward_op.register_fake
def _(grad, result, stats, needed, *tensors_and_options):
    return tuple(
        torch.empty_like(x, memory_format=torch.contiguous_format) if need else grad.new_empty(0)
        for x, need in zip(tensors_and_options[:9], needed)
    )


def _call(
    backend: str, tensors: Sequence[Tensor | None], graph: Sequence[Tensor], *options: Any
) -> Call:
    edges, size = BACKENDS[backend].edges, _tensors_a_side(backend)
    rows, columns = edges(*graph[:size]), edges(*graph[-size:])
    return Call(*tensors, rows, columns, *options)  # pyright: ignore


def _tensors_a_side(backend: str) -> int:
    return len(BACKENDS[backend].edges._fields)  # pyright: ignore[reportAttributeAccessIssue]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    tensors, graph, ctx.options = inputs[:10], inputs[10], inputs[11:]
    ctx.save_for_backward(*output, *tensors, *graph)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    result, stats, *saved = ctx.saved_tensors
    tensors, graph, needed = saved[:10], saved[10:], ctx.needs_input_grad[:9]
    operator: Any = attend_backward_op
    grads = operator(grad, result, stats, needed, *tensors, graph, *ctx.options)
    asked = (x_grad if need else None for x_grad, need in zip(grads, needed))
    return *asked, None, [None for _ in graph], *(None for _ in ctx.options)


def _refuse(*_: Any) -> None:
    raise NotImplementedError(
        'fused kernels have no second derivative; name kernel="reference" to differentiate twice'
    )


attend_op.register_autograd(_backward, setup_context=_save)
attend_backward_op.register_autograd(_refuse)


class _Attend(torch.autograd.Function):
    """The operator, without PyTorch's dispatcher.

    It takes the first nine fields of a `Call`, the other ones as a tuple, and two options.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        *tensors, rest, backend, of_weights = args
        out, stats = _run(Call(*tensors, *rest), backend, of_weights)
        ctx.save_for_backward(out, stats, *tensors)
        ctx.rest, ctx.backend, ctx.of_weights = rest, backend, of_weights
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        out, stats, *tensors = ctx.saved_tensors
        call, backend, needed = Call(*tensors, *ctx.rest), ctx.backend, ctx.needs_input_grad[:9]
        if torch.is_grad_enabled() or _is_traced([grad]):  # the operator can't be differentiated
            graph, options = [*call.rows, *call.columns], (backend, *call[12:], ctx.of_weights)
            operator: Any = attend_backward_op
            grads = operator(grad, out, stats, needed, *call[:10], graph, *options)
        else:
            grads = BACKENDS[backend].backward(call, grad, out, stats, needed, ctx.of_weights)
        asked = (x_grad if need else None for x_grad, need in zip(grads, needed))
        return *asked, None, None, None
