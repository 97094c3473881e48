"""Normalizers with parameters, or with a state, or that are others in training than afterwards.

Each makes the one of `graphattn.normalizers` that is right at the moment.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphattn import normalizers
from graphattn.graphs.csr import CSR
from graphattn.normalizers import Normalizer, argmax, sample, softmax
from graphattn.segments import segment_sum


class SinkSoftmax(nn.Module):
    """Softmax with a learned extra logit for each head, to which it may attend instead (gpt-oss).

    Args:
        heads: Number of heads.
        sink: The logit at first; 0 is softmax "off by one".

    Example:
        >>> SinkSoftmax(4).normalizer().sink.shape
        torch.Size([4])
    """

    def __init__(self, heads: int, *, sink: float = 0.0) -> None:
        super().__init__()
        self.sink = nn.Parameter(torch.full((heads,), sink))

    def normalizer(self) -> Normalizer:
        """Softmax with the sink as it is now."""
        return normalizers.Softmax(self.sink)


class GumbelSoftmax(nn.Module):
    """Noisy softmax in training, argmax afterwards: attention that ends up hard (Jang et al. 2017).

    Args:
        temperature: Above 0; may be changed while training goes on, as they let it fall.
        hard: Whether weights are one edge in training too, with the gradient of the soft ones.

    Raises:
        ValueError: If the temperature is not above 0.

    Example:
        >>> GumbelSoftmax(0.5).eval().normalizer().__name__
        'argmax'
    """

    def __init__(self, temperature: float = 1.0, *, hard: bool = False) -> None:
        super().__init__()
        normalizers.Gumbel(temperature)  # which checks it
        self.temperature, self.hard = temperature, hard

    def normalizer(self) -> Normalizer:
        """That of the mode which the module is in."""
        return normalizers.Gumbel(self.temperature, self.hard) if self.training else argmax


class Reinforce(nn.Module):
    """Hard attention that learns from a reward (Xu et al. 2015, section 4.1; Williams 1992).

    In training, every destination draws one source with the weights of softmax; afterwards it takes
    the likeliest. A draw has no gradient. What it is worth is the reward that comes of it, above a
    moving average of earlier rewards: add `surrogate(reward)` to the loss.

    Args:
        decay: Of the moving average, 0.9 in the paper.
        entropy: Weight of the entropy, which keeps draws from becoming sure too soon.

    Attributes:
        baseline: The moving average of rewards.

    Example:
        >>> from graphattn import attention, complete
        >>> hard, x = Reinforce(), torch.randn(8, 5, 1, 4, requires_grad=True)
        >>> out = attention(x, x, x, complete(5), normalizer=hard)  # 8 items of 5 nodes
        >>> reward = -out.detach().square().mean(dim=(-3, -2, -1))  # of each item
        >>> hard.surrogate(reward).backward()
    """

    baseline: Tensor
    started: Tensor

    def __init__(self, *, decay: float = 0.9, entropy: float = 0.0) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay!r}")
        self.decay, self.entropy = decay, entropy
        self.drawn: list[tuple[Tensor, Tensor]] = []  # log-probability, entropy: (*batch, num_dst)
        self.register_buffer("baseline", torch.zeros(()))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def normalizer(self) -> Normalizer:
        """That of the mode which the module is in."""
        return self._draw if self.training else argmax

    def _draw(self, logits: Tensor, csr: CSR) -> Tensor:
        weights, log_prob = sample(logits, csr)  # log_prob (…, num_dst, heads)
        if not torch.is_grad_enabled():  # nothing can be learned of it
            return weights
        p = softmax(logits, csr)
        spread = segment_sum(-p * p.clamp(min=torch.finfo(p.dtype).tiny).log(), csr, dim=-2)
        self.drawn.append((log_prob.sum(-1), spread.sum(-1)))
        return weights

    def surrogate(self, reward: Tensor) -> Tensor:
        """What to add to the loss: its gradient is minus that of the expected reward.

        Each call counts all draws since the last one, those of several glimpses for instance,
        moves the average, and forgets the draws. Draws under `torch.no_grad()` do not count.

        Args:
            reward: The higher the better; it is detached. Of each destination, (*batch, num_dst),
                or of each item of the batch, (*batch,), whose destinations then share it. The finer
                it is, the less noise there is in the gradient.

        Returns:
            A scalar: the mean over the rewards.

        Raises:
            RuntimeError: If nothing was drawn since the last call.
            ValueError: If the reward is of another shape than the draws.
        """
        if not self.drawn:
            raise RuntimeError("nothing was drawn yet: call attention first, in training mode")
        shapes = {tuple(log_prob.shape) for log_prob, _ in self.drawn}
        shared = {shape[:-1] for shape in shapes} == {tuple(reward.shape)}
        if not shared and shapes != {tuple(reward.shape)}:
            raise ValueError(
                f"reward must be (*batch, num_dst) or (*batch,), where (*batch, num_dst) is "
                f"{' and '.join(map(str, sorted(shapes)))}, got {tuple(reward.shape)}; call it "
                "once for each batch, and drawn.clear() for a batch that has no reward"
            )
        log_prob, spread = (
            sum(part.sum(-1) if shared else part for part in parts) for parts in zip(*self.drawn)
        )
        self.drawn = []
        reward = reward.detach().to(self.baseline.dtype)
        average = torch.where(self.started, self.baseline, reward.mean())
        self.baseline.copy_(self.decay * average + (1 - self.decay) * reward.mean())
        self.started.fill_(True)
        return ((average - reward) * log_prob - self.entropy * spread).mean()
