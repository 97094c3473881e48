"""Softmax over the edges of a destination, and the sums and maxima that it is made of."""

from __future__ import annotations

import entmax
import pytest
import torch

import graphattn as ga
from graphattn import attention, attention_weights
from graphattn.normalizers import (
    Gumbel,
    Softmax,
    TopK,
    argmax,
    as_normalizer,
    entmax15,
    identity,
    mean,
    sample,
    sigmoid,
    softmax,
    sparsemax,
)
from graphattn.segments import (
    rank_in_segment,
    segment_first_maximum,
    segment_max,
    segment_softmax,
    segment_sum,
    torch_scatter,
)
from tests.oracle import ISOLATED, NONE, PARALLEL, shuffled

GRAPHS = [ISOLATED, PARALLEL, NONE, shuffled(ga.causal(6)), ga.sliding_window(5, 0)]
GRAPHS += [ga.bipartite(3, 0), ga.bipartite(0, 3)]
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


# --- every normalizer, row by row -----------------------------------------------------------------


def one_hot(row: torch.Tensor) -> torch.Tensor:
    """Of each column of (edges, heads) the first highest, if there is one that is not off."""
    hard = torch.zeros_like(row)
    if len(row):
        hard.scatter_(0, row.argmax(0, keepdim=True), 1.0)
    return hard * (row > -torch.inf)


def package(function):
    """A function of the package `entmax`, which knows neither -inf nor rows without edges."""

    def of_row(row: torch.Tensor) -> torch.Tensor:
        if not len(row):
            return row
        return function(row.nan_to_num(neginf=-1e9), dim=0) * (row > -torch.inf)

    return of_row


ROWS = {
    "sigmoid": (sigmoid, torch.sigmoid),
    "none": (identity, lambda row: row.nan_to_num(neginf=0.0)),
    "mean": (
        mean,
        lambda row: row.nan_to_num(neginf=0.0) / (row > -torch.inf).sum(0).clamp(min=1),
    ),
    "sparsemax": (sparsemax, package(entmax.sparsemax)),
    "entmax15": (entmax15, package(entmax.entmax15)),
    "top 3": (
        TopK(3),
        lambda row: (
            row.masked_fill(
                row.argsort(dim=0, descending=True, stable=True).argsort(dim=0) > 2, -torch.inf
            )
            .softmax(0)
            .nan_to_num(0.0)
        ),
    ),
    "argmax": (argmax, one_hot),
    "off by one": (Softmax(0.0), lambda row: row.exp() / (1 + row.exp().sum(0))),
    "sink": (
        Softmax(torch.tensor([-1.0, 0.5, 3.0], dtype=torch.float64)),
        lambda row: row.exp() / (torch.tensor([-1.0, 0.5, 3.0]).exp() + row.exp().sum(0)),
    ),
}


def logits_of(graph: ga.Graph) -> torch.Tensor:
    """Some off, all of some rows, none equal."""
    logits = 2 * torch.randn(2, graph.num_edges, 3, dtype=torch.float64)
    logits[:, ::4] = -torch.inf
    logits[:, graph.csr().row % 5 == 1] = -torch.inf
    return logits


@over_graphs
@pytest.mark.parametrize("name", ROWS)
def test_normalizers_of_every_row(graph: ga.Graph, name: str) -> None:
    normalizer, formula = ROWS[name]
    logits = logits_of(graph)
    got = by_rows(normalizer(logits, graph.csr()), graph)
    for mine, row in zip(got, by_rows(logits, graph), strict=True):
        torch.testing.assert_close(mine, formula(row).to(mine.dtype), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in ROWS if name != "argmax"])
@pytest.mark.parametrize("graph", [ISOLATED, PARALLEL], ids=str)
def test_gradients_of_normalizers(graph: ga.Graph, name: str) -> None:
    csr, logits = graph.csr(), torch.randn(graph.num_edges, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: ROWS[name][0](s, csr), logits.requires_grad_())


def test_argmax_passes_the_gradient_of_softmax() -> None:
    csr = PARALLEL.csr()
    logits = torch.randn(PARALLEL.num_edges, 3, requires_grad=True)
    grad = torch.randn(PARALLEL.num_edges, 3)
    hard, soft = (
        torch.autograd.grad(normalizer(logits, csr), logits, grad)[0]
        for normalizer in (argmax, softmax)
    )
    torch.testing.assert_close(hard, soft)


TIED = ga.from_edges([[2, 0, 1, 2, 0, 3], [0, 0, 0, 0, 1, 1]], num_dst=2, num_src=4)


def test_the_lowest_of_equal_edges_comes_first() -> None:
    """In edge order, which is not that of the rows here."""
    csr = TIED.csr()
    equal = csr.from_edge_order(torch.tensor([1.0, 1.0, 0.0, 1.0, 2.0, 2.0])[:, None], dim=-2)

    def in_order(values: torch.Tensor) -> list[float]:
        return csr.to_edge_order(values, dim=-2)[:, 0].tolist()

    assert in_order(argmax(equal, csr)) == [1, 0, 0, 0, 1, 0]
    assert in_order(segment_first_maximum(equal, csr)) == [1, 0, 0, 0, 1, 0]
    assert in_order(rank_in_segment(equal, csr)) == [0, 1, 3, 2, 0, 1]
    assert in_order(TopK(2)(equal, csr)) == [0.5, 0.5, 0, 0, 0.5, 0.5]
    third = torch.tensor(1 / 3).item()
    for sparse in (sparsemax, entmax15):  # which share alike
        assert in_order(sparse(equal, csr))[:4] == pytest.approx([third, third, 0, third], abs=0.2)
        assert in_order(sparse(equal, csr))[4:] == [0.5, 0.5]


@pytest.mark.parametrize("sparse", [sparsemax, entmax15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sparse_rows_are_long_and_far_apart(sparse, dtype: torch.dtype) -> None:
    graph = ga.bipartite(2, 100_000)
    logits = torch.randn(graph.num_edges, 1, dtype=dtype)
    logits[100_000:] = logits[100_000:] * 1e-6 + 1e4  # all alike, and large
    weights = sparse(logits, graph.csr()).view(2, 100_000)
    truth = getattr(entmax, sparse.__name__)(logits.double().view(2, 100_000), dim=1)
    torch.testing.assert_close(weights.double().sum(1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(weights.double(), truth, rtol=1e-4, atol=1e-9)


# --- what is drawn --------------------------------------------------------------------------------

DRAWS = ga.batch([ga.complete(3)] * 20_000)


@pytest.mark.parametrize("draw", [lambda s, csr: sample(s, csr)[0], Gumbel(hard=True)])
def test_draws_have_the_weights_of_softmax(draw) -> None:
    torch.manual_seed(0)
    csr, logits = DRAWS.csr(), torch.tensor([0.0, 1.0, -1.0]).repeat(60_000)[:, None]
    drawn = draw(logits, csr).view(60_000, 3)
    assert ((drawn == 0) | (drawn - 1).abs().lt(1e-6)).all()
    torch.testing.assert_close(drawn.sum(1), torch.ones(60_000))
    torch.testing.assert_close(drawn.mean(0), logits[:3, 0].softmax(0), rtol=0, atol=0.01)


def test_the_logarithm_of_a_draw() -> None:
    csr, logits = PARALLEL.csr(), torch.randn(2, PARALLEL.num_edges, 3, requires_grad=True)
    drawn, log_prob = sample(logits, csr)
    chances = softmax(logits, csr)
    assert not drawn.requires_grad
    for got, p, w in zip(log_prob.unbind(1), *(by_rows(x, PARALLEL) for x in (chances, drawn))):
        torch.testing.assert_close(got, (w * p.clamp(min=1e-30).log()).sum(0))
    _, of_nobody = sample(torch.full((ISOLATED.num_edges, 1), -torch.inf), ISOLATED.csr())
    assert (of_nobody == 0).all()


def test_gumbel_goes_from_soft_to_hard() -> None:
    csr, logits = PARALLEL.csr(), torch.randn(PARALLEL.num_edges, 3)
    torch.manual_seed(0)
    cold = Gumbel(1e-4)(logits, csr)
    torch.manual_seed(0)
    torch.testing.assert_close(cold, Gumbel(1.0, hard=True)(logits, csr))
    soft = Gumbel(1.0)(logits, csr)
    assert ((soft > 0) & (soft < 1)).sum() > PARALLEL.num_edges


def test_reinforce_climbs_where_gradients_are_none() -> None:
    """Six sources, one of which brings the reward; values say nothing of which."""
    torch.manual_seed(0)
    hard, query = ga.nn.Reinforce(entropy=0.01), torch.zeros(1, 1, 6, requires_grad=True)
    key, value = torch.eye(6)[:, None], torch.arange(6.0)[:, None, None]
    optimizer = torch.optim.Adam([query], lr=0.1)

    def attend(items: int) -> torch.Tensor:
        batch = [x.expand(items, *x.shape) for x in (query, key, value)]
        return attention(*batch, ga.bipartite(1, 6), normalizer=hard, scale=1.0)

    for _ in range(150):
        reward = (attend(32) == 4).float()[:, 0, 0, 0]
        optimizer.zero_grad()
        hard.surrogate(reward).backward()
        optimizer.step()
    assert (attend(200) == 4).float().mean() > 0.9
    assert hard.baseline > 0.8
    assert (attend(7) == 4).sum() >= 5  # a draw of another size; it is forgotten with the module


def test_reinforce_has_the_gradient_of_the_expected_reward() -> None:
    torch.manual_seed(0)
    hard, n = ga.nn.Reinforce(decay=0.0), 40_000
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    worth = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    csr = ga.bipartite(1, 3).csr()
    weights = hard.normalizer()(logits[:, None].expand(n, 3, 1), csr)
    hard.surrogate((weights[..., 0] * worth).sum(-1)).backward()
    expected = torch.autograd.grad(-(logits.softmax(0) * worth).sum(), logits)[0]
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=0.02)
    assert hard.normalizer() != argmax
    assert hard.eval().normalizer() is argmax


def test_reinforce_counts_every_glimpse_once() -> None:
    hard, x = ga.nn.Reinforce(), torch.randn(5, 4, 2, 3)
    with pytest.raises(RuntimeError, match="nothing was drawn yet"):
        hard.surrogate(torch.zeros(5))
    for _ in range(3):
        attention(x, x, x, ga.complete(4), normalizer=hard)
    assert len(hard.drawn) == 3
    with pytest.raises(ValueError, match=r"\(\*batch, num_dst\) is \(5, 4\), got \(4,\)"):
        hard.surrogate(torch.zeros(4))
    hard.surrogate(torch.zeros(5))
    assert not hard.drawn


def test_reinforce_forgets_what_can_not_be_learned() -> None:
    hard, x = ga.nn.Reinforce(), torch.randn(5, 4, 2, 3, requires_grad=True)
    with torch.no_grad():
        attention(x, x, x, ga.complete(4), normalizer=hard)
    assert not hard.drawn


@pytest.mark.parametrize("other", [(1, 4, 2, 3), (8, 4, 2, 3), (4, 2, 3)])
def test_reinforce_refuses_draws_of_two_batches(other: tuple[int, ...]) -> None:
    """A sum of both would be an error of torch's, or would broadcast."""
    hard, last = ga.nn.Reinforce(), torch.randn(5, 4, 2, 3)
    for x in (last, torch.randn(other)):
        attention(x, x, x, ga.complete(4), normalizer=hard)
    for shape in ((5,), (5, 4)):
        with pytest.raises(ValueError, match=r"\(5, 4\).*, got .* drawn.clear\(\)"):
            hard.surrogate(torch.zeros(shape))
    hard.drawn.clear()
    attention(last, last, last, ga.complete(4), normalizer=hard)
    hard.surrogate(torch.zeros(5))


def test_reinforce_shares_a_reward_among_graphs_of_two_sizes() -> None:
    hard, x = ga.nn.Reinforce(), torch.randn(5, 4, 2, 3)
    attention(x, x, x, ga.complete(4), normalizer=hard)
    attention(x[:, :2], x, x, ga.bipartite(2, 4), normalizer=hard)
    assert hard.surrogate(torch.zeros(5)).shape == ()


def test_reinforce_rewards_items_or_destinations() -> None:
    x = torch.randn(5, 4, 2, 3, requires_grad=True)
    grads = []
    for shape in ((5,), (5, 4)):
        torch.manual_seed(0)
        hard = ga.nn.Reinforce()
        attention(x, x, x, ga.complete(4), normalizer=hard)
        reward = torch.arange(5.0).view(5, *(1,) * (len(shape) - 1)).expand(shape)
        grads += torch.autograd.grad(hard.surrogate(reward), x)
    torch.testing.assert_close(grads[0], 4 * grads[1])  # a mean over 5 rewards, or over 20


# --- modules --------------------------------------------------------------------------------------


def test_a_learned_sink() -> None:
    layer = ga.nn.GraphAttention(32, 4, normalizer=ga.nn.SinkSoftmax(4))
    x, graph = torch.randn(10, 32), ga.causal(10)
    layer(x, graph).square().sum().backward()
    sink = dict(layer.named_parameters())["normalizer.sink"]
    assert sink.grad is not None
    assert (sink.grad != 0).all()
    assert layer.weights(x, graph)[0].sum() < 4 * 0.99  # the first node may be alone, and rest


def test_gumbel_is_argmax_after_training() -> None:
    module = ga.nn.GumbelSoftmax(0.3, hard=True)
    assert as_normalizer(module) == Gumbel(0.3, hard=True)
    assert as_normalizer(module.eval()) is argmax


def test_soft_capping_stays_below_the_cap() -> None:
    x = 100 * torch.randn(6, 1, 4)
    scores = attention_weights(x, x, ga.complete(6), normalizer="none", softcap=5.0)
    assert scores.abs().max() <= 5
    near = attention_weights(x, x, ga.complete(6), normalizer="none", softcap=1e9)
    torch.testing.assert_close(near, attention_weights(x, x, ga.complete(6), normalizer="none"))
