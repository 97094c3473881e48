"""Steps of training on batches of PyG's NeighborLoader, from sampling to the optimizer."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from bench_sparse import random_edges
from timing import Row, agree, once
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch_geometric import nn
from torch_geometric.data import Data
from torch_geometric.loader import NeighborLoader
from torch_geometric.typing import WITH_PYG_LIB, WITH_TORCH_SPARSE
from tqdm import tqdm

from graphattn import pyg

NODES, EDGES, WIDTH, HEADS, DIM, CLASSES = 200_000, 4_000_000, 128, 4, 32, 40
FAN_OUT, SEEDS = [15, 10], 1024


class Model(torch.nn.Module):
    """Two layers and a classifier, as PyG's examples have them."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.convs = torch.nn.ModuleList(kind(WIDTH, DIM, HEADS) for _ in FAN_OUT)
        self.classify = torch.nn.Linear(HEADS * DIM, CLASSES)

    def forward(self, batch: Any) -> Tensor:
        x: Any = batch.x
        for conv in self.convs:
            x = conv(x, batch.edge_index).relu()
        return self.classify(x)[: batch.batch_size]


class Layered(Model):
    """The same, where each layer computes no more than the seeds hear of."""

    def forward(self, batch: Any) -> Tensor:
        x: Any = batch.x
        for conv, graph in zip(self.convs, batch.layers):
            edges = graph if isinstance(conv, OURS) else graph.edge_index
            x = conv((x[: graph.num_src], x[: graph.num_dst]), edges).relu()
        return self.classify(x)


OURS = (pyg.TransformerConv, pyg.GATv2Conv, pyg.GATConv)
PEERS = {
    "": {"PyG": 1 / 3, "PyG, sampling alone": None},
    ", layers": {"PyG": 1 / 3, "PyG, layers": None},
}
"""How ours is called, and what the time of a step has to reach against each peer."""


def suite(device: torch.device, rounds: int) -> list[Row]:
    """Both sides take the same steps: of the same weights, on the same batches."""
    if device.type != "cpu" or not (WITH_PYG_LIB or WITH_TORCH_SPARSE):
        print("loader: skipped; it needs a sampler of PyG (torch_sparse or pyg-lib), on a CPU")
        return []
    torch.manual_seed(0)
    index = random_edges(NODES, EDGES)
    data = Data(torch.randn(NODES, WIDTH), index, y=torch.randint(CLASSES, (NODES,)))
    data = data.sort(sort_by_row=False)
    plain, layered = (
        NeighborLoader(data, FAN_OUT, batch_size=SEEDS, is_sorted=True, transform=transform)
        for transform in (None, pyg.ToLayers(len(FAN_OUT)))
    )
    rows = []
    for kind in (nn.TransformerConv, nn.GATv2Conv):
        theirs = Model(kind)
        ways = {"PyG": steps(theirs, plain), "PyG, sampling alone": lambda n: sample(plain, n)}
        for name, side, loader in (
            ("ours", Model, plain),
            ("ours, layers", Layered, layered),
            ("PyG, layers", Layered, layered),
        ):
            model = side(kind)
            model.load_state_dict(theirs.state_dict())
            if "ours" in name:
                pyg.accelerate(model)
            ways[name] = steps(model, loader)
        case = f"NeighborLoader, {NODES:,} nodes, {EDGES:,} edges, {kind.__name__}"
        rows += compared(case, ways, rounds, device)
    return rows


def sample(loader: NeighborLoader, number: int) -> Any:
    torch.manual_seed(number)
    return loader(torch.randperm(NODES)[:SEEDS])


def steps(model: Model, loader: NeighborLoader) -> Callable[[int], Tensor]:
    """A function that takes a step on the batch of a number, and returns its loss."""
    optimizer = torch.optim.AdamW(model.parameters())

    def step(number: int) -> Tensor:
        batch = sample(loader, number)
        loss = cross_entropy(model(batch), batch.y[: batch.batch_size])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def compared(case: str, ways: dict[str, Any], rounds: int, device: torch.device) -> list[Row]:
    """Medians over rounds, all in turn, after checking that they lose the same."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in tqdm(range(max(3, rounds // 3) + 2), desc=case, leave=False):
        losses: dict[str, Any] = {}
        for name in list(ways) if number % 2 else list(ways)[::-1]:

            def run(name: str = name) -> None:
                losses[name] = ways[name](number)  # noqa: B023

            elapsed = once(run, device)
            if number >= 2:  # the first rounds warm up
                times[name].append(elapsed)
        for name in ways:
            if "sampling" not in name:
                agree(losses[name], losses["PyG"], case, name)
    rows = []
    for called, peers in PEERS.items():
        mine = times[f"ours{called}"]
        for peer, bound in peers.items():
            ratio = statistics.median(a / b for a, b in zip(mine, times[peer], strict=True))
            medians = (statistics.median(mine), statistics.median(times[peer]))
            rows.append(Row(case + called, peer, "step", *medians, ratio, bound))
    return rows
