"""Bad input as users of PyG make it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import graphattn as ga
from graphattn import pyg
from tests.pyg.test_layers import DIM, EDGE_DIM, HEAD_DIM, NAMES

X, ATTR = torch.randn(5, DIM), torch.randn(4, EDGE_DIM)
INDEX = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
CASES: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "float": (INDEX.float(), ATTR, TypeError, "edge_index must hold integers, got torch.float32"),
    "bool": (INDEX.bool(), ATTR, TypeError, "edge_index must hold integers, got torch.bool"),
    "(E, 2)": (INDEX.T, ATTR, ValueError, r"shape \(2, E\), got \(4, 2\); transpose it"),
    "(E,)": (INDEX[0], ATTR, ValueError, r"shape \(2, E\), got \(4,\)"),
    "too large": (INDEX + 1, ATTR, IndexError, "destination 5, out of range for 5"),
    "negative": (INDEX - 1, ATTR, IndexError, "source -1, out of range for 5"),
    "elsewhere": (INDEX.to("meta"), ATTR, ValueError, r"x is on cpu but edge_index on meta; use"),
    "a list": (INDEX.tolist(), ATTR, TypeError, "edge_index must be a tensor .* got list"),
    "another graph": (ga.causal(4), ATTR, ValueError, "the graph has 4 source and 4 destination"),
    "too long": (
        INDEX[:, :3],
        ATTR,
        ValueError,
        "a row for each of the 3 edges, got .* \\(4, 3\\)",
    ),
    "a number": (INDEX, torch.tensor(1.0), ValueError, "a row for each of the 4 edges"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit_is_said(name: str, case: str) -> None:
    index, attr, kind, words = CASES[case]
    layer = getattr(pyg, name)(DIM, HEAD_DIM, edge_dim=EDGE_DIM)
    with pytest.raises(kind, match=words):
        layer(X, index, attr)


@pytest.mark.parametrize("name", NAMES)
def test_missing_features(name: str) -> None:
    layer = getattr(pyg, name)(DIM, HEAD_DIM, edge_dim=EDGE_DIM)
    with pytest.raises(ValueError, match="edge_dim=3, but edge_attr is missing; pass it"):
        layer(X, INDEX)


def test_features_that_nobody_asked_for() -> None:
    with pytest.raises(ValueError, match=r"edge_attr is given, .* built without edge_dim"):
        pyg.GATv2Conv(DIM, HEAD_DIM)(X, INDEX, ATTR)


@pytest.mark.parametrize("name", NAMES[:2])
def test_no_destinations(name: str) -> None:
    with pytest.raises(ValueError, match="must hold destinations"):
        getattr(pyg, name)((DIM, DIM), HEAD_DIM)((X, None), INDEX)


@pytest.mark.parametrize("name", NAMES)
def test_batches_of_nodes(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"x must be \(nodes, channels\), got the shape \(1, 5, 6\)"
    ):
        getattr(pyg, name)(DIM, HEAD_DIM)(X[None], INDEX)


def test_another_size() -> None:
    with pytest.raises(ValueError, match=r"size is \(5, 6\), but x has \(5, 5\) nodes"):
        pyg.GATConv(DIM, HEAD_DIM)(X, INDEX, size=(5, 6))


@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_sparse_matrix_of_another_size() -> None:
    adj = torch.eye(4).to_sparse_csr()
    with pytest.raises(ValueError, match="sparse edge_index has 4 source and 4 destination nodes"):
        pyg.TransformerConv(DIM, HEAD_DIM)(X, adj)
