"""Classify the nodes of a large graph in mini-batches: each step sees the neighbors of a few nodes.

    python examples/node_classification.py
    python examples/node_classification.py --data cora --root data --full-batch

By default, 100,000 papers cite each other. A paper shows a sixth of the pixels of a real digit, its
class, so that alone it can hardly be read, and cites twenty others: fifteen surveys of any class,
and five papers of its own. PyG's NeighborLoader samples the neighbors of a few labelled nodes, and
theirs; `ToLayers` makes a graph for each layer of what these nodes hear of. What a step keeps for
its backward pass does then not grow with the graph. The picture shows whom some papers attend to.
"""

from typing import Any

import torch
import torch.nn.functional as F
from citations import DATA, baselines, load_citations
from readers import attention_to_neighbors
from sampling import Sampled, kept
from support import Run, add_training, parser, plans, positive
from torch import Tensor, nn

import graphattn as ga
from graphattn.pyg import TransformerConv

FITS = 300_000  # nodes of which a full batch is tried at the end, to say what it takes


class Classifier(nn.Module):
    """Layers of PyG's TransformerConv, each over a graph of its own."""

    def __init__(self, features: int, classes: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.read = nn.Sequential(nn.Linear(features, dim), nn.ReLU())
        convs = (TransformerConv(dim, dim // heads, heads) for _ in range(depth))
        self.convs, self.norms = nn.ModuleList(convs), nn.ModuleList()
        self.norms.extend(nn.LayerNorm(dim) for _ in range(depth))
        self.classify = nn.Linear(dim, classes)

    def hidden(self, x: Tensor, graphs: list[ga.Graph]) -> Tensor:
        """(num_src, features) to (num_dst, dim), through as many layers as there are graphs."""
        x = self.read(x)
        for conv, norm, graph in zip(self.convs, self.norms, graphs):
            x, own = x[: graph.num_src], x[: graph.num_dst]
            x = norm(own + conv((x, own), graph).relu())
        return x

    def forward(self, x: Tensor, graphs: list[ga.Graph]) -> Tensor:
        return self.classify(self.hidden(x, graphs))

    @torch.no_grad()
    def weights(self, x: Tensor, graphs: list[ga.Graph]) -> Tensor:
        """What each edge of the last layer weighs, (E,), on average over the heads."""
        x, last = self.hidden(x, graphs[:-1]), graphs[-1]
        pair = x[: last.num_src], x[: last.num_dst]
        return self.convs[-1](pair, last, return_attention_weights=True)[1][1].mean(1)


@torch.no_grad()
def accuracy(model: Classifier, sampled: Sampled, nodes: Tensor, batch_size: int) -> float:
    model.eval()
    right = []
    for part in nodes.split(batch_size):
        batch, rows = sampled(part)
        found = model(batch.x, batch.layers)[rows].argmax(1)
        right.append(found == sampled.data.y[part])
    return torch.cat(right).float().mean().item()


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, "node_classification", steps=200)
    add_training(options, lr=5e-3, dim=64, depth=2, heads=4, batch=256)
    add = options.add_argument
    add("--data", choices=DATA, default="digits", help="default digits")
    add("--root", default="data", help="folder of downloaded data (default data)")
    add("--nodes", type=positive, default=100_000, help="papers of digits (default 100000)")
    add("--degree", type=positive, default=20, help="citations of each (default 20)")
    add("--fan-out", type=positive, default=15, help="neighbors sampled a node (default 15)")
    add("--full-batch", action="store_true", help="each step over all nodes, without a sampler")
    options = options.parse_args(argv)

    data = load_citations(options.data, options.root, options.nodes, options.degree)
    train, test = (data[f"{part}_mask"].nonzero().flatten() for part in ("train", "test"))
    torch.manual_seed(options.seed)
    test = test[torch.randperm(len(test))[:4096]]
    sizes = (options.dim, options.depth, options.heads)
    model = Classifier(data.num_features, int(data.y.max()) + 1, *sizes)
    sampled = Sampled(data, options.depth, None if options.full_batch else options.fan_out)
    run = Run(options, model, lr=options.lr)
    for step in run:
        nodes = train if options.full_batch else train[torch.randperm(len(train))[: options.batch]]
        batch, rows = sampled(nodes)
        run.learn(F.cross_entropy(run.model(batch.x, batch.layers)[rows], data.y[nodes]))
        if (step + 1) % max(1, options.steps // 10) == 0:
            run.log(held_out=accuracy(model, sampled, test[:1024], options.batch))

    if run.accelerator.is_main_process:
        report(run, model, data, sampled, train, test)


def report(run: Run, model: Classifier, data: Any, sampled: Sampled, train, test) -> None:
    options = run.options
    found = baselines(data, train, test)
    found["this model"] = accuracy(model, sampled, test, options.batch)
    print(f"{len(test):,} held-out nodes classified right")
    for name, share in found.items():
        print(f"  {name:46} {share:6.1%}")
    batch = sampled(train[: options.batch])[0]
    memory = {"a batch": kept(model, batch)}
    if data.num_nodes <= FITS:
        whole = Sampled(data, options.depth, None)
        memory["a full batch"] = kept(model, whole(train)[0])
    for name, size in memory.items():
        print(f"  {size:10,.1f} MB are kept for the backward pass by {name}")
    shown, rows = sampled(test[:3])
    picture = attention_to_neighbors(run.folder / "neighbors.png", shown, rows, model)
    best = max(share for name, share in found.items() if name != "this model")
    run.finish(
        result=f"{found['this model']:.1%} of held-out nodes right, {best:.1%} by a baseline",
        accuracy=found,
        megabytes_kept=memory,
        graphs=plans(batch.layers, options.heads, options.dim // options.heads),
        pictures=[picture],
    )


if __name__ == "__main__":
    main()
