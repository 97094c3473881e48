"""PyG's attention layers, fused: the same constructors, parameters, results and hooks.

`accelerate(model)` exchanges those inside of a model; `graph_cache` keeps the graphs of edge_index
tensors that come again; `ToGraph` and `ToLayers` put graphs on PyG's data.
"""

from graphattn.pyg.batches import batch_graph
from graphattn.pyg.cache import GraphCache, graph_cache
from graphattn.pyg.expander import AddExpander
from graphattn.pyg.exphormer import Exphormer, ExphormerEdges, VirtualNodes, exphormer_edges
from graphattn.pyg.gat_conv import GATConv, GATv2Conv
from graphattn.pyg.gps import GPSConv, GraphGPSAttention
from graphattn.pyg.replace import Report, accelerate, restore
from graphattn.pyg.transformer_conv import TransformerConv
from graphattn.pyg.transforms import ToGraph, ToLayers

__all__ = [
    # layers
    "GATConv",
    "GATv2Conv",
    "GPSConv",
    "GraphGPSAttention",
    "TransformerConv",
    # Exphormer
    "AddExpander",
    "Exphormer",
    "ExphormerEdges",
    "VirtualNodes",
    "exphormer_edges",
    # models
    "Report",
    "accelerate",
    "restore",
    # graphs
    "GraphCache",
    "ToGraph",
    "ToLayers",
    "batch_graph",
    "graph_cache",
]
