"""Every kernel of the table over every case: it holds to the tolerance, or says why it can't."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

import graphattn as ga
from graphattn import attention, attention_weights, explain
from graphattn.kernels.problem import Problem
from graphattn.kernels.reference import log_sum_exp
from graphattn.normalizers import softmax
from graphattn.plan import KERNELS
from graphattn.scores import Dot
from graphattn.segments import torch_scatter
from tests.oracle import (
    CASES,
    DTYPES,
    ISOLATED,
    KERNEL_NAMES,
    PARALLEL,
    Case,
    Inputs,
    assert_close,
    dense_attention,
    draw,
    expected,
    gradients,
    results,
)

BY_NAME = {case.name: case for case in CASES}
HALF = (torch.bfloat16, torch.float16)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ON_GPU = ("intervals", "row_windows", "triton")
AT_HOME = [
    pytest.param(name, marks=pytest.mark.gpu if name in ON_GPU else ()) for name in KERNEL_NAMES
]


def run(kernel: str, case: Case, dtype: torch.dtype, device: str = "cpu"):
    """Output and gradients, or the reason why the kernel can't."""
    inputs = draw(case, dtype, device=device)
    try:
        out = attention(*inputs[:4], kernel=kernel, **inputs.options)
    except ValueError as error:
        return str(error)
    assert out.dtype == dtype
    return {name: number.cpu() for name, number in results(inputs, out).items()}


def check(kernel: str, case: Case, dtype: torch.dtype, device: str = "cpu") -> bool:
    """A kernel holds to the tolerance in a case, or refuses it with the reason of the plan.

    Returns whether it computed the case.
    """
    got = run(kernel, case, dtype, device)
    if isinstance(got, str):
        inputs = draw(case, dtype, device=device)
        reason = explain(*inputs[:4], **inputs.options).rejected[kernel]
        assert got.startswith(f'kernel "{kernel}" can\'t compute this: {reason}; ')
        return False
    plain, truth, size = expected(case, dtype)
    for name, number in got.items():
        factor = 1 if name == "output" else 3
        what = f"{kernel}: {name}"
        assert_close(what, number, plain[name], truth[name], factor=factor, size=size[name])
    if dtype in HALF:  # computed in float32, and rounded at the end
        rounded = truth["output"].to(dtype)
        assert_close(f"{kernel}: wide output", got["output"], rounded, truth["output"])
    return True


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_holds_to_the_tolerance_or_refuses(case: Case, dtype: torch.dtype, device: str) -> None:
    for kernel in KERNEL_NAMES:
        check(kernel, case, dtype, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", AT_HOME)
def test_computes_something(kernel: str, dtype: torch.dtype) -> None:
    device = "cuda" if kernel in ON_GPU else "cpu"
    if kernel in ("intervals", "row_windows") and dtype == torch.float64:
        assert "float64" in str(run(kernel, BY_NAME["causal"], dtype, device))
        return
    results = ((case, run(kernel, case, dtype, device)) for case in CASES[:40])
    assert any(case.graph.num_edges > 10 for case, got in results if not isinstance(got, str))


@pytest.mark.skipif(torch_scatter() is None, reason="torch_scatter is not installed")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_reference_without_torch_scatter(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphattn.segments.torch_scatter", lambda: None)
    check("reference", case, torch.float32)


def weights_of(kernel: str, inputs: Inputs) -> torch.Tensor:
    q, k, _, graph, options, *_ = inputs
    options = {name: value for name, value in options.items() if name != "edge_value"}
    if kernel == "formula":
        return dense_attention(*inputs[:4], **options).weights
    return attention_weights(q, k, graph, kernel=kernel, **options)


@pytest.mark.parametrize("kernel", [entry.name for entry in KERNELS if entry.weights is not None])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_weights_of_every_edge(case: Case, kernel: str) -> None:
    plain, exact = (draw(case, torch.float32, kept) for kept in (None, torch.float64))
    inputs = draw(case, torch.float32)
    try:
        weights = weights_of(kernel, inputs)
    except ValueError:
        return
    grad = torch.randn(weights.shape, generator=torch.Generator().manual_seed(0))
    formula, truth = weights_of("formula", plain), weights_of("formula", exact)
    close = partial(assert_close, size=case.spread)
    close("weights", weights.detach(), formula.detach(), truth.detach())
    if case.normalizer not in ("sigmoid", "none", "mean", "sink", "off by one", "given sink"):
        dst = case.graph.edge_index[1]
        sums = torch.zeros_like(inputs.query[..., 0]).index_add(-2, dst, weights)
        assert ((sums - 1).abs().lt(1e-5) | (sums == 0)).all()
    got, near, true = (
        gradients(result, source, grad.to(result.dtype))
        for result, source in ((weights, inputs), (formula, plain), (truth, exact))
    )
    for name in got:
        size = 4 * case.spread * max(1.0, float(true[name].abs().sum() and true[name].abs().max()))
        assert_close(name, got[name], near[name], true[name], factor=3, size=size)


DOT = [case for case in CASES if (case.score, case.softcap) == ("dot", None)]


@pytest.mark.parametrize("case", DOT, ids=lambda case: case.name)
def test_log_sum_exp_of_the_reference(case: Case) -> None:
    inputs, exact = draw(case, torch.float32), draw(case, torch.float32, torch.float64)
    q, k, v, graph, options, *_ = inputs
    scale = options.get("scale", case.head_dim**-0.5)
    problem = Problem(q, k, v, graph, Dot(), options.get("bias"), softmax, scale, 0.0)
    lse = log_sum_exp(replace(problem, edge_key=options.get("edge_key")))
    plain = dense_attention(*inputs[:4], **options).lse.detach()
    truth = dense_attention(*exact[:4], **exact.options).lse.detach()
    # A sum of E terms, one after the other, is rounded E times: up to sqrt(E) roundings remain.
    degree = float(graph.in_degree().max()) if graph.num_dst else 0.0
    size = float(truth[truth.isfinite()].abs().amax()) if truth.isfinite().any() else 0.0
    assert_close("lse", lse.detach(), plain, truth, size=size + degree**0.5)
    lse.masked_fill(lse.isinf(), 0.0).square().sum().backward()
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in inputs.leaves.values())


SOME = [
    "causal",
    "batch of mixed blocks",
    "parallel edges",
    "scattered blocks",
    "bigbird",
    "bias, windows",
    "grouped heads, isolated nodes",
    "bias function with holes, causal",
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_same_inputs_same_bits(kernel: str, name: str, device: str) -> None:
    first, again = (run(kernel, BY_NAME[name], torch.float32, device) for _ in range(2))
    assert isinstance(first, str) or all(torch.equal(first[part], again[part]) for part in first)


@pytest.mark.parametrize("name", ["bias with dead rows", "isolated nodes", "no edges"])
@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_who_hears_nobody_is_zero(kernel: str, name: str) -> None:
    graph = ga.causal(13) if name == "bias with dead rows" else BY_NAME[name].graph
    case = Case(name, graph, bias="tensor, dead row", batch=(2,))
    got = run(kernel, case, torch.float32)
    if isinstance(got, str):
        return
    _src, dst = graph.edge_index
    deaf = torch.ones(graph.num_dst, dtype=torch.bool)
    deaf[dst[dst % 4 != 1]] = False
    assert deaf.any()
    assert (got["output"][:, deaf] == 0).all()
    assert (got["query"][:, deaf] == 0).all()
    assert (got["bias"][dst % 4 == 1] == 0).all()


# torch's attention multiplies masked values by 0, which keeps a NaN: of a mask, and of `causal`.
def scores_no_edges(kernel: str, graph: ga.Graph) -> bool:
    return kernel == "masked" or (kernel in ("dense", "blocks") and graph == ga.causal(13))


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
@pytest.mark.parametrize(
    "graph",
    [PARALLEL, ISOLATED, ga.causal(13), ga.batch([ga.complete(4), ga.bipartite(2, 5)])],
    ids=str,
)
def test_nan_reaches_those_who_hear_it(kernel: str, graph: ga.Graph) -> None:
    inputs = draw(Case("nan", graph), torch.float32)
    value = inputs.value.detach().clone()
    value[3] = torch.nan
    try:
        clean = attention(*inputs[:4], kernel=kernel)
        out = attention(inputs.query, inputs.key, value, graph, kernel=kernel)
    except ValueError:
        return
    src, dst = graph.edge_index
    hears = torch.zeros(graph.num_dst, dtype=torch.bool)
    hears[dst[src == 3]] = True
    assert out[hears].isnan().all()
    if not scores_no_edges(kernel, graph):
        assert torch.equal(out[~hears], clean[~hears])


TINY = {
    "complete": ga.bipartite(3, 2),
    "causal": ga.causal(3),
    "blocks": ga.batch([ga.complete(2), ga.causal(2)]),
    "window": ga.sliding_window(4, 1),
    "isolated, parallel": ga.from_edges([[0, 1, 1, 2], [0, 0, 0, 3]], num_dst=5, num_src=3),
}


def tiny_call(kernel: str, graph: ga.Graph, **options):
    """A function of tensors that require gradients, and these tensors."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(graph.num_dst, 4, 2), (graph.num_src, 2, 2), (graph.num_src, 2, 3)]
    shapes.append((graph.num_edges, 4))
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]

    def call(q, k, v, bias):
        return attention(q, k, v, graph, bias=bias, kernel=kernel, **options)

    return call, [tensor.requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("graph", TINY.values(), ids=TINY.keys())
@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_gradcheck(kernel: str, graph: ga.Graph) -> None:
    call, tensors = tiny_call(kernel, graph)
    try:
        call(*tensors)
    except ValueError:
        return
    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradcheck(lambda q, k, v: call(q, k, v, None), tensors[:3])


@pytest.mark.parametrize("graph", TINY.values(), ids=TINY.keys())
def test_second_derivatives_of_the_reference(graph: ga.Graph) -> None:
    assert torch.autograd.gradgradcheck(*tiny_call("reference", graph))
