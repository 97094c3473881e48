"""Times graphattn beside its strongest peers, in one run, after checking that they agree.

    python scripts/bench.py                     every suite
    python scripts/bench.py --suite windows     one of them; see SUITES
    python scripts/bench.py --json docs/benchmarks/cpu.json

Ours and each peer run in turn, ours first in one round and last in the next; the figure is the
median over rounds of the ratio ours / peer, so that a machine whose speed drifts does not matter.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import bench_generation
import bench_hf
import bench_pyg
import bench_reorder
import bench_scores
import bench_sparse
import bench_tiles_cpu
import torch
import torch.nn.functional as F
from timing import Call, Row, compare, leaves
from torch import Tensor
from tqdm import tqdm

import graphattn as ga


def dense_suite(device: torch.device, rounds: int) -> list[Row]:
    """Complete and causal graphs against a bare call of scaled_dot_product_attention."""
    rows = []
    for graph, batch, heads in ((ga.complete(197), 16, 6), (ga.causal(1024), 4, 6)):
        causal = graph.has_edge(0, 1) is False
        inputs = leaves(batch, graph.num_dst, heads, 64, device=device)
        graph = graph.to(device)

        def ours(q: Tensor, k: Tensor, v: Tensor, graph: ga.Graph = graph) -> Tensor:
            return ga.attention(q, k, v, graph)

        def sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool = causal) -> Tensor:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)

        case = f"{graph}, batch {batch}, {heads} heads x 64"
        peers = {"SDPA": sdpa}
        rows += compare(case, inputs, ours, peers, bound={"SDPA": 1.05}, rounds=rounds)
    return rows


def swin_attention(side: int, window: int, shift: int, batch: int, device: torch.device) -> Call:
    """The usual code of Swin: roll, partition, mask, attention, reverse, roll."""
    per_side = side // window
    region = torch.zeros(side, device=device)
    region[-window:-shift], region[-shift:] = 1, 2
    region = (3 * region[:, None] + region).view(per_side, window, per_side, window)
    region = region.transpose(1, 2).reshape(per_side**2, window**2)
    mask = torch.where(region[:, :, None] == region[:, None, :], 0.0, -torch.inf)
    mask = mask.repeat(batch, 1, 1)[:, None]  # (batch * windows, 1, cells, cells)

    def partition(x: Tensor) -> Tensor:
        heads, dim = x.shape[-2:]
        x = torch.roll(x.view(batch, side, side, heads * dim), (-shift, -shift), (1, 2))
        x = x.view(batch, per_side, window, per_side, window, heads, dim).transpose(2, 3)
        return x.reshape(-1, window**2, heads, dim).transpose(1, 2)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads, dim = q.shape[-2:]
        out = F.scaled_dot_product_attention(partition(q), partition(k), partition(v), mask)
        out = out.transpose(1, 2).reshape(batch, per_side, per_side, window, window, heads * dim)
        out = out.transpose(2, 3).reshape(batch, side, side, heads * dim)
        return torch.roll(out, (shift, shift), (1, 2)).view_as(q)

    return call


def windows_suite(device: torch.device, rounds: int) -> list[Row]:
    """Swin's shifted windows against the usual code, as it stands and compiled."""
    graph = ga.shifted_windows((56, 56), 7, 3).to(device)
    inputs = leaves(8, 56 * 56, 4, 32, device=device)
    usual = swin_attention(56, 7, 3, 8, device)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ga.attention(q, k, v, graph)

    case = f"{graph}, batch 8, 4 heads x 32"
    peers = {"usual Swin code": usual}
    rows = compare(case, inputs, ours, peers, bound=dict.fromkeys(peers, 1.0), rounds=rounds)
    peers = {"usual Swin code, compiled": torch.compile(usual)}
    return rows + compare(
        f"{case}, compiled", inputs, torch.compile(ours), peers, bound={}, rounds=rounds
    )


def crossover_suite(device: torch.device, rounds: int) -> list[Row]:
    """Sparse kernels against masked attention over all pairs: where do they meet?

    The ratio is 1 where the costs of `graphattn/kernels/masked.py` say so, for the reference where
    `EDGE_OVER_PAIR` of `graphattn/kernels/reference.py` does.
    """
    rows = []
    fused = "cpu" if device.type == "cpu" else "triton"
    cases = [(64, 8, density) for density in (0.02, 0.1, 0.4)]
    cases += [
        (nodes, 2, density) for nodes in (256, 1024, 2048) for density in (0.05, 0.1, 0.2, 0.4)
    ]
    for kernel, sizes in (
        (fused, cases),
        ("reference", [(1024, 2, 0.004), (1024, 2, 0.016), (1024, 2, 0.06)]),
    ):
        for nodes, batch, density in sizes:
            pairs = torch.randperm(nodes**2, generator=torch.Generator().manual_seed(0))
            pairs = pairs[: int(density * nodes**2)]
            edges = torch.stack([pairs % nodes, pairs // nodes])
            graph = ga.from_edges(edges, nodes).to(device)
            inputs = leaves(batch, nodes, 4, 32, device=device)

            def call(name: str, graph: ga.Graph = graph) -> Call:
                return lambda q, k, v: ga.attention(q, k, v, graph, kernel=name)

            case = f"{nodes} nodes, {density:.1%} of all pairs, batch {batch}, 4 x 32: {kernel}"
            peers = {"masked kernel": call("masked")}
            rows += compare(case, inputs, call(kernel), peers, bound={}, rounds=rounds)
    return rows


def import_suite(device: torch.device, rounds: int) -> list[Row]:
    """What `import graphattn` adds to `import torch`, in fresh processes."""

    def seconds(statement: str) -> float:
        code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
        return float(subprocess.check_output([sys.executable, "-c", code], text=True))

    ours, theirs = [], []
    for _ in tqdm(range(rounds), desc="imports", leave=False):
        theirs.append(1e3 * seconds("import torch"))
        ours.append(1e3 * seconds("import torch, graphattn"))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    medians = (statistics.median(ours), statistics.median(theirs))
    return [Row("import torch, graphattn", "import torch", "import", *medians, ratio, 1.15)]


SUITES = {
    "dense": dense_suite,
    "windows": windows_suite,
    "crossover": crossover_suite,
    "sparse": bench_sparse.suite,
    "tiles": bench_tiles_cpu.suite,
    "scores": bench_scores.suite,
    "reorder": bench_reorder.suite,
    "pyg": bench_pyg.suite,
    "generation": bench_generation.suite,
    "hf": bench_hf.suite,
    "import": import_suite,
}


def show(rows: list[Row]) -> None:
    print(f"{'case':86} {'against':26} {'direction':19} {'ours':>9} {'peer':>9}  ratio  bound")
    for row in rows:
        bound = "" if row.bound is None else f"{row.bound:.2f}"
        met = "" if row.bound is None else "  met" if row.ratio <= row.bound else "  MISSED"
        print(
            f"{row.case:86} {row.peer:26} {row.direction:19} {row.ours_ms:6.2f} ms "
            f"{row.peer_ms:6.2f} ms  {row.ratio:5.3f}  {bound}{met}"
        )


def machine(device: torch.device) -> dict[str, object]:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = names[0].split(":")[1].strip() if names else cpu
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "graphattn": ga.__version__,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=SUITES, nargs="+", default=list(SUITES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=25, help="rounds of each comparison")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--plot", type=Path, help="also draw time over edges to this file")
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    rows = [row for name in options.suite for row in SUITES[name](device, options.rounds)]
    show(rows)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        figures = {**machine(device), "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if options.plot:
        bench_sparse.scaling(options.plot)


if __name__ == "__main__":
    main()
