"""Whole models of PyG, with the layers inside of them exchanged."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torch_geometric import nn

from graphattn import pyg
from tests.pyg.test_layers import DIM, HEAD_DIM, NAMES, inputs, pair_of


class Own(nn.GATConv):
    """A layer that somebody derived."""


def conv(layer: nn.MessagePassing) -> tuple[nn.MessagePassing, str]:
    return layer, "x, edge_index -> x"


def mixed() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [
        nn.GATConv(DIM, HEAD_DIM),
        nn.GCNConv(HEAD_DIM, DIM),
        nn.GATv2Conv(DIM, DIM, heads=2, concat=False),
        nn.TransformerConv(DIM, DIM),
        nn.TransformerConv(DIM, DIM, aggr="max"),
        Own(DIM, DIM),
        pyg.GATConv(DIM, DIM),
    ]
    return nn.Sequential("x, edge_index", [conv(layer) for layer in layers])


REPORT = """
module_0  replaced: GATConv
module_2  replaced: GATv2Conv
module_3  replaced: TransformerConv
module_1  left: graphattn has no GCNConv
module_4  left: it aggregates by 'max', and attention sums
module_5  left: Own derives from GATConv, and may change what that does
module_6  left: it is graphattn's GATConv already
"""


def gradients(model: torch.nn.Module, x: Tensor, edge_index: Tensor) -> tuple[Tensor, ...]:
    out = model(x, edge_index)
    return out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))


def test_report() -> None:
    model, given = mixed(), inputs(9, 9, 30)
    x, parameters = given.src.detach().float(), list(model.parameters())
    before = gradients(model, x, given.edge_index)
    report = pyg.accelerate(model)
    assert str(report) == REPORT.strip()
    assert list(report.replaced) == ["module_0", "module_2", "module_3"]
    assert all(a is b for a, b in zip(model.parameters(), parameters))
    torch.testing.assert_close(gradients(model, x, given.edge_index), before)
    pyg.restore(model)
    assert not any(type(layer).__module__.startswith("graphattn") for layer in model.modules())
    torch.testing.assert_close(gradients(model, x, given.edge_index), before)


MODELS = {
    "GAT": lambda: nn.GAT(DIM, 8, 2, 4, heads=2),
    "GATv2": lambda: nn.GAT(DIM, 8, 2, 4, v2=True, jk="cat"),
    "GPS": lambda: nn.GPSConv(DIM, nn.TransformerConv(DIM, DIM), heads=2),
    "one layer": lambda: nn.TransformerConv(DIM, 4),
}


@pytest.mark.parametrize("case", MODELS)
def test_models_of_pyg(case: str) -> None:
    torch.manual_seed(0)
    model, given = MODELS[case](), inputs(9, 9, 30)
    x = given.src.detach().float()
    before = gradients(model.eval(), x, given.edge_index)
    assert pyg.accelerate(model).replaced
    for same in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        got = gradients(same, x, given.edge_index)
        torch.testing.assert_close(got, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_training_goes_on(name: str) -> None:
    """The optimizer knows the parameters still, and both ways take the same steps."""
    theirs, ours = pair_of(name)
    ours.__class__ = type(theirs)
    given, optimizers = inputs(9, 9, 30), [torch.optim.Adam(m.parameters()) for m in (theirs, ours)]
    for step in range(4):
        if step == 2:
            pyg.accelerate(ours)
        for layer, optimizer in zip((theirs, ours), optimizers):
            optimizer.zero_grad()
            layer(given.src.detach(), given.edge_index).square().mean().backward()
            optimizer.step()
    for got, expected in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


def test_nothing_to_do() -> None:
    report = pyg.accelerate(torch.nn.Linear(2, 2))
    assert str(report) == "the model has no message passing layer"
