"""Weights that are dropped, forward and backward, held to a dense formula."""

from __future__ import annotations

import torch
from torch import Tensor

import graphattn as ga
from graphattn import attention


def check_dropout(kernel: str, graph: ga.Graph, dtype: torch.dtype, *, biased: bool) -> None:
    """What is dropped is read off identity values; gradients then are those of a dense formula."""
    n = graph.num_dst
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 2, 4, dtype=dtype, requires_grad=True) for _ in range(3))
    bias = torch.randn(graph.num_edges, 2, dtype=dtype, requires_grad=True)
    options = {"bias": bias} if biased else {}

    def dropped(value: Tensor) -> Tensor:
        """The same weights are dropped at every call."""
        torch.manual_seed(7)
        return attention(q, k, value, graph, dropout=0.4, kernel=kernel, **options)

    ones = torch.eye(n, dtype=dtype)[:, None].expand(2, n, 2, n)
    kept = dropped(ones)  # (2, n, heads, sources)
    kept = torch.where(kept == 0, 0.0, 1 / 0.6)
    share = (kept > 0).sum() / (4 * graph.num_edges)
    assert 0.4 < share < 0.8
    logits = torch.einsum("bihd,bjhd->bihj", q, k) / 2
    allowed = torch.full((n, 2, n), -torch.inf, dtype=dtype)
    src, dst = graph.edge_index
    allowed[dst, :, src] = bias if biased else 0.0
    truth = torch.einsum("bihj,bjhd->bihd", (logits + allowed).softmax(-1) * kept, v)
    out = dropped(v)
    torch.testing.assert_close(out, truth)
    leaves, grad = [q, k, v, *options.values()], torch.randn_like(out)
    got, expected = (torch.autograd.grad(x, leaves, grad) for x in (out, truth))
    torch.testing.assert_close(got, expected)
