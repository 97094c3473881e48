"""The GPU kernel at sizes and in places that only a GPU has; see also `test_kernels.py`."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

import graphattn as ga
from graphattn import attention, attention_weights, explain
from graphattn.graphs import rows
from graphattn.kernels.fused import attend_op
from graphattn.normalizers import Softmax
from graphattn.scores import Additive
from tests.oracle import random_edges

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def drawn(graph: ga.Graph, heads: int, dim: int, dtype: torch.dtype, kv_heads: int = 0):
    """q, k, v on the GPU, requiring gradients."""
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(graph.num_dst, heads, dim), *[(graph.num_src, kv_heads or heads, dim)] * 2]
    made = (torch.randn(s, generator=generator, device="cuda") for s in shapes)
    return [x.to(dtype).requires_grad_() for x in made]


def close(got: Tensor, truth: Tensor, dtype: torch.dtype) -> None:
    """Up to rounding, beside the largest number."""
    error = (got.double() - truth.double()).abs().max()
    assert error <= TOLERANCE[dtype] * truth.double().abs().max(), float(error)


def hubs(nodes: int, edges: int, zipf: float) -> ga.Graph:
    """Destinations drawn with P(node i) ~ (i + 1)^-zipf."""
    generator = torch.Generator("cuda").manual_seed(0)
    share = torch.arange(1, nodes + 1, device="cuda", dtype=torch.float64) ** -zipf
    dst = torch.searchsorted(
        share.cumsum(0) / share.sum(),
        torch.rand(edges, device="cuda", dtype=torch.float64, generator=generator),
    )
    src = torch.randint(nodes, (edges,), device="cuda", generator=generator)
    return ga.from_edges(torch.stack([src, dst.clamp(max=nodes - 1)]), nodes)


LARGE = {
    "random": lambda: random_edges(20_000, 20_000, 200_000).to("cuda"),
    "hubs": lambda: hubs(20_000, 200_000, 1.0),
    "hubs, transposed": lambda: hubs(20_000, 200_000, 1.0).T,
    "window": lambda: ga.sliding_window(20_000, 9).to("cuda"),
    "molecules": lambda: ga.batch([random_edges(26, 26, 56)] * 1000).to("cuda"),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LARGE)
def test_agrees_with_the_reference(name: str, dtype: torch.dtype) -> None:
    """In float64, from the same numbers."""
    graph = LARGE[name]()
    for heads, kv_heads, dim in [(1, 1, 128), (4, 4, 32), (8, 2, 64), (3, 3, 13)]:
        tensors = drawn(graph, heads, dim, dtype, kv_heads)
        exact = [x.detach().double().requires_grad_() for x in tensors]
        out = attention(*tensors, graph, kernel="triton")
        truth = attention(*exact, graph, kernel="reference")
        grad = torch.randn_like(truth)
        close(out, truth, dtype)
        got = torch.autograd.grad(out, tensors, grad.to(dtype))
        for mine, true in zip(got, torch.autograd.grad(truth, exact, grad), strict=True):
            close(mine, true, dtype)


@pytest.mark.parametrize("name", LARGE)
def test_same_inputs_same_bits(name: str) -> None:
    graph = LARGE[name]()
    tensors = drawn(graph, 4, 32, torch.bfloat16)
    bias = torch.randn(graph.num_edges, 4, device="cuda", requires_grad=True)

    def results() -> tuple[Tensor, ...]:
        out = attention(*tensors, graph, bias=bias, kernel="triton")
        return (out, *torch.autograd.grad(out.square().sum(), [*tensors, bias]))

    for first, again in zip(results(), results(), strict=True):
        assert torch.equal(first, again)


def test_is_what_a_sparse_graph_runs_on() -> None:
    graph = hubs(20_000, 200_000, 1.0)
    assert explain(*drawn(graph, 4, 32, torch.float16), graph).kernel == "triton"


def calls(graph: ga.Graph):
    """Functions of q, k, v that show a feature each."""
    edges, heads = graph.num_edges, 4
    bias = torch.randn(edges, heads, device="cuda")
    feature = torch.randn(edges, heads, 32, device="cuda")
    score = Additive(torch.randn(heads, 32, device="cuda"), "leaky_relu")
    attend = partial(attention, graph=graph, kernel="triton")
    return {
        "plain": lambda q, k, v: attend(q, k, v),
        "bias": lambda q, k, v: attend(q, k, v, bias=bias),
        "features": lambda q, k, v: attend(q, k, v, edge_key=feature, edge_value=feature),
        "additive": lambda q, k, v: attend(q, k, v, score=score),
        "dropout": lambda q, k, v: attend(q, k, v, dropout=0.1),
        "sink": lambda q, k, v: attend(q, k, v, normalizer=Softmax(0.5), softcap=20.0),
        "sigmoid": lambda q, k, v: attend(q, k, v, normalizer="sigmoid"),
        "own": lambda q, k, v: attend(q, k, v, score=distance, normalizer="mean"),
        "weights": lambda q, k, v: (
            attention_weights(q, k, graph, kernel="triton") @ v.new_ones(heads, 1)
        ),
    }


def distance(q_i: Tensor, k_j: Tensor, edge: Tensor) -> Tensor:
    return -(q_i - k_j).square().mean(-1)


FEATURES = ["plain", "bias", "features", "additive", "dropout", "sink", "sigmoid", "own", "weights"]


@pytest.mark.parametrize("name", FEATURES)
def test_nothing_waits_for_the_gpu(name: str) -> None:
    graph = hubs(2000, 40_000, 1.0)
    call, tensors = calls(graph)[name], drawn(graph, 4, 32, torch.float32)
    call(*tensors).sum().backward()  # makes the facts of the graph, and compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call(*tensors).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", FEATURES)
def test_is_captured_in_a_cuda_graph(name: str) -> None:
    graph = hubs(2000, 40_000, 1.0)
    call, tensors = calls(graph)[name], drawn(graph, 4, 32, torch.float32)

    def step() -> tuple[Tensor, ...]:
        out = call(*tensors)
        return (out.detach(), *torch.autograd.grad(out.sum(), tensors, allow_unused=True))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        results = step()
    with torch.no_grad():
        for x in tensors:
            x.copy_(torch.randn_like(x))
    captured.replay()
    if name != "dropout":  # whose seed moves on
        for got, expected in zip(results, step(), strict=True):
            assert got is expected is None or torch.equal(got, expected)
    assert results[0].isfinite().all()


@pytest.mark.parametrize("name", FEATURES)
def test_is_compiled(name: str) -> None:
    graph = hubs(2000, 40_000, 1.0)
    call, tensors = calls(graph)[name], drawn(graph, 4, 32, torch.float32)
    compiled = torch.compile(call, fullgraph=True)
    found = []
    for function in (call, compiled):
        torch.manual_seed(0)
        out = function(*tensors)
        grads = torch.autograd.grad(out.square().sum(), tensors, allow_unused=True)
        found.append((out.detach(), *grads))
    if name != "dropout":  # whose seed inductor draws in its own way
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_operator() -> None:
    graph = hubs(50, 4000, 1.0)
    q, k, v = drawn(graph, 2, 8, torch.float32)
    nothing = torch.empty(0, dtype=torch.int32, device="cuda")
    sides = [
        part
        for side, cut in ((graph.csr(), rows.cut_rows), (graph.csc(), rows.cut_columns))
        for part in (side.ptr, side.index.to(torch.int32), nothing, *cut(graph))
    ]
    options = ("triton", True, "dot", 0.0, 0.5, 0.0, "softmax", 0.0, False)
    torch.library.opcheck(attend_op, (q, k, v, *[None] * 7, sides, *options))


def test_under_autocast() -> None:
    graph = hubs(2000, 40_000, 1.0)
    tensors = drawn(graph, 4, 32, torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        out = attention(*tensors, graph, kernel="triton")
    assert out.dtype == torch.bfloat16
    close(out, attention(*tensors, graph, kernel="triton"), torch.bfloat16)


@pytest.mark.parametrize("index", [[[0, 5], [0, 1]], [[0, 1], [0, 7]], [[-1, 1], [0, 1]]])
def test_indices_out_of_range_are_refused(index: list[list[int]]) -> None:
    with pytest.raises(IndexError, match="out of range"):
        ga.from_edges(torch.tensor(index, device="cuda"), 5)


def needs_free(gigabytes: int) -> None:
    free = torch.cuda.mem_get_info()[0] / 1e9
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GB of free GPU memory, and {free:.0f} are free")


@pytest.fixture
def tidy():
    torch.cuda.empty_cache()
    yield
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("tidy")
def test_nodes_x_heads_x_dim_beyond_int32() -> None:
    """Edges among the last nodes alone: what a smaller graph gives."""
    needs_free(60)
    nodes, last = 4_300_000, 1000  # x 8 x 64 = 2.2e9 numbers
    small = random_edges(last, last, 30_000).to("cuda")
    graph = ga.from_edges(small.edge_index + nodes - last, nodes)
    tensors = [torch.zeros(nodes, 8, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    ends = drawn(small, 8, 64, torch.bfloat16)
    with torch.no_grad():
        for x, end in zip(tensors, ends, strict=True):
            x[-last:] = end
    tensors = [x.requires_grad_() for x in tensors]
    out = attention(*tensors, graph, kernel="triton")
    truth = attention(*ends, small, kernel="triton")
    close(out[-last:], truth, out.dtype)
    assert not out[:-last].any()
    grad = torch.zeros_like(out)
    grad[-last:] = 1.0
    expected = torch.autograd.grad(truth, ends, torch.ones_like(truth))
    for got, true in zip(torch.autograd.grad(out, tensors, grad), expected, strict=True):
        close(got[-last:], true, out.dtype)


@pytest.mark.usefixtures("tidy")
def test_edges_x_heads_x_dim_beyond_int32() -> None:
    """Features of so many edges; the last destinations alone hear from the last edges."""
    needs_free(60)
    edges, last = 4_400_000, 40_000  # x 8 x 64 = 2.25e9 numbers
    dst = torch.arange(edges, device="cuda") // 40
    src = torch.randint(1000, (edges,), device="cuda")
    nodes = edges // 40
    graph = ga.from_edges(torch.stack([src, dst]), num_dst=nodes, num_src=1000)
    small = ga.from_edges(
        torch.stack([src[-last:], dst[-last:] - nodes + last // 40]),
        num_dst=last // 40,
        num_src=1000,
    )
    q, k, v = (
        torch.randn(n, 8, 64, device="cuda", dtype=torch.bfloat16) for n in (nodes, 1000, 1000)
    )
    feature = torch.zeros(edges, 8, 64, device="cuda", dtype=torch.bfloat16)
    feature[-last:].normal_()
    feature.requires_grad_()
    end = feature.detach()[-last:].clone().requires_grad_()
    out = attention(q, k, v, graph, edge_key=feature, kernel="triton")[-(last // 40) :]
    truth = attention(q[-(last // 40) :], k, v, small, edge_key=end, kernel="triton")
    close(out, truth, out.dtype)
    [got] = torch.autograd.grad(out.sum(), feature)
    [true] = torch.autograd.grad(truth.sum(), end)
    close(got[-last:], true, out.dtype)
    assert not got[:-last].any()


@pytest.mark.usefixtures("tidy")
def test_memory_of_a_large_graph() -> None:
    """Inputs, outputs, gradients, indices and 3 x edges x heads floats; no edges x heads x dim."""
    graph = hubs(100_000, 5_000_000, 0.8)
    tensors = drawn(graph, 4, 32, torch.bfloat16)
    rows.cut_rows(graph), rows.cut_columns(graph)
    attention(*tensors, graph, kernel="triton").sum().backward()
    for x in tensors:
        x.grad = None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    attention(*tensors, graph, kernel="triton").sum().backward()
    peak = torch.cuda.max_memory_allocated() - before
    nodes = sum(x.nbytes for x in tensors)
    assert peak <= 3 * nodes + 3 * 4 * 4 * graph.num_edges
