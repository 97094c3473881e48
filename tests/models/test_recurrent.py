"""Recurrent encoder-decoders against the formulas of both papers, written out in float64."""

import itertools

import pytest
import torch

import graphattn as ga
from graphattn import models, nn

SOURCE = [torch.tensor([3, 1, 4, 1, 5, 9, 2]), torch.tensor([6]), torch.tensor([5, 3, 5])]
TARGET = [torch.tensor([0, 2, 7]), torch.tensor([0, 1, 8, 2, 8]), torch.tensor([0])]
DIM = 6
SCORES = ("dot", "general", "concat")

ATTENTIONS = {
    **{f"global, {score}": (nn.GlobalAttention, {"score": score}) for score in SCORES},
    **{
        f"local, {score}, radius {radius}": (nn.LocalAttention, {"score": score, "radius": radius})
        for score, radius in itertools.product(SCORES, (1, 3))
    },
}
DECODERS = {"Bahdanau": models.BahdanauDecoder, "Luong": models.LuongDecoder}


def make(decoder="Luong", attention="global, general"):
    torch.manual_seed(0)
    layer, options = ATTENTIONS[attention]
    decoder = DECODERS[decoder](9, dim=DIM, attention=layer(DIM, **options))
    return models.Seq2SeqGRU(10, decoder).double()


def run(model, source=SOURCE, target=TARGET):
    return model(source, target, models.source_graph(source))


# --- the formulas, one sentence and one step at a time --------------------------------------------


def gru(x, h, w_in, w_hidden, b_in, b_hidden):
    """Cho et al. 2014, eq. 5 to 8, with the reset behind the matrix."""
    r_in, z_in, n_in = (w_in @ x + b_in).chunk(3)
    r_hidden, z_hidden, n_hidden = (w_hidden @ h + b_hidden).chunk(3)
    r, z = (r_in + r_hidden).sigmoid(), (z_in + z_hidden).sigmoid()
    return (1 - z) * (n_in + r * n_hidden).tanh() + z * h


def parameters(module, suffix=""):
    names = (f"weight_ih{suffix}", f"weight_hh{suffix}", f"bias_ih{suffix}", f"bias_hh{suffix}")
    return [getattr(module, name) for name in names]


def read(model, tokens):
    """States after each token (n, dim), and the last state of either direction."""
    words = model.embedding.weight[tokens]
    forward, backward = [torch.zeros(DIM // 2).double()], [torch.zeros(DIM // 2).double()]
    for word in words:
        forward.append(gru(word, forward[-1], *parameters(model.encoder, "_l0")))
    for word in words.flip(0):
        backward.append(gru(word, backward[-1], *parameters(model.encoder, "_l0_reverse")))
    states = torch.cat([torch.stack(forward[1:]), torch.stack(backward[1:]).flip(0)], dim=1)
    return states, forward[-1], backward[-1]


def scores_of(match, kind, h, states):
    if kind == "dot":
        return states @ h
    if kind == "general":
        return states @ match.of_token.weight.T @ h
    mapped = match.of_state.weight @ h + states @ match.of_token.weight.T
    return mapped.tanh() @ match.additive.weight[0]


def weights_of(layer, options, h, states):
    logits = scores_of(layer.alignment, options["score"], h, states)
    if "radius" not in options:
        return logits.softmax(0)
    to_place, _, to_number = layer.place
    p = len(states) * (to_number.weight[0] @ (to_place.weight @ h).tanh()).sigmoid()
    s, radius = torch.arange(len(states)), options["radius"]
    outside = (s < p - radius) | (s > p + radius)
    align = logits.masked_fill(outside, -torch.inf).softmax(0)
    return align * torch.exp(-((s - p) ** 2) / (2 * (radius / 2) ** 2))


def write(model, source, target, attention):
    """Scores (m, vocab) and weights (m, n) of one sentence."""
    states, forward, backward = read(model, source)
    decoder, (_, options) = model.decoder, ATTENTIONS[attention]
    cell, found, weights = parameters(decoder.cell), [], []
    luong = isinstance(decoder, models.LuongDecoder)
    fed = torch.zeros(DIM).double()
    h = torch.cat([forward, backward])
    if not luong:
        h = torch.tanh(decoder.first.weight @ backward + decoder.first.bias)
    for token in target:
        word = decoder.embedding.weight[token]
        if luong:
            h = gru(torch.cat([word, fed]), h, *cell)
            weights.append(weights_of(decoder.attention, options, h, states))
            fed = torch.tanh(decoder.combine.weight @ torch.cat([weights[-1] @ states, h]))
            found.append(decoder.out.weight @ fed)
        else:
            weights.append(weights_of(decoder.attention, options, h, states))
            context = weights[-1] @ states
            h = gru(torch.cat([word, context]), h, *cell)
            deep = decoder.readout.weight @ torch.cat([h, word, context]) + decoder.readout.bias
            found.append(decoder.out.weight @ torch.maximum(deep[0::2], deep[1::2]))
            found[-1] = found[-1] + decoder.out.bias
    return torch.stack(found), torch.stack(weights)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_scores_weights_and_gradients_are_those_of_the_papers(decoder, attention):
    model = make(decoder, attention)
    written = [write(model, *pair, attention) for pair in zip(SOURCE, TARGET)]
    expected = torch.cat([scores for scores, _ in written])
    scores = run(model)
    torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-9)
    for known, given in zip(gradients(model, scores), gradients(model, expected)):
        torch.testing.assert_close(known, given, rtol=1e-7, atol=1e-9)
    weights = model.weights(SOURCE, TARGET, models.source_graph(SOURCE))
    parts = weights.split([len(tokens) for tokens in SOURCE], dim=1)
    for part, (_, known) in zip(parts, written):
        torch.testing.assert_close(part[: len(known)], known, rtol=1e-9, atol=1e-9)


def gradients(model, scores):
    probe = torch.linspace(-1, 1, scores.numel()).view(scores.shape).double()
    found = torch.autograd.grad((probe * scores).sum(), list(model.parameters()), allow_unused=True)
    assert sum(grad is None or not grad.any() for grad in found) <= 1
    return [grad for grad in found if grad is not None]


# --- sentences and graphs -------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_sentence_is_the_same_alone_and_beside_others(decoder):
    model = make(decoder)
    alone = [run(model, [source], [target]) for source, target in zip(SOURCE, TARGET)]
    torch.testing.assert_close(run(model), torch.cat(alone))


def test_tokens_that_the_graph_leaves_out_are_not_attended_to():
    model = make("Bahdanau")
    src, dst = models.source_graph(SOURCE).edge_index
    kept = src % 2 == 0
    graph = ga.from_edges(torch.stack([src[kept], dst[kept]]).flip(1), num_dst=3, num_src=11)
    assert model.weights(SOURCE, TARGET, graph).shape == (5, 6)
    assert not torch.allclose(model(SOURCE, TARGET, graph), run(model))


def test_local_weights_follow_the_edges_of_the_graph():
    layer = nn.LocalAttention(DIM, radius=2).double()
    states, tokens = torch.randn(2, DIM).double(), torch.randn(9, DIM).double()
    graph = ga.batch([ga.bipartite(1, 5), ga.bipartite(1, 4)])
    order = torch.randperm(9)
    listed = ga.from_edges(graph.edge_index[:, order], num_dst=2, num_src=9)
    key = layer.key(tokens)
    weights = layer.weights(states, key, graph)
    assert (weights == 0).any()
    assert (weights > 0).any()
    torch.testing.assert_close(layer.weights(states, key, listed), weights[order])
    summed = torch.zeros(2, DIM).double().index_add(0, graph.edge_index[1], weights * tokens)
    torch.testing.assert_close(layer(states, key, tokens, graph), summed)
    torch.testing.assert_close(layer(states, key, tokens, listed), summed)


def test_local_attention_runs_fused():
    layer = nn.LocalAttention(DIM, radius=2)
    window, log_gauss, _ = layer._window(torch.randn(3, DIM), ga.bipartite(3, 500))
    q, k = torch.randn(3, 1, DIM), torch.randn(500, 1, DIM)
    assert ga.explain(q, k, k, window, bias=log_gauss, scale=1.0).kernel != "reference"
    features = {"edge_value": log_gauss[..., None]}
    assert ga.explain(q, k, k[..., :1], window, scale=1.0, **features).kernel == "cpu"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.GlobalAttention(8, "cosine"), '"dot", "general" or "concat", got \'cosine\''),
        (lambda: nn.LocalAttention(8, radius=0), "radius must be between 1 and .*, got 0"),
        (lambda: models.LuongDecoder(9, dim=7), "dim must be even.*got 7"),
        (lambda: models.BahdanauDecoder(9, dim=7), "dim must be even.*got 7"),
        (lambda: run(make(), [SOURCE[0], SOURCE[0][:0]], TARGET[:2]), "got none in source 1"),
        (
            lambda: make()(SOURCE, TARGET, models.source_graph(SOURCE[:2])),
            "2 destination nodes but query holds 3",
        ),
    ],
)
def test_bad_input_says_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
