"""Times ours beside peers in turn, after checking that they agree; `bench.py` has the suites."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

Call = Callable[..., Tensor]


@dataclass
class Row:
    """One comparison: median milliseconds of both, and the median of the ratios of the rounds."""

    case: str
    peer: str
    direction: str
    ours_ms: float
    peer_ms: float
    ratio: float
    bound: float | None


def once(run: Callable[[], object], device: torch.device) -> float:
    """Milliseconds that a call takes."""
    if device.type == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop)
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def agree(ours: Tensor, theirs: Tensor, case: str, peer: str) -> None:
    """Raise unless two results of float32 arithmetic are the same up to rounding."""
    error = (ours - theirs).abs().max().item()
    if not error <= 1e-4 * theirs.abs().max().item():
        raise SystemExit(f"{case}: ours and {peer} differ by {error:.3g}; nothing was timed")


def compare(
    case: str,
    inputs: list[Tensor],
    ours: Call,
    peers: dict[str, Call],
    *,
    bound: dict[str, float],
    rounds: int,
    directions: tuple[str, ...] = ("forward", "forward + backward"),
) -> list[Row]:
    """Check and time ours against every peer, forward and forward + backward.

    Args:
        inputs: Leaves that all calls take, requiring gradients.
        bound: For some peers, the ratio that ours has to reach.
    """
    device = inputs[0].device
    grad = torch.randn_like(ours(*inputs))

    def forward(call: Call) -> Tensor:
        with torch.no_grad():
            return call(*inputs)

    def both(call: Call) -> list[Tensor]:
        return list(torch.autograd.grad(call(*inputs), inputs, grad))

    rows = []
    for direction in directions:
        run = forward if direction == "forward" else both
        for peer, call in peers.items():
            for mine, theirs in zip(as_list(run(ours)), as_list(run(call)), strict=True):
                agree(mine, theirs, case, peer)
        calls = {"ours": ours, **peers}
        runs: dict[str, Callable[[], object]] = {
            name: functools.partial(run, call) for name, call in calls.items()
        }
        times = in_turn(f"{case}, {direction}", runs, device, rounds)
        rows += against(case, direction, times, bound)
    return rows


def in_turn(
    case: str, runs: dict[str, Callable[[], object]], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Milliseconds of each call in each round; what is first in one round is last in the next."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in tqdm(range(rounds + 2), desc=case, leave=False):
        for name in list(runs) if number % 2 else list(runs)[::-1]:
            elapsed = once(runs[name], device)
            if number >= 2:  # the first rounds warm up
                times[name].append(elapsed)
    return times


def against(
    case: str, direction: str, times: dict[str, list[float]], bound: dict[str, float]
) -> list[Row]:
    """The times of "ours" beside those of every peer."""
    rows, mine = [], times["ours"]
    for peer, theirs in times.items():
        if peer != "ours":
            ratio = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
            medians = (statistics.median(mine), statistics.median(theirs))
            rows.append(Row(case, peer, direction, *medians, ratio, bound.get(peer)))
    return rows


def as_list(result: Tensor | list[Tensor]) -> list[Tensor]:
    return result if isinstance(result, list) else [result]


def leaves(*shape: int, device: torch.device, count: int = 3) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, device=device, requires_grad=True) for _ in range(count)]
