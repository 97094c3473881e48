"""Layers of PyG, linear maps included: ours beside PyG's own, as they stand and compiled."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import bench_loader
import torch
from bench_sparse import random_edges
from timing import Call, Row, compare
from torch import Tensor
from torch_geometric import nn

from graphattn import pyg

MOLECULES, GPS_WIDTH = 256, 64
NODES, EDGES, WIDTH, HEADS, DIM, EDGE_DIM = 20_000, 400_000, 128, 4, 32, 16

BOUNDS: list[tuple[Any, dict[str, int], dict[str, float]]] = [
    (nn.TransformerConv, {}, {"PyG": 1 / 12, "PyG, compiled": 1 / 6}),
    (nn.TransformerConv, {"edge_dim": EDGE_DIM}, {"PyG": 1 / 6}),
    (nn.GATv2Conv, {}, {"PyG": 1 / 10}),
    (nn.GATv2Conv, {"edge_dim": EDGE_DIM}, {}),
    (nn.GATConv, {}, {"PyG": 1 / 6}),
    (nn.GATConv, {"edge_dim": EDGE_DIM}, {}),
]
"""Layer, options, and what the time of forward and backward has to reach against each peer."""


def of_layer(layer: Any, index: Tensor, *, fresh: bool = False) -> Call:
    """A call of nodes, features of edges if any, and the layer's own parameters, for gradients.

    fresh: Whether every call has an edge_index that no call had before, as batches of a loader.
    """
    edge_dim = layer.edge_dim

    def call(x: Tensor, *others: Tensor) -> Tensor:
        attr = None if edge_dim is None else others[0]
        return layer(x, index.clone() if fresh else index, attr)

    return call


def _has_gradient(name: str, conv: Any) -> bool:
    return not name.endswith("bias") and (conv is not None or not name.startswith("norm1"))


def molecules(device: torch.device, rounds: int) -> list[Row]:
    """A batch of molecules through a GPS layer: its local layer, norms and perceptron included."""
    torch.manual_seed(0)
    rows, size = [], torch.randint(10, 41, (MOLECULES,))
    batch = torch.arange(MOLECULES).repeat_interleave(size)
    start = (size.cumsum(0) - size)[batch].repeat(2)
    span = size[batch].repeat(2)
    ends = [start + (torch.rand(len(start)) * span).long() for _ in range(2)]
    index, batch = torch.stack(ends).to(device), batch.to(device)
    x = torch.randn(len(batch), GPS_WIDTH, device=device, requires_grad=True)
    local = {
        "no local layer": None,
        "GATv2Conv": nn.GATv2Conv(GPS_WIDTH, GPS_WIDTH // HEADS, HEADS),
    }
    for name, conv in local.items():
        theirs = nn.GPSConv(GPS_WIDTH, conv, heads=HEADS).to(device)
        ours = copy.copy(theirs)  # with the very same parameters
        ours._modules = {name: copy.copy(part) for name, part in theirs._modules.items()}
        pyg.accelerate(ours)
        # A bias before a norm shifts nothing: its gradient is 0, and both sides return rounding.
        named = theirs.named_parameters()
        inputs = [x, *(value for name, value in named if _has_gradient(name, conv))]

        def of_gps(layer: Any) -> Call:
            return lambda x, *_: layer(x, index, batch)

        case = f"GPSConv, {MOLECULES} molecules of 10 to 40 nodes, {GPS_WIDTH} channels, {name}"
        bound = {"PyG": 1 / 3} if conv is not None else {}
        few = {"rounds": max(3, rounds // 3), "directions": ("forward + backward",)}
        rows += compare(case, inputs, of_gps(ours), {"PyG": of_gps(theirs)}, bound=bound, **few)
    return rows


def suite(device: torch.device, rounds: int) -> list[Row]:
    """Every layer, with and without features of edges; what is compiled comes last."""
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)
    index, rows = random_edges(NODES, EDGES).to(device), molecules(device, rounds)
    for compiled in (False, True):
        for kind, options, bound in BOUNDS:
            torch.manual_seed(0)
            theirs = kind(WIDTH, DIM, HEADS, **options).to(device)
            ours = copy.copy(theirs)  # with the very same parameters
            pyg.accelerate(ours)
            x = torch.randn(NODES, WIDTH, device=device, requires_grad=True)
            attr = torch.randn(EDGES, EDGE_DIM, device=device, requires_grad=True)
            # A bias of keys changes no weight: its gradient is 0, and both sides return rounding.
            named = theirs.named_parameters()
            parameters = [value for name, value in named if name != "lin_key.bias"]
            inputs = [x, *([attr] if options else []), *parameters]
            case = f"{kind.__name__}, {WIDTH} -> {HEADS} x {DIM}, {EDGES:,} edges"
            case += f", edge_dim={EDGE_DIM}" if options else ""
            peer = torch.compile(theirs) if compiled else theirs
            name = "PyG, compiled" if compiled else "PyG"
            peers = {name: of_layer(peer, index)}
            few = {"rounds": max(3, rounds // 3), "directions": ("forward + backward",)}
            rows += compare(case, inputs, of_layer(ours, index), peers, bound=bound, **few)
            if not compiled:
                case, fresh = f"{case}, new edges", of_layer(ours, index, fresh=True)
                rows += compare(case, inputs, fresh, peers, bound={}, **few)
    return rows + bench_loader.suite(device, rounds)
