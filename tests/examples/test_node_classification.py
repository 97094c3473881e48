"""examples/node_classification.py end to end, small; killed and resumed; without a sampler."""

import json
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from torch_geometric.data import Data

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))  # as Python does when it runs one of them

import citations  # noqa: E402
import node_classification  # noqa: E402
import sampling  # noqa: E402

from tests.pyg.sampling import needs_sampler  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*without a 'pyg-lib' installation")
SMALL = ["--nodes", "600", "--degree", "5", "--dim", "16", "--batch", "16", "--fan-out", "3"]
MODES = [pytest.param([], id="mini-batches", marks=needs_sampler), ["--full-batch"]]


@pytest.fixture
def run(tmp_path):
    """Runs the example, small, with more options; returns the folder of the run."""

    def run(*options, name="run"):
        where = ["--runs", str(tmp_path), "--name", name, "--root", str(tmp_path / "data")]
        node_classification.main([*SMALL, *where, "--steps", "4", *options])
        return tmp_path / name

    return run


@pytest.fixture
def no_picture(monkeypatch):
    monkeypatch.setattr(node_classification, "attention_to_neighbors", lambda *a, **k: "")


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("mode", MODES)
def test_it_runs(run, mode, capsys):
    result = result_of(run(*mode))
    assert result["steps"] == 4
    assert set(result["accuracy"]) > {"most common class", "this model"}
    assert all(0 <= share <= 1 for share in result["accuracy"].values())
    memory = result["megabytes_kept"]
    assert 0 < memory["a batch"] <= memory["a full batch"] * (1.01 if mode else 0.9)
    assert [imread(picture).std() > 0.01 for picture in result["pictures"]] == [True]
    assert all(graph["edges"] > 0 for graph in result["graphs"])
    assert "MB are kept for the backward pass by a full batch" in capsys.readouterr().out


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("mode", MODES)
def test_a_killed_run_ends_where_a_straight_one_does(run, mode, monkeypatch):
    straight = result_of(run(*mode, "--save-every", "2", name="straight"))
    learn = node_classification.Run.learn

    def killed(self, loss):
        if self.step == 3:
            raise KeyboardInterrupt
        learn(self, loss)

    monkeypatch.setattr(node_classification.Run, "learn", killed)
    with pytest.raises(KeyboardInterrupt):
        run(*mode, "--save-every", "2")
    monkeypatch.undo()
    monkeypatch.setattr(node_classification, "attention_to_neighbors", lambda *a, **k: "")
    resumed = result_of(run(*mode, "--save-every", "2", "--resume"))
    assert resumed["accuracy"] == straight["accuracy"]
    losses = [[step["loss"] for step in result["history"]] for result in (straight, resumed)]
    assert losses[0] == losses[1]


@pytest.mark.usefixtures("no_picture")
def test_without_a_sampler_it_says_what_to_install(run, monkeypatch):
    for name in ("WITH_PYG_LIB", "WITH_TORCH_SPARSE"):
        monkeypatch.setattr(sampling, name, False)
    with pytest.raises(SystemExit, match=r"pip install pyg-lib [^~]*--full-batch"):
        run()
    assert result_of(run("--full-batch"))["steps"] == 4


@pytest.mark.parametrize("name", ["cora", "ogbn-arxiv"])
def test_what_can_not_be_downloaded_is_said(run, name, monkeypatch):
    def offline(*_):
        raise ConnectionError("no network")

    monkeypatch.setattr(citations, "of_planetoid", offline)
    monkeypatch.setattr(citations, "of_ogb", offline)
    with pytest.raises(SystemExit, match=rf"{name} is neither in .* no network.*leave --data out"):
        run("--data", name)


def test_a_missing_package_is_said(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "ogb", None)
    with pytest.raises(SystemExit, match=r"ogbn-products needs the package ogb .*pip install ogb"):
        run("--data", "ogbn-products")


def test_other_data_is_drawn_by_its_classes(run, monkeypatch):
    """As Planetoid has it: no images, and edges by source."""
    index = torch.randint(80, (2, 400))
    masks = {f"{part}_mask": torch.arange(80) % 2 == i for i, part in enumerate(("train", "test"))}
    data = Data(torch.randn(80, 7), index[:, index[0].argsort()], y=torch.arange(80) % 3, **masks)
    monkeypatch.setattr(citations, "of_planetoid", lambda name, root: data)
    result = result_of(run("--data", "cora", "--full-batch"))
    assert imread(result["pictures"][0]).std() > 0.01


def test_papers_cite_surveys_and_their_own_class():
    data = citations.digits_that_cite(3000, 20)
    src, dst = data.edge_index
    survey = data.x[:, -1].bool()
    assert survey.float().mean() == pytest.approx(1 / 3, abs=0.03)
    assert (~survey[src]).float().mean() == pytest.approx(citations.ALIKE, abs=0.01)
    assert (data.y[src] == data.y[dst])[~survey[src]].all()
    assert (data.y[src] == data.y[dst])[survey[src]].float().mean() < 0.12
    assert (data.x[:, 64:128].sum(1) / 64).mean() == pytest.approx(citations.READABLE, abs=0.01)
    held_out = {tuple(image) for image in data.image[data.test_mask].tolist()}
    assert not held_out & {tuple(image) for image in data.image[data.train_mask].tolist()}


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        node_classification.main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "--resume" in said
    assert "python examples/node_classification.py" in said
