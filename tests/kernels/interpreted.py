"""The GPU kernel in Triton's interpreter; `test_interpreted.py` runs this in a process with
TRITON_INTERPRET=1, which must be set before Triton is imported.

A program takes milliseconds here, so of the shared table there are the small cases that show a
feature each, in float32, and some in every other dtype; a GPU runs all of it (`test_kernels.py`).
"""

from __future__ import annotations

import os

import pytest
import torch

import graphattn as ga
from graphattn import attention, attention_weights, explain
from graphattn.graphs import rows
from graphattn.kernels import triton
from graphattn.kernels.fused import attend_op
from tests.kernels.dropout import check_dropout
from tests.kernels.test_kernels import BY_NAME, TINY, check, run, tiny_call
from tests.oracle import PARALLEL, Case, draw, random_edges, results

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="is run by test_interpreted.py"
)

WIDE, FINE, HALF, SHORT = torch.float32, torch.float64, torch.float16, torch.bfloat16
SHARED = {
    WIDE: [
        "complete, size 0",
        "no sources",
        "no destinations",
        "causal transposed",
        "sliding window",
        "parallel edges",
        "no edges",
        "batch of 0, causal",
        "grouped heads, isolated nodes",
        "one key head, parallel edges",
        "head_dim 1, causal",
        "head_dim 13, causal",
        "strided, causal",
        "heads first, mixed blocks",
        "large logits, parallel edges",
        "negative scale, large logits, causal",
        "bias, isolated nodes",
        "bias with holes, parallel edges",
        "bias with dead rows, causal",
        "additive tanh, causal",
        "additive leaky_relu, parallel edges",
        "edge features, causal",
        "edge values, parallel edges",
        "edge features, tanh, causal",
        "edge features, leaky_relu, parallel edges",
        "own score, causal",
        "sink, causal",
        "sink, bias with dead rows, isolated nodes",
        "soft-capping, isolated nodes",
        "soft-capping, large logits, causal",
        "sigmoid, causal",
        "sigmoid, bias with holes, isolated nodes",
        "none, isolated nodes",
        "none, bias with holes, causal",
        "top 2, holes, window",
    ],
    FINE: [
        "soft-capping, tanh, causal",
        "one key head, causal",
        "large logits, isolated nodes",
        "additive leaky_relu, causal",
    ],
    HALF: [
        "wide bias, causal",
        "entmax15, holes, window",
        "edge features, isolated nodes",
    ],
    SHORT: ["grouped heads, causal", "large logits, causal", "additive tanh, isolated nodes"],
}


@pytest.mark.parametrize(
    ("dtype", "name"), [(dtype, name) for dtype, names in SHARED.items() for name in names], ids=str
)
def test_holds_to_the_tolerance(dtype: torch.dtype, name: str) -> None:
    inputs = draw(BY_NAME[name], dtype)
    assert "triton" in explain(*inputs[:4], **inputs.options).rejected
    check("triton", BY_NAME[name], dtype)


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are cut after every fourth edge; for graphs that are made in the test."""
    monkeypatch.setattr(rows, "LONGEST", 4)


CUT = {
    "edges": (lambda: random_edges(4, 6, 40), {"bias": "tensor, batched, holes", "batch": (2,)}),
    "grouped": (
        lambda: random_edges(4, 6, 40),
        {"edges": "key value", "heads": 6, "kv_heads": 2, "value_dim": 5},
    ),
    "additive": (lambda: random_edges(4, 6, 40), {"edges": "key", "score": "tanh", "batch": (2,)}),
    "intervals": (lambda: ga.sliding_window(9, 4), {"spread": 4096, "heads": 3}),
    "sink": (lambda: random_edges(4, 6, 40), {"normalizer": "sink", "softcap": 2.0}),
    "sigmoid": (lambda: random_edges(4, 6, 40), {"normalizer": "sigmoid", "edges": "value"}),
    "none": (lambda: ga.sliding_window(9, 4), {"normalizer": "none", "heads": 1}),
}


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, WIDE) for name in CUT] + [("grouped", SHORT)],
    ids=str,
)
def test_long_rows_are_cut(name: str, dtype: torch.dtype) -> None:
    make, options = CUT[name]
    graph = make()
    assert len(rows.cut_rows(graph).part) > 2 * len(rows.cut_rows(graph).hub) > 0
    check("triton", Case(f"cut, {name}", graph, **options), dtype)


@pytest.mark.usefixtures("cut")
def test_many_heads_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "WIDEST", 16)
    triton.tiles_of.cache_clear()
    options = {"degree": 4, "size": 4, "features": True, "backward": False}
    assert triton.tiles_of(6, 3, 8, 8, **options).TILES == 3
    words = {"edges": "key value", "bias": "tensor", "score": "leaky_relu"}
    check("triton", Case("shared out", random_edges(4, 5, 30), heads=6, kv_heads=3, **words), WIDE)
    triton.tiles_of.cache_clear()


def test_same_inputs_same_bits() -> None:
    case = BY_NAME["bias with holes, isolated nodes"]
    first, again = (run("triton", case, WIDE) for _ in range(2))
    assert isinstance(first, dict)
    assert isinstance(again, dict)
    assert all(torch.equal(first[part], again[part]) for part in first)


@pytest.mark.parametrize(
    ("name", "cuts"), [("intervals", False), ("intervals", True), ("edges with a bias", True)]
)
def test_dropout(name: str, cuts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if cuts:
        monkeypatch.setattr(rows, "LONGEST", 4)
    graph = ga.causal(6) if name == "intervals" else ga.expander(9, 4)
    check_dropout("triton", graph, FINE, biased="bias" in name)


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("name", ["bias with holes, causal", "edge keys, isolated nodes"])
def test_weights_of_edges(name: str) -> None:
    case = BY_NAME[name]
    graph = random_edges(5, 9, 40)
    case = Case(name, graph, heads=4, kv_heads=2, bias=case.bias, edges=case.edges, batch=(2,))
    results_of = {}
    for kernel in ("triton", "reference"):
        inputs = draw(case, FINE)
        q, k, _v, graph, options, leaves, _ = inputs
        found = attention_weights(q, k, graph, kernel=kernel, **options)
        grad = torch.linspace(-1, 1, found.numel(), dtype=FINE).view_as(found)
        parts = [leaf for part, leaf in leaves.items() if part != "value"]
        results_of[kernel] = (found, *torch.autograd.grad(found, parts, grad))
    torch.testing.assert_close(*results_of.values())


def test_nan_reaches_those_who_hear_it() -> None:
    inputs = draw(Case("nan", PARALLEL), WIDE)
    value = inputs.value.detach().clone()
    value[3] = torch.nan
    clean = attention(*inputs[:4], kernel="triton")
    out = attention(inputs.query, inputs.key, value, PARALLEL, kernel="triton")
    src, dst = PARALLEL.edge_index
    hears = torch.zeros(PARALLEL.num_dst, dtype=torch.bool)
    hears[dst[src == 3]] = True
    assert out[hears].isnan().all()
    assert torch.equal(out[~hears], clean[~hears])


@pytest.mark.parametrize("name", ["causal", "isolated, parallel"])
def test_gradcheck(name: str) -> None:
    call, tensors = tiny_call("triton", TINY[name])
    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)


def test_operator_and_compiled_code() -> None:
    graph = random_edges(4, 5, 12)
    q, k, v = (torch.randn(n, 2, 4, requires_grad=True) for n in (4, 5, 5))
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    found = []
    for function in (attention, compiled):
        inputs = draw(Case("compiled", graph, bias="tensor"), WIDE)
        out = function(*inputs[:4], kernel="triton", **inputs.options)
        found.append(results(inputs, out))
    torch.testing.assert_close(*found)
    csr, csc = graph.csr(), graph.csc()
    nothing = torch.empty(0, dtype=torch.int32)
    sides = [
        part
        for side, cuts in ((csr, rows.cut_rows(graph)), (csc, rows.cut_columns(graph)))
        for part in (side.ptr, side.index.to(torch.int32), nothing, *cuts)
    ]
    options = ("triton", True, "dot", 0.0, 0.5, 0.0, "softmax", 0.0, False)
    torch.library.opcheck(attend_op, (q, k, v, *[None] * 7, sides, *options))


def test_refuses_what_it_cannot() -> None:
    q = torch.randn(5, 1, 257)
    with pytest.raises(ValueError, match="up to 256 numbers"):
        attention(q, q, q, ga.causal(5), kernel="triton")
