"""Encodings of a node's place in a graph, computed once by PyG's transforms."""

from __future__ import annotations

from torch import Tensor

from graphattn.graphs import Graph


def laplacian_encoding(graph: Graph, k: int) -> Tensor:
    """Eigenvectors of the graph's Laplacian (Dwivedi et al. 2020, section 4.2).

    Args:
        graph: A graph on one set of nodes. Edges of one direction only are taken as they are.
        k: How many eigenvectors, those of the smallest non-trivial eigenvalues.

    Returns:
        (num_nodes, k), float32. The sign of an eigenvector is arbitrary, and PyG draws it from
        torch's generator: seed it for the same signs, or flip them at random in training.

    Raises:
        ValueError: If there are no k non-trivial eigenvectors.

    Example:
        >>> from graphattn import sliding_window
        >>> laplacian_encoding(sliding_window(10, 1), k=2).shape
        torch.Size([10, 2])
    """
    from torch_geometric.transforms import AddLaplacianEigenvectorPE

    if not 1 <= k < graph.num_dst:
        raise ValueError(
            f"a graph of {graph.num_dst} nodes has {max(graph.num_dst - 1, 0)} non-trivial "
            f"eigenvectors, got k={k}"
        )
    return AddLaplacianEigenvectorPE(k, attr_name="encoding")(graph.to_pyg()).encoding


def random_walk_encoding(graph: Graph, steps: int) -> Tensor:
    """Chances that a random walk is back after 1, 2, ... steps (Dwivedi et al. 2022, section 3.2).

    Args:
        graph: A graph on one set of nodes.
        steps: Length of the longest walk.

    Returns:
        (num_nodes, steps), float32.

    Raises:
        ValueError: If steps is not positive.

    Example:
        >>> from graphattn import complete
        >>> random_walk_encoding(complete(5).without_self_loops(), steps=2)[0].tolist()
        [0.0, 0.25]
    """
    from torch_geometric.transforms import AddRandomWalkPE

    if steps < 1:
        raise ValueError(f"steps must be positive, got {steps}")
    return AddRandomWalkPE(steps, attr_name="encoding")(graph.to_pyg()).encoding
