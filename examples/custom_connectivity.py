"""Your own graph from networkx, and a task that only connectivity decides.

    python examples/custom_connectivity.py
    accelerate launch examples/custom_connectivity.py

Fifteen families of Renaissance Florence, and who married whom. One family knows a secret, one of
four; all must name it, though rumors of their own go round. A block of attention carries the secret
one edge further: over each graph, the last family can know it from that depth on which is its
distance from the first. The picture in runs/custom_connectivity/ shows whether it does.
"""

import time
from pathlib import Path

import networkx
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from checkpoints import write_json
from drawings import accuracy_by_depth
from settings import learn_each
from support import parser, plans, positive
from torch import Tensor, nn

import graphattn as ga
from graphattn.biases import hop_distance
from graphattn.models.layers import init_weights

FLORENCE = networkx.florentine_families_graph()
N, SECRETS, DIM, HEADS = len(FLORENCE), 4, 32, 2
GRAPHS = {
    "complete": ga.complete(N),
    "expander": ga.expander(N, 4, seed=1).with_self_loops(),
    "window": ga.sliding_window(N, 6),
    "Florence": ga.from_networkx(FLORENCE).with_self_loops(),
    "path": ga.sliding_window(N, 1),
}


class Families(nn.Module):
    """What every node says the secret is, after a number of blocks."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.told = nn.Embedding(SECRETS, DIM)
        self.positions = ga.nn.LearnedPositions(N, DIM)
        self.blocks = nn.ModuleList(ga.nn.TransformerBlock(DIM, HEADS) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, SECRETS)
        init_weights(self, std=DIM**-0.5)

    def forward(self, told: Tensor, graph: ga.Graph) -> Tensor:
        """What each is told at first, (batch, N), to scores (batch, N, SECRETS)."""
        x = self.positions(self.told(told))
        for block in self.blocks:
            x = block(x, graph)
        return self.head(self.norm(x))


def draw(batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What each is told, (4 * batch, N), and the secret: the same rumors with every secret."""
    secret = torch.arange(SECRETS).repeat_interleave(batch)
    told = torch.randint(SECRETS, (batch, N)).repeat(SECRETS, 1)
    told[:, 0] = secret
    return told.to(device), secret.to(device)


def learn(graph: ga.Graph, depth: int, steps: int, seconds: float, seed: int) -> dict:
    """Train a model of some depth until the last family is always right; who knows in the end?"""
    set_seed(seed)
    model = Families(depth).to(graph.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    step, always_right, start = 0, 0, time.perf_counter()
    while step < steps and always_right < 10 and time.perf_counter() - start < seconds:
        told, secret = draw(8, graph.device)
        said = model(told, graph)
        loss = F.cross_entropy(said.flatten(0, 1), secret.repeat_interleave(N))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        last_right = bool((said[:, -1].argmax(dim=-1) == secret).all())
        step, always_right = step + 1, (always_right + 1) * last_right
    with torch.no_grad():
        told, secret = draw(128, graph.device)
        right = model(told, graph).argmax(dim=-1) == secret[:, None]
    return {"steps": step, "accuracy": right.float().mean(dim=0).tolist()}  # of each family


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, "custom_connectivity", steps=200)
    options.add_argument("--depth", type=positive, default=6, help="of the deepest model")
    options = options.parse_args(argv)
    accelerator, folder = Accelerator(), Path(options.runs, options.name)

    query = torch.randn(N, HEADS, DIM // HEADS)
    accelerator.print(repr(GRAPHS["Florence"]))
    accelerator.print(ga.explain(query, query, query, GRAPHS["Florence"]))

    def learn_one(name: str, depth: int, seconds: float) -> dict:
        graph = GRAPHS[name].to(accelerator.device)
        return learn(graph, depth, options.steps, seconds, options.seed)

    models = [(name, depth) for depth in range(1, options.depth + 1) for name in GRAPHS]
    learned = learn_each(options, models, learn_one)
    if accelerator.is_main_process:
        report(folder, learned)


def report(folder: Path, learned: dict[tuple[str, int], dict]) -> None:
    """Print and draw what the last family knows after each depth, beside what hops allow."""
    hops = {name: int(hop_distance(graph, N)[-1, 0]) for name, graph in GRAPHS.items()}
    accuracy = {name: {} for name in GRAPHS}
    for (name, depth), result in learned.items():
        accuracy[name][depth] = result["accuracy"][-1]
    print("how often the last family is right after 1, 2, ... blocks")
    for name, by_depth in accuracy.items():
        row = "  ".join(f"{value:4.0%}" for value in by_depth.values())
        print(f"  {name:9} {hops[name]:3} hops away  {row}")
    as_predicted = all(
        (accuracy[name][depth] > 0.9) == (depth >= hops[name]) for name, depth in learned
    )
    result = {
        "example": folder.name,
        "graphs": plans(list(GRAPHS.values()), HEADS, DIM // HEADS),
        "result": f"{'as' if as_predicted else 'not as'} the hops predict, in every graph",
        "as_predicted": as_predicted,
        "hops": hops,
        "accuracy": accuracy,
        "pictures": [accuracy_by_depth(folder, GRAPHS, accuracy, hops, chance=1 / SECRETS)],
    }
    write_json(folder / "result.json", result)
    print(f"{result['result']}; see {folder}")


if __name__ == "__main__":
    main()
