"""Greedy and beam decoding, against every sequence that there is."""

import itertools

import pytest
import torch

from graphattn import models

START, END, VOCAB, LONGEST = 0, 1, 4, 4
OPTIONS = {"start": START, "end": END, "max_length": LONGEST}
SOURCE = [torch.tensor([3, 1, 4, 1, 5, 9, 2]), torch.tensor([6]), torch.tensor([5, 3, 5])]


def transformer():
    return models.Seq2SeqTransformer(10, VOCAB, dim=8, depth=1, heads=2)


def bahdanau():
    return models.Seq2SeqGRU(10, models.BahdanauDecoder(VOCAB, dim=8))


def luong():
    return models.Seq2SeqGRU(10, models.LuongDecoder(VOCAB, dim=8))


MODELS = pytest.mark.parametrize("make", [transformer, bahdanau, luong])


def drawn(make, seed=0):
    """A model that is sure of little, and prefers different things in different places."""
    torch.manual_seed(seed)
    model = make().eval()
    for parameter in model.parameters():
        parameter.data.mul_(1.6)
    return model


def scores_of(model, source, target):
    if isinstance(model, models.Seq2SeqTransformer):
        return model(source, target, *models.sentence_graphs(source, target))
    return model(source, target, models.source_graph(source))


@torch.no_grad()
def log_prob(model, source, tokens):
    """Of a target and its end, unless it is as long as may be, by teacher forcing."""
    said = tokens if len(tokens) == LONGEST else [*tokens, END]
    target = torch.tensor([START, *said[:-1]])
    scores = scores_of(model, [source], [target]).log_softmax(-1)
    return float(scores[torch.arange(len(said)), torch.tensor(said)].sum())


def penalized(log_prob, tokens, exponent):
    length = min(len(tokens) + 1, LONGEST)
    return log_prob / ((5 + length) / 6) ** exponent


def all_targets():
    rest = [token for token in range(VOCAB) if token != END]
    for length in range(LONGEST + 1):
        yield from itertools.product(rest, repeat=length)


@MODELS
@pytest.mark.parametrize("exponent", [0.0, 0.6, 2.0])
def test_a_wide_beam_finds_the_best_of_all_targets(make, exponent):
    model, options = drawn(make), {**OPTIONS, "length_penalty": exponent}
    found = models.beam_search(model, SOURCE, width=VOCAB**LONGEST, **options)
    for source, hypotheses in zip(SOURCE, found):
        of = {target: log_prob(model, source, target) for target in all_targets()}
        order = sorted(of, key=lambda target: penalized(of[target], target, exponent))
        assert len(hypotheses) == len(of)  # each of them once
        best = [tuple(hypothesis.tokens.tolist()) for hypothesis in hypotheses]
        assert best[:5] == order[:-6:-1]
        assert set(best) == set(of)
        for hypothesis, target in zip(hypotheses, best):
            assert hypothesis.log_prob == pytest.approx(of[target], abs=1e-4)
            score = penalized(of[target], target, exponent)
            assert hypothesis.score == pytest.approx(score, abs=1e-4)


def test_the_penalty_changes_what_is_best():
    best = [
        models.beam_search(drawn(luong), SOURCE, width=64, **OPTIONS, length_penalty=exponent)
        for exponent in (0.0, 3.0)
    ]
    lengths = [[len(hypotheses[0].tokens) for hypotheses in found] for found in best]
    assert sum(lengths[0]) < sum(lengths[1])


@MODELS
@pytest.mark.parametrize("seed", range(3))
def test_a_beam_of_one_is_greedy(make, seed):
    model = drawn(make, seed)
    options = {**OPTIONS, "max_length": 9}
    written = models.greedy(model, SOURCE, **options)
    found = models.beam_search(model, SOURCE, width=1, **options)
    for tokens, (hypothesis,) in zip(written, found, strict=True):
        assert torch.equal(tokens, hypothesis.tokens)


@MODELS
def test_greedy_takes_the_likeliest_token_each_time(make):
    model = drawn(make)
    for source, tokens in zip(SOURCE, models.greedy(model, SOURCE, **OPTIONS)):
        target = torch.tensor([START, *tokens])
        likeliest = scores_of(model, [source], [target]).argmax(-1)
        assert torch.equal(likeliest[: len(tokens)], tokens)
        assert len(tokens) == LONGEST or likeliest[len(tokens)] == END


@MODELS
def test_sentences_are_decoded_as_if_they_were_alone(make):
    model = drawn(make)
    together = models.beam_search(model, SOURCE, width=3, **OPTIONS)
    for source, hypotheses in zip(SOURCE, together):
        (alone,) = models.beam_search(model, [source], width=3, **OPTIONS)
        assert [h.tokens.tolist() for h in hypotheses] == [h.tokens.tolist() for h in alone]
        for one, other in zip(hypotheses, alone):
            assert one.log_prob == pytest.approx(other.log_prob, abs=1e-4)


@MODELS
def test_sources_are_encoded_once(make):
    model, calls = drawn(make), []
    encode = model.encode
    model.encode = lambda *arguments: calls.append(1) or encode(*arguments)
    models.beam_search(model, SOURCE, width=3, **OPTIONS)
    assert len(calls) == 1


def sure_of(token, make=transformer):
    """A model that says one token all the time."""
    model = drawn(make)
    model.decoder_norm.weight.data.zero_()
    model.decoder_norm.bias.data.copy_(10 * model.target_embedding.weight[token])
    return model


def test_decoding_stops_when_all_have_ended(monkeypatch):
    model, steps = sure_of(END), []
    decode = model.decode
    model.decode = lambda *arguments: steps.append(1) or decode(*arguments)
    assert [len(tokens) for tokens in models.greedy(model, SOURCE, **OPTIONS)] == [0, 0, 0]
    assert len(steps) == 1
    (first, *_), *_ = models.beam_search(model, SOURCE, width=1, **OPTIONS)
    assert len(first.tokens) == 0
    assert len(steps) == 2


def test_decoding_stops_at_the_longest():
    model = sure_of(3)
    assert [tokens.tolist() for tokens in models.greedy(model, SOURCE, **OPTIONS)] == [[3] * 4] * 3
    best = models.beam_search(model, SOURCE, width=2, **OPTIONS)
    assert [hypotheses[0].tokens.tolist() for hypotheses in best] == [[3] * 4] * 3


@pytest.mark.parametrize(
    ("wrong", "message"), [({"width": 0}, "width must be"), ({"max_length": 0}, "max_length must")]
)
def test_bad_numbers_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        models.beam_search(drawn(luong), SOURCE, **{"width": 2, **OPTIONS, **wrong})
