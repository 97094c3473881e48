"""Intra-attention and the LSTMN against their formulas, written out in float64."""

import pytest
import torch

import graphattn as ga
from graphattn import nn


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def shaken(module):
    module = module.double()
    for number, parameter in enumerate(module.parameters()):
        parameter.data += 0.3 * draw(*parameter.shape, seed=number)
    return module


def two_layers(f, x):
    hidden = torch.relu(x @ f[0].weight.T + f[0].bias)
    return torch.relu(hidden @ f[2].weight.T + f[2].bias)


def intra_weights(layer, x, mask):
    """(dst, src), one sentence."""
    n, reach = len(x), layer.max_distance
    f = two_layers(layer.project, x)
    logits = torch.empty(n, n).double()
    for i in range(n):
        for j in range(n):
            place = i - j + reach if abs(i - j) <= reach else 2 * reach + 1
            logits[i, j] = f[i] @ f[j] + layer.distance[place]
    return logits.masked_fill(~mask, -torch.inf).softmax(-1)


@pytest.mark.parametrize("reach", [0, 2, 10])
@pytest.mark.parametrize("graph", [ga.complete(6), ga.causal(6), ga.sliding_window(6, 1)], ids=str)
def test_intra_attention_is_the_formula(graph, reach):
    layer, x = shaken(nn.IntraAttention(4, 5, max_distance=reach)), draw(6, 4)
    weights = intra_weights(layer, x, graph.mask())
    torch.testing.assert_close(layer(x, graph), torch.cat([x, weights @ x], dim=-1))
    src, dst = graph.edge_index
    torch.testing.assert_close(layer.weights(x, graph)[:, 0], weights[dst, src])


def test_all_long_distances_share_a_bias_that_learns():
    layer = shaken(nn.IntraAttention(4, max_distance=2))
    layer(draw(6, 4), ga.complete(6)).square().sum().backward()
    assert layer.distance.grad.shape == (6,)
    assert layer.distance.grad.all()
    dst, src = torch.tensor([5, 0, 5, 4, 2]), torch.tensor([0, 5, 2, 3, 2])
    assert torch.equal(layer.bias(dst, src)[:, 0], layer.distance[[5, 5, 5, 3, 2]])


def lstmn(layer, x, mask):
    """States (n, hidden) and weights (n, n) of one sentence."""
    states, cells, rows = [], [], torch.zeros(len(x), len(x)).double()
    summary = torch.zeros(layer.hidden).double()
    for t, word in enumerate(x):
        heard = mask[t].nonzero()[:, 0].tolist()
        logits = [
            layer.additive.weight[0]
            @ torch.tanh(
                layer.of_state.weight @ states[j]
                + layer.of_token.weight @ word
                + layer.of_summary.weight @ summary
            )
            for j in heard
        ]
        summary, cell = torch.zeros(2, layer.hidden).double()
        if heard:
            weights = torch.stack(logits).softmax(0)
            summary = sum(w * states[j] for w, j in zip(weights, heard))
            cell = sum(w * cells[j] for w, j in zip(weights, heard))
            rows[t, heard] = weights.detach()
        i, f, o, u = (layer.gates.weight @ torch.cat([summary, word]) + layer.gates.bias).unflatten(
            0, (4, layer.hidden)
        )
        cells.append(f.sigmoid() * cell + i.sigmoid() * u.tanh())
        states.append(o.sigmoid() * cells[-1].tanh())
    return torch.stack(states), rows


BEFORE = ga.causal(7).without_self_loops()


@pytest.mark.parametrize(
    "graph",
    [
        BEFORE,
        BEFORE & ga.sliding_window(7, 2),
        ga.batch([ga.causal(3), ga.causal(4)]).without_self_loops(),
        ga.from_edges(BEFORE.edge_index[:, torch.tensor([9, 3, 20, 14, 0, 7])], 7),
    ],
    ids=["all", "window", "two sentences", "some edges"],
)
def test_lstmn_is_the_formula(graph):
    layer, x = shaken(nn.LSTMN(4, 5)), draw(2, 7, 4)
    states, weights = layer(x, graph), layer.weights(x, graph)
    src, dst = graph.edge_index
    expected = [lstmn(layer, sentence, graph.mask()) for sentence in x]
    torch.testing.assert_close(states, torch.stack([known for known, _ in expected]))
    for found, (_, rows) in zip(weights, expected):
        torch.testing.assert_close(found[:, 0], rows[dst, src])
    grads, known = (
        torch.autograd.grad(out.square().sum(), list(layer.parameters()))
        for out in (states, torch.stack([known for known, _ in expected]))
    )
    torch.testing.assert_close(grads, known)


def test_with_the_state_before_alone_it_is_an_lstm():
    layer, x = shaken(nn.LSTMN(4, 5)), draw(3, 7, 4)
    last = BEFORE & ga.sliding_window(7, 1)
    theirs = torch.nn.LSTM(4, 5, batch_first=True).double()
    i, f, o, u = layer.gates.weight.chunk(4)
    ordered = torch.cat([i, f, u, o])  # torch's order
    theirs.weight_hh_l0.data, theirs.weight_ih_l0.data = ordered.split([5, 4], dim=1)
    i, f, o, u = layer.gates.bias.chunk(4)
    theirs.bias_ih_l0.data = torch.cat([i, f, u, o])
    theirs.bias_hh_l0.data.zero_()
    torch.testing.assert_close(layer(x, last), theirs(x)[0])


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (ga.causal(7), r"the edge 0 -> 0; take graph & causal\(7\).without_self_loops"),
        (ga.causal(7).without_self_loops().T, "the edge 1 -> 0"),
        (ga.causal(6).without_self_loops(), "as x has tokens, 7, got 6 destinations"),
        (ga.bipartite(7, 6), "7, got 7 destinations and 6 sources"),
    ],
)
def test_bad_graphs_are_refused(graph, message):
    with pytest.raises(ValueError, match=message):
        nn.LSTMN(4, 5).double()(draw(7, 4), graph)
