"""Does one sentence follow from another? Attention both ways, without order."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphattn.attention import attention, attention_weights
from graphattn.graphs import Graph
from graphattn.models.seq2seq import Sentences
from graphattn.nn import IntraAttention
from graphattn.nn.intra import perceptron


class DecomposableAttention(nn.Module):
    """Attend, compare, aggregate (Parikh et al. 2016, section 3): which class a pair belongs to.

    Every token of a premise a is compared with what it attends to in the hypothesis b, and every
    token of the hypothesis with what it attends to in the premise, over the same edges turned
    around:

        beta_i  = sum_j softmax_j(<F(a_i), F(b_j)>) b_j
        alpha_j = sum_i softmax_i(<F(a_i), F(b_j)>) a_i
        scores = H([sum_i G([a_i; beta_i]); sum_j G([b_j; alpha_j])])

    Args:
        vocab: Number of tokens.
        num_classes: Number of classes.
        dim: Width of a token, and of the layers of F, G and H.
        intra: Sets what a token attends to in its own sentence beside it, before all this.

    Example:
        >>> from graphattn import models
        >>> model = models.DecomposableAttention(50, 3, dim=16)
        >>> a = [torch.tensor([3, 1, 4, 1]), torch.tensor([9, 2, 6])]
        >>> b = [torch.tensor([2, 7]), torch.tensor([1, 8, 2, 8])]
        >>> model(a, b, models.sentence_graphs(b, a)[2]).shape
        torch.Size([2, 3])
    """

    def __init__(
        self, vocab: int, num_classes: int, *, dim: int = 200, intra: IntraAttention | None = None
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim)
        self.intra = intra
        width = dim if intra is None else 2 * dim
        self.attend = perceptron(width, dim)
        self.compare = perceptron(2 * width, dim)
        self.aggregate = nn.Sequential(perceptron(2 * dim, dim), nn.Linear(dim, num_classes))

    def forward(
        self,
        premise: Sentences,
        hypothesis: Sentences,
        graph: Graph,
        within: tuple[Graph, Graph] | None = None,
    ) -> Tensor:
        """Class scores of pairs of sentences.

        Args:
            premise: Tokens of each premise, int64 (m_i,).
            hypothesis: Tokens of its hypothesis, int64 (n_i,).
            graph: Which tokens of the hypotheses those of the premises attend to, numbered sentence
                after sentence; the other way the edges are turned around.
            within: Who attends to whom among the tokens of the premises, and among those of the
                hypotheses; for `intra`.

        Returns:
            (pairs, num_classes).

        Raises:
            ValueError: If there is `within` and no `intra`, or the other way around.
        """
        a, b = self._embed(premise, hypothesis, within)
        f_a, f_b = self.attend(a)[:, None], self.attend(b)[:, None]
        beta = attention(f_a, f_b, b[:, None], graph, scale=1.0).squeeze(1)
        alpha = attention(f_b, f_a, a[:, None], graph.T, scale=1.0).squeeze(1)
        compared = [
            _sums(self.compare(torch.cat([x, heard], dim=-1)), sentences)
            for x, heard, sentences in ((a, beta, premise), (b, alpha, hypothesis))
        ]
        return self.aggregate(torch.cat(compared, dim=-1))

    def weights(
        self,
        premise: Sentences,
        hypothesis: Sentences,
        graph: Graph,
        within: tuple[Graph, Graph] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The weight of every edge of `graph`, and of `graph.T`: (E, 1) each, in their orders."""
        a, b = self._embed(premise, hypothesis, within)
        f_a, f_b = self.attend(a)[:, None], self.attend(b)[:, None]
        return (
            attention_weights(f_a, f_b, graph, scale=1.0),
            attention_weights(f_b, f_a, graph.T, scale=1.0),
        )

    def _embed(
        self, premise: Sentences, hypothesis: Sentences, within: tuple[Graph, Graph] | None
    ) -> tuple[Tensor, Tensor]:
        a, b = (self.embedding(torch.cat(list(side))) for side in (premise, hypothesis))
        if (self.intra is None) != (within is None):
            raise ValueError(
                "within holds the graphs of intra-attention: give both or neither, got "
                f"intra={self.intra} and within={within}"
            )
        if self.intra is None or within is None:
            return a, b
        return self.intra(a, within[0]), self.intra(b, within[1])


def _sums(x: Tensor, sentences: Sentences) -> Tensor:
    """Over the tokens of each sentence: (sum of all lengths, dim) -> (sentences, dim)."""
    return torch.stack([part.sum(dim=0) for part in x.split([len(s) for s in sentences])])
