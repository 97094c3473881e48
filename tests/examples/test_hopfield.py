"""examples/hopfield.py end to end, small; killed and resumed; and what it counts."""

import json
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))  # as Python does when it runs one of them

import hopfield  # noqa: E402

LOADS = {"random patterns": (0.02, 0.5), "digits": (1 / 64, 2 / 64, 3 / 64, 4 / 64, 8)}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the example at few loads, with more options; returns the folder of the run."""
    monkeypatch.setattr(hopfield, "LOADS", LOADS)

    def run(*options, name="run"):
        where = ["--runs", str(tmp_path), "--name", name, "--neurons", "100"]
        hopfield.main([*where, "--steps", "2", *options])
        return tmp_path / name

    return run


@pytest.fixture
def no_pictures(monkeypatch):
    """What draws takes most of the time of a small run."""
    for name in ("images_recalled", "recall_by_load"):
        monkeypatch.setattr(hopfield, name, lambda *a, **k: "")


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def test_it_runs(run, capsys):
    result = result_of(run())
    assert result["trials"] == 2
    for task, loads in LOADS.items():
        for curve in result["recalled"][task].values():
            assert len(curve) == len(loads)
            assert all(0 <= share <= 1 for share in curve)
    assert len(result["pictures"]) == 2
    for picture in result["pictures"]:
        assert imread(picture).std() > 0.01
    assert result["graphs"][0]["edges"] == 10 * 1797
    assert result["graphs"][0]["kernel"] == "dense"
    assert "digits that come back, of so many to each of 64 neurons" in capsys.readouterr().out


@pytest.mark.usefixtures("no_pictures")
def test_networks_hold_what_theory_says(run):
    recalled = result_of(run())["recalled"]
    assert all(curve[0] == 1 for task in recalled.values() for curve in task.values())
    random, digits = recalled["random patterns"], recalled["digits"]
    assert random["Hebb, all to all"][1] < 0.1 < 0.95 < random["modern"][1]
    assert digits["Hebb, all to all"][3] < 0.8 < 0.95 < digits["projection, all to all"][3]
    assert digits["Hebb, all to all"][4] < 0.1 < 0.9 < digits["modern"][4]


@pytest.mark.usefixtures("no_pictures")
def test_a_killed_run_ends_where_a_straight_one_does(run, monkeypatch):
    straight = result_of(run(name="straight"))
    trial, seeds = hopfield.trial, []

    def trial_until(count):
        def counted(seed, neurons):
            if len(seeds) == count:
                raise KeyboardInterrupt
            seeds.append(seed)
            return trial(seed, neurons)

        monkeypatch.setattr(hopfield, "trial", counted)

    trial_until(1)
    with pytest.raises(KeyboardInterrupt):
        run()
    trial_until(None)
    resumed = result_of(run("--resume"))
    assert len(seeds) == 2
    assert resumed["recalled"] == straight["recalled"]
    run("--resume")
    assert len(seeds) == 2
    run()  # starts anew
    assert len(seeds) == 4
    assert len(set(seeds)) == 2
    run("--resume", "--seed", "1")
    assert len(set(seeds)) == 4


@pytest.mark.usefixtures("no_pictures")
def test_seconds_bound_the_trials_and_leave_one(run, monkeypatch):
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(hopfield.time, "perf_counter", lambda: next(clock))
    assert result_of(run("--seconds", "50", "--steps", "4"))["trials"] == 1


def test_damage_flips_as_many_as_it_says():
    patterns = torch.randint(2, (30, 50)) * 2.0 - 1
    damaged = hopfield.flip(patterns, 0.1)
    assert ((damaged != patterns).sum(dim=1) == 5).all()
    assert (damaged.abs() == 1).all()
    places = (damaged != patterns).sum(dim=0)
    assert (places > 0).sum() > 40  # anywhere


@pytest.mark.parametrize(("name", "degree"), [("random graph", 7.0), ("neighborhood", 6.5625)])
def test_sparse_graphs_have_a_tenth_of_the_edges(name, degree):
    network = hopfield.networks(64, "digits")[f"Hebb, {name}"](hopfield.DIGITS[:2])
    assert network.graph.num_edges == 64 * degree
    assert network.graph.num_edges < 0.12 * 64 * 63


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        hopfield.main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "trials (default 5)" in said
    assert "--resume" in said
    assert "python examples/hopfield.py" in said
