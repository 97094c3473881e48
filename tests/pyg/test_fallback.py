"""What PyG does beside a plain forward goes on: hooks, explainers, heterogeneous models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric import nn
from torch_geometric.explain import AttentionExplainer, Explainer, GNNExplainer
from torch_geometric.nn import HeteroConv, to_hetero

import graphattn as ga
from graphattn import pyg
from graphattn.pyg.fallback import why_never, why_not_now
from tests.pyg.test_layers import (
    DIM,
    HEAD_DIM,
    HEADS,
    NAMES,
    close,
    inputs,
    pair_of,
    randn,
)

over_layers = pytest.mark.parametrize("name", NAMES)


@over_layers
def test_hooks_see_the_messages_of_pyg(name: str) -> None:
    theirs, ours = pair_of(name)
    given, seen = inputs(9, 9, 30), []
    for layer in (theirs, ours):
        layer.register_message_forward_hook(lambda _, args, out: seen.append(out))
    expected, got = (layer(given.src, given.edge_index) for layer in (theirs, ours))
    assert why_not_now(ours, given.edge_index) == "hooks want to see its messages"
    close(got, expected)
    close(seen[1], seen[0])


@over_layers
def test_a_graph_under_hooks(name: str) -> None:
    _, ours = pair_of(name)
    given = inputs(9, 9, 30)
    expected = ours(given.src, given.edge_index)
    handle = ours.register_propagate_forward_pre_hook(lambda *_: None)
    close(ours(given.src, ga.from_edges(given.edge_index, 9)), expected)
    close(ours(given.src, given.edge_index.int()), expected)
    handle.remove()
    assert why_not_now(ours, given.edge_index) is None


class Net(torch.nn.Module):
    def __init__(self, layers: Any, name: str, channels: Any = DIM) -> None:
        super().__init__()
        torch.manual_seed(0)
        # Between different nodes PyG adds no loops to itself.
        options = {} if name == "TransformerConv" or channels == DIM else {"add_self_loops": False}
        kind = getattr(layers, name)
        self.one = kind(channels, HEAD_DIM, HEADS, **options)
        self.two = kind(channels if channels != DIM else HEADS * HEAD_DIM, 3, 1, **options)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.two(self.one(x, edge_index).relu(), edge_index)


@pytest.mark.parametrize("make", [AttentionExplainer, lambda: GNNExplainer(epochs=3)])
@over_layers
def test_explanations_are_pygs(name: str, make: Any) -> None:
    given, masks = inputs(9, 9, 30), []
    index = given.edge_index[:, given.edge_index[0] != given.edge_index[1]]
    for layers in (nn, pyg):
        net = Net(layers, name)
        explainer = Explainer(
            net,
            algorithm=make(),
            explanation_type="model",
            edge_mask_type="object",
            model_config={"mode": "regression", "task_level": "graph", "return_type": "raw"},
        )
        torch.manual_seed(1)
        masks.append(explainer(given.src.detach().float(), index).edge_mask)
        assert net.one.explain is None
    assert masks[0].std() > 0
    torch.testing.assert_close(masks[1], masks[0])


METADATA = (["a", "b"], [("a", "to", "b"), ("b", "to", "a"), ("b", "at", "a")])


def hetero_inputs() -> tuple[dict[str, Tensor], dict[Any, Tensor]]:
    x = {kind: randn(size, DIM, seed=size).float() for kind, size in (("a", 7), ("b", 9))}
    edges = {
        key: inputs(len(x[key[0]]), len(x[key[2]]), 20, seed=i).edge_index
        for i, key in enumerate(METADATA[1])
    }
    return x, edges


@over_layers
def test_to_hetero_sums_over_edge_types(name: str) -> None:
    x, edges = hetero_inputs()
    nets = [to_hetero(Net(layers, name, (-1, -1)), METADATA) for layers in (nn, pyg)]
    expected = nets[0](x, edges)
    nets[1](x, edges)
    nets[1].load_state_dict(nets[0].state_dict(), strict=True)
    assert sum(isinstance(m, getattr(pyg, name)) for m in nets[1].modules()) == 6
    torch.testing.assert_close(nets[1](x, edges), expected)


@over_layers
def test_hetero_conv(name: str) -> None:
    x, edges = hetero_inputs()
    options = {} if name == "TransformerConv" else {"add_self_loops": False}
    outs = []
    for layers in (nn, pyg):
        torch.manual_seed(0)
        kind = getattr(layers, name)
        convs = {key: kind((DIM, DIM), HEAD_DIM, **options) for key in METADATA[1]}
        outs.append(HeteroConv(convs, aggr="sum")(x, edges))
    torch.testing.assert_close(outs[1], outs[0])


OPTIONS = [{"flow": "target_to_source"}, {"aggr": "max"}, {"aggr": "mean"}, {"dropout": 1.0}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@over_layers
def test_what_is_no_attention_is_pygs(name: str, options: dict[str, Any]) -> None:
    theirs, ours = pair_of(name, **options)
    given = inputs(9, 9, 30)
    assert why_never(ours) is not None
    close(ours(given.src, given.edge_index), theirs(given.src, given.edge_index))


def test_features_that_transformer_conv_was_not_built_for_are_pygs() -> None:
    theirs, ours = pair_of("TransformerConv")
    given, values = inputs(9, 9, 30), randn(30, HEADS, HEAD_DIM, seed=4)
    call = (given.src, given.edge_index, values)
    close(ours(*call), theirs(*call))


def test_messages_that_a_subclass_changes_are_its_own() -> None:
    class Doubled(pyg.GATConv):
        def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:
            return 2 * super().message(x_j, alpha)

    torch.manual_seed(0)
    doubled, plain = Doubled(DIM, HEAD_DIM), pyg.GATConv(DIM, HEAD_DIM)
    plain.load_state_dict(doubled.state_dict())
    given = inputs(9, 9, 30)
    x = given.src.float()
    torch.testing.assert_close(doubled(x, given.edge_index), 2 * plain(x, given.edge_index))
    assert why_never(doubled) == "its message is its own"


@over_layers
def test_dropped_weights_still_sum_to_one_on_average(name: str) -> None:
    """Random numbers are not PyG's, but what they do is."""
    theirs, ours = pair_of(name, dropout=0.4)
    given = inputs(9, 9, 30)
    x, index = given.src.detach(), given.edge_index
    with torch.no_grad():
        mean = torch.stack([ours(x, index) for _ in range(2000)]).mean(0)
        expected = theirs.eval()(x, index)
        assert (ours(x, index) - expected).abs().max() > 0.1
    torch.testing.assert_close(mean, expected, rtol=0.2, atol=0.3)


@over_layers
def test_weights_are_told_as_they_were_dropped(name: str) -> None:
    """By all but TransformerConv, which tells them as they were before."""
    theirs, ours = pair_of(name, dropout=0.4)
    given = inputs(9, 9, 30)
    for layer in (theirs, ours):
        torch.manual_seed(0)
        _, (_, weights) = layer(given.src, given.edge_index, return_attention_weights=True)
        assert bool((weights == 0).any()) == (name != "TransformerConv")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@over_layers
def test_traced_layers_are_pygs(name: str) -> None:
    _, ours = pair_of(name)
    given = inputs(9, 9, 30)
    call = (given.src.detach(), given.edge_index)
    other = inputs(9, 9, 50, seed=5)
    traced = torch.jit.trace(ours.eval(), call, check_trace=False)
    other_call = (other.src.detach(), other.edge_index)
    close(traced(*other_call), ours(*other_call))
