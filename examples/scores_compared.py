"""Every score and every normalizer on one task that nothing but attention can do.

    python examples/scores_compared.py
    accelerate launch examples/scores_compared.py

Digits without a label look at 50 that have one (the images are scikit-learn's), and the labels that
they attend to are all that they know: a matching network (Vinyals et al. 2016) of one layer, over
the graph bipartite(50, 50). Every score is trained under softmax, and every normalizer with dot
products, several times each; 700 of the 1,797 images are held out. Ends in a table, and in a
picture in runs/scores_compared/.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, median, pstdev
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from checkpoints import write_json
from drawings import accuracy_by_kind
from settings import learn_each
from sklearn.datasets import load_digits
from support import parser, plans, positive
from torch import Tensor, nn

import graphattn as ga
from graphattn.normalizers import TopK

DIM, HEADS, HEAD_DIM, CLASSES, N, HELD_OUT = 64, 4, 16, 10, 50, 700
GRAPH = ga.bipartite(N, N)
KINDS: dict[str, dict[str, Callable]] = {
    "score": {  # under softmax
        "uniform": lambda: "uniform",
        "location": lambda: ga.nn.Location(N, HEADS, HEAD_DIM),
        "GAT": lambda: ga.nn.GAT(HEADS, HEAD_DIM),
        "GATv2": lambda: ga.nn.GATv2(HEADS, HEAD_DIM),
        "additive": lambda: ga.nn.Additive(HEADS, HEAD_DIM),
        "concat": lambda: ga.nn.Concat(HEADS, HEAD_DIM),
        "bilinear": lambda: ga.nn.Bilinear(HEADS, HEAD_DIM),
        "cosine": lambda: ga.nn.Cosine(HEADS),
        "dot": lambda: "dot",
    },
    "normalizer": {  # of dot products
        "none": lambda: "none",
        "mean": lambda: "mean",
        "sigmoid": lambda: "sigmoid",
        "softmax": lambda: "softmax",
        "sink": lambda: ga.nn.SinkSoftmax(HEADS),
        "entmax15": lambda: "entmax15",
        "sparsemax": lambda: "sparsemax",
        "top8": lambda: TopK(8),
        "Gumbel": lambda: ga.nn.GumbelSoftmax(),
        "argmax": lambda: "argmax",
        "REINFORCE": lambda: ga.nn.Reinforce(entropy=0.01),
    },
}


class Matching(nn.Module):
    """What digits are, by the labels of those that they attend to."""

    def __init__(self, part: str, name: str) -> None:
        super().__init__()
        kind = {part: KINDS[part][name]()}
        self.attention = ga.nn.GraphAttention(DIM, HEADS, context_dim=DIM + CLASSES, **kind)
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, CLASSES)

    def forward(self, asked: Tensor, shown: Tensor, labels: Tensor) -> Tensor:
        """Images (batch, N, DIM) and labels (batch, N) to scores (batch, N, CLASSES)."""
        context = torch.cat([shown, F.one_hot(labels, CLASSES).float()], dim=-1)
        return self.head(self.norm(self.attention(asked, GRAPH, context)))


def learn(steps: int, device: Any, part: str, name: str, seed: int, seconds: float) -> dict:
    """Train one kind; how often is it right about images held out, and how long is a step?"""
    set_seed(seed)
    pixels, digits = load_digits(return_X_y=True)
    train, held_out = torch.randperm(len(digits)).split([len(digits) - HELD_OUT, HELD_OUT])
    images, labels = torch.tensor(pixels / 16).float().to(device), torch.tensor(digits).to(device)
    model = Matching(part, name).to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    times, begin = [], time.perf_counter()
    while (used := max(len(times) / steps, (time.perf_counter() - begin) / seconds)) < 1:
        start = time.perf_counter()
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - used)
        drawn = torch.stack([train[torch.randperm(len(train))[: 2 * N]] for _ in range(4)])
        asked, shown = drawn.chunk(2, dim=1)
        scores = model(images[asked], images[shown], labels[shown])
        losses = F.cross_entropy(scores.transpose(1, 2), labels[asked], reduction="none")
        loss = losses.mean()
        if isinstance(draws := model.attention.normalizer, ga.nn.Reinforce):
            loss = loss + draws.surrogate(-losses)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    asked = held_out.view(-1, N)
    shown = torch.stack([train[torch.randperm(len(train))[:N]] for _ in asked])
    with torch.no_grad():
        said = model.eval()(images[asked], images[shown], labels[shown]).argmax(dim=-1)
    right = (said == labels[asked]).float().mean().item()
    return {"accuracy": right, "ms": 1000 * median(times)}


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, "scores_compared", steps=300)
    options.add_argument("--repeats", type=positive, default=3, help="seeds for each (default 3)")
    options = options.parse_args(argv)
    accelerator = Accelerator()

    seeds = range(options.seed, options.seed + options.repeats)
    settings = [(part, name, seed) for part in KINDS for name in KINDS[part] for seed in seeds]
    learned = learn_each(options, settings, partial(learn, options.steps, accelerator.device))
    if accelerator.is_main_process:
        report(Path(options.runs, options.name), learned)


def report(folder: Path, learned: dict[tuple[str, str, int], dict[str, float]]) -> None:
    """Print and draw how often each kind is right, and how long a step takes, over the seeds."""
    found = {part: {name: [] for name in names} for part, names in KINDS.items()}
    for (part, name, _), result in learned.items():
        found[part][name].append(result)
    means = {}
    for part, names in found.items():
        print(f"{part:12} right      ±  ms a step")
        for name, runs in names.items():
            right, times = [run["accuracy"] for run in runs], [run["ms"] for run in runs]
            means[name] = mean(right)
            print(f"  {name:10} {means[name]:6.1%} {pstdev(right):6.1%} {median(times):10.1f}")
    worst, *_, best = sorted(means, key=means.__getitem__)
    result = {
        "example": folder.name,
        "graphs": plans([GRAPH], HEADS, HEAD_DIM),
        "result": f"from {means[worst]:.0%} right ({worst}) to {means[best]:.0%} ({best})",
        "found": found,
        "pictures": [accuracy_by_kind(folder, found, chance=1 / CLASSES)],
    }
    write_json(folder / "result.json", result)
    print(f"{result['result']}; see {folder}")


if __name__ == "__main__":
    main()
