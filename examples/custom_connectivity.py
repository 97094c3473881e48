"""Your own graph from networkx, and a task that only connectivity decides.

    python examples/custom_connectivity.py
    accelerate launch examples/custom_connectivity.py

Fifteen families of Renaissance Florence, and who married whom. One family knows a secret, one of
four, and all must name it, while rumors of their own go round. A layer of attention carries the
secret one marriage further: over each graph, the last family can know it from that depth on which is
its distance from the first. The picture in runs/custom_connectivity/ shows whether it does.
"""

import argparse
import json
import time
from pathlib import Path

import networkx
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from checkpoints import write_json
from matplotlib.figure import Figure
from pictures import BLUE, ORANGE, save
from support import parser, plans, positive
from torch import Tensor, nn
from tqdm import tqdm

import graphattn as ga
from graphattn.biases import hop_distance
from graphattn.models.layers import init_weights

FLORENCE = networkx.florentine_families_graph()
N, SECRETS = len(FLORENCE), 4
GRAPHS = {
    "complete": ga.complete(N),
    "expander": ga.expander(N, 4, seed=1).with_self_loops(),
    "sliding window": ga.sliding_window(N, 6),
    "Florence": ga.from_networkx(FLORENCE).with_self_loops(),
    "path": ga.sliding_window(N, 1),
}


class Families(nn.Module):
    """What each node says the secret is, after a number of blocks."""

    def __init__(self, depth: int, dim: int, heads: int) -> None:
        super().__init__()
        self.told = nn.Embedding(SECRETS, dim)
        self.positions = ga.nn.LearnedPositions(N, dim)
        self.blocks = nn.ModuleList(ga.nn.TransformerBlock(dim, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, SECRETS)
        init_weights(self, std=dim**-0.5)

    def forward(self, told: Tensor, graph: ga.Graph) -> Tensor:
        """(batch, N) of what each is told at first -> (batch, N, SECRETS)."""
        x = self.positions(self.told(told))
        for block in self.blocks:
            x = block(x, graph)
        return self.head(self.norm(x))


def draw_secrets(batch: int) -> tuple[Tensor, Tensor]:
    """What each is told at first (4 * batch, N), and the secret: the same rumors with every secret."""
    secret = torch.arange(SECRETS).repeat_interleave(batch)
    told = torch.randint(SECRETS, (batch, N)).repeat(SECRETS, 1)
    told[:, 0] = secret
    return told, secret


def learn(graph: ga.Graph, depth: int, options: argparse.Namespace, device: torch.device) -> dict:
    """Train a model of some depth until the last family is always right; who knows in the end?"""
    set_seed(options.seed)
    model = Families(depth, options.dim, options.heads).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), options.lr)
    step, always_right, start = 0, 0, time.perf_counter()
    while step < options.steps and always_right < 10:
        told, secret = (x.to(device) for x in draw_secrets(options.batch))
        said = model(told, graph)
        loss = F.cross_entropy(said.flatten(0, 1), secret.repeat_interleave(N))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        last_right = (said[:, -1].argmax(dim=-1) == secret).all()
        step, always_right = step + 1, always_right + 1 if last_right else 0
        if options.seconds and time.perf_counter() - start > options.seconds / CELLS:
            break
    with torch.no_grad():
        told, secret = (x.to(device) for x in draw_secrets(128))
        right = model(told, graph).argmax(dim=-1) == secret[:, None]
    return {"steps": step, "accuracy": right.float().mean(dim=0).tolist()}


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, "custom_connectivity", steps=200)
    options.add_argument("--depth", type=positive, default=6, help="of the deepest model")
    options.add_argument("--dim", type=positive, default=32)
    options.add_argument("--heads", type=positive, default=2)
    options.add_argument("--batch", type=positive, default=8, help="sets of rumors per step")
    options.add_argument("--lr", type=float, default=5e-3)
    options = options.parse_args(argv)

    accelerator, folder = Accelerator(), Path(options.runs, options.name)
    marriages = GRAPHS["Florence"]
    query = torch.randn(N, options.heads, options.dim // options.heads)
    accelerator.print(f"{marriages!r}\n{ga.explain(query, query, query, marriages)}")

    results = Results(folder / "cells", options)
    cells = [(name, depth) for depth in range(1, options.depth + 1) for name in GRAPHS]
    cells = [cell for cell in cells if ...]
    with accelerator.split_between_processes(cells) as own:
        ...
