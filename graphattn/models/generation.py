"""Writing with a decoder-only model: what the graph still needs is kept, and read once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from graphattn.graphs import Graph
from graphattn.graphs.checks import integer, items
from graphattn.graphs.graph import require_graph
from graphattn.models.layers import graph_of_each
from graphattn.models.sampling import Choice, Dice, draw
from graphattn.nn.cache import KVCache, Memory

Graphs: TypeAlias = Graph | Sequence[Graph] | Callable[[int], Graph | Sequence[Graph]]
"""A graph, one for each block, or a function that makes them of the number of nodes."""


class Decoder(Protocol):
    """A model that goes on from what its caches keep, as `GPT`."""

    blocks: nn.ModuleList
    embedding: nn.Embedding

    def step(self, tokens: Tensor, caches: Sequence[Memory]) -> Tensor:
        """Features of tokens (*batch, new) that come next: (*batch, new, dim)."""
        ...

    def scores(self, x: Tensor) -> Tensor:
        """Scores of the token after each: (…, dim) to (…, vocab)."""
        ...


def generate(
    model: Decoder,
    prompts: Sequence[Tensor] | Tensor,
    graph: Graphs,
    *,
    max_new_tokens: int,
    choice: Choice,
    seed: int | None,
    stop: Iterable[int],
) -> list[Tensor]:
    """What follows each prompt; see `GPT.generate`."""
    prompts = check_prompts(model, prompts)
    stops = check_stop(model, stop)
    caches = make_caches(model, graph, max(map(len, prompts)), max_new_tokens)
    texts: list[list[int]] = [[] for _ in prompts]
    with evaluating(model):
        for going_on, tokens in _written(model, prompts, caches, choice, seed, stops):
            for text, token in zip(going_on, tokens):
                texts[text].append(token)
            if len(texts[going_on[0]]) == max_new_tokens:
                break
    device = model.embedding.weight.device
    return [torch.tensor(text, dtype=torch.int64, device=device) for text in texts]


def stream(
    model: Decoder,
    prompt: Tensor,
    graph: Graphs,
    *,
    max_new_tokens: int,
    choice: Choice,
    seed: int | None,
    stop: Iterable[int],
) -> Iterator[int]:
    """The tokens that follow one prompt, as they are drawn; see `GPT.stream`."""
    (prompt,) = check_prompts(model, [prompt])
    stops = check_stop(model, stop)
    caches = make_caches(model, graph, len(prompt), max_new_tokens)
    written = _written(model, [prompt], caches, choice, seed, stops)

    def tokens() -> Iterator[int]:
        for _ in range(max_new_tokens):
            with evaluating(model):  # and what the caller does between two tokens is not in it
                following = next(written, None)
            if following is None:
                return
            yield following[1][0]

    return tokens()


def _written(
    model: Decoder,
    prompts: list[Tensor],
    caches: list[KVCache],
    choice: Choice,
    seed: int | None,
    stop: set[int],
) -> Iterator[tuple[list[int], list[int]]]:
    """At each step, which texts go on and a token for each; until all have stopped."""
    dice = Dice(seed, len(prompts))
    scores, caches = prefill(model, prompts, caches)
    texts = list(range(len(prompts)))
    while True:
        chosen = draw(choice.probabilities(scores), dice.roll(texts).to(scores.device))
        tokens = chosen.tolist()
        going_on = [row for row, token in enumerate(tokens) if token not in stop]
        if len(going_on) < len(texts):
            rows = torch.tensor(going_on, dtype=torch.int64, device=chosen.device)
            texts, tokens = [texts[row] for row in going_on], [tokens[row] for row in going_on]
            chosen, caches = chosen[rows], [cache.select(rows) for cache in caches]
        if not texts:
            return
        yield texts, tokens
        scores = model.scores(model.step(chosen[:, None], caches)[:, -1])


def prefill(
    model: Decoder, prompts: list[Tensor], caches: list[KVCache]
) -> tuple[Tensor, list[KVCache]]:
    """Read prompts, in one call if they are of one length, and else in one call for each.

    Args:
        model: What reads.
        prompts: int64 (n_i,) each.
        caches: One for each block, with nothing in it yet.

    Returns:
        Scores of the token after each prompt, (prompts, vocab), and the caches of all of them.
    """
    if len({len(prompt) for prompt in prompts}) == 1:
        x = model.step(torch.stack(prompts), caches)[:, -1]
        return model.scores(x), caches
    read = [[KVCache(cache.graph) for cache in caches] for _ in prompts]
    last = [model.step(prompt, own)[-1] for prompt, own in zip(prompts, read)]
    return model.scores(torch.stack(last)), [KVCache.stack(of_block) for of_block in zip(*read)]


def make_caches(model: Decoder, graph: Graphs, longest: int, max_new_tokens: int) -> list[KVCache]:
    """A cache for each block, over graphs that are large enough.

    Raises:
        TypeError: If max_new_tokens is no integer, or something is not a graph.
        ValueError: If a graph has too few nodes, or an edge from a later node.
    """
    integer("max_new_tokens", max_new_tokens, low=1)
    nodes = longest + max_new_tokens
    limit = getattr(model, "max_len", None)
    if limit is not None and nodes - 1 > limit:  # the last token is not read
        raise ValueError(
            f"the model has {limit} positions, but a prompt of {longest} tokens and "
            f"{max_new_tokens} new ones need {nodes - 1}; shorten the prompt, or ask for fewer"
        )
    made = graph(nodes) if callable(graph) else graph
    if not isinstance(made, Graph | Sequence):
        raise TypeError(
            "graph must be a graph, a list with one for each block, or a function that makes them "
            f"of the number of nodes, got {type(made).__name__} {made!r:.60}"
        )
    graphs = [require_graph(each) for each in graph_of_each(made, len(model.blocks))]
    for each in graphs:
        if each.num_dst < nodes:
            raise ValueError(
                f"{each} has {each.num_dst} nodes, but a prompt of {longest} tokens and "
                f"{max_new_tokens} new ones need {nodes}; build the graph on {nodes} nodes or more"
            )
    return [KVCache(each) for each in graphs]


def check_prompts(model: Decoder, prompts: Sequence[Tensor] | Tensor) -> list[Tensor]:
    """The prompts, each int64 (n,) with n > 0, on the device of the model.

    Raises:
        TypeError: If a prompt does not hold integers.
        ValueError: If there is none, one is empty or has another shape, or a token is none of the
            vocabulary.
    """
    checked = items("prompts", prompts)
    vocab, device = model.embedding.num_embeddings, model.embedding.weight.device
    if not checked:
        raise ValueError("give at least one prompt")
    for number, prompt in enumerate(checked):
        if not isinstance(prompt, Tensor) or prompt.is_floating_point() or prompt.is_complex():
            kind = prompt.dtype if isinstance(prompt, Tensor) else type(prompt).__name__
            raise TypeError(f"prompts[{number}] must be an int64 tensor, got {kind}")
        if prompt.ndim != 1:
            raise ValueError(
                f"prompts[{number}] must have shape (n,), got {tuple(prompt.shape)}; a single "
                "prompt is given as [prompt]"
            )
        if len(prompt) == 0:
            raise ValueError(
                f"prompts[{number}] is empty; begin with a token that stands for the beginning"
            )
        low, high = (int(bound) for bound in prompt.aminmax())
        if low < 0 or high >= vocab:
            raise ValueError(
                f"prompts[{number}] holds the token {low if low < 0 else high}, out of range for "
                f"{vocab} tokens (0..{vocab - 1})"
            )
    return [prompt.to(device, torch.int64) for prompt in checked]


def check_stop(model: Decoder, stop: Iterable[int]) -> set[int]:
    """The tokens that end a text.

    Raises:
        TypeError: If one is no integer.
        ValueError: If one is none of the vocabulary.
    """
    vocab = model.embedding.num_embeddings
    return {integer("a stop token", token, high=vocab - 1) for token in items("stop", stop)}


@contextmanager
def evaluating(model: Decoder) -> Iterator[None]:
    """In eval mode and without gradients; afterwards in the mode of before."""
    assert isinstance(model, nn.Module)
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True
