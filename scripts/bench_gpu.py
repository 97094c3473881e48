"""Times the GPU kernel beside eager and compiled gather/scatter, PyG, anemoi and the floor.

    python scripts/bench_gpu.py --out docs/benchmarks         all cases that fit into the budget
    TRITON_INTERPRET=1 python scripts/bench_gpu.py --tiny     does it run at all: on the CPU

Graphs have the published numbers of nodes and edges; who is joined is drawn at random. Every case
is checked first, output and gradients, against the formula in float64 on some of the destinations.
Then ours and the peers run in turn, the L2 cache overwritten before each call; figures are medians
of CUDA events. What does not fit into memory or the budget is listed with the reason. The floor is
the time to gather keys and values once (forward), or three times as much (with backward), at the
speed of a copy measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import graphattn as ga

Call = Callable[..., Tensor]
BUDGET_S = 300
ROWS_CHECKED, LARGEST_CHECKED = 500, 200_000  # destinations, and edges of the largest of them
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}  # of the largest number
WARM_UP, ROUNDS = 3, 15
PEER_COPIES = 12  # of edges x heads x dim that gather/scatter has in memory at once, at most


class Size(NamedTuple):
    """A graph to draw; P(node i) ~ (i + 1)^-skew for its destinations; copies lie side by side."""

    num_dst: int
    num_src: int
    edges: int
    skew: float = 0.5
    copies: int = 1


SIZES = {
    "Cora": Size(2_708, 2_708, 10_556),
    "PubMed": Size(19_717, 19_717, 88_648),
    "1,024 molecules": Size(26, 26, 56, 0.0, 1_024),
    "mesh, bipartite": Size(40_320, 542_080, 1_600_000, 0.0),
    "ogbn-arxiv": Size(169_343, 169_343, 1_166_243),
    "Reddit": Size(232_965, 232_965, 114_600_000),
    "ogbn-products": Size(2_449_029, 2_449_029, 123_700_000),
    "AmazonProducts, hubs": Size(1_569_960, 1_569_960, 264_300_000, 1.0),
}
SHAPES = [(4, 32), (1, 128), (8, 64)]
# In the order of their weight: what is out of time is left out from the end.
CASES = [
    *((name, shape, torch.bfloat16) for name in list(SIZES)[:5] for shape in SHAPES),
    ("Reddit", (4, 32), torch.bfloat16),
    ("ogbn-products", (1, 128), torch.bfloat16),
    *((name, (4, 32), torch.float32) for name in list(SIZES)[:5]),
    ("Reddit", (8, 64), torch.bfloat16),
    ("AmazonProducts, hubs", (1, 128), torch.bfloat16),
    ("ogbn-products", (4, 32), torch.float32),
]
COMPILED = {"ogbn-arxiv", "mesh, bipartite"}  # and in the first shape: compiling takes its time
WITH_FEATURES = {"mesh, bipartite", "ogbn-arxiv"}
TINY = Size(12, 10, 40)


def draw(size: Size, device: torch.device) -> Tensor:
    """`edge_index`; nodes are numbered at random, so that hubs are anywhere."""
    generator = torch.Generator(device).manual_seed(0)
    share = torch.arange(1, size.num_dst + 1, device=device, dtype=torch.float64) ** -size.skew
    number = size.edges * size.copies
    at = torch.rand(number, device=device, generator=generator)
    dst = torch.searchsorted((share.cumsum(0) / share.sum()).float(), at)
    order = torch.randperm(size.num_dst, device=device, generator=generator)
    dst = order[dst.clamp(max=size.num_dst - 1)]
    src = torch.randint(size.num_src, (number,), device=device, generator=generator)
    copy = torch.arange(size.copies, device=device).repeat_interleave(size.edges)
    return torch.stack([src + copy * size.num_src, dst + copy * size.num_dst])


# --- ours and the peers ---------------------------------------------------------------------------


def ours(graph: ga.Graph, kernel: str) -> Call:
    def call(q: Tensor, k: Tensor, v: Tensor, e: Tensor | None = None) -> Tensor:
        return ga.attention(q, k, v, graph, edge_key=e, edge_value=e, kernel=kernel)

    return call


def gather_scatter(index: Tensor, num_dst: int) -> Call:
    """The formula as it is usually written."""
    src, dst = index

    def call(q: Tensor, k: Tensor, v: Tensor, e: Tensor | None = None) -> Tensor:
        k_j, v_j = k.index_select(0, src), v.index_select(0, src)
        if e is not None:
            k_j, v_j = k_j + e, v_j + e
        logits = (q.index_select(0, dst) * k_j).sum(-1) / math.sqrt(q.shape[-1])
        row = dst[:, None].expand_as(logits)
        top = logits.detach().new_full((num_dst, q.shape[1]), -math.inf)
        top = top.scatter_reduce(0, row, logits.detach(), "amax")
        p = (logits - top.index_select(0, dst)).exp()
        total = p.new_zeros(num_dst, q.shape[1]).index_add(0, dst, p)
        w = p / total.index_select(0, dst)
        return torch.zeros_like(q).index_add(0, dst, w[..., None] * v_j)

    return call


def pyg(index: Tensor, heads: int, dim: int) -> Call:
    """`TransformerConv` without its linear maps."""
    from torch_geometric.nn import TransformerConv

    conv = TransformerConv(dim, dim, heads)
    conv.lin_edge = None

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        size = (k.shape[0], q.shape[0])
        return conv.propagate(index, query=q, key=k, value=v, edge_attr=None, size=size)

    return call


def anemoi(index: Tensor, num_dst: int, num_src: int) -> Call | None:
    """ECMWF's kernel, with its preparation done before; None if it is not installed."""
    try:
        from anemoi.models.triton.gt import (  # pyright: ignore[reportMissingImports]
            GraphTransformerFunction,
        )
        from anemoi.models.triton.utils import (  # pyright: ignore[reportMissingImports]
            edge_index_to_csc,
        )
    except ImportError:
        return None
    csc, order, reverse = edge_index_to_csc(index, num_nodes=(num_src, num_dst), reverse=True)
    if order is not None and not torch.equal(order, torch.arange(len(order), device=order.device)):
        return None  # it wants the features of edges in its own order
    return lambda q, k, v, e: GraphTransformerFunction.apply(q, k, v, e, csc, reverse)


# --- truth ----------------------------------------------------------------------------------------


def check(call: Call, index: Tensor, inputs: list[Tensor]) -> None:
    """Raise unless output and gradients of some destinations are right up to rounding.

    Where the gradient of the output is 0 but for them, all gradients come from their edges alone.
    """
    q, device = inputs[0], inputs[0].device
    generator = torch.Generator(device).manual_seed(1)
    rows = torch.randperm(q.shape[0], device=device, generator=generator)[:ROWS_CHECKED]
    degree = index[1].bincount(minlength=q.shape[0])
    largest = degree.masked_fill(degree > LARGEST_CHECKED, 0).argmax()
    rows = torch.cat([rows, largest[None]]).unique()
    number = torch.full((q.shape[0],), -1, device=device)
    number[rows] = torch.arange(len(rows), device=device)
    edges = (number[index[1]] >= 0).nonzero().squeeze(1)
    sub = torch.stack([index[0, edges], number[index[1, edges]]])
    exact = [x.detach().double().requires_grad_() for x in (q[rows], *inputs[1:3])]
    features = [x.detach()[edges].double().requires_grad_() for x in inputs[3:]]
    truth = gather_scatter(sub, len(rows))(*exact, *features)
    out = call(*inputs)
    grad = torch.randn_like(truth)
    whole = torch.zeros_like(out).index_copy(0, rows, grad.to(out.dtype))
    got = [out[rows], *torch.autograd.grad(out, inputs, whole)]
    got[1] = got[1][rows]
    got[4:] = [x[edges] for x in got[4:]]
    exact_grad = whole[rows].double()
    expected = [truth, *torch.autograd.grad(truth, [*exact, *features], exact_grad)]
    for name, mine, true in zip(("out", "dq", "dk", "dv", "de"), got, expected):
        error = float((mine.detach().double() - true.detach()).abs().max())
        if not error <= TOLERANCE[out.dtype] * float(true.detach().abs().max()):
            raise SystemExit(f"{name} is wrong by {error:.3g}; nothing is timed")


# --- timing ---------------------------------------------------------------------------------------


@dataclass
class Row:
    """One call: median milliseconds of each, or why it did not run."""

    case: str
    direction: str
    ms: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    floor_ms: float = 0.0
    peak_bytes: int = 0  # that forward and backward of ours add


def once(run: Callable[[], object], device: torch.device, cold: Tensor) -> float:
    """Milliseconds of a call that finds nothing of its own in the L2 cache."""
    cold.zero_()
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop)


def medians(
    calls: dict[str, Callable[[], object]], device: torch.device, cold: Tensor, rounds: int
) -> tuple[dict[str, float], dict[str, str]]:
    """Of calls in turn; of peers that fail, for want of memory or else, the reason."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    failed: dict[str, str] = {}
    for number in range(WARM_UP + rounds):
        for name in list(calls) if number % 2 else list(calls)[::-1]:
            if name in failed:
                continue
            try:
                elapsed = once(calls[name], device, cold)
            except Exception as error:
                if name.startswith("ours"):
                    raise
                failed[name] = f"{type(error).__name__}: {error}"[:80].splitlines()[0]
                torch.cuda.empty_cache()
                continue
            if number >= WARM_UP:
                times[name].append(elapsed)
    return {name: statistics.median(t) for name, t in times.items() if name not in failed}, failed


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """A call as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def peak(run: Callable[[], object], device: torch.device) -> int:
    """Bytes that a call adds at its peak."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def bytes_per_ms(device: torch.device, tiny: bool) -> float:
    """Of a copy, counting what is read and what is written."""
    x = torch.zeros(2**16 if tiny else 2**31, dtype=torch.uint8, device=device)
    y, cold = torch.empty_like(x), x[:0]
    times = [once(lambda: y.copy_(x), device, cold) for _ in range(8)]
    return 2 * x.numel() / statistics.median(times[2:])


def bench(
    name: str,
    shape: tuple[int, int],
    dtype: torch.dtype,
    features: bool,
    options: argparse.Namespace,
    speed: float,
) -> list[Row]:
    device, size = torch.device(options.device), TINY if options.tiny else SIZES[name]
    index = draw(size, device)
    num_dst, num_src = size.num_dst * size.copies, size.num_src * size.copies
    edges, (heads, dim) = index.shape[1], shape
    if features:  # sorted, as anemoi wants them
        index = index[:, index[1].argsort(stable=True)]
    graph = ga.from_edges(index, num_dst=num_dst, num_src=num_src)
    generator = torch.Generator(device).manual_seed(2)
    sizes = [num_dst, num_src, num_src, *([edges] if features else [])]
    inputs = [
        torch.randn(n, heads, dim, device=device, generator=generator).to(dtype).requires_grad_()
        for n in sizes
    ]
    case = f"{name}, {heads} x {dim}, {str(dtype)[6:]}" + (", features" if features else "")
    mine = ours(graph, "triton")
    check(mine, index, inputs)

    calls: dict[str, Call] = {"ours": mine}
    left_out = {}
    needed = PEER_COPIES * edges * heads * dim * inputs[0].element_size()
    free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else 2**30
    if needed > free:
        reason = f"would take {needed / 1e9:.0f} GB"
        left_out = dict.fromkeys(["gather/scatter", "compiled", "PyG", "PyG compiled"], reason)
    else:
        usual = gather_scatter(index, num_dst)
        calls["gather/scatter"] = usual
        theirs = None if features else pyg(index, heads, dim)
        if theirs is not None:
            calls["PyG"] = theirs
        if name in COMPILED and shape == SHAPES[0] and not options.tiny:
            torch.compiler.reset()
            calls["compiled"] = torch.compile(usual, dynamic=False)
            if theirs is not None and dtype == torch.bfloat16:
                calls["PyG compiled"] = torch.compile(theirs, dynamic=False)
    if features and device.type == "cuda":
        kernel = anemoi(index, num_dst, num_src)
        if kernel is None:
            left_out["anemoi"] = "not installed"
        else:
            calls["anemoi"] = kernel

    cold = torch.empty(2**10 if options.tiny else 2**28, dtype=torch.uint8, device=device)
    grad = torch.randn_like(inputs[0])
    rounds = 1 if options.tiny else ROUNDS if edges < 2e7 else 5
    rows = []
    for direction, passes in (("forward", 1), ("forward + backward", 3)):

        def run(call: Call, passes: int = passes) -> Callable[[], object]:
            if passes == 1:
                plain = [x.detach() for x in inputs]
                return lambda: call(*plain)
            return lambda: torch.autograd.grad(call(*inputs), inputs, grad)

        runs = {peer: run(call) for peer, call in calls.items()}
        if device.type == "cuda" and edges < 2e5:
            runs["ours, CUDA graph"] = captured(runs["ours"])
        ms, failed = medians(runs, device, cold, rounds)
        per_edge = (3 if features else 2) * heads * dim * inputs[0].element_size() + 4
        floor = passes * edges * per_edge / speed
        memory = peak(runs["ours"], device)
        rows.append(Row(case, direction, ms, {**left_out, **failed}, floor, memory))
    return rows


# --- what is written ------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    peers = list(dict.fromkeys(peer for row in rows for peer in (*row.ms, *row.left_out)))
    lines = [f"| case | direction | {' | '.join(peers)} | floor | peak of ours |"]
    lines.append("|---" * (len(peers) + 4) + "|")
    for row in rows:
        cells = [
            f"{row.ms[peer]:.3g}" if peer in row.ms else row.left_out.get(peer, "")
            for peer in peers
        ]
        cells += [f"{row.floor_ms:.3g}", f"{row.peak_bytes / 1e9:.2f} GB"]
        lines.append(f"| {row.case} | {row.direction} | {' | '.join(cells)} |")
    return "\n".join(lines)


def machine(device: torch.device, speed: float) -> dict[str, Any]:
    import triton

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": name,
        "copy_TB_per_s": speed / 1e9,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "graphattn": ga.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="does it run: on the CPU, interpreted")
    parser.add_argument(
        "--budget", type=float, default=BUDGET_S, help="seconds; begins no case after"
    )
    parser.add_argument("--out", type=Path, help="folder for gpu.json and gpu.md")
    options = parser.parse_args()
    if options.tiny:
        options.device = "cpu"
    device, begin = torch.device(options.device), time.monotonic()
    speed = bytes_per_ms(device, options.tiny)
    about = machine(device, speed)
    print(json.dumps(about))
    rows: list[Row] = []
    unmeasured: dict[str, str] = {}
    cases = [(*case, False) for case in CASES]
    cases[9:9] = [(name, (4, 32), torch.bfloat16, True) for name in sorted(WITH_FEATURES)]
    for case in cases[:2] + cases[9:10] if options.tiny else cases:
        name, shape, dtype, features = case
        words = f"{name}, {shape[0]} x {shape[1]}, {str(dtype)[6:]}" + ", features" * features
        if time.monotonic() - begin > options.budget:
            unmeasured[words] = "out of time"
            continue
        try:
            found = bench(*case, options, speed)
        except torch.cuda.OutOfMemoryError:
            unmeasured[words] = "out of memory"
            continue
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()
        print(table(found), flush=True)
        rows += found
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            report = {**about, "rows": [asdict(row) for row in rows], "unmeasured": unmeasured}
            (options.out / "gpu.json").write_text(json.dumps(report, indent=2) + "\n")
            words = ", ".join(f"{key} {value}" for key, value in about.items())
            text = f"{words}\n\nMedian milliseconds.\n\n{table(rows)}\n"
            (options.out / "gpu.md").write_text(text)
    for words, reason in unmeasured.items():
        print(f"not measured: {words}: {reason}")


if __name__ == "__main__":
    main()
