"""What the CPU kernel promises beyond the table of cases: levels, threads, forks, compilers."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

import graphattn as ga
from graphattn import attention, attention_weights, explain
from graphattn.graphs.csr import compact_by_destination
from graphattn.kernels import fused
from graphattn.kernels.cpu import build, interface, library
from graphattn.kernels.cpu import kernel as cpu
from graphattn.kernels.cpu.windows import (
    windows_of_columns,
    windows_of_interval_rows,
    windows_of_rows,
)
from graphattn.normalizers import Softmax
from graphattn.scores import Additive
from tests.kernels.test_kernels import check
from tests.oracle import CASES, DTYPES, PARALLEL, Case, dense_attention, draw, random_edges

HUBS = ga.from_edges(
    # Node 0 hears 9,000 others and is heard by 7,000: several tasks in both directions.
    torch.cat(
        [
            torch.stack([torch.arange(9_000), torch.zeros(9_000, dtype=torch.int64)]),
            torch.stack([torch.zeros(7_000, dtype=torch.int64), torch.arange(7_000)]),
            torch.tensor([[1, 5, 5], [8_999, 8_998, 8_998]]),
        ],
        dim=1,
    ),
    9_000,
)


def tensors(graph: ga.Graph, heads: int = 2, dim: int = 8, **options) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    nodes = (graph.num_dst, graph.num_src, graph.num_src)
    shapes = [(n, heads, dim) for n in nodes]
    made = [torch.randn(shape, generator=generator, **options) for shape in shapes]
    return [x.requires_grad_() for x in made]


def both_ways(graph: ga.Graph, inputs: list[Tensor], **options) -> list[Tensor]:
    """Output and gradients."""
    options = {"kernel": "cpu", **options}
    out = attention(*inputs, graph, **options)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


# --- levels ---------------------------------------------------------------------------------------

TARGET = build.host()
HAS = TARGET.levels[: library.load().graphattn_level() + 1]  # of this processor
LEVELS = [level for level in HAS if TARGET.library(level).is_file()]


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: CASES[number].name)
@pytest.mark.parametrize("level", LEVELS[:-1])  # the highest is what all other tests run
def test_every_level_of_this_processor(
    level: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPHATTN_CPU_LEVEL", level)
    for dtype in {torch.float32, DTYPES[number % len(DTYPES)]}:
        check("cpu", CASES[number], dtype)


# --- long rows ------------------------------------------------------------------------------------


def one_row(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    w = (torch.einsum("hd,jhd->jh", q[0], k) * q.shape[-1] ** -0.5).softmax(0)
    return torch.einsum("jh,jhd->hd", w, v)[None]


@pytest.mark.parametrize("listed", [True, False])
def test_a_row_of_a_million_edges(listed: bool) -> None:
    n = 1_000_000
    graph = ga.bipartite(1, n)
    if listed:
        graph = ga.from_edges([torch.randperm(n).tolist(), [0] * n], num_dst=1, num_src=n)
    inputs = tensors(graph, heads=1, dim=4)
    got = both_ways(graph, inputs)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    out = one_row(*exact)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    truth = [out, *torch.autograd.grad(out, exact, grad.double())]
    for mine, theirs in zip(got, truth, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=2e-8)


@pytest.mark.parametrize("score", ["dot", "tanh"])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": True}, {"edges": True}, {"projected": True}, {"batch": True}],
    ids=str,
)
def test_hubs_are_cut_and_joined(options: dict, score: str) -> None:
    inputs, extra = tensors(HUBS, dtype=torch.float64), {}
    generator = torch.Generator().manual_seed(2)
    numbers = partial(torch.randn, generator=generator, dtype=torch.float64)
    if "bias" in options:
        extra["bias"] = numbers(HUBS.num_edges, 2).requires_grad_()
    if "edges" in options:
        extra = {
            name: numbers(HUBS.num_edges, 2, 8).requires_grad_()
            for name in ("edge_key", "edge_value")
        }
    if "projected" in options:
        features = numbers(HUBS.num_edges, 3).requires_grad_()
        extra = {
            name: ga.Projected(features, numbers(2, 8, 3).requires_grad_())
            for name in ("edge_key", "edge_value")
        }
    if "batch" in options:
        inputs = [x.detach().expand(3, *x.shape).clone().requires_grad_() for x in inputs]
    if score == "tanh":
        weight = numbers(2, 8).requires_grad_()
        extra["score"] = Additive(weight)
        leaves = [*inputs, weight]
    else:
        leaves = list(inputs)
    leaves += [x for x in extra.values() if isinstance(x, Tensor)]
    for x in extra.values():
        leaves += [x.features, x.weight] if isinstance(x, ga.Projected) else []
    results = []
    for kernel in ("cpu", "reference"):
        out = attention(*inputs, HUBS, kernel=kernel, **extra)
        grad = numbers(out.shape, generator=torch.Generator().manual_seed(3))
        results.append([out, *torch.autograd.grad(out, leaves, grad)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


# --- what is not a number -------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["query", "key", "value", "bias"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_nan_and_infinity_spread_as_in_the_reference(which: str, number: float) -> None:
    case = Case("nan", PARALLEL, bias="tensor")
    results = []
    for kernel in ("cpu", "reference"):
        inputs = draw(case, torch.float32)
        named = {"query": inputs.query, "key": inputs.key, "value": inputs.value}
        named["bias"] = inputs.options["bias"]
        changed = named[which].detach().clone()
        changed.view(-1)[21] = number
        named[which] = changed
        q, k, v, bias = named.values()
        results.append(attention(q, k, v, PARALLEL, bias=bias, kernel=kernel).detach())
    mine, theirs = results
    assert torch.equal(mine.isnan(), theirs.isnan())
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, equal_nan=True)


# --- tiles ----------------------------------------------------------------------------------------


def blocks_of_blocks(size: int, count: int) -> ga.Graph:
    """Each block of rows attends to the two blocks behind it: its rows share all sources."""
    rows = torch.arange(size * count)
    block = (rows // size)[:, None, None] + torch.tensor([1, 2])[:, None]
    src = (block % count * size + torch.arange(size)).flatten(1)
    dst = rows[:, None].expand_as(src)
    return ga.from_edges(torch.stack([src.flatten(), dst.flatten()]), size * count)


TILED = {
    "window": ga.sliding_window(200, 20),
    "causal window, prime": ga.causal(131) & ga.sliding_window(131, 40),
    "more sources": ga.bipartite(37, 150),
    "grid": ga.neighborhood((15, 14), 3),
    "blocks": blocks_of_blocks(24, 5),
    "parallel edges": ga.from_edges(torch.arange(60).repeat(2, 40), 60) | blocks_of_blocks(20, 3),
}
TILED["every edge twice"] = ga.from_edges(
    torch.cat([TILED["blocks"].edge_index, TILED["blocks"].edge_index], 1), 120
)


def both_kinds_of_windows(graph: ga.Graph) -> bool:
    """Whether rows or intervals are in windows."""
    return len(windows_of_rows(graph).window) > 0 or len(windows_of_interval_rows(graph).window) > 0


@pytest.mark.parametrize("normalizer", ["softmax", "sink", "sigmoid", "none"])
@pytest.mark.parametrize("sizes", [(4, 4, 32, 32), (4, 2, 64, 24), (2, 1, 7, 100)], ids=str)
@pytest.mark.parametrize("name", TILED)
def test_tiles_agree_with_the_reference(name: str, sizes: tuple[int, ...], normalizer: str) -> None:
    graph, (heads, kv_heads, dim, value_dim) = TILED[name], sizes
    assert both_kinds_of_windows(graph)
    numbers = partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = [
        numbers(2, graph.num_dst, heads, dim).requires_grad_(),
        numbers(2, graph.num_src, kv_heads, dim).requires_grad_(),
        numbers(2, graph.num_src, kv_heads, value_dim).requires_grad_(),
    ]
    options: dict = {"normalizer": normalizer, "softcap": 3.0 if dim == 7 else None}
    if normalizer == "sink":
        sink = numbers(heads).requires_grad_()
        inputs, options["normalizer"] = [*inputs, sink], Softmax(sink)
    found = []
    for kernel in ("cpu", "reference"):
        out = attention(*inputs[:3], graph, kernel=kernel, **options)
        grad = torch.ones_like(out).cumsum(-1)
        found.append([out, *torch.autograd.grad(out, inputs, grad)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9 * theirs.abs().max().item())


@pytest.mark.parametrize("which", range(4), ids=["query", "key", "value", "gradient"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["window", "grid", "more sources"])
def test_in_a_tile_nan_and_infinity_reach_those_who_attend(
    name: str, number: float, which: int
) -> None:
    """Other rows of the tile have a weight of 0 there, and 0 times infinity is NaN."""
    graph = TILED[name]
    inputs = tensors(graph)
    grad = torch.randn(inputs[0].shape)
    with torch.no_grad():
        (*inputs, grad)[which][5, 1, 3] = number
    found = []
    for kernel in ("cpu", "reference"):
        out = attention(*inputs, graph, kernel=kernel)
        found.append([out, *torch.autograd.grad(out, inputs, grad)])
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine.isfinite(), theirs.isfinite())
        finite = theirs.isfinite()
        torch.testing.assert_close(mine[finite], theirs[finite], rtol=1e-4, atol=1e-5)


def test_rows_that_share_no_sources_are_in_no_windows() -> None:
    for graph in (random_edges(3_000, 3_000, 9_000), ga.sliding_window(64, 0)):
        assert not both_kinds_of_windows(graph)
        assert not len(windows_of_columns(graph).window)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_values_without_numbers_pass_nothing_back(dropout: float) -> None:
    q, k, v = torch.randn(20, 2, 8), torch.randn(20, 2, 8), torch.randn(20, 2, 0)
    inputs = [x.requires_grad_() for x in (q, k, v, torch.randn(PARALLEL.num_edges, 2))]
    graph = ga.from_edges(PARALLEL.edge_index % 20, 20)
    out = attention(*inputs[:3], graph, bias=inputs[3], dropout=dropout, kernel="cpu")
    assert out.shape == (20, 2, 0)
    for grad in torch.autograd.grad(out.sum(), inputs):
        assert not grad.any()


# --- edges by row ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 1_023, 1_024, 1_025, 5_000])
@pytest.mark.parametrize("edges", [0, 1, 9_000])
def test_edges_are_grouped_in_their_order(rows: int, edges: int) -> None:
    index = torch.randint(rows, (2, edges))
    found = compact_by_destination(ga.from_edges(index, rows))
    order = index[1].sort(stable=True).indices
    assert torch.equal(found.index.long(), index[0][order])
    assert torch.equal(found.ptr.diff(), index[1].bincount(minlength=rows))
    if found.edge is not None:
        assert torch.equal(found.edge.long(), order)


def test_the_struct_of_a_call_is_as_long_in_python() -> None:
    assert interface.entry("call_bytes")() == interface.CALL_BYTES


# --- threads and processes ------------------------------------------------------------------------


@pytest.fixture
def num_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("graph", [HUBS, random_edges(3_000, 2_000, 60_000)], ids=str)
def test_same_bits_on_any_number_of_threads(graph: ga.Graph, num_threads) -> None:
    inputs, found = tensors(graph, heads=4, dim=16), []
    for count in (1, 2, 3, 2):
        num_threads(count)
        found.append(both_ways(graph, inputs))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_calls_from_several_threads_at_once(num_threads) -> None:
    num_threads(2)
    graphs = [random_edges(2_000, 2_000, 30_000 + count) for count in range(4)]
    inputs = [tensors(graph, heads=4, dim=16) for graph in graphs]
    alone = [both_ways(*pair) for pair in zip(graphs, inputs)]
    together: list = [None] * len(graphs)

    def work(number: int) -> None:
        for _ in range(5):
            together[number] = both_ways(graphs[number], inputs[number])

    workers = [threading.Thread(target=work, args=(number,)) for number in range(len(graphs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for mine, theirs in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_attends_after_its_parent_did(num_threads) -> None:
    num_threads(2)
    graph = random_edges(2_000, 2_000, 60_000)
    inputs = tensors(graph, heads=4, dim=16)
    expected = both_ways(graph, inputs)
    loader = torch.utils.data.DataLoader(
        _Attends(graph, [x.detach() for x in inputs]), num_workers=1, batch_size=None, timeout=60
    )
    (out,) = loader
    torch.testing.assert_close(out, expected[0])


class _Attends(torch.utils.data.Dataset):
    def __init__(self, graph: ga.Graph, inputs: list[Tensor]) -> None:
        self.graph, self.inputs = graph, inputs

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _: int) -> Tensor:
        torch.set_num_threads(2)  # a worker of a DataLoader begins with one
        return attention(*self.inputs, self.graph, kernel="cpu")


# --- the library is missing -----------------------------------------------------------------------


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "missing", lambda: "it is missing; build it")
    cpu._warn.cache_clear()
    graph = ga.expander(4_000, 4)
    inputs = tensors(graph)
    with pytest.warns(UserWarning, match="without its kernel for the CPU: it is missing; build it"):
        plan = explain(*inputs, graph)
    assert plan.kernel == "reference"
    assert plan.rejected["cpu"] == "it is missing; build it"
    with warnings.catch_warnings():  # once is enough
        warnings.simplefilter("error")
        assert attention(*inputs, graph).isfinite().all()
    with pytest.raises(ValueError, match=r'"cpu" can\'t .* it is missing; build it'):
        attention(*inputs, graph, kernel="cpu")


# --- dropout --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "graph", [PARALLEL, ga.sliding_window(40, 3), random_edges(50, 60, 700)], ids=str
)
@pytest.mark.parametrize("score", ["dot", "leaky_relu"])
def test_dropout_is_the_same_backward(graph: ga.Graph, score: str) -> None:
    """The output is linear in the values, and its gradients are those of what was computed."""
    inputs = tensors(graph, dtype=torch.float64)
    options = {"score": Additive(torch.ones(2, 8).double(), "leaky_relu")} if score != "dot" else {}

    def call(*tensors: Tensor) -> Tensor:
        torch.manual_seed(7)
        return attention(*tensors, graph, dropout=0.4, kernel="cpu", **options)

    assert torch.equal(call(*inputs), call(*inputs))
    torch.manual_seed(8)
    assert not torch.equal(
        call(*inputs), attention(*inputs, graph, dropout=0.4, kernel="cpu", **options)
    )
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


def test_dropout_keeps_the_mean() -> None:
    graph = ga.bipartite(2_000, 50)
    q, k = torch.zeros(2_000, 1, 1), torch.zeros(50, 1, 1)
    out = attention(q, k, torch.ones(50, 1, 1), graph, dropout=0.3, kernel="cpu")
    assert abs(float(out.mean()) - 1) < 0.02
    # Each output is the share of 50 weights that are left, over 0.7.
    assert abs(float((0.7 * out).var()) - 0.7 * 0.3 / 50) < 5e-4


# --- PyTorch --------------------------------------------------------------------------------------


OPERATOR_CALLS: dict[str, Callable[[], Tensor]] = {
    "list": lambda: attention(*tensors(PARALLEL), PARALLEL, kernel="cpu"),
    "interval": lambda: attention(*tensors(WINDOW), WINDOW, kernel="cpu"),
    "bias": lambda: attention(
        *tensors(PARALLEL), PARALLEL, bias=torch.randn(150, 2, requires_grad=True), kernel="cpu"
    ),
    "edges": lambda: attention(
        *tensors(PARALLEL),
        PARALLEL,
        edge_key=torch.randn(150, 2, 8, requires_grad=True),
        edge_value=torch.randn(150, 2, 8, requires_grad=True),
        score=Additive(torch.randn(2, 8, requires_grad=True)),
        kernel="cpu",
    ),
    "projected": lambda: attention(
        *tensors(PARALLEL),
        PARALLEL,
        edge_key=ga.Projected(PARALLEL_FEATURES, torch.randn(2, 8, 3, requires_grad=True)),
        edge_value=ga.Projected(PARALLEL_FEATURES, torch.randn(2, 8, 3, requires_grad=True)),
        kernel="cpu",
    ),
    "weights": lambda: attention_weights(*tensors(PARALLEL)[:2], PARALLEL, kernel="cpu"),
    "sink": lambda: attention(
        *tensors(PARALLEL),
        PARALLEL,
        normalizer=Softmax(torch.randn(2, requires_grad=True)),
        softcap=2.0,
        kernel="cpu",
    ),
    "sigmoid": lambda: attention(*tensors(WINDOW), WINDOW, normalizer="sigmoid", kernel="cpu"),
}
WINDOW = ga.sliding_window(20, 2)
PARALLEL_FEATURES = torch.randn(150, 3, requires_grad=True)


@pytest.mark.parametrize("call", OPERATOR_CALLS.values(), ids=OPERATOR_CALLS.keys())
def test_opcheck(call: Callable[[], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list = []

    def record(*args):
        seen.append(args)
        return fused._attend(*args)

    monkeypatch.setattr(fused, "_is_traced", lambda tensors: True)
    monkeypatch.setattr(fused, "attend_op", record)
    call()
    monkeypatch.undo()
    (args,) = seen
    torch.library.opcheck(fused.attend_op, args)


@pytest.mark.parametrize("traced", [False, True])
def test_a_second_derivative_is_refused(traced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if traced:
        monkeypatch.setattr(fused, "_is_traced", lambda tensors: True)
    inputs = tensors(PARALLEL, dtype=torch.float64)
    out = attention(*inputs, PARALLEL, kernel="cpu")
    (first,) = torch.autograd.grad(out.square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(NotImplementedError, match='no second derivative; name kernel="reference"'):
        first.sum().backward()


def test_compiled_as_a_whole() -> None:
    graph = ga.expander(3_000, 4)
    layer = ga.nn.GraphAttention(16, 2, score=Additive(torch.randn(2, 8)))
    x = torch.randn(2, 3_000, 16, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for kernel in (layer, compiled):
        assert explain(*tensors(graph), graph).kernel == "cpu"
        torch.testing.assert_close(kernel(x, graph), layer(x, graph))
    (mine,) = torch.autograd.grad(compiled(x, graph).square().sum(), x)
    (theirs,) = torch.autograd.grad(layer(x, graph).square().sum(), x)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


# --- memory ---------------------------------------------------------------------------------------


def test_intervals_are_never_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        type(graph := ga.sliding_window(3_000, 40)), "edges", lambda self: pytest.fail("listed")
    )
    inputs = tensors(graph)
    got = both_ways(graph, inputs, kernel="auto")
    assert explain(*inputs, graph).kernel == "cpu"
    monkeypatch.undo()
    exact = [x.detach().double().requires_grad_() for x in inputs]
    out = dense_attention(*exact, ga.sliding_window(3_000, 40)).out
    torch.testing.assert_close(got[0].double(), out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_symmetric_graph_is_its_own_transpose(dropout: float) -> None:
    """So nothing is made of its edges by source, unless their places in edge order matter."""
    graph = ga.expander(300, 6, seed=0)
    inputs = tensors(graph)
    torch.manual_seed(0)
    got = both_ways(graph, inputs, dropout=dropout)
    by_source = "_kept_graphattn_graphs_csr_compact_by_source"
    assert (by_source in graph.__dict__) is (dropout > 0)
    plain = ga.from_edges(graph.edge_index, 300)
    torch.manual_seed(0)
    for mine, theirs in zip(got, both_ways(plain, inputs, dropout=dropout), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_projected_features_under_dropout() -> None:
    """The same weights are dropped, whether features of edges are written out or not."""
    generator = torch.Generator().manual_seed(0)
    numbers = partial(torch.randn, generator=generator, dtype=torch.float64)
    features, inputs = numbers(PARALLEL.num_edges, 3), tensors(PARALLEL, dtype=torch.float64)
    maps = [numbers(2, 8, 3) for _ in range(2)]
    leaves = [x.requires_grad_() for x in (features, *maps)]
    results = []
    for written_out in (False, True):
        key, value = (ga.Projected(features, weight) for weight in maps)
        given = [x.dense() if written_out else x for x in (key, value)]
        torch.manual_seed(0)
        options = {"edge_key": given[0], "edge_value": given[1], "dropout": 0.5}
        out = attention(*inputs, PARALLEL, kernel="cpu", **options)
        grads = torch.autograd.grad(out.square().sum(), [*inputs, *leaves])
        results.append([out, *grads])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
