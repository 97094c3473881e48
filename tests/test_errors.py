"""Bad input: what was expected, what came, what to do; never an error from inside of torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy
import pytest
import torch
from torch import Tensor

import graphattn as ga
from graphattn import attention, attention_weights, explain
from graphattn.normalizers import Gumbel, Softmax, TopK
from graphattn.scores import GAT, Additive, Bilinear, Concat, Location

GRAPH = ga.sliding_window(5, 1)  # 13 edges
EDGES = ga.from_edges([[0, 1, 2], [1, 2, 3]], 5)
Q = torch.zeros(5, 4, 8)
NAN = float("nan")


def x(*shape: int, **options) -> Tensor:
    return torch.zeros(*shape, **options)


def call(q=Q, k=Q, v=Q, graph=GRAPH, **options) -> Tensor:
    return attention(q, k, v, graph, **options)


def same(tensor: Tensor, **options) -> Tensor:
    return call(tensor, tensor, tensor, **options)


NO_TENSOR = {
    "query, a list": (lambda: call(q=[[[0.0]]]), "query must be a tensor, got list; use torch.as"),
    "query, an array": (
        lambda: call(q=numpy.zeros((5, 4, 8), dtype=numpy.float32)),
        "query must be a tensor, got ndarray; use torch.as_tensor",
    ),
    "key, None": (lambda: call(k=None), "key must be a tensor, got NoneType"),
    "value, a number": (lambda: call(v=1.0), "value must be a tensor, got float"),
    "graph, edge_index": (
        lambda: call(graph=torch.tensor([[0, 1], [1, 2]])),
        r"graph must be a graphattn graph, got Tensor; .* from_edges\(edge_index, num_nodes\)",
    ),
    "graph, None": (lambda: call(graph=None), "graph must be a graphattn graph, got NoneType"),
    "graph, the function": (lambda: call(graph=ga.causal), "got function"),
    "graph and value exchanged": (lambda: call(v=GRAPH, graph=Q), "value must be a tensor, got Sl"),
    "bias, a list": (lambda: call(bias=[1.0]), r"\(E, heads\) tensor or a function .*, got \[1.0"),
    "bias, a number": (lambda: call(bias=0.5), r"\(E, heads\) tensor or a function .*, got 0.5"),
    "score": (lambda: call(score=3), r"score must be a name or a function \(q_i, k_j, edge\), got"),
    "normalizer": (lambda: call(normalizer=3), "normalizer must be a name or a function .*, got 3"),
    "sparse": (lambda: call(q=Q.to_sparse()), r"query must be dense, got .*; use query.to_dense"),
}

DTYPES = {
    "integers": (lambda: same(Q.long()), r"floating dtype, got torch.int64; use query.float\(\)"),
    "booleans": (lambda: same(Q.bool()), "floating dtype, got torch.bool"),
    "complex": (lambda: same(Q.cfloat()), "floating dtype, got torch.complex64"),
    "mixed": (
        lambda: call(k=Q.double()),
        r"one dtype, got torch.float32 and torch.float64; use key.to\(torch.float32\)",
    ),
    "mixed value": (lambda: call(v=Q.half()), r"got .*32 and .*16; use value.to\(torch.float32\)"),
    "integer bias": (
        lambda: call(bias=x(13, 4, dtype=torch.int64)),
        r"bias must be of a floating dtype, got torch.int64; use bias.float\(\)",
    ),
    "features of edges of integers": (
        lambda: call(edge_key=x(13, 4, 8, dtype=torch.int64)),
        r"edge_key must be of a floating dtype, got torch.int64; use edge_key.float\(\)",
    ),
    "features of edges of another dtype": (
        lambda: call(edge_value=x(13, 4, 8, dtype=torch.float64)),
        "query and edge_value must have one dtype, got torch.float32 and torch.float64",
    ),
    "projected features without a weight": (
        lambda: call(edge_key=ga.Projected(x(13, 3), None)),  # pyright: ignore
        "edge_key.weight must be a tensor, got NoneType",
    ),
    "boolean bias": (lambda: call(bias=x(13, 4, dtype=torch.bool)), "got torch.bool"),
    "bias returns integers": (
        lambda: call(bias=lambda dst, src: (dst - src)[:, None]),
        r"bias\(dst, src\) must return a floating tensor, got torch.int64",
    ),
    "bias returns booleans": (
        lambda: call(bias=lambda dst, src: (dst > src)[:, None]),
        r"bias\(dst, src\) must return a floating tensor, got torch.bool",
    ),
    "bias returns nothing": (
        lambda: call(bias=lambda dst, src: None),
        r"bias\(dst, src\) must return a floating tensor, got NoneType",
    ),
    "score returns nothing": (
        lambda: call(score=lambda q_i, k_j, edge: None),
        r"score\(q_i, k_j, edge\) must return a floating tensor, got NoneType",
    ),
    "normalizer returns nothing": (
        lambda: call(normalizer=lambda logits, csr: None),
        r"normalizer\(logits, csr\) must return a floating tensor, got NoneType",
    ),
}

SHAPES = {
    "no dimension": (lambda: call(q=torch.tensor(0.0)), r"shape \(\*batch, nodes, heads, head_dim"),
    "two dimensions": (
        lambda: same(x(5, 8)),
        r"\(\*batch, nodes, heads, head_dim\), got \(5, 8\); query.unsqueeze\(-2\) has a single",
    ),
    "two dimensions of value": (lambda: call(v=x(5, 8)), r"value must have shape .* got \(5, 8\)"),
    "query nodes": (
        lambda: call(q=x(6, 4, 8)),
        "graph has 5 destination nodes but query holds 6 .* build the graph with num_dst=6",
    ),
    "key nodes": (
        lambda: call(k=x(6, 4, 8), v=x(6, 4, 8)),
        "graph has 5 source nodes but key holds 6 .* build the graph with num_src=6",
    ),
    "heads before nodes": (
        lambda: same(x(2, 4, 5, 8)),
        r"5 destination nodes but query holds 4 \(shape \(2, 4, 5, 8\), nodes third from the end",
    ),
    "roles of a bipartite graph": (
        lambda: call(q=x(3, 4, 8), graph=ga.bipartite(5, 3)),
        "graph has 5 destination nodes but query holds 3",
    ),
    "value nodes": (
        lambda: call(v=x(4, 4, 8)),
        r"key and value must agree in all but the last .* got \(5, 4, 8\) and \(4, 4, 8\)",
    ),
    "value heads": (lambda: call(v=x(5, 2, 8)), "key and value must agree in all but the last"),
    "batch of value": (lambda: call(v=x(2, 5, 4, 8)), "key and value must agree in all but"),
    "batch": (
        lambda: call(x(2, 5, 4, 8), x(3, 5, 4, 8), x(3, 5, 4, 8)),
        r"leading batch dimensions, got \(2,\) and \(3,\); expand\(\) the smaller",
    ),
    "batch of query alone": (lambda: call(q=x(2, 5, 4, 8)), r"got \(2,\) and \(\); expand\(\)"),
    "head_dim": (lambda: call(k=x(5, 4, 7)), "query and key must have one head_dim, got 8 and 7"),
    "head_dim 0": (lambda: same(x(5, 4, 0)), "heads and head_dim must be positive, got query"),
    "no heads": (lambda: same(x(5, 0, 8)), "heads and head_dim must be positive, got query"),
    "heads that don't divide": (
        lambda: call(k=x(5, 3, 8), v=x(5, 3, 8)),
        "heads of query must be a multiple of those of key, got 4 and 3, each second from the end",
    ),
    "more key heads": (lambda: call(k=x(5, 8, 8), v=x(5, 8, 8)), "multiple .* got 4 and 8"),
    "no key heads": (lambda: call(k=x(5, 0, 8), v=x(5, 0, 8)), "multiple .* got 4 and 0"),
    "bias of other edges": (
        lambda: call(bias=x(12, 4)),
        r"bias must have shape \(13, 4\), \(E, heads\) in edge order, .* got \(12, 4\)",
    ),
    "bias of other heads": (lambda: call(bias=x(13, 3)), r"shape \(13, 4\), .* got \(13, 3\)"),
    "bias per edge": (lambda: call(bias=x(13)), r"shape \(13, 4\), .* got \(13,\)"),
    "bias of all pairs": (
        lambda: call(bias=x(4, 5, 5)),
        r"got \(4, 5, 5\); a bias of all pairs is a function, lambda dst, src: table\[dst, src\]",
    ),
    "bias of a batch, query of none": (lambda: call(bias=x(2, 13, 4)), r"got \(2, 13, 4\)"),
    "bias of another batch": (
        lambda: same(x(3, 5, 4, 8), bias=x(2, 13, 4)),
        r"batch dimensions \(2,\) of bias don't fit those of query, \(3,\)",
    ),
    "features of edges without heads": (
        lambda: call(edge_key=x(13, 8)),
        r"edge_key must have shape \(\*batch, E, heads, head_dim\), got \(13, 8\); edge_key.unsq",
    ),
    "features of other edges": (
        lambda: call(edge_key=x(12, 4, 8)),
        r"edge_key must have shape \(13, 4, 8\), .* in edge order, .* got \(12, 4, 8\)",
    ),
    "projected features of other edges": (
        lambda: call(edge_key=ga.Projected(x(12, 3), x(4, 8, 3))),
        r"edge_key.features must have shape \(13, edge_dim\), .* got \(12, 3\)",
    ),
    "projected features of another width": (
        lambda: call(edge_value=ga.Projected(x(13, 3), x(4, 8, 2))),
        r"edge_value.weight must have shape \(4, 8, 3\), .* got \(4, 8, 2\)",
    ),
    "features of query heads": (
        lambda: call(k=x(5, 2, 8), v=x(5, 2, 3), edge_value=x(13, 4, 3)),
        r"edge_value must have shape \(13, 2, 3\), \(E, kv_heads, dim\) .* got \(13, 4, 3\)",
    ),
    "features of another batch": (
        lambda: same(x(3, 5, 4, 8), edge_value=x(2, 13, 4, 8)),
        r"batch dimensions \(2,\) of edge_value don't fit those of query, \(3,\)",
    ),
    "bias returns other pairs": (
        lambda: call(graph=EDGES, bias=lambda dst, src: x(2, 4), kernel="reference"),
        r"bias\(dst, src\) must return \(3, 4\) for 3 pairs and 4 heads, got \(2, 4\)",
    ),
    "bias returns no heads": (
        lambda: call(graph=EDGES, bias=lambda dst, src: x(len(dst)), kernel="masked"),
        r"bias\(dst, src\) must return \(25, 4\) for 25 pairs and 4 heads, got \(25,\)",
    ),
    "score keeps head_dim": (
        lambda: call(graph=EDGES, score=lambda q_i, k_j, edge: q_i * k_j),
        r"score\(q_i, k_j, edge\) must return \(3, 4\), .* got \(3, 4, 8\)",
    ),
    "weight of an additive score": (
        lambda: call(score=Additive(x(3, 8))),
        r"additive score must be \(heads, head_dim\), here \(4, 8\), got \(3, 8\)",
    ),
    "weight of a bilinear score": (
        lambda: call(score=Bilinear(x(4, 7, 8))),
        r"bilinear score must be \(heads, query_dim, key_dim\), here \(4, 8, 8\), got \(4, 7, 8\)",
    ),
    "key weight of a concat score": (
        lambda: call(score=Concat(x(4, 8, 3), x(4, 7, 3), x(4, 3))),
        r"the key of a concat score must be \(heads, dim, hidden\), here \(4, 8, 3\)",
    ),
    "weight of a GAT score": (
        lambda: call(score=GAT(x(4, 8), x(4, 7))),
        r"a GAT score must be \(heads, head_dim\), here \(4, 8\), got \(4, 7\)",
    ),
    "too few locations": (
        lambda: call(score=Location(x(3, 4, 8))),
        r"of 3 places can't tell 5 sources apart; build it with num_nodes=5",
    ),
    "locations with features": (
        lambda: call(graph=EDGES, score=Location(x(5, 4, 8)), edge_key=x(3, 4, 8)),
        "takes no features of edges; leave out edge_key",
    ),
    "sink of other heads": (
        lambda: call(normalizer=Softmax(x(3))),
        r"sink must be a number or a floating tensor \(heads,\), here \(4,\), got \(3,\)",
    ),
    "sink elsewhere": (
        lambda: call(normalizer=Softmax(x(4, device="meta"))),
        r"sink is on meta but query on cpu; use sink.to\(\"cpu\"\)",
    ),
    "infinite sink": (
        lambda: call(normalizer=Softmax(math.inf)),
        "sink must be a finite number or a tensor",
    ),
    "softcap of 0": (lambda: call(softcap=0.0), "softcap must be a positive finite float or None"),
    "top 0": (lambda: call(normalizer=TopK(0)), "k must be between 1 and"),
    "cold Gumbel": (lambda: call(normalizer=Gumbel(0.0)), "temperature must be above 0, got 0.0"),
    "normalizer loses heads": (
        lambda: call(graph=EDGES, normalizer=lambda logits, csr: logits[:, :1]),
        r"normalizer\(logits, csr\) must return \(3, 4\), .* got \(3, 1\)",
    ),
}

DEVICES = {
    "key": (lambda: call(k=Q.to("meta")), r'one device, got cpu and meta; use key.to\("cpu"\)'),
    "value": (lambda: call(v=Q.to("meta")), r"one device, got cpu and meta; use value.to"),
    "graph": (
        lambda: same(Q.to("meta"), graph=EDGES),
        r'edge list is on cpu but query is on meta; use graph.to\("meta"\), once, before',
    ),
    "union with an edge list": (
        lambda: same(Q.to("meta"), graph=EDGES | GRAPH),
        r'is on cpu but query is on meta; use graph.to\("meta"\)',
    ),
    "bias": (
        lambda: call(bias=x(13, 4, device="meta")),
        r'bias is on meta but query on cpu; use bias.to\("cpu"\)',
    ),
    "bias function": (
        lambda: call(bias=lambda dst, src: x(len(dst), 4, device="meta")),
        r"bias\(dst, src\) must return a tensor on cpu, where its arguments are, got one on meta",
    ),
}

NUMBERS = {
    "scale NaN": (lambda: call(scale=NAN), "scale must be a finite float, got nan"),
    "scale inf": (lambda: call(scale=-float("inf")), "scale must be a finite float, got -inf"),
    "scale, words": (lambda: call(scale="0.5"), "scale must be a finite float, got '0.5'"),
    "scale, a parameter": (
        lambda: call(scale=torch.tensor(0.5)),
        r"finite float, got tensor\(0.5000\); multiply query by a factor that is a tensor",
    ),
    "dropout 1": (lambda: call(dropout=1.0), "dropout must be at least 0 and below 1, got 1.0"),
    "dropout below 0": (lambda: call(dropout=-0.1), "dropout must be at least 0 .* got -0.1"),
    "dropout NaN": (lambda: call(dropout=NAN), "dropout must be at least 0 .* got nan"),
    "dropout None": (lambda: call(dropout=None), "dropout must be at least 0 .* got None"),
    "dropout, a percentage": (lambda: call(dropout=10), "dropout must be at least 0 .* got 10"),
}

NAMES = {
    "kernel": (
        lambda: call(kernel="flash"),
        r'kernel must be "auto" or one of "dense", .*"reference".*, got \'flash\'',
    ),
    "kernel None": (lambda: call(kernel=None), 'kernel must be "auto" or one of .* got None'),
    "score": (
        lambda: call(score="dto"),
        r"score must be one of \['cosine', 'dot', 'uniform'\] or a function, got 'dto",
    ),
    "normalizer": (
        lambda: call(normalizer="softmin"),
        r"normalizer must be one of \['argmax', .*\] or a function, got 'softmin'",
    ),
    "activation": (
        lambda: Additive(x(4, 8), "relu"),
        'activation must be "tanh" or "leaky_relu", got \'relu\'',
    ),
    "kernel that can't": (
        lambda: call(kernel="dense"),
        r'"dense" can\'t compute this: .* neither complete nor causal; kernel="auto" takes one',
    ),
    "kernel without weights": (
        lambda: attention_weights(Q, Q, ga.causal(5), kernel="dense"),
        r'kernel "dense" does not compute weights; use kernel="auto"',
    ),
    "kernel of weights": (
        lambda: attention_weights(Q, Q, GRAPH, kernel="flash"),
        r'kernel must be "auto" or one of .*, got \'flash\'',
    ),
    "too many edges": (
        lambda: attention_weights(
            *[x(1, 1, 1).expand(1_000_000, 1, 1)] * 2, ga.complete(1_000_000)
        ),
        r"no kernel can .* reference: the gathered pairs take 68 TB, and .* are free; take fewer",
    ),
}

KINDS = [
    (TypeError, NO_TENSOR),
    (TypeError, DTYPES),
    (ValueError, SHAPES),
    (ValueError, DEVICES),
    (ValueError, NUMBERS),
    (ValueError, NAMES),
]
TABLE = [
    pytest.param(bad, kind, match, id=f"{kind.__name__}-{name}")
    for kind, table in KINDS
    for name, (bad, match) in table.items()
]


@pytest.mark.parametrize(("bad", "kind", "match"), TABLE)
def test_bad_input(bad: Callable[[], object], kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match) as caught:
        bad()
    assert type(caught.value) is kind
    last = caught.traceback[-1].path  # raised by our own lines, not inside of torch
    assert "graphattn" in str(last)


@pytest.mark.parametrize("function", [attention_weights, explain])
def test_the_other_functions_check_alike(function) -> None:
    given = (Q, Q, Q, GRAPH) if function is explain else (Q, Q, GRAPH)
    with pytest.raises(ValueError, match="scale must be a finite float"):
        function(*given, scale=NAN)
    with pytest.raises(TypeError, match="query must be a tensor"):
        function([0.0], *given[1:])
    with pytest.raises(ValueError, match="5 destination nodes but query holds 6"):
        function(x(6, 4, 8), *given[1:])


@pytest.mark.parametrize("bad", [Q.long(), [0.0]], ids=["integers", "list"])
def test_autocast_hides_nothing(bad) -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match="query must be"):
        call(q=bad)
