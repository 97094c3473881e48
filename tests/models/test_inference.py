"""Decomposable attention against the formulas of the paper, pair by pair in float64."""

import pytest
import torch

from graphattn import models, nn
from tests.nn.test_intra import intra_weights, shaken, two_layers

PREMISE = [torch.tensor([3, 1, 4, 1, 5]), torch.tensor([6]), torch.tensor([5, 3])]
HYPOTHESIS = [torch.tensor([0, 2]), torch.tensor([1, 8, 2, 8]), torch.tensor([7])]


def make(intra):
    torch.manual_seed(0)
    layer = nn.IntraAttention(6, max_distance=2) if intra else None
    return shaken(models.DecomposableAttention(10, 3, dim=6, intra=layer))


def graphs(intra):
    within_b, _, graph = models.sentence_graphs(HYPOTHESIS, PREMISE)
    within_a, _, _ = models.sentence_graphs(PREMISE, HYPOTHESIS)
    return (graph, (within_a, within_b)) if intra else (graph,)


def scores_of(model, premise, hypothesis):
    """Scores (classes,), and the weights both ways, (m, n)."""
    a, b = model.embedding.weight[premise], model.embedding.weight[hypothesis]
    if model.intra is not None:
        everything = torch.ones(len(a), len(a)).bool(), torch.ones(len(b), len(b)).bool()
        a, b = (
            torch.cat([x, intra_weights(model.intra, x, mask) @ x], dim=1)
            for x, mask in zip((a, b), everything)
        )
    logits = two_layers(model.attend, a) @ two_layers(model.attend, b).T
    to_b, to_a = logits.softmax(dim=1), logits.softmax(dim=0)
    v_a = two_layers(model.compare, torch.cat([a, to_b @ b], dim=1)).sum(0)
    v_b = two_layers(model.compare, torch.cat([b, to_a.T @ a], dim=1)).sum(0)
    last = model.aggregate[1]
    scores = last.weight @ two_layers(model.aggregate[0], torch.cat([v_a, v_b])) + last.bias
    return scores, to_b, to_a


@pytest.mark.parametrize("intra", [False, True])
def test_scores_weights_and_gradients_are_those_of_the_paper(intra):
    model, sentences = make(intra), (PREMISE, HYPOTHESIS, *graphs(intra))
    known = [scores_of(model, *pair) for pair in zip(PREMISE, HYPOTHESIS)]
    found = model(*sentences), torch.stack([scores for scores, _, _ in known])
    torch.testing.assert_close(*found)
    parameters = list(model.parameters())
    grads = [torch.autograd.grad(scores.square().sum(), parameters) for scores in found]
    torch.testing.assert_close(*grads)
    src, dst = graphs(intra)[0].edge_index
    to_b, to_a = (torch.block_diag(*(pair[place] for pair in known)) for place in (1, 2))
    weights = model.weights(*sentences)
    torch.testing.assert_close(weights[0][:, 0], to_b[dst, src])
    premise, hypothesis = graphs(intra)[0].T.edge_index
    torch.testing.assert_close(weights[1][:, 0], to_a[premise, hypothesis])


def test_the_order_of_tokens_says_nothing_without_intra_attention():
    turned = [tokens.flip(0) for tokens in PREMISE], [tokens.flip(0) for tokens in HYPOTHESIS]
    for intra in (False, True):
        model = make(intra)
        before, after = model(PREMISE, HYPOTHESIS, *graphs(intra)), model(*turned, *graphs(intra))
        assert torch.allclose(before, after) is not intra


@pytest.mark.parametrize("intra", [False, True])
def test_graphs_of_intra_attention_belong_to_it(intra):
    with pytest.raises(ValueError, match="give both or neither"):
        make(intra)(PREMISE, HYPOTHESIS, *graphs(not intra))
