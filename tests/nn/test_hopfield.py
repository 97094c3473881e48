"""Binary Hopfield networks: energy, dynamics, storage, bad input."""

import itertools

import networkx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import graphattn as ga
from graphattn import nn


def signs(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randint(0, 2, shape, generator=generator) - 1


def coupled(graph, matrix, field=None):
    """A network on a graph, whose weights are entries (dst, src) of a matrix."""
    src, dst = graph.edge_index
    return nn.HopfieldNetwork(graph, matrix[dst, src], field)


def ising(couplings, field, spins):
    """The Hamiltonian of an Ising model, in whole or float64 numbers, pair by pair."""
    n = len(spins)
    pairs = sum(couplings[i, j] * spins[i] * spins[j] for i in range(n) for j in range(i))
    return -pairs - sum(field[i] * spins[i] for i in range(n))


@st.composite
def networks(draw):
    """A random graph on up to 8 neurons, symmetric couplings, an external field; whole numbers."""
    n = draw(st.integers(1, 8))
    drawn = networkx.gnp_random_graph(
        n, draw(st.sampled_from([0.2, 0.6, 1.0])), draw(st.integers(0, 99))
    )
    numbers = st.integers(-3, 3)
    couplings = np.zeros((n, n))
    for u, v in drawn.edges:
        couplings[u, v] = couplings[v, u] = draw(numbers)
    field = np.array([draw(numbers) for _ in range(n)], dtype=float)
    edges = [*drawn.edges, *(edge[::-1] for edge in drawn.edges)]
    edges = torch.tensor(draw(st.permutations(edges)), dtype=torch.int64).reshape(-1, 2)
    return ga.from_edges(edges.T, n), couplings, field


def network_of(graph, couplings, field):
    return coupled(graph, torch.from_numpy(couplings), torch.from_numpy(field))


def all_states(n):
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=n)))


# --- energy ---------------------------------------------------------------------------------------


@given(networks())
def test_energy_is_the_ising_hamiltonian(drawn):
    graph, couplings, field = drawn
    states = all_states(graph.num_dst)
    energy = network_of(*drawn).energy(states)
    expected = [ising(couplings, field, state) for state in states.numpy()]
    assert energy.tolist() == expected


@given(networks(), st.integers(0, 999))
def test_energy_never_rises_and_falls_with_every_flip(drawn, seed):
    graph, couplings, field = drawn
    network, n = network_of(*drawn), graph.num_dst
    start = signs(n, seed=seed)
    after = network.sweep(start, generator=torch.Generator().manual_seed(seed))

    spins, energy = start.numpy().copy(), ising(couplings, field, start.numpy())
    for node in torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist():
        heard = couplings[node] @ spins + field[node]
        if heard * spins[node] < 0:
            spins[node] = -spins[node]
            lower = ising(couplings, field, spins)
            assert lower == energy - 2 * abs(heard)
            energy = lower
    assert after.tolist() == spins.tolist()
    assert float(network.energy(after)) == energy


@given(networks(), st.integers(0, 999))
def test_every_state_settles_where_no_single_flip_lowers_the_energy(drawn, seed):
    graph, couplings, field = drawn
    network = network_of(*drawn)
    states = all_states(graph.num_dst)
    settled = network(states, generator=torch.Generator().manual_seed(seed))
    assert network.is_stable(settled).all()
    for state in settled.numpy()[:: max(1, len(states) // 8)]:
        energy = ising(couplings, field, state)
        for node in range(graph.num_dst):
            flipped = state.copy()
            flipped[node] *= -1
            assert ising(couplings, field, flipped) >= energy
    stable = network.is_stable(states)
    assert torch.equal(stable, (network.sweep(states) == states).all(-1))


def test_a_neuron_with_no_field_keeps_its_state():
    network = nn.HopfieldNetwork(ga.from_edges(torch.zeros(2, 0).long(), 3), torch.zeros(0))
    for state in all_states(3):
        assert torch.equal(network(state), state)
        assert torch.equal(network.synchronous_step(state), state)
        assert network.is_stable(state)


def test_all_at_once_may_go_round_for_ever():
    network = coupled(ga.from_edges([[0, 1], [1, 0]], 2), torch.ones(2, 2))
    state = torch.tensor([1.0, -1.0])
    other = network.synchronous_step(state)
    assert other.tolist() == [-1.0, 1.0]
    assert torch.equal(network.synchronous_step(other), state)
    assert abs(network(state).sum()) == 2  # one after the other, they agree


@given(networks())
def test_local_field_and_synchronous_step(drawn):
    graph, couplings, field = drawn
    network, states = network_of(*drawn), all_states(graph.num_dst)
    heard = states.double() @ torch.from_numpy(couplings).T + torch.from_numpy(field)
    assert torch.equal(network.local_field(states), heard)
    after = torch.where(heard == 0, states, heard.sign().to(states))
    assert torch.equal(network.synchronous_step(states), after)


# --- states ---------------------------------------------------------------------------------------


def test_a_batch_is_as_many_single_states():
    graph = ga.expander(30, 6, seed=1)
    network = nn.HopfieldNetwork(graph, nn.hebbian_weights(signs(3, 30), graph))
    states = signs(4, 5, 30, seed=1)
    together = network(states, generator=torch.Generator().manual_seed(7))
    for place in itertools.product(range(4), range(5)):
        alone = network(states[place], generator=torch.Generator().manual_seed(7))
        assert torch.equal(together[place], alone)
        torch.testing.assert_close(network.energy(states)[place], network.energy(states[place]))
    assert network(states[:0]).shape == (0, 5, 30)
    assert not torch.equal(together, states)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float16, torch.float64])
def test_states_keep_their_dtype_and_are_not_changed(dtype):
    graph = ga.complete(12).without_self_loops()
    pattern = signs(1, 12)
    network = nn.HopfieldNetwork(graph, nn.hebbian_weights(pattern, graph))
    state = pattern[0].to(dtype)
    state[0] *= -1
    before = state.clone()
    for after in (network(state), network.sweep(state), network.synchronous_step(state)):
        assert after.dtype == dtype
        assert torch.equal(after, pattern[0].to(dtype))
        assert torch.equal(state, before)


def test_sweeps_are_bounded():
    chain = coupled(ga.sliding_window(50, 1).without_self_loops(), torch.ones(50, 50))
    state = torch.ones(50)
    state[1::2] = -1
    assert torch.equal(chain(state, max_sweeps=0), state)
    once = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    assert torch.equal(
        chain(state, max_sweeps=1, generator=once[0]), chain.sweep(state, generator=once[1])
    )


def test_thousands_of_neurons_on_a_sparse_graph():
    graph = ga.expander(4000, 20, seed=0)
    patterns = signs(2, 4000)
    network = nn.HopfieldNetwork(graph, nn.hebbian_weights(patterns, graph))
    damaged = patterns.clone()
    damaged[:, :400] *= -1
    assert (network(damaged) * patterns).mean() > 0.99


def test_buffers_follow_the_module_and_the_seed_decides():
    graph = ga.complete(20).without_self_loops()
    network = nn.HopfieldNetwork(graph, nn.hebbian_weights(signs(8, 20), graph)).double()
    assert network.energy(signs(20)).dtype == torch.float64
    assert set(network.state_dict()) == {"weights", "field"}
    states = signs(200, 20, seed=5)
    ends = [network(states, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])  # the order decides where some states end


# --- storage --------------------------------------------------------------------------------------

GRAPHS = [
    ga.complete(7).without_self_loops(),
    ga.expander(8, 3, seed=0),
    ga.causal(5),
    ga.complete(4),
]


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
@pytest.mark.parametrize("count", [1, 30])  # by edges and by one product, where that is smaller
def test_hebbs_rule(graph, count):
    patterns = signs(count, graph.num_dst)
    expected = [sum(float(p[i] * p[j]) for p in patterns) for j, i in graph.edge_index.T]
    assert nn.hebbian_weights(patterns, graph).tolist() == expected


@pytest.mark.parametrize("count", [2, 12, 64, 90])
def test_the_projection_keeps_patterns_that_resemble_each_other(count):
    graph = ga.complete(64).without_self_loops()
    patterns = signs(1, 64).repeat(count, 1).double()
    patterns[:, :20] *= signs(count, 20, seed=1)  # two of them differ by 10 of 64 on average
    weights = nn.projection_weights(patterns, graph)
    src, dst = graph.edge_index
    basis = torch.linalg.qr(patterns.unique(dim=0).T)[0][:, : torch.linalg.matrix_rank(patterns)]
    torch.testing.assert_close(weights, (basis @ basis.T)[dst, src], atol=1e-9, rtol=0)
    network = nn.HopfieldNetwork(graph, weights)
    fields = network.local_field(patterns)
    assert (fields * patterns > -1e-9).all()
    hebbian = nn.HopfieldNetwork(graph, nn.hebbian_weights(patterns, graph))
    assert hebbian.is_stable(patterns).all() == (count == 2)


def test_random_patterns_are_recalled_below_capacity_and_not_above():
    n = 400
    graph = ga.complete(n).without_self_loops()
    recalled = {}
    for count in (20, 40, 100):  # 0.05, 0.1 and 0.25 of n; the bound is 0.138
        patterns = signs(count, n)
        network = nn.HopfieldNetwork(graph, nn.hebbian_weights(patterns, graph))
        damaged = torch.where(
            torch.rand(count, n, generator=torch.Generator().manual_seed(1)) < 0.1, -1, 1
        )
        recalled[count] = (network(damaged * patterns) * patterns).mean().item()
    assert recalled[20] == 1
    assert recalled[40] > 0.99
    assert recalled[100] < 0.7


# --- bad input ------------------------------------------------------------------------------------

TRIANGLE = ga.complete(3).without_self_loops()
NETWORK = nn.HopfieldNetwork(TRIANGLE, torch.ones(6))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: nn.HopfieldNetwork(ga.complete(3), torch.ones(9)),
            ValueError,
            r"must not hear itself; use graph.without_self_loops\(\)",
        ),
        (
            lambda: nn.HopfieldNetwork(ga.causal(3).without_self_loops(), torch.ones(3)),
            ValueError,
            r"symmetric; graph \| graph.T is",
        ),
        (
            lambda: nn.HopfieldNetwork(ga.bipartite(2, 3), torch.ones(6)),
            ValueError,
            "3 sources and 2 destinations",
        ),
        (
            lambda: nn.HopfieldNetwork(
                ga.from_edges([[0, 1, 0, 1], [1, 0, 1, 0]], 2), torch.ones(4)
            ),
            ValueError,
            "parallel edges",
        ),
        (
            lambda: nn.HopfieldNetwork(TRIANGLE, torch.arange(6.0)),
            ValueError,
            "both directions, got 0 for 1 -> 0 and 2 for 0 -> 1; take the mean",
        ),
        (lambda: nn.HopfieldNetwork(TRIANGLE, torch.ones(3, 3)), ValueError, r"\(6,\).*\(3, 3\)"),
        (lambda: nn.HopfieldNetwork(TRIANGLE, torch.ones(6).long()), TypeError, "weights must be"),
        (
            lambda: nn.HopfieldNetwork(TRIANGLE, torch.ones(6), torch.ones(2)),
            ValueError,
            r"field must have shape \(3,\).*got \(2,\)",
        ),
        (lambda: nn.HopfieldNetwork(TRIANGLE, torch.ones(6), 0.5), TypeError, "field must be"),
        (lambda: NETWORK(torch.tensor([1.0, 0.0, 1.0])), ValueError, r"got 0; 2 \* x - 1 makes"),
        (lambda: NETWORK(torch.tensor([1.0, torch.nan, 1.0])), ValueError, "got nan"),
        (lambda: NETWORK(torch.tensor([True, False, True])), ValueError, "got 0"),
        (lambda: NETWORK.energy(torch.ones(2, 4)), ValueError, r"\(\*batch, 3\).*got \(2, 4\)"),
        (lambda: NETWORK([1, 1, 1]), ValueError, "got list"),
        (lambda: NETWORK(torch.ones(3), max_sweeps=-1), ValueError, "max_sweeps must be between"),
        (
            lambda: nn.HopfieldNetwork(torch.ones(3, 3), torch.ones(6)),
            TypeError,
            "expected a graph",
        ),
        (lambda: nn.hebbian_weights(torch.ones(1, 3), 3), TypeError, "expected a graph, got int"),
        (lambda: nn.hebbian_weights(torch.zeros(2, 3), TRIANGLE), ValueError, "patterns must hold"),
        (lambda: nn.hebbian_weights(torch.ones(2, 4), TRIANGLE), ValueError, r"got \(2, 4\) and 3"),
        (lambda: nn.projection_weights(torch.ones(3), TRIANGLE), ValueError, r"got \(3,\) and 3"),
        (lambda: nn.projection_weights(torch.ones(1, 3).int(), TRIANGLE), TypeError, "torch.int32"),
    ],
)
def test_bad_input_says_what_was_expected(make, error, message):
    with pytest.raises(error, match=message):
        make()
