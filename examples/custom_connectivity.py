"""Your own connectivity: a graph from networkx, and a task in which the graph decides.

    python examples/custom_connectivity.py
    python examples/custom_connectivity.py --depths 1 2 3 --steps 100

A fact stands at node 0, and node 15 is asked for it. A layer of attention carries it over one
edge, so a model needs as many layers as there are hops between the two: 15 along a path, 5 with a
window of three to each side, 3 in an expander with fewer edges than the window, 1 if all attend to
all. One small model is trained for every graph and depth; the plot in runs/custom_connectivity/
shows where the fact arrives.
"""

import argparse
import json
import time
from pathlib import Path

import checkpoints
import networkx
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from matplotlib.figure import Figure
from pictures import BLUE, GREEN, ORANGE, PURPLE, save
from support import parser, plans, positive
from torch import Tensor, nn
from tqdm import tqdm

import graphattn as ga
from graphattn.biases import hop_distance

NODES, FACTS, DIM, HEADS = 16, 8, 32, 2
GRAPHS = {  # add your own
    "path": ga.sliding_window(NODES, 1),
    "window": ga.sliding_window(NODES, 3),
    "expander": ga.expander(NODES, 3, seed=7).with_self_loops(),
    "complete": ga.complete(NODES),
}
COLORS = dict(zip(GRAPHS, (PURPLE, ORANGE, GREEN, BLUE)))
HOPS = {name: int(hop_distance(graph, NODES)[-1, 0]) for name, graph in GRAPHS.items()}


class Listener(nn.Module):
    """A stack of blocks; every node says which fact it has heard of."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(2 * FACTS, DIM)
        self.positions = ga.nn.LearnedPositions(NODES, DIM)
        nn.init.normal_(self.positions.table)
        blocks = (ga.nn.TransformerBlock(DIM, HEADS, mlp_ratio=2) for _ in range(depth))
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, FACTS))

    def forward(self, tokens: Tensor, graph: ga.Graph) -> Tensor:
        """int64 (batch, nodes) -> (batch, nodes, FACTS)."""
        x = self.positions(self.embedding(tokens))
        for block in self.blocks:
            x = block(x, graph)
        return self.head(x)


def draw_batch(size: int) -> tuple[Tensor, Tensor]:
    """Tokens (size, NODES), noise but for the fact at node 0, and the facts (size,)."""
    fact, tokens = torch.randint(FACTS, (size,)), torch.randint(FACTS, (size, NODES))
    tokens[:, 0] = FACTS + fact
    return tokens, fact


def train(graph: ga.Graph, depth: int, options: argparse.Namespace) -> float:
    """Accuracy of the last node, after training every node to tell the fact."""
    set_seed(options.seed + depth)
    accelerator, model = Accelerator(), Listener(depth)
    optimizer = torch.optim.AdamW(model.parameters(), options.lr)
    model, optimizer = accelerator.prepare(model, optimizer)
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min(1, step / 20, 2 - 2 * step / options.steps)
        tokens, fact = (part.to(accelerator.device) for part in draw_batch(64))
        scores = model(tokens, graph).flatten(0, 1)
        accelerator.backward(F.cross_entropy(scores, fact.repeat_interleave(NODES)))
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        tokens, fact = (part.to(accelerator.device) for part in draw_batch(2000))
        return (model(tokens, graph)[:, -1].argmax(-1) == fact).double().mean().item()


def own_graph() -> None:
    """Who met whom in a karate club: the graph, a bias from its edges, and the plan."""
    club = ga.from_networkx(networkx.karate_club_graph(), edge_attrs=["weight"])
    x = torch.randn(club.num_dst, HEADS, DIM)
    closeness = club.edge_attrs["weight"].log()[:, None]  # (E, 1): the same for all heads
    ga.attention(x, x, x, club, bias=closeness)
    print(f"{club!r}\n{ga.explain(x, x, x, club, bias=closeness)}\n")


def plot(path: Path, accuracy: dict[str, dict[int, float]]) -> str:
    """The graphs, and the accuracy of each against the number of layers."""
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.5])
    for axes, (name, graph) in zip(above.subplots(1, len(GRAPHS)), GRAPHS.items()):
        drawn = networkx.Graph(graph.without_self_loops().to_networkx())
        colors = [ORANGE] + ["lightgray"] * (NODES - 2) + [BLUE]
        look = {"node_size": 90, "edge_color": "gray", "width": 0.7, "edgecolors": "black"}
        networkx.draw_circular(drawn, ax=axes, node_color=colors, linewidths=0.5, **look)
        axes.set_title(f"{name}: {graph.num_edges} edges, {HOPS[name]} hops", color=COLORS[name])
    above.suptitle("How far is it from the fact (orange) to the node that is asked (blue)?")
    axes = below.subplots()
    for name, by_depth in accuracy.items():
        depths = list(by_depth)
        axes.plot(depths, list(by_depth.values()), "o-", color=COLORS[name], label=name)
        if HOPS[name] <= max(depths):
            axes.axvline(HOPS[name], color=COLORS[name], linestyle=":", linewidth=1.5)
    axes.axhline(1 / FACTS, color="black", linestyle="--", linewidth=1, label="chance")
    axes.set(xlabel="layers", ylabel="accuracy of the node that is asked", ylim=(0, 1.05))
    axes.set_title("A layer is a hop (dotted: the first depth at which the fact can arrive)")
    axes.set_xticks(depths)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return save(figure, path)


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, "custom_connectivity", steps=200, save_every=1)
    options.add_argument("--depths", type=positive, nargs="+", default=[1, 2, 3, 4, 5, 6])
    options.add_argument("--lr", type=float, default=3e-3)
    options = options.parse_args(argv)
    torch.set_num_threads(1)  # models this small are slower on more
    own_graph()

    folder = Path(options.runs, options.name)
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"cells-{options.steps}-{options.lr}-{options.seed}.json"
    cells = json.loads(kept.read_text()) if options.resume and kept.exists() else {}
    start, main_process = time.perf_counter(), Accelerator().is_main_process
    todo = [(name, depth) for name in GRAPHS for depth in options.depths]
    for name, depth in tqdm(todo, desc=options.name, disable=not main_process):
        if f"{name} {depth}" not in cells:
            cells[f"{name} {depth}"] = train(GRAPHS[name], depth, options)
            if main_process:
                checkpoints.write_json(kept, cells)
    if not main_process:
        return

    accuracy = {name: {d: cells[f"{name} {d}"] for d in options.depths} for name in GRAPHS}
    arrived = {name: [d for d, a in of.items() if a > 0.9] for name, of in accuracy.items()}
    expected = {name: [d for d in options.depths if d >= HOPS[name]] for name in GRAPHS}
    first = ", ".join(f"{n} {min(ds)}" if ds else f"{n} never" for n, ds in arrived.items())
    result = {
        "example": options.name,
        "seconds": time.perf_counter() - start,
        "graphs": plans(list(GRAPHS.values()), HEADS, DIM // HEADS),
        "result": f"layers until the fact arrives: {first}",
        "as_predicted": arrived == expected,
        "accuracy": accuracy,
        "pictures": [plot(folder / "hops.png", accuracy)],
    }
    checkpoints.write_json(folder / "result.json", result)
    print(f"{result['result']}; see {folder}")


if __name__ == "__main__":
    main()
