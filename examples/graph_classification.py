"""Batches of small graphs, classified by layers that hear neighbors alone, or their whole graph.

    python examples/graph_classification.py
    python examples/graph_classification.py --data MUTAG

Trees whose root asks for one of the leaves (NeighborsMatch of Alon and Yahav 2021, section 4.1):
each leaf holds a key and a value, the root a key, and the class of the tree is the value of the
leaf with that key. A local layer carries it one edge further; GPS attends to the whole tree, and
Exphormer to an expander and a virtual node. --data NAME takes a dataset of PyG's TUDataset instead.
The picture in runs/graph_classification/ shows how often each is right, by depth.
"""

import time
from pathlib import Path
from typing import Any

import networkx
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from checkpoints import write_json
from settings import learn_each
from sizes import accuracy_by_size
from support import parser, plans
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.datasets import TUDataset
from torch_geometric.nn import global_mean_pool

from graphattn import pyg

KEYS, VALUES, DIM, HEADS, LAYERS, BATCH, DEPTHS = 32, 4, 32, 4, 3, 64, (2, 3, 4, 5)
JOINED: Any = Batch.from_data_list


class Nothing(nn.Module):
    def forward(self, x: Tensor, batch: Tensor) -> Tensor:
        return torch.zeros_like(x)


ATTENTION = {  # of GPS layers; None is that of all to all
    "local": Nothing,
    "GPS": lambda: None,
    "Exphormer": lambda: pyg.Exphormer(DIM, HEADS),
}


class Classifier(nn.Module):
    """Scores of the classes, read off the nodes that `data.told` marks."""

    def __init__(self, kind: str, sizes: list[int], num_classes: int) -> None:
        super().__init__()
        self.kind, attention = kind, ATTENTION[kind]
        self.embeddings = nn.ModuleList(nn.Embedding(size, DIM) for size in sizes)
        self.virtual = pyg.VirtualNodes(1, DIM)
        self.layers = nn.ModuleList(
            pyg.GPSConv(DIM, pyg.GATv2Conv(DIM, DIM // HEADS, HEADS), HEADS, attention=attention())
            for _ in range(LAYERS)
        )
        self.head = nn.Linear(DIM, num_classes)

    def forward(self, data: Any) -> Tensor:
        x = torch.stack([part(c) for part, c in zip(self.embeddings, data.x.T)]).sum(0)
        scope = pyg.exphormer_edges(data) if self.kind == "Exphormer" else data.batch
        x = self.virtual(x, scope) if self.kind == "Exphormer" else x
        for layer in self.layers:
            x = layer(x, data.edge_index, scope)
        told = x[: data.num_nodes][data.told]
        return self.head(global_mean_pool(told, data.batch[data.told]))


def trees(count: int) -> list[Any]:
    """So many trees of each depth; x holds key and value, from 1 on, and 0 where there is none."""
    made = []
    for depth in DEPTHS:
        tree = networkx.balanced_tree(2, depth)
        index = torch.tensor(list(tree.edges)).T
        plain = Data(edge_index=torch.cat([index, index.flip(0)], dim=1), num_nodes=len(tree))
        edges, leaves = pyg.AddExpander()(plain), 2**depth
        for _ in range(count):
            x = torch.zeros(len(tree), 2, dtype=torch.int64)
            x[-leaves:, 0] = torch.randperm(KEYS)[:leaves] + 1
            x[-leaves:, 1] = torch.randint(VALUES, (leaves,)) + 1
            asked = len(tree) - 1 - int(torch.randint(leaves, ()))
            x[0, 0], x[0, 1] = x[asked, 0], VALUES + 1
            data = Data(x, y=x[asked, 1] - 1, told=torch.arange(len(tree)) == 0, depth=depth)
            data.edge_index, data.expander_edge_index = edges.edge_index, edges.expander_edge_index
            made.append(data)
    return made


def load(name: str) -> tuple[list[Any], list[Any]]:
    """Graphs to learn from and graphs held out."""
    if name == "trees":
        return trees(1500), trees(200)
    made = []
    for data in TUDataset("data", name):
        x = torch.ones(data.num_nodes or 0, 1) if data.x is None else data.x
        told, y = torch.ones(len(x), dtype=torch.bool), data.y[0]
        plain = Data(x.argmax(1, True), data.edge_index, y=y, told=told, depth=0)
        made.append(pyg.AddExpander()(plain))
    order = torch.randperm(len(made)).tolist()
    return [made[i] for i in order[len(made) // 5 :]], [made[i] for i in order[: len(made) // 5]]


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, "graph_classification", steps=300)
    options.add_argument("--data", default="trees", help="trees, or a name of TUDataset's")
    options = options.parse_args(argv)
    device = Accelerator().device
    set_seed(options.seed)
    train, held_out = load(options.data)
    sizes = (1 + torch.stack([data.x.amax(0) for data in train + held_out]).amax(0)).tolist()
    test, classes = JOINED(held_out).to(device), {int(d.y) for d in train}

    def learn(kind: str, data: str, seconds: float) -> dict:
        set_seed(options.seed)
        model = Classifier(kind, sizes, 1 + max(classes)).to(device)
        optimizer, start = torch.optim.AdamW(model.parameters(), lr=5e-3), time.perf_counter()
        for _ in range(options.steps):
            drawn = torch.randint(len(train), (BATCH,)).tolist()
            batch = JOINED([train[i] for i in drawn]).to(device)
            loss = F.cross_entropy(model(batch), batch.y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if time.perf_counter() - start > seconds:
                break
        with torch.no_grad():
            right = (model.eval()(test).argmax(-1) == test.y).float()
        depths = test.depth.unique().tolist()
        return {"accuracy": {d: right[test.depth == d].mean().item() for d in depths}}

    found = learn_each(options, [(kind, options.data) for kind in ATTENTION], learn)
    accuracy = {kind: result["accuracy"] for (kind, _), result in found.items()}
    chance = torch.bincount(test.y).max().item() / len(test.y)
    for kind, row in accuracy.items():
        print(f"  {kind:10}", "  ".join(f"{size}: {value:4.0%}" for size, value in row.items()))
    print(f"  always the most frequent class: {chance:.0%}")
    pictures = [accuracy_by_size(folder := Path(options.runs, options.name), accuracy, chance)]
    graphs = plans([pyg.batch_graph(test.batch.cpu())], HEADS, DIM // HEADS)
    words = ", ".join(f"{k} {sum(a.values()) / len(a):.0%}" for k, a in accuracy.items())
    result = {"example": options.name, "graphs": graphs, "result": f"right: {words}"}
    write_json(folder / "result.json", {**result, "accuracy": accuracy, "pictures": pictures})
    print(f"{words}; see {folder}")


if __name__ == "__main__":
    main()
