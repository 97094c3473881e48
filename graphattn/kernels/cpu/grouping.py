"""Edges grouped by row, by counting: half of what sorting takes."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn.graphs.csr import CompactCSR
from graphattn.kernels.cpu import library
from graphattn.kernels.cpu.interface import call


def group(row: Tensor, column: Tensor, num_rows: int) -> CompactCSR | None:
    """Return the edges by row, each row's in their order; None if the library is missing.

    Args:
        row: int64 (E,), checked: 0 to num_rows - 1.
        column: int64 (E,).
        num_rows: Rows, with and without edges.
    """
    if library.missing() is not None:
        return None
    ptr = torch.empty(num_rows + 1, dtype=torch.int64)
    index, edge = (torch.empty(len(row), dtype=torch.int32) for _ in range(2))
    given = (row.contiguous(), column.contiguous())
    if call("group", *given, len(row), num_rows, ptr, index, edge):
        raise MemoryError(f"no memory is left to group {len(row):,} edges by row")
    return CompactCSR(ptr, index, edge)
