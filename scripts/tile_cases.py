"""The graphs of `bench_tiles.py`, and what peers know of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import graphattn as ga

NODES, RADIUS, MEDIAN_LENGTH, SPREAD = 65_536, 256, 700, 1.0  # of log-normal lengths
ROUNDS = 9
Pair = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Case:
    """A graph, and what peers know of it.

    pair: The same as a mask of FlexAttention.
    packed: Arguments of variable-length flash attention.
    rounds: Of the timing.
    """

    name: str
    make: Callable[[], ga.Graph]
    shapes: tuple[tuple[int, int], ...] = ((8, 64),)
    pair: Pair | None = None
    packed: tuple[Tensor, int, tuple[int, int]] | None = None
    rounds: int = ROUNDS


def lengths(nodes: int, device: torch.device) -> Tensor:
    """Log-normal lengths of documents that fill a sequence, the last one cut."""
    generator = torch.Generator().manual_seed(0)
    drawn = (SPREAD * torch.randn(nodes, generator=generator)).exp() * min(MEDIAN_LENGTH, nodes / 9)
    ends = drawn.long().clamp(min=1).cumsum(0).clamp(max=nodes)
    return ends.unique_consecutive().diff(prepend=ends.new_zeros(1)).to(device)


def simple(src: Tensor, dst: Tensor, nodes: int) -> ga.Graph:
    """A list of edges, none of them twice, by destination."""
    keys = (dst * nodes + src).unique()
    return ga.from_edges(torch.stack([keys % nodes, keys // nodes]), nodes)


def grouped(nodes: int, size: int, share: float, device: torch.device) -> ga.Graph:
    """Groups of nodes in which a share of all pairs are edges; a few edges between them."""
    generator = torch.Generator(device).manual_seed(0)
    groups = torch.arange(nodes // size, device=device)
    inside = torch.rand(len(groups), size, size, device=device, generator=generator) < share
    group, i, j = inside.nonzero(as_tuple=True)
    far = torch.randint(nodes, (2, nodes), device=device, generator=generator)
    src, dst = torch.cat([group * size + j, far[0]]), torch.cat([group * size + i, far[1]])
    return simple(src, dst, nodes)


def communities(nodes: int, edges: int, device: torch.device) -> ga.Graph:
    """50 communities, of Zipf sizes, in which four of five edges stay; hubs; numbers at random."""
    generator = torch.Generator(device).manual_seed(0)
    rank = torch.arange(1, 51, device=device, dtype=torch.float64)
    ends = (nodes * (1 / rank).cumsum(0) / (1 / rank).sum()).long()
    starts = torch.nn.functional.pad(ends[:-1], (1, 0))

    def uniform() -> Tensor:
        return torch.rand(edges, device=device, generator=generator, dtype=torch.float64)

    # Popularity within a community falls as the square root of the rank: u^2 of a uniform u.
    home = torch.searchsorted(ends, (uniform() * nodes).long(), right=True).clamp(max=49)
    away = torch.searchsorted(ends, (uniform() * nodes).long(), right=True).clamp(max=49)
    where = torch.where(uniform() < 0.8, home, away)
    src, dst = (
        starts[of] + (uniform().square() * (ends - starts)[of]).long() for of in (home, where)
    )
    order = torch.randperm(nodes, device=device, generator=generator)
    return simple(order[src], order[dst], nodes)


def cases(device: torch.device, tiny: bool) -> list[Case]:
    """In the order of their weight: what is out of time is left out from the end."""
    nodes, radius = (48, 4) if tiny else (NODES, RADIUS)
    side, reach = (8, 2) if tiny else (128, 6)
    sizes = lengths(nodes, device)
    document = torch.arange(len(sizes), device=device).repeat_interleave(sizes)
    ends = torch.nn.functional.pad(sizes.cumsum(0), (1, 0)).to(torch.int32)
    whole = torch.tensor([0, nodes], dtype=torch.int32, device=device)
    window = ga.sliding_window(nodes, radius)

    def near(i: Tensor, j: Tensor) -> Tensor:
        """Of a neighborhood that is moved inside of its grid."""
        found = []
        for to, place in ((i // side, j // side), (i % side, j % side)):
            center = to.clamp(reach, side - 1 - reach)
            found.append((center - place).abs() <= reach)
        return found[0] & found[1]

    few = (1,) if tiny else (8,)
    grid = partial(ga.neighborhood, (side, side), reach)
    made = [
        Case(
            f"sliding_window({nodes}, {radius})",
            lambda: window,
            ((few[0], 64), (few[0], 128)),
            lambda i, j: (i - j).abs() <= radius,
            (whole, nodes, (radius, radius)),
        ),
        Case(
            f"causal & sliding_window({nodes}, {radius})",
            lambda: ga.causal(nodes) & window,
            ((few[0], 64),),
            lambda i, j: (i >= j) & (i - j <= radius),
            (whole, nodes, (radius, 0)),
        ),
        Case(f"neighborhood({(side, side)}, {reach})", grid, ((few[0], 64),), near),
        Case(
            f"{len(sizes)} causal documents, {nodes} tokens",
            lambda: ga.batch([ga.causal(n) for n in sizes.tolist()]),
            ((few[0], 64),),
            lambda i, j: (i >= j) & (document[i] == document[j]),
            (ends, int(sizes.max()), (-1, 0)),
        ),
        Case(
            f"sliding_window({nodes}, {radius}) | hubs({nodes}, [0])",
            lambda: window | ga.hubs(nodes, [0]),
            ((few[0], 64),),
            lambda i, j: ((i - j).abs() <= radius) | (i == 0) | (j == 0),
        ),
    ]
    if tiny:
        return [*made, Case("groups", partial(grouped, 48, 16, 0.5, device), ((1, 16),))]

    def reddit() -> ga.Graph:
        return communities(232_965, 116_000_000, device)

    def expander() -> ga.Graph:
        return ga.expander(32_768, 16).to(device)

    volume = partial(ga.neighborhood, (32, 32, 32), 2)
    return [
        *made,
        Case("groups of 128, half of the pairs", partial(grouped, 65_536, 128, 0.5, device)),
        Case("like Reddit, 1 x 128", reddit, ((1, 128),), rounds=5),
        Case("neighborhood((32, 32, 32), 2)", volume),
        Case("expander(32768, 16)", expander),
        Case("expander(32768, 16), rcm", lambda: expander().reordered("rcm").graph),
        Case(
            "like Reddit, by degree",
            lambda: reddit().reordered("degree").graph,
            ((1, 128),),
            rounds=5,
        ),
    ]
