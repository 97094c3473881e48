"""Attention as message passing: tokens are nodes, and the graph says who speaks to whom."""

from graphattn import models, nn, normalizers, scores
from graphattn.attention import attention, attention_weights, explain
from graphattn.features import Projected
from graphattn.graphs import (
    Graph,
    axial,
    batch,
    bipartite,
    causal,
    complete,
    dilated,
    expander,
    from_edges,
    from_mask,
    from_networkx,
    from_pyg,
    from_scipy,
    hubs,
    neighborhood,
    prefix,
    shifted_windows,
    sliding_window,
    tree,
)
from graphattn.plan import Plan

__version__ = "0.1.0"
__all__ = [
    # who talks to whom
    "Graph",
    "axial",
    "batch",
    "bipartite",
    "causal",
    "complete",
    "dilated",
    "expander",
    "from_edges",
    "from_mask",
    "from_networkx",
    "from_pyg",
    "from_scipy",
    "hubs",
    "neighborhood",
    "prefix",
    "shifted_windows",
    "sliding_window",
    "tree",
    # attention over it
    "attention",
    "attention_weights",
    "explain",
    "Plan",
    "Projected",
    "normalizers",
    "scores",
    # built on it
    "models",
    "nn",
]
