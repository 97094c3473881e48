import itertools
import math

import numpy as np
import pytest

import graphattn as ga
from tests.graphs import truth
from tests.graphs.agree import assert_is

SWIN = [
    ((4, 4), 2, 0),
    ((4, 4), 2, 1),
    ((6, 4), 2, 1),
    ((6, 9), 3, 1),
    ((6, 9), 3, 2),
    ((8, 8), 4, 2),
    ((4, 4), 4, 2),  # one window, shifted
    ((6, 4), (3, 2), (1, 1)),
    ((6, 4), (3, 2), (2, 0)),
    ((8,), 4, 3),
    ((4, 2, 4), 2, 1),
    ((2, 4, 6), (2, 4, 3), (1, 2, 1)),
]

UNEVEN = [
    ((1,), 1, 0),
    ((7,), 3, 0),
    ((7,), 3, 2),
    ((7, 5), 3, 1),
    ((5, 7), (2, 10), (1, 9)),
    ((3, 5), 7, 3),
    ((3, 2), 7, 6),  # all of the grid before the first cut
    ((3, 3, 3), 2, 1),
    ((4, 4), 2**31 - 1, 0),
    ((4, 4), 2**31 - 1, 2),
]

NEIGHBORHOODS = [
    *[((n,), r, d) for n in (1, 5, 7) for r in (0, 1, 2) for d in (1, 2) if (2 * r + 1) * d <= n],
    ((11,), 1, 3),
    ((13,), 2, 2),
    ((7, 7), 3, 1),
    ((5, 7), 1, 1),
    ((5, 7), (2, 1), (1, 2)),
    ((7, 8), 1, 2),
    ((1, 5), (0, 2), 1),
    ((3, 4, 5), 1, 1),
    ((3, 6, 7), 1, (1, 2, 2)),
]

CUTS = [
    *[((n,), r, d) for n in (1, 5) for r in (0, 1, 4, 9) for d in (1, 2, 7)],
    ((5,), 2**31 - 1, 1),
    ((5, 3), 1, 1),
    ((5, 3), (9, 1), (2, 1)),
    ((4, 4), 3, 1),
    ((3, 4, 2), 1, (1, 2, 1)),
]


def swin(shape, size, shift):
    """Swin's shifted windows: roll, partition, and the mask of the regions that were apart."""
    size, shift = truth.per_axis(size, shape), truth.per_axis(shift, shape)
    axes = tuple(range(len(shape)))
    cell = np.arange(math.prod(shape)).reshape(shape)
    rolled = np.roll(cell, [-step for step in shift], axes)
    region = np.zeros(shape, dtype=int)
    cuts = [
        (slice(0, -window), slice(-window, -step), slice(-step, None)) if step else (slice(None),)
        for window, step in zip(size, shift)
    ]
    for number, slices in enumerate(itertools.product(*cuts)):
        region[slices] = number
    count = np.zeros((cell.size, cell.size), dtype=int)
    corners = [range(0, length, window) for length, window in zip(shape, size)]
    for corner in itertools.product(*corners):
        window = tuple(slice(at, at + width) for at, width in zip(corner, size))
        members = list(zip(rolled[window].flat, region[window].flat))
        for (i, region_of_i), (j, region_of_j) in itertools.product(members, members):
            count[i, j] = region_of_i == region_of_j
    return count


@pytest.mark.parametrize(("shape", "size", "shift"), SWIN)
def test_shifted_windows_are_those_of_swin(shape, size, shift):
    expected = swin(shape, size, shift)
    np.testing.assert_array_equal(truth.shifted_windows(shape, size, shift), expected)
    assert_is(ga.shifted_windows(shape, size, shift), expected)


@pytest.mark.parametrize(("shape", "size", "shift"), UNEVEN)
def test_shifted_windows_on_grids_that_are_no_multiple(shape, size, shift):
    graph = ga.shifted_windows(shape, size, shift)
    assert_is(graph, truth.shifted_windows(shape, size, shift))


@pytest.mark.parametrize(("shape", "radius", "dilation"), NEIGHBORHOODS)
def test_clamped_neighborhood_is_that_of_natten(shape, radius, dilation):
    graph = ga.neighborhood(shape, radius, dilation=dilation)
    assert_is(graph, truth.neighborhood(shape, radius, dilation=dilation))
    neighbors = math.prod(2 * reach + 1 for reach in truth.per_axis(radius, shape))
    assert graph.in_degree().tolist() == [neighbors] * graph.num_dst


@pytest.mark.parametrize(
    ("cell", "dilation", "heard"),
    [  # read off Hassani et al. 2023 and Hassani and Shi 2022, with 3 neighbors on a line of 9
        (0, 1, [0, 1, 2]),
        (1, 1, [0, 1, 2]),
        (4, 1, [3, 4, 5]),
        (8, 1, [6, 7, 8]),
        (0, 3, [0, 3, 6]),
        (4, 3, [1, 4, 7]),
        (1, 2, [1, 3, 5]),
        (7, 2, [3, 5, 7]),
        (8, 2, [4, 6, 8]),
    ],
)
def test_clamped_neighborhood_by_hand(cell, dilation, heard):
    mask = ga.neighborhood(9, 1, dilation=dilation).mask()
    assert mask[cell].nonzero().flatten().tolist() == heard


@pytest.mark.parametrize(("shape", "radius", "dilation"), CUTS)
def test_cut_neighborhood(shape, radius, dilation):
    graph = ga.neighborhood(shape, radius, dilation=dilation, border="cut")
    radii, steps = truth.per_axis(radius, shape), truth.per_axis(dilation, shape)
    expected = truth.of_cells(
        shape,
        lambda to, place: all(
            abs(a - b) % step == 0 and abs(a - b) // step <= reach
            for a, b, reach, step in zip(to, place, radii, steps)
        ),
    )
    assert_is(graph, expected)


@pytest.mark.parametrize("shape", [(1,), (5,), (3, 4), (1, 5), (2, 3, 4), (1, 1, 3), (2, 1, 2)])
def test_axial(shape):
    assert_is(ga.axial(shape), truth.axial(shape))


@pytest.mark.parametrize(
    ("graph", "num_edges"),
    [
        (ga.shifted_windows((1000, 1000, 1000), 10, 5), (5**2 + 99 * 10**2 + 5**2) ** 3),
        (ga.axial((1000, 1000, 1000)), 10**9 * (3 * 999 + 1)),
        (ga.neighborhood((1000, 1000, 1000), 1), 27 * 10**9),
        (ga.neighborhood((1000, 1000, 1000), 1, border="cut"), 2998**3),
        (ga.neighborhood((40_000, 50_000), 9999, dilation=2), 19_999**2 * 2 * 10**9),
    ],
    ids=str,
)
def test_edges_of_large_grids_are_counted_unlisted(graph, num_edges):
    assert graph.num_edges == num_edges


@pytest.mark.parametrize("make", [ga.axial, lambda shape: ga.shifted_windows(shape, 1)])
@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        ((), ValueError, r"shape must be 1 to 3 positive integers, got \(\)"),
        ((2, 2, 2, 2), ValueError, r"1 to 3 positive integers, got \(2, 2, 2, 2\)"),
        ("44", ValueError, "1 to 3 positive integers, got '44'"),
        ((4, 0), ValueError, r"shape\[1\] must be between 1 and .*, got 0"),
        (-4, ValueError, r"shape\[0\] must be between 1 and .*, got -4"),
        ((2**16, 2**16), ValueError, "the number of cells must be .*, got 4,294,967,296"),
        ((4, 2.0), TypeError, r"shape\[1\] must be an integer, got 2.0"),
        ((True, 4), TypeError, r"shape\[0\] must be an integer, got True"),
        (None, TypeError, "must be an integer, got None"),
    ],
)
def test_bad_shape(make, shape, error, message):
    with pytest.raises(error, match=message):
        make(shape)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        (((4, 4), 2, 2), {}, ValueError, r"below the window size, got shift \(2, 2\) and size"),
        (((4, 4), 2, -1), {}, ValueError, "shift must be between 0 and .*, got -1"),
        (((4, 4), 0), {}, ValueError, "size must be between 1 and .*, got 0"),
        (((4, 4), (2, 2, 2)), {}, ValueError, "size must be one integer or 2, .*got"),
        (((4, 4), "22"), {}, TypeError, "size must be an integer, got '22'"),
        (((4, 4), 2, (1, 0.5)), {}, TypeError, r"shift\[1\] must be an integer, got 0.5"),
    ],
)
def test_bad_windows(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        ga.shifted_windows(*args, **kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        (((3, 3), 2), {}, ValueError, "5 cells at dilation 1 does not fit an axis of 3; .*cut"),
        (((9, 5), 1), {"dilation": 2}, ValueError, "3 cells at dilation 2 does not fit .* of 5"),
        (((4, 4), -1), {}, ValueError, "radius must be between 0 and .*, got -1"),
        (((4, 4), (1,)), {}, ValueError, "radius must be one integer or 2, .*got"),
        (((4, 4), 1.5), {}, TypeError, "radius must be an integer, got 1.5"),
        (((4, 4), 1), {"dilation": 0}, ValueError, "dilation must be between 1 and .*, got 0"),
        (((4, 4), 1), {"border": "wrap"}, ValueError, 'must be "clamp" or "cut", got \'wrap\''),
        (((4, 4), 1), {"border": None}, ValueError, 'must be "clamp" or "cut", got None'),
    ],
)
def test_bad_neighborhood(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        ga.neighborhood(*args, **kwargs)
