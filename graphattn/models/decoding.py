"""Writing with an encoder-decoder model: greedily, and with a beam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from graphattn.graphs.checks import integer
from graphattn.models.seq2seq import Sentences


class Targets(Protocol):
    """Targets that grow token by token, all by one at a time."""

    def step(self, tokens: Tensor) -> tuple[Tensor, Targets]:
        """Append a token to each, int64 (targets,): scores of the next, (targets, vocab)."""
        ...

    def select(self, rows: Tensor) -> Targets:
        """The targets of these numbers, (targets,), in place of those here, of the same sources."""
        ...


class Seq2Seq(Protocol):
    """A model that reads sentences once, and writes targets token by token."""

    def begin(self, source: Sentences, width: int = 1, **options: Any) -> Targets:
        """Encode; from each source grow `width` targets, which lie side by side."""
        ...


@dataclass(frozen=True)
class Hypothesis:
    """A sentence that a model may have meant.

    tokens: int64 (length,), without the token that ends it.
    log_prob: The logarithm of its probability, that of its end included if it ended.
    score: log_prob over the penalty of its length; what hypotheses are compared by.
    """

    tokens: Tensor
    log_prob: float
    score: float


@torch.no_grad()
def greedy(
    model: Seq2Seq, source: Sentences, *, start: int, end: int, max_length: int, **options: Any
) -> list[Tensor]:
    """The likeliest token, again and again.

    Args:
        model: `Seq2SeqTransformer` or `Seq2SeqGRU`, in eval mode.
        source: The sentences to read, int64 (n_i,) each.
        start: The token that a target begins with.
        end: The token that ends it.
        max_length: Tokens written at most, the end among them.
        options: Of `model.begin`, such as graphs other than its own.

    Returns:
        A target for each source, int64 (length,), without start and end.

    Raises:
        TypeError, ValueError: If max_length is not a positive integer.

    Example:
        >>> import torch
        >>> from graphattn import models
        >>> model = models.Seq2SeqTransformer(50, 20, dim=32, depth=1, heads=4).eval()
        >>> source = [torch.tensor([3, 1, 4, 1, 5]), torch.tensor([9, 2, 6])]
        >>> len(models.greedy(model, source, start=0, end=1, max_length=8))
        2
    """
    integer("max_length", max_length, low=1)
    targets = model.begin(source, **options)
    token = torch.full((len(source),), start, device=source[0].device)
    written: list[Tensor] = []
    ended = torch.zeros_like(token, dtype=torch.bool)
    while len(written) < max_length and not ended.all():
        scores, targets = targets.step(token)
        token = scores.argmax(dim=-1).masked_fill(ended, end)
        ended = ended | (token == end)
        written.append(token)
    return [_until(end, tokens) for tokens in torch.stack(written, dim=1)]


@torch.no_grad()
def beam_search(
    model: Seq2Seq,
    source: Sentences,
    *,
    width: int,
    start: int,
    end: int,
    max_length: int,
    length_penalty: float = 0.6,
    **options: Any,
) -> list[list[Hypothesis]]:
    """The best of what comes of the `width` best beginnings (Sutskever et al. 2014, section 3.2).

    Hypotheses are compared by `log p / ((5 + length) / 6)^length_penalty` (Wu et al. 2016, eq. 14,
    without coverage), those that ended with those that go on. The length counts the end.

    Args:
        model, source, start, end, max_length, options: As in `greedy`.
        width: Hypotheses kept of each source.
        length_penalty: 0 compares probabilities; more favors longer sentences.

    Returns:
        For each source its hypotheses, at most `width`, the best first.

    Raises:
        TypeError, ValueError: If width or max_length is not a positive integer.

    Example:
        >>> import torch
        >>> from graphattn import models
        >>> model = models.Seq2SeqTransformer(50, 20, dim=32, depth=1, heads=4).eval()
        >>> source = [torch.tensor([3, 1, 4, 1, 5]), torch.tensor([9, 2, 6])]
        >>> options = {"start": 0, "end": 1, "max_length": 8}
        >>> found = models.beam_search(model, source, width=4, **options)
        >>> [len(hypotheses) for hypotheses in found]
        [4, 4]
    """
    integer("width", width, low=1)
    integer("max_length", max_length, low=1)
    targets = model.begin(source, width, **options)
    beam = _Beam.of(start, len(source), width, source[0].device)
    for _ in range(max_length):
        scores, targets = targets.step(beam.written[..., -1].flatten())
        following = scores.unflatten(0, (-1, width)).log_softmax(dim=-1)
        beam, parent = beam.grown(following, end, length_penalty)
        first = torch.arange(0, parent.numel(), width, device=parent.device)[:, None]
        targets = targets.select((first + parent).flatten())
        if (beam.ended | (beam.log_prob == -torch.inf)).all():
            break
    score = beam.log_prob / _penalty(beam.length, length_penalty)
    parts = zip(beam.written[..., 1:], beam.log_prob, score)
    return [_hypotheses(*of_source, end) for of_source in parts]


class _Beam(NamedTuple):
    """Hypotheses of every source, the best first.

    written: Their tokens and the start, (sources, width, 1 + steps).
    log_prob: Logarithms of their probabilities, (sources, width); -inf where there is none yet.
    length: How many tokens they have, the end among them, (sources, width).
    ended: Whether they have an end, (sources, width).
    """

    written: Tensor
    log_prob: Tensor
    length: Tensor
    ended: Tensor

    @classmethod
    def of(cls, start: int, num_sources: int, width: int, device: torch.device) -> _Beam:
        """One hypothesis of each source, with the start alone."""
        written = torch.full((num_sources, width, 1), start, device=device)
        log_prob = torch.full((num_sources, width), -torch.inf, device=device)
        log_prob[:, 0] = 0
        length = torch.zeros_like(written[..., 0])
        return cls(written, log_prob, length, length.bool())

    def grown(self, following: Tensor, end: int, exponent: float) -> tuple[_Beam, Tensor]:
        """The best that are longer by a token, or ended before.

        Args:
            following: Logarithms of the probabilities of the next token, (sources, width, vocab).
            end: The token that ends a hypothesis.
            exponent: Of the penalty.

        Returns:
            The beam, and which hypothesis of this one each was made of, (sources, width).
        """
        total = self.log_prob[..., None] + _only_end(following, self.ended, end)
        length = self.length + ~self.ended
        ranked = total / _penalty(length, exponent)[..., None]
        best = ranked.flatten(1).topk(total.shape[1]).indices  # (sources, width)
        parent, token = best // total.shape[-1], best % total.shape[-1]
        before = self.written.gather(1, parent[..., None].expand_as(self.written))
        beam = _Beam(
            torch.cat([before, token[..., None]], dim=-1),
            total.flatten(1).gather(1, best),
            length.gather(1, parent),
            self.ended.gather(1, parent) | (token == end),
        )
        return beam, parent


def _penalty(length: Tensor, exponent: float) -> Tensor:
    return ((5 + length) / 6) ** exponent


def _only_end(log_prob: Tensor, ended: Tensor, end: int) -> Tensor:
    """(…, vocab) where `ended`, (…), is false; elsewhere the end follows for sure."""
    vocab = torch.arange(log_prob.shape[-1], device=log_prob.device)
    sure = torch.where(vocab == end, 0.0, -torch.inf).to(log_prob.dtype)
    return torch.where(ended[..., None], sure, log_prob)


def _until(end: int, tokens: Tensor) -> Tensor:
    """(length,) cut before the first end."""
    ends = (tokens == end).nonzero()
    return tokens[: int(ends[0])] if len(ends) else tokens


def _hypotheses(written: Tensor, log_prob: Tensor, score: Tensor, end: int) -> list[Hypothesis]:
    """Of one source: (width, length), (width,) and (width,); those of probability 0 left out."""
    return [
        Hypothesis(_until(end, tokens), float(p), float(s))
        for tokens, p, s in zip(written, log_prob, score)
        if p > -torch.inf
    ]
