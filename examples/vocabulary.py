"""Text as tokens that are learned from it, and what can be told of a token by counting."""

import math

import torch
import torch.nn.functional as F
from scipy.sparse import coo_array
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

MASK, CLS, BYTES = 0, 1, 256


def learn_tokens(text: str, size: int) -> Tokenizer:
    """Pairs of bytes that are frequent in a text, merged into tokens (Sennrich et al. 2016).

    Raises:
        ValueError: If there is no room for the special tokens and every byte.
    """
    if size < 2 + BYTES:
        raise ValueError(
            f"a vocabulary needs {2 + BYTES} tokens, [MASK], [CLS] and every byte, got {size}; "
            f"take --vocab {2 + BYTES} or more"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["[MASK]", "[CLS]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return tokenizer


def tokens_of(text: str, tokenizer: Tokenizer, context: int) -> Tensor:
    """The tokens of a text, int64.

    Raises:
        ValueError: If they are too few to fill a context.
    """
    lines = tokenizer.encode_batch(text.splitlines(keepends=True), add_special_tokens=False)
    tokens = torch.tensor([token for line in lines for token in line.ids])
    if len(tokens) < context:
        raise ValueError(
            f"a part of the text has {len(tokens)} tokens, fewer than the {context} of a context; "
            "take a longer text, or a smaller --context"
        )
    return tokens


def framed(tokens: Tensor) -> Tensor:
    """(N, n - 1) to (N, n), with [CLS] before each."""
    return F.pad(tokens, (1, 0), value=CLS)


def counted(train: Tensor, chunks: Tensor, chosen: Tensor, size: int) -> dict[str, dict]:
    """Bits and accuracy at the chosen places of chunks (N, n), by counting in the train tokens.

    Neighbors: how often each token stood between these two. A guess of two more occurrences, shared
    out as if what stands before and what stands after were independent given the token, smooths it.
    """
    counts = torch.bincount(train, minlength=size) + 1.0
    unigram = counts / counts.sum()
    pairs = torch.bincount(size * train[:-1] + train[1:], minlength=size**2).view(size, size)
    after, before = (F.normalize(way + 5 * unigram, p=1, dim=1) for way in (pairs, pairs.T))
    left, right, true = (chunks.roll(shift, 1)[chosen] for shift in (1, -1, 0))  # (places,)
    guess = F.normalize(after[left] * before[right] / unigram, p=1, dim=1)  # (places, size)
    contexts = size * train[:-2] + train[2:]
    between = coo_array((torch.ones(len(contexts)), (contexts, train[1:-1])), (size**2, size))
    seen = between.tocsr()[(size * left + right).numpy()].toarray()
    neighbors = F.normalize(torch.from_numpy(seen) + 2 * guess, p=1, dim=1)
    return {
        "unigram": scored(unigram.log().expand(len(true), -1), true),
        "neighbors": scored(neighbors.log(), true),
    }


def scored(scores: Tensor, true: Tensor) -> dict[str, float]:
    """Of scores (places, size) for the tokens that are there, (places,)."""
    bits = F.cross_entropy(scores, true).item() / math.log(2)
    return {"bits": bits, "accuracy": (scores.argmax(dim=1) == true).float().mean().item()}
