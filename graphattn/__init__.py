"""Attention as message passing: tokens are nodes, and the graph says who speaks to whom."""

from graphattn.attention import attention, attention_weights, explain
from graphattn.graphs import *  # noqa: F403
from graphattn.graphs import __all__ as _graphs
from graphattn.plan import Plan

__version__ = "0.1.0"
__all__ = ["Plan", "attention", "attention_weights", "explain", *_graphs]  # noqa: PLE0604
