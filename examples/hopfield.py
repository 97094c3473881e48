"""Networks that remember: patterns are stored, and recalled from what damage leaves of them.

    python examples/hopfield.py

Classical networks have binary neurons on any graph; the modern one attends to what it stores. Each
is given ever more patterns, a tenth of each is flipped, and those that come back are counted. Few
random ones fit into Hebb's rule, 0.138 to a neuron in theory, and fewer digits, which are alike; a
graph of neighboring pixels then does about as well as all to all, with a tenth of the edges.
"""

import json
import math
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from accelerate import Accelerator
from checkpoints import write_json
from recall import images_recalled, recall_by_load
from sklearn.datasets import load_digits
from support import parser, positive
from torch import Tensor, nn
from tqdm import tqdm

import graphattn as ga

GRID = (8, 8)  # the pixels of a digit
IMAGES, CLASSES = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
DIGITS = (IMAGES >= 8).float() * 2 - 1  # (1797, 64): +1 is ink, -1 is paper
LOADS = {  # stored patterns to a neuron
    "random patterns": (0.01, 0.02, 0.03, 0.05, 0.08, 0.11, 0.14, 0.17, 0.2, 0.3, 0.5, 0.7, 1, 4),
    "digits": (1 / 64, 2 / 64, 3 / 64, 4 / 64, 6 / 64, 8 / 64, 0.2, 0.3, 0.5, 0.7, 1, 2, 8, 28),
}


@cache
def networks(n: int, task: str) -> dict[str, Callable[[Tensor], nn.Module]]:
    """What stores patterns (num_patterns, n), by name."""

    def classical(rule: Callable, graph: ga.Graph) -> Callable[[Tensor], nn.Module]:
        return lambda patterns: ga.nn.HopfieldNetwork(graph, rule(patterns, graph))

    hebb, complete = ga.nn.hebbian_weights, ga.complete(n).without_self_loops()
    random = ga.expander(n, 7 if task == "digits" else 2 * (n // 16))  # 7: as many as `grid`
    grid = ga.neighborhood(GRID, 1, border="cut").without_self_loops()
    near = {"Hebb, neighborhood": classical(hebb, grid)} if task == "digits" else {}
    return {
        "Hebb, all to all": classical(hebb, complete),
        "Hebb, random graph": classical(hebb, random),
        **near,
        "projection, all to all": classical(ga.nn.projection_weights, complete),
        "modern": ga.nn.ModernHopfield,
    }


def flip(patterns: Tensor, share: float) -> Tensor:
    """A share of each pattern flipped, at random places."""
    order = torch.rand(patterns.shape).argsort(dim=1)
    return torch.where(order < round(share * patterns.shape[1]), -patterns, patterns)


def recalled(n: int, task: str, count: int) -> list[float]:
    """How many of some patterns come back with at least 95% of each right, by network."""
    stored = torch.randint(2, (count, n)) * 2.0 - 1
    if task == "digits":
        stored = DIGITS[torch.randperm(len(DIGITS))[:count]]
    probes = stored[torch.randperm(count)[:100]]
    damaged = flip(probes, 0.1)
    back = [make(stored)(damaged).sign() for make in networks(n, task).values()]
    return [((b == probes).float().mean(1) >= 0.95).float().mean().item() for b in back]


def trial(seed: int, neurons: dict[str, int]) -> dict[str, list[list[float]]]:
    """What comes back: by task, at every load of each network; few patterns are drawn often."""
    torch.manual_seed(seed)
    shares = {task: [] for task in neurons}
    for task, n in neurons.items():
        for count in (max(1, round(load * n)) for load in LOADS[task]):
            draws = [recalled(n, task, count) for _ in range(max(1, 20 // count))]
            shares[task].append(torch.tensor(draws).mean(dim=0).tolist())
    return shares


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, "hopfield", steps=5, unit="trials")
    options.add_argument("--neurons", type=positive, default=400, help="for random patterns")
    options = options.parse_args(argv)
    accelerator, folder = Accelerator(), Path(options.runs, options.name)
    neurons = {"random patterns": options.neurons, "digits": DIGITS.shape[1]}
    kept = folder / f"seed{options.seed}-neurons{options.neurons}"  # a file for every trial
    if accelerator.is_main_process and not options.resume:
        shutil.rmtree(kept, ignore_errors=True)
    accelerator.wait_for_everyone()
    paths = [kept / f"{number}.json" for number in range(options.steps)]
    own = paths[accelerator.process_index :: accelerator.num_processes]
    end = time.perf_counter() + (options.seconds or math.inf)
    for path in tqdm(own, options.name, disable=not accelerator.is_main_process):
        if not path.exists() and (path == paths[0] or time.perf_counter() < end):
            write_json(path, trial(hash((options.seed, int(path.stem))) % 2**31, neurons))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        torch.manual_seed(options.seed)
        report(folder, [json.loads(path.read_text()) for path in paths if path.exists()], neurons)


def report(folder: Path, trials: list[dict], neurons: dict[str, int]) -> None:
    """Print and draw how many patterns come back, on average over the trials."""
    shares: dict[str, dict[str, list[float]]] = {}
    for task, n in neurons.items():
        mean = torch.tensor([one[task] for one in trials]).mean(dim=0)  # (loads, networks)
        shares[task] = dict(zip(networks(n, task), mean.T.tolist()))
        print(f"{task} that come back, of so many to each of {n} neurons")
        print(" " * 25, *(f"{load:5.2g}" for load in LOADS[task]))
        for name, curve in shares[task].items():
            print(f"  {name:23}", *(f"{share:5.0%}" for share in curve))
    most, four = shares["digits"]["modern"][-1], shares["digits"]["Hebb, all to all"][3]
    rows, patterns, graph = digit_rows(), DIGITS[:, None], ga.bipartite(10, len(DIGITS))
    plan = ga.explain(rows["damaged"][:, None], patterns, patterns, graph)
    result = {
        "example": folder.name,
        "trials": len(trials),
        "graphs": [{"graph": str(graph), "edges": graph.num_edges, **vars(plan)}],
        "result": f"{most:.0%} of 1,792 digits come back (modern), {four:.0%} of 4 (Hebb's rule)",
        "loads": LOADS,
        "recalled": shares,
        "pictures": [
            images_recalled(folder / "images.png", rows, GRID),
            recall_by_load(folder / "capacity.png", LOADS, shares, neurons),
        ],
    }
    write_json(folder / "result.json", result)
    print(f"{result['result']}; see {folder}")


def digit_rows() -> dict[str, Tensor]:
    """One digit of each class, damaged, and what the networks that store the ten make of it."""
    ten = torch.stack([DIGITS[torch.eq(CLASSES, digit)][0] for digit in range(10)])
    damaged = flip(ten, 0.15)
    damaged[5:] = ten[5:].index_fill(1, torch.arange(32, 64), -1)  # the lower half is covered
    rows = {"stored": ten, "damaged": damaged}
    rows |= {name: make(ten)(damaged).sign() for name, make in networks(64, "digits").items()}
    rows[f"modern, {len(DIGITS):,} stored"] = ga.nn.ModernHopfield(DIGITS)(damaged).sign()
    return rows


if __name__ == "__main__":
    main()
