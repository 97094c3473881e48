"""The comparison of scores and normalizers, small; and that what is done is not done again."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))  # as Python does for one of them

import scores_compared

from tests.examples.test_examples import Killed, result_of

KINDS = [(part, name) for part, names in scores_compared.KINDS.items() for name in names]


def few(monkeypatch, **kinds):
    """Leave only some kinds of each part."""
    chosen = {part: {n: scores_compared.KINDS[part][n] for n in kinds[part]} for part in kinds}
    monkeypatch.setattr(scores_compared, "KINDS", chosen)


def test_runs(tmp_path, monkeypatch, capsys):
    few(monkeypatch, score=["uniform", "location", "cosine"], normalizer=["none"])
    options = ["--runs", str(tmp_path), "--steps", "80", "--repeats", "2"]
    scores_compared.main(options)
    result = result_of(tmp_path / "scores_compared", num_pictures=1)
    right = {
        name: [run["accuracy"] for run in runs]
        for names in result["found"].values()
        for name, runs in names.items()
    }
    assert max(right["uniform"] + right["location"]) < 0.2  # they can't tell digits apart
    assert min(right["cosine"] + right["none"]) > 0.6
    assert all(run["ms"] > 0 for run in result["found"]["score"]["cosine"])
    said = capsys.readouterr().out
    assert "score " in said
    assert "normalizer " in said


@pytest.mark.parametrize(("part", "name"), KINDS)
def test_every_kind_learns(part, name):
    torch.manual_seed(0)
    model = scores_compared.Matching(part, name)
    shape = (2, scores_compared.N, scores_compared.DIM)
    labels = torch.arange(2 * scores_compared.N).view(2, -1) % 10
    scores = model(torch.rand(shape), torch.rand(shape), labels)
    assert scores.shape == (2, scores_compared.N, scores_compared.CLASSES)
    loss = scores.logsumexp(-1).mean()
    if name == "REINFORCE":
        loss = loss + model.attention.normalizer.surrogate(scores.detach().mean((1, 2)))
    loss.backward()
    named = model.named_parameters()
    unused = {n for n, p in named if p.grad is None or p.grad.abs().max() < 1e-12}
    without_keys = {"uniform", "location"}  # these look at no key, uniform at no query
    # A bias of the keys shifts all logits of a destination alike: only some normalizers see it.
    allowed = {"attention.key.bias"}
    allowed |= {"attention.key.weight"} if name in without_keys else set()
    allowed |= {"attention.query.weight", "attention.query.bias"} if name == "uniform" else set()
    assert unused <= allowed


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    few(monkeypatch, score=["uniform", "dot"])
    options = ["--runs", str(tmp_path), "--steps", "1", "--repeats", "1"]
    learned, learn = [], scores_compared.learn

    def learn_until(count):
        def counted(*arguments):
            if len(learned) == count:
                raise Killed
            learned.append(arguments[2:5])
            return learn(*arguments)

        monkeypatch.setattr(scores_compared, "learn", counted)

    learn_until(1)
    with pytest.raises(Killed):
        scores_compared.main(options)
    learn_until(None)
    monkeypatch.setattr(scores_compared, "accuracy_by_kind", lambda *a, **k: "")
    scores_compared.main([*options, "--resume"])
    assert learned == [("score", "uniform", 0), ("score", "dot", 0)]


def test_seconds_bound_each_setting():
    result = scores_compared.learn(10**9, torch.device("cpu"), "score", "dot", 0, 0.3)
    assert 0 <= result["accuracy"] <= 1
    assert math.isfinite(result["ms"])


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        scores_compared.main(["--help"])
    assert end.value.code == 0
    assert "python examples/scores_compared.py" in capsys.readouterr().out
