"""What else a call may ask for: packed sequences, weights, dropout, checkpoints, dense masks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import graphattn as ga
from graphattn import hf
from tests.hf.tiny import MODELS, TOKENS, inputs, padding, result

DECODERS = [name for name, tiny in MODELS.items() if tiny.kind == "decoder"]
WINDOW = ga.causal(40) & ga.sliding_window(40, 2)
PACKED = torch.tensor([[*range(5), *range(4), *range(3)], [*range(12)], [*range(1), *range(11)]])


def both(model: Any, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Eager, and rewired without a graph."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = result(model, given)
        hf.rewire(model)
        return expected, result(model, given)


@pytest.mark.parametrize("name", DECODERS)
def test_packed_sequences(name: str) -> None:
    tiny = MODELS[name]
    given = {**inputs(tiny), "position_ids": PACKED, "use_cache": False}
    expected, ours = both(tiny.make(), given)
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=1e-4)


def test_packed_sequences_over_a_graph() -> None:
    tiny = MODELS["Llama"]
    model, given = tiny.make(), inputs(tiny)
    hf.rewire(model, WINDOW)
    with torch.no_grad():
        packed = model(**given, position_ids=PACKED, use_cache=False).logits
        for ids, positions, out in zip(given["input_ids"], PACKED, packed, strict=True):
            starts = [*(positions == 0).nonzero()[:, 0].tolist(), TOKENS]
            for start, stop in pairwise(starts):
                alone = model(input_ids=ids[None, start:stop]).logits[0]
                torch.testing.assert_close(out[start:stop], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", [None, "left", "both"])
@pytest.mark.parametrize("name", ["GPT-2", "Gemma-2", "gpt-oss", "BERT", "T5", "Whisper", "Swin"])
def test_weights(name: str, side: str | None) -> None:
    tiny = MODELS[name]
    side = None if tiny.kind == "image" else side
    model, given = tiny.make(), {**inputs(tiny, side), "output_attentions": True}
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(**given)
        hf.rewire(model)
        ours = model(**given)
    kinds = [kind for kind in expected if kind.endswith("attentions")]
    assert kinds
    for kind in kinds:
        for one, other in zip(ours[kind], expected[kind], strict=True):
            assert one.shape == other.shape
            if (mask := padding(side)) is not None and tiny.kind in ("decoder", "speech"):
                if kind == "encoder_attentions":
                    continue
                rows = mask.bool()[:, None, :, None].expand_as(one)
                one, other = one[rows], other[rows]
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-3)


def test_weights_of_generation() -> None:
    model, given = MODELS["GPT-2"].make(), inputs(MODELS["GPT-2"])
    options = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
    model.set_attn_implementation("eager")
    expected = model.generate(**given, **options, output_attentions=True).attentions
    hf.rewire(model)
    ours = model.generate(**given, **options, output_attentions=True).attentions
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("graph", [None, WINDOW])
def test_gradient_checkpointing(graph: ga.Graph | None) -> None:
    model, given = MODELS["Mistral"].make(), inputs(MODELS["Mistral"], "left")
    hf.rewire(model, graph)
    grads = []
    for again in (False, True):
        if again:
            model.gradient_checkpointing_enable()
        model.train()
        model.zero_grad()
        loss = result(model, given)[padding("left").bool()].square().mean()  # pyright: ignore
        loss.backward()
        grads.append([weight.grad.clone() for weight in model.parameters()])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("graph", [None, WINDOW])
def test_dropout_is_that_of_the_model(graph: ga.Graph | None) -> None:
    model = MODELS["Llama"].make(attention_dropout=0.5)
    layer = model.model.layers[0].self_attn
    x = torch.randn(1, TOKENS, 32).expand(2000, -1, -1)
    angles = model.model.rotary_emb(x[:1], torch.arange(TOKENS)[None])
    hf.rewire(model, graph)
    with torch.no_grad():
        exact = layer(x[:1], angles, None)[0]
        outs = layer.train()(x, angles, None)[0]
    assert not torch.equal(outs[0], outs[1])
    error = (outs.mean(0) - exact[0]).abs() / (outs.std(0) / 2000**0.5 + 1e-6)
    assert error.max() < 6


@pytest.mark.parametrize("name", ["GPT-2", "gpt-oss"])
@pytest.mark.parametrize("kind", ["bool", "added"])
def test_dense_masks(name: str, kind: str) -> None:
    """A 4-D mask of a user, alone and on a graph."""
    tiny = MODELS[name]
    model, given = tiny.make(), inputs(tiny)
    made = torch.Generator().manual_seed(2)
    mask = torch.rand(3, 1, TOKENS, TOKENS, generator=made) < 0.5
    mask |= torch.eye(TOKENS, dtype=torch.bool)

    def given_with(mask: Tensor, kind: str) -> dict[str, Any]:
        if kind == "added":
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        kinds = getattr(model.config, "layer_types", None)
        return {**given, "attention_mask": mask if kinds is None else dict.fromkeys(kinds, mask)}

    model.set_attn_implementation("eager")
    with torch.no_grad():
        whole = result(model, given_with(mask, "added"))
        within = result(model, given_with(mask & WINDOW.mask()[:TOKENS, :TOKENS], "added"))
        hf.rewire(model)
        torch.testing.assert_close(
            result(model, given_with(mask, kind)), whole, atol=2e-4, rtol=1e-4
        )
        hf.rewire(model, WINDOW)
        ours = result(model, given_with(mask, kind))
        torch.testing.assert_close(ours, within, atol=2e-4, rtol=1e-4)


def test_holes_in_the_mask() -> None:
    """Prompts padded on the right, and generated on behind the padding, as transformers does."""
    for name in ("GPT-2", "gpt-oss"):
        tiny = MODELS[name]
        model, given = tiny.make(), inputs(tiny, "right")
        given.pop("position_ids")
        model.set_attn_implementation("eager")
        expected = model.generate(**given, max_new_tokens=4, do_sample=False)
        hf.rewire(model)
        assert torch.equal(model.generate(**given, max_new_tokens=4, do_sample=False), expected)
        if name == "GPT-2":  # the cache of gpt-oss keeps a window only
            hf.rewire(model, ga.causal(40))
            assert torch.equal(model.generate(**given, max_new_tokens=4, do_sample=False), expected)


def test_autocast() -> None:
    model, given = MODELS["Llama"].make(), inputs(MODELS["Llama"])
    with torch.autocast("cpu", torch.bfloat16):
        expected, ours = both(model, given)
    assert ours.dtype == expected.dtype
    torch.testing.assert_close(ours, expected, atol=0.2, rtol=0.1)


def test_compiled_model() -> None:
    model, given = MODELS["Llama"].make(), inputs(MODELS["Llama"])
    hf.rewire(model, WINDOW)
    with torch.no_grad():
        expected = result(model, given)
        ours = result(torch.compile(model, backend="eager"), given)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
