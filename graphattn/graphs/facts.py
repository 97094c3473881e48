"""Facts: what is derived from a graph, computed once, kept with the graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch, update_wrapper
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

if TYPE_CHECKING:
    from graphattn.graphs.graph import Graph

T = TypeVar("T")

KEPT = "_kept_"
"""Attributes of a graph that begin with this are facts: derived, and never copied or pickled."""


def constant_when_compiled(function: Callable[..., T]) -> Callable[..., T]:
    """Run a function while torch.compile traces, and take its result for a constant.

    It leaves the mark that `torch.compiler.assume_constant_result` leaves; that one imports the
    whole compiler, which takes as long as importing torch.
    """
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function


class Fact(Generic[T]):
    """A function of a graph with one rule per class of graph; see `fact`."""

    def __init__(self, default: Callable[[Any], T]) -> None:
        self.name = KEPT + default.__name__
        self._rules = singledispatch(default)
        self.register = self._rules.register
        update_wrapper(self, default)

    def __call__(self, graph: Graph) -> T:
        remember(graph, self.name, self._rules)
        return getattr(graph, self.name)


def fact(default: Callable[[Any], T]) -> Fact[T]:
    """Make a function of a graph a fact.

    A fact is computed at the first question and kept with the graph. Its rule is chosen by the
    class of the graph: `default` answers for every class without a rule of its own, and
    `@name.register` adds one.

    Args:
        default: `default(graph) -> answer`, the rule for graphs of which nothing special is known.

    Returns:
        A callable with a `register` decorator, as of `functools.singledispatch`.

    Example:
        >>> import graphattn as ga
        >>> @fact
        ... def has_loops(graph):
        ...     return bool((graph.edge_index[0] == graph.edge_index[1]).any())
        >>> has_loops(ga.causal(3))
        True
    """
    return Fact(default)


@constant_when_compiled
def remember(graph: Graph, name: str, compute: Callable[..., Any], *args: Any) -> bool:
    """Keep `compute(graph, *args)` as an attribute of the graph, unless it is there already.

    torch.compile runs this while it traces and reads the kept tensors afterwards, as it reads the
    buffers of a module: what is known of a graph is known before the compiled code runs.
    """
    if name not in graph.__dict__:
        # Tensors made under inference_mode could not be saved for a later backward pass.
        with torch.inference_mode(False), torch.no_grad():
            object.__setattr__(graph, name, compute(graph, *args))
    return True
