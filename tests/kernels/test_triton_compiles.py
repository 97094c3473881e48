"""The GPU kernel, compiled ahead of time: every function to machine code, in registers alone.

A call on the CPU is planned as it would be on a GPU, and what it would launch is compiled instead.
Of shapes and dtypes there are representative ones: each feature once, the widest and the narrowest
tiles, and the sizes that are benchmarked; for sm_90 all of them, for sm_80 and sm_100 some.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch

import graphattn as ga
from graphattn import attention, attention_weights
from graphattn.graphs import rows
from graphattn.kernels import triton
from tests.kernels.compiled import Launched, compile_for
from tests.oracle import Case, draw, random_edges, results

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="Triton is not installed, or it interprets",
)

WIDE, FINE, HALF, SHORT = torch.float32, torch.float64, torch.float16, torch.bfloat16
SHARED_BYTES = 48 * 1024  # of a program, on every GPU without asking for more


def sparse() -> ga.Graph:
    """A graph with rows that are cut."""
    return random_edges(40, 30, 900)


def window() -> ga.Graph:
    return ga.sliding_window(40, 9)


CASES = [
    ("1 x 128", sparse, {"heads": 1, "head_dim": 128}, [SHORT]),
    ("4 x 32", sparse, {"heads": 4, "head_dim": 32}, [FINE]),
    ("8 x 64", sparse, {"heads": 8, "head_dim": 64}, [SHORT, WIDE]),
    ("intervals", window, {"heads": 4, "head_dim": 32}, [HALF]),
    ("3 x 13", sparse, {"heads": 3, "head_dim": 13}, [HALF]),
    ("1 x 1", sparse, {"heads": 1, "head_dim": 1, "value_dim": 3}, [WIDE]),
    ("2 x 256", sparse, {"heads": 2, "head_dim": 256}, [HALF]),
    ("16 of 1 x 128", sparse, {"heads": 16, "kv_heads": 1, "head_dim": 128}, [SHORT]),
    ("32 x 128", sparse, {"heads": 32, "head_dim": 128}, [SHORT]),
    ("6 of 2 x 24", sparse, {"heads": 6, "kv_heads": 2, "head_dim": 24}, [WIDE]),
    ("bias", sparse, {"heads": 4, "head_dim": 32, "bias": "tensor", "batch": (2,)}, [SHORT]),
    ("features", sparse, {"heads": 4, "head_dim": 32, "edges": "key value"}, [HALF]),
    ("tanh", sparse, {"heads": 4, "head_dim": 32, "score": "tanh", "edges": "key"}, [SHORT]),
    ("leaky_relu", sparse, {"heads": 8, "head_dim": 16, "score": "leaky_relu"}, [WIDE]),
    ("sink", sparse, {"heads": 8, "head_dim": 64, "normalizer": "sink"}, [SHORT]),
    ("softcap", sparse, {"heads": 4, "head_dim": 64, "softcap": 50.0}, [FINE]),
    ("sigmoid", sparse, {"heads": 4, "head_dim": 32, "normalizer": "sigmoid"}, [SHORT]),
    ("none", sparse, {"heads": 4, "head_dim": 32, "normalizer": "none"}, [SHORT]),
    ("own score", sparse, {"heads": 4, "head_dim": 32, "score": "function"}, [SHORT]),
]
SIZES = [(name, dtype) for name, _, _, dtypes in CASES for dtype in dtypes]
ELSEWHERE = [(80, "features", HALF), (80, "8 x 64", SHORT), (100, "features", HALF)]
GPUS = [(90, *size) for size in SIZES] + ELSEWHERE


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Launched]:
    """What was launched since."""
    seen: list[Launched] = []
    monkeypatch.setattr(rows, "LONGEST", 16)
    monkeypatch.setattr(triton, "interpreted", lambda: True)
    monkeypatch.setattr(
        triton,
        "launch",
        lambda function, _, **arguments: seen.append(Launched(function, arguments)),
    )
    return seen


def check(capability: int, launched: list[Launched], functions: set[str]) -> None:
    assert {each.function.__name__ for each in launched} == functions
    for each in launched:
        found = compile_for(capability, each)
        assert (found.stack, found.local) == (0, 0), f"{each.function.__name__} spills: {found}"
        assert found.shared <= SHARED_BYTES, f"{each.function.__name__}: {found}"


@pytest.mark.parametrize(("capability", "name", "dtype"), GPUS, ids=str)
def test_compiles(capability: int, name: str, dtype: torch.dtype, launched: list[Launched]) -> None:
    [(make, options)] = [(make, options) for case, make, options, _ in CASES if case == name]
    inputs = draw(Case(f"compiled, {name}", make(), **options), dtype)
    out = attention(*inputs[:4], kernel="triton", **inputs.options)
    results(inputs, out)
    passes = {"forward", "by_destination", "by_source", "merge_sum"}
    softmax = {"merge_softmax"} if options.get("normalizer", "sink") == "sink" else set()
    check(capability, launched, passes | softmax)


@pytest.mark.parametrize("dtype", [SHORT, WIDE], ids=str)
def test_weights_compile(dtype: torch.dtype, launched: list[Launched]) -> None:
    q, k, _, graph, *_ = draw(Case("weights", sparse(), heads=8, head_dim=64), dtype)
    attention_weights(q, k, graph, kernel="triton").sum().backward()
    passes = {"forward", "weights", "weigh_gradients", "by_destination", "by_source"}
    check(90, launched, passes | {"merge_softmax", "merge_sum"})


def test_the_logits_of_other_normalizers_compile(launched: list[Launched]) -> None:
    inputs = draw(Case("logits", sparse(), heads=4, head_dim=32, normalizer="mean"), SHORT)
    results(inputs, attention(*inputs[:4], kernel="triton", normalizer="mean"))
    passes = {"forward", "weights", "by_destination", "by_source"}
    check(90, launched, passes | {"merge_sum"})


@pytest.mark.parametrize("graph", [sparse, window], ids=["edges", "intervals"])
def test_dropout_compiles(graph, launched: list[Launched]) -> None:
    q, k, v, graph, *_ = draw(Case("dropout", graph(), heads=4, head_dim=32), SHORT)
    attention(q, k, v, graph, dropout=0.1, kernel="triton").sum().backward()
    check(90, launched, {each.function.__name__ for each in launched})


@pytest.mark.parametrize("place", [2**31 - 8, 2**33])
def test_sizes_may_pass_the_range_of_int32(place: int, launched: list[Launched]) -> None:
    """Numbers of nodes and edges too large for int32 are passed in int64."""
    q, k, v, graph, *_ = draw(Case("large", window(), heads=4, head_dim=32), SHORT)
    attention(q, k, v, graph, kernel="triton")
    [forward] = [each for each in launched if each.function.__name__ == "forward"]
    forward.arguments["query_batch"] = forward.arguments["num_edges"] = place
    check(90, [forward], {"forward"})
