"""What can't be honored is refused, and the error says what to do."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import graphattn as ga
from graphattn import hf
from graphattn.hf.attend import attend
from tests.hf.tiny import MODELS, SIZES, TOKENS, inputs

LONG = ga.causal(40)
SWINV2 = transformers.Swinv2Config(depths=[1], num_heads=[2], embed_dim=16)
IDS = torch.ones(1, TOKENS, dtype=torch.int64)


def rewired(name: str, graph: Any = None) -> Any:
    model = MODELS[name].make()
    hf.rewire(model, graph)
    return model


def generate(name: str, graph: Any, ids: torch.Tensor = IDS, **options: Any) -> None:
    rewired(name, graph).generate(ids, max_new_tokens=3, do_sample=False, **options)


def continued() -> None:
    """A window that is wider than the one that the model's cache keeps."""
    generate("Mistral", LONG)


def rewire_doge() -> Any:
    model = transformers.DogeForCausalLM(transformers.DogeConfig(**SIZES)).eval()
    hf.rewire(model)
    return model


def call(mask: Any = None, **others: Any) -> None:
    x = torch.randn(1, 2, 3, 4)
    attend(nn.Identity(), x, x, x, mask, **others)


def crossing() -> ga.Graph:
    """Causal, but for an edge from token 30 to token 2."""
    return LONG | ga.from_edges(torch.tensor([[30], [2]]), 40)


CASES: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "no model": (
        lambda: hf.rewire("gpt2"),  # pyright: ignore[reportArgumentType]
        TypeError,
        "model must be a torch module, got str",
    ),
    "no attention": (lambda: hf.rewire(nn.Linear(2, 2)), ValueError, "Linear has no attention"),
    "Swinv2": (
        lambda: hf.rewire(transformers.Swinv2Model(SWINV2)),
        ValueError,
        "Swinv2Model has no attention .*: Swinv2SelfAttention computes its own",
    ),
    "no graph": (lambda: rewired("GPT-2", 3), TypeError, "graph must be a graphattn graph"),
    "a mask": (lambda: rewired("GPT-2", LONG.mask()), TypeError, "got a mask; from_mask makes"),
    "a function of nodes": (
        lambda: rewired("GPT-2", ga.causal),
        TypeError,
        r"function \(q_len, kv_len, offset, layer\) -> Graph, got causal\(",
    ),
    "a mask that the layer reads": (
        lambda: rewire_doge()(input_ids=IDS),
        AttributeError,
        r"the model reads dtype of a mask.*hf\.restore",
    ),
    "not square": (lambda: rewired("GPT-2", ga.bipartite(2, 3)), ValueError, "3 sources and 2"),
    "a short list": (lambda: rewired("GPT-2", [LONG]), ValueError, "2 layers .* list of 1"),
    "too few nodes": (
        lambda: rewired("GPT-2", ga.causal(8))(input_ids=IDS),
        ValueError,
        r"causal\(8\) has 8 nodes, and there are 12 tokens",
    ),
    "too few nodes for what is generated": (
        lambda: generate("GPT-2", ga.causal(13)),
        ValueError,
        r"causal\(13\) has 13 nodes, and there are 14 tokens",
    ),
    "not causal": (
        lambda: generate("GPT-2", ga.complete(40)),
        ValueError,
        r"complete\(40\) is not causal: the edge 39 -> 0 is from a token that was not there",
    ),
    "one edge ahead": (lambda: generate("Llama", crossing()), ValueError, "the edge 30 -> 2 is"),
    "dropped": (continued, ValueError, r"dropped token \d+.*DynamicCache\(\)"),
    "dropped, of a function": (
        lambda: generate("Mistral", lambda q, kv, at, layer: ga.causal(kv).rows(at, kv)),
        ValueError,
        rf"dropped token 0, to which token {TOKENS} attends",
    ),
    "no prompt": (
        lambda: generate("Llama", None, IDS[:, :0]),
        ValueError,
        "no token to attend from: give a prompt",
    ),
    "no tokens": (lambda: rewired("Llama")(input_ids=IDS[:, :0]), ValueError, "no token"),
    "a function's size": (
        lambda: rewired("GPT-2", lambda q, kv, offset, layer: LONG)(input_ids=IDS),
        ValueError,
        r"graph\(q_len=12, kv_len=12, offset=0, layer=0\) must have 12 sources and 12",
    ),
    "a function's type": (
        lambda: rewired("GPT-2", lambda q, kv, offset, layer: 3)(input_ids=IDS),
        TypeError,
        "must return a graph or None, got int",
    ),
    "packed for a function": (
        lambda: rewired("Llama", lambda q, kv, offset, layer: ga.causal(q))(
            input_ids=IDS, position_ids=torch.arange(TOKENS)[None] % 5, use_cache=False
        ),
        ValueError,
        "packed sequences",
    ),
    "paged": (lambda: call(cache=SimpleNamespace()), ValueError, "a cache that pages"),
    "block mask": (lambda: call(SimpleNamespace()), TypeError, "masks .* got one"),
    "flat mask": (lambda: call(torch.ones(1, 3)), TypeError, r"of shape \(1, 3\)"),
    "unknown": (lambda: call(indices=torch.ones(3)), ValueError, "the layer gives indices"),
    "packed by lengths": (
        lambda: call(cu_seq_lens_q=torch.tensor([0, 2, 3])),
        ValueError,
        "cu_seq_lens_q says that sequences are packed",
    ),
    "several stacks": (lambda: rewired("T5", LONG), ValueError, r"stacks of layers \(decoder, enc"),
    "weights in the config": (
        lambda: setattr(rewired("GPT-2").config, "output_attentions", True),
        ValueError,
        "output_attentions",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refused(case: str) -> None:
    run, error, message = CASES[case]
    with pytest.raises(error, match=message):
        run()


def test_dense_mask_of_a_cached_call_has_no_place() -> None:
    model, cache = rewired("GPT-2", LONG), transformers.DynamicCache()
    with torch.no_grad():
        model(input_ids=IDS, past_key_values=cache)
        mask = torch.ones(1, 1, 1, TOKENS + 1, dtype=torch.bool)
        with pytest.raises(ValueError, match="1 queries can't be placed among 13 keys"):
            model(input_ids=IDS[:, :1], past_key_values=cache, attention_mask=mask)


def test_prefix_may_hear_itself() -> None:
    """What is bidirectional within the prompt has all that it asks for."""
    generate("GPT-2", ga.prefix(40, TOKENS))
    with pytest.raises(ValueError, match=f"the edge {TOKENS} -> 0"):
        generate("GPT-2", ga.prefix(40, TOKENS + 1))


def test_another_model_is_as_it_was() -> None:
    given = inputs(MODELS["GPT-2"])
    model = MODELS["GPT-2"].make()
    with torch.no_grad():
        before = model(**given).logits
        generate("GPT-2", ga.causal(40) & ga.sliding_window(40, 1))
        assert torch.equal(model(**given).logits, before)
