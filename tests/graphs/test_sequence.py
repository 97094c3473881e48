import pytest

import graphattn as ga
from tests.graphs import truth
from tests.graphs.agree import assert_is

CASES = [
    *[("complete", (n,)) for n in (0, 1, 2, 7)],
    *[("causal", (n,)) for n in (0, 1, 2, 7)],
    *[("prefix", (n, p)) for n in (0, 1, 5) for p in (0, 1, 3, 5) if p <= n],
    *[("sliding_window", (n, r)) for n in (0, 1, 2, 7) for r in (0, 1, 3, 6, 7, 2**31 - 1)],
    *[("bipartite", shape) for shape in ((0, 0), (0, 3), (3, 0), (1, 1), (2, 5), (5, 2))],
    *[("dilated", (n, r, s)) for n in (0, 1, 7) for r in (0, 1, 2, 9) for s in (1, 2, 3, 8)],
]


@pytest.mark.parametrize(("name", "args"), CASES, ids=str)
def test_sequence(name, args):
    assert_is(getattr(ga, name)(*args), getattr(truth, name)(*args))


@pytest.mark.parametrize(
    ("graph", "num_edges"),
    [
        (ga.complete(2**31 - 1), (2**31 - 1) ** 2),
        (ga.bipartite(2**31 - 1, 2**31 - 2), (2**31 - 1) * (2**31 - 2)),
        (ga.causal(1_000_000), 500_000_500_000),
        (ga.prefix(1_000_000, 1000), 500_000_999_500),  # 1 more for each pair of the prefix
        (ga.prefix(2**31 - 1, 2**31 - 1), (2**31 - 1) ** 2),
        (ga.sliding_window(1_000_000, 2), 5_000_000 - 2 * (2 + 1)),
        (ga.sliding_window(2**31 - 1, 2**31 - 1), (2**31 - 1) ** 2),
        (ga.dilated(1_000_000, 1000, 2), 2001 * 1_000_000 - 2 * 2 * 500_500),
    ],
    ids=str,
)
def test_edges_of_large_graphs_are_counted_unlisted(graph, num_edges):
    assert graph.num_edges == num_edges
    assert f"{num_edges:,} edges" in repr(graph)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda n: ga.complete(n), id="complete"),
        pytest.param(lambda n: ga.causal(n), id="causal"),
        pytest.param(lambda n: ga.prefix(n, 0), id="prefix"),
        pytest.param(lambda n: ga.sliding_window(n, 1), id="sliding_window"),
        pytest.param(lambda n: ga.sliding_window(9, n), id="radius"),
        pytest.param(lambda n: ga.dilated(n, 1, 2), id="dilated"),
        pytest.param(lambda n: ga.bipartite(n, 2), id="num_dst"),
        pytest.param(lambda n: ga.bipartite(2, n), id="num_src"),
    ],
)
class TestBadSize:
    @pytest.mark.parametrize("size", [-1, 2**31, 10**30])
    def test_out_of_range(self, make, size):
        with pytest.raises(ValueError, match=rf"must be between 0 and 2,147,483,647, got {size:,}"):
            make(size)

    @pytest.mark.parametrize("size", [True, 2.0, "2", None, [2], float("nan")])
    def test_no_integer(self, make, size):
        with pytest.raises(TypeError, match=r"must be an integer, got"):
            make(size)


def test_prefix_is_part_of_the_sequence():
    with pytest.raises(ValueError, match="prefix_len must be between 0 and 3, got 4"):
        ga.prefix(3, 4)


def test_step_of_dilated_is_positive():
    with pytest.raises(ValueError, match=r"step must be between 1 and .*, got 0"):
        ga.dilated(3, 1, 0)
