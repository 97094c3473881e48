"""The truth of float64: it is finer than float64, and a small error doesn't pass for rounding."""

from __future__ import annotations

import pytest
import torch

import graphattn as ga
from graphattn import attention
from tests import extended
from tests.oracle import CASES, Case, assert_close, draw, expected

GRAPH = ga.from_edges([[0, 1, 3, 1, 2, 2, 0], [0, 0, 0, 1, 1, 1, 3]], num_dst=4, num_src=4)
NORMALIZERS = ["softmax", "sink", "sigmoid", "none", "mean", "sparsemax", "entmax15", "argmax"]
SMALL = [
    *(Case(name, GRAPH, head_dim=3, normalizer=name) for name in NORMALIZERS),
    Case("top 2", ga.causal(4), head_dim=3, normalizer="top 2"),
    Case("tanh", GRAPH, head_dim=3, score="tanh", softcap=0.7, edges="key value"),
    Case("own score", GRAPH, head_dim=3, score="function", bias="tensor", batch=(2,)),
    Case("projected", GRAPH, head_dim=3, heads=4, kv_heads=2, edges="key value projected"),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_truth_is_that_of_106_bits(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = expected(case, torch.float64).truth
    monkeypatch.setattr(extended, "LONG", False)
    finest = expected.__wrapped__(case, torch.float64).truth  # computed again, not cached
    for name, numbers in truth.items():
        error = float((numbers - finest[name]).abs().max())
        assert error <= 2**-56 * float(finest[name].abs().max()), name


def test_an_operation_without_more_precision_is_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"aten\.erf"):
        extended.extended(torch.ones(2, dtype=torch.float64)).erf()


NAMES = [
    "causal",
    "parallel edges",
    "sink, causal",
    "soft-capping, tanh, causal",
    "sigmoid, causal",
]


@pytest.mark.parametrize("name", NAMES)
def test_an_output_wrong_by_5e_15_is_seen(name: str) -> None:
    (case,) = (case for case in CASES if case.name == name)
    inputs = draw(case, torch.float64)
    out = attention(*inputs[:4], kernel="reference", **inputs.options).detach()
    plain, truth, size = (part["output"] for part in expected(case, torch.float64))
    assert_close("output", out, plain, truth, size=size)
    out.view(-1)[out.abs().argmax()] *= 1 + 5e-15
    with pytest.raises(AssertionError, match=r"error .*, allowed"):
        assert_close("output", out, plain, truth, size=size)
