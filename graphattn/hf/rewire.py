"""A model of transformers' is switched to graphattn, and back, where it is."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from graphattn.hf.attend import attend
from graphattn.hf.tokens import tokens_mask
from graphattn.hf.wiring import KEY, Layer, Wires, Wiring, check_wires

NAME = "graphattn"
BEFORE = "_graphattn_before"
CROSS = re.compile(r"cross|encoder_attn|encdec", re.IGNORECASE)

# Graphs are worked out of numbers, which compiled code would take for constants.
AttentionInterface.register(NAME, torch.compiler.disable(attend))
AttentionMaskInterface.register(NAME, torch.compiler.disable(tokens_mask))


@dataclass(frozen=True)
class Report:
    """What `rewire` did.

    switched: By name of the layer, whose graph it has: "given", or "the model's own".
    left: Reason by name of the attention that is as it was.
    """

    switched: dict[str, str]
    left: dict[str, str]

    def __str__(self) -> str:
        names = [*self.switched, *self.left]
        words = [f"switched: {whose}" for whose in self.switched.values()]
        words += [f"left: {reason}" for reason in self.left.values()]
        width = max(map(len, names), default=0)
        return "\n".join(f"{name:{width}}  {word}" for name, word in zip(names, words))


def rewire(model: nn.Module, graph: Wires | None = None) -> Report:
    """Let the attention of a transformers model run over a graph, in place.

    Args:
        model: A model of transformers 5, or a part of one, such as `model.get_decoder()`.
        graph: Who attends to whom, for self-attention. A graph on n nodes, the tokens of a
            sequence in their order, serves every input of up to n tokens, and every step of
            generation. A list has a graph for each layer. A function `(q_len, kv_len, offset,
            layer) -> Graph` is asked for each length; its graph has q_len destinations, which are
            the tokens from offset on, and kv_len sources, which are all. None, also in a list or
            from a function, is the model's own: causal, everything, within a window or a chunk,
            and then nothing changes but how it is computed. Padding is cut off in any case, and
            node 0 is the first token behind it.

    Returns:
        What was switched, and what was left, with the reason.

    Raises:
        TypeError: If model or graph is of another kind.
        ValueError: If the model has no attention that can be switched, or a graph is given for
            several stacks, or of the wrong size.

    Example:
        >>> import torch, transformers
        >>> import graphattn as ga
        >>> sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64}
        >>> config = transformers.LlamaConfig(**sizes, num_hidden_layers=1)
        >>> model = transformers.LlamaForCausalLM(config)
        >>> print(rewire(model, ga.causal(512) & ga.sliding_window(512, 63)))
        model.layers.0.self_attn  switched: given
        >>> model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2, do_sample=False).shape
        torch.Size([1, 5])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch module, got {type(model).__name__}")
    layers = {name: layer for name, layer in model.named_modules() if _can_switch(layer)}
    if not layers:
        kinds = sorted({type(layer).__name__ for _, layer in _others(model, set())})
        raise ValueError(
            f"{type(model).__name__} has no attention that goes through transformers' "
            f"AttentionInterface{': ' + ', '.join(kinds) + ' computes its own' if kinds else ''}"
        )
    own = [name for name, layer in layers.items() if not _is_cross(name, layer)]
    if graph is not None:
        _check_stacks(model, own)
        graph = check_wires(graph, len(own))
    restore(model)
    _switch(model, layers.values())
    wiring = None if graph is None else Wiring(graph)
    report = Report({}, {})
    for name, layer in layers.items():
        report.switched[name] = "the model's own"
        if wiring is not None and name in own:
            report.switched[name] = "given"
            layer.__dict__[KEY] = Layer(wiring, own.index(name))
    for name, layer in _others(model, set(layers)):
        report.left[name] = f"{type(layer).__name__} does not go through AttentionInterface"
    return report


def restore(model: nn.Module) -> None:
    """Make a rewired model what it was before, in place.

    Example:
        >>> import transformers
        >>> sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
        >>> model = transformers.BertModel(transformers.BertConfig(**sizes))
        >>> report = rewire(model)
        >>> restore(model)
        >>> model.config._attn_implementation
        'sdpa'
    """
    for module in model.modules():
        module.__dict__.pop(KEY, None)
        for config, name in module.__dict__.pop(BEFORE, ()):
            config._attn_implementation_internal = name


def _switch(model: nn.Module, layers: Any) -> None:
    """Give the model configs of its own, in which attention is graphattn's.

    Models that were made of one config share it, and only this one is to be switched.
    """
    used = {id(config): config for _, config in _configs(model)}
    copies: dict[int, Any] = {}
    for config in used.values():
        copy.deepcopy(config, copies)
    for module, name in [(module, name) for (module, name), _ in _configs(model)]:
        module.__dict__[name] = copies[id(module.__dict__[name])]
    switched = {id(config): config for layer in layers if (config := _config(layer)) is not None}
    for module in model.modules():  # masks are made by the models around the layers
        if isinstance(module, PreTrainedModel) and any(_can_switch(m) for m in module.modules()):
            switched[id(module.config)] = module.config
    before = [(config, config._attn_implementation) for config in switched.values()]
    model.__dict__[BEFORE] = before
    for config, _ in before:
        config._attn_implementation_internal = NAME


def _configs(model: nn.Module) -> Iterator[tuple[tuple[nn.Module, str], Any]]:
    for module in model.modules():
        for name, value in module.__dict__.items():
            if isinstance(value, PreTrainedConfig):
                yield (module, name), value


def _config(layer: nn.Module) -> Any:
    return layer.__dict__.get("config")


def _can_switch(layer: nn.Module) -> bool:
    """Whether the forward of a layer asks transformers for the attention function."""
    code = getattr(inspect.unwrap(type(layer).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def _is_cross(name: str, layer: nn.Module) -> bool:
    """Whether a layer attends to another sequence than its own."""
    named = CROSS.search(name) or CROSS.search(type(layer).__name__)
    return bool(named or getattr(layer, "is_cross_attention", False))


def _others(model: nn.Module, switched: set[str]) -> Iterator[tuple[str, nn.Module]]:
    """Attention that is not switched: the innermost modules of that name with no such inside."""
    for name, module in model.named_modules():
        inside = [f"{name}.{child}" if name else child for child, _ in module.named_modules()]
        named = [m for m in module.modules() if "Attention" in type(m).__name__]
        if "Attention" not in type(module).__name__ or len(named) != 1 or name in switched:
            continue
        if not switched.intersection(inside):
            yield name, module


def _check_stacks(model: nn.Module, own: list[str]) -> None:
    """Raise unless all layers of self-attention belong to one stack."""
    stacks = [name for name, module in model.named_modules() if isinstance(module, PreTrainedModel)]
    of_layers = {
        max((s for s in stacks if not s or layer.startswith(s + ".")), key=len, default="")
        for layer in own
    }
    if len(of_layers) > 1:
        names = ", ".join(sorted(of_layers))
        raise ValueError(
            f"{type(model).__name__} has several stacks of layers ({names}), whose tokens are not "
            "the same: rewire each with its graph, as in rewire(model.get_decoder(), graph)"
        )
