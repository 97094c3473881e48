"""Times the kernels on tensor cores beside FlexAttention, flash attention and every kernel of ours.

    python scripts/bench_tiles.py --out docs/benchmarks      needs a GPU
    TRITON_INTERPRET=1 python scripts/bench_tiles.py --tiny  does it run at all: on the CPU

Windows, windows with global tokens, packed documents of log-normal lengths, neighborhoods of images
and volumes, graphs of groups, an expander before and after reordering, and a graph with the
numbers, the communities and the skew of Reddit. Every case is checked first, output and gradients,
against the formula in float64 on some of the destinations; then all run in turn, the L2 cache
overwritten before each call. FlexAttention is compiled, and timed with its block mask given and
with the mask built in the call. What was expected of a kernel of ours stands beside what it took,
and how much slower "auto" was than the best of them. The floor is the time of the products of the
edges alone (forward two, with backward seven) at the speed of a large matrix product in the same
run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_gpu import TOLERANCE, Call, Row, bytes_per_ms, machine, medians, once, ours, peak, table
from tile_cases import Case, Pair, cases
from torch import Tensor

import graphattn as ga
from graphattn import explain
from graphattn.graphs.rows import span_columns, span_rows
from graphattn.graphs.windows import SIZES, WINDOWS_OF_COLUMNS, WINDOWS_OF_ROWS, reuse

BUDGET_S = 120
ROWS_CHECKED = 200
# Of all pairs, how many a kernel that scores all of them is still timed over.
MOST_PAIRS = 20_000**2


@dataclass
class Measured(Row):
    """A `Row` of medians, and what was expected.

    auto: The kernel that was chosen; slower: its time over that of the best kernel of ours.
    expected: Milliseconds by kernel.
    reuse: Edges for each source that row windows load, by their size.
    making_ms: Milliseconds until the row windows of a graph on the GPU, both ways, are made.
    """

    auto: str = ""
    slower: float = 1.0
    expected: dict[str, float] = field(default_factory=dict)
    reuse: dict[int, float] = field(default_factory=dict)
    making_ms: float = 0.0


# --- the peers ------------------------------------------------------------------------------------


def flex(pair: Pair, nodes: int, device: torch.device) -> dict[str, Call]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled: Any = torch.compile if device.type == "cuda" else lambda function: function
    attend, build = compiled(flex_attention), compiled(create_block_mask)

    def build_mask() -> Any:
        return build(lambda b, h, i, j: pair(i, j), None, None, nodes, nodes, device=device.type)

    mask = build_mask()

    def call(given: Callable[[], Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads_first = (x.transpose(0, 1)[None] for x in (q, k, v))
        return attend(*heads_first, block_mask=given())[0].transpose(0, 1)

    return {
        "FlexAttention": partial(call, lambda: mask),
        "FlexAttention, mask built": partial(call, build_mask),
    }


def flash(ends: Tensor, longest: int, window: tuple[int, int]) -> Call:
    """Torch's flash attention over documents that follow each other."""
    from torch.nn.attention.varlen import varlen_attn  # pyright: ignore[reportMissingImports]

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = varlen_attn(q, k, v, ends, ends, longest, longest, window_size=window)
        assert isinstance(out, Tensor)
        return out

    return call


# --- truth and times ------------------------------------------------------------------------------


def check(call: Call, graph: ga.Graph, inputs: list[Tensor]) -> None:
    """Raise unless output and gradients of some destinations are right up to rounding."""
    q, device = inputs[0], inputs[0].device
    generator = torch.Generator(device).manual_seed(1)
    rows = torch.randperm(len(q), device=device, generator=generator)[:ROWS_CHECKED]
    source = torch.arange(graph.num_src, device=device)
    exact = [x.detach().double().requires_grad_() for x in (q[rows], *inputs[1:])]
    logits = torch.einsum("ihd,jhd->hij", exact[0], exact[1]) / q.shape[-1] ** 0.5
    heard = torch.as_tensor(graph.has_edge(rows[:, None], source))
    weights = logits.masked_fill(~heard, -torch.inf).softmax(-1).nan_to_num(0.0)
    truth = torch.einsum("hij,jhd->ihd", weights, exact[2])
    out = call(*inputs)
    grad = torch.zeros_like(out).index_copy(0, rows, torch.randn_like(truth).to(out.dtype))
    got = [out[rows], *torch.autograd.grad(out, inputs, grad)]
    got[1] = got[1][rows]
    expected = [truth, *torch.autograd.grad(truth, exact, grad[rows].double())]
    for name, mine, true in zip(("out", "dq", "dk", "dv"), got, expected):
        error = float((mine.detach().double() - true.detach()).abs().max())
        if not error <= TOLERANCE[out.dtype] * float(true.detach().abs().max()):
            raise SystemExit(f"{name} is wrong by {error:.3g}; nothing is timed")


def agree(calls: dict[str, Call], inputs: list[Tensor]) -> None:
    """Raise unless all compute the same; one that can't run is told of later."""
    truth = calls["ours"](*inputs)
    for peer, call in calls.items():
        try:
            error = float((call(*inputs) - truth).abs().max())
        except (NotImplementedError, RuntimeError):
            continue
        if not error <= TOLERANCE[truth.dtype] * float(truth.abs().max()):
            raise SystemExit(f"{peer} differs by {error:.3g}; nothing is timed")


def flops_per_ms(device: torch.device, tiny: bool) -> float:
    """Of a product of square matrices."""
    size = 64 if tiny else 8192
    x = torch.randn(size, size, device=device, dtype=torch.float32 if tiny else torch.bfloat16)
    times = [once(lambda: x @ x, device, x[:0]) for _ in range(8)]
    return 2 * size**3 / statistics.median(times[2:])


def making_ms(case: Case, device: torch.device) -> float:
    """Until a graph that is on the device has both its layouts of row windows."""
    graph = case.make().to(device)
    if span_rows(graph) is not None and span_columns(graph) is not None:
        return 0.0
    _ = graph.edge_index  # is listed before

    def make() -> None:
        for facts in (WINDOWS_OF_ROWS, WINDOWS_OF_COLUMNS):
            facts[SIZES[-1]](graph)

    return once(make, device, torch.empty(0, device=device))


def kernels_of(graph: ga.Graph, inputs: list[Tensor], tiny: bool) -> list[str]:
    """Our kernels that are timed over a graph."""
    if tiny:  # where nobody tells the time
        return ["triton", "intervals" if span_rows(graph) is not None else "row_windows"]
    q, k, v = inputs
    left_out = {"reference"}
    if graph.num_dst * graph.num_src > MOST_PAIRS:
        left_out.add("masked")
    return [name for name in explain(q, k, v, graph).expected if name not in left_out]


def peers_of(case: Case, graph: ga.Graph) -> tuple[dict[str, Call], dict[str, str]]:
    """The others, and why some are left out."""
    calls, left_out = {}, {}
    torch.compiler.reset()
    if case.pair is not None:
        calls |= flex(case.pair, graph.num_dst, graph.device)
    if case.packed is not None:
        try:
            calls["varlen flash"] = flash(*case.packed)
        except ImportError:
            left_out["varlen flash"] = "not in this torch"
    return calls, left_out


def bench(case: Case, shape: tuple[int, int], tiny: bool, speed: float) -> list[Measured]:
    device = torch.device("cpu" if tiny else "cuda")
    dtype = torch.float32 if tiny else torch.bfloat16
    making = making_ms(case, device)
    graph = case.make().to(device)
    generator = torch.Generator(device).manual_seed(2)
    size = (graph.num_dst, *shape)
    inputs = [
        torch.randn(size, device=device, generator=generator).to(dtype).requires_grad_()
        for _ in range(3)
    ]
    kernels = kernels_of(graph, inputs, tiny)
    calls = {"ours": ours(graph, "auto"), **{name: ours(graph, name) for name in kernels}}
    check(calls["ours"], graph, inputs)
    peers, left_out = peers_of(case, graph)
    calls |= peers
    cold = torch.empty(2**10 if tiny else 2**28, dtype=torch.uint8, device=device)
    grad, plain = torch.randn_like(inputs[0]), [x.detach() for x in inputs]
    agree(calls, plain)
    name = f"{case.name}, {shape[0]} x {shape[1]}, {str(dtype)[6:]}"
    flops = 2 * graph.num_edges * shape[0] * shape[1]  # of one product
    shared = reuse(graph) if making else {}
    rows = []
    for direction, products in (("forward", 2), ("forward + backward", 7)):

        def run(call: Call, products: int = products) -> Callable[[], object]:
            if products > 2:
                return lambda: torch.autograd.grad(call(*inputs), inputs, grad)
            return lambda: call(*plain)

        runs = {peer: run(call) for peer, call in calls.items()}
        ms, failed = medians(runs, device, cold, 1 if tiny else case.rounds)
        q, k, v = plain if products == 2 else inputs
        timed = explain(q, k, v, graph)
        best = min((ms[kernel] for kernel in kernels if kernel in ms), default=ms["ours"])
        rows.append(
            Measured(
                name,
                direction,
                ms,
                {**left_out, **failed},
                products * flops / speed,
                peak(runs["ours"], device),
                timed.kernel,
                ms["ours"] / best,
                {kernel: each.ms for kernel, each in timed.expected.items()},
                shared,
                making,
            )
        )
    return rows


def choices(rows: list[Measured]) -> str:
    """Markdown: what was chosen, and what was expected beside what was measured."""
    lines = [
        "| case | direction | auto | slower than the best | expected / measured | reuse | making |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        both = (
            f"{kernel} {ms:.3g} / {row.ms[kernel]:.3g}"
            for kernel, ms in row.expected.items()
            if kernel in row.ms
        )
        shared = ", ".join(f"{size}: {times:.3g}" for size, times in row.reuse.items())
        cells = [row.case, row.direction, row.auto, f"{row.slower:.2f}", ", ".join(both), shared]
        lines.append(f"| {' | '.join(cells)} | {row.making_ms:.3g} ms |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="does it run: on the CPU, interpreted")
    parser.add_argument(
        "--budget", type=float, default=BUDGET_S, help="seconds; begins no case after"
    )
    parser.add_argument("--out", type=Path, help="folder for gpu_tiles.json and .md")
    options = parser.parse_args()
    device, begin = torch.device("cpu" if options.tiny else "cuda"), time.monotonic()
    about = machine(device, bytes_per_ms(device, options.tiny))
    speed = flops_per_ms(device, options.tiny)
    about["product_TFLOP_per_s"] = speed / 1e9
    print(json.dumps(about))
    rows: list[Measured] = []
    unmeasured = []
    for case in cases(device, options.tiny):
        for shape in [(1, 16)] if options.tiny else case.shapes:
            if time.monotonic() - begin > options.budget:
                unmeasured.append(f"{case.name}, {shape[0]} x {shape[1]}: out of time")
                continue
            found = bench(case, shape, options.tiny, speed)
            print(table(found), choices(found), sep="\n", flush=True)
            rows += found
            if device.type == "cuda":
                torch.cuda.empty_cache()
            if options.out:
                options.out.mkdir(parents=True, exist_ok=True)
                report = {**about, "rows": [asdict(row) for row in rows]}
                path = options.out / "gpu_tiles.json"
                path.write_text(json.dumps(report, indent=2) + "\n")
                words = ", ".join(f"{key} {value}" for key, value in about.items())
                text = f"{words}\n\nMedian milliseconds.\n\n{table(rows)}\n\n{choices(rows)}\n"
                path.with_suffix(".md").write_text(text)
    for words in unmeasured:
        print(f"not measured: {words}")


if __name__ == "__main__":
    main()
