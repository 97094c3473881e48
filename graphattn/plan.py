"""Which kernel runs: an ordered table, and the reasons for and against each entry."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch

from graphattn.graphs import Graph
from graphattn.graphs.facts import fact
from graphattn.graphs.memory import WORTH_ASKING
from graphattn.kernels import blocks, dense, intervals, masked, reference, row_windows, triton
from graphattn.kernels.cost import trains
from graphattn.kernels.cpu import kernel as cpu
from graphattn.kernels.fused import mode_of
from graphattn.kernels.problem import Estimate, Kernel, Problem
from graphattn.normalizers import Softmax

KERNELS: tuple[Kernel, ...] = (
    dense.KERNEL,
    intervals.KERNEL,
    blocks.KERNEL,
    masked.KERNEL,
    cpu.KERNEL,
    triton.KERNEL,
    row_windows.KERNEL,
    reference.KERNEL,
)
"""In order of preference: the first that accepts is taken, if nothing is known of their speed."""

MOST_ROUTES = 256  # kept of a graph
# Numbers of all pairs, keys and values together, that take less than WORTH_ASKING bytes whatever a
# kernel makes of them: at most 12 such tensors of float64.
FEW_NUMBERS = WORTH_ASKING // 100


@dataclass(frozen=True)
class Plan:
    """The kernel that runs a call, why, and why the others don't.

    kernel: Name of the kernel.
    why: What makes it the right one.
    rejected: Reason by name of every kernel that was refused.
    expected: On a GPU, by name, what is expected of the kernels that could run: `ms`, and `reuse`,
        the edges for each source that is loaded.
    level: On a CPU, the instructions that the kernel was compiled for, such as "x86-64-v4".
    """

    kernel: str
    why: str
    rejected: dict[str, str]
    expected: dict[str, Estimate] = field(default_factory=dict)
    level: str | None = None

    def __str__(self) -> str:
        width = max(len(name) for name in (*self.rejected, self.kernel))
        level = f"; compiled for {self.level}" if self.level else ""
        lines = [f"{self.kernel:{width}}  runs: {self.why}{level}"]
        lines += [f"{name:{width}}  refused: {why}" for name, why in self.rejected.items()]
        for at, name in enumerate((self.kernel, *self.rejected)):
            if name in self.expected:
                lines[at] += f"; {self.expected[name]}"
        return "\n".join(lines)

    __repr__ = __str__


def choose(problem: Problem, kernel: str, table: Sequence[Kernel] = KERNELS) -> Kernel:
    """The kernel of a name, or of the table the one that suits the problem.

    That is the first that accepts it; on a GPU, of those that do the one expected to be fastest.
    Kernels that would only be slow are asked again after all others.

    Raises:
        ValueError: If there is no kernel of that name, or the one that was named, or all of them,
            can't compute the problem.
    """
    if kernel != "auto":
        named = _named(kernel)
        if (reason := named.unsupported(problem)) is not None:
            raise ValueError(
                f'kernel "{kernel}" can\'t compute this: {reason}; kernel="auto" takes one that can'
            )
        return named
    concrete = all(type(size) is int for size in problem.query.shape)  # and no symbols
    if concrete and not torch.compiler.is_compiling():
        if problem.query.is_cuda:
            return _remembered(problem, table)
        if _is_small(problem):
            return _looked_up(problem, table)
    return _choose(problem, table)


def _is_small(problem: Problem) -> bool:
    """Whether no kernel asks how much memory is free, so that the choice is always the same."""
    query, graph = problem.query, problem.graph
    pairs = max(graph.num_dst * graph.num_src, graph.num_edges) * query.shape[:-2].numel()
    return pairs * problem.heads * (query.shape[-1] + problem.value.shape[-1]) <= FEW_NUMBERS


def _choose(problem: Problem, table: Sequence[Kernel]) -> Kernel:
    """The kernel of least cost, or the first, of those that accept a problem; see `choose`."""
    best, least = None, math.inf
    for candidate in table:  # whether it can is asked last: that may take a look at all edges
        if candidate.declines(problem) is not None:
            continue
        estimate = expected(candidate, problem)
        if estimate is not None and estimate.cost >= least:
            continue
        if candidate.unsupported(problem) is None:
            if estimate is None:
                return best or candidate
            best, least = candidate, estimate.cost
    if best is not None:
        return best
    for candidate in table:
        if candidate.unsupported(problem) is None:
            return candidate
    reasons = "; ".join(f"{entry.name}: {_reason(entry, problem)}" for entry in table)
    raise ValueError(
        f"no kernel can compute attention over {problem.graph}: {reasons}; "
        "take fewer nodes or a sparser graph"
    )


def _remembered(problem: Problem, table: Sequence[Kernel]) -> Kernel:
    """What `_choose` does, which takes longer than a small kernel runs: once for alike problems."""
    known = _looked_up(problem, table)
    if known.unsupported(problem) is not None:  # memory was taken since; it may be freed
        return _choose(problem, table)
    return known


def _looked_up(problem: Problem, table: Sequence[Kernel]) -> Kernel:
    routes, kind = _routes(problem.graph), (id(table), _kind(problem))
    if (known := routes.get(kind)) is None:
        if len(routes) >= MOST_ROUTES:
            routes.clear()
        known = routes[kind] = _choose(problem, table)
    return known


@fact
def _routes(graph: Graph) -> dict[Hashable, Kernel]:
    """What was chosen over a graph on a GPU so far."""
    return {}


def _kind(problem: Problem) -> Hashable:
    """What the choice depends on, beside the graph."""
    query, normalizer = problem.query, problem.normalizer
    return (
        (query.shape, problem.key.shape[-2], problem.value.shape[-1], query.dtype, query.device),
        (type(problem.score), problem.softcap is None, problem.dropout > 0, problem.of_weights),
        (mode_of(normalizer), isinstance(normalizer, Softmax) and normalizer.sink is None),
        (type(problem.bias), type(problem.edge_key), type(problem.edge_value), trains(problem)),
    )


def expected(entry: Kernel, problem: Problem) -> Estimate | None:
    """What is expected of a kernel: on a GPU. On a CPU, the order of the table was measured."""
    return entry.expected(problem) if problem.query.is_cuda else None


def plan(problem: Problem, kernel: str) -> Plan:
    """What `choose` does, with the reasons of every kernel that it refuses."""
    chosen, auto = choose(problem, kernel, KERNELS), kernel == "auto"
    rejected, estimates = {}, {}
    timed = auto and expected(chosen, problem) is not None
    asked = auto  # whether the entry was asked for its reasons: up to the chosen one, or to compare
    for entry in KERNELS:
        reason = entry.unsupported(problem)
        if reason is None and asked and entry is not chosen:
            reason = entry.declines(problem)
        if reason is None and timed and (estimate := expected(entry, problem)) is not None:
            estimates[entry.name] = estimate
        if entry is chosen:
            asked = timed
        else:
            rejected[entry.name] = reason or _unneeded(chosen, kernel, entry.name in estimates)
    why = chosen.declines(problem) or chosen.why
    if not auto:
        why = f"it was named; {why}"
    elif why != chosen.why:
        why = f"no other kernel can; {why}"
    return Plan(chosen.name, why, rejected, estimates, chosen.level())


def _named(name: str) -> Kernel:
    for entry in KERNELS:
        if entry.name == name:
            return entry
    names = ", ".join(f'"{entry.name}"' for entry in KERNELS)
    raise ValueError(f'kernel must be "auto" or one of {names}, got {name!r}')


def _reason(entry: Kernel, problem: Problem) -> str | None:
    return entry.unsupported(problem) or entry.declines(problem)


def _unneeded(chosen: Kernel, kernel: str, timed: bool) -> str:
    if kernel != "auto":
        return f"{chosen.name} was named"
    if timed:
        return f"{chosen.name} is expected to be faster"
    return f"it could, but {chosen.name} stands before it in the table"
