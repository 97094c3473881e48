"""Softmax over the edges of a destination, and the sums and maxima that it is made of."""

from __future__ import annotations

import pytest
import torch

import graphattn as ga
from graphattn.normalizers import as_normalizer, softmax
from graphattn.segments import segment_max, segment_softmax, segment_sum, torch_scatter
from tests.oracle import ISOLATED, NONE, PARALLEL, shuffled

GRAPHS = [ISOLATED, PARALLEL, NONE, shuffled(ga.causal(6)), ga.bipartite(3, 0), ga.bipartite(0, 3)]
over_graphs = pytest.mark.parametrize("graph", GRAPHS, ids=str)


@pytest.fixture(params=["torch_scatter", "torch"], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr("graphattn.segments.torch_scatter", lambda: None)
    elif torch_scatter() is None:
        pytest.skip("torch_scatter is not installed")


def by_rows(values: torch.Tensor, graph: ga.Graph) -> list[torch.Tensor]:
    """The values of each destination's edges, with the edges in front."""
    row = graph.csr().row
    return [values.movedim(-2, 0)[row == dst] for dst in range(graph.num_dst)]


@over_graphs
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)], ids=str)
def test_sums_and_maxima(graph: ga.Graph, batch: tuple[int, ...]) -> None:
    csr = graph.csr()
    values = torch.randn(*batch, graph.num_edges, 3, dtype=torch.float64)
    low = values.new_full((1, *batch, 3), -torch.inf)
    sums, tops = segment_sum(values, csr, dim=-2), segment_max(values, csr, dim=-2)
    assert sums.shape == tops.shape == (*batch, graph.num_dst, 3)
    for dst, row in enumerate(by_rows(values, graph)):
        torch.testing.assert_close(sums[..., dst, :], row.sum(0))
        assert torch.equal(tops[..., dst, :], torch.cat([low, row]).amax(0))
    wide = torch.stack([values, -values], dim=-1)  # as the values of nodes are summed
    torch.testing.assert_close(segment_sum(wide, csr, dim=-3)[..., 1], -sums)


@over_graphs
def test_softmax_of_every_row(graph: ga.Graph) -> None:
    logits = 3 * torch.randn(2, graph.num_edges, 3, dtype=torch.float64)
    logits[:, ::4] = -torch.inf
    weights, lse = segment_softmax(logits, graph.csr())
    assert torch.equal(softmax(logits, graph.csr()), weights)
    rows = zip(by_rows(weights, graph), by_rows(logits, graph), strict=True)
    for dst, (got, row) in enumerate(rows):
        truth = row.softmax(0) if len(row) else row
        torch.testing.assert_close(got, truth.nan_to_num(0.0))
        torch.testing.assert_close(lse[:, dst], row.logsumexp(0))


@over_graphs
def test_softmax_does_not_change_with_a_constant(graph: ga.Graph) -> None:
    logits = torch.randn(graph.num_edges, 3, dtype=torch.float64)
    shift = 1e4 * torch.randn(graph.num_dst, 3, dtype=torch.float64)
    csr = graph.csr()
    moved = softmax(logits + shift[csr.row], csr)
    torch.testing.assert_close(moved, softmax(logits, csr), rtol=1e-9, atol=1e-11)


def test_a_name_or_a_function() -> None:
    assert as_normalizer("softmax") is softmax is as_normalizer(softmax)
    assert as_normalizer(max) is max
