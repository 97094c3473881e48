"""Runs the three examples, small, and shows in a table what ran and what came of it.

Run `./scripts/demo`: it sets everything up first. With --resume, a demo that was interrupted goes
on where it stopped. Ends with status 1 if an example misses what it promises.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Example:
    """An example, how it is run here, and what its result.json must say."""

    name: str
    options: tuple[str, ...]
    promise: str
    keeps: Callable[[dict[str, Any]], bool]

    def command(self, runs: str, resume: bool) -> list[str]:
        script = f"examples/{self.name}.py"
        return [script, *self.options, "--runs", runs, *["--resume"] * resume]


EXAMPLES = (
    Example(
        "vit",
        ("--graph", "shifted_windows", "--seconds", "75"),
        "at least 97% of the held-out images",
        lambda result: result["accuracy"] >= 0.97,
    ),
    Example(
        "lm",
        ("--seconds", "120"),
        "at least 20% fewer bits than bigrams",
        lambda result: result["better"] >= 0.20,
    ),
    Example(
        "custom_connectivity",
        ("--seconds", "60"),
        "a fact arrives at the depth that the hops say, and not before",
        lambda result: result["as_predicted"],
    ),
)


def run(example: Example, runs: str, resume: bool) -> tuple[dict[str, str], bool]:
    """Run an example; return its part of the table, and whether it kept its promise."""
    command = example.command(runs, resume)
    print(f"\n== python {' '.join(command)} ==", flush=True)
    # Threads that wait give up their core. If they spin, as is usual, two programs that compute on
    # the same two cores slow each other down more than tenfold.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    start = time.perf_counter()
    ended = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment)
    head = {"example": f"{example.name}, {time.perf_counter() - start:.0f} s"}
    if ended.returncode:
        return {**head, "result": f"FAILED with status {ended.returncode}; see above"}, False
    result = json.loads((ROOT / runs / example.name / "result.json").read_text())
    graphs, kept = result["graphs"], example.keeps(result)
    reasons = dict.fromkeys(f"{graph['kernel']}: {graph['why']}" for graph in graphs)
    sizes = [f"{graph['graph']}: {graph['edges']:,} edges, {graph['kernel']}" for graph in graphs]
    return {
        **head,
        "graph, edges, kernel": "\n".join(sizes),
        "why": "\n".join(reasons),
        "result": f"{result['result']}\n{'promised' if kept else 'MISSED'}: {example.promise}",
        "pictures": "\n".join(result["pictures"]),
    }, kept


def table(parts: list[dict[str, str]], width: int = 100) -> str:
    """Names and values in two columns, values wrapped, with a rule between parts."""
    indent = 2 + max(len(name) for part in parts for name in part)
    rule = "-" * width
    lines = [rule]
    for part in parts:
        for name, value in part.items():
            wrapped = [textwrap.wrap(line, width - indent) for line in value.splitlines()]
            text = "\n".join(itertools.chain(*wrapped))
            lines.append(f"{name:{indent}}" + textwrap.indent(text, " " * indent).lstrip())
        lines.append(rule)
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resume", action="store_true", help="go on where a demo stopped")
    parser.add_argument("--runs", default="runs", help="folder of the runs (default runs)")
    options = parser.parse_args(argv)
    start = time.perf_counter()
    try:
        done = [run(example, options.runs, options.resume) for example in EXAMPLES]
    except KeyboardInterrupt:
        raise SystemExit("\nstopped; go on with --resume") from None
    print(f"\n{table([part for part, _ in done])}\nall in {time.perf_counter() - start:.0f} s")
    if not all(kept for _, kept in done):
        raise SystemExit("not everything that was promised came out")


if __name__ == "__main__":
    main()
