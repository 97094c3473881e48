"""Times the kernel for intervals beside FlexAttention, variable-length flash and the gather kernel.

    python scripts/bench_intervals.py --out docs/benchmarks      needs a GPU
    TRITON_INTERPRET=1 python scripts/bench_intervals.py --tiny  does it run at all: on the CPU

Sliding windows, windows of the past, and documents packed into one sequence, their lengths drawn
log-normal. Every case is checked first, output and gradients, against the formula in float64 on
some of the destinations; then ours and the peers run in turn. FlexAttention is compiled, and timed
with its block mask given and with the mask built in the call. The floor is the time of the products
of the edges alone (forward two, with backward seven) at the speed of a large matrix product in the
same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_gpu import TOLERANCE, Call, Row, bytes_per_ms, machine, medians, once, ours, peak, table
from torch import Tensor

import graphattn as ga
from graphattn.graphs.structure import as_intervals

BUDGET_S = 70
NODES, RADIUS, MEDIAN_LENGTH, SPREAD = 65_536, 256, 700, 1.0  # of log-normal lengths
SHAPES = [(8, 64), (8, 128)]
ROWS_CHECKED = 200
Pair = Callable[[Tensor, Tensor], Tensor]


def lengths(nodes: int, device: torch.device) -> Tensor:
    """Log-normal lengths of documents that fill a sequence, the last one cut."""
    generator = torch.Generator().manual_seed(0)
    drawn = (SPREAD * torch.randn(nodes, generator=generator)).exp() * min(MEDIAN_LENGTH, nodes / 9)
    ends = drawn.long().clamp(min=1).cumsum(0).clamp(max=nodes)
    return ends.unique_consecutive().diff(prepend=ends.new_zeros(1)).to(device)


def cases(nodes: int, radius: int, device: torch.device) -> dict[str, tuple[ga.Graph, Pair, Any]]:
    """A graph, the same as a mask of FlexAttention, and arguments of variable-length flash."""
    sizes = lengths(nodes, device)
    document = torch.arange(len(sizes), device=device).repeat_interleave(sizes)
    ends = torch.nn.functional.pad(sizes.cumsum(0), (1, 0)).to(torch.int32)
    whole = torch.tensor([0, nodes], dtype=torch.int32, device=device)
    window = ga.sliding_window(nodes, radius)
    return {
        f"sliding_window({nodes}, {radius})": (
            window,
            lambda i, j: (i - j).abs() <= radius,
            (whole, nodes, (radius, radius)),
        ),
        f"causal & sliding_window({nodes}, {radius})": (
            ga.causal(nodes) & window,
            lambda i, j: (i >= j) & (i - j <= radius),
            (whole, nodes, (radius, 0)),
        ),
        f"{len(sizes)} causal documents, {nodes} tokens": (
            ga.batch([ga.causal(n) for n in sizes.tolist()]),
            lambda i, j: (i >= j) & (document[i] == document[j]),
            (ends, int(sizes.max()), (-1, 0)),
        ),
    }


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
    intervals = as_intervals(graph)
    assert intervals is not None
    q, device = inputs[0], inputs[0].device
    generator = torch.Generator(device).manual_seed(1)
    rows = torch.randperm(len(q), device=device, generator=generator)[:ROWS_CHECKED]
    start, stop = (x[rows, None].to(device) for x in intervals)
    source = torch.arange(graph.num_src, device=device)
    exact = [x.detach().double().requires_grad_() for x in (q[rows], *inputs[1:])]
    logits = torch.einsum("ihd,jhd->hij", exact[0], exact[1]) / q.shape[-1] ** 0.5
    logits = logits.masked_fill((source < start) | (source >= stop), -torch.inf)
    truth = torch.einsum("hij,jhd->ihd", logits.softmax(-1), exact[2])
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
    """Raise unless all compute the same; a peer that can't run is told of later."""
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


def bench(
    name: str,
    graph: ga.Graph,
    pair: Pair,
    packed: Any,
    shape: tuple[int, int],
    tiny: bool,
    speed: float,
) -> list[Row]:
    device, dtype = packed[0].device, torch.float32 if tiny else torch.bfloat16
    generator = torch.Generator(device).manual_seed(2)
    size = (graph.num_dst, *shape)
    inputs = [
        torch.randn(size, device=device, generator=generator).to(dtype).requires_grad_()
        for _ in range(3)
    ]
    calls = {"ours": ours(graph, "intervals"), "gather kernel": ours(graph, "triton")}
    check(calls["ours"], graph, inputs)
    torch.compiler.reset()
    calls |= flex(pair, graph.num_dst, device)
    left_out = {}
    try:
        calls["varlen flash"] = flash(*packed)
    except ImportError:
        left_out["varlen flash"] = "not in this torch"
    cold = torch.empty(2**10 if tiny else 2**28, dtype=torch.uint8, device=device)
    grad, plain = torch.randn_like(inputs[0]), [x.detach() for x in inputs]
    agree(calls, plain)
    case, rows = f"{name}, {shape[0]} x {shape[1]}, {str(dtype)[6:]}", []
    flops = 2 * graph.num_edges * shape[0] * shape[1]  # of one product
    for direction, products in (("forward", 2), ("forward + backward", 7)):

        def run(call: Call, products: int = products) -> Callable[[], object]:
            if products > 2:
                return lambda: torch.autograd.grad(call(*inputs), inputs, grad)
            return lambda: call(*plain)

        runs = {peer: run(call) for peer, call in calls.items()}
        ms, failed = medians(runs, device, cold, 1 if tiny else 9)
        floor, memory = products * flops / speed, peak(runs["ours"], device)
        rows.append(Row(case, direction, ms, {**left_out, **failed}, floor, memory))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="does it run: on the CPU, interpreted")
    parser.add_argument(
        "--budget", type=float, default=BUDGET_S, help="seconds; begins no case after"
    )
    parser.add_argument("--out", type=Path, help="folder for gpu_intervals.json and .md")
    options = parser.parse_args()
    device, begin = torch.device("cpu" if options.tiny else "cuda"), time.monotonic()
    about = machine(device, bytes_per_ms(device, options.tiny))
    speed = flops_per_ms(device, options.tiny)
    about["product_TFLOP_per_s"] = speed / 1e9
    print(json.dumps(about))
    rows: list[Row] = []
    unmeasured = []
    nodes, radius = (30, 4) if options.tiny else (NODES, RADIUS)
    for shape in [(1, 16)] if options.tiny else SHAPES:
        for name, case in cases(nodes, radius, device).items():
            if time.monotonic() - begin > options.budget:
                unmeasured.append(f"{name}, {shape[0]} x {shape[1]}: out of time")
                continue
            found = bench(name, *case, shape, options.tiny, speed)
            print(table(found), flush=True)
            rows += found
            if options.out:
                options.out.mkdir(parents=True, exist_ok=True)
                report = {**about, "rows": [asdict(row) for row in rows]}
                path = options.out / "gpu_intervals.json"
                path.write_text(json.dumps(report, indent=2) + "\n")
                words = ", ".join(f"{key} {value}" for key, value in about.items())
                text = f"{words}\n\nMedian milliseconds.\n\n{table(rows)}\n"
                path.with_suffix(".md").write_text(text)
    for words in unmeasured:
        print(f"not measured: {words}")


if __name__ == "__main__":
    main()
