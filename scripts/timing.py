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


def agree(ours: Tensor, theirs: Tensor, case: str, peer: str, *, tolerance: float = 1e-4) -> None:
    """Raise unless two results are the same up to rounding: of float32, unless said otherwise."""
    error = (ours - theirs).abs().max().item()
    if not error <= tolerance * theirs.abs().max().item():
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
    inputs_of_peers: list[Tensor] | None = None,
    tolerance: float = 1e-4,
) -> list[Row]:
    """Check and time ours against every peer, forward and forward + backward.

    Args:
        inputs: Leaves that all calls take, requiring gradients.
        bound: For some peers, the ratio that ours has to reach.
        inputs_of_peers: The same leaves in another dtype, if peers take them so.
        tolerance: Of results, relative to the largest number.
    """
    device = inputs[0].device
    grad = torch.randn_like(ours(*inputs))
    leaves_of_peers = inputs_of_peers or inputs
    theirs = leaves_of_peers, grad.to(leaves_of_peers[0].dtype)

    def given(call: Call) -> tuple[list[Tensor], Tensor]:
        return (inputs, grad) if call is ours else theirs

    def forward(call: Call) -> Tensor:
        with torch.no_grad():
            return call(*given(call)[0])

    def both(call: Call) -> list[Tensor]:
        x, grad_out = given(call)
        return list(torch.autograd.grad(call(*x), x, grad_out))

    rows = []
    for direction in directions:
        run = forward if direction == "forward" else both
        for peer, call in peers.items():
            for mine, other in zip(as_list(run(ours)), as_list(run(call)), strict=True):
                agree(mine, other, case, peer, tolerance=tolerance)
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
