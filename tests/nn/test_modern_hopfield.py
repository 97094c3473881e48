"""ModernHopfield: its update, energy and fixed points, and which patterns a state sees."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import graphattn as ga
from graphattn import nn


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def moved(state, patterns, beta):
    """Eq. 3 for one state, pattern by pattern."""
    weights = [math.exp(beta * float(pattern @ state)) for pattern in patterns]
    return sum(w * pattern for w, pattern in zip(weights, patterns)) / sum(weights)


def energy(state, patterns, beta, largest):
    """Eq. 2 for one state."""
    total = sum(math.exp(beta * float(pattern @ state)) for pattern in patterns)
    e = -math.log(total) / beta + float(state @ state) / 2
    return e + math.log(len(patterns)) / beta + largest**2 / 2


SEEN = ga.from_edges(  # six states, three to seven of nine patterns each; one edge is parallel
    [[0, 1, 2, 3, 5, 8, *range(7), 8, 8, 4, 2, 0, 4, 7, 1, 6, 3],
     [0, 0, 0, 1, 1, 1, *[2] * 7, 3, 3, 3, 4, 4, 4, 5, 5, 5, 5]],
    num_dst=6,
    num_src=9,
)  # fmt: skip


@pytest.mark.parametrize("graph", [None, SEEN], ids=["all", "some"])
@pytest.mark.parametrize("beta", [0.1, 1.0, 4.0])
def test_update_and_energy_are_the_formulas(graph, beta):
    patterns, states = randn(9, 4), randn(2, 6, 4, seed=1)
    src, dst = (graph or ga.bipartite(6, 9)).edge_index
    network = nn.ModernHopfield(patterns, beta=beta)
    after, energies = network.update(states, graph), network.energy(states, graph)
    assert energies.shape == (2, 6)
    largest = float(patterns.norm(dim=1).max())
    for batch in range(2):
        for node, state in enumerate(states[batch]):
            seen = patterns[src[dst == node]]
            torch.testing.assert_close(after[batch, node], moved(state, seen, beta))
            expected = energy(state, seen, beta, largest)
            assert float(energies[batch, node]) == pytest.approx(expected)


@given(
    seed=st.integers(0, 999),
    beta=st.sampled_from([0.01, 0.3, 1.0, 10.0, 1000.0]),
    spread=st.sampled_from([0.1, 1.0, 30.0]),
    some=st.booleans(),
)
def test_energy_never_rises_and_stays_within_bounds(seed, beta, spread, some):
    network = nn.ModernHopfield(randn(9, 4, seed=seed), beta=beta)
    graph, state = SEEN if some else None, spread * randn(6, 4, seed=seed + 1)
    before = network.energy(state, graph)
    for _ in range(6):
        state = network.update(state, graph)
        after = network.energy(state, graph)
        assert (after <= before + 1e-10 * (1 + before.abs())).all()
        before = after
    largest = network.patterns.square().sum(1).max()
    assert (before >= -1e-9).all()  # within the patterns' hull, 0 <= E <= 2 M^2
    assert (before <= 2 * largest + 1e-9).all()


def test_stored_patterns_are_retrieved_by_one_update():
    patterns = randn(500, 64).sign()  # nearly 8 times the dimension
    network = nn.ModernHopfield(patterns, beta=1.0)
    damaged = patterns.clone()
    damaged[:, :10] *= -1
    assert torch.equal(network.update(damaged).sign(), patterns)
    torch.testing.assert_close(network(damaged), patterns, atol=1e-3, rtol=0)
    half = patterns.clone()
    half[:, 32:] = 0
    torch.testing.assert_close(network(half), patterns, atol=1e-3, rtol=0)


def test_low_beta_blends_all_patterns():
    patterns, states = randn(9, 4), randn(5, 4, seed=1)
    network = nn.ModernHopfield(patterns, beta=1e-6)
    torch.testing.assert_close(network(states), patterns.mean(0).expand(5, 4), atol=1e-4, rtol=0)


@pytest.mark.parametrize("graph", [None, SEEN], ids=["all", "some"])
def test_it_ends_in_a_fixed_point_whatever_the_others_do(graph):
    network = nn.ModernHopfield(randn(9, 4), beta=1.3)
    states = randn(3, 6, 4, seed=1)
    states[0] = 0.01 * states[0]
    ends = network(states, graph, tolerance=1e-6, max_steps=1000)
    move = (network.update(ends, graph) - ends).norm(dim=-1)
    assert (move <= 1e-6).all()
    for batch in range(3):
        for node in range(6):
            row = (graph or ga.bipartite(6, 9)).rows(node, node + 1)
            state = states[batch, node : node + 1]
            alone = network(state, row, tolerance=1e-6, max_steps=1000)
            torch.testing.assert_close(alone[0], ends[batch, node], rtol=0, atol=1e-12)


def test_steps_are_bounded():
    network, states = nn.ModernHopfield(randn(9, 4)), randn(5, 4, seed=1)
    assert torch.equal(network(states, max_steps=0), states)
    torch.testing.assert_close(network(states, max_steps=1), network.update(states))
    twice = network.update(network.update(states))
    torch.testing.assert_close(network(states, max_steps=2, tolerance=0), twice)
    assert network(states[:0]).shape == (0, 4)


def test_gradients_reach_states_and_learned_patterns():
    def retrieved(state, patterns):
        network = nn.ModernHopfield(patterns, beta=0.7)
        return network(state, max_steps=3, tolerance=0), network.energy(state)

    assert torch.autograd.gradcheck(
        retrieved, [randn(3, 4, seed=1).requires_grad_(), randn(5, 4).requires_grad_()]
    )
    network = nn.ModernHopfield(torch.nn.Parameter(randn(5, 4)))
    network(randn(3, 4, seed=1)).square().sum().backward()
    assert network.patterns.grad.any()


def test_the_update_is_the_one_of_torch_and_compiles_whole():
    patterns, states = randn(9, 4), randn(5, 4, seed=1)
    network = nn.ModernHopfield(patterns, beta=2.0)
    theirs = torch.nn.functional.scaled_dot_product_attention(states, patterns, patterns, scale=2.0)
    torch.testing.assert_close(network.update(states), theirs)
    compiled = torch.compile(network.update, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(states), theirs)


NETWORK = nn.ModernHopfield(randn(9, 4))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.ModernHopfield([[1.0]]), TypeError, "patterns must be a floating tensor"),
        (lambda: nn.ModernHopfield(randn(0, 4)), ValueError, r"both positive, got \(0, 4\)"),
        (lambda: nn.ModernHopfield(randn(4)), ValueError, r"\(num_patterns, dim\).*got \(4,\)"),
        *(
            (lambda beta=beta: nn.ModernHopfield(randn(2, 4), beta=beta), ValueError, f"got {beta}")
            for beta in (0.0, -1.0, math.inf, math.nan)
        ),
        (lambda: NETWORK(randn(4)), ValueError, r"num_states, 4\).*got \(4,\); state\[None\]"),
        (lambda: NETWORK([[1.0] * 4]), TypeError, "state must be a floating tensor, got list"),
        (lambda: NETWORK(randn(2, 3)), ValueError, r"as wide as the patterns, got \(2, 3\)"),
        (lambda: NETWORK(randn(2, 4).float()), TypeError, "one dtype"),
        (lambda: NETWORK(randn(2, 4), SEEN), ValueError, "num_dst=2 states.*got 6 and 9"),
        (
            lambda: NETWORK.energy(randn(2, 4), ga.from_edges([[0], [0]], num_dst=2, num_src=9)),
            ValueError,
            "state 1 sees none",
        ),
    ],
)
def test_bad_input_says_what_was_expected(make, error, message):
    with pytest.raises(error, match=message):
        make()
