"""A model that looks: a few glimpses at an image, each at all of its patches or at a single one.

    python examples/hard_attention.py
    accelerate launch examples/hard_attention.py

A real digit lies somewhere on a larger canvas, among fragments of others. The keys of the patches
are made of a blurred view of the canvas, the values of their pixels; a glimpse is attention of the
model's state over them, and adds what it sees to the state (Sukhbaatar et al. 2015, section 2.2).
Soft attention reads every patch. Hard attention reads one, and learns which by an estimate of the
gradient: argmax straight through (Bengio et al. 2013), Gumbel noise (Jang et al. 2017), REINFORCE
(Xu et al. 2015, section 4.1; Mnih et al. 2014). The control reads any one. Pictures in
runs/hard_attention/ show where each looks, and how it learns.
"""

import math
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from canvas import GRID, MARGIN, TILE, load_canvases, scatter
from glimpses import report
from settings import learn_each
from support import parser, plans, positive
from torch import Tensor, nn

import graphattn as ga
from graphattn.graphs.csr import CSR

GLIMPSES, DIM, BATCH = 3, 64, 64
PATCHES = ga.bipartite(1, math.prod(GRID))


def anywhere(logits: Tensor, csr: CSR) -> Tensor:
    """One patch for each query, whatever the scores: a normalizer of one's own."""
    return ga.normalizers.sample(torch.zeros_like(logits), csr)[0]


NORMALIZERS = {
    "soft": lambda: "softmax",
    "argmax": lambda: "argmax",
    "Gumbel": lambda: ga.nn.GumbelSoftmax(hard=True),
    "REINFORCE": lambda: ga.nn.Reinforce(entropy=0.01),
    "anywhere": lambda: anywhere,
}


class Reader(nn.Module):
    """Reads the digit on a canvas in a few glimpses."""

    def __init__(self, normalizer: Any) -> None:
        super().__init__()
        self.normalizer = normalizer
        pixels = (TILE + 2 * MARGIN) ** 2  # of a patch
        self.places = ga.nn.LearnedPositions(PATCHES.num_src, DIM)
        blurred = nn.Conv2d(1, DIM, 3, padding=1), nn.ReLU(), nn.Conv2d(DIM, DIM, 1)
        self.blurred, self.key_norm = nn.Sequential(*blurred), nn.LayerNorm(DIM)
        self.read = nn.Sequential(nn.Linear(pixels, 4 * DIM), nn.ReLU(), nn.Linear(4 * DIM, DIM))
        self.norm, self.query = nn.LayerNorm(DIM), nn.Linear(DIM, DIM)
        self.head = nn.Linear(DIM, 10)

    def forward(self, canvas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, side, side) to scores (batch, 10), queries (batch, GLIMPSES, 1, DIM) and keys."""
        key = self.blurred(F.avg_pool2d(canvas[:, None], TILE)).flatten(2).mT
        key = self.places(self.key_norm(key))[:, :, None]  # (batch, patches, 1, DIM)
        patches = F.unfold(canvas[:, None], TILE + 2 * MARGIN, padding=MARGIN, stride=TILE).mT
        value = self.places(self.read(patches))[:, :, None]
        state, queries = canvas.new_zeros(len(canvas), DIM), []
        for _ in range(GLIMPSES):
            query = self.query(self.norm(state))[:, None, None]  # (batch, 1, 1, DIM)
            seen = ga.attention(query, key, value, PATCHES, normalizer=self.normalizer)
            state, queries = state + seen.flatten(1), [*queries, query]
        return self.head(self.norm(state)), torch.cat(queries, dim=1), key

    @torch.no_grad()
    def test(self, canvas: Tensor) -> tuple[Tensor, Tensor]:
        """What each is read as, (batch,), and the weights of all (batch, GLIMPSES, patches)."""
        self.eval()
        scores, queries, key = self(canvas)
        graph = ga.bipartite(GLIMPSES, PATCHES.num_src)
        weights = ga.attention_weights(queries, key, graph, normalizer=self.normalizer)
        self.train()
        return scores.argmax(dim=-1), weights.view(len(canvas), GLIMPSES, PATCHES.num_src)


def learn(data: list[Tensor], steps: int, kind: str, seed: int, seconds: float) -> dict:
    """Train a reader; how well does it read, and at what cost?"""
    digits, labels, canvas, true = data
    set_seed(seed)
    model = Reader(NORMALIZERS[kind]()).to(digits.device)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.05)
    times, used, curve = [], 0.0, []
    while used < 1:
        start = time.perf_counter()
        optimizer.param_groups[0]["lr"] = 5e-3 * min((used + 0.002) / 0.05, (1 - used) / 0.95)
        chosen = torch.randint(len(digits), (BATCH,), device=digits.device)
        optimizer.zero_grad()
        loss_of(model, scatter(digits[chosen]), labels[chosen], used).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        times.append(time.perf_counter() - start)
        used = max(len(times) / steps, sum(times) / seconds)
        if used >= (len(curve) + 1) / 10:
            read_as, _ = model.test(canvas[:360])  # each held-out digit once
            curve.append((len(times), (read_as == true[:360]).float().mean().item()))
    read_as, weights = model.test(canvas)
    return {
        "accuracy": (read_as == true).float().mean().item(),
        "patches_read": (weights > 0).sum(dim=(1, 2)).float().mean().item(),
        "ms": 1000 * median(times),
        "curve": curve,
        "shown": {"weights": weights[:3].tolist(), "read_as": read_as[:3].tolist()},
    }


def loss_of(model: Reader, canvas: Tensor, labels: Tensor, used: float) -> Tensor:
    """Cross-entropy; for draws, their worth is how likely the label became by them."""
    if isinstance(model.normalizer, ga.nn.GumbelSoftmax):
        model.normalizer.temperature = 2 * 0.25**used  # falls to 0.5
    losses = F.cross_entropy(model(canvas)[0], labels, reduction="none")
    if isinstance(model.normalizer, ga.nn.Reinforce):
        return losses.mean() + model.normalizer.surrogate(-losses)
    return losses.mean()


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, "hard_attention", steps=600)
    options.add_argument("--repeats", type=positive, default=3, help="seeds for each (default 3)")
    options = options.parse_args(argv)
    accelerator = Accelerator()

    data = load_canvases(accelerator.device)
    seeds = range(options.seed, options.seed + options.repeats)
    settings = [(kind, seed) for seed in seeds for kind in NORMALIZERS]
    learned = learn_each(options, settings, partial(learn, data, options.steps))
    if accelerator.is_main_process:
        graphs = plans([PATCHES], 1, DIM) + plans([PATCHES], 1, DIM, normalizer="argmax")
        found = {kind: [learned[kind, seed] for seed in seeds] for kind in NORMALIZERS}
        report(Path(options.runs, options.name), found, data[2], data[3], graphs)


if __name__ == "__main__":
    main()
