"""The graphs of a model: what `rewire` leaves with each layer, and nothing beside."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from graphattn.graphs import Graph

GraphFunction = Callable[[int, int, int, int], Graph | None]
Wires = Graph | Sequence[Graph | None] | GraphFunction

KEPT_ANSWERS = 64  # of a function: lengths that come again


@dataclass(eq=False)
class Wiring:
    """What the user gave for all layers.

    graph: A graph for all, one for each layer, or `(q_len, kv_len, offset, layer) -> Graph`.
    answers: What a function answered lately.
    """

    graph: Wires
    answers: OrderedDict[tuple[int, ...], Graph | None] = field(default_factory=OrderedDict)

    def __getstate__(self) -> dict[str, Any]:
        return {"graph": self.graph, "answers": OrderedDict()}


@dataclass(frozen=True, eq=False)
class Layer:
    """The wiring as one layer sees it: `graph` if it has one for all lengths, else `ask`."""

    wiring: Wiring
    index: int

    @property
    def graph(self) -> Graph | None:
        given = self.wiring.graph
        if isinstance(given, Sequence):
            return given[self.index]
        return given if isinstance(given, Graph) else None

    @property
    def is_asked(self) -> bool:
        """Whether a function answers for every length."""
        return not isinstance(self.wiring.graph, Graph | Sequence)

    def ask(self, queries: int, keys: int, offset: int) -> Graph | None:
        """What the function answers, checked.

        Raises:
            TypeError: If that is no graph.
            ValueError: If it has other numbers of nodes.
        """
        asked = (queries, keys, offset, self.index)
        answers = self.wiring.answers
        if asked not in answers:
            answers[asked] = self._checked(asked)
            if len(answers) > KEPT_ANSWERS:
                answers.popitem(last=False)
        return answers[asked]

    def _checked(self, asked: tuple[int, int, int, int]) -> Graph | None:
        function: Any = self.wiring.graph
        graph, (queries, keys, *_) = function(*asked), asked
        call = f"graph(q_len={queries}, kv_len={keys}, offset={asked[2]}, layer={asked[3]})"
        if graph is None:
            return None
        if not isinstance(graph, Graph):
            raise TypeError(f"{call} must return a graph or None, got {type(graph).__name__}")
        if (graph.num_dst, graph.num_src) != (queries, keys):
            raise ValueError(
                f"{call} must have {keys} sources and {queries} destinations, got {graph.num_src} "
                f"and {graph.num_dst}; rows(offset, offset + q_len) of a graph on kv_len nodes has"
            )
        return graph


def layer_of(module: nn.Module) -> Layer | None:
    """What `rewire` left with a module."""
    return module.__dict__.get(KEY)


KEY = "_graphattn"


def check_wires(graph: Any, num_layers: int) -> Wires:
    """Raise unless it is a graph on one set of nodes, one or None for each layer, or a function."""
    if isinstance(graph, Sequence) and not isinstance(graph, str):
        if len(graph) != num_layers:
            raise ValueError(
                f"the model has {num_layers} layers of self-attention, and graph is a list of "
                f"{len(graph)}; give one graph for each, or None for the model's own"
            )
        for item in graph:
            if item is not None:
                _check_graph(item)
        return list(graph)
    if isinstance(graph, Graph) or not callable(graph):
        _check_graph(graph)
    elif not _takes_lengths(graph):
        raise TypeError(
            f"graph must be a graph, or a function (q_len, kv_len, offset, layer) -> Graph, got "
            f"{getattr(graph, '__name__', graph)}{inspect.signature(graph)}"
        )
    return cast(Wires, graph)


def _takes_lengths(function: Any) -> bool:
    try:
        inspect.signature(function).bind(1, 1, 0, 0)
    except ValueError:  # it has no signature
        return True
    except TypeError:
        return False
    return True


def _check_graph(graph: Any) -> None:
    if not isinstance(graph, Graph):
        kind = "a mask" if isinstance(graph, torch.Tensor) else type(graph).__name__
        raise TypeError(
            "graph must be a graphattn graph, a list of them, or a function "
            f"(q_len, kv_len, offset, layer) -> Graph, got {kind}; from_mask makes one of a mask"
        )
    if graph.num_dst != graph.num_src:
        raise ValueError(
            f"graph must join a set of nodes to itself, got {graph.num_src} sources and "
            f"{graph.num_dst} destinations in {graph}"
        )
