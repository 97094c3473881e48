"""A rewired GPT-2 beside transformers' own SDPA: whole prompts, and single tokens after them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from timing import Row, compare
from torch import Tensor, nn
from transformers import DynamicCache, GPT2Config, GPT2Model, StaticCache

import graphattn as ga
from graphattn import hf

LAYERS, WIDTH, HEADS = 4, 768, 12
CONTEXT, WINDOW = 8192, 256
STEPS = 4  # of decoding, in one measurement


def suite(device: torch.device, rounds: int) -> list[Row]:
    """The model's own causal graph, and a sliding window against SDPA under the same mask."""
    torch.manual_seed(0)
    theirs: Any = GPT2Model(
        GPT2Config(n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=CONTEXT + 512)
    )
    theirs = theirs.eval().to(device)
    own, window = copy.deepcopy(theirs), copy.deepcopy(theirs)
    graph = ga.causal(CONTEXT + 512) & ga.sliding_window(CONTEXT + 512, WINDOW - 1)
    hf.rewire(own)
    hf.rewire(window, graph)
    few = {"rounds": max(3, rounds // 5), "directions": ("forward",)}
    name, rows = f"GPT-2, {LAYERS} x {WIDTH}", []
    x = torch.randn(1, CONTEXT, WIDTH, device=device)
    for length in (512, 2048):
        case = f"{name}, prompt of {length:,}"
        calls: Any = (prefill(own), {"SDPA": prefill(theirs)})
        rows += compare(case, [x[:, :length]], *calls, bound={"SDPA": 1.0}, **few)
    for length in (512, 2048):
        case = f"{name}, {STEPS} tokens after {length:,}"
        calls = (decode(own, x[:, :length]), {"SDPA": decode(theirs, x[:, :length])})
        rows += compare(case, [x[:, :STEPS]], *calls, bound={"SDPA": 1.0}, **few)
    mask = graph.rows(0, CONTEXT).mask()[None, None, :, :CONTEXT].to(device)
    case = f"{name}, prompt of {CONTEXT:,}, window {WINDOW}"
    calls = (prefill(window), {"SDPA, same mask": prefill(theirs, mask)})
    rows += compare(case, [x], *calls, bound={"SDPA, same mask": 1 / 3}, **few)
    for static in (True, False):
        kind = "static" if static else "growing"
        case = f"{name}, {STEPS} tokens after {CONTEXT:,}, window {WINDOW}, {kind} cache"
        ours = decode(window, x, static=static)
        peer = decode(theirs, x, graph=graph, static=static)
        bound = {"SDPA, same mask": 1 / 2} if static else {}
        rows += compare(case, [x[:, :STEPS]], ours, {"SDPA, same mask": peer}, bound=bound, **few)
    return rows


def prefill(model: nn.Module, mask: Tensor | None = None) -> Callable[..., Tensor]:
    """A call of embeddings (1, tokens, width), without a cache."""

    def call(x: Tensor) -> Tensor:
        return model(inputs_embeds=x, attention_mask=mask, use_cache=False).last_hidden_state

    return call


def decode(
    model: Any, prompt: Tensor, graph: ga.Graph | None = None, *, static: bool = False
) -> Callable[..., Tensor]:
    """A call of embeddings, one after the other behind a prompt that is cached already.

    graph: Whose rows are given as masks (1, 1, 1, keys), made before.
    """
    length = prompt.shape[1]
    size = length + STEPS
    masks: list[Tensor | None] = [None] * STEPS
    if graph is not None:
        rows = graph.rows(length, size).mask()[None, None].to(prompt.device)
        ends = [size if static else length + step + 1 for step in range(STEPS)]
        masks = [rows[:, :, step : step + 1, :end].clone() for step, end in enumerate(ends)]
    filled = _filled(model, prompt, size if static else None)
    tensors = [(layer.keys, layer.values) for layer in filled.layers]

    def call(x: Tensor) -> Tensor:
        for layer, (keys, values) in zip(filled.layers, tensors):
            layer.keys, layer.values = keys, values  # a growing cache has others by now
            if static:
                layer.cumulative_length.fill_(length)
        outs = [
            model(
                inputs_embeds=x[:, step : step + 1],
                attention_mask=mask,
                past_key_values=filled,
                position_ids=torch.tensor([[length + step]], device=x.device),
            ).last_hidden_state
            for step, mask in enumerate(masks)
        ]
        return torch.cat(outs, 1)

    return call


@torch.no_grad()
def _filled(model: Any, prompt: Tensor, size: int | None) -> Any:
    """A cache with random keys and values: computing them for 8,192 tokens under SDPA is slow."""
    cache: Any = DynamicCache() if size is None else StaticCache(model.config, max_cache_len=size)
    shape = (1, HEADS, prompt.shape[1], WIDTH // HEADS)
    made = torch.Generator().manual_seed(1)
    for layer in range(LAYERS):
        keys, values = (torch.randn(shape, generator=made).to(prompt.device) for _ in range(2))
        cache.update(keys, values, layer)
    return cache
