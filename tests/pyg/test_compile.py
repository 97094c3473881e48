"""`torch.compile(fullgraph=True, dynamic=True)`: with a graph ours, with an edge_index PyG's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import graphattn as ga
from tests.pyg.test_layers import EDGE_DIM, NAMES, inputs, pair_of

over_layers = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(layer: torch.nn.Module) -> tuple[Any, list[int]]:
    """The layer, compiled, and a list that grows whenever it is compiled anew."""
    times: list[int] = []

    def backend(module: torch.fx.GraphModule, examples: Any) -> Any:
        times.append(1)
        from torch._dynamo.backends.debugging import aot_eager

        return aot_eager(module, examples)

    return torch.compile(layer, fullgraph=True, dynamic=True, backend=backend), times


@pytest.mark.parametrize("edge_dim", [None, EDGE_DIM])
@pytest.mark.parametrize("of", ["edge_index", "graph"])
@over_layers
def test_other_numbers_of_edges_are_not_compiled_anew(
    name: str, of: str, edge_dim: int | None
) -> None:
    theirs, ours = pair_of(name, edge_dim=edge_dim)
    function, times = compiled(ours)
    for number, (nodes, edges) in enumerate(((90, 300), (80, 250), (70, 310), (60, 200))):
        given = inputs(nodes, nodes, edges, seed=number)
        index, attr = given.edge_index, given.edge_attr if edge_dim else None
        made = ga.from_edges(index, nodes) if of == "graph" else index
        leaves = [given.src, *([] if attr is None else [attr])]
        out = function(given.src, made, attr)
        expected = theirs(given.src, index, attr)
        torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
        grads = torch.autograd.grad(out.square().sum(), leaves)
        truth = torch.autograd.grad(expected.square().sum(), leaves)
        torch.testing.assert_close(grads, truth, rtol=1e-8, atol=1e-8)
    assert len(times) <= 2
