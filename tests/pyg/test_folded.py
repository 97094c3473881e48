"""Keys and values folded into queries and results: the same numbers, where it is quicker."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch_geometric import nn

import graphattn as ga
from graphattn import pyg
from graphattn.pyg.folded import is_worth_folding
from tests.pyg.test_layers import DIM, HEAD_DIM, HEADS, agree, inputs, pair_of, randn

MANY = (300, 7, 40)  # sources, destinations, edges
OPTIONS: list[dict[str, Any]] = [
    {},
    {"heads": 1},
    {"heads": 4},
    {"concat": False},
    {"bias": False},
    {"beta": True},
    {"root_weight": False},
    {"dropout": 0.5},
]


def layer(**options: Any) -> Any:
    return pyg.TransformerConv((DIM, DIM), HEAD_DIM, HEADS, **options).double()


def is_folded(conv: Any, num_src: int, num_dst: int, num_edges: int, edge: Any = None) -> bool:
    given = inputs(num_src, num_dst, num_edges)
    graph = ga.from_edges(given.edge_index, num_src=num_src, num_dst=num_dst)
    return is_worth_folding(conv, given.src, graph, edge)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_results_and_gradients_are_pygs(options: dict[str, Any]) -> None:
    """Of destinations that hear nobody, too, of whom there is one."""
    theirs, ours = pair_of("TransformerConv", (DIM, DIM), **options)
    for conv in (theirs, ours):
        conv.train("dropout" not in options)
        for parameter in conv.parameters():
            torch.nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    assert is_folded(ours, *MANY)
    given = inputs(*MANY)
    assert given.edge_index[1].max() < MANY[1] - 1
    leaves = [given.src, given.dst]
    agree(theirs, ours, leaves, (given.src, given.dst), given.edge_index)


def test_a_batch_in_which_the_first_nodes_hear() -> None:
    theirs, ours = pair_of("TransformerConv")
    given = inputs(*MANY)
    agree(theirs, ours, [given.src], given.src, given.edge_index)


def test_every_parameter_has_a_gradient() -> None:
    """Optimizers do other things with those that have none."""
    conv, given = layer(), inputs(*MANY)
    conv((given.src, given.dst), given.edge_index).sum().backward()
    assert all(parameter.grad is not None for parameter in conv.parameters())
    assert conv.lin_key.bias.grad.abs().max() == 0


REFUSED: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "as many destinations": ({}, (40, 40, 40)),
    "more destinations": ({}, (7, 300, 40)),
    "many edges": ({}, (300, 7, 30_000)),
    "dropped weights": ({"dropout": 0.5}, MANY),
}


@pytest.mark.parametrize("case", REFUSED)
def test_where_it_takes_longer_or_is_not_the_same(case: str) -> None:
    options, sizes = REFUSED[case]
    assert not is_folded(layer(**options), *sizes)


def test_what_must_see_keys_sees_them() -> None:
    assert not is_folded(layer(), *MANY, edge=randn(40, HEADS, HEAD_DIM, seed=0))
    hooked, seen = layer(), []
    hooked.lin_key.register_forward_hook(lambda _, args, out: seen.append(out))
    assert not is_folded(hooked, *MANY)
    replaced = layer()
    replaced.lin_value = torch.nn.Sequential(replaced.lin_value)
    assert not is_folded(replaced, *MANY)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(dtype: torch.dtype) -> None:
    conv, given = layer(), inputs(*MANY)
    truth = conv((given.src, given.dst), given.edge_index)
    pair = given.src.to(dtype), given.dst.to(dtype)
    out = conv.to(dtype)(pair, given.edge_index)
    assert out.dtype == dtype
    assert (out.double() - truth).abs().max() < 0.05 * truth.abs().max()


def test_autocast_returns_the_dtype_of_pyg() -> None:
    torch.manual_seed(0)
    theirs = nn.TransformerConv(DIM, HEAD_DIM, HEADS)
    ours = pyg.TransformerConv(DIM, HEAD_DIM, HEADS)
    given = inputs(*MANY)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outs = [conv(given.src.float(), given.edge_index) for conv in (theirs, ours)]
    assert outs[0].dtype == outs[1].dtype
