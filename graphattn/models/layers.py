"""What the models share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from graphattn.graphs import Graph


def graph_of_each(graph: Graph | Sequence[Graph], num_blocks: int) -> list[Graph]:
    """One graph for each block: the same for all, or a list with one for each.

    Raises:
        ValueError: If a list has another length.
    """
    if isinstance(graph, Graph):
        return [graph] * num_blocks
    if len(graph) != num_blocks:
        raise ValueError(
            f"give one graph, or one for each of the {num_blocks} blocks; got {len(graph)}"
        )
    return list(graph)


def mean_of_nodes(x: Tensor) -> Tensor:
    """(*batch, nodes, dim) to (*batch, dim)."""
    return x.mean(dim=-2)


def first_node(x: Tensor) -> Tensor:
    """(*batch, nodes, dim) to (*batch, dim)."""
    return x[..., 0, :]


def init_weights(module: nn.Module, std: float = 0.02) -> None:
    """Truncated normal weights and zero biases for every linear map and embedding."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding | nn.Conv2d):
            nn.init.trunc_normal_(part.weight, std=std)
        if isinstance(part, nn.Linear | nn.Conv2d) and part.bias is not None:
            nn.init.zeros_(part.bias)
