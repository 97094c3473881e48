"""Fused sparse attention on the CPU: any graph, forward and backward.

Destinations gather their sources over the CSR and keep a row's weights in the cache; backward goes
once over the CSR (queries) and once over its transpose (keys and values), and computes the weights
again. Nothing of the size of edges x head_dim is written, and nothing is added up atomically.
Graphs of intervals need no list of edges at all. The loops are in `cpu_jit.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor

from graphattn.graphs.facts import constant_when_compiled
from graphattn.kernels.fused import (
    BACKENDS,
    Backend,
    Call,
    Edges,
    attend,
    beyond_fused,
    is_fused,
    lower,
    sink_gradient,
)
from graphattn.kernels.problem import Kernel, Problem
from graphattn.kernels.threads import run_on_threads

# Multiply-adds below which waking another thread takes longer than the work.
WORTH_A_THREAD = 300_000
# Weights from which on a score or a normalizer is computed between calls of the kernel: where both
# took the same time for most normalizers, forward and backward, on a window of 4 heads.
WORTH_SEVERAL_CALLS = 16_000
# Dimensions whose loops are unrolled: each is compiled on its own, all others share one loop.
UNROLLED = (8, 16, 32, 64, 128)

NOTHING = {
    torch.float32: numpy.empty(0, numpy.float32),
    torch.float64: numpy.empty(0, numpy.float64),
}


def unsupported(problem: Problem) -> str | None:
    if problem.query.device.type != "cpu":
        return f"it runs on the CPU, and the tensors are on {problem.query.device}"
    return beyond_fused(problem) or numba_is_missing()


def declines(problem: Problem) -> str | None:
    number = problem.graph.num_edges * problem.query.shape[:-3].numel() * problem.heads
    if is_fused(problem) or number >= WORTH_SEVERAL_CALLS:
        return None
    return f"{number:,} weights are so few that gathering takes less time than calls to and fro"


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


def forward_of(call: Call) -> tuple[Tensor, Tensor]:
    launch, query, value = Launch(call), call.query, call.value
    shape, rows = launch.shape, launch.rows
    out = query.new_empty((*query.shape[:-1], value.shape[-1] + shape.edge_dim))
    # Without softmax, the maximum counts as 0 and the sum as 1.
    stats = query.new_empty((*query.shape[:-2], 2, query.shape[-2]))
    if call.normalizer != "softmax":
        stats[..., 0, :], stats[..., 1, :] = 0, 1
    slots = launch.slots(rows)
    sizes = (slots * shape.heads * size for size in (out.shape[-1], 2))
    parts = [numpy.empty(size, launch.inputs.query.dtype) for size in sizes]
    arrays = [_flat(out), _flat(stats), *parts]
    launch(_jit().forward(launch.form), rows, rows, launch.inputs, *arrays)
    if slots and call.normalizer == "softmax":
        _jit().merge_softmax(shape, rows, *arrays)
    elif slots:
        _jit().merge_sum(shape.batch, rows, shape.heads * out.shape[-1], arrays[0], parts[0])
    return out, stats


def weights_of(call: Call, stats: Tensor) -> Tensor:
    launch = Launch(call)
    rows, shape = launch.rows, launch.shape
    out = call.query.new_empty((*call.batch, shape.num_edges, shape.heads))
    launch(_jit().weights(launch.form), rows, rows, launch.inputs, _flat(stats), _flat(out))
    return out


def backward_of(
    call: Call,
    grad: Tensor,
    result: Tensor,
    stats: Tensor,
    needed: Sequence[bool],
    of_weights: bool,
) -> list[Tensor | None]:
    jit, launch, query = _jit(), Launch(call), call.query
    shape, rows, columns = launch.shape, launch.rows, launch.columns
    # The loops write the first three and add to the others, which may be left out.
    shapes = launch.gradient_shapes()
    grads = [query.new_empty(size) for size in shapes[:3]]
    grads += [query.new_zeros(size) if need else None for size, need in zip(shapes[3:], needed[3:])]
    nothing = NOTHING[query.dtype]
    given = (None, None, grad) if of_weights else (grad, result, None)
    rows_known = query.new_empty((*query.shape[:-2], 3, query.shape[-2]))
    by_source = needed[1] or needed[2]
    hands_over = by_source and call.listed and (of_weights or has_own_tensors(call))
    handed = query.new_empty((*call.batch, shape.num_edges, 2, shape.heads)) if hands_over else None
    form = launch.form._replace(plain=launch.form.plain and not of_weights)
    arrays = jit.Gradients(
        *(
            nothing if x is None else _flat(x.contiguous())
            for x in (*given, stats, rows_known, handed, *grads)
        )
    )
    if of_weights and call.normalizer == "softmax":
        whole = _flat(result.contiguous())
        most = -(-shape.batch * shape.num_dst // jit.UNIT)
        run_on_threads(jit.weigh_gradients, most, _counter(), shape, rows, whole, arrays)
    slots, size = launch.slots(rows), shape.heads * query.shape[-1]
    part = numpy.empty(slots * size, nothing.dtype)
    launch(jit.by_destination(form), rows, rows, launch.inputs, arrays, part)
    if slots:
        jit.merge_sum(shape.batch, rows, size, arrays.query, part)
    if by_source:
        slots = launch.slots(columns)
        sizes = [shape.kv_heads * size for size in (shape.head_dim, shape.value_dim)]
        parts = [numpy.empty(slots * size, nothing.dtype) for size in sizes]
        kernel = jit.by_source(form)
        launch(kernel, columns, rows, columns, launch.inputs, arrays, *parts)
        for size, whole, part in zip(sizes, (arrays.key, arrays.value), parts):
            if slots:
                jit.merge_sum(shape.batch, columns, size, whole, part)
    of_nodes, of_edges, of_weight = grads[:3], grads[3:7], grads[7]
    shared = (call.bias, call.edge_key, call.edge_value, call.edge)
    of_edges = (
        None if x_grad is None or x is None else x_grad.sum_to_size(x.shape)
        for x_grad, x in zip(of_edges, shared)
    )
    of_sink = sink_gradient(call, stats, rows_known[..., 2, :]) if needed[8] else None
    return [*of_nodes, *of_edges, None if of_weight is None else of_weight.sum(0), of_sink]


def has_own_tensors(call: Call) -> bool:
    """Whether edges have numbers of their own, which a pass by source finds in no order."""
    return any(
        x is not None for x in (call.bias, call.edge_key, call.edge_value, call.edge, call.seed)
    )


class Launch:
    """The arguments of a call as the loops of `cpu_jit` take them; calling it runs a loop."""

    def __init__(self, call: Call) -> None:
        jit, query, key, value = _jit(), call.query, call.key, call.value
        self.call = call
        self.shape = jit.Shape(
            batch=call.batch.numel(),
            num_dst=query.shape[-3],
            num_src=key.shape[-3],
            heads=query.shape[-2],
            kv_heads=key.shape[-2],
            head_dim=key.shape[-1],
            value_dim=value.shape[-1],
            edge_dim=0 if call.edge is None else call.edge.shape[-1],
            num_edges=int(call.rows.ptr[-1]),
        )
        self.rows, self.columns = (_of_rows(edges) for edges in (call.rows, call.columns))
        single = query.dtype == torch.float32
        dims = (key.shape[-1], value.shape[-1], self.shape.edge_dim)
        unrolled = [dim if single and dim in UNROLLED else 0 for dim in dims]
        unrolled[2] = -1 if call.edge is None else unrolled[2]
        plain = not (has_own_tensors(call) or call.softcap)
        named = (jit.SCORES.index(call.score), jit.NORMALIZERS.index(call.normalizer))
        self.form = jit.Form(*named, *unrolled, call.listed, plain)
        number = numpy.float32 if single else numpy.float64
        nothing = NOTHING[query.dtype]
        of_heads = (
            nothing if x is None else _flat(x.contiguous()) for x in (call.weight, call.sink)
        )
        self.inputs = jit.Inputs(
            *(part for x in (query, key, value) for part in _of_nodes(x)),
            *self._of_edges(call.bias, 2),
            *self._of_edges(call.edge_key, 3),
            *self._of_edges(call.edge_value, 3),
            *self._of_edges(call.edge, 2),
            *of_heads,
            slope=number(call.slope),
            scale=number(call.scale),
            softcap=number(call.softcap),
            zero=number(0),
            one=number(1),
            seed=numpy.uint64(0 if call.seed is None else call.seed.item()),
            drop=numpy.uint64(min(int(call.dropout * 2.0**64), 2**64 - 1)),
            keep=number(1 / (1 - call.dropout)),
        )

    def _of_edges(self, x: Tensor | None, dims: int) -> tuple[numpy.ndarray, int]:
        """Numbers of so many dimensions per item of the batch, and the stride of the batch."""
        if x is None:
            return NOTHING[self.call.query.dtype], 0
        if x.shape[:-dims].numel() == 1:
            return _flat(x.contiguous()), 0
        x = x.expand(*self.call.batch, *x.shape[-dims:]).contiguous()
        return _flat(x), x.shape[-dims:].numel()

    def gradient_shapes(self) -> list[tuple[int, ...]]:
        """Of the gradients as the loops make them.

        Of what belongs to edges for every item of the batch, of a weight for every task.
        """
        call, tasks = self.call, self.shape.batch * self.tasks(self.rows)
        shapes: list[tuple[int, ...]] = [x.shape for x in (call.query, call.key, call.value)]
        of_edges = ((call.bias, 2), (call.edge_key, 3), (call.edge_value, 3), (call.edge, 2))
        for x, dims in of_edges:
            shapes.append(() if x is None else (*call.batch, *x.shape[-dims:]))
        return [*shapes, () if call.weight is None else (tasks, *call.weight.shape)]

    def tasks(self, rows: Any) -> int:
        """Tasks of each item of the batch."""
        return -(-(int(rows.ptr[-1]) + len(rows.ptr) - 1) // _jit().UNIT)

    def slots(self, rows: Any) -> int:
        """How many parts of rows there may be."""
        tasks = self.tasks(rows)
        return 2 * self.shape.batch * tasks if tasks > 1 else 0

    def __call__(self, kernel: Callable[..., None], rows: Any, *args: Any) -> None:
        """Run a kernel over the tasks of some rows, on as many threads as are worth it."""
        shape, counter = self.shape, _counter()
        size, dtype = shape.heads * (_jit().UNIT + _jit().PADDING), self.inputs.query.dtype

        def work() -> None:
            kernel(counter, numpy.empty(size, dtype), shape, *args)

        amount = shape.batch * shape.num_edges * shape.heads * (shape.head_dim + shape.value_dim)
        most = shape.batch * self.tasks(rows) if amount > WORTH_A_THREAD else 1
        run_on_threads(work, most)


def _counter() -> numpy.ndarray:
    """Of the tasks that were begun."""
    return numpy.zeros(1, numpy.int64)


def _of_rows(edges: Edges) -> Any:
    return _jit().Rows(*(_flat(x) for x in edges[:3]))


def _of_nodes(x: Tensor) -> tuple[numpy.ndarray, tuple[int, int]]:
    """Numbers (*batch, nodes, heads, dim) as they lie in memory, and strides of batch and node.

    They are copied if the numbers of a node do not lie together.
    """
    x = x.detach()
    heads, dim = x.shape[-2:]
    together = (dim == 1 or x.stride(-1) == 1) and (heads == 1 or x.stride(-2) == dim)
    x = x if together else x.contiguous()
    if x.ndim != 4:
        x = x.reshape(x.shape[:-3].numel(), *x.shape[-3:])
    if x.is_contiguous():
        return x.numpy().reshape(-1), (x.shape[1] * heads * dim, heads * dim)
    batch, node = x.stride()[:2]
    extent = (x.shape[0] - 1) * batch + (x.shape[1] - 1) * node + heads * dim
    return x.as_strided((extent,), (1,)).numpy(), (batch, node)


def _flat(x: Tensor) -> numpy.ndarray:
    """A contiguous tensor as an array of one dimension."""
    return x.detach().numpy().reshape(-1)


BACKENDS["cpu"] = Backend(
    forward_of, weights_of, backward_of, half=False, joins=True, edges=Edges, lower=lower
)

KERNEL = Kernel(
    name="cpu",
    why="edges are gathered, weighed and summed in one pass each way, and nothing of them is kept",
    unsupported=unsupported,
    run=partial(attend, backend="cpu"),
    weights=partial(attend, backend="cpu"),
    declines=declines,
)
