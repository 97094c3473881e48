"""Runs the three examples, small, and shows in a table what ran and what came of it.

Run `./scripts/demo`; it sets everything up first. With --resume, an interrupted demo goes on where
it stopped. Ends with status 1 if an example misses what it promises.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

EXAMPLES: dict[str, tuple[list[str], str, Callable[[dict[str, Any]], bool]]] = {
    "vit": (
        ["examples/vit.py", "--seconds", "75"],
        "at least 97% of held-out digits",
        lambda result: result["accuracy"] >= 0.97,
    ),
    "lm": (
        ["examples/lm.py", "--seconds", "110"],
        "at least 20% fewer bits than bigrams",
        lambda result: result["better"] >= 0.20,
    ),
    "custom_connectivity": (
        ["examples/custom_connectivity.py"],
        "a fact arrives at the depth that the graph's hops say",
        lambda result: result["as_predicted"],
    ),
}
"""Command, promise, and whether a result keeps it; by the name of the run."""


def table(rows: list[dict[str, str]], width: int = 118) -> str:
    """Rows as `name: value` blocks, a line between them, wrapped to a width."""
    longest = max(len(name) for row in rows for name in row)
    rule = "-" * width
    lines = [rule]
    for row in rows:
        for name, value in row.items():
            head, *rest = textwrap.wrap(value, width - longest - 2) or [""]
            lines.append(f"{name:{longest}}  {head}")
            lines += [" " * (longest + 2) + line for line in rest]
        lines.append(rule)
    return "\n".join(lines)


def row_of(
    name: str, result: dict[str, Any], seconds: float, promise: str, kept: bool
) -> dict[str, str]:
    graphs = result["graphs"]
    plans = dict.fromkeys(f"{graph['kernel']}: {graph['why']}" for graph in graphs)
    return {
        "example": f"{name}, {seconds:.0f} s",
        "graph": ", ".join(graph["graph"] for graph in graphs),
        "edges": ", ".join(f"{graph['edges']:,}" for graph in graphs),
        "kernel, why": "; ".join(plans),
        "result": f"{result['result']} - {'kept' if kept else 'MISSED'}: {promise}",
        "pictures": ", ".join(result["pictures"]),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resume", action="store_true", help="go on where a demo stopped")
    parser.add_argument("--runs", default="runs", help="folder of the runs (default runs)")
    options = parser.parse_args(argv)
    passed_on = ["--runs", options.runs] + ["--resume"] * options.resume

    rows, missed, total = [], [], 0.0
    for name, (command, promise, keeps) in EXAMPLES.items():
        print(f"\n== {' '.join(command)} ==", flush=True)
        start = time.perf_counter()
        subprocess.run([sys.executable, *command, *passed_on], cwd=ROOT, check=True)
        seconds = time.perf_counter() - start
        result = json.loads((ROOT / options.runs / name / "result.json").read_text())
        kept = keeps(result)
        rows.append(row_of(name, result, seconds, promise, kept))
        missed += [] if kept else [name]
        total += seconds
    print(f"\n{table(rows)}\nall in {total:.0f} s")
    if missed:
        raise SystemExit(f"missed what was promised: {', '.join(missed)}")


if __name__ == "__main__":
    main()
