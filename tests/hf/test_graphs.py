"""Models over graphs that a user gives, beside the same models under dense masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import graphattn as ga
from graphattn import hf
from tests.hf.tiny import MODELS, TOKENS, inputs, padding, real, result

LONG = 40
GRAPHS: dict[str, ga.Graph] = {
    "window": ga.causal(LONG) & ga.sliding_window(LONG, 2),
    "window and sinks": (ga.causal(LONG) & ga.sliding_window(LONG, 2))
    | (ga.causal(LONG) & ga.hubs(LONG, range(2))),
    "expander": (ga.expander(LONG, 4, seed=0) | ga.expander(LONG, 2, seed=1)).with_self_loops()
    & ga.causal(LONG),
    "edges": ga.from_edges((ga.causal(LONG) & ga.dilated(LONG, 3, 2)).edge_index, LONG),
    "lonely": ga.causal(LONG).without_self_loops() & ga.sliding_window(LONG, 1),
}
DECODERS = [name for name, tiny in MODELS.items() if tiny.kind == "decoder"]


def dense(graph: ga.Graph, mask: Tensor | None, items: int, length: int) -> Tensor:
    """What a graph means to padded items, written by hand: bool (items, 1, length, length)."""
    whole, out = graph.mask(), torch.zeros(items, 1, length, length, dtype=torch.bool)
    for item in range(items):
        kept = torch.arange(length) if mask is None else mask[item].nonzero().squeeze(1)
        nodes = kept - kept[0]
        out[item, 0, kept[:, None], kept] = whole[nodes[:, None], nodes]
    return out


def added(mask: Tensor) -> Tensor:
    """As eager attention takes it; rows of nobody are left to themselves."""
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)


def everywhere(model: Any, mask: Tensor) -> Any:
    """A mask for every kind of layer that a model has."""
    kinds = getattr(model.config, "layer_types", None)
    return mask if kinds is None else dict.fromkeys(kinds, mask)


@pytest.mark.parametrize("side", [None, "left", "both"])
@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, shape) for name in DECODERS for shape in ("window and sinks", "expander")]
    + [("GPT-2", "window"), ("gpt-oss", "edges")],
)
def test_decoder(name: str, shape: str, side: str | None) -> None:
    tiny, graph = MODELS[name], GRAPHS[shape]
    model, given = tiny.make(), inputs(tiny, side)
    model.set_attn_implementation("eager")
    mask = added(dense(graph, padding(side), 3, TOKENS))
    with torch.no_grad():
        expected = result(model, {**given, "attention_mask": everywhere(model, mask)})
        assert set(hf.rewire(model, graph).switched.values()) == {"given"}
        ours = result(model, given)
    of_tokens = real(tiny, side, ours)
    torch.testing.assert_close(of_tokens(ours), of_tokens(expected), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "shape", "cached"),
    [(name, "window and sinks", "growing") for name in DECODERS]
    + [("Llama", shape, "growing") for shape in GRAPHS]
    + [(name, "expander", kind) for name in ("GPT-2", "gpt-oss") for kind in ("static", "none")],
)
def test_generation_is_that_of_each_prompt_alone(name: str, shape: str, cached: str) -> None:
    """Greedy, left padded and cached; against one forward of each whole sequence, alone."""
    tiny, graph = MODELS[name], GRAPHS[shape]
    model, given, mask = tiny.make(), inputs(tiny, "left"), padding("left")
    assert mask is not None
    hf.rewire(model, graph)
    prompts = {"input_ids": given["input_ids"], "attention_mask": mask}
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
    if cached == "growing":
        options["past_key_values"] = transformers.DynamicCache()
    elif cached == "static":
        cache = transformers.StaticCache(transformers.LlamaConfig(num_hidden_layers=2), LONG)
        options["past_key_values"] = cache
    else:
        options["use_cache"] = False
    ours = model.generate(**prompts, **options)[:, TOKENS:]
    for ids, tokens, kept in zip(given["input_ids"], ours, mask.bool(), strict=True):
        with torch.no_grad():
            whole = torch.cat([ids[kept], tokens])[None, :-1]
            logits = model(input_ids=whole, use_cache=False).logits[0, -len(tokens) :]
        chosen = logits.gather(1, tokens[:, None])[:, 0]
        torch.testing.assert_close(chosen, logits.amax(1), atol=1e-4, rtol=0)


def test_layers_have_graphs_of_their_own() -> None:
    tiny = MODELS["Llama"]
    model, given = tiny.make(), inputs(tiny)
    model.set_attn_implementation("eager")
    graph, masks = GRAPHS["window"], []
    for one in (graph, ga.causal(LONG)):
        masks.append(added(dense(one, None, 3, TOKENS)))

    def by_layer(module: Any, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, "attention_mask": masks[module.layer_idx]}

    hooks = [
        layer.self_attn.register_forward_pre_hook(by_layer, with_kwargs=True)
        for layer in model.model.layers
    ]
    with torch.no_grad():
        expected = result(model, given)
        for hook in hooks:
            hook.remove()
        hf.rewire(model, [graph, None])
        torch.testing.assert_close(result(model, given), expected, atol=2e-4, rtol=1e-4)
        window = ga.causal(TOKENS) & ga.sliding_window(TOKENS, 2)
        hf.rewire(model, lambda q_len, kv_len, offset, layer: None if layer else window)
        torch.testing.assert_close(result(model, given), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("side", [None, "left", "right", "both"])
def test_function_of_lengths(side: str | None) -> None:
    tiny, graph = MODELS["Llama"], GRAPHS["window"]
    asked = []

    def function(q_len: int, kv_len: int, offset: int, layer: int) -> ga.Graph:
        asked.append((q_len, kv_len, offset, layer))
        window = ga.causal(kv_len) & ga.sliding_window(kv_len, 2)
        return window.rows(offset, offset + q_len)

    model, given = tiny.make(), inputs(tiny, side)
    with torch.no_grad():
        hf.rewire(model, graph)
        expected = result(model, given)
        hf.rewire(model, function)
        of_tokens = real(tiny, side, expected)
        torch.testing.assert_close(of_tokens(result(model, given)), of_tokens(expected))
    if side is None:
        assert asked == [(TOKENS, TOKENS, 0, 0), (TOKENS, TOKENS, 0, 1)]
    if side in (None, "left"):
        options = {"max_new_tokens": 4, "do_sample": False}
        prompts = {key: given[key] for key in given if key != "position_ids"}
        ours = model.generate(**prompts, **options)
        hf.rewire(model, graph)
        assert torch.equal(model.generate(**prompts, **options), ours)


@pytest.mark.parametrize("name", ["Llama", "Mistral", "BERT"])
def test_function_that_leaves_short_sequences_to_the_model(name: str) -> None:
    tiny = MODELS[name]
    model, given, mask = tiny.make(), inputs(tiny, "left"), padding("left")
    own = ga.complete(LONG) if name == "BERT" else ga.causal(LONG)
    if name == "Mistral":
        own = own & ga.sliding_window(LONG, 3)
    assert mask is not None
    given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)

    def window(length: int) -> ga.Graph:
        return ga.causal(length) & ga.sliding_window(length, 1)

    for is_own in (range(TOKENS), range(TOKENS, LONG)):

        def function(q: int, kv: int, at: int, layer: int, is_own: range = is_own) -> Any:
            return None if kv in is_own else window(kv).rows(at, kv)

        hf.rewire(model, function)
        with torch.no_grad():
            ours = result(model, given)
            for item, kept in enumerate(mask.bool()):
                hf.rewire(model, own if int(kept.sum()) in is_own else window(LONG))
                alone = result(model, {"input_ids": given["input_ids"][item, kept][None]})
                torch.testing.assert_close(ours[item, kept], alone[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("name", ["BERT", "ModernBERT"])
def test_encoder(name: str, side: str | None) -> None:
    tiny, graph = MODELS[name], ga.sliding_window(LONG, 2) | ga.hubs(LONG, [0])
    model, given = tiny.make(), inputs(tiny, side)
    model.set_attn_implementation("eager")
    mask = added(dense(graph, padding(side), 3, TOKENS))
    with torch.no_grad():
        expected = result(model, {**given, "attention_mask": everywhere(model, mask)})
        hf.rewire(model, graph)
        ours = result(model, given)
    of_tokens = real(tiny, side, ours)
    torch.testing.assert_close(of_tokens(ours), of_tokens(expected), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["T5", "BART", "Whisper"])
def test_stacks_of_an_encoder_decoder(name: str) -> None:
    """Window in the decoder; cross-attention and the encoder keep their own."""
    tiny, graph = MODELS[name], GRAPHS["window"]
    model, given = tiny.make(), inputs(tiny, "right")
    model.set_attn_implementation("eager")
    mask = added(dense(graph, None, 3, TOKENS))
    given.pop("decoder_attention_mask", None)
    with torch.no_grad():
        expected = result(model, {**given, "decoder_attention_mask": mask})
        with pytest.raises(ValueError, match="several stacks"):
            hf.rewire(model, graph)
        report = hf.rewire(model.get_decoder(), graph)
        assert sorted(report.switched.values()) == ["given"] * 2 + ["the model's own"] * 2
        ours = result(model, given)
        torch.testing.assert_close(ours, expected, atol=2e-4, rtol=1e-4)
        hf.rewire(model.get_encoder())
        torch.testing.assert_close(result(model, given), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["ViT", "Swin"])
def test_images(name: str) -> None:
    """A graph on the tokens of an image, or on those of a window."""
    tiny = MODELS[name]
    model, given = tiny.make(), inputs(tiny)
    nodes = 17 if name == "ViT" else 16
    graph = ga.expander(nodes, 4, seed=0).with_self_loops()
    model.set_attn_implementation("eager")
    mask = added(graph.mask())[None]  # Swin's own are (windows, cells, cells)

    def narrowed(module: Any, args: Any, kwargs: Any) -> Any:
        given = args[1] if len(args) > 1 else kwargs.pop("attention_mask", None)
        return (args[0], mask if given is None else given + mask), kwargs

    hooks = [
        layer.register_forward_pre_hook(narrowed, with_kwargs=True)
        for layer in model.modules()
        if type(layer).__name__ == f"{name}Attention"
    ]
    with torch.no_grad():
        expected = result(model, given)
        for hook in hooks:
            hook.remove()
        hf.rewire(model, graph)
        torch.testing.assert_close(result(model, given), expected, atol=2e-4, rtol=1e-4)
