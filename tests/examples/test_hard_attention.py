"""examples/hard_attention.py end to end, small; killed and resumed; and what it reads."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from matplotlib.image import imread

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))  # as Python does when it runs one of them

import canvas  # noqa: E402
import glimpses  # noqa: E402
import hard_attention  # noqa: E402

CPU, PATCHES = torch.device("cpu"), hard_attention.PATCHES.num_src
LEARNED = ("argmax", "Gumbel", "REINFORCE")


@pytest.fixture
def run(tmp_path):
    """Runs the example for two steps, with more options; returns the folder of the run."""

    def run(*options, name="run"):
        hard_attention.main(["--runs", str(tmp_path), "--name", name, "--steps", "2", *options])
        return tmp_path / name

    return run


@pytest.fixture
def reader():
    """Makes a reader of a kind, with queries that differ from canvas to canvas."""

    def make(kind):
        torch.manual_seed(0)
        return hard_attention.Reader(hard_attention.NORMALIZERS[kind]())

    return make


def canvases(n=16):
    torch.manual_seed(1)
    return canvas.scatter(torch.rand(n, 8, 8))


# --- end to end -----------------------------------------------------------------------------------


def test_it_runs(run, capsys):
    folder = run("--repeats", "2")
    result = json.loads((folder / "result.json").read_text())
    assert len(result["pictures"]) == 2
    for picture in result["pictures"]:
        assert imread(picture).std() > 0.01
    assert result["graphs"][0]["kernel"] == "dense"
    assert {graph["edges"] for graph in result["graphs"]} == {PATCHES}
    read = {kind: row["patches_read"] for kind, row in result["normalizers"].items()}
    assert read == {"soft": 3 * PATCHES, **dict.fromkeys([*LEARNED, "anywhere"], 3)}
    for kind, row in result["normalizers"].items():
        of_seeds = result["accuracy_of_seeds"][kind]
        assert len(of_seeds) == 2
        assert row["accuracy"] == pytest.approx(sum(of_seeds) / 2)
    assert "patches per image" in capsys.readouterr().out


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        hard_attention.main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "--resume" in said
    assert "python examples/hard_attention.py" in said


class Killed(BaseException):
    """Stands for a kill: nothing catches it on its way."""


def test_settings_that_are_done_are_not_trained_again(run, monkeypatch):
    learn, learned = hard_attention.learn, []
    monkeypatch.setattr(hard_attention, "report", lambda *a: None)

    def learn_until(count):
        def counted(data, steps, kind, seed, seconds):
            if len(learned) == count:
                raise Killed
            learned.append((kind, seed))
            return learn(data, steps, kind, seed, seconds)

        monkeypatch.setattr(hard_attention, "learn", counted)

    learn_until(2)
    with pytest.raises(Killed):
        run("--repeats", "1")
    learn_until(None)
    folder = run("--repeats", "1", "--resume")
    assert learned == [(kind, 0) for kind in hard_attention.NORMALIZERS]
    assert len(list(folder.glob("*/*.json"))) == len(learned)
    run("--repeats", "1")
    assert len(learned) == 2 * len(hard_attention.NORMALIZERS)


def test_soft_attention_learns_to_read():
    data = canvas.load_canvases(CPU)
    learned = hard_attention.learn(data, 120, "soft", 0, math.inf)
    assert learned["accuracy"] > 0.3  # a guess is right in 0.1
    assert [step for step, _ in learned["curve"]] == list(range(12, 121, 12))


def test_seconds_bound_the_training():
    learned = hard_attention.learn(canvas.load_canvases(CPU), 10**9, "soft", 0, 0.3)
    assert 1 <= learned["curve"][-1][0] < 10_000


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", hard_attention.NORMALIZERS)
def test_weights_say_what_is_read(reader, kind):
    _, weights = reader(kind).test(canvases())
    torch.testing.assert_close(weights.sum(-1), torch.ones(16, hard_attention.GLIMPSES))
    read = (weights > 0).sum(-1)
    assert (read == (PATCHES if kind == "soft" else 1)).all()


@pytest.mark.parametrize("kind", ["soft", *LEARNED])
def test_what_is_not_read_does_not_matter(reader, kind):
    model, images = reader(kind).eval(), canvases()
    before, weights = model(images)[0], model.test(images)[1]
    unread = (weights == 0).all(dim=1)[..., None] if kind != "soft" else weights.mT[..., :1] < 0.04
    assert unread.any()
    model.read.register_forward_hook(lambda part, given, value: value + 1e4 * unread)
    after = model.eval()(images)[0]
    assert torch.equal(before, after) == (kind != "soft")


@pytest.mark.parametrize("kind", LEARNED)
def test_where_to_look_is_learned(reader, kind):
    model = reader(kind)
    images, labels = canvases(), torch.arange(16) % 10
    hard_attention.loss_of(model, images, labels, used=0.5).backward()
    assert model.query.weight.grad.abs().max() > 0
    assert getattr(model.normalizer, "temperature", 1.0) == 1.0  # half way from 2 to 0.5
    assert not getattr(model.normalizer, "drawn", [])  # forgotten


# --- canvases -------------------------------------------------------------------------------------


def test_a_digit_lies_whole_on_its_canvas():
    torch.manual_seed(0)
    digits = torch.rand(32, 8, 8)
    scattered = canvas.scatter(digits)
    windows = F.unfold(scattered[:, None], 8)  # (32, 64, places)
    whole = (windows == digits.flatten(1)[..., None]).all(dim=1)
    assert (whole.sum(dim=1) == 1).all()
    assert len(whole.nonzero()[:, 1].unique()) > 16  # places
    assert ((scattered > 0).sum(dim=(1, 2)) > 64).any()  # and fragments


def test_held_out_canvases_are_the_same_in_all_runs():
    torch.manual_seed(0)
    first = canvas.load_canvases(CPU)
    torch.manual_seed(1)
    for one, other in zip(first, canvas.load_canvases(CPU)):
        assert torch.equal(one, other)
    assert [len(part) for part in first] == [1437, 1437, 1440, 1440]
    assert torch.equal(first[3][:360], first[3][360:720])


def test_one_patch_is_framed():
    ax = glimpses.Figure().subplots(1, 2)
    weights = torch.stack([torch.eye(PATCHES)[7], torch.full((PATCHES,), 1 / PATCHES)])
    glimpses.show_glimpses(ax, torch.rand(canvas.SIDE, canvas.SIDE), weights)
    (frame,) = ax[0].patches
    assert frame.get_bbox().bounds == (5.5, 1.5, 8, 8)  # of the tile in row 1, column 2
    assert not ax[1].patches


def test_seeds_may_end_at_different_steps(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(glimpses, "save", lambda figure, path: drawn.update({path: figure}))
    curves = {"soft": [[(10, 0.1), (20, 0.3), (30, 0.5)], [(15, 0.4)], [(20, 0.7), (25, 0.9)]]}
    glimpses.learning(tmp_path, curves)
    (line,) = drawn[tmp_path].axes[0].lines
    assert line.get_xdata().tolist() == [15]
    assert line.get_ydata().tolist() == [pytest.approx((0.2 + 0.4 + 0.7) / 3)]
