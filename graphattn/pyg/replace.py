"""The layers inside of a model become graphattn's, and PyG's own again, where they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch_geometric import nn as pyg
from torch_geometric.nn.conv import MessagePassing

from graphattn.pyg.fallback import why_never
from graphattn.pyg.gat_conv import GATConv, GATv2Conv
from graphattn.pyg.gps import GPSConv, GraphGPSAttention, why_padded
from graphattn.pyg.transformer_conv import TransformerConv

OURS: dict[Any, Any] = {
    pyg.TransformerConv: TransformerConv,
    pyg.GATv2Conv: GATv2Conv,
    pyg.GATConv: GATConv,
    pyg.GPSConv: GPSConv,
}
LAYERS = (MessagePassing, pyg.GPSConv)
PYG_ATTENTION = ("multihead", "performer")


@dataclass(frozen=True)
class Report:
    """What `accelerate` did.

    replaced: Class by name of the layers that are graphattn's now.
    left: Reason by name of the layers that pass messages, or attend, and are not.
    """

    replaced: dict[str, str]
    left: dict[str, str]

    def __str__(self) -> str:
        names = [name or "the model" for name in (*self.replaced, *self.left)]
        words = [f"replaced: {kind}" for kind in self.replaced.values()]
        words += [f"left: {reason}" for reason in self.left.values()]
        width = max(map(len, names), default=0)
        lines = [f"{name:{width}}  {word}" for name, word in zip(names, words)]
        return "\n".join(lines) or "the model has no message passing layer"


def accelerate(model: nn.Module) -> Report:
    """Exchange PyG's attention layers inside of a model for graphattn's, in place.

    A layer stays the object that it is, with its parameters, hooks and state: only its class, and
    with it the forward, becomes another. So optimizers, checkpoints and references go on.

    Args:
        model: Any module; `TransformerConv`, `GATv2Conv`, `GATConv` and `GPSConv` in it are
            exchanged.

    Returns:
        What was replaced, and what was left, with the reason.

    Example:
        >>> from torch_geometric import nn
        >>> model = nn.Sequential(
        ...     "x, edges",
        ...     [(nn.GATConv(8, 8), "x, edges -> x"), (nn.GCNConv(8, 4), "x, edges -> x")],
        ... )
        >>> print(accelerate(model))
        module_0  replaced: GATConv
        module_1  left: graphattn has no GCNConv
    """
    report = Report({}, {})
    for name, layer in model.named_modules():
        if not isinstance(layer, LAYERS):
            continue
        if (reason := _why_left(layer)) is not None:
            report.left[name] = reason
        else:
            report.replaced[name] = type(layer).__name__
            _become(layer, OURS[type(layer)], GraphGPSAttention)
    return report


def restore(model: nn.Module) -> None:
    """Make every layer of graphattn's inside of a model PyG's own again, in place.

    Args:
        model: Any module; after `accelerate`, it is what it was before.

    Example:
        >>> from torch_geometric import nn
        >>> layer = nn.GATv2Conv(8, 8)
        >>> report = accelerate(layer)
        >>> restore(layer)
        >>> type(layer) is nn.GATv2Conv
        True
    """
    theirs = {ours: original for original, ours in OURS.items()}
    for layer in list(model.modules()):
        if type(layer) not in theirs:
            continue
        if isinstance(layer, GPSConv) and layer.attn_type not in PYG_ATTENTION:
            continue  # PyG's would leave it out
        _become(layer, theirs[type(layer)], nn.MultiheadAttention)


def _become(layer: Any, kind: Any, attention: Any) -> None:
    """Make a layer one of another kind, and the attention of GPS, too."""
    if isinstance(layer, pyg.GPSConv) and isinstance(layer.attn, nn.MultiheadAttention):
        layer.attn.__class__ = attention
    layer.__class__ = kind


def _why_left(layer: Any) -> str | None:
    kind = type(layer).__name__
    if type(layer) in OURS.values():
        return f"it is graphattn's {kind} already"
    if type(layer) is pyg.GPSConv:
        return _why_gps_left(layer.attn)
    if type(layer) in OURS:
        return why_never(layer)
    for original in OURS:
        if isinstance(layer, original):
            return f"{kind} derives from {original.__name__}, and may change what that does"
    return f"graphattn has no {kind}"


def _why_gps_left(attn: nn.Module) -> str | None:
    if type(attn) is not nn.MultiheadAttention:
        return f"its attention is {type(attn).__name__}, and not torch's MultiheadAttention"
    return why_padded(attn)
