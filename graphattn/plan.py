"""Which kernel runs: an ordered table, and the reasons for and against each entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphattn.kernels import blocks, cpu, dense, intervals, masked, reference, row_windows, triton
from graphattn.kernels.problem import Kernel, Problem

KERNELS: tuple[Kernel, ...] = (
    dense.KERNEL,
    intervals.KERNEL,
    blocks.KERNEL,
    masked.KERNEL,
    cpu.KERNEL,
    row_windows.KERNEL,
    triton.KERNEL,
    reference.KERNEL,
)
"""In order of preference: the first that accepts is taken."""


@dataclass(frozen=True)
class Plan:
    """The kernel that runs a call, why, and why the others don't.

    kernel: Name of the kernel.
    why: What makes it the right one.
    rejected: Reason by name of every kernel that was refused.
    """

    kernel: str
    why: str
    rejected: dict[str, str]

    def __str__(self) -> str:
        width = max(len(name) for name in (*self.rejected, self.kernel))
        lines = [f"{self.kernel:{width}}  runs: {self.why}"]
        lines += [f"{name:{width}}  refused: {why}" for name, why in self.rejected.items()]
        return "\n".join(lines)

    __repr__ = __str__


def choose(problem: Problem, kernel: str, table: Sequence[Kernel] = KERNELS) -> Kernel:
    """The kernel of a name, or the first in the table that accepts the problem.

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
    for candidate in table:  # whether it would be slow is asked first, because that is soon told
        if candidate.declines(problem) is None and candidate.unsupported(problem) is None:
            return candidate
    for candidate in table:
        if candidate.unsupported(problem) is None:
            return candidate
    reasons = "; ".join(f"{entry.name}: {_reason(entry, problem)}" for entry in table)
    raise ValueError(
        f"no kernel can compute attention over {problem.graph}: {reasons}; "
        "take fewer nodes or a sparser graph"
    )


def plan(problem: Problem, kernel: str) -> Plan:
    """What `choose` does, with the reasons of every kernel that it refuses."""
    chosen = choose(problem, kernel)
    rejected = {}
    before = kernel == "auto"  # whether the entry stands before the chosen one
    for entry in KERNELS:
        if entry is chosen:
            before = False
            continue
        reason = _reason(entry, problem) if before else entry.unsupported(problem)
        rejected[entry.name] = reason or _unneeded(chosen, kernel)
    why = chosen.declines(problem) or chosen.why
    if kernel != "auto":
        why = f"it was named; {why}"
    elif why != chosen.why:
        why = f"no other kernel can; {why}"
    return Plan(chosen.name, why, rejected)


def _named(name: str) -> Kernel:
    for entry in KERNELS:
        if entry.name == name:
            return entry
    names = ", ".join(f'"{entry.name}"' for entry in KERNELS)
    raise ValueError(f'kernel must be "auto" or one of {names}, got {name!r}')


def _reason(entry: Kernel, problem: Problem) -> str | None:
    return entry.unsupported(problem) or entry.declines(problem)


def _unneeded(chosen: Kernel, kernel: str) -> str:
    if kernel != "auto":
        return f"{chosen.name} was named"
    return f"it could, but {chosen.name} stands before it in the table"
