"""Fused sparse attention on the CPU: any graph, forward and backward at the speed of memory.

Destinations gather their sources over the CSR and keep a row's weights in the cache; backward goes
once over the CSR (queries) and once over its transpose (keys and values), and computes the weights
again. Nothing of the size of edges x head_dim is written, and nothing is added up atomically.
Graphs of intervals need no list of edges at all. The loops are in `cpu_jit.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from graphattn.biases import bias_of_edges
from graphattn.graphs import Graph
from graphattn.graphs.csr import compact_by_destination, compact_by_source
from graphattn.graphs.facts import constant_when_compiled
from graphattn.graphs.structure import Intervals, as_intervals, transposed_intervals
from graphattn.kernels.problem import Kernel, Problem
from graphattn.kernels.threads import run_on_threads
from graphattn.normalizers import softmax
from graphattn.scores import Additive, Dot

# Multiply-adds below which waking another thread takes longer than the work.
WORTH_A_THREAD = 300_000
# Dimensions whose loops are unrolled: each is compiled on its own, all others share one loop.
UNROLLED = (8, 16, 32, 64, 128)


def unsupported(problem: Problem) -> str | None:
    if problem.query.device.type != "cpu":
        return f"it runs on the CPU, and the tensors are on {problem.query.device}"
    if not isinstance(problem.score, Dot | Additive):
        return "it computes dot and additive scores, and this one is a function"
    if problem.normalizer is not softmax:
        return "it computes softmax, and this normalizer is a function"
    return numba_is_missing()


@constant_when_compiled
def numba_is_missing() -> str | None:
    """Why Numba can't be used, if so."""
    try:
        _jit()
    except Exception as error:  # an import may fail in any way when versions don't fit
        return f"Numba can't be used ({error!r}); pip install --upgrade numba repairs it"
    return None


def _jit() -> Any:
    from graphattn.kernels import cpu_jit

    return cpu_jit


def run(problem: Problem) -> Tensor:
    return _run(problem, problem.value, of_weights=False)


def weights(problem: Problem) -> Tensor:
    return _run(problem, problem.key[..., :0], of_weights=True)


def _run(problem: Problem, value: Tensor, *, of_weights: bool) -> Tensor:
    wide = torch.promote_types(problem.query.dtype, torch.float32)
    score, dropout = problem.score, problem.dropout
    weight, activation, slope = None, "dot", 0.0
    if isinstance(score, Additive):
        score.check(problem.query)
        weight, activation, slope = score.weight, score.activation, score.negative_slope
    given = (problem.query, problem.key, value, _bias(problem), problem.edge_key)
    given = (*given, problem.edge_value, weight)
    tensors = [None if x is None else x.to(wide) for x in given]
    per_edge = of_weights or any(x is not None for x in tensors[3:6])
    graph, listed = _edges(
        problem.graph,
        list_them=per_edge,
        in_order=per_edge or dropout > 0,
        transpose=torch.is_grad_enabled()
        and any(x is not None and x.requires_grad for x in tensors),
    )
    seed = torch.randint(2**63 - 1, (1,)) if dropout else None
    options = (activation, slope, problem.scale, dropout, of_weights)
    result, _ = attend(*tensors, seed, graph, listed, *options)
    return result.to(problem.query.dtype)


def _bias(problem: Problem) -> Tensor | None:
    """The bias as a tensor in edge order, (…, E, heads)."""
    bias, graph = problem.bias, problem.graph
    if bias is None:
        return None
    if not isinstance(bias, Tensor):
        bias = graph.csr().to_edge_order(bias_of_edges(bias, graph, problem.heads), dim=-2)
    return bias.expand(*bias.shape[:-1], problem.heads)


def _edges(
    graph: Graph, *, list_them: bool, in_order: bool, transpose: bool
) -> tuple[list[Tensor], bool]:
    """What `cpu_jit.Rows` holds of a graph and, if asked for, of its transpose; and whether edges
    are listed. The places in edge order are empty unless they are asked for.
    """
    nothing = torch.empty(0, dtype=torch.int32)
    if not list_them and (intervals := as_intervals(graph)) is not None:
        turned = transposed_intervals(graph)
        if turned is not None:
            both = (_pointer(intervals), _pointer(turned))
            return [part for ptr, first in both for part in (ptr, first, nothing)], False
    sides = [compact_by_destination(graph)]
    if transpose:
        sides.append(compact_by_source(graph))
    parts = []
    for ptr, index, edge in sides:
        parts += [ptr, index, edge if in_order and edge is not None else nothing]
    return parts, True


def _pointer(intervals: Intervals) -> tuple[Tensor, Tensor]:
    """Where the edges of each row would begin in a list, int64 (rows + 1,), and its first node."""
    degree = intervals.stop - intervals.start
    return torch.nn.functional.pad(degree.cumsum(0), (1, 0)), intervals.start.to(torch.int32)


# --- operators ------------------------------------------------------------------------------------


@torch.library.custom_op("graphattn::attend_cpu", mutates_args=(), device_types="cpu")
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    edge_key: Tensor | None,
    edge_value: Tensor | None,
    weight: Tensor | None,
    seed: Tensor | None,
    graph: Sequence[Tensor],
    listed: bool,
    score: str,
    slope: float,
    scale: float,
    dropout: float,
    of_weights: bool,
) -> tuple[Tensor, Tensor]:
    """Attention (*batch, num_dst, heads, value_dim), or the weights (*batch, E, heads).

    The second result is what backward wants to know of every row; see `cpu_jit.Gradients`.
    """
    jit = _jit()
    tensors = (query, key, value, bias, edge_key, edge_value, weight)
    call = _Call(tensors, seed, graph, listed, score, slope, scale, dropout)
    shape, rows = call.shape, call.rows
    out = query.new_empty((*query.shape[:-1], value.shape[-1]))
    stats = query.new_empty((*query.shape[:-2], 3, query.shape[-2]))
    slots = call.slots(rows)
    parts = [query.new_empty(slots * shape.heads * size) for size in (shape.value_dim, 3)]
    arrays = [_flat(x) for x in (out, stats, *parts)]
    call.launch(jit.forward(call.form), rows, rows, call.inputs, *arrays)
    if slots:
        jit.merge_softmax(shape, rows, *arrays)
    if of_weights:
        out = query.new_empty((*call.batch, shape.num_edges, shape.heads))
        kernel = jit.weights(call.form)
        call.launch(kernel, rows, rows, call.inputs, _flat(stats), _flat(out))
    return out, stats


@attend.register_fake
def _(query, key, value, bias, edge_key, edge_value, weight, seed, graph, *options):
    stats = query.new_empty((*query.shape[:-2], 3, query.shape[-2]))
    if options[-1]:
        return query.new_empty((*query.shape[:-3], graph[1].shape[0], query.shape[-2])), stats
    return query.new_empty((*query.shape[:-1], value.shape[-1])), stats


@torch.library.custom_op("graphattn::attend_cpu_backward", mutates_args=(), device_types="cpu")
def attend_backward(
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
    weight: Tensor | None,
    seed: Tensor | None,
    graph: Sequence[Tensor],
    listed: bool,
    score: str,
    slope: float,
    scale: float,
    dropout: float,
    of_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, bias, edge_key, edge_value, weight; empty if not needed."""
    jit = _jit()
    tensors = (query, key, value, bias, edge_key, edge_value, weight)
    call = _Call(tensors, seed, graph, listed, score, slope, scale, dropout)
    shape, rows, columns = call.shape, call.rows, call.columns
    # The loops write the first three and add to the others, which may be left out.
    shapes = call.gradient_shapes(tensors)
    results = [query.new_empty(shape) for shape in shapes[:3]]
    results += [
        query.new_zeros(shape) if need else query.new_empty(0)
        for shape, need in zip(shapes[3:], needed[3:])
    ]
    nothing = query.new_empty(0)
    given = (nothing, nothing, grad) if of_weights else (grad, result, nothing)
    grads = jit.Gradients(*(_flat(x.contiguous()) for x in (*given, stats.clone(), *results)))
    if of_weights:
        whole = _flat(result.contiguous())
        run_on_threads(jit.weigh_gradients, 2**30, _counter(), shape, rows, whole, grads)
    slots, size = call.slots(rows), shape.heads * shape.head_dim
    part = _flat(query.new_empty(slots * size))
    call.launch(jit.by_destination(call.form), rows, rows, call.inputs, grads, part)
    if slots:
        jit.merge_sum(shape.batch, rows, size, grads.query, part)
    if needed[1] or needed[2]:
        slots = call.slots(columns)
        sizes = [shape.kv_heads * size for size in (shape.head_dim, shape.value_dim)]
        parts = [_flat(query.new_empty(slots * size)) for size in sizes]
        kernel = jit.by_source(call.form)
        call.launch(kernel, columns, rows, columns, call.inputs, grads, *parts)
        for size, whole, part in zip(sizes, (grads.key, grads.value), parts):
            if slots:
                jit.merge_sum(shape.batch, columns, size, whole, part)
    for at in (3, 4, 5):  # a batch may have shared what belongs to the edges
        if needed[at]:
            results[at] = results[at].sum_to_size(tensors[at].shape)
    if needed[6]:
        results[6] = results[6].sum(0)
    return tuple(x if need else query.new_empty(0) for x, need in zip(results, needed))


@attend_backward.register_fake
def _(grad, result, stats, needed, *tensors_and_options):
    return tuple(
        torch.empty_like(x, memory_format=torch.contiguous_format) if need else grad.new_empty(0)
        for x, need in zip(tensors_and_options[:7], needed)
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    tensors, graph, ctx.options = inputs[:8], inputs[8], inputs[9:]
    ctx.save_for_backward(*output, *tensors, *graph)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    result, stats, *saved = ctx.saved_tensors
    needed = ctx.needs_input_grad[:7]
    grads = attend_backward(grad, result, stats, needed, *saved[:8], saved[8:], *ctx.options)
    asked = (x_grad if need else None for x_grad, need in zip(grads, needed))
    return *asked, None, [None for _ in saved[8:]], *(None for _ in ctx.options)


def _refuse(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError(
        'kernel "cpu" has no second derivative; name kernel="reference" to differentiate twice'
    )


attend.register_autograd(_backward, setup_context=_save)
attend_backward.register_autograd(_refuse)


# --- what the loops are given ---------------------------------------------------------------------


class _Call:
    """The arguments of an operator as the loops of `cpu_jit` take them."""

    def __init__(
        self,
        tensors: Sequence[Tensor | None],
        seed: Tensor | None,
        graph: Sequence[Tensor],
        listed: bool,
        score: str,
        slope: float,
        scale: float,
        dropout: float,
    ) -> None:
        jit = _jit()
        query, key, value, bias, edge_key, edge_value, weight = tensors
        assert query is not None and key is not None and value is not None
        self.batch = query.shape[:-3]
        self.shape = jit.Shape(
            batch=self.batch.numel(),
            num_dst=query.shape[-3],
            num_src=key.shape[-3],
            heads=query.shape[-2],
            kv_heads=key.shape[-2],
            head_dim=query.shape[-1],
            value_dim=value.shape[-1],
            num_edges=int(graph[0][-1]),
        )
        sides = [graph[at : at + 3] for at in range(0, len(graph), 3)]
        rows = [jit.Rows(*(_flat(x) for x in side)) for side in sides]
        self.rows, self.columns = rows[0], rows[-1]
        single = query.dtype == torch.float32
        dims = (query.shape[-1], value.shape[-1])
        unrolled = (dim if single and dim in UNROLLED else 0 for dim in dims)
        extras = (bias, edge_key, edge_value, seed)
        plain = all(x is None for x in extras)
        self.form = jit.Form(jit.SCORES.index(score), *unrolled, listed, plain)
        number = numpy.float32 if single else numpy.float64
        nothing = query.new_empty(0)
        self.inputs = jit.Inputs(
            *(part for x in (query, key, value) for part in _of_nodes(x)),
            *self._of_edges(nothing if bias is None else bias, 2),
            *self._of_edges(nothing if edge_key is None else edge_key, 3),
            *self._of_edges(nothing if edge_value is None else edge_value, 3),
            weight=_flat(nothing if weight is None else weight.contiguous()),
            slope=number(slope),
            scale=number(scale),
            zero=number(0),
            one=number(1),
            seed=numpy.uint64(0 if seed is None else seed.item()),
            drop=numpy.uint64(min(int(dropout * 2.0**64), 2**64 - 1)),
            keep=number(1 / (1 - dropout)),
        )

    def _of_edges(self, x: Tensor, dims: int) -> tuple[numpy.ndarray, int]:
        """Numbers per edge of so many dimensions, behind those of the batch or some of them; and
        the stride of the batch.
        """
        if x.shape[:-dims].numel() == 1:
            return _flat(x.contiguous()), 0
        x = x.expand(*self.batch, *x.shape[-dims:]).contiguous()
        return _flat(x), x.shape[-dims:].numel()

    def gradient_shapes(self, tensors: Sequence[Tensor | None]) -> list[tuple[int, ...]]:
        """Of the gradients as the loops make them: of what belongs to edges, for every item of the
        batch; of a weight, for every task.
        """
        shapes = [() if x is None else tuple(x.shape) for x in tensors]
        for at, dims in ((3, 2), (4, 3), (5, 3)):
            shapes[at] = (*self.batch, *shapes[at][-dims:])
        return [*shapes[:6], (self.shape.batch * self.tasks(self.rows), *shapes[6])]

    def tasks(self, rows: Any) -> int:
        """Tasks of each item of the batch."""
        return -(-(int(rows.ptr[-1]) + len(rows.ptr) - 1) // _jit().UNIT)

    def slots(self, rows: Any) -> int:
        """How many parts of rows there may be."""
        tasks = self.tasks(rows)
        return 2 * self.shape.batch * tasks if tasks > 1 else 0

    def launch(self, kernel: Callable[..., None], rows: Any, *args: Any) -> None:
        """Run a kernel over the tasks of some rows, on as many threads as are worth it."""
        shape = self.shape
        work = shape.batch * shape.num_edges * shape.heads * (shape.head_dim + shape.value_dim)
        threads = shape.batch * self.tasks(rows) if work > WORTH_A_THREAD else 1
        counter, size = _counter(), _jit().UNIT + _jit().PADDING

        def work_on_tasks() -> None:
            scratch = numpy.empty(size, self.inputs.query.dtype)
            kernel(counter, scratch, shape, *args)

        run_on_threads(work_on_tasks, threads)


def _counter() -> numpy.ndarray:
    """Of the tasks that were begun."""
    return numpy.zeros(1, numpy.int64)


def _of_nodes(x: Tensor) -> tuple[numpy.ndarray, tuple[int, int]]:
    """Numbers (*batch, nodes, heads, head_dim) from the first to the last in memory, and the
    strides of batch and node. The numbers of a node lie together; if not, they are copied.
    """
    x = x.detach()
    heads, dim = x.shape[-2:]
    together = (dim == 1 or x.stride(-1) == 1) and (heads == 1 or x.stride(-2) == dim)
    x = (x if together else x.contiguous()).reshape(x.shape[:-3].numel(), *x.shape[-3:])
    if x.numel() == 0:
        return _flat(x), (0, 0)
    batch, node = x.stride()[:2]
    extent = (x.shape[0] - 1) * batch + (x.shape[1] - 1) * node + heads * dim
    return x.as_strided((extent,), (1,)).numpy(), (batch, node)


def _flat(x: Tensor) -> numpy.ndarray:
    """A contiguous tensor as an array of one dimension."""
    return x.detach().view(-1).numpy()


KERNEL = Kernel(
    name="cpu",
    why="the graph is sparse; edges are gathered, weighed and summed in one pass each way",
    unsupported=unsupported,
    run=run,
    weights=weights,
)
