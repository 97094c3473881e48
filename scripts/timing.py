"""Times ours beside peers in turn, after checking that they agree; `bench.py` has the suites."""

from __future__ import annotations

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
        times: dict[str, list[float]] = {"ours": [], **{peer: [] for peer in peers}}
        calls = {"ours": ours, **peers}
        for number in tqdm(range(rounds + 2), desc=f"{case}, {direction}", leave=False):
            for name in list(calls) if number % 2 else list(calls)[::-1]:
                elapsed = once(lambda: run(calls[name]), device)  # noqa: B023
                if number >= 2:  # the first rounds warm up
                    times[name].append(elapsed)
        mine = times.pop("ours")
        for peer, theirs in times.items():
            ratio = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
            medians = (statistics.median(mine), statistics.median(theirs))
            rows.append(Row(case, peer, direction, *medians, ratio, bound.get(peer)))
    return rows


def as_list(result: Tensor | list[Tensor]) -> list[Tensor]:
    return result if isinstance(result, list) else [result]


def leaves(*shape: int, device: torch.device, count: int = 3) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, device=device, requires_grad=True) for _ in range(count)]
