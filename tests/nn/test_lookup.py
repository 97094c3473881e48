"""Soft lookup and kernel regression: their formulas, their limits, bad input."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsRegressor

import graphattn as ga
from graphattn import nn
from graphattn.nn import lookup


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def near(query, keys, values, temperature, heard=None):
    """The mean of the values, weighed by exp(-distance^2 / (2 temperature)), in float64."""
    query, keys, values = query.double(), keys.double(), values.double()
    squared = (query[:, None] - keys[None]).square().sum(-1)
    weight = (-squared / (2 * temperature)).exp()
    weight = weight if heard is None else weight * heard
    return weight @ values / weight.sum(1, keepdim=True)


# --- a lookup table -------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_queries", "n", "dim", "value_dim"), [(5, 7, 3, 2), (1, 1, 1, 4)])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 20.0])
@pytest.mark.parametrize("origin", [0.0, 1000.0])  # distances do not know it
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.float64, 1e-11)])
def test_values_are_weighed_by_distance(
    num_queries, n, dim, value_dim, temperature, origin, dtype, error
):
    query, keys = (origin + randn(*s).to(dtype) for s in [(num_queries, dim), (n, dim)])
    values = randn(n, value_dim, seed=1).to(dtype)
    out = nn.LookupAttention(keys, values, temperature=temperature)(query)
    expected = near(query, keys, values, temperature)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=error, atol=error)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_and_autocast_measure_distances_in_float32(dtype):
    query, keys, values = (randn(9, 4, seed=s).to(dtype) for s in range(3))
    table = nn.LookupAttention(keys, values, temperature=0.1)
    expected = near(query, keys, values, 0.1)
    assert table(query).dtype == dtype
    torch.testing.assert_close(table(query).double(), expected, rtol=0, atol=2 * 2**-8)
    with torch.autocast("cpu", torch.bfloat16):
        out = nn.LookupAttention(keys.float(), values.float(), temperature=0.1)(query.float())
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)


def test_it_is_one_dense_call_without_a_bias(monkeypatch):
    plans = []

    def explained(*arguments, **options):
        plans.append(ga.explain(*arguments, **options))
        return ga.attention(*arguments, **options)

    monkeypatch.setattr(lookup, "attention", explained)
    nn.LookupAttention(randn(7, 3), randn(7, 2))(randn(5, 3))
    nn.nadaraya_watson(randn(50, 3), randn(70, 3), randn(70, 2), 1.0, graph=SOME)
    assert [plan.kernel for plan in plans] == ["dense", "masked"]


def test_zero_is_the_exact_lookup():
    keys = torch.cartesian_prod(torch.arange(5.0), torch.arange(4.0))
    values = torch.arange(20.0)[:, None]
    table = nn.LookupAttention(keys, values, temperature=0)
    assert torch.equal(table(keys), values)
    assert torch.equal(table(keys + torch.tensor([0.4, -0.4])), values)
    between = torch.tensor([[0.5, 0.0], [1.5, 1.5], [2.0, 2.5]])  # 2, 4 and 2 keys equally near
    assert table.nearest(between).tolist() == [0, 5, 10]
    doubled = nn.LookupAttention(keys.repeat(2, 1), torch.arange(40.0)[:, None], temperature=0)
    assert torch.equal(doubled(keys), values)


def test_zero_finds_a_key_that_equals_the_query_however_close_the_others():
    keys = 1e4 + 1e-2 * randn(300, 8, dtype=torch.float32)  # dot products differ by rounding alone
    table = nn.LookupAttention(keys, keys, temperature=0)
    assert torch.equal(table(keys), keys)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_zero_looks_up_half_types(dtype):
    keys = torch.arange(-8.0, 8.0).to(dtype)[:, None]
    table = nn.LookupAttention(keys, 2 * keys, temperature=0)
    assert torch.equal(table(keys + 0.25), 2 * keys)


@pytest.mark.parametrize("chunk", [1, 20, 65])
def test_a_search_in_chunks_is_the_same(monkeypatch, chunk):
    table = nn.LookupAttention(randn(20, 3), randn(20, 2), temperature=0)
    query = randn(2, 7, 3, seed=1)
    distance = (query[..., None, :] - table.keys).norm(dim=-1)
    monkeypatch.setattr(lookup, "CHUNK", chunk)
    assert torch.equal(table.nearest(query), distance.argmin(-1))
    assert table(query).shape == (2, 7, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e8])
@pytest.mark.parametrize("value_dim", [2, 4])  # as wide as the coordinates, one more among them
def test_the_limits_are_approached_in_any_units(dtype, size, value_dim):
    query, keys = (size * randn(n, 3, seed=n).to(dtype) for n in (6, 9))
    query[5] *= 1e10  # far away
    values = randn(9, value_dim, seed=2).to(dtype)
    table = nn.LookupAttention(keys, values, temperature=0)
    exact = table(query)
    for cold in (1e-4, 1e-12, 1e-30, 1e-100):
        table.temperature = cold * size**2
        torch.testing.assert_close(table(query)[:5], exact[:5])
        assert table(query)[5].isfinite().all()
    mean = values.mean(0).expand(6, value_dim)
    for hot in (1e12, 1e30, math.inf):
        table.temperature = hot * size**2
        torch.testing.assert_close(table(query)[:5], mean[:5], rtol=1e-6, atol=1e-6)


def test_keys_that_are_all_the_same_share_the_weight():
    table = nn.LookupAttention(torch.ones(3, 2), torch.tensor([[1.0], [2.0], [6.0]]))
    assert table(torch.zeros(1, 2)).item() == 3
    table.temperature = 0
    assert table(torch.zeros(1, 2)).item() == 1


def test_queries_have_any_leading_dimensions():
    table = nn.LookupAttention(randn(9, 3), randn(9, 2))
    query = randn(4, 5, 3, seed=1)
    one_by_one = torch.stack([torch.stack([table(q) for q in some]) for some in query])
    torch.testing.assert_close(table(query), one_by_one)
    assert table(query[:0]).shape == (0, 5, 2)


@pytest.mark.parametrize("temperature", [0.5, 10.0])
def test_gradients(temperature):
    def read(query, keys, values):
        table = nn.LookupAttention(keys, values, temperature=temperature)
        return table(query)

    inputs = [randn(*s, seed=i).requires_grad_() for i, s in enumerate([(4, 3), (5, 3), (5, 2)])]
    assert torch.autograd.gradcheck(read, inputs)


def test_parameters_are_learned_and_other_tensors_kept():
    fixed = nn.LookupAttention(randn(5, 3), randn(5, 2))
    assert not list(fixed.parameters())
    assert set(fixed.state_dict()) == {"keys", "values"}
    learned = nn.LookupAttention(
        torch.nn.Parameter(randn(5, 3)), torch.nn.Parameter(randn(5, 2)), temperature=0
    )
    learned(randn(4, 3)).sum().backward()
    assert learned.keys.grad is None  # an exact lookup is flat
    assert learned.values.grad.sum() == 4 * 2
    learned.temperature = 1.0
    learned(randn(4, 3)).square().sum().backward()
    assert learned.keys.grad.any()


def test_a_lookup_compiles_whole():
    table, query = nn.LookupAttention(randn(5, 3), randn(5, 2)), randn(4, 3)
    compiled = torch.compile(table, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query), table(query))


TABLE = nn.LookupAttention(randn(5, 3), randn(5, 2))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.LookupAttention([[1.0]], randn(1, 1)), TypeError, "keys must be a floating"),
        (lambda: nn.LookupAttention(torch.ones(2, 1).long(), randn(2, 1)), TypeError, "int64"),
        (lambda: nn.LookupAttention(randn(2, 1), randn(2, 1).float()), TypeError, "one dtype"),
        (lambda: nn.LookupAttention(randn(2), randn(2, 1)), ValueError, r"\(n, width\), got \(2,"),
        (lambda: nn.LookupAttention(randn(2, 1), randn(3, 1)), ValueError, r"got \(2, 1\) and \(3"),
        (lambda: nn.LookupAttention(randn(2, 0), randn(2, 1)), ValueError, "dim positive"),
        (lambda: nn.LookupAttention(randn(0, 1), randn(0, 1)), ValueError, "at least one key"),
        *(
            (
                lambda t=t: nn.LookupAttention(randn(2, 1), randn(2, 1), temperature=t),
                ValueError,
                f"from 0 to math.inf, got {t}",
            )
            for t in (-1.0, -math.inf, math.nan)
        ),
        (lambda: TABLE(randn(4, 2)), ValueError, r"as wide as keys, \(..., 3\), got \(4, 2\)"),
        (lambda: TABLE(randn(4, 3).float()), TypeError, "float32 and torch.float64"),
        (lambda: TABLE(3.0), TypeError, "query must be a floating tensor, got float"),
    ],
)
def test_a_bad_lookup_says_what_was_expected(make, error, message):
    with pytest.raises(error, match=message):
        make()


# --- kernel regression ----------------------------------------------------------------------------

SOME = ga.from_mask(randn(50, 70, seed=3) < 0.3)


@pytest.mark.parametrize("bandwidth", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("dim", [1, 3])
def test_regression_is_that_of_scikit_learn_with_gaussian_weights(bandwidth, dim):
    query, x, y = randn(8, dim), randn(40, dim, seed=1), randn(40, 2, seed=2)
    theirs = KNeighborsRegressor(
        n_neighbors=40, weights=lambda far: np.exp(-(far**2) / (2 * bandwidth**2))
    )
    expected = torch.from_numpy(theirs.fit(x.numpy(), y.numpy()).predict(query.numpy()))
    torch.testing.assert_close(nn.nadaraya_watson(query, x, y, bandwidth), expected)


def test_regression_in_one_dimension_by_hand():
    x, y = torch.tensor([0.0, 1.0, 3.0]), torch.tensor([2.0, 4.0, 8.0])
    weights = [math.exp(-(d**2) / (2 * 0.7**2)) for d in (0.5, 0.5, 2.5)]
    expected = (2 * weights[0] + 4 * weights[1] + 8 * weights[2]) / sum(weights)
    out = nn.nadaraya_watson(torch.tensor([0.5]), x, y, bandwidth=0.7)
    torch.testing.assert_close(out, torch.tensor([expected]))
    column = nn.nadaraya_watson(torch.tensor([[0.5]]), x[:, None], y[:, None], 0.7)
    torch.testing.assert_close(column, torch.tensor([[expected]]))


def test_a_graph_says_which_samples_are_seen():
    query, x, y = randn(50, 2), randn(70, 2, seed=1), randn(70, 3, seed=2)
    expected = near(query, x, y, 0.8**2, heard=SOME.mask())
    torch.testing.assert_close(nn.nadaraya_watson(query, x, y, 0.8, graph=SOME), expected)
    lonely = ga.from_edges([[0, 69], [0, 0]], num_dst=50, num_src=70)
    out = nn.nadaraya_watson(query, x, y, 0.8, graph=lonely)
    assert not out[1:].any()
    torch.testing.assert_close(out[:1], near(query[:1], x[[0, 69]], y[[0, 69]], 0.8**2))


def test_every_coordinate_may_have_its_bandwidth():
    query, x, y = randn(4, 2), randn(5, 2, seed=1), randn(5, 1, seed=2)
    width = torch.tensor([0.5, 3.0], dtype=torch.float64)
    expected = near(query / width, x / width, y, 1.0)
    torch.testing.assert_close(nn.nadaraya_watson(query, x, y, width), expected)
    inputs = [part.requires_grad_() for part in (query, x, y, width)]
    assert torch.autograd.gradcheck(nn.nadaraya_watson, inputs)


def test_far_from_all_samples_the_nearest_is_left():
    x, y = torch.tensor([0.0, 1.0]), torch.tensor([5.0, 7.0])
    far = nn.nadaraya_watson(torch.tensor([-100.0, 100.0]), x, y, bandwidth=0.1)
    assert far.tolist() == [5.0, 7.0]  # where the quotient of sums is 0 / 0
    everywhere = nn.nadaraya_watson(torch.tensor([-100.0, 100.0]), x, y, bandwidth=math.inf)
    assert everywhere.tolist() == [6.0, 6.0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"bandwidth": 0.0}, ValueError, "bandwidth must be positive, got 0.0"),
        ({"bandwidth": math.nan}, ValueError, "bandwidth must be positive, got nan"),
        ({"bandwidth": torch.ones(3)}, ValueError, r"shape \(2,\).*got \(3,\)"),
        ({"x": randn(0, 2), "y": randn(0, 1)}, ValueError, "at least one sample"),
        ({"y": randn(6, 1)}, ValueError, r"x and y must be .* got \(5, 2\) and \(6, 1\)"),
        ({"y": randn(5, 1).float()}, TypeError, "y and x must have one dtype"),
        ({"query_x": randn(4, 3)}, ValueError, "query_x must be as wide as x"),
        ({"query_x": randn(2, 4, 2)}, ValueError, r"\(num_queries, dim\), got \(2, 4, 2\)"),
        ({"query_x": randn(4, 2).float()}, TypeError, "query_x and x must have one dtype"),
        ({"x": [1.0, 2.0]}, TypeError, "x must be a floating tensor, got list"),
        ({"graph": SOME}, ValueError, "50 destination nodes but query holds 4"),
    ],
)
def test_bad_samples_say_what_was_expected(change, error, message):
    good = {"query_x": randn(4, 2), "x": randn(5, 2), "y": randn(5, 1), "bandwidth": 1.0}
    with pytest.raises(error, match=message):
        nn.nadaraya_watson(**{**good, **change})
