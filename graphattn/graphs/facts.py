"""Facts: what is derived from a graph, computed once, kept with the graph."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import singledispatch, update_wrapper
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from graphattn.graphs.graph import Graph

T = TypeVar("T")

KEPT = "_kept_"
"""Attributes of a graph that begin with this are facts: derived, and never copied or pickled."""


FACTS: dict[str, fact] = {}
"""Every fact, by the attribute that keeps it."""


def constant_when_compiled(function: Callable[..., T]) -> Callable[..., T]:
    """Run a function while torch.compile traces, and take its result for a constant.

    It leaves the mark that `torch.compiler.assume_constant_result` leaves; that one imports the
    whole compiler, which takes as long as importing torch.
    """
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function


class fact(Generic[T]):
    """A function of a graph whose answer is computed at the first question and then kept.

    The rule that computes it is chosen by the class of the graph: the decorated function answers
    for every class without a rule of its own, and `@name.register` adds one, as in
    `functools.singledispatch`.

    Args:
        default: `default(graph) -> answer`, the rule for graphs of which nothing special is known.

    Example:
        >>> import graphattn as ga
        >>> @fact
        ... def has_loops(graph):
        ...     return bool((graph.edge_index[0] == graph.edge_index[1]).any())
        >>> has_loops(ga.causal(3))
        True
    """

    def __init__(self, default: Callable[[Any], T]) -> None:
        self.key = KEPT + re.sub(r"\W", "_", f"{default.__module__}_{default.__name__}")
        self.rules = singledispatch(default)
        self.register = self.rules.register
        FACTS[self.key] = self
        update_wrapper(self, default)

    def __call__(self, graph: Graph) -> T:
        graph.keep(self.key, self.rules)
        return getattr(graph, self.key)

    def has_rule(self, graph: Graph) -> bool:
        """Whether the class of a graph has a rule of its own."""
        return self.rules.dispatch(type(graph)) is not self.rules.dispatch(object)

    def default(self, graph: Graph) -> T:
        """What a class without a rule of its own is answered; for rules that know it sometimes."""
        return self.rules.dispatch(object)(graph)
