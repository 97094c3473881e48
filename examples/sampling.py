"""Batches of the neighbors of some nodes, and what they take."""

from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.loader import NeighborLoader
from torch_geometric.typing import WITH_PYG_LIB, WITH_TORCH_SPARSE

from graphattn.pyg import ToGraph, ToLayers

NO_SAMPLER = """NeighborLoader samples with pyg-lib or torch_sparse, and neither is installed:
pip install pyg-lib -f https://data.pyg.org/whl/torch-VERSION+cpu.html, or
pip install --no-build-isolation torch_sparse; or pass --full-batch, which samples nothing"""


class Sampled:
    """Batches of the neighbors of some nodes; every node, if there is no fan-out."""

    def __init__(self, data: Any, depth: int, fan_out: int | None) -> None:
        self.data, self.loader = data, None
        if fan_out is None:
            data = ToGraph()(data)
            data.layers = [data.graph] * depth
            self.whole = data
        elif not (WITH_PYG_LIB or WITH_TORCH_SPARSE):
            raise SystemExit(NO_SAMPLER)
        else:
            transform = ToLayers(depth)
            self.loader = NeighborLoader(data, [fan_out] * depth, transform=transform)

    def __call__(self, nodes: Tensor) -> tuple[Any, Tensor]:
        """A batch, and where in the result of the model the nodes are."""
        if self.loader is None:
            return self.whole, nodes
        return self.loader(nodes), torch.arange(len(nodes))


def kept(model: nn.Module, batch: Any) -> float:
    """Megabytes that a step keeps for its backward pass, beside the parameters."""
    own = {parameter.data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        if x.data_ptr() not in own:
            sizes[x.data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        model(batch.x, batch.layers)
    return sum(sizes.values()) / 1e6
