"""The kernels on tensor cores at sizes and in places that only a GPU has; see `test_kernels.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import graphattn as ga
from graphattn import attention, explain
from graphattn.graphs.windows import SIZES, WINDOWS_OF_COLUMNS, WINDOWS_OF_ROWS, window_counts
from graphattn.kernels import row_windows
from graphattn.normalizers import Softmax
from tests.kernels.test_triton_gpu import close, drawn
from tests.oracle import random_edges

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
NODES = 5000
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# By heads, key heads and head_dim: every size of tiles.
SHAPES = [(2, 2, 64), (4, 2, 128), (1, 1, 256), (3, 3, 13)]


def documents(nodes: int) -> ga.Graph:
    """Lengths between 1 and 700, one after the other."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 700, (2 * nodes // 700,), generator=generator).tolist()
    return ga.batch([ga.causal(n) for n in sizes])


def hub(nodes: int) -> ga.Graph:
    """Edges drawn at random, and a node that all hear and that hears all: windows are cut."""
    drawn = random_edges(nodes, nodes, 20 * nodes)
    return (drawn & ga.complete(nodes)) | ga.hubs(nodes, [nodes // 2])


def bipartite(nodes: int) -> ga.Graph:
    drawn = random_edges(nodes // 3, nodes, 30 * nodes)
    return drawn & ga.bipartite(nodes // 3, nodes)


SHORT = ga.sliding_window(50, 2) | ga.hubs(50, [0])
GRAPHS = {
    ("intervals", "window"): lambda n: ga.sliding_window(n, 256),
    ("intervals", "causal window"): lambda n: ga.causal(n) & ga.sliding_window(n, 300),
    ("intervals", "prefix"): lambda n: ga.prefix(n // 2, n // 7),
    ("intervals", "documents"): documents,
    ("intervals", "more sources"): lambda n: ga.causal(n).rows(n // 2, n // 2 + 333),
    # Programs of which no row has a second interval, and of which none hears anybody.
    ("intervals", "global tokens"): lambda n: ga.sliding_window(n, 400) | ga.hubs(n, range(5)),
    ("intervals", "deaf"): lambda n: ga.batch([ga.bipartite(300, 0), ga.causal(n // 9), SHORT]),
    ("intervals", "sinks"): lambda n: ga.causal(n) & (ga.sliding_window(n, 99) | ga.hubs(n, [0])),
    ("row_windows", "grid"): lambda n: ga.neighborhood((n // 80, 80), 6),
    ("row_windows", "volume"): lambda n: ga.neighborhood((16, 16, n // 256), 2),
    ("row_windows", "hub"): hub,
    ("row_windows", "bipartite"): bipartite,
    ("row_windows", "molecules"): lambda n: ga.batch([ga.expander(26, 3)] * (n // 26)),
}
NAMES = list(GRAPHS)


def made(name: tuple[str, str]) -> ga.Graph:
    return GRAPHS[name](NODES).to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES, ids=" ".join)
def test_agrees_with_plain_attention(name: tuple[str, str], dtype: torch.dtype) -> None:
    """In float64, from the same numbers; with a bias of the edges in every second shape."""
    graph = made(name)
    for number, (heads, kv_heads, dim) in enumerate(SHAPES):
        if dtype == torch.float32 and dim > 128:
            continue
        tensors = drawn(graph, heads, dim, dtype, kv_heads)
        options: dict[str, Any] = {}
        if number % 2:
            bias = torch.randn(graph.num_edges, heads, device=DEVICE)
            options["bias"] = bias.to(dtype).requires_grad_()
        leaves = [*tensors, *options.values()]
        exact = [x.detach().double().requires_grad_() for x in leaves]
        out = attention(*tensors, graph, kernel=name[0], **options)
        exact_options = dict(zip(options, exact[3:]))
        truth = attention(*exact[:3], graph, kernel="masked", **exact_options)
        grad = torch.randn_like(truth)
        close(out, truth, dtype)
        got = torch.autograd.grad(out, leaves, grad.to(dtype))
        expected = torch.autograd.grad(truth, exact, grad.to(dtype).double())
        for mine, true in zip(got, expected, strict=True):
            close(mine, true, dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", [(2, 2, 64), (4, 1, 64), (2, 2, 128)], ids=str)
def test_windows_of_all_sizes(size: int, shape, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_windows, "best_size", lambda _: size)
    graph, (heads, kv_heads, dim) = made(("row_windows", "hub")), shape
    tensors = drawn(graph, heads, dim, torch.bfloat16, kv_heads)
    exact = [x.detach().double().requires_grad_() for x in tensors]
    out, truth = (
        attention(*given, graph, kernel=kernel)
        for given, kernel in ((tensors, "row_windows"), (exact, "masked"))
    )
    close(out, truth, out.dtype)
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(truth, exact, grad.double())
    for mine, true in zip(torch.autograd.grad(out, tensors, grad), expected, strict=True):
        close(mine, true, out.dtype)


def test_windows_are_those_of_the_cpu() -> None:
    """They are made on the GPU."""
    here, there = GRAPHS["row_windows", "hub"](NODES), made(("row_windows", "hub"))
    assert window_counts(here) == window_counts(there)
    for facts in (WINDOWS_OF_ROWS, WINDOWS_OF_COLUMNS):
        one, other = facts[32](here), facts[32](there)
        assert one is not None
        assert other is not None
        assert all(torch.equal(x, y.cpu()) for x, y in zip(one, other, strict=True))


def step(name: tuple[str, str], graph: ga.Graph, tensors: list[torch.Tensor]):
    """Output and gradients of a call with a sink and a softcap."""
    options = {"normalizer": Softmax(0.5), "softcap": 20.0}
    out = attention(*tensors, graph, kernel=name[0], **options)
    return (out.detach(), *torch.autograd.grad(out.square().sum(), tensors))


@pytest.mark.parametrize("name", NAMES, ids=" ".join)
def test_same_inputs_same_bits_and_nothing_waits(name: tuple[str, str]) -> None:
    graph = made(name)
    tensors = drawn(graph, 4, 64, torch.bfloat16, 2)
    first = step(name, graph, tensors)  # makes the facts of the graph, and compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = step(name, graph, tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))


@pytest.mark.parametrize("kernel", ["intervals", "row_windows"])
def test_the_choice_waits_for_nothing(kernel: str) -> None:
    """Once the facts of the graph are known."""
    graph = made(next(name for name in NAMES if name[0] == kernel))
    tensors = drawn(graph, 4, 64, torch.bfloat16)
    attention(*tensors, graph).sum().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        attention(*tensors, graph).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", [("intervals", "sinks"), ("row_windows", "hub")], ids=" ".join)
def test_dropout(name: tuple[str, str]) -> None:
    """The mean over many draws is what it is without; backward drops what forward dropped."""
    graph = made(name)
    tensors = drawn(graph, 2, 64, torch.float32)
    clean = attention(*tensors, graph, kernel=name[0])
    draws = [attention(*tensors, graph, dropout=0.3, kernel=name[0]) for _ in range(64)]
    mean = torch.stack(draws).mean(0)
    assert (mean - clean).abs().mean() < 0.15 * clean.abs().mean()
    torch.manual_seed(0)
    out = attention(*tensors, graph, dropout=0.3, kernel=name[0])
    [got] = torch.autograd.grad(out.square().sum() / 2, tensors[2])
    # The output is linear in the values: <v, dL/dv> = <out, dL/dout>.
    close((got * tensors[2]).sum()[None], out.square().sum()[None], torch.float16)


@pytest.mark.parametrize("name", [("intervals", "documents"), ("row_windows", "hub")], ids=" ".join)
def test_is_captured_in_a_cuda_graph(name: tuple[str, str]) -> None:
    graph = made(name)
    tensors = drawn(graph, 4, 64, torch.bfloat16)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(name, graph, tensors)
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        results = step(name, graph, tensors)
    with torch.no_grad():
        for x in tensors:
            x.copy_(torch.randn_like(x))
    captured.replay()
    assert all(torch.equal(*pair) for pair in zip(results, step(name, graph, tensors), strict=True))


@pytest.mark.parametrize("kernel", ["intervals", "row_windows"])
def test_is_compiled(kernel: str) -> None:
    graph = made(next(name for name in NAMES if name[0] == kernel))
    tensors = drawn(graph, 4, 64, torch.float32)

    def call(q, k, v):
        return attention(q, k, v, graph, kernel=kernel)

    found = []
    for function in (call, torch.compile(call, fullgraph=True)):
        out = function(*tensors)
        found.append((out.detach(), *torch.autograd.grad(out.square().sum(), tensors)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("graph", "kernel"),
    [
        (ga.sliding_window(65_536, 256), "intervals"),
        (ga.sliding_window(65_536, 256) | ga.hubs(65_536, [0]), "intervals"),
        (ga.neighborhood((128, 128), 6), "row_windows"),
    ],
    ids=str,
)
def test_is_what_a_graph_runs_on(graph: ga.Graph, kernel: str) -> None:
    graph = graph.to(DEVICE)
    found = explain(*drawn(graph, 8, 64, torch.bfloat16), graph)
    assert found.kernel == kernel
    assert found.expected[kernel].reuse > 10


def test_memory_of_a_long_sequence() -> None:
    """Inputs, outputs, gradients and three numbers a row and head; no index but of the rows."""
    graph = (ga.causal(200_000) & ga.sliding_window(200_000, 500)).to(DEVICE)
    tensors = drawn(graph, 4, 64, torch.bfloat16)
    name = ("intervals", "causal window")
    step(name, graph, tensors)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    attention(*tensors, graph, kernel="intervals").sum().backward()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak <= 3 * sum(x.nbytes for x in tensors)


def test_windows_take_little_memory() -> None:
    """Of an edge less than a list of it: a bit, and a share of a column."""
    graph = ga.neighborhood((256, 256), 6).to(DEVICE)
    found = WINDOWS_OF_ROWS[64](graph)
    assert found is not None
    assert sum(x.nbytes for x in found) < 4 * graph.num_edges
