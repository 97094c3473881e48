"""Every graph said a second time, pair by pair and without the package.

A truth is a matrix: `count[i, j]` is how many edges go from source j to destination i. Each
function has the name and the arguments of the graph that it is the truth of.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np


def matrix(num_dst: int, num_src: int, attends: Callable[[int, int], bool]) -> np.ndarray:
    """The count of a graph in which i attends to j wherever `attends(i, j)`."""
    count = np.zeros((num_dst, num_src), dtype=np.int64)
    for i, j in itertools.product(range(num_dst), range(num_src)):
        count[i, j] = bool(attends(i, j))
    return count


def of_pairs(num_dst: int, num_src: int, pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    """The count of a list of `(src, dst)`."""
    count = np.zeros((num_dst, num_src), dtype=np.int64)
    for src, dst in pairs:
        count[dst, src] += 1
    return count


def of_cells(shape: Sequence[int], attends: Callable[[tuple, tuple], bool]) -> np.ndarray:
    """The count of a graph on the cells of a grid, numbered row by row."""
    cells = list(itertools.product(*map(range, shape)))
    return matrix(len(cells), len(cells), lambda i, j: attends(cells[i], cells[j]))


def per_axis(value, shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,) * len(shape)


def complete(n):
    return np.ones((n, n), dtype=np.int64)


def bipartite(num_dst, num_src):
    return np.ones((num_dst, num_src), dtype=np.int64)


def causal(n):
    return matrix(n, n, lambda i, j: j <= i)


def prefix(n, prefix_len):
    return matrix(n, n, lambda i, j: j <= i or j < prefix_len)


def sliding_window(n, radius):
    return matrix(n, n, lambda i, j: i - radius <= j <= i + radius)


def dilated(n, radius, step):
    heard = [{i + k * step for k in range(-radius, radius + 1)} for i in range(n)]
    return matrix(n, n, lambda i, j: j in heard[i])


def shifted_windows(shape, size, shift=0):
    """Two cells are in one window if no cut lies between them along any axis."""
    size, shift = per_axis(size, shape), per_axis(shift, shape)
    cuts = [
        [cut for cut in range(1, length) if (cut - shift[axis]) % size[axis] == 0]
        for axis, length in enumerate(shape)
    ]
    return of_cells(
        shape,
        lambda to, place: (
            not any(
                min(a, b) < cut <= max(a, b) for a, b, line in zip(to, place, cuts) for cut in line
            )
        ),
    )


def neighborhood(shape, radius, *, dilation=1, border="clamp"):
    """The product of its axes; dilation leaves each cell on the line of its own residue."""
    radius, dilation = per_axis(radius, shape), per_axis(dilation, shape)
    heard = [
        [_neighbors(place, *axis, border) for place in range(axis[0])]
        for axis in zip(shape, radius, dilation)
    ]
    return of_cells(
        shape,
        lambda to, place: all(b in near[a] for a, b, near in zip(to, place, heard)),
    )


def _neighbors(place: int, length: int, radius: int, dilation: int, border: str) -> list[int]:
    line = list(range(place % dilation, length, dilation))
    first = line.index(place) - radius
    if border == "clamp":
        first = min(max(first, 0), len(line) - (2 * radius + 1))
    return line[max(first, 0) : first + 2 * radius + 1]


def axial(shape):
    return of_cells(shape, lambda to, place: sum(a != b for a, b in zip(to, place)) <= 1)


def hubs(n, nodes):
    return matrix(n, n, lambda i, j: i in nodes or j in nodes)


def batch(counts):
    """Blocks on the diagonal."""
    result = np.zeros(np.sum([count.shape for count in counts], axis=0), dtype=np.int64)
    row = column = 0
    for count in counts:
        result[row : row + count.shape[0], column : column + count.shape[1]] = count
        row, column = row + count.shape[0], column + count.shape[1]
    return result


def permuted(count, order):
    return count[np.ix_(order, order)]
