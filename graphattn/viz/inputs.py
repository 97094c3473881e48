"""Checks of what users pass to a picture; each error says what was expected and what came."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from graphattn.graphs import Graph
from graphattn.graphs.checks import integer, integers, items, tensor


def edge_weights(weights: Any, graph: Graph) -> tuple[Tensor, str]:
    """One weight for each edge, float64 (E,) on the CPU, and how it came about, for the title."""
    values = real("weights", weights)
    hint = "; take one of the batch, as weights[0]" if values.ndim > 2 else ""
    if values.ndim not in (1, 2) or len(values) != graph.num_edges or 0 in values.shape[1:]:
        raise ValueError(
            f"weights must be (E,) or (E, heads) with E = {graph.num_edges}, the edges of {graph} "
            f"in edge order, got {tuple(values.shape)}{hint}"
        )
    if values.ndim == 1 or values.shape[1] == 1:
        return values.flatten(), ""
    return values.mean(dim=1), f"mean of {values.shape[1]} heads"


def real(name: str, value: Any) -> Tensor:
    """Finite numbers, as float64 on the CPU, without gradient."""
    made = tensor(name, value).detach()
    if made.is_complex():
        raise TypeError(f"{name} must be real, got {made.dtype}")
    made = made.cpu().double()  # not every device has float64
    if not bool(made.isfinite().all()):
        place = (~made.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"{name} must be finite, got {made[tuple(place)].item()} at {place}")
    return made


def node_words(name: str, labels: Iterable[Any], count: int) -> list[str]:
    """A label for each of `count` nodes, as text."""
    words = list(labels) if isinstance(labels, str) else items(name, labels)
    if len(words) != count:
        raise ValueError(f"{name} must be {count}, one for each node, got {len(words)}")
    return [str(word) for word in words]


def both_labels(labels: Any, graph: Graph) -> tuple[list[str] | None, list[str] | None]:
    """Labels of the destinations and of the sources, from those of the nodes or from a pair."""
    if labels is None:
        return None, None
    pair = isinstance(labels, Sequence) and not isinstance(labels, str) and len(labels) == 2
    if pair and all(isinstance(side, Iterable) and not isinstance(side, str) for side in labels):
        return (
            node_words("labels of the destinations", labels[0], graph.num_dst),
            node_words("labels of the sources", labels[1], graph.num_src),
        )
    if graph.num_dst != graph.num_src:
        raise ValueError(
            f"labels must be a pair, of {graph.num_dst} destinations and of {graph.num_src} "
            f"sources, got {labels!r:.60}"
        )
    words = node_words("labels", labels, graph.num_dst)
    return words, words


def destination_list(highlight: int | Iterable[int] | None, graph: Graph) -> list[int]:
    """Destinations, checked to be nodes."""
    if highlight is None:
        return []
    if isinstance(highlight, Iterable) and not isinstance(highlight, Tensor):
        highlight = items("highlight", highlight)
    nodes = integers("highlight", highlight).reshape(-1).tolist()
    return [destination("highlight", node, graph) for node in nodes]


def destination(name: str, node: Any, graph: Graph) -> int:
    """A destination of the graph; else an IndexError."""
    number = integer(name, node, low=-(2**31))
    if not 0 <= number < graph.num_dst:
        raise IndexError(
            f"{name} names node {number}, out of range for the {graph.num_dst} destinations of "
            f"{graph}"
        )
    return number
