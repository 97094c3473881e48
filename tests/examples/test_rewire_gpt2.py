"""A small GPT-2 that is rewired: measured, kept for the next run, and those that can't be had."""

import json
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))  # as Python does for one of them

import pretrained
import rewire_gpt2
import support

from graphattn import hf
from tests.examples.test_examples import Killed, result_of

SIZES = ["--context", "64", "--dim", "16", "--depth", "2", "--heads", "2", "--batch", "4"]
TEXT = torch.randint(32, 127, (2, 4096), generator=torch.Generator().manual_seed(0)).byte()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the example, small, with more options; returns the folder of the run."""
    monkeypatch.setattr(rewire_gpt2, "load_text", lambda path, context: tuple(TEXT))
    monkeypatch.setattr(rewire_gpt2, "WIDTH", 8)
    monkeypatch.setattr(rewire_gpt2, "ROUNDS", 1)
    monkeypatch.setattr(rewire_gpt2, "PIECES", 4)

    def run(*options):
        where = ["--runs", str(tmp_path), "--steps", "4", "--save-every", "2"]
        rewire_gpt2.main([*where, *SIZES, *options])
        return tmp_path / "rewire_gpt2"

    return run


@pytest.fixture
def no_picture(monkeypatch):
    monkeypatch.setattr(rewire_gpt2, "loss_and_speed", lambda *a: "")


@pytest.fixture
def untrained():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=256, n_positions=64, n_embd=16, n_layer=2, n_head=2)
    config.initializer_range = 0.3
    config.bos_token_id = config.eos_token_id = None
    return GPT2LMHeadModel(config).eval()


def test_runs(run, capsys):
    result = result_of(run(), num_pictures=1)
    said = capsys.readouterr().out
    assert "training a small GPT-2" in said
    assert set(result["loss"]) == set(result["tokens_per_second"]) == set(rewire_gpt2.GRAPHS)
    for name in rewire_gpt2.GRAPHS:
        assert list(result["loss"][name]) == ["2", "4", "8", "16", "32", "64"]
        assert all(speed > 0 for speed in result["tokens_per_second"][name].values())
        assert f"{result['loss'][name]['64']:.3f}" in said
    causal, window, expander = result["loss"].values()
    assert window["8"] == pytest.approx(causal["8"], abs=1e-5)  # as wide as the window
    assert abs(window["64"] - causal["64"]) > 1e-5
    assert abs(expander["64"] - causal["64"]) > 1e-5
    assert result["restored"] == result["before"] == pytest.approx(causal["64"], abs=1e-5)


@pytest.mark.usefixtures("no_picture")
def test_the_model_is_kept_for_the_next_run(run, monkeypatch, capsys):
    first = json.loads((run() / "result.json").read_text())
    with monkeypatch.context() as patch:
        patch.setattr(pretrained, "learn", None)  # nothing is learned again
        again = json.loads((run() / "result.json").read_text())
    assert again["loss"] == first["loss"]
    assert "an earlier run trained" in capsys.readouterr().out
    run("--seed", "1")
    assert "training a small GPT-2" in capsys.readouterr().out


@pytest.mark.usefixtures("no_picture")
def test_a_killed_training_goes_on(run, monkeypatch):
    learn, learned = support.Run.learn, []

    def learn_until(last):
        def counted(run, loss):
            if run.step == last:
                raise Killed
            learned.append(run.step)
            learn(run, loss)

        monkeypatch.setattr(support.Run, "learn", counted)

    learn_until(3)
    with pytest.raises(Killed):
        run()
    learn_until(None)
    run("--resume")
    assert learned == [0, 1, 2, 2, 3]


@pytest.mark.usefixtures("no_picture")
def test_a_folder_with_a_tokenizer(run, tmp_path, untrained):
    words = {chr(code): code for code in range(256)} | {"more": 256}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    untrained.resize_token_embeddings(257)
    untrained.save_pretrained(tmp_path / "other")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "other")
    model, tokens = pretrained.pretrained(str(tmp_path / "other"), TEXT[1])
    assert tokens.tolist() == TEXT[1].tolist()
    assert torch.equal(model.transformer.wte.weight, untrained.transformer.wte.weight)
    folder = run("--model", str(tmp_path / "other"), "--context", "128")
    result = json.loads((folder / "result.json").read_text())
    assert result["model"] == str(tmp_path / "other")
    assert "64" in result["loss"]["causal"]  # all positions that it has
    assert "128" not in result["loss"]["causal"]
    assert not (folder / "model").exists()


@pytest.mark.parametrize("name", ["no/such-model", "not_a_folder/at/all", "{empty}"])
def test_a_model_that_cant_be_had(run, tmp_path, monkeypatch, name):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    name = name.format(empty=tmp_path)
    with pytest.raises(OSError, match="can't be had") as raised:
        run("--model", name)
    assert f"--model {name}" in str(raised.value)
    assert "without --model, a small GPT-2 is trained" in str(raised.value)


@pytest.mark.parametrize("length", [1, 8, 64])
def test_the_loss_is_that_of_each_piece(untrained, length):
    chunks = TEXT[0].unfold(0, 65, 64)[:3]
    total = 0.0
    with torch.no_grad():
        for chunk in chunks.long():
            for at in range(0, 64, length):
                scores = untrained(chunk[None, at : at + length]).logits[0]
                targets = chunk[at + 1 : at + length + 1]
                total += F.cross_entropy(scores, targets, reduction="sum").item()
    found = rewire_gpt2.loss_of(untrained, chunks, length)
    assert found == pytest.approx(total / (3 * 64), rel=1e-5)


def test_speed_is_of_every_graph(untrained, monkeypatch):
    rewired, rewire = [], hf.rewire
    monkeypatch.setattr(hf, "rewire", lambda *args: rewired.append(args[1]) or rewire(*args))
    graphs = {name: make(32) for name, make in rewire_gpt2.GRAPHS.items()}
    speeds = rewire_gpt2.speed_of(untrained, graphs, TEXT[:1, :32].long(), rounds=3)
    assert list(speeds) == list(graphs)
    assert min(speeds.values()) > 0
    assert rewired == list(graphs.values()) * 3


@pytest.mark.parametrize("graph", rewire_gpt2.GRAPHS)
@pytest.mark.parametrize("n", [2, 3, 64, 301])
def test_every_token_hears_itself_and_none_later(graph, n):
    made = rewire_gpt2.GRAPHS[graph](n)
    src, dst = made.edge_index
    assert (src <= dst).all()
    assert made.mask().diagonal().all()


def test_the_window_and_the_expander_have_about_as_many_edges():
    made = [rewire_gpt2.GRAPHS[name](2048).num_edges for name in ("window + sinks", "expander")]
    assert made[1] == pytest.approx(made[0], rel=0.1)


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        rewire_gpt2.main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "--resume" in said
    assert "python examples/rewire_gpt2.py" in said
