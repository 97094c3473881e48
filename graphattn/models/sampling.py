"""How the next token is chosen from the scores of all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from graphattn.graphs.checks import integer


@dataclass(frozen=True)
class Choice:
    """What a token is drawn from: the scores over a temperature, the unlikely ones left out.

    Args:
        temperature: What scores are divided by; 0 leaves the likeliest token alone.
        top_k: Only so many of the likeliest tokens are left (Fan et al. 2018, section 5.2).
        top_p: Of them, only the likeliest that together have at least this probability (Holtzman et
            al. 2020, section 3.1).

    Raises:
        TypeError: If top_k is no integer.
        ValueError: If a number is out of range.

    Example:
        >>> Choice(top_k=2).probabilities(torch.tensor([0.0, 1.0, 1.0])).tolist()
        [0.0, 0.5, 0.5]
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not _is_number(self.temperature) or not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"temperature must be finite and at least 0, which takes the likeliest token, got "
                f"{self.temperature!r}"
            )
        if self.top_k is not None:
            integer("top_k", self.top_k, low=1)
        if self.top_p is not None and (not _is_number(self.top_p) or not 0 < self.top_p <= 1):
            raise ValueError(
                f"top_p must be a probability above 0, or None for all tokens, got {self.top_p!r}"
            )

    def probabilities(self, scores: Tensor) -> Tensor:
        """Of each token, in float32 or higher.

        Args:
            scores: (…, vocab), of any floating dtype.

        Returns:
            (…, vocab); each row sums to 1.

        Raises:
            ValueError: If top_k is larger than the vocabulary.
        """
        vocab = scores.shape[-1]
        if self.top_k is not None and self.top_k > vocab:
            raise ValueError(
                f"top_k must be at most {vocab}, the number of tokens, got {self.top_k}"
            )
        if self.temperature == 0:
            likeliest = scores.argmax(dim=-1, keepdim=True)
            return torch.zeros_like(scores, dtype=_wide(scores)).scatter_(-1, likeliest, 1.0)
        scores = scores.to(_wide(scores))
        # The maximum first: scores over a temperature near 0 would be infinite, and 0 / 0 is nan.
        temperature = max(self.temperature, torch.finfo(scores.dtype).tiny)
        scores = (scores - scores.amax(dim=-1, keepdim=True)) / temperature
        if self.top_k is not None and self.top_k < vocab:
            best, token = scores.topk(self.top_k, dim=-1)
            scores = torch.full_like(scores, -torch.inf).scatter_(-1, token, best)
        p = scores.softmax(dim=-1)
        return p if self.top_p is None else nucleus(p, self.top_p)


def nucleus(p: Tensor, mass: float) -> Tensor:
    """The likeliest tokens that together have a probability (Holtzman et al. 2020, eq. 2 and 3).

    Args:
        p: Probabilities, (…, vocab).
        mass: Above 0, up to 1. The fewest tokens are left that have at least as much.

    Returns:
        (…, vocab); each row sums to 1.

    Example:
        >>> nucleus(torch.tensor([0.5, 0.25, 0.25]), 0.6).tolist()
        [0.666..., 0.333..., 0.0]
    """
    ranked, token = p.sort(dim=-1, descending=True, stable=True)
    left = ranked.masked_fill(ranked.cumsum(dim=-1) - ranked >= mass, 0.0)
    kept = torch.zeros_like(p).scatter_(-1, token, left)
    return kept / kept.sum(dim=-1, keepdim=True)


def draw(p: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the sum of the probabilities before it passes a number.

    Args:
        p: Probabilities, (…, vocab).
        uniform: Numbers from 0 to 1 (exclusive), (…).

    Returns:
        int64 (…); never a token of probability 0.

    Example:
        >>> draw(torch.tensor([0.25, 0.0, 0.75]), torch.tensor(0.5)).item()
        2
    """
    total = p.double().cumsum(dim=-1)
    wanted = uniform.double()[..., None] * total[..., -1:]
    token = torch.searchsorted(total, wanted, right=True).squeeze(-1)
    # Rounding may take what is wanted up to the whole sum: then the last token that has any.
    last = p.shape[-1] - 1 - (p > 0).flip(-1).long().argmax(dim=-1)
    return torch.minimum(token, last)


def accept(p: Tensor, q: Tensor, token: int, uniform: Tensor) -> int:
    """A token of distribution p, which is `token`, drawn from q, as often as can be.

    Leviathan et al. 2023, algorithm 1: it is taken with probability `min(1, p / q)`, and else
    another is drawn from what p has more than q, `max(0, p - q)` over its sum.

    Args:
        p, q: Probabilities, (vocab,).
        token: What was drawn from q.
        uniform: A number from 0 to 1 (exclusive), a scalar tensor.

    Returns:
        The token, or another one; distributed as p if the token is distributed as q.

    Raises:
        ValueError: If q gives the token no probability.

    Example:
        >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])
        >>> accept(p, q, 0, torch.tensor(0.4)), accept(p, q, 0, torch.tensor(0.6))
        (0, 1)
    """
    if not q[token] > 0:
        raise ValueError(f"token {token} can't have been drawn: its probability is {q[token]}")
    share = (p[token].double() / q[token].double()).clamp(max=1)
    more = (p.double() - q.double()).clamp(min=0)
    if uniform < share or not more.any():  # rounding may leave nothing that p has more
        return token
    return int(draw(more, (uniform.double() - share) / (1 - share)))


class Dice:
    """Numbers that are drawn for each of several texts, on its own.

    Args:
        seed: Text i draws as it would alone with `seed + i`; None lets torch draw the seed.
        texts: How many there are.

    Example:
        >>> torch.equal(Dice(0, 3).roll([1, 2]), Dice(1, 2).roll([0, 1]))
        True
    """

    def __init__(self, seed: int | None, texts: int) -> None:
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        seed = integer("seed", seed, low=-(2**63), high=2**64 - 1 - texts)
        self.generators = [torch.Generator().manual_seed(seed + text) for text in range(texts)]

    def roll(self, texts: list[int]) -> Tensor:
        """A number from 0 to 1 for each of these texts, float64 (texts,)."""
        numbers = [
            torch.rand((), generator=self.generators[text], dtype=torch.float64) for text in texts
        ]
        return torch.stack(numbers) if numbers else torch.empty(0, dtype=torch.float64)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wide(scores: Tensor) -> torch.dtype:
    return torch.promote_types(scores.dtype, torch.float32)
