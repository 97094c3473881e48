"""When a layer has to go PyG's own way, step by step, and why."""

from __future__ import annotations

from typing import Any

import torch
from torch_geometric.nn.conv import GATConv, GATv2Conv, MessagePassing, TransformerConv
from torch_geometric.typing import SparseTensor  # pyright: ignore[reportAttributeAccessIssue]

from graphattn.graphs import Graph

PYG_LAYERS: tuple[Any, ...] = (TransformerConv, GATv2Conv, GATConv)
STEPS = ("propagate", "message", "aggregate", "update", "edge_updater", "edge_update")
OF_AN_INSTANCE = ("message", "aggregate", "update", "edge_update")
HOOKED = ("propagate", "message", "aggregate", "message_and_aggregate", "edge_update")
HOOKS = tuple(f"_{step}_forward{when}_hooks" for step in HOOKED for when in ("_pre", ""))


with torch.device("meta"):  # PyG writes the code of a class when it makes the first of it
    for kind in PYG_LAYERS:
        kind(1, 1)


def keep_templates(self: MessagePassing, raise_on_error: bool = False) -> None:
    """Leave a class the code that PyG wrote for the class that it derives from.

    PyG would write `propagate` anew for every derived class, and take the written one of the base
    for the original, which explainers go back to.
    """


def why_never(layer: Any) -> str | None:
    """Why a layer always goes PyG's own way, or None if it need not.

    Example:
        >>> from torch_geometric.nn import GATConv
        >>> why_never(GATConv(4, 4)), why_never(GATConv(4, 4, aggr="max"))
        (None, "it aggregates by 'max', and attention sums")
    """
    if layer.flow != "source_to_target":
        return f"its messages flow {layer.flow!r}"
    if layer.aggr not in ("add", "sum"):
        return f"it aggregates by {layer.aggr!r}, and attention sums"
    if layer.decomposed_layers > 1:
        return f"it is cut into {layer.decomposed_layers} layers by decomposed_layers"
    if layer.dropout >= 1:
        return "it drops every weight"
    original = next(kind for kind in type(layer).__mro__ if kind in PYG_LAYERS)
    changed = [step for step in OF_AN_INSTANCE if step in vars(layer)]
    changed += [s for s in STEPS if getattr(type(layer), s) is not getattr(original, s)]
    return f"its {changed[0]} is its own" if changed else None


def why_not_now(layer: Any, edge_index: Any) -> str | None:
    """Why a call goes PyG's own way, or None if it need not."""
    if layer.explain:
        return "an explainer masks its messages"
    if any(getattr(layer, hooks) for hooks in HOOKS):
        return "hooks want to see its messages"
    if isinstance(edge_index, SparseTensor):
        return "torch_sparse's tensors are PyG's to read"
    if torch.jit.is_tracing():
        return "it is being traced"
    if torch.compiler.is_compiling() and not isinstance(edge_index, Graph):
        return "a graph can't be built within compiled code"
    return None


def for_pyg(edge_index: Any) -> Any:
    """An edge_index that PyG's own layers take: int64, and no graph."""
    if isinstance(edge_index, Graph):
        return edge_index.edge_index
    if isinstance(edge_index, torch.Tensor) and edge_index.dtype == torch.int32:
        return edge_index.long()
    return edge_index
