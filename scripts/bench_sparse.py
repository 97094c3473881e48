"""Sparse graphs on a CPU: ours beside gather and scatter, PyG's small layers, our own float32."""

from __future__ import annotations

import copy
import json
import math
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx
import torch
import torch.nn.functional as F
from timing import Call, Row, against, compare, in_turn, leaves
from torch import Tensor
from torch_geometric import nn

import graphattn as ga
from graphattn import pyg
from graphattn.graphs.csr import compact_both
from graphattn.scores import Additive


def random_edges(nodes: int, edges: int, *, zipf: float = 0.0) -> Tensor:
    """`edge_index` with sources drawn evenly; destinations too, or with P(node i) ~ (i+1)^-zipf."""
    generator = torch.Generator().manual_seed(0)
    src = torch.randint(nodes, (edges,), generator=generator)
    dst = torch.randint(nodes, (edges,), generator=generator)
    if zipf:
        share = torch.arange(1, nodes + 1, dtype=torch.float64) ** -zipf
        dst = torch.multinomial(share, edges, replacement=True, generator=generator)
    return torch.stack([src, dst])


def gather_scatter(index: Tensor, nodes: int, weight: Tensor | None = None) -> Call:
    """The formula as it is usually written; with a weight, that of GATv2."""
    src, dst = index

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q_i, k_j = q.index_select(0, dst), k.index_select(0, src)
        if weight is None:
            logits = (q_i * k_j).sum(-1) / math.sqrt(q.shape[-1])
        else:
            logits = (F.leaky_relu(q_i + k_j, 0.2) * weight).sum(-1)
        row = dst[:, None].expand_as(logits)
        top = logits.detach().new_full((nodes, q.shape[1]), -math.inf)
        top = top.scatter_reduce(0, row, logits.detach(), "amax")
        p = (logits - top.index_select(0, dst)).exp()
        total = p.new_zeros(nodes, q.shape[1]).index_add(0, dst, p) + 1e-16
        w = p / total.index_select(0, dst)
        return torch.zeros_like(q).index_add(0, dst, w[..., None] * v.index_select(0, src))

    return call


def attend(graph: ga.Graph, **options) -> Call:
    return lambda q, k, v: ga.attention(q, k, v, graph, **options)


def formulas(rounds: int) -> list[Row]:
    """Attention alone, against the usual formula and its compiled form."""
    rows = []
    cases = [
        ("random", 20_000, 400_000, 0.0, 4, 32, None, 1 / 33),
        ("random", 20_000, 400_000, 0.0, 8, 16, None, 1 / 30),
        ("Zipf hubs", 20_000, 400_000, 1.0, 4, 32, None, 1 / 33),
        ("additive (GATv2), random", 20_000, 400_000, 0.0, 4, 32, "leaky_relu", 1 / 25),
    ]
    for name, nodes, edges, zipf, heads, dim, activation, bound in cases:
        index = random_edges(nodes, edges, zipf=zipf)
        graph = ga.from_edges(index, nodes)
        weight = torch.randn(heads, dim) if activation else None
        score = Additive(weight, "leaky_relu") if weight is not None else "dot"
        usual = gather_scatter(index, nodes, weight)
        case = f"{name}, {nodes:,} nodes, {edges:,} edges, {heads} x {dim}"
        rows += compare(
            case,
            leaves(nodes, heads, dim, device=torch.device("cpu")),
            attend(graph, score=score),
            {"gather and scatter": usual, "the same, compiled": torch.compile(usual)},
            bound={"gather and scatter": bound},
            rounds=rounds,
        )
    return rows


def layers(rounds: int) -> list[Row]:
    """Whole layers on a handful of nodes, linear maps and gradients of all parameters included."""
    karate = networkx.karate_club_graph()
    index = torch.tensor([[*edge] for edge in karate.to_directed().edges]).T
    rows = []
    for kind, bound in ((nn.GATConv, 1.0), (nn.TransformerConv, 0.6), (nn.GATv2Conv, 0.6)):
        torch.manual_seed(0)
        theirs: Any = kind(32, 8, 4)
        ours = copy.copy(theirs)  # with the very same parameters
        pyg.accelerate(ours)
        # A bias of keys changes no weight: its gradient is 0, and both sides return rounding.
        named = theirs.named_parameters()
        parameters = [value for name, value in named if name != "lin_key.bias"]
        rows += compare(
            f"karate club, 34 nodes, 156 edges, {kind.__name__}, 32 -> 4 x 8",
            [torch.randn(34, 32, requires_grad=True), *parameters],
            lambda x, *_, ours=ours: ours(x, index),
            {"PyG": lambda x, *_, theirs=theirs: theirs(x, index)},
            bound={"PyG": bound},
            rounds=25 * rounds,
            directions=("forward + backward",),
        )
    return rows


def halves(rounds: int) -> list[Row]:
    """Half types beside our own float32, on a graph whose rows fit no cache."""
    nodes, edges = 150_000, 3_000_000
    graph, rows = ga.from_edges(random_edges(nodes, edges), nodes), []
    for dtype in (torch.bfloat16, torch.float16):
        drawn = leaves(nodes, 4, 32, device=torch.device("cpu"))
        inputs = [x.detach().to(dtype).requires_grad_() for x in drawn]
        rows += compare(
            f"random, {nodes:,} nodes, {edges:,} edges, 4 x 32, {str(dtype)[6:]}",
            inputs,
            attend(graph),
            {"ours, float32": attend(graph)},
            bound={"ours, float32": 0.7},
            rounds=rounds,
            inputs_of_peers=[x.detach().float().requires_grad_() for x in inputs],
            tolerance=1e-2,
        )
    return rows


def building(rounds: int) -> list[Row]:
    """What is made of an edge list before its first use, against sorting as many numbers."""
    nodes, edges = 1_000_000, 10_000_000
    index = random_edges(nodes, edges)
    keys, peer = index[1] * nodes + index[0], "torch.sort of as many int64"
    case = f"from_edges and both CSR, {nodes:,} nodes, {edges:,} edges"
    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: compact_both(ga.from_edges(index, nodes)),
        peer: lambda: torch.sort(keys),
    }
    return against(case, "build", in_turn(case, runs, keys.device, rounds), {peer: 0.8})


FIRST_CALLS = """
import time, torch, graphattn
graph = graphattn.from_edges(torch.randint(1_000, (2, 20_000)), 1_000)
inputs = [torch.randn(1_000, 4, 32, requires_grad=True) for _ in range(3)]
for _ in range(2):
    start = time.perf_counter()
    torch.autograd.grad(graphattn.attention(*inputs, graph).sum(), inputs)
    print(1e3 * (time.perf_counter() - start))
"""


def first_call(rounds: int) -> list[Row]:
    """The first call of a fresh process beside the second, which may be 300 ms quicker."""
    times: dict[str, list[float]] = {"ours": [], "second call + 300 ms": []}
    for _ in range(rounds):
        printed = subprocess.check_output([sys.executable, "-c", FIRST_CALLS], text=True)
        first, second = map(float, printed.split())
        times["ours"].append(first)
        times["second call + 300 ms"].append(second + 300)
    case = "first call of a fresh process, 1,000 nodes, 20,000 edges, 4 x 32"
    return against(case, "forward + backward", times, {"second call + 300 ms": 1.0})


# --- memory ---------------------------------------------------------------------------------------


def peak_bytes(graph: str, *shape: int) -> tuple[int, int]:
    """Peak memory that forward and backward add in a fresh process, and what they may add.

    For edges at random: outputs, gradients and 2 x E x heads numbers; for a window 2 GB.

    Args:
        graph: "window" (radius 128) or "random" (20 edges a node).
        shape: nodes, heads, head_dim.
    """
    child = [sys.executable, __file__, graph, *map(str, shape)]
    found = json.loads(subprocess.check_output(child, text=True))
    return found["peak"], found["allowed"]


def _measure_memory(kind: str, nodes: int, heads: int, dim: int) -> dict[str, int]:
    def status(line: str) -> int:
        text = Path("/proc/self/status").read_text()
        return 1024 * int(text.split(line + ":")[1].split()[0])

    q, k, v = (torch.randn(50, heads, dim, requires_grad=True) for _ in range(3))
    for small in (ga.sliding_window(50, 2), ga.expander(50, 4)):  # loads what is compiled
        ga.attention(q, k, v, small, kernel="cpu").sum().backward()
    edges = 20 * nodes
    graph = ga.sliding_window(nodes, 128)
    if kind == "random":
        graph = ga.from_edges(random_edges(nodes, edges), nodes)
        compact_both(graph)  # the indices are there before the measurement begins
    q, k, v = (torch.randn(nodes, heads, dim, requires_grad=True) for _ in range(3))
    grad = torch.randn(nodes, heads, dim)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    torch.autograd.grad(ga.attention(q, k, v, graph, kernel="cpu"), (q, k, v), grad)
    tensors = 4 * nodes * heads * dim * 4  # the output and three gradients
    return {
        "peak": status("VmHWM") - before,
        "allowed": tensors + 2 * edges * heads * 4 if kind == "random" else 2_000_000_000,
    }


def memory() -> list[Row]:
    """Peak memory, as rows in megabytes against the bound."""
    rows = []
    for name, kind, shape in (
        ("random, 200,000 nodes, 4,000,000 edges, 4 x 32", "random", (200_000, 4, 32)),
        ("sliding_window(1000000, 128), 257 million edges, 1 x 16", "window", (1_000_000, 1, 16)),
    ):
        peak, allowed = peak_bytes(kind, *shape)
        peer, ratio = "what is allowed", peak / allowed
        rows.append(Row(name, peer, "peak memory, MB", peak / 1e6, allowed / 1e6, ratio, 1.0))
    return rows


# --- a picture ------------------------------------------------------------------------------------


def scaling(path: Path, most: int = 10_000_000) -> None:
    """Draw the time of forward and backward over the number of edges, 20 a node."""
    import matplotlib.pyplot as plt

    heads, dim, counts = 4, 32, [10**power for power in range(4, 8) if 10**power <= most]
    times: dict[str, list[float]] = {}
    for edges in counts:
        nodes = edges // 20
        index = random_edges(nodes, edges)
        inputs = leaves(nodes, heads, dim, device=torch.device("cpu"))
        calls = {"graphattn": attend(ga.from_edges(index, nodes), kernel="cpu")}
        if edges <= 1_000_000:  # beyond, its tensors take tens of gigabytes
            calls["gather and scatter"] = gather_scatter(index, nodes)
            calls["gather and scatter, compiled"] = torch.compile(calls["gather and scatter"])
        for name, call in calls.items():
            seconds = []
            for _ in range(7 if edges < 10**6 else 4):
                start = time.perf_counter()
                torch.autograd.grad(call(*inputs).sum(), inputs)
                seconds.append(time.perf_counter() - start)
            times.setdefault(name, []).append(1e3 * statistics.median(seconds[1:]))
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for number, (name, line) in enumerate(times.items()):
        axes.loglog(counts[: len(line)], line, marker="os^"[number], label=name)
        axes.annotate(
            f"{line[-1]:,.0f} ms", (counts[len(line) - 1], line[-1]), color=f"C{number}",
            textcoords="offset points", xytext=(7, (-3, 3, -9)[number]), fontsize=8,
        )  # fmt: skip
    axes.set_xlabel("edges (20 for each node)")
    axes.set_ylabel("forward + backward, milliseconds")
    axes.set_title(
        f"Random graphs, {heads} heads x {dim}, float32, {torch.get_num_threads()} threads"
    )
    axes.set_xlim(right=3 * counts[-1])
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def suite(device: torch.device, rounds: int) -> list[Row]:
    """All of the above but the picture."""
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)
    few = max(3, rounds // 3)
    # What is compiled comes last: after it, the smallest calls were seen to take a hundred times as
    # long, probably for a second OpenMP in the process.
    return [*layers(few), *first_call(few), *building(few), *memory(), *halves(few), *formulas(few)]


if __name__ == "__main__":  # a child of peak_bytes
    kind, *sizes = sys.argv[1:]
    print(json.dumps(_measure_memory(kind, *map(int, sizes))))
