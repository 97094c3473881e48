"""Each example end to end, small; and what kills, wrong checkpoints and bad texts do to it."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))  # as Python does when it runs one of them

import checkpoints  # noqa: E402
import custom_connectivity  # noqa: E402
import lm  # noqa: E402
import support  # noqa: E402
import vit  # noqa: E402

SMALL = ["--dim", "16", "--depth", "2", "--heads", "2", "--batch", "4", "--save-every", "2"]
TEXT = "def area(width, height):\n    return width * height\n\n" * 40


@pytest.fixture
def train(tmp_path):
    """Runs "vit" or "lm", small, with more options; returns the folder of the run."""
    text = tmp_path / "text.py"
    text.write_text(TEXT)
    own = {"vit": [], "lm": ["--text", str(text), "--context", "32"]}
    main = {"vit": vit.main, "lm": lm.main}

    def run(example, *options, name="run"):
        where = ["--runs", str(tmp_path), "--name", name]
        main[example]([*SMALL, *own[example], *where, "--steps", "6", *options])
        return tmp_path / name

    return run


@pytest.fixture
def no_pictures(monkeypatch):
    """What draws takes most of the time of a small run."""
    for module, name in (
        (vit, "graph_over_image"),
        (vit, "attention_over_images"),
        (lm, "attention_over_text"),
        (custom_connectivity, "accuracy_by_depth"),
    ):
        monkeypatch.setattr(module, name, lambda *a, **k: "")


def result_of(folder, num_pictures):
    """What result.json says, once its pictures are seen to be there and not blank."""
    result = json.loads((folder / "result.json").read_text())
    assert len(result["pictures"]) == num_pictures
    for picture in result["pictures"]:
        assert imread(picture).std() > 0.01
    for graph in result["graphs"]:
        assert graph["edges"] > 0
        assert graph["why"]
    return result


# --- end to end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", ["complete", "shifted_windows", "neighborhood", "axial"])
def test_vit_runs(train, graph, capsys):
    result = result_of(train("vit", "--graph", graph), num_pictures=2)
    assert result["steps"] == 6
    assert 0 <= result["accuracy"] <= 1
    assert [entry["step"] for entry in result["history"]] == [2, 4, 6]
    assert "held-out digits (rows)" in capsys.readouterr().out


@pytest.mark.parametrize("graph", vit.GRAPHS)
@pytest.mark.parametrize("grid", [(4, 4), (7, 7)])
def test_every_graph_connects_the_whole_image(graph, grid):
    reached = torch.eye(grid[0] * grid[1], dtype=torch.bool)
    for block in range(8):
        reached = (vit.GRAPHS[graph](grid, block).mask().float() @ reached.float()) > 0
    assert reached.all()


@pytest.mark.parametrize("graph", lm.GRAPHS)
def test_lm_runs(train, graph, capsys):
    result = result_of(train("lm", "--graph", graph), num_pictures=1)
    bits = result["bits_per_byte"]
    assert 8 > bits["unigram"] > bits["bigram"] > 0
    assert result["better"] == pytest.approx(1 - bits[graph] / bits["bigram"])
    assert "def " in capsys.readouterr().out  # the sample


@pytest.mark.parametrize("graph", lm.GRAPHS)
def test_no_byte_hears_a_later_one(graph):
    src, dst = lm.GRAPHS[graph](32).edge_index
    assert (src <= dst).all()


def test_custom_connectivity_runs(tmp_path, monkeypatch, capsys):
    few = {name: custom_connectivity.GRAPHS[name] for name in ("complete", "expander", "Florence")}
    monkeypatch.setattr(custom_connectivity, "GRAPHS", few)
    custom_connectivity.main(["--runs", str(tmp_path), "--depth", "2", "--steps", "80"])
    result = result_of(tmp_path / "custom_connectivity", num_pictures=1)
    assert result["as_predicted"]
    assert result["hops"] == {"complete": 1, "expander": 2, "Florence": 4}
    assert result["accuracy"]["expander"]["1"] == 0.25
    assert result["accuracy"]["expander"]["2"] > 0.9
    assert "masked       runs" in capsys.readouterr().out  # the plan


@pytest.mark.parametrize("example", [vit, lm, custom_connectivity], ids=lambda e: e.__name__)
def test_help(example, capsys):
    with pytest.raises(SystemExit) as end:
        example.main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "--resume" in said
    assert f"python examples/{example.__name__}.py" in said


@pytest.mark.parametrize("option", ["--steps", "--seconds", "--save-every", "--batch", "--dim"])
@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_counts_must_be_positive(train, option, value, capsys):
    with pytest.raises(SystemExit):
        train("vit", option, value)
    assert f"{option}: must be a positive integer, got '{value}'" in capsys.readouterr().err


@pytest.mark.usefixtures("no_pictures")
def test_seconds_bound_the_training(train):
    folder = train("vit", "--steps", "1000000", "--seconds", "1", "--save-every", "1000")
    result = json.loads((folder / "result.json").read_text())
    assert 1 <= result["seconds"] < 10
    assert result["steps"] < 10_000


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_are_short(path):
    assert len(path.read_text().splitlines()) <= 150


# --- data -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pictures")
def test_mnist(train, monkeypatch):
    generator = np.random.default_rng(0)
    pixels, labels = generator.integers(0, 256, (100, 784)), np.arange(100).astype(str)
    labels = np.array([label[-1] for label in labels])  # openml has them as text
    monkeypatch.setattr(vit, "fetch_openml", lambda *a, **k: (pixels, labels))
    folder = train("vit", "--data", "mnist", "--graph", "shifted_windows")
    result = json.loads((folder / "result.json").read_text())
    assert [graph["graph"] for graph in result["graphs"]] == [
        "shifted_windows((7, 7), size=(4, 4), shift=(0, 0))",
        "shifted_windows((7, 7), size=(4, 4), shift=(2, 2))",
    ]


def test_mnist_offline_says_what_to_do(train, monkeypatch):
    def fetch(*arguments, **options):
        raise URLError("no network")

    monkeypatch.setattr(vit, "fetch_openml", fetch)
    with pytest.raises(OSError, match="use --data digits, which needs no network"):
        train("vit", "--data", "mnist")


def test_the_standard_library_is_split_by_file(tmp_path, monkeypatch):
    root = tmp_path / "tests"  # what is above the library does not count
    for number in range(45):
        for folder in ("", "json", "test", "site-packages/json"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / f"file{number:02}.py").write_text(f"{folder}{number:02} ")
    monkeypatch.setattr(lm.sysconfig, "get_paths", lambda: {"stdlib": str(root)})
    learned, held_out = (bytes(part.tolist()).decode().split() for part in lm.load_text(None, 8))
    assert sorted(learned + held_out) == sorted(
        f"{folder}{number:02}" for number in range(45) for folder in ("", "json")
    )
    assert held_out == ["00", "20", "40", "json15", "json35"]


def test_the_standard_library_is_found():
    learned, held_out = lm.load_text(None, context=128)
    assert len(learned) > 10 * len(held_out) > 1_000_000
    assert b"import" in bytes(held_out.tolist())


@pytest.mark.parametrize(("length", "what"), [(0, "0 bytes to learn"), (80, "8 bytes to hold")])
def test_a_text_that_is_too_short(train, tmp_path, length, what):
    short = tmp_path / "short.txt"
    short.write_text("x" * length)
    with pytest.raises(ValueError, match=what) as raised:
        train("lm", "--text", str(short))
    assert "a context of 32 needs at least 33" in str(raised.value)
    assert "smaller --context" in str(raised.value)


def test_counted_models():
    learned = torch.tensor([0, 1, 0, 1, 0, 2], dtype=torch.uint8)
    bits = lm.counted(learned, torch.tensor([[0, 1]], dtype=torch.uint8))
    assert bits["unigram"] == pytest.approx(-np.log2((2 + 1) / (6 + 256)))
    assert bits["bigram"] == pytest.approx(-np.log2((2 + 1) / (3 + 256)))


# --- killed and resumed ---------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill: nothing catches it on its way."""


def killed(*arguments, **options):
    raise Killed


def weights(folder):
    last = checkpoints.newest(folder)
    return {
        **load_file(last / "model.safetensors"),
        "step": torch.tensor(checkpoints.step_of(last)),
    }


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("at", [2, 5])
@pytest.mark.parametrize("example", ["vit", "lm"])
def test_a_killed_run_ends_where_a_straight_one_does(train, example, at, monkeypatch):
    straight = weights(train(example, name="straight"))
    learn, learned = support.Run.learn, []

    def learn_until(last):
        def counted(run, loss):
            if run.step == last:
                raise Killed
            learned.append(run.step)
            learn(run, loss)

        monkeypatch.setattr(support.Run, "learn", counted)

    learn_until(at)
    with pytest.raises(Killed):
        train(example)
    learn_until(None)
    resumed = weights(train(example, "--resume"))
    assert learned == [*range(at), *range(at // 2 * 2, 6)]  # saved after every other step
    torch.testing.assert_close(resumed, straight)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("example", ["vit", "lm"])
def test_a_kill_while_saving_leaves_the_checkpoint_before(train, example, monkeypatch, tmp_path):
    replace = os.replace

    def killed_before_renaming(draft, final):
        if Path(final).name == "checkpoint-4":
            raise Killed
        replace(draft, final)

    straight = weights(train(example, name="straight"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed_before_renaming)
        with pytest.raises(Killed):
            train(example)
    assert (tmp_path / "run" / "unfinished" / "model.safetensors").exists()
    assert checkpoints.newest(tmp_path / "run").name == "checkpoint-2"
    torch.testing.assert_close(weights(train(example, "--resume")), straight)
    assert not (tmp_path / "run" / "unfinished").exists()


@pytest.mark.usefixtures("no_pictures")
def test_a_kill_while_removing_leaves_the_new_checkpoint(train, monkeypatch, tmp_path):
    straight = weights(train("vit", name="straight"))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "remove", killed)
        with pytest.raises(Killed):
            train("vit")
    assert checkpoints.newest(tmp_path / "run").name == "checkpoint-2"
    torch.testing.assert_close(weights(train("vit", "--resume")), straight)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-6"]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("example", ["vit", "lm"])
def test_resuming_a_finished_run_repeats_its_result(train, example):
    before = (train(example, "--steps", "5") / "result.json").read_text()
    after = (train(example, "--steps", "5", "--resume") / "result.json").read_text()
    assert before == after


@pytest.mark.usefixtures("no_pictures")
def test_resuming_nothing_starts(train):
    assert checkpoints.newest(train("vit", "--resume")).name == "checkpoint-6"


@pytest.mark.usefixtures("no_pictures")
def test_starting_anew_keeps_the_checkpoint_of_the_run_before(train, capsys):
    first = weights(train("vit"))
    folder = train("vit", "--seed", "1", "--steps", "4")
    assert torch.equal(
        load_file(folder / "previous" / "model.safetensors")["head.weight"], first["head.weight"]
    )
    assert checkpoints.newest(folder).name == "checkpoint-4"
    assert "starting anew" in capsys.readouterr().out


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dim", "24"], r"shape \(24,\), and has \(16,\); resume with --dim 16, not 24"),
        (["--depth", "3"], r"shape \(16,\), and has None; resume with --depth 2, not 3"),
        (["--graph", "axial"], "other options; resume with --graph complete, not axial"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(train, options, message):
    folder = train("vit")
    with pytest.raises(ValueError, match=message) as raised:
        train("vit", "--resume", *options)
    assert f"or delete {folder / 'checkpoint-6'}" in str(raised.value)


@pytest.mark.usefixtures("no_pictures")
def test_models_that_are_done_are_not_trained_again(tmp_path, monkeypatch):
    options = ["--runs", str(tmp_path), "--depth", "1", "--steps", "1"]
    learn, learned = custom_connectivity.learn, []

    def learn_until(count):
        def counted(*arguments):
            if len(learned) == count:
                raise Killed
            learned.append(arguments)
            return learn(*arguments)

        monkeypatch.setattr(custom_connectivity, "learn", counted)

    learn_until(2)
    with pytest.raises(Killed):
        custom_connectivity.main(options)
    learn_until(None)
    custom_connectivity.main([*options, "--resume"])
    assert len(learned) == len(custom_connectivity.GRAPHS)
    custom_connectivity.main(options)
    assert len(learned) == 2 * len(custom_connectivity.GRAPHS)


# --- the demo -------------------------------------------------------------------------------------


@pytest.fixture
def demo(monkeypatch, tmp_path):
    """scripts/demo.py with one example, whose result.json a line of Python writes."""
    spec = importlib.util.spec_from_file_location("demo", ROOT / "scripts" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo", module)
    spec.loader.exec_module(module)
    graph = {"graph": "complete(15)", "edges": 225, "kernel": "dense", "why": "all to all"}

    def run(accuracy=0.98, status=0):
        result = {"graphs": [graph], "accuracy": accuracy, "result": "98%", "pictures": ["a.png"]}
        script = (
            f"import pathlib, sys; path = pathlib.Path({str(tmp_path)!r}, 'vit', 'result.json');"
        )
        script += (
            f"path.parent.mkdir(); path.write_text({json.dumps(result)!r}); sys.exit({status})"
        )
        monkeypatch.setattr(module.Example, "command", lambda *arguments: ["-c", script])
        monkeypatch.setattr(module, "EXAMPLES", module.EXAMPLES[:1])
        module.main(["--runs", str(tmp_path)])

    return run


def test_demo_shows_what_ran(demo, capsys):
    demo()
    said = capsys.readouterr().out
    for part in ("vit, ", "complete(15): 225 edges, dense", "dense: all to all", "98%", "a.png"):
        assert part in said


@pytest.mark.parametrize(
    ("options", "said"), [({"accuracy": 0.9}, "MISSED: at least 97%"), ({"status": 3}, "status 3")]
)
def test_demo_fails_when_an_example_does(demo, capsys, options, said):
    with pytest.raises(SystemExit) as end:
        demo(**options)
    assert end.value.code not in (0, None)
    assert said in capsys.readouterr().out
