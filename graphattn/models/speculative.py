"""Speculative decoding: what may follow is guessed, as a tree, and verified in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from graphattn.graphs.checks import integer, integers
from graphattn.graphs.tree import Branches
from graphattn.models.generation import (
    Decoder,
    Graphs,
    check_prompts,
    check_stop,
    evaluating,
    make_caches,
)
from graphattn.models.sampling import Choice, Dice, accept, draw
from graphattn.nn.cache import Draft, KVCache


class Proposal(NamedTuple):
    """Tokens that may follow a text, as a tree.

    tokens: int64 (nodes,).
    parents: The node that each follows, int64 (nodes,); -1 if it follows the text. A node comes
        after its parent, and nodes of one parent are different tokens.
    probabilities: What each token was drawn from, (nodes,, vocab), if every node follows the one
        before it; None if the tokens are guesses.
    """

    tokens: Tensor
    parents: Tensor
    probabilities: Tensor | None = None


class Speculation(NamedTuple):
    """A text, and what it took.

    tokens: int64 (length,), without the token that ended it.
    calls: How often the model was called after it had read the prompt.
    """

    tokens: Tensor
    calls: int


def speculative(
    model: Decoder,
    prompt: Tensor,
    graph: Graphs,
    draft: Callable[[Tensor], Proposal],
    *,
    max_new_tokens: int,
    choice: Choice | None = None,
    seed: int | None = None,
    stop: Iterable[int] = (),
) -> Speculation:
    """Go on from a prompt as `GPT.generate` does, several tokens a call where a draft guesses them.

    Of guesses, the model draws its own token at each node, and goes on as long as that is one of
    the node's children: the text is the one that `generate` draws with the same seed, up to
    rounding, whatever was guessed (SpecInfer, Miao et al. 2024, section 4). Of tokens
    that were drawn with known probabilities, more are taken, and the text has the same
    distribution (Leviathan et al. 2023, algorithm 1).

    Args:
        model: As `GPT`.
        prompt: int64 (n,).
        graph: As in `GPT.generate`.
        draft: Given the text so far, int64 (length,), says what may follow.
        max_new_tokens: Tokens written, at most.
        choice: What tokens are drawn from; by default the likeliest is taken.
        seed, stop: As in `GPT.generate`.

    Returns:
        The text, and how many calls of the model it took.

    Raises:
        TypeError, ValueError: As in `GPT.generate`; and if a proposal is no such tree.

    Example:
        >>> import torch
        >>> from graphattn import causal, models
        >>> model, prompt = models.GPT(256, dim=32, depth=2, heads=4), torch.tensor([1, 2, 1, 2])
        >>> found = models.speculative(
        ...     model, prompt, causal(36), models.prompt_lookup, max_new_tokens=32
        ... )
        >>> written = model.generate([prompt], causal(36), max_new_tokens=32, temperature=0)
        >>> torch.equal(found.tokens, written[0])
        True
    """
    (prompt,) = check_prompts(model, [prompt])
    stops, choice = check_stop(model, stop), choice or Choice(temperature=0)
    caches, dice = make_caches(model, graph, len(prompt), max_new_tokens), Dice(seed, 1)
    text, end, calls = prompt.tolist(), len(prompt) + max_new_tokens, 0
    with evaluating(model):
        p = choice.probabilities(model.scores(model.step(prompt, caches)[-1]))
        text.append(int(draw(p, dice.roll([0])[0].to(p.device))))
        while len(text) < end and not stops & set(text[len(prompt) :]):
            proposal = draft(torch.tensor(text, device=prompt.device))
            proposal = _cut(proposal, end - len(text) - 1, p.shape[-1])
            text += verify(model, text[-1], proposal, caches, choice, dice)
            calls += 1
    written = _until(stops, text[len(prompt) :])
    return Speculation(torch.tensor(written, dtype=torch.int64, device=prompt.device), calls)


def verify(
    model: Decoder,
    token: int,
    proposal: Proposal,
    caches: Sequence[KVCache],
    choice: Choice,
    dice: Dice,
) -> list[int]:
    """The tokens that follow, at least one, by one call of the model on a whole tree.

    Args:
        model: What has read the text but for its last token.
        token: The last one, which no cache has yet.
        proposal: What may follow it.
        caches: One for each block. They take in the token and those of the proposal that are right.
        choice: What tokens are drawn from.
        dice: What they are drawn by.

    Returns:
        Tokens; the last of them is not in the caches.
    """
    device = model.embedding.weight.device
    tokens = torch.cat([torch.tensor([token]), proposal.tokens.cpu()])
    branches = Branches.of(torch.cat([torch.tensor([-1]), proposal.parents.cpu() + 1]))
    # The token alone is a usual step, for which nothing is copied.
    drafts = [Draft(cache, branches) for cache in caches] if len(tokens) > 1 else []
    x = model.step(tokens.to(device), drafts or caches)
    p = choice.probabilities(model.scores(x))
    child = {
        (parent, token): node
        for node, (parent, token) in enumerate(zip(branches.parents.tolist(), tokens.tolist()))
    }
    path, following = [0], []
    while True:
        node, uniform = path[-1], dice.roll([0])[0].to(device)
        if proposal.probabilities is None or node == len(proposal.tokens):
            following.append(int(draw(p[node], uniform)))
        else:
            q, drafted = proposal.probabilities[node].to(device), int(proposal.tokens[node])
            following.append(accept(p[node], q, drafted, uniform))
        if (node, following[-1]) not in child:
            break
        path.append(child[node, following[-1]])
    for draft in drafts:
        draft.accept(path)
    return following


def prompt_lookup(tokens: Tensor, *, length: int = 8, ngram: int = 2) -> Proposal:
    """What followed the last tokens where they stood before (prompt lookup, Saxena 2023).

    Args:
        tokens: The text so far, int64 (n,).
        length: How many tokens are proposed, at most.
        ngram: How many of the last tokens are looked for.

    Returns:
        A proposal without branches, of the latest place; empty if there is none.

    Example:
        >>> prompt_lookup(torch.tensor([5, 6, 7, 8, 5, 6]), length=2).tokens.tolist()
        [7, 8]
    """
    length, ngram = integer("length", length, low=1), integer("ngram", ngram, low=1)
    found = tokens[:0]
    if len(tokens) > ngram:
        before = tokens[:-1].unfold(0, ngram, 1)  # (places, ngram)
        places = (before == tokens[-ngram:]).all(dim=1).nonzero()
        if len(places):
            first = int(places[-1]) + ngram
            found = tokens[first : first + length]
    return Proposal(found, torch.arange(-1, len(found) - 1))


def _cut(proposal: Proposal, depths: int, vocab: int) -> Proposal:
    """A proposal that was checked, without the nodes that would be too far on.

    Raises:
        TypeError, ValueError: If it is no tree of tokens, or two children of a node are the same.
    """
    tokens, parents = integers("tokens", proposal.tokens), integers("parents", proposal.parents)
    tokens, parents = tokens.cpu(), parents.cpu()
    branches, q = Branches.of(parents), proposal.probabilities
    if tokens.shape != parents.shape:
        raise ValueError(
            f"a proposal has a parent for each token, got {tuple(tokens.shape)} tokens and "
            f"{tuple(parents.shape)} parents"
        )
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab:
        raise ValueError(f"proposed tokens must be 0..{vocab - 1}, got {tokens.tolist()}")
    if len({*zip(parents.tolist(), tokens.tolist())}) < len(tokens):
        raise ValueError("a token is proposed twice after the same node; leave one of them out")
    is_chain = torch.equal(parents, torch.arange(-1, len(parents) - 1))
    if q is not None and (not is_chain or q.shape != (len(tokens), vocab)):
        raise ValueError(
            f"probabilities must be ({len(tokens)}, {vocab}), of tokens each of which follows the "
            f"one before, got {tuple(q.shape)} and the parents {parents.tolist()}"
        )
    if branches.path.shape[1] <= depths:
        return Proposal(tokens, parents, q)
    kept = (branches.depth < depths).nonzero().squeeze(1)
    number = torch.full((len(tokens) + 1,), -1)  # the last entry is the parent of roots
    number[kept] = torch.arange(len(kept))
    return Proposal(tokens[kept], number[parents[kept]], None if q is None else q[kept])


def _until(stop: set[int], tokens: list[int]) -> list[int]:
    """What stands before the first token that ends a text."""
    ends = [place for place, token in enumerate(tokens) if token in stop]
    return tokens[: ends[0]] if ends else tokens
