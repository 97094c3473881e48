"""Our models with a copy of the weights of those of transformers.

Each function reads a config and a state dict, builds a model that computes the same, and renames
the weights. What a config asks for and our blocks don't have is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from graphattn.models.layers import first_node
from graphattn.nn import GatedPerceptron, Rotary, perceptron

Weights = dict[str, Tensor]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_new": partial(nn.GELU, approximate="tanh"),
    "gelu_pytorch_tanh": partial(nn.GELU, approximate="tanh"),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


def gpt(kind: Any, model: Any) -> Any:
    """See `GPT.from_hf`."""
    base, config = _parts(model, ("gpt2", "llama"), "GPT.from_hf takes a GPT-2 or a Llama")
    _check_head(model, "lm_head.")
    if model is base and not config.tie_word_embeddings:
        raise ValueError(
            f"{type(model).__name__} has no output map, and its embedding is none "
            "(tie_word_embeddings=False); give the model with its head"
        )
    make = _gpt2 if config.model_type == "gpt2" else _llama
    ours, weights = make(kind, base, config, _head(model))
    if ours.head is not None:
        weights["head.weight"] = model.lm_head.weight
    return _filled(ours, weights, model)


def _gpt2(kind: Any, base: Any, config: Any, head: nn.Module | None) -> tuple[Any, Weights]:
    if config.add_cross_attention:
        raise ValueError("the model attends to an encoder (add_cross_attention), and GPT does not")
    dim, hidden = config.n_embd, config.n_inner or 4 * config.n_embd
    activation = _activation(config.activation_function)
    ours = kind(
        config.vocab_size,
        dim=dim,
        depth=config.n_layer,
        heads=config.n_head,
        max_len=config.n_positions,
        head=head,
        norm=partial(nn.LayerNorm, eps=config.layer_norm_epsilon),
        positions=None,
        qk_norm=False,
        mlp=lambda width, _: perceptron(width, hidden, activation),
    )
    _drop(ours, config.embd_pdrop, config.attn_pdrop, config.resid_pdrop)
    given, weights = base.state_dict(), {}
    _copy(given, weights, {"wte": "embedding", "ln_f": "norm"})
    weights["positions.table"] = given["wpe.weight"]
    for i in range(config.n_layer):
        theirs, own = f"h.{i}.", f"blocks.{i}."
        _copy(given, weights, {f"{theirs}ln_{j}": f"{own}{n}_norm" for j, n in BY_NORM})
        for name, to in (("attn.c_proj", "attention.out"), ("mlp.c_fc", "mlp.0")):
            _copy_transposed(given, weights, theirs + name, [own + to])
        _copy_transposed(given, weights, f"{theirs}mlp.c_proj", [f"{own}mlp.2"])
        parts = [f"{own}attention.{part}" for part in ("query", "key", "value")]
        _copy_transposed(given, weights, f"{theirs}attn.c_attn", parts)
        for of in ("weight", "bias"):  # our scores are divided by the root of head_dim alone
            weights[f"{parts[0]}.{of}"] = weights[f"{parts[0]}.{of}"] * _gpt2_scale(config, i)
    return ours, weights


BY_NORM = ((1, "attention"), (2, "mlp"))


def _gpt2_scale(config: Any, layer: int) -> float:
    """What GPT-2 multiplies scores by, besides 1 / sqrt(head_dim)."""
    scale = 1.0 if config.scale_attn_weights else (config.n_embd // config.n_head) ** 0.5
    return scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale


def _llama(kind: Any, base: Any, config: Any, head: nn.Module | None) -> tuple[Any, Weights]:
    dim, heads, hidden = config.hidden_size, config.num_attention_heads, config.intermediate_size
    head_dim = getattr(config, "head_dim", None) or dim // heads
    if head_dim * heads != dim:
        raise ValueError(f"heads must fill the width of {dim}, and {heads} have {head_dim} each")
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"positions must be turned by plain angles, not by {rope['rope_type']}")
    activation = _activation(config.hidden_act)
    ours = kind(
        config.vocab_size,
        dim=dim,
        depth=config.num_hidden_layers,
        heads=heads,
        kv_heads=config.num_key_value_heads,
        head=head,
        norm=partial(nn.RMSNorm, eps=config.rms_norm_eps),
        positions=Rotary(head_dim, base=rope["rope_theta"]),
        qk_norm=False,
        mlp=lambda width, _: GatedPerceptron(width, hidden, activation),
    )
    _drop(ours, 0.0, config.attention_dropout, 0.0)
    given, weights = base.state_dict(), {}
    names = {"embed_tokens": "embedding", "norm": "norm"}
    for i in range(config.num_hidden_layers):
        theirs, own = f"layers.{i}.", f"blocks.{i}."
        names |= {f"{theirs}input_layernorm": f"{own}attention_norm"}
        names |= {f"{theirs}post_attention_layernorm": f"{own}mlp_norm"}
        for to, name in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
            names[f"{theirs}self_attn.{name}_proj"] = f"{own}attention.{to}"
        for to, name in (("gate", "gate"), ("inner", "up"), ("out", "down")):
            names[f"{theirs}mlp.{name}_proj"] = f"{own}mlp.{to}"
    _copy(given, weights, names)
    return ours, _with_zero_biases(ours, weights)


def bert(kind: Any, model: Any) -> Any:
    """See `BERT.from_hf`."""
    base, config = _parts(model, ("bert",), "BERT.from_hf takes a BERT")
    if config.is_decoder or config.add_cross_attention:
        raise ValueError("the model is a decoder (is_decoder); give an encoder")
    if (kinds := getattr(config, "position_embedding_type", "absolute")) != "absolute":
        raise ValueError(f"positions must be absolute, not {kinds}")
    hidden, activation = config.intermediate_size, _activation(config.hidden_act)
    ours = kind(
        config.vocab_size,
        max_len=config.max_position_embeddings,
        num_segments=config.type_vocab_size,
        dim=config.hidden_size,
        depth=config.num_hidden_layers,
        heads=config.num_attention_heads,
        activation=activation,
        norm=partial(nn.LayerNorm, eps=config.layer_norm_eps),
        mlp=lambda width, _: perceptron(width, hidden, activation),
    )
    of_weights, of_features = config.attention_probs_dropout_prob, config.hidden_dropout_prob
    _drop(ours, of_features, of_weights, of_features)
    given, weights = base.state_dict(), {}
    names = {
        "embeddings.word_embeddings": "embedding",
        "embeddings.position_embeddings": "positions",
        "embeddings.token_type_embeddings": "segments",
        "embeddings.LayerNorm": "embedding_norm",
    }
    for i in range(config.num_hidden_layers):
        names |= {f"encoder.layer.{i}.{k}": f"blocks.{i}.{v}" for k, v in BERT_BLOCK.items()}
    _copy(given, weights, names)
    weights |= _bert_head(model, ours)
    return _filled(ours, weights, model)


BERT_BLOCK = {
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "mlp.0",
    "output.dense": "mlp.2",
    "output.LayerNorm": "mlp_norm",
}


def _bert_head(model: Any, ours: Any) -> Weights:
    """The head for masked tokens, or that which ours was made with."""
    own = {k: v for k, v in ours.state_dict().items() if k == "bias" or k.startswith("head.")}
    head = getattr(getattr(model, "cls", None), "predictions", None)
    if head is None:
        return own
    if not torch.equal(head.decoder.weight, model.get_input_embeddings().weight):
        raise ValueError("the output map must be the token embedding (tie_word_embeddings)")
    weights: Weights = {"bias": head.bias}
    names = {"transform.dense": "head.0", "transform.LayerNorm": "head.2"}
    _copy(head.state_dict(), weights, names)
    return weights


def vit(kind: Any, model: Any) -> Any:
    """See `ViT.from_hf`."""
    base, config = _parts(model, ("vit",), "ViT.from_hf takes a ViT")
    _check_head(model, "classifier.")
    hidden, activation = config.intermediate_size, _activation(config.hidden_act)
    ours = kind(
        _pair(config.image_size),
        _pair(config.patch_size),
        1,
        channels=config.num_channels,
        dim=config.hidden_size,
        depth=config.num_hidden_layers,
        heads=config.num_attention_heads,
        tokens=1,
        pool=first_node,
        norm=partial(nn.LayerNorm, eps=config.layer_norm_eps),
        mlp=lambda width, _: perceptron(width, hidden, activation),
    )
    of_weights, of_features = config.attention_probs_dropout_prob, config.hidden_dropout_prob
    _drop(ours, of_features, of_weights, of_features)
    given, weights = base.state_dict(), {}
    weights["tokens"] = given["embeddings.cls_token"][0]
    weights["positions.table"] = given["embeddings.position_embeddings"][0]
    names = {"embeddings.patch_embeddings.projection": "embedding.project", "layernorm": "norm"}
    for i in range(config.num_hidden_layers):
        names |= {f"layers.{i}.{k}": f"blocks.{i}.{v}" for k, v in VIT_BLOCK.items()}
    _copy(given, weights, names)
    classifier = getattr(model, "classifier", None)
    if isinstance(classifier, nn.Linear):
        ours.head = nn.Linear(config.hidden_size, classifier.out_features)
        weights |= {f"head.{of}": x for of, x in classifier.state_dict().items()}
    else:
        ours.head = nn.Identity()
    return _filled(ours, _with_zero_biases(ours, weights), model)


VIT_BLOCK = {
    "attention.q_proj": "attention.query",
    "attention.k_proj": "attention.key",
    "attention.v_proj": "attention.value",
    "attention.o_proj": "attention.out",
    "layernorm_before": "attention_norm",
    "layernorm_after": "mlp_norm",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}


# --- what they share ------------------------------------------------------------------------------


def _parts(model: Any, kinds: tuple[str, ...], what: str) -> tuple[Any, Any]:
    """The model without its head, and its config."""
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in kinds:
        raise TypeError(
            f"{what} of transformers, got {kind!r}; graphattn.hf.rewire(model, graph) lets any of "
            "its models attend over a graph"
        )
    return model.base_model, model.config


def _check_head(model: Any, head: str) -> None:
    """Raise if there are weights outside of the base model and of this head."""
    known = (f"{model.base_model_prefix}.", head)
    if model.base_model is model:
        return
    if left := [name for name in model.state_dict() if not name.startswith(known)]:
        raise ValueError(
            f"{type(model).__name__} has a head that ours has not ({left[0]}); give its "
            f"model.{model.base_model_prefix}, and put that head on its features"
        )


def _head(model: Any) -> nn.Module | None:
    """A new output map for a model that has one of its own."""
    head = getattr(model, "lm_head", None)
    if head is None or torch.equal(head.weight, model.get_input_embeddings().weight):
        return None
    return nn.Linear(*head.weight.shape[::-1], bias=False)


def _activation(name: str) -> Callable[[], nn.Module]:
    if name not in ACTIVATIONS:
        raise ValueError(f"the activation must be one of {sorted(ACTIVATIONS)}, not {name!r}")
    return ACTIVATIONS[name]


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _drop(ours: Any, of_embedding: float, of_weights: float, of_parts: float) -> None:
    """Drop as often as the model."""
    ours.dropout.p = of_embedding
    for block in ours.blocks:
        block.attention.dropout, block.dropout.p = of_weights, of_parts


def _copy(given: Weights, weights: Weights, names: dict[str, str]) -> None:
    """What stands under `theirs.weight` and `theirs.bias` goes to `ours.weight` and `ours.bias`."""
    for theirs, own in names.items():
        if f"{theirs}.weight" not in given:
            raise ValueError(
                f"the model has no {theirs}.weight; its names are not those of transformers 5.23"
            )
        for of in ("weight", "bias"):
            if f"{theirs}.{of}" in given:
                weights[f"{own}.{of}"] = given[f"{theirs}.{of}"]


def _copy_transposed(given: Weights, weights: Weights, theirs: str, own: list[str]) -> None:
    """The same for GPT-2's maps, (width_in, width_out), of which several may be one."""
    parts = given[f"{theirs}.weight"].T.chunk(len(own)), given[f"{theirs}.bias"].chunk(len(own))
    for name, weight, bias in zip(own, *parts):
        weights[f"{name}.weight"], weights[f"{name}.bias"] = weight, bias


def _with_zero_biases(ours: nn.Module, weights: Weights) -> Weights:
    """Maps without a bias get one of zeros."""
    none = {k: torch.zeros_like(x) for k, x in ours.state_dict().items() if k.endswith(".bias")}
    return none | weights


def _filled(ours: Any, weights: Weights, model: Any) -> Any:
    """Our model with these weights, in the mode and dtype and on the device of theirs."""
    parameter = next(model.parameters())
    ours.to(parameter.device, parameter.dtype)
    ours.load_state_dict(weights)
    return ours.train(model.training)
