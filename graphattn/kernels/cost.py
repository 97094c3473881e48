"""How long a kernel is expected to take on a GPU, told from what it reads, multiplies and computes.

The slowest of the three counts (a roofline), and what it takes to launch. Rates are those of data
sheets, and shares of them that are guesses; none of it was measured. What matters is the order in
which it puts the kernels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from graphattn.features import Projected
from graphattn.kernels.launch import generation
from graphattn.kernels.problem import Problem


class Machine(NamedTuple):
    """A GPU, by the millisecond.

    bandwidth: Bytes of its memory.
    cache: Bytes that fit into its L2 cache.
    products: Operations of its tensor cores in half types.
    instructions: Instructions of single threads.
    """

    bandwidth: float
    cache: float
    products: float
    instructions: float


# By the generation, the first number of the compute capability: A100, H200, B200.
MACHINES = {
    8: Machine(2.0e9, 40e6, 312e9, 10e9),
    9: Machine(4.8e9, 50e6, 990e9, 30e9),
    10: Machine(8.0e9, 126e6, 2250e9, 36e9),
}
# Of the bandwidth, what is read where edges point reaches this share; and more from the cache.
GATHERED, FROM_CACHE = 0.7, 2.0


class Work(NamedTuple):
    """What a kernel does, forward alone.

    gathered: Bytes read where edges point.
    streamed: Bytes read and written in order, beside those of nodes.
    products: Operations of products.
    share: Of the rate of tensor cores that they reach.
    instructions: Of single threads, beside those of products.
    backward: How many times that much forward and backward do: bytes, products, instructions.
    host: Milliseconds until all is launched, forward and in addition backward.
    """

    gathered: float = 0.0
    streamed: float = 0.0
    products: float = 0.0
    share: float = 1.0
    instructions: float = 0.0
    backward: tuple[float, float, float] = (3.0, 3.5, 3.0)
    host: tuple[float, float] = (0.02, 0.04)


def trains(problem: Problem) -> bool:
    """Whether gradients may be asked for."""
    given = (problem.query, problem.key, problem.value, problem.bias)
    more = (problem.edge_key, problem.edge_value)
    tensors = [x.features if isinstance(x, Projected) else x for x in (*given, *more)]
    return torch.is_grad_enabled() and any(
        isinstance(x, torch.Tensor) and x.requires_grad for x in tensors
    )


def head_counts(problem: Problem) -> tuple[int, int, int]:
    """Heads of the whole batch, key heads of it, and numbers of a head's key and value."""
    batch = problem.query.shape[:-3].numel()
    dims = problem.query.shape[-1] + problem.value.shape[-1]
    return batch * problem.heads, batch * problem.key.shape[-2], dims


def milliseconds(problem: Problem, work: Work) -> float:
    """What the GPU takes for the slowest of what it does, and the launches."""
    machine = MACHINES.get(generation(problem.query), MACHINES[9])
    heads, kv_heads, dims = head_counts(problem)
    item, both = problem.query.element_size(), trains(problem)
    bytes_, products, instructions = work.backward if both else (1.0, 1.0, 1.0)
    sources = problem.key.shape[-3] * kv_heads * dims * item
    nodes = problem.query.shape[-3] * heads * dims * item + sources
    gain = FROM_CACHE if sources <= machine.cache else 1.0
    reading = work.gathered / (GATHERED * gain) + work.streamed + nodes
    flops = work.share * machine.products if item == 2 else machine.instructions
    device = max(
        bytes_ * reading / machine.bandwidth,
        products * work.products / flops,
        instructions * work.instructions / machine.instructions,
    )
    return device + (sum(work.host) if both else work.host[0])
