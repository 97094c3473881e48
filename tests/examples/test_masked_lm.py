"""The masked language model end to end, small; what is counted, masked, and drawn."""

import itertools
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))  # as Python does for one of them

import blanks
import heatmaps
import masked_lm
import support
import vocabulary

from graphattn import complete
from graphattn.nn import TransformerBlock, post_norm, pre_norm
from tests.examples.test_examples import TEXT, Killed, result_of, weights

SIZE = 280  # of the vocabulary: 2 special tokens, 256 bytes, and what is merged
SMALL = ["--dim", "16", "--depth", "2", "--heads", "2", "--batch", "4", "--save-every", "2"]
SMALL += ["--steps", "6", "--context", "32", "--vocab", str(SIZE)]


@pytest.fixture
def train(tmp_path):
    """Runs the example, small, with more options; returns the folder of the run."""
    text = tmp_path / "text.py"
    text.write_text(TEXT * 3)

    def run(*options, name="run"):
        where = ["--runs", str(tmp_path), "--name", name, "--text", str(text)]
        masked_lm.main([*SMALL, *where, *options])
        return tmp_path / name

    return run


@pytest.mark.parametrize("graph", masked_lm.GRAPHS)
def test_runs(train, graph, capsys):
    result = result_of(train("--graph", graph), num_pictures=1)
    assert set(result["found"]) == {"unigram", "neighbors", graph}
    for row in result["found"].values():
        assert 0 <= row["accuracy"] <= 1
        assert 0 < row["bits"] < 20
    assert [entry["step"] for entry in result["history"]] == [2, 4, 6]
    assert "masked tokens of held-out files" in capsys.readouterr().out


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        masked_lm.main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "--resume" in said
    assert "python examples/masked_lm.py" in said


def test_a_killed_run_ends_where_a_straight_one_does(train, monkeypatch):
    monkeypatch.setattr(masked_lm, "filled_in", lambda *a, **k: "")
    straight = weights(train(name="straight"))
    learn = support.Run.learn

    def until_the_fifth(run, loss):
        if run.step == 5:
            raise Killed
        learn(run, loss)

    with monkeypatch.context() as patch:
        patch.setattr(support.Run, "learn", until_the_fifth)
        with pytest.raises(Killed):
            train()
    torch.testing.assert_close(weights(train("--resume")), straight)


def test_a_text_that_is_too_short(train, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("the same again, " * 30)
    with pytest.raises(ValueError, match=r"tokens, fewer than the 32 of a context.*--context"):
        train("--text", str(short))


def test_a_vocabulary_that_is_too_small(train):
    with pytest.raises(ValueError, match=r"needs 258 tokens.*got 200; take --vocab 258 or more"):
        train("--vocab", "200")


# --- what it is compared with ---------------------------------------------------------------------


def by_hand(train, left, right, size):
    """Chances of each token by unigram and by neighbors, with plain loops."""
    unigram = [(train.count(t) + 1) / (len(train) + size) for t in range(size)]
    pairs = list(itertools.pairwise(train))

    def mixed(count, total, t):
        return (count + 5 * unigram[t]) / (total + 5)

    prior = []
    for t in range(size):
        after = mixed(pairs.count((left, t)), sum(a == left for a, _ in pairs), t)
        before = mixed(pairs.count((t, right)), sum(b == right for _, b in pairs), t)
        prior.append(after * before / unigram[t])
    between = list(zip(train, train[1:], train[2:]))
    chances = [between.count((left, t, right)) + 2 * prior[t] / sum(prior) for t in range(size)]
    return unigram, [chance / sum(chances) for chance in chances]


def test_what_is_counted():
    generator = torch.Generator().manual_seed(0)
    size = 6
    train = torch.randint(2, size, (60,), generator=generator)
    chunks = vocabulary.framed(torch.randint(2, size, (3, 7), generator=generator))
    chosen = torch.rand(chunks.shape, generator=generator) < 0.4
    chosen[:, [0, -1]] = False
    bits, right = {"unigram": [], "neighbors": []}, {"unigram": [], "neighbors": []}
    for row, place in chosen.nonzero().tolist():
        left, true, after = chunks[row, place - 1 : place + 2].tolist()
        both = by_hand(train.tolist(), left, after, size)
        for name, chances in zip(bits, both):
            bits[name].append(-math.log2(chances[true]))
            right[name].append(max(range(size), key=chances.__getitem__) == true)
    found = vocabulary.counted(train, chunks, chosen, size)
    for name in bits:
        assert found[name]["bits"] == pytest.approx(sum(bits[name]) / len(bits[name]), rel=1e-5)
        assert found[name]["accuracy"] == pytest.approx(sum(right[name]) / len(right[name]))


def test_neighbors_tell_what_always_stands_between_them():
    train = torch.tensor([2, 3, 4, 5, 6, 4] * 50)
    chunks, chosen = torch.tensor([[1, 2, 3, 4, 5, 6, 4]]), torch.zeros(1, 7, dtype=torch.bool)
    chosen[0, 2:5] = True
    assert vocabulary.counted(train, chunks, chosen, 7)["neighbors"]["accuracy"] == 1


class Echo(torch.nn.Module):
    """Is sure of the token that it sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, tokens, graph):
        self.seen.append(tokens)
        return 100 * torch.nn.functional.one_hot(tokens, 9).float()


def test_the_model_is_asked_for_masked_tokens_alone():
    generator = torch.Generator().manual_seed(0)
    chunks = torch.randint(1, 9, (150, 8), generator=generator)
    chosen = torch.rand(chunks.shape, generator=generator) < 0.3
    echo = Echo()
    run = SimpleNamespace(model=echo, accelerator=support.Accelerator())
    found = masked_lm.evaluate(run, None, chunks, chosen)
    assert torch.equal(torch.cat(echo.seen) == vocabulary.MASK, chosen)
    assert found["accuracy"] == 0  # the mask is never the token
    assert found["bits"] == pytest.approx(100 / math.log(2))


def test_tokens_hold_the_whole_text():
    text = TEXT + "naïve = '\N{SNOWMAN}'\r\n\x0c\tpass"
    tokenizer = vocabulary.learn_tokens(TEXT, SIZE)
    tokens = vocabulary.tokens_of(text, tokenizer, 32)
    assert tokenizer.decode(tokens.tolist(), skip_special_tokens=False) == text
    assert len(tokens) < len(text) / 1.5
    assert vocabulary.CLS < tokens.min() < tokens.max() < SIZE
    again = vocabulary.learn_tokens(TEXT, SIZE)
    assert again.get_vocab() == tokenizer.get_vocab()  # a run that goes on needs the same


# --- the picture ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("residual", "taken"), [(pre_norm, "norm"), (post_norm, "x")])
def test_weights_are_of_what_the_attention_takes(residual, taken):
    torch.manual_seed(0)
    block, graph = TransformerBlock(8, 2, residual=residual), complete(5)
    torch.nn.init.normal_(block.attention_norm.weight)
    x = torch.randn(3, 5, 8)
    weights, after = heatmaps.weights_in(block, x, graph)
    torch.testing.assert_close(after, block(x, graph))
    expected = block.attention.weights(block.attention_norm(x) if taken == "norm" else x, graph)
    torch.testing.assert_close(weights, expected)
    assert not block.attention._forward_pre_hooks


def test_words_stand_side_by_side_in_their_lines():
    words = ["[CLS]", "if", " x", ":", "\n", "    ", "y", "\n", "z" * 90, "w" * 9]
    cells = blanks.layout(words, {1: "unless", 3: ","})
    assert [cell.text for cell in cells[:5]] == ["[CLS]", "unless", " x", ",", "↵"]
    assert [cell.y for cell in cells] == [0, 0, 0, 0, 0, 1, 1, 1, 2, 3]
    assert [cell.x for cell in cells] == [0, 5, 11, 13, 16, 0, 4, 5, 0, 0]
    assert [cell.text for cell in blanks.layout([" ", "a", " "], {1: " ", 2: "b "})] == [
        " ",
        "␣",
        "b ",
    ]
    assert all(cell.x + cell.width <= blanks.COLUMNS for cell in cells)
