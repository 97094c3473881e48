"""What the kernels on tensor cores have in common, in Triton's interpreter; `test_interpreted.py`
runs this in a process with TRITON_INTERPRET=1, which must be set before Triton is imported.
"""

from __future__ import annotations

import os

import pytest
import torch

import graphattn as ga
from graphattn import attention
from graphattn.graphs import windows
from graphattn.kernels import row_windows
from graphattn.kernels.fused import BACKENDS, Wanted, attend_op
from graphattn.kernels.problem import Problem
from graphattn.normalizers import Softmax, softmax
from graphattn.scores import Dot
from tests.kernels.dropout import check_dropout
from tests.kernels.test_kernels import run
from tests.oracle import Case, draw, results

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="is run by test_interpreted.py"
)

WIDE, FINE, SHORT = torch.float32, torch.float64, torch.bfloat16
GRAPHS = {
    "intervals": ga.sliding_window(21, 2) | ga.hubs(21, [0]),
    "row_windows": ga.neighborhood((4, 6), 1),
}
KERNELS = list(GRAPHS)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "LONGEST", 2)
    monkeypatch.setattr(row_windows, "best_size", lambda _: 16)


@pytest.mark.parametrize("kernel", KERNELS)
def test_zero_and_very_negative_logits(kernel: str) -> None:
    """Neither is taken for a pair that is no edge: all are equal, and so are the weights."""
    graph = GRAPHS[kernel]
    v = torch.randn(graph.num_src, 1, 8)
    degree = graph.in_degree()[:, None, None]
    mean = torch.einsum("ij,jhd->ihd", graph.mask().float(), v) / degree
    for logit, bias in ((0.0, None), (-1e4, None), (-1e37, None), (1.0, torch.finfo().min)):
        q = torch.full((graph.num_dst, 1, 4), logit / 4)
        k = torch.ones(graph.num_src, 1, 4)
        edges = None if bias is None else torch.full((graph.num_edges, 1), bias)
        out = attention(q, k, v, graph, scale=1.0, bias=edges, kernel=kernel)
        torch.testing.assert_close(out, mean)


@pytest.mark.parametrize("kernel", [*KERNELS, "triton"])
def test_a_sink_that_is_a_view(kernel: str) -> None:
    graph = GRAPHS.get(kernel, GRAPHS["intervals"])
    q, k, v = torch.randn(3, graph.num_dst, 4, 8).unbind()
    for sink in (torch.randn(4, 3)[:, 0], torch.randn(1).expand(4)):
        out, truth = (
            attention(q, k, v, graph, normalizer=Softmax(sink), kernel=name)
            for name in (kernel, "reference")
        )
        torch.testing.assert_close(out, truth)


@pytest.mark.parametrize("kernel", KERNELS)
def test_same_inputs_same_bits(kernel: str) -> None:
    case = Case("same", GRAPHS[kernel], kv_heads=1, bias="tensor")
    first, again = (run(kernel, case, WIDE) for _ in range(2))
    assert isinstance(first, dict)
    assert isinstance(again, dict)
    assert all(torch.equal(first[part], again[part]) for part in first)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_dropout(kernel: str, biased: bool) -> None:
    check_dropout(kernel, GRAPHS[kernel], WIDE, biased=biased)


@pytest.mark.parametrize("kernel", KERNELS)
def test_only_what_is_needed(kernel: str) -> None:
    graph = GRAPHS[kernel]
    q, k, v = (torch.randn(graph.num_dst, 1, 8, requires_grad=True) for _ in range(3))
    out = attention(q, k, v, graph, kernel=kernel)
    whole = torch.autograd.grad(out.sum(), (q, k, v), retain_graph=True)
    for leaf, expected in zip((q, k, v), whole):
        assert torch.equal(torch.autograd.grad(out.sum(), leaf, retain_graph=True)[0], expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_operator_and_compiled_code(kernel: str) -> None:
    graph = GRAPHS[kernel]
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    found = []
    for function in (attention, compiled):
        inputs = draw(Case("compiled", graph, normalizer="sink", bias="tensor"), WIDE)
        out = function(*inputs[:4], kernel=kernel, **inputs.options)
        found.append(results(inputs, out))
    torch.testing.assert_close(*found)
    q, k, v = (torch.randn(graph.num_dst, 2, 4, requires_grad=True) for _ in range(3))
    problem = Problem(q, k, v, graph, Dot(), None, softmax, 0.5, 0.0)
    sides, listed = BACKENDS[kernel].lower(problem, Wanted(False, False, True))
    tensors = [tensor for side in sides for tensor in side]
    options = (kernel, listed, "dot", 0.0, 0.5, 0.0, "softmax", 0.0, False)
    torch.library.opcheck(attend_op, (q, k, v, *[None] * 7, tensors, *options))


REFUSED = {
    "head_dim 257": ("up to 256 numbers", {"head_dim": 257}, SHORT),
    "value_dim 129": ("up to 128 numbers", {"value_dim": 129}, WIDE),
    "float64": ("float64", {}, FINE),
    "features": ("features of edges", {"edges": "key"}, WIDE),
    "additive": ("scaled dot products", {"score": "tanh"}, WIDE),
    "sparsemax": ("scaled dot products", {"normalizer": "sparsemax"}, WIDE),
    "no normalizer, float16": ("beyond without", {"normalizer": "none"}, torch.float16),
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_it_cannot(name: str, kernel: str) -> None:
    reason, options, dtype = REFUSED[name]
    got = run(kernel, Case(name, GRAPHS[kernel], **options), dtype)
    assert isinstance(got, str)
    assert reason in got


@pytest.mark.parametrize("kernel", KERNELS)
def test_tells_no_weights(kernel: str) -> None:
    q = torch.randn(GRAPHS[kernel].num_dst, 1, 4)
    with pytest.raises(ValueError, match="does not compute weights"):
        ga.attention_weights(q, q, GRAPHS[kernel], kernel=kernel)
