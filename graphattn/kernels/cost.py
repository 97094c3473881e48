"""How long a kernel is expected to take on a GPU, told from what it reads, multiplies and computes.

The slowest of the three counts (a roofline), and what it takes to launch. Rates are those of data
sheets, and shares of them that are guesses; none of it was measured. What matters is the order in
which it puts the kernels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

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
        isinstance(x, Tensor) and x.requires_grad for x in tensors
    )


def head_counts(problem: Problem) -> tuple[int, int, int]:
    """Heads of the whole batch, key heads of it, and numbers of a head's key and value."""
    batch = problem.query.shape[:-3].numel()
    dims = problem.query.shape[-1] + problem.value.shape[-1]
    return batch * problem.heads, batch * problem.key.shape[-2], dims


def machine_of(x: Tensor) -> Machine:
    return MACHINES.get(generation(x), MACHINES[9])


def slowest(x: Tensor, work: Work, passes: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> float:
    """Milliseconds of the slowest of what work asks of the GPU that a tensor is on.

    passes: How many times that much is read, multiplied and computed.
    """
    machine = machine_of(x)
    products = work.share * machine.products if x.element_size() == 2 else machine.instructions
    return max(
        passes[0] * (work.gathered / GATHERED + work.streamed) / machine.bandwidth,
        passes[1] * work.products / products,
        passes[2] * work.instructions / machine.instructions,
    )


def milliseconds(problem: Problem, work: Work) -> float:
    """What the GPU takes for the slowest of what it does, and the launches."""
    heads, kv_heads, dims = head_counts(problem)
    item, both = problem.query.element_size(), trains(problem)
    sources = problem.key.shape[-3] * kv_heads * dims * item
    nodes = problem.query.shape[-3] * heads * dims * item + sources
    gathered = work.gathered
    if sources <= machine_of(problem.query).cache:
        gathered = gathered / FROM_CACHE
    work = work._replace(gathered=gathered, streamed=work.streamed + nodes)
    if both:
        return slowest(problem.query, work, work.backward) + sum(work.host)
    return slowest(problem.query, work) + work.host[0]
