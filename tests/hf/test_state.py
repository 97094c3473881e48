"""What rewiring leaves with a model, and what it does not."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import graphattn as ga
from graphattn import hf
from tests.hf.tiny import MODELS, inputs, result

TINY = MODELS["Llama"]
ATTENTIONS = ("attn", "crossattention")
WINDOW = ga.causal(40) & ga.sliding_window(40, 2)


def out_of(model: Any) -> Tensor:
    with torch.no_grad():
        return result(model, inputs(TINY))


@pytest.fixture(scope="module")
def outs() -> tuple[Tensor, Tensor]:
    """Of the model itself, and in a window."""
    model = TINY.make()
    plain = out_of(model)
    hf.rewire(model, WINDOW)
    return plain, out_of(model)


def test_restore(outs: tuple[Tensor, Tensor]) -> None:
    model = TINY.make()
    before = vars(model).keys() | vars(model.model.layers[0].self_attn).keys()
    implementation = model.config._attn_implementation
    for graph in (None, WINDOW, WINDOW):
        hf.rewire(model, graph)
    hf.restore(model)
    assert model.config._attn_implementation == implementation
    assert vars(model).keys() | vars(model.model.layers[0].self_attn).keys() == before
    assert torch.equal(out_of(model), outs[0])
    hf.restore(model)  # again is nothing


def test_models_of_one_config_are_apart(outs: tuple[Tensor, Tensor]) -> None:
    config = TINY.config(**TINY.options)
    first, second, third = (TINY.model(config).eval() for _ in range(3))
    for model in (first, second, third):
        model.load_state_dict(TINY.make().state_dict())
    hf.rewire(first, WINDOW)
    hf.rewire(second, ga.causal(40))
    assert third.config._attn_implementation == "sdpa"
    torch.testing.assert_close(out_of(first), outs[1])
    torch.testing.assert_close(out_of(second), outs[0])
    hf.restore(second)
    torch.testing.assert_close(out_of(first), outs[1])
    assert torch.equal(out_of(second), outs[0])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_rewired(copied: Any, outs: tuple[Tensor, Tensor]) -> None:
    model = TINY.make()
    hf.rewire(model, WINDOW)
    out_of(model)
    other = copied(model)
    hf.restore(model)
    torch.testing.assert_close(out_of(other), outs[1])
    hf.restore(other)
    assert torch.equal(out_of(other), outs[0])


def test_saved_models_are_transformers_own(tmp_path: Path, outs: tuple[Tensor, Tensor]) -> None:
    model = TINY.make()
    names = set(model.state_dict())
    hf.rewire(model, WINDOW)
    assert set(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    loaded = TINY.model.from_pretrained(tmp_path)
    assert loaded.config._attn_implementation == "sdpa"
    assert torch.equal(out_of(loaded), outs[0])
    named = TINY.model.from_pretrained(tmp_path, attn_implementation="graphattn")
    torch.testing.assert_close(out_of(named), outs[0], atol=1e-5, rtol=1e-5)


def test_report() -> None:
    options = {"decoder": MODELS["GPT-2"].make(add_cross_attention=True).config.to_dict()}
    options["encoder"] = transformers.Swinv2Config(
        image_size=16, patch_size=2, embed_dim=16, depths=[1], num_heads=[2], window_size=4
    ).to_dict()
    config = transformers.VisionEncoderDecoderConfig(**options)
    model = transformers.VisionEncoderDecoderModel(config).eval()
    report = hf.rewire(model)
    own = "switched: the model's own"
    expected = {f"decoder.transformer.h.{n}.{kind}": own for n in "01" for kind in ATTENTIONS}
    expected["encoder.encoder.layers.0.blocks.0.attention.self"] = (
        "left: Swinv2SelfAttention does not go through AttentionInterface"
    )
    lines = (line.split("  ", 1) for line in str(report).splitlines())
    assert {name: word.strip() for name, word in lines} == expected
    given = {
        "pixel_values": torch.randn(2, 3, 16, 16),
        "decoder_input_ids": torch.ones(2, 3).long(),
    }
    with torch.no_grad():
        ours = model(**given).logits
        hf.restore(model)
        torch.testing.assert_close(model(**given).logits, ours, atol=1e-5, rtol=1e-5)
