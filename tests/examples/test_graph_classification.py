"""Trees that ask for a leaf, and their classifiers, small."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))  # as Python does for one of them

import graph_classification

from tests.examples.test_examples import result_of


def test_runs(tmp_path, monkeypatch, capsys):
    trees = graph_classification.trees
    monkeypatch.setattr(graph_classification, "trees", lambda count: trees(count // 50))
    options = ["--runs", str(tmp_path), "--steps", "2"]
    graph_classification.main(options)
    result = result_of(tmp_path / "graph_classification", num_pictures=1)
    assert set(result["accuracy"]) == {"local", "GPS", "Exphormer"}
    assert all(0 <= a <= 1 for row in result["accuracy"].values() for a in row.values())
    assert "always the most frequent class" in capsys.readouterr().out
    monkeypatch.setattr(graph_classification, "Classifier", None)  # nothing is learned again
    graph_classification.main([*options, "--resume"])


def test_the_root_asks_for_the_leaf_with_its_key():
    for data in graph_classification.trees(3):
        leaves = data.x[-(2**data.depth) :]
        (asked,) = (leaves[:, 0] == data.x[0, 0]).nonzero().squeeze(1).tolist()
        assert leaves[asked, 1] - 1 == data.y
        assert data.told.nonzero().tolist() == [[0]]
        assert torch.bincount(data.expander_edge_index[1]).unique().tolist() == [4]


def test_help(capsys):
    with pytest.raises(SystemExit):
        graph_classification.main(["--help"])
    said = capsys.readouterr().out
    assert "--resume" in said
    assert "python examples/graph_classification.py" in said
