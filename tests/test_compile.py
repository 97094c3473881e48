"""`torch.compile(fullgraph=True)` gives what eager gives, for the graph of this very call."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import graphattn as ga
from graphattn import attention, attention_weights
from graphattn.biases import ALiBi
from tests.oracle import (
    BIGBIRD,
    ISOLATED,
    KERNEL_NAMES,
    MIXED,
    NONE,
    PARALLEL,
    Case,
    draw,
    random_edges,
    results,
    shuffled,
)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(function, backend: str = "aot_eager", **options):
    return torch.compile(function, fullgraph=True, backend=backend, **options)


def close(got: Tensor, truth: Tensor) -> None:
    torch.testing.assert_close(got, truth, rtol=1e-4, atol=1e-5)


def check(case: Case, backend: str = "aot_eager", **options) -> None:
    """Output and gradients under compilation are those of eager."""
    inputs, again = draw(case, torch.float32), draw(case, torch.float32)
    eager = results(inputs, attention(*inputs[:4], **inputs.options))
    function = compiled(attention, backend, **options)
    for name, number in results(again, function(*again[:4], **again.options)).items():
        close(number, eager[name])


SHIFTED = ga.shifted_windows(9, 3, 1)
SPARSE = ga.causal(200) & ga.sliding_window(200, 1)  # edge by edge: too few for a mask
CASES = [
    Case("complete", ga.complete(7), batch=(2,)),
    Case("causal", ga.causal(7)),
    Case("bipartite", ga.bipartite(3, 5)),
    Case("equal blocks", ga.shifted_windows((6, 4), 2), batch=(2,)),
    Case("unequal blocks", MIXED),
    Case("masked", BIGBIRD, batch=(2,)),
    Case("isolated", ISOLATED),
    Case("reference", SPARSE),
    Case("parallel edges", PARALLEL),
    Case("no edges", NONE),
    Case("grouped", ga.causal(7), heads=4, kv_heads=2, value_dim=3),
    Case("grouped, parallel", PARALLEL, heads=4, kv_heads=2, value_dim=3),
    Case("causal, bias", ga.causal(7), bias="tensor", batch=(2,)),
    Case("blocks, bias", SHIFTED, bias="tensor, holes", batch=(2,)),
    Case("edges, bias", shuffled(BIGBIRD), bias="tensor"),
    Case("parallel, bias", PARALLEL, bias="tensor"),
    Case("causal, bias function", ga.causal(7), bias="function"),
    Case("blocks, bias function", SHIFTED, bias="function"),
    Case("edges, bias function", shuffled(BIGBIRD), bias="function, dead row"),
    Case("parallel, bias function", PARALLEL, bias="function"),
    Case("additive", ga.causal(7), score="tanh"),
    Case("own score", PARALLEL, score="function"),
    Case("negative scale", ga.causal(7), scale=-0.5),
    Case("sink", ga.causal(7), normalizer="sink"),
    Case("soft-capping", PARALLEL, softcap=2.0, bias="tensor, holes"),
    *(
        Case(name, ISOLATED, normalizer=name)
        for name in ("sigmoid", "none", "mean", "sparsemax", "entmax15", "top 2", "argmax")
    ),
]


by_name = {"ids": lambda case: case.name}


@pytest.mark.parametrize("case", CASES, **by_name)
def test_as_in_eager(case: Case) -> None:
    check(case)


# A graph of unequal blocks takes half a minute to be compiled for shapes that are not known.
DYNAMIC = ["causal", "masked", "reference", "no edges"]


@pytest.mark.parametrize("case", [case for case in CASES if case.name in DYNAMIC], **by_name)
def test_as_in_eager_with_symbolic_shapes(case: Case) -> None:
    check(case, dynamic=True)


MODULES = {
    "cosine": {"score": ga.nn.Cosine(4)},
    "bilinear": {"score": ga.nn.Bilinear(4, 4)},
    "concat": {"score": ga.nn.Concat(4, 4)},
    "GAT": {"score": ga.nn.GAT(4, 4)},
    "location": {"score": ga.nn.Location(13, 4, 4)},
    "sink": {"normalizer": ga.nn.SinkSoftmax(4), "softcap": 3.0},
    "GATv2, Gumbel": {"score": ga.nn.GATv2(4, 4), "normalizer": ga.nn.GumbelSoftmax().eval()},
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_as_in_eager(name: str) -> None:
    layer = ga.nn.GraphAttention(16, 4, **MODULES[name])
    x, graph = torch.randn(2, 13, 16), ga.sliding_window(13, 2)
    close(compiled(layer)(x, graph), layer(x, graph))


@pytest.mark.slow
def test_with_inductor() -> None:
    check(Case("inductor", PARALLEL, bias="function"), "inductor")


def tensors(graph: ga.Graph) -> list[Tensor]:
    return [torch.randn(n, 2, 4) for n in (graph.num_dst, graph.num_src, graph.num_src)]


SAME_NODES = {
    "complete": ga.complete(9),
    "causal": ga.causal(9),
    "window": ga.sliding_window(9, 2),
    "wider window": ga.sliding_window(9, 3),
    "blocks": ga.batch([ga.complete(4), ga.complete(5)]),
    "edges": random_edges(9, 9, 30),
    "other edges": shuffled(random_edges(9, 9, 30).T),
}


@pytest.mark.parametrize("kernel", ["auto", *KERNEL_NAMES])
def test_graphs_may_change_from_call_to_call(kernel: str) -> None:
    """The same shapes, other graphs, in turns: nothing of a graph is baked into the code."""
    function = compiled(attention)
    for _ in range(2):
        for graph in SAME_NODES.values():
            q, k, v = tensors(graph)
            try:
                eager = attention(q, k, v, graph, kernel=kernel)
            except ValueError:
                continue
            close(function(q, k, v, graph, kernel=kernel), eager)


NEW_GRAPHS = {
    "edge lists": lambda i: ga.from_edges(torch.randint(0, 9, (2, 20 + i)), 9),
    "windows": lambda i: ga.sliding_window(20 + i, 2),
    "rows of a causal graph": lambda i: ga.causal(40).rows(20 + i, 22 + i),
    "batches": lambda i: ga.batch([ga.causal(3 + i), ga.causal(14 - i)]),
}


@pytest.mark.parametrize("make", NEW_GRAPHS.values(), ids=NEW_GRAPHS.keys())
def test_a_new_graph_at_every_step_is_not_compiled_anew(make) -> None:
    """As in training on batches of graphs, or in generating word by word."""
    function = compiled(attention)
    with torch._dynamo.config.patch(recompile_limit=3):
        for i in range(6):
            graph = make(i)
            q, k, v = tensors(graph)
            close(function(q, k, v, graph), attention(q, k, v, graph))


class Layer(torch.nn.Module):
    """Holds its graph as an attribute, and a parameter in its bias."""

    def __init__(self, graph: ga.Graph) -> None:
        super().__init__()
        self.graph = graph
        self.table = torch.nn.Parameter(torch.randn(5, 2))

    def bias(self, dst: Tensor, src: Tensor) -> Tensor:
        return self.table[(dst - src) % 5]

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, self.graph, bias=self.bias)


def test_graph_of_a_module_may_be_exchanged() -> None:
    layer = Layer(ga.causal(9))
    function = compiled(layer)
    for graph in (*SAME_NODES.values(), ga.causal(9)):
        layer.graph = graph
        q, k, v = tensors(graph)
        layer.table.grad = None
        out = function(q, k, v)
        out.square().sum().backward()
        got, layer.table.grad = layer.table.grad, None
        eager = layer(q, k, v)
        eager.square().sum().backward()
        close(out, eager)
        close(got, layer.table.grad)


@pytest.mark.parametrize("graph", [ga.causal(9), SHIFTED, PARALLEL], ids=str)
def test_weights_and_own_biases(graph: ga.Graph) -> None:
    def function(q, k):
        return attention_weights(q, k, graph, bias=ALiBi(2))

    q, k, _ = tensors(graph)
    close(compiled(function)(q, k), function(q, k))


@pytest.mark.parametrize("graph", [ga.causal(9), SHIFTED, PARALLEL], ids=str)
def test_under_autocast(graph: ga.Graph) -> None:
    q, k, v = tensors(graph)
    function = compiled(attention)
    with torch.autocast("cpu", torch.bfloat16):
        out = function(q, k, v, graph)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out, attention(q, k, v, graph), rtol=0.02, atol=0.02)


def test_bad_input_is_an_error_of_eager() -> None:
    q, k, v = tensors(ga.causal(9))
    with pytest.raises(Exception, match="graph has 8 destination nodes but query holds 9"):
        torch.compile(attention, backend="eager")(q, k, v, ga.causal(8))


def test_graphs_of_several_sizes() -> None:
    """What is said of a kernel that is refused must not hold numbers that vary."""
    attend = torch.compile(attention, fullgraph=True)
    for n in (4000, 5000, 6000):
        q, k, v = torch.randn(3, n, 2, 8).unbind()
        graph = ga.sliding_window(n, 40)
        torch.testing.assert_close(attend(q, k, v, graph), attention(q, k, v, graph))
