"""The dates, what is held out of them, and the example that translates them, small."""

import json
import re
import sys
from datetime import date, timedelta
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))  # as Python does when it runs one of them

import checkpoints  # noqa: E402
import dates  # noqa: E402
import support  # noqa: E402
import translate_dates  # noqa: E402

SMALL = ["--dim", "16", "--depth", "1", "--heads", "2", "--batch", "4", "--save-every", "2"]
SOME_DAYS = [date(year, month, day) for year in (1950, 1999, 2031) for month in range(1, 13)
             for day in (1, 2, 7, 11, 28)]  # fmt: skip


def draw(how, count, seed=0):
    torch.manual_seed(seed)
    return how(count)


# --- data -----------------------------------------------------------------------------------------


def test_a_century_of_days_is_split():
    held_out, learned = (dates.days(held_out=held) for held in (True, False))
    assert sorted([*held_out.tolist(), *learned.tolist()]) == list(range(dates.DAYS))
    assert len(held_out) == dates.DAYS // 10
    assert date(2049, 12, 31) == dates.FIRST + timedelta(days=dates.DAYS - 1)
    assert torch.equal(held_out, dates.days.__wrapped__(True))  # the same at every run


def test_what_is_held_out_is_not_learned():
    learned = draw(dates.draw, 2000)
    days = {dates.FIRST + timedelta(days=number) for number in dates.days(True).tolist()}
    assert not any(example.day in days for example in learned)
    for language, pattern in dates.held_out_phrasings().items():
        assert pattern not in dates.phrasings(language)
    for example in draw(lambda count: dates.draw(count, held_out=True), 300):
        assert example.day in days
    for example in draw(dates.draw_phrasing, 300):
        assert example.day in days
        assert dates.held_out_phrasings()[example.language] == example.pattern
        others = [example._replace(pattern=p).text for p in dates.phrasings(example.language)]
        assert example.text not in others


def test_every_part_of_a_held_out_phrasing_is_learned():
    for language, pattern in dates.held_out_phrasings().items():
        for day in SOME_DAYS:
            texts = [dates.Example(language, p, day).text for p in dates.phrasings(language)]
            learned = {part for text in texts for part in words(text)}
            assert set(words(dates.Example(language, pattern, day).text)) <= learned


def words(text):
    return [part for part in re.split(r"[\s,]+", text) if part]


def test_twenty_languages_write_every_month_and_day():
    assert len(set(dates.LANGUAGES)) == 20
    seen = {name: set() for name in dates.LANGUAGES}
    patterns = {name: set() for name in dates.LANGUAGES}
    for example in draw(dates.draw, 20_000):
        seen[example.language] |= {("month", example.day.month), ("day", example.day.day)}
        patterns[example.language].add(example.pattern)
    for name in dates.LANGUAGES:
        assert len(seen[name]) == 12 + 31
        assert patterns[name] == set(dates.phrasings(name))


@pytest.mark.parametrize("language", dates.LANGUAGES)
def test_a_text_is_the_text_of_one_day(language):
    day_of = {}
    patterns = {*dates.phrasings(language), dates.held_out_phrasings().get(language)} - {None}
    days = {*SOME_DAYS, *(date(year, month, day) for year in (1963, 2007, 2012)
            for month in range(1, 13) for day in range(1, 13))}  # fmt: skip
    for day in days:
        for pattern in patterns:
            text = dates.Example(language, pattern, day).text
            assert day_of.setdefault(text, day) == day


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", {"Friday, March 7, 2031", "3/7/31", "Fri, March 7, 2031"}),
        ("de", {"Freitag, 7. März 2031", "07.03.31", "Fr., 7. März 2031"}),
        ("es", {"viernes, 7 de marzo de 2031", "7/3/31"}),
        ("ja", {"2031年3月7日金曜日", "2031/03/07"}),
        ("el", {"Παρασκευή 7 Μαρτίου 2031", "7 Μαρ 2031"}),
    ],
)
def test_texts_are_those_of_the_language(language, text):
    day = date(2031, 3, 7)
    assert text <= {dates.Example(language, p, day).text for p in dates.phrasings(language)}


def test_tokens_are_the_language_and_the_characters():
    number = dates.vocabulary()
    assert sorted(number.values()) == list(range(len(number)))
    example = dates.Example("en", "M/d/yy", date(2031, 3, 7))
    characters = {token: name for name, token in number.items()}
    assert [characters[token] for token in dates.read(example).tolist()] == ["en", *"3/7/31"]
    for example in [*draw(dates.draw, 500), *draw(dates.draw_phrasing, 100)]:
        assert len(dates.read(example)) == 1 + len(example.text)  # no character is unknown


def test_targets_are_iso_8601():
    days = [date(1950, 1, 1), date(2031, 3, 7), date(2049, 12, 31)]
    tokens = dates.write(days)
    assert tokens.shape == (3, dates.WRITTEN)
    assert (tokens[:, -1] == dates.END).all()
    assert [dates.written(row) for row in tokens] == ["1950-01-01", "2031-03-07", "2049-12-31"]


def test_what_is_known_comes_before_what_follows():
    examples = draw(dates.draw, 5)
    source, known, following = translate_dates.tensors(examples, "cpu")
    assert len(source) == 5
    assert (known[:, 0] == dates.START).all()
    assert torch.equal(known[:, 1:], following[:, :-1])
    assert [date.fromisoformat(dates.written(row)) for row in following] == [
        example.day for example in examples
    ]


# --- the example ----------------------------------------------------------------------------------


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Runs the example, small, with more options; returns the folder of the run."""
    monkeypatch.setattr(translate_dates, "EVALUATED", 40)

    def run(*options, name="run"):
        where = ["--runs", str(tmp_path), "--name", name, "--steps", "6"]
        translate_dates.main([*SMALL, *where, *options])
        return tmp_path / name

    return run


@pytest.mark.parametrize("model", ["transformer", *translate_dates.ATTENTIONS])
def test_every_model_runs(train, model, monkeypatch, capsys):
    monkeypatch.setattr(translate_dates, "SHOWN", ("en", "el"))
    result = json.loads((train("--model", model) / "result.json").read_text())
    assert result["steps"] == 6
    assert [entry["step"] for entry in result["history"]] == [2, 4, 6]
    for found in result["accuracy"].values():
        assert 0 <= found["all"] <= 1
    assert set(result["accuracy"]["days"]) <= {"all", *dates.LANGUAGES}
    (picture,) = result["pictures"]
    assert imread(picture).std() > 0.01
    assert all(graph["edges"] > 0 and graph["why"] for graph in result["graphs"])
    assert "but it is" in capsys.readouterr().out  # the table of examples


def test_accuracy_counts_what_is_right_to_the_last_character(monkeypatch):
    examples = draw(dates.draw, 40)
    said = [example.day.isoformat() for example in examples]
    for place in range(0, 40, 4):
        said[place] = said[place][:-1] + "x"
    monkeypatch.setattr(translate_dates, "translate", lambda model, examples: said)
    found = translate_dates.accuracy(None, examples)
    assert found.pop("all") == 0.75
    counts = {name: [e.language for e in examples].count(name) for name in found}
    assert sum(found[name] * counts[name] for name in found) == pytest.approx(30)


class Killed(BaseException):
    """Stands for a kill: nothing catches it on its way."""


def weights(folder):
    return load_file(checkpoints.newest(folder) / "model.safetensors")


@pytest.mark.parametrize("model", ["transformer", "luong-local"])
def test_a_killed_run_ends_where_a_straight_one_does(train, model, monkeypatch):
    monkeypatch.setattr(translate_dates, "alignments", lambda *arguments: "")
    straight = weights(train("--model", model, name="straight"))
    learn = support.Run.learn

    def learn_until(run, loss):
        if run.step == 3:
            raise Killed
        learn(run, loss)

    with monkeypatch.context() as patch:
        patch.setattr(support.Run, "learn", learn_until)
        with pytest.raises(Killed):
            train("--model", model)
    torch.testing.assert_close(weights(train("--model", model, "--resume")), straight)


def test_another_model_is_refused(train, monkeypatch):
    monkeypatch.setattr(translate_dates, "alignments", lambda *arguments: "")
    train()
    with pytest.raises(ValueError, match="resume with --model transformer, not luong"):
        train("--model", "luong", "--resume")


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        translate_dates.main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "--resume" in said
    assert "python examples/translate_dates.py" in said
