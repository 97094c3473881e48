"""The kernel for intervals at sizes and in places that only a GPU has."""

from __future__ import annotations

import pytest
import torch

import graphattn as ga
from graphattn import attention, explain
from graphattn.normalizers import Softmax
from tests.kernels.test_triton_gpu import close, drawn

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# By heads, key heads and head_dim: every size of tiles.
SHAPES = [(2, 2, 64), (4, 2, 128), (1, 1, 256), (3, 3, 13)]


def documents(nodes: int) -> ga.Graph:
    """Lengths between 1 and 700, one after the other."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 700, (2 * nodes // 700,), generator=generator).tolist()
    return ga.batch([ga.causal(n) for n in sizes])


GRAPHS = {
    "window": lambda: ga.sliding_window(5000, 256),
    "causal window": lambda: ga.causal(5000) & ga.sliding_window(5000, 300),
    "prefix": lambda: ga.prefix(2000, 700),
    "documents": lambda: documents(5000),
    "more sources": lambda: ga.causal(5000).rows(3000, 3333),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", GRAPHS)
def test_agrees_with_plain_attention(name: str, dtype: torch.dtype) -> None:
    """In float64, from the same numbers."""
    graph = GRAPHS[name]().to("cuda")
    for heads, kv_heads, dim in SHAPES:
        if dtype == torch.float32 and dim > 128:
            continue
        tensors = drawn(graph, heads, dim, dtype, kv_heads)
        exact = [x.detach().double().requires_grad_() for x in tensors]
        out = attention(*tensors, graph, kernel="intervals")
        truth = attention(*exact, graph, kernel="masked")
        grad = torch.randn_like(truth)
        close(out, truth, dtype)
        got = torch.autograd.grad(out, tensors, grad.to(dtype))
        expected = torch.autograd.grad(truth, exact, grad.to(dtype).double())
        for mine, true in zip(got, expected, strict=True):
            close(mine, true, dtype)


def step(graph: ga.Graph, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Output and gradients of a call with a sink and a softcap."""
    options = {"normalizer": Softmax(0.5), "softcap": 20.0}
    out = attention(*tensors, graph, kernel="intervals", **options)
    return (out.detach(), *torch.autograd.grad(out.square().sum(), tensors))


@pytest.mark.parametrize("name", GRAPHS)
def test_same_inputs_same_bits_and_nothing_waits(name: str) -> None:
    graph = GRAPHS[name]().to("cuda")
    tensors = drawn(graph, 4, 64, torch.bfloat16, 2)
    first = step(graph, tensors)  # makes the facts of the graph, and compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = step(graph, tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))


def test_is_captured_in_a_cuda_graph() -> None:
    graph = documents(5000).to("cuda")
    tensors = drawn(graph, 4, 64, torch.bfloat16)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(graph, tensors)
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        results = step(graph, tensors)
    with torch.no_grad():
        for x in tensors:
            x.copy_(torch.randn_like(x))
    captured.replay()
    assert all(torch.equal(*pair) for pair in zip(results, step(graph, tensors), strict=True))


def test_is_compiled() -> None:
    graph = ga.sliding_window(3000, 100).to("cuda")
    tensors = drawn(graph, 4, 64, torch.float32)

    def call(q, k, v):
        return attention(q, k, v, graph, kernel="intervals")

    found = []
    for function in (call, torch.compile(call, fullgraph=True)):
        out = function(*tensors)
        found.append((out.detach(), *torch.autograd.grad(out.square().sum(), tensors)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_is_what_a_window_runs_on() -> None:
    graph = ga.sliding_window(65_536, 256).to("cuda")
    assert explain(*drawn(graph, 8, 64, torch.bfloat16), graph).kernel == "intervals"


def test_memory_of_a_long_sequence() -> None:
    """Inputs, outputs, gradients and three numbers a row and head; no index but of the rows."""
    graph = (ga.causal(200_000) & ga.sliding_window(200_000, 500)).to("cuda")
    tensors = drawn(graph, 4, 64, torch.bfloat16)
    step(graph, tensors)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    attention(*tensors, graph, kernel="intervals").sum().backward()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak <= 3 * sum(x.nbytes for x in tensors)
