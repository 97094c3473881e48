"""Prefill and decoding of a GPT-2 of four blocks: ours beside transformers with the same weights.

The features after the last block are compared and timed, so that the output map, which is the same
on both sides and as large as the blocks, hides nothing. A step is one token after a context.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timing import Row, against, compare, in_turn
from torch import Tensor, nn

import graphattn as ga
from graphattn.models import GPT
from graphattn.nn import KVCache

DIM, HEADS, DEPTH, VOCAB, LONGEST, RADIUS = 768, 12, 4, 1024, 8192, 256
CAUSAL, WINDOWED = (512, 1024, 2048, 4096), (1024, 2048, 4096, 8192)
ALIKE = "transformers, SDPA"
SAME_MASK = "transformers, SDPA with the mask"


def models(device: torch.device) -> tuple[GPT, Any]:
    """Ours and that of transformers, with the same random weights."""
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    config: Any = GPT2Config(
        vocab_size=VOCAB,
        n_positions=LONGEST + 1,
        n_embd=DIM,
        n_layer=DEPTH,
        n_head=HEADS,
        activation_function="gelu",
        bos_token_id=None,
        eos_token_id=None,
    )
    theirs: Any = GPT2Model(config).eval()
    theirs.set_attn_implementation("sdpa")
    ours = GPT.from_hf(theirs.to(device))
    ours.head = nn.Identity()  # its scores are then the features, as theirs
    return ours, theirs


def caches_over(graph: ga.Graph) -> list[KVCache]:
    return [KVCache(graph) for _ in range(DEPTH)]


def again(ours: GPT, caches: list[KVCache], length: int) -> Callable[[Tensor], Tensor]:
    """The step after so many tokens, which may be taken again: it writes what it wrote before."""

    def call(token: Tensor) -> Tensor:
        for cache in caches:
            cache.lengths = (length,)
        return ours.scores(ours.step(token, caches))

    return call


def theirs_again(theirs: Any, cache: Any, mask: Tensor | None) -> Callable[[Tensor], Tensor]:
    def call(token: Tensor) -> Tensor:
        out = theirs(token, past_key_values=cache, attention_mask=mask).last_hidden_state
        cache.crop(-1)
        return out

    return call


@torch.no_grad()
def at_length(
    ours: GPT, theirs: Any, graph: ga.Graph, length: int, mask: Tensor | None, rounds: int
) -> list[Row]:
    """Prefill of so many tokens, and the step after them."""
    from transformers import DynamicCache

    device, few = ours.embedding.weight.device, max(3, rounds // 8)
    tokens = torch.randint(VOCAB, (1, length + 1), device=device)
    before, token, caches, cache = (
        tokens[:, :-1],
        tokens[:, -1:],
        caches_over(graph),
        DynamicCache(),
    )
    peer, rule = (ALIKE, "causal") if mask is None else (SAME_MASK, f"window of {RADIUS}, causal")
    prefill_mask = None if mask is None else mask[..., :-1, :-1]
    step_mask = None if mask is None else mask[..., -1:, :]

    def read(before: Tensor) -> Tensor:
        return ours.scores(ours.step(before, caches_over(graph)))

    def they_read(before: Tensor) -> Tensor:
        return theirs(before, attention_mask=prefill_mask, use_cache=True).last_hidden_state

    options: dict[str, Any] = {"directions": ("forward",), "bound": {}}
    ours.step(before, caches)
    theirs(before, attention_mask=prefill_mask, past_key_values=cache)
    case, peers = f"{rule}, {length:,} tokens", {peer: they_read}
    rows = compare(f"prefill, {case}", [before], read, peers, rounds=few, **options)
    step, they_step = again(ours, caches, length), theirs_again(theirs, cache, step_mask)
    rows += compare(f"step, {case}", [token], step, {peer: they_step}, rounds=4 * rounds, **options)
    peers = {"reading all again": lambda token: ours(tokens, graph)[:, -1:]}
    return rows + compare(f"step, {case}", [token], step, peers, rounds=few, **options)


@torch.no_grad()
def growth(ours: GPT, rounds: int) -> list[Row]:
    """The step after many tokens against the step after few of them, over one window."""
    device = ours.embedding.weight.device
    steps: dict[str, Callable[[], object]] = {}
    graph = ga.sliding_window(LONGEST + 1, RADIUS) & ga.causal(LONGEST + 1)
    tokens = torch.randint(VOCAB, (1, LONGEST + 1), device=device)
    for length in WINDOWED:
        caches = caches_over(graph)
        ours.step(tokens[:, :length], caches)
        steps[f"{length:,}"] = partial(again(ours, caches, length), tokens[:, -1:])
    times = in_turn("growth", steps, device, 4 * rounds)
    few, *more = steps
    peer, rows = f"the step after {few}", []
    for length in more:
        case = f"step, window of {RADIUS}, causal, {length} tokens"
        rows += against(case, "forward", {"ours": times[length], peer: times[few]}, {peer: 1.05})
    return rows


def suite(device: torch.device, rounds: int) -> list[Row]:
    """Over causal graphs, over windows, and how the step over a window grows."""
    ours, theirs = models(device)
    rows = []
    for length in CAUSAL:
        rows += at_length(ours, theirs, ga.causal(length + 1), length, None, rounds)
    for length in WINDOWED:
        nodes = length + 1
        graph = ga.sliding_window(nodes, RADIUS) & ga.causal(nodes)
        mask = graph.mask()[None, None].to(device)
        rows += at_length(ours, theirs, graph, length, mask, rounds)
    return rows + growth(ours, rounds)
