"""Records calls of the CPU kernel's library in a file, which `loops_test.cpp` repeats.

    python -m tests.kernels.record_loops FILE

The file holds 8-byte words, and arrays padded to 8 bytes:
    how many arrays; for each its bytes, and the array;
    then, for each call, the fields of `CALL` and `ARRAY` below.
"""

from __future__ import annotations

import ctypes
import math
import struct
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import graphattn as ga
from graphattn import attention, attention_weights
from graphattn.kernels.cpu import interface, kernel, windows
from graphattn.kernels.cpu.interface import Arguments
from tests.oracle import CASES, DTYPES, PARALLEL, Case, Inputs, draw, gradients, shuffled

CALL = struct.Struct("=96s32sqqqq")  # case, function, result, tasks, words, arrays; then the words
# For each array: the word that is its address; name; dtype; bytes of a number; how far numbers may
# differ; whether it begins without contents; which array it is before the call, and after it.
ARRAY = struct.Struct("=q32sqqdqqq")
EXACT = 4  # after the numbers of `kernel.DTYPES`
# Roundings that levels may differ by, of the largest number of an array: where a number is computed
# (sums over up to 2,048 edges), and where it is stored.
COMPUTED, STORED = 256.0, 2.0


class Recorder:
    """Calls of the library in the order in which they were made."""

    def __init__(self) -> None:
        self.case, self.spread = "", 1.0
        self.arrays: dict[bytes, int] = {}
        self.calls: list[bytes] = []

    def begin(self, case: Case, words: object) -> None:
        self.case, self.spread = f"{case.name}, {words}", case.spread

    def launch(self, launch: kernel.Launch, name: str, tasks: int) -> None:
        """Stand in for `Launch.run`."""
        by_address = {x.data_ptr(): x for x in sorted(launch.tensors, key=_span) if x.numel()}
        words = bytes(launch.arguments)
        arrays = {
            word: (name, by_address[value])  # the longest of those that begin there
            for word, (name, (value,)) in enumerate(zip(NAMES, struct.iter_unpack("=q", words)))
            if value in by_address
        }
        self._record(name, tasks, words, arrays, partial(RUN, launch, name, tasks))

    def call(self, name: str, *given: Tensor | int) -> int:
        """Stand in for `interface.call`."""
        arrays = {
            i: (str(i), x) for i, x in enumerate(given) if isinstance(x, Tensor) and x.numel()
        }
        words = [0 if isinstance(x, Tensor) else x for x in given]
        work = partial(interface.call, name, *given)
        return self._record(name, 1, struct.pack(f"={len(words)}q", *words), arrays, work)

    def _record(
        self,
        function: str,
        tasks: int,
        words: bytes,
        arrays: dict[int, tuple[str, Tensor]],
        work: Callable[[], int | None],
    ) -> int:
        before = [_contents(x) for _, x in arrays.values()]
        result = work() or 0
        head = self.case.encode(), function.encode(), result, tasks, len(words) // 8, len(arrays)
        parts = [CALL.pack(*head), words]
        for (word, (name, x)), old in zip(arrays.items(), before):
            dtype, allowed = kernel.DTYPES.get(x.dtype, EXACT), 0.0
            if dtype != EXACT:
                real = torch.promote_types(x.dtype, torch.float32)
                allowed = COMPUTED * torch.finfo(real).eps + STORED * torch.finfo(x.dtype).eps
            blank = dtype != EXACT and bool(old.isnan().all())
            kind = word, name.encode(), dtype, x.element_size(), self.spread * allowed, blank
            parts.append(ARRAY.pack(*kind, self._place(old), self._place(_contents(x))))
        self.calls.append(b"".join(parts))
        return result

    def _place(self, x: Tensor) -> int:
        contents = x.view(torch.uint8).numpy().tobytes()
        return self.arrays.setdefault(contents, len(self.arrays))

    def write(self, file: Path) -> None:
        with file.open("wb") as to:
            to.write(struct.pack("=q", len(self.arrays)))
            for x in self.arrays:
                to.write(struct.pack("=q", len(x)) + x + bytes(-len(x) % 8))
            to.writelines(self.calls)


def _names(struct_: type[ctypes.Structure], before: str = "") -> Iterator[str]:
    """Yield the name of each word of a struct."""
    for name, kind in struct_._fields_:
        if issubclass(kind, ctypes.Structure):
            yield from _names(kind, f"{before}{name}.")
        else:
            yield before + name


NAMES = list(_names(Arguments))


def _span(x: Tensor) -> int:
    """Return the numbers from the first to the last of a tensor, as it lies in memory."""
    return 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride())) if x.numel() else 0


def _contents(x: Tensor) -> Tensor:
    return x.detach().as_strided((_span(x),), (1,)).clone()


# --- the cases ------------------------------------------------------------------------------------

RUN, INIT = kernel.Launch.run, kernel.Launch.__init__
HUBS = ga.from_edges(  # node 0 attends to 4,500 nodes, and 3,000 attend to it
    torch.cat(
        [
            torch.stack([torch.arange(4_500), torch.zeros(4_500, dtype=torch.int64)]),
            torch.stack([torch.zeros(3_000, dtype=torch.int64), torch.arange(3_000)]),
            torch.tensor([[1, 5, 5], [4_499, 4_498, 4_498]]),
        ],
        dim=1,
    ),
    4_500,
)
WINDOW = ga.sliding_window(80, 15)
CUT = [
    Case(f"cut{words}", graph, head_dim=4, value_dim=3, **options)
    for words, graph, options in [
        ("", HUBS, {"batch": (2,)}),
        (", intervals", ga.bipartite(2, 5_000), {"heads": 4, "kv_heads": 2}),
        (", intervals by source", ga.bipartite(5_000, 2), {"normalizer": "sink", "batch": (2,)}),
        (", bias", HUBS, {"bias": "tensor", "normalizer": "sink", "softcap": 2.0}),
        (", tanh", HUBS, {"score": "tanh", "edges": "key value", "batch": (2,)}),
        (", projected", HUBS, {"edges": "key value projected", "normalizer": "sigmoid"}),
    ]
]
TILES = [
    Case(f"tiles{words}, {name}", graph, batch=(2,), **options)
    for name, graph in [("intervals", WINDOW), ("list", shuffled(WINDOW))]
    for words, options in [
        ("", {"head_dim": 16}),
        (" that are wide", {"head_dim": 128, "value_dim": 72, "heads": 1}),
        (", grouped", {"heads": 4, "kv_heads": 2, "value_dim": 5, "normalizer": "sink"}),
        (", capped", {"softcap": 2.0}),
        (", sigmoid", {"normalizer": "sigmoid", "head_dim": 1}),
        (", none", {"normalizer": "none", "head_dim": 13}),
    ]
]
SHORT = [case for case in CASES if case.graph.num_edges < 10_000]
OF_LISTS = [case for case in SHORT if case.graph is PARALLEL and case.spread == 1]
NOT_FINITE = [Case("not finite", graph) for graph in (PARALLEL, shuffled(WINDOW), ga.causal(40))]


def attend(inputs: Inputs, **options: Any) -> None:
    """Compute the output and all gradients, unless the kernel refuses."""
    try:
        out = attention(*inputs[:4], kernel="cpu", **inputs.options, **options)
    except ValueError:
        return
    gradients(out, inputs, inputs.grad_out)


def weigh(inputs: Inputs) -> None:
    """Compute the weights and their gradients, unless the kernel refuses."""
    options = {name: x for name, x in inputs.options.items() if name != "edge_value"}
    try:
        weights = attention_weights(inputs.query, inputs.key, inputs.graph, kernel="cpu", **options)
    except ValueError:
        return
    generator = torch.Generator().manual_seed(0)
    gradients(weights, inputs, torch.randn(weights.shape, generator=generator).to(weights.dtype))


def with_some(inputs: Inputs, number: float) -> Inputs:
    """Return the inputs with a number in the key and the value of node 2."""
    key, value = (x.index_fill(-3, torch.tensor([2]), number) for x in inputs[1:3])
    return inputs._replace(key=key, value=value)


def widened(launch: kernel.Launch, call: Any) -> None:
    """Stand in for `Launch.__init__`, with numbers of edges as from 2^31 edges on."""
    rows, columns = (x._replace(edge=x.edge.long()) for x in (call.rows, call.columns))
    INIT(launch, call._replace(rows=rows, columns=columns))


def record(recorder: Recorder) -> None:
    """Run every case, and more than one way where that makes a difference."""
    for dtype in DTYPES:
        for case in [*SHORT, *TILES, *(CUT if dtype == torch.float32 else CUT[:1])]:
            recorder.begin(case, dtype)
            attend(draw(case, dtype))
        for case in NOT_FINITE:
            for number in (math.nan, math.inf):
                recorder.begin(case, f"{dtype}, {number}")
                attend(with_some(draw(case, dtype), number))
    for case in [*SHORT, *CUT[:1]]:
        for dtype in DTYPES if case in OF_LISTS else (torch.float32,):
            recorder.begin(case, f"{dtype}, weights")
            weigh(draw(case, dtype))
    for case in [*OF_LISTS, *TILES]:
        recorder.begin(case, "dropout")
        attend(draw(case, torch.float32), dropout=0.3)
    with patch.object(kernel.Launch, "__init__", widened):
        for case in OF_LISTS:
            recorder.begin(case, "wide")
            attend(draw(case, torch.float32), dropout=0.3)
    for rows in (0, 1, 3_000):
        group(recorder, rows, 2 * rows)


def group(recorder: Recorder, rows: int, edges: int) -> None:
    """Group random edges by row."""
    generator = torch.Generator().manual_seed(0)
    row, column = torch.randint(max(rows, 1), (2, edges), generator=generator)
    ptr, index = torch.zeros(rows + 1, dtype=torch.int64), torch.zeros(edges, dtype=torch.int32)
    recorder.case = f"{rows} rows"
    recorder.call("group", row, column, edges, rows, ptr, index, torch.zeros_like(index))


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills empty tensors with NaN
    recorder = Recorder()

    def run(launch: kernel.Launch, name: str, tasks: int = 1) -> None:
        recorder.launch(launch, name, tasks)

    with (
        patch.object(kernel.Launch, "run", run),
        patch.object(windows, "call", recorder.call),
    ):
        record(recorder)
    recorder.write(Path(sys.argv[1]))
    print(f"{len(recorder.calls):,} calls")


if __name__ == "__main__":
    main()
