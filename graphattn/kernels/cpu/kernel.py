"""Fused sparse attention on the CPU: any graph, forward and backward.

Destinations gather their sources over the CSR and keep the weights of a row in the cache; backward
goes once over the CSR (queries) and once over its transpose (keys and values), and computes the
weights again. Nothing of E x head_dim numbers is written, and nothing is added up atomically. Where
rows share sources, 16 of them go through the sources together. Graphs of intervals need no list of
edges. Half types are converted as they are loaded. The loops are C++, in `loops/`.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Hashable, Sequence
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from graphattn.graphs import Graph
from graphattn.graphs.csr import GROUP
from graphattn.graphs.facts import constant_when_compiled, fact
from graphattn.kernels.cpu import library
from graphattn.kernels.cpu.grouping import group
from graphattn.kernels.cpu.interface import Arguments, Numbers, Rows, entry
from graphattn.kernels.cpu.threads import run_on_threads
from graphattn.kernels.cpu.windows import (
    NONE,
    windows_of_columns,
    windows_of_interval_columns,
    windows_of_interval_rows,
    windows_of_rows,
)
from graphattn.kernels.fused import (
    BACKENDS,
    Backend,
    Call,
    Wanted,
    attend,
    beyond_fused,
    is_fused,
    lower,
    sink_gradient,
)
from graphattn.kernels.problem import Kernel, Problem
from graphattn.scores import Dot

# Multiply-adds below which waking another thread takes longer than the work.
WORTH_A_THREAD = 300_000
# Weights from which on a score or a normalizer is computed between calls of the kernel: where both
# took the same time for most normalizers, forward and backward, on a window of 4 heads.
WORTH_SEVERAL_CALLS = 16_000
UNIT = 2048  # steps of a task, as in loops/tasks.h: a row is one, and each of its edges one more

WINDOW = 16  # rows that share sources in a tile, as in loops/tiles.h
WIDEST = 128  # numbers of a head in a tile, at most

DTYPES = {
    dtype: i
    for i, dtype in enumerate((torch.float32, torch.float64, torch.bfloat16, torch.float16))
}
SCORES = {name: i for i, name in enumerate(("dot", "leaky_relu", "tanh"))}
REALS = {dtype: torch.promote_types(dtype, torch.float32) for dtype in DTYPES}  # computed with
NORMALIZERS = {name: i for i, name in enumerate(("softmax", "sigmoid", "none"))}
# By whether edges are listed: the facts of the windows of rows, and of columns.
WINDOWS = {
    True: (windows_of_rows, windows_of_columns),
    False: (windows_of_interval_rows, windows_of_interval_columns),
}


class Edges(NamedTuple):
    """The edges by destination or by source: ptr, index and edge as in `fused.Edges`.

    window, source, attends, row: As in `windows.Windows`; window is empty where tiles are not used.
    """

    ptr: Tensor
    index: Tensor
    edge: Tensor
    window: Tensor
    source: Tensor
    attends: Tensor
    row: Tensor


def unsupported(problem: Problem) -> str | None:
    if problem.query.device.type != "cpu":
        return f"it runs on the CPU, and the tensors are on {problem.query.device}"
    return beyond_fused(problem) or library_is_missing()


def declines(problem: Problem) -> str | None:
    number = problem.graph.num_edges * problem.query.shape[:-3].numel() * problem.heads
    if is_fused(problem) or number >= WORTH_SEVERAL_CALLS:
        return None
    return f"{number:,} weights are so few that gathering takes less time than calls to and fro"


def lower_for_cpu(problem: Problem, wanted: Wanted) -> tuple[list[Edges], bool]:
    """Return the `Edges` by destination and, if wanted, by source; whether they are listed."""
    kind = (*wanted, takes_tiles(problem, wanted))
    if torch.compiler.is_compiling():
        return _lower(problem, wanted)
    known = _lowered(problem.graph)
    if kind not in known:
        known[kind] = _lower(problem, wanted)
    return known[kind]


@fact
def _lowered(graph: Graph) -> dict[Hashable, tuple[list[Edges], bool]]:
    """Return what `lower_for_cpu` found of a graph so far."""
    return {}


def _lower(problem: Problem, wanted: Wanted) -> tuple[list[Edges], bool]:
    sides, listed = lower(problem, wanted)
    if takes_tiles(problem, wanted):
        rows_of, columns_of = WINDOWS[listed]
        is_own_transpose = len(sides) == 2 and sides[0].index is sides[1].index
        facts = (rows_of, rows_of if is_own_transpose else columns_of)
        windows = [windows_of(problem.graph) for windows_of, _ in zip(facts, sides)]
    else:
        windows = [NONE for _ in sides]
    return [Edges(*side[:3], *some) for side, some in zip(sides, windows)], listed


def takes_tiles(problem: Problem, wanted: Wanted) -> bool:
    """Whether tiles compute a problem over a graph whose rows share sources."""
    widest = max(problem.query.shape[-1], problem.value.shape[-1])
    return (
        isinstance(problem.score, Dot)
        and not (wanted.per_edge or wanted.in_order)
        and widest <= WIDEST
    )


@constant_when_compiled
def library_is_missing() -> str | None:
    """Return why the library can't be used and what repairs it, or None; warn once."""
    if (reason := library.missing()) is not None:
        _warn(reason)
    return reason


@cache
def _warn(reason: str) -> None:
    warnings.warn(f"graphattn runs without its kernel for the CPU: {reason}", stacklevel=2)


def forward_of(call: Call) -> tuple[Tensor, Tensor]:
    launch, query = Launch(call), call.query
    width = call.value.shape[-1] + launch.edge_dim
    out = launch.empty(*query.shape[:-1], width, dtype=query.dtype)
    # Without softmax, the maximum counts as 0 and the sum as 1.
    stats = launch.empty(*query.shape[:-2], 2, query.shape[-2])
    if call.normalizer != "softmax":
        stats[..., 0, :], stats[..., 1, :] = 0, 1
    launch.give(out=out, stats=stats)
    parts = {"out_parts": out.shape[-2:], "stats_parts": (2, query.shape[-2])}
    launch.run_over("forward", call.rows, **parts)
    return out, stats


def weights_of(call: Call, stats: Tensor) -> Tensor:
    launch = Launch(call)
    out = launch.empty(*call.batch, launch.num_edges, call.query.shape[-2])
    launch.give(stats=stats, weights=out)
    launch.run("weights", launch.batch * launch.tasks(call.rows))
    return out


def backward_of(
    call: Call,
    grad: Tensor,
    result: Tensor,
    stats: Tensor,
    needed: Sequence[bool],
    of_weights: bool,
) -> list[Tensor | None]:
    if not grad.numel():  # nothing flows back, and empty tensors have no address
        return [None if x is None else torch.zeros_like(x) for x in call[:9]]
    launch, query, heads = Launch(call), call.query, call.query.shape[-2]
    nodes = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in call[:3]]
    known, of_edges = launch.empty(*query.shape[:-2], 3, heads), _edge_tensors(call)
    edges = [
        launch.zeros(*call.batch, *x.shape[-dims:]) if x is not None and need else None
        for x, dims, need in zip(of_edges, EDGE_DIMS, needed[3:7])
    ]
    weight = None
    if call.weight is not None and needed[7]:
        weight = launch.zeros(launch.batch * launch.tasks(call.rows), *call.weight.shape)
    launch.give(stats=stats, known=known, grad_weight=weight)
    launch.give(**dict(zip(GRADIENTS, (*nodes, *edges))))
    if of_weights:
        launch.give(weights=result, grad_weights=grad)
    else:
        launch.give(out=result, grad_out=grad)
    by_source = needed[1] or needed[2]
    if by_source and call.listed and (of_weights or has_own_tensors(call)):
        launch.give(handed=launch.empty(*call.batch, launch.num_edges, 2, heads))
    if of_weights and call.normalizer == "softmax":
        launch.run("weigh_gradients", launch.batch * launch.tasks(call.rows))
    launch.run_over("by_destination", call.rows, query_parts=query.shape[-2:])
    if by_source:
        parts = {"key_parts": call.key.shape[-2:], "value_parts": call.value.shape[-2:]}
        launch.run_over("by_source", call.columns, **parts)
    edges = [
        None if x is None or of is None else x.sum_to_size(of.shape).to(of.dtype)
        for x, of in zip(edges, of_edges)
    ]
    if call.weight is not None and weight is not None:
        weight = (weight.sum(0) if weight.shape[0] > 1 else weight[0]).to(call.weight.dtype)
    of_sink = sink_gradient(call, stats, known[..., 2, :]) if needed[8] else None
    return [*nodes, *edges, weight, of_sink]


EDGES = ("bias", "edge_key", "edge_value", "edge")
EDGE_DIMS = (2, 3, 3, 2)  # behind the batch
GRADIENTS = tuple(f"grad_{name}" for name in ("query", "key", "value", *EDGES))


def _edge_tensors(call: Call) -> tuple[Tensor | None, ...]:
    return call.bias, call.edge_key, call.edge_value, call.edge


def has_own_tensors(call: Call) -> bool:
    """Whether edges have numbers of their own, which a pass by source finds in no order."""
    return call.seed is not None or any(x is not None for x in _edge_tensors(call))


class Launch:
    """A call as the loops take it; what it is given stays alive as long as it does."""

    def __init__(self, call: Call) -> None:
        query, key, value = call.query, call.key, call.value
        self.real, self.like = REALS[query.dtype], query
        self.batch_shape, self.batch = call.batch, call.batch.numel()
        self.edge_dim = 0 if call.edge is None else call.edge.shape[-1]
        self.num_edges = call.rows.index.shape[0] if call.listed else int(call.rows.ptr[-1])
        *_, num_dst, self.heads, _ = query.shape
        *_, num_src, kv_heads, head_dim = key.shape
        value_dim = value.shape[-1]
        self.amount = self.num_edges * self.batch * self.heads * (head_dim + value_dim)
        self.tensors: list[Tensor] = [*call.rows, *call.columns]
        self.arguments = arguments = Arguments(
            dtype=DTYPES[query.dtype],
            score=SCORES[call.score],
            normalizer=NORMALIZERS[call.normalizer],
            listed=call.listed,
            wide=torch.int64 in (call.rows.edge.dtype, call.columns.edge.dtype),
            batch=self.batch,
            num_dst=num_dst,
            num_src=num_src,
            heads=self.heads,
            kv_heads=kv_heads,
            group=self.heads // kv_heads,
            head_dim=head_dim,
            value_dim=value_dim,
            edge_dim=self.edge_dim,
            num_edges=self.num_edges,
            slope=call.slope,
            scale=call.scale,
            softcap=call.softcap,
        )
        self._give_nodes(arguments.query, query)
        self._give_nodes(arguments.key, key)
        self._give_nodes(arguments.value, value)
        _give_rows(arguments.rows, call.rows)
        _give_rows(arguments.columns, call.columns)
        for name, x, dims in zip(EDGES, _edge_tensors(call), EDGE_DIMS):
            if x is not None:
                x = x.to(self.real if name == "bias" else query.dtype)
                self._give_edges(getattr(arguments, name), x, dims)
        for name, x in (("weight", call.weight), ("sink", call.sink)):
            if x is not None:  # torch takes its time to convert nothing
                self.give(**{name: x if x.dtype == self.real else x.to(self.real)})
        if call.seed is not None:
            arguments.seed, arguments.keep = call.seed.item(), 1 / (1 - call.dropout)
            arguments.drop = min(int(call.dropout * 2.0**64), 2**64 - 1)

    def give(self, **tensors: Tensor | None) -> None:
        """Hand tensors over by the names of their fields, contiguous."""
        for name, x in tensors.items():
            if x is not None:
                setattr(self.arguments, name, self._address(x.contiguous()))

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return a tensor of the dtype that is computed with, or of another."""
        return self.like.new_empty(shape, dtype=dtype or self.real)

    def zeros(self, *shape: int) -> Tensor:
        """Return zeros of the dtype that is computed with."""
        return self.empty(*shape).zero_()

    def _address(self, x: Tensor) -> int:
        self.tensors.append(x)
        return x.data_ptr()

    def _give_nodes(self, to: Numbers, x: Tensor) -> None:
        """Hand over (*batch, nodes, heads, dim), as they lie in memory if heads lie together."""
        if not x.numel():
            return
        x = x if x.stride()[-2:] == (x.shape[-1], 1) else x.contiguous()
        x = x if x.ndim <= 4 else x.reshape(self.batch, *x.shape[-3:])
        stride = x.stride()
        to.data, to.node = self._address(x), stride[-3]
        to.batch = stride[0]  # without a batch, nobody reads it

    def _give_edges(self, to: Numbers, x: Tensor, dims: int) -> None:
        """Hand over numbers of so many dimensions for each item of the batch, or for all."""
        if x.shape[:-dims].numel() != 1:
            x = x.expand(*self.batch_shape, *x.shape[-dims:])
            to.batch = x.shape[-dims:].numel()
        to.data = self._address(x.contiguous())

    def tasks(self, rows: Edges) -> int:
        """Return the tasks of each item of the batch."""
        return -(-(self.num_edges + rows.ptr.shape[0] - 1) // UNIT)

    def run(self, name: str, tasks: int = 1) -> None:
        """Run a loop over its tasks, on as many threads as are worth it."""
        function, call = entry(name), ctypes.byref(self.arguments)
        counter = ctypes.byref(ctypes.c_int64(0))

        def work() -> None:
            if function(call, counter):
                raise MemoryError(f"no memory is left for the scratch space of {name}")

        run_on_threads(work, tasks if self.amount > WORTH_A_THREAD else 1)

    def run_over(self, name: str, rows: Edges, **parts: Sequence[int]) -> None:
        """Run a loop over some rows: by tiles if they are in windows, else row by row.

        Args:
            name: Of the loop.
            rows: The edges by row.
            parts: By the name of its field, the shape of what is computed for a part of a row.
        """
        if windows := rows.window.shape[0]:
            self.run(f"{name}_tiles", self.batch * self.heads * (windows - 1))
            return
        tasks = self.tasks(rows)
        if tasks > 1:
            slots = 2 * self.batch * tasks
            self.give(**{field: self.empty(slots, *shape) for field, shape in parts.items()})
        self.run(name, self.batch * tasks)
        if tasks > 1:
            self.run(f"merge_{name}")


def _give_rows(to: Rows, edges: Edges) -> None:
    addresses = [x.data_ptr() for x in edges]
    to.ptr, to.index, to.edge, to.window, to.source, to.attends, to.row = addresses
    to.count = edges.ptr.shape[0] - 1


GROUP["cpu"] = group
BACKENDS["cpu"] = Backend(
    forward_of, weights_of, backward_of, half=True, joins=True, edges=Edges, lower=lower_for_cpu
)

KERNEL = Kernel(
    name="cpu",
    why="edges are gathered, weighed and summed in one pass each way, and nothing of them is kept",
    unsupported=unsupported,
    run=partial(attend, backend="cpu"),
    weights=partial(attend, backend="cpu"),
    declines=declines,
    level=library.level,
)
