"""Who talks to whom: connectivity alone, without features and without parameters."""

from graphattn.graphs.batch import batch
from graphattn.graphs.graph import Graph
from graphattn.graphs.grid import axial, dilated, neighborhood, shifted_windows
from graphattn.graphs.hubs import hubs
from graphattn.graphs.random import expander
from graphattn.graphs.sequence import bipartite, causal, complete, prefix, sliding_window
from graphattn.graphs.sparse import from_edges, from_mask, from_networkx, from_pyg, from_scipy
from graphattn.graphs.tree import tree

__all__ = [
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
]
