"""What becomes of the scores of one destination: the weights of its edges.

A normalizer is a function `(logits, csr) -> weights`, both (…, E, heads) with the edges in CSR
order; `graphattn.segments` has the sums and maxima over the edges of a destination.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from graphattn.graphs.csr import CSR
from graphattn.segments import segment_softmax

Normalizer = Callable[[Tensor, CSR], Tensor]


def softmax(logits: Tensor, csr: CSR) -> Tensor:
    """`exp(s_ij) / sum_j exp(s_ij)`; all zero for a destination that hears from nobody."""
    return segment_softmax(logits, csr)[0]


NORMALIZERS: dict[str, Normalizer] = {"softmax": softmax}


def as_normalizer(normalizer: str | Normalizer) -> Normalizer:
    """The normalizer of a name, or the function itself.

    Raises:
        ValueError: If no normalizer has that name.
        TypeError: If it is neither a name nor a function.
    """
    if isinstance(normalizer, str):
        if normalizer not in NORMALIZERS:
            raise ValueError(
                f"normalizer must be one of {sorted(NORMALIZERS)} or a function, got {normalizer!r}"
            )
        return NORMALIZERS[normalizer]
    if not callable(normalizer):
        raise TypeError(
            f"normalizer must be a name or a function (logits, csr), got {normalizer!r}"
        )
    return normalizer
