"""PyG's attention layers, fused: the same constructors, parameters, results and hooks.

`accelerate(model)` exchanges those inside a model; `graph_cache` keeps the graphs of edge_index
tensors that come again; `ToGraph` puts a graph on PyG's data.
"""

from graphattn.pyg.cache import GraphCache, graph_cache
from graphattn.pyg.gat_conv import GATConv, GATv2Conv
from graphattn.pyg.transformer_conv import TransformerConv

__all__ = [
    "GATConv",
    "GATv2Conv",
    "GraphCache",
    "TransformerConv",
    "graph_cache",
]
