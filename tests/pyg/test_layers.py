"""Each layer beside PyG's with its weights: outputs, gradients, weights and their edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch_geometric import EdgeIndex, nn

import graphattn as ga
from graphattn import pyg
from graphattn.pyg.fallback import why_never, why_not_now

DIM, EDGE_DIM, HEADS, HEAD_DIM = 6, 3, 2, 5
NAMES = ("TransformerConv", "GATv2Conv", "GATConv")


def randn(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Inputs(NamedTuple):
    """Features of nodes and edges, and the edges; the graph has loops and parallel edges."""

    src: Tensor
    dst: Tensor
    edge_index: Tensor
    edge_attr: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        return [self.src, self.dst, self.edge_attr]


def inputs(num_src: int, num_dst: int, num_edges: int, seed: int = 0, width: int = DIM) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    src = torch.randint(max(num_src - 1, 0) or 1, (num_edges,), generator=generator)
    dst = torch.randint(max(num_dst - 1, 0) or 1, (num_edges,), generator=generator)
    nodes = [randn(n, DIM, seed=seed + i) for i, n in enumerate((num_src, num_dst))]
    attr = randn(num_edges, EDGE_DIM, seed=seed + 2)
    leaves = [x.requires_grad_() for x in (*nodes, attr)]
    return Inputs(leaves[0], leaves[1], torch.stack([src, dst]), leaves[2])


def pair_of(name: str, channels: Any = DIM, **options: Any) -> tuple[Any, Any]:
    """PyG's layer and ours with its weights."""
    torch.manual_seed(0)
    options = {"heads": HEADS, **options}
    theirs = getattr(nn, name)(channels, HEAD_DIM, **options).double()
    ours = getattr(pyg, name)(channels, HEAD_DIM, **options).double()
    if channels == DIM:
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def close(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def agree(
    theirs: Any,
    ours: Any,
    leaves: list[Tensor],
    *call: Any,
    ask: tuple[bool | None, ...] = (None, True),
    **options: Any,
) -> None:
    """Both give the same, weights and gradients too, and ours goes its own way."""
    assert why_never(ours) is None
    assert why_not_now(ours, call[1]) is None
    for asked in ask:
        results = []
        for layer in (theirs, ours):
            out = layer(*call, **options, return_attention_weights=asked)
            out, (index, weights) = out if asked else (out, (torch.zeros(0), torch.zeros(0)))
            wanted = [*leaves, *layer.parameters()]
            loss = (out * randn(*out.shape, seed=7)).sum()
            loss = loss + (weights * randn(*weights.shape, seed=8)).sum()
            grads = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
            results.append((out, index, weights, grads))
        (out, index, weights, grads), got = results
        close(got[0], out)
        close(got[2], weights)
        close(got[3], grads)
        close(got[1], index)


OPTIONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "as it is": (NAMES, {}),
    "edge_dim": (NAMES, {"edge_dim": EDGE_DIM}),
    "mean of heads": (NAMES, {"concat": False, "edge_dim": EDGE_DIM}),
    "no bias": (NAMES, {"bias": False}),
    "one head": (NAMES, {"heads": 1}),
    "beta": (NAMES[:1], {"beta": True}),
    "beta, mean of heads": (NAMES[:1], {"beta": True, "concat": False}),
    "no root weight": (NAMES[:1], {"root_weight": False, "beta": True}),
    "no loops": (NAMES[1:], {"add_self_loops": False}),
    "no loops, edge_dim": (NAMES[1:], {"add_self_loops": False, "edge_dim": EDGE_DIM}),
    "loops of 0.5": (NAMES[1:], {"edge_dim": EDGE_DIM, "fill_value": 0.5}),
    "loops of a tensor": (
        NAMES[1:],
        {"edge_dim": EDGE_DIM, "fill_value": torch.arange(3, dtype=torch.float64)},
    ),
    "loops of sums": (NAMES[1:], {"edge_dim": EDGE_DIM, "fill_value": "add"}),
    "loops of maxima": (NAMES[1:], {"edge_dim": EDGE_DIM, "fill_value": "max"}),
    "steep": (NAMES[1:], {"negative_slope": 0.7}),
    "residual": (NAMES[1:], {"residual": True}),
    "residual, mean of heads": (NAMES[1:], {"residual": True, "concat": False}),
    "shared weights": (NAMES[1:2], {"share_weights": True}),
    "dropout, not in training": (NAMES, {"dropout": 0.5}),
}
CASES = [
    pytest.param(name, options, id=f"{name}, {case}")
    for case, (names, options) in OPTIONS.items()
    for name in names
]


def check(name: str, options: dict[str, Any], num_dst: int, pair: bool, channels: Any) -> None:
    theirs, ours = pair_of(name, channels, **options)
    for layer in (theirs, ours):
        layer.train("dropout" not in options)
    given = inputs(11, num_dst, 40)
    x = (given.src, given.dst) if pair else given.src
    attr = given.edge_attr if "edge_dim" in options else None
    theirs(x, given.edge_index, attr)  # sees the widths
    ours.load_state_dict(theirs.state_dict(), strict=True)
    ours.double().load_state_dict(theirs.state_dict())  # what was lazy is made in float32
    agree(theirs, ours, given.leaves, x, given.edge_index, attr)
    theirs.load_state_dict(ours.state_dict(), strict=True)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_every_option_is_pygs(name: str, options: dict[str, Any]) -> None:
    check(name, options, 11, False, DIM)
    check(name, options, 8, True, (DIM, DIM))


@pytest.mark.parametrize("channels", [DIM, -1, (DIM, DIM), (-1, -1)])
@pytest.mark.parametrize(("num_dst", "pair"), [(11, False), (11, True), (8, True), (14, True)])
@pytest.mark.parametrize("name", NAMES)
def test_nodes_of_one_kind_or_two(name: str, num_dst: int, pair: bool, channels: Any) -> None:
    check(name, {}, num_dst, pair, channels)


@pytest.mark.parametrize("size", [None, (11, 11), (11, 8)])
def test_gat_without_destinations(size: tuple[int, int] | None) -> None:
    theirs, ours = pair_of("GATConv", (DIM, DIM), add_self_loops=False)
    given = inputs(11, 8, 40)
    x = (given.src, None)
    agree(theirs, ours, [given.src], x, given.edge_index, size=size)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("edge_dim", [None, EDGE_DIM])
@pytest.mark.parametrize("layout", ["coo", "csr"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("TransformerConv", {}),
        *((name, {"add_self_loops": loops}) for name in NAMES[1:] for loops in (False, True)),
    ],
)
def test_sparse_matrices(name: str, options: dict, layout: str, edge_dim: int | None) -> None:
    """They are transposed, and their values are the features of edges, if they are vectors."""
    loops = options.get("add_self_loops", False)
    theirs, ours = pair_of(name, (DIM, DIM), edge_dim=edge_dim, **options)
    given = inputs(11, 11 if loops else 8, 40)
    src, dst = given.edge_index.unique(dim=1)
    width = () if edge_dim is None else (edge_dim,)
    values = randn(len(src), *width, seed=3)
    order = (11 * dst + src).argsort()
    index, shape = torch.stack([dst, src])[:, order], (len(given.dst), len(given.src), *width)
    adj = torch.sparse_coo_tensor(index, values, shape, is_coalesced=True)
    if layout == "csr":
        ptr = torch.searchsorted(index[0], torch.arange(shape[0] + 1))
        adj = torch.sparse_csr_tensor(ptr, index[1], values, shape)
    pygs_fault = edge_dim and layout == "coo" and name != "TransformerConv"  # it can't tell weights
    ask = (None,) if pygs_fault else (None, True)
    agree(theirs, ours, given.leaves, (given.src, given.dst), adj, ask=ask)


@pytest.mark.parametrize("kind", ["int32", "sorted", "EdgeIndex", "EdgeIndex, sorted", "Graph"])
@pytest.mark.parametrize("name", NAMES)
def test_other_forms_of_edges(name: str, kind: str) -> None:
    """PyG is given int64: it can't take the others everywhere, and graphs nowhere."""
    theirs, ours = pair_of(name, edge_dim=EDGE_DIM)
    given = inputs(9, 9, 30)
    index, attr = given.edge_index, given.edge_attr
    if "sorted" in kind:
        order = index[1].argsort(stable=True)
        index, attr = index[:, order], attr[order]
    made: dict[str, Callable[[Tensor], Any]] = {
        "int32": Tensor.int,
        "sorted": Tensor.clone,
        "EdgeIndex": lambda index: EdgeIndex(index, sparse_size=(9, 9)),
        "EdgeIndex, sorted": lambda index: EdgeIndex(index, sparse_size=(9, 9), sort_order="col"),
        "Graph": lambda index: ga.from_edges(index, 9),
    }
    x, edges = given.src, made[kind](index)
    out, (seen, weights) = theirs(x, index, attr, return_attention_weights=True)
    got, (ours_seen, ours_weights) = ours(x, edges, attr, return_attention_weights=True)
    close((got, ours_weights), (out, weights))
    assert ours_seen.tolist() == seen.tolist()
    close(ours(x, edges, attr), out)


def test_rules_are_graphs_too() -> None:
    theirs, ours = pair_of("GATv2Conv")
    x = randn(7, DIM, seed=0)
    close(ours(x, ga.causal(7)), theirs(x, ga.causal(7).edge_index))


@pytest.mark.parametrize("edges", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_few_edges(name: str, edges: int) -> None:
    theirs, ours = pair_of(name, edge_dim=EDGE_DIM)
    given = inputs(3, 3, edges)
    agree(theirs, ours, given.leaves, given.src, given.edge_index, given.edge_attr)
