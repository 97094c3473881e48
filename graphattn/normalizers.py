"""What becomes of the scores of one destination: the weights of its edges.

A normalizer is a function `(logits, csr) -> weights`, both (…, E, heads) with the edges in CSR
order; `graphattn.segments` has the sums and maxima over the edges of a destination. `Softmax`,
`sigmoid` and `identity` are computed inside the fused kernels; for any other, these compute the
logits, and sum the values by the weights.

An edge whose logit is -inf is switched off: its weight is 0, and nothing is passed on to it. Among
edges that are alike, the lowest in edge order comes first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from graphattn.graphs.checks import integer
from graphattn.graphs.csr import CSR
from graphattn.segments import (
    rank_in_segment,
    segment_first_maximum,
    segment_max,
    segment_softmax,
    segment_sum,
)

Normalizer: TypeAlias = Callable[[Tensor, CSR], Tensor]


class NormalizerModule(Protocol):
    """A module that owns the parameters or the state of a normalizer, and makes it of them."""

    def normalizer(self) -> Normalizer:
        """The normalizer as its parameters are now."""
        ...


@dataclass(frozen=True, eq=False)
class Softmax:
    """`exp(s_ij) / (exp(sink) + sum_j exp(s_ij))`; all zero for a destination that hears nobody.

    Args:
        sink: An extra logit without a value, to which a head may attend instead: of each head,
            (heads,), learned (gpt-oss) or given, or a number for all. 0 is "off by one" (Miller
            2023). None is none.

    Raises:
        ValueError: When it is used, if the sink is not finite or does not fit the heads.

    Example:
        >>> from graphattn import complete
        >>> Softmax(sink=0.0)(torch.zeros(4, 1), complete(2).csr())[:, 0].tolist()
        [0.333..., 0.333..., 0.333..., 0.333...]
    """

    sink: float | Tensor | None = None

    def check(self, heads: int, device: torch.device) -> None:
        """Raise ValueError unless the sink fits so many heads on this device."""
        sink = self.sink
        if isinstance(sink, Tensor):
            if sink.shape != (heads,) or not sink.is_floating_point():
                raise ValueError(
                    f"sink must be a number or a floating tensor (heads,), here ({heads},), got "
                    f"{tuple(sink.shape)} of {sink.dtype}"
                )
            if sink.device != device:
                raise ValueError(
                    f'sink is on {sink.device} but query on {device}; use sink.to("{device}")'
                )
        elif sink is not None and (not isinstance(sink, int | float) or not abs(sink) < math.inf):
            raise ValueError(f"sink must be a finite number or a tensor (heads,), got {sink!r}")

    def sink_of(self, heads: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """The sink as a tensor (heads,): as it is given, or of this dtype and on this device."""
        if isinstance(self.sink, Tensor) or self.sink is None:
            return self.sink
        return torch.full((heads,), self.sink, dtype=dtype, device=device)

    def __call__(self, logits: Tensor, csr: CSR) -> Tensor:
        self.check(logits.shape[-1], logits.device)
        weights, log_sum_exp = segment_softmax(logits, csr)
        if (sink := self.sink_of(logits.shape[-1], logits.dtype, logits.device)) is None:
            return weights
        share = torch.sigmoid(log_sum_exp - sink.to(logits.dtype))  # (…, num_dst, heads)
        return weights * share.index_select(-2, csr.row)


softmax = Softmax()


def sigmoid(logits: Tensor, csr: CSR) -> Tensor:
    """`1 / (1 + exp(-s_ij))`, each edge for itself (Ramapuram et al. 2024, section 2).

    They add a bias of -log n, so that n sources begin with a weight of about 1 together.

    Example:
        >>> from graphattn import complete
        >>> sigmoid(torch.zeros(1, 1), complete(1).csr())
        tensor([[0.5000]])
    """
    return torch.sigmoid(logits)


def identity(logits: Tensor, csr: CSR) -> Tensor:
    """`s_ij`: the scores are the weights, as in attention without softmax (Luong et al. 2015).

    Example:
        >>> from graphattn import complete
        >>> identity(torch.tensor([[2.0]]), complete(1).csr())
        tensor([[2.]])
    """
    return logits.masked_fill(logits == -torch.inf, 0.0)


def mean(logits: Tensor, csr: CSR) -> Tensor:
    """`s_ij / |N(i)|`, over the neighbors that are not switched off (Wang et al. 2018, eq. 4).

    With scores of 1 (`Uniform`), the mean of the neighbors.

    Example:
        >>> from graphattn import complete
        >>> mean(torch.ones(4, 1), complete(2).csr())[:, 0].tolist()
        [0.5, 0.5, 0.5, 0.5]
    """
    on = logits != -torch.inf
    count = segment_sum(on.to(logits.dtype), csr, dim=-2).clamp(min=1)
    return identity(logits, csr) / count.index_select(-2, csr.row)


# --- sparse: many weights are exactly 0 -----------------------------------------------------------


def sparsemax(logits: Tensor, csr: CSR) -> Tensor:
    """`max(s_ij - t_i, 0)`, where t_i makes the sum 1 (Martins and Astudillo 2016, proposition 1).

    Example:
        >>> from graphattn import complete
        >>> sparsemax(torch.tensor([[0.0], [0.5], [0.0], [9.0]]), complete(2).csr())[:, 0].tolist()
        [0.25, 0.75, 0.0, 1.0]
    """
    return cast(Tensor, _Entmax.apply(logits, csr, 2.0))


def entmax15(logits: Tensor, csr: CSR) -> Tensor:
    """`max(s_ij / 2 - t_i, 0)^2`, where t_i makes the sum 1 (Peters et al. 2019, section 3).

    Between softmax (alpha 1) and sparsemax (alpha 2).

    Example:
        >>> from graphattn import complete
        >>> entmax15(torch.tensor([[0.0], [0.0], [0.0], [9.0]]), complete(2).csr())[:, 0].tolist()
        [0.5, 0.5, 0.0, 1.0]
    """
    return cast(Tensor, _Entmax.apply(logits, csr, 1.5))


class _Entmax(torch.autograd.Function):
    """`w = max((alpha - 1) s - t, 0)^(1 / (alpha - 1))` for alpha 1.5 and 2, `sum w = 1`.

    In float64: a row of 100,000 edges that are alike is a sum of as many differences.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, csr: CSR, alpha: float) -> Tensor:
        z = (alpha - 1) * logits.double()
        z = z - _of_edges(segment_max(z, csr, dim=-2), csr)
        z = z.masked_fill(logits == -torch.inf, -torch.inf)
        power = round(1 / (alpha - 1))
        over = (z - _of_edges(_threshold(z, csr, power), csr)).clamp(min=0)
        weights = over**power
        total = segment_sum(weights, csr, dim=-2)  # 1, but for rounding, and for who hears nobody
        weights = weights / _of_edges(total.masked_fill(total == 0, 1.0), csr)
        ctx.save_for_backward(weights)
        ctx.csr, ctx.alpha = csr, alpha
        return weights.to(logits.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        """Peters et al. 2019, proposition 2, with `s = w^(2 - alpha)` on the support."""
        (weights,) = ctx.saved_tensors  # float64
        slope = weights.sqrt() if ctx.alpha == 1.5 else (weights > 0).to(weights.dtype)
        total = segment_sum(slope, ctx.csr, dim=-2)
        mean = segment_sum(slope * grad, ctx.csr, dim=-2) / total.masked_fill(total == 0, 1.0)
        return (slope * (grad - _of_edges(mean, ctx.csr))).to(grad.dtype), None, None


def _threshold(z: Tensor, csr: CSR, power: int) -> Tensor:
    """`t` with `sum_j max(z_ij - t, 0)^power = 1` for every row, (…, num_dst, heads).

    Newton's method from below, where the sum is convex and falls: no step goes too far, and the
    last one, on the edges that remain, is exact. z is at most 0 in every row.
    """
    t = torch.full_like(segment_max(z, csr, dim=-2), -1.0)
    compiling = torch.compiler.is_compiling()
    for _ in range(COMPILED_STEPS if compiling else len(csr.row) + 100):
        over = (z - _of_edges(t, csr)).clamp(min=0)
        steep = power * over ** (power - 1) if power > 1 else (over > 0).to(z.dtype)
        excess = segment_sum(over**power, csr, dim=-2) - 1
        step = excess / segment_sum(steep, csr, dim=-2).clamp(min=torch.finfo(z.dtype).tiny)
        higher = torch.maximum(t + step.clamp(max=1.0), t)
        if not compiling and torch.equal(higher, t):
            break
        t = higher
    return t


COMPILED_STEPS = 30  # of Newton's method, where nobody may look whether it has arrived


@dataclass(frozen=True)
class TopK:
    """Softmax over the k highest scores of every destination (Zhao et al. 2019).

    Args:
        k: How many edges of each destination remain, at most.

    Raises:
        TypeError, ValueError: If k is not a positive integer.

    Example:
        >>> from graphattn import complete
        >>> TopK(1)(torch.tensor([[0.0], [3.0], [5.0], [5.0]]), complete(2).csr())[:, 0].tolist()
        [0.0, 1.0, 1.0, 0.0]
    """

    k: int

    def __post_init__(self) -> None:
        integer("k", self.k, low=1)

    def __call__(self, logits: Tensor, csr: CSR) -> Tensor:
        return softmax(logits.masked_fill(rank_in_segment(logits, csr) >= self.k, -torch.inf), csr)


# --- hard: one edge of each destination -----------------------------------------------------------


def argmax(logits: Tensor, csr: CSR) -> Tensor:
    """1 for the edge of the highest score, 0 for others, with the gradient of softmax.

    The estimator is "straight-through" (Bengio et al. 2013, section 3).

    Example:
        >>> from graphattn import complete
        >>> argmax(torch.tensor([[0.0], [3.0], [5.0], [5.0]]), complete(2).csr())[:, 0].tolist()
        [0.0, 1.0, 1.0, 0.0]
    """
    return _straight_through(segment_first_maximum(logits, csr), softmax(logits, csr))


@dataclass(frozen=True)
class Gumbel:
    """Softmax of noisy scores, `(s_ij + g_ij) / temperature` (Jang et al. 2017, eq. 2).

    As the temperature falls, the weights become a sample of one edge of each destination, drawn
    with the weights of softmax. The noise is torch's.

    Args:
        temperature: Above 0.
        hard: Whether weights are the sample itself, with the gradient of the soft ones.

    Raises:
        ValueError: If the temperature is not above 0.

    Example:
        >>> from graphattn import complete
        >>> Gumbel(hard=True)(torch.randn(4, 1), complete(2).csr()).sum().item()
        2.0
    """

    temperature: float = 1.0
    hard: bool = False

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature!r}")

    def __call__(self, logits: Tensor, csr: CSR) -> Tensor:
        noisy = (logits + gumbel_noise(logits)) / self.temperature
        weights = softmax(noisy, csr)
        if not self.hard:
            return weights
        return _straight_through(segment_first_maximum(noisy, csr), weights)


def sample(logits: Tensor, csr: CSR) -> tuple[Tensor, Tensor]:
    """One edge of each destination, drawn with the weights of softmax, and how likely it was.

    The Gumbel-max trick (Maddison et al. 2014). Weights have no gradient; the logarithms have, for
    REINFORCE (Williams 1992).

    Returns:
        Weights of 0 and 1, (…, E, heads), and the logarithm of the chance of what was drawn,
        (…, num_dst, heads); 0 for a destination that hears from nobody.

    Example:
        >>> from graphattn import complete
        >>> weights, log_prob = sample(torch.zeros(4, 1), complete(2).csr())
        >>> weights.sum().item(), log_prob.exp().tolist()
        (2.0, [[0.5], [0.5]])
    """
    weights = segment_first_maximum((logits + gumbel_noise(logits)).detach(), csr)
    _, log_sum_exp = segment_softmax(logits, csr)
    drawn = logits.masked_fill(weights == 0, 0.0)
    log_prob = segment_sum(drawn, csr, dim=-2) - log_sum_exp
    return weights, log_prob.masked_fill(log_sum_exp == -torch.inf, 0.0)


def gumbel_noise(logits: Tensor) -> Tensor:
    """`-log(-log u)` for uniform u, of the shape of logits."""
    return -torch.empty_like(logits).exponential_().log()


def _straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of the one with the gradient of the other."""
    return hard + (soft - soft.detach())


def _of_edges(values: Tensor, csr: CSR) -> Tensor:
    """(…, num_dst, heads) -> (…, E, heads)."""
    return values.index_select(-2, csr.row)


NORMALIZERS: dict[str, Normalizer] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "none": identity,
    "mean": mean,
    "sparsemax": sparsemax,
    "entmax15": entmax15,
    "argmax": argmax,
}


def as_normalizer(normalizer: str | Normalizer | NormalizerModule) -> Normalizer:
    """The normalizer of a name or of a module, or the function itself.

    Raises:
        ValueError: If no normalizer has that name.
        TypeError: If it is none of these.
    """
    if isinstance(normalizer, str):
        if normalizer not in NORMALIZERS:
            raise ValueError(
                f"normalizer must be one of {sorted(NORMALIZERS)} or a function, got {normalizer!r}"
            )
        return NORMALIZERS[normalizer]
    if hasattr(normalizer, "normalizer"):
        return cast(NormalizerModule, normalizer).normalizer()
    if not callable(normalizer):
        raise TypeError(
            f"normalizer must be a name or a function (logits, csr), got {normalizer!r}"
        )
    return cast(Normalizer, normalizer)
