"""Hopfield networks: binary neurons that hear each other over any symmetric graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphattn.graphs import Graph
from graphattn.graphs.checks import integer
from graphattn.graphs.csr import CSR, pair_keys
from graphattn.graphs.graph import require_graph
from graphattn.graphs.structure import is_simple
from graphattn.nn.stored import floating


class HopfieldNetwork(nn.Module):
    """Neurons of -1 or +1 that settle into an attractor (Hopfield 1982), on any symmetric graph.

    A neuron takes the sign of its local field `h_i = sum_j w_ij s_j + b_i`, a sum over the edges
    j -> i, and keeps its state where that is 0. The energy

        E(s) = -1/2 sum_(j -> i) w_ij s_i s_j - sum_i b_i s_i

    is the Hamiltonian of an Ising model whose couplings J are the weights and whose external field
    is `b` (in neurons: minus the thresholds). Each pair of neighbors is two edges, hence the 1/2.
    With `w_ij = w_ji` and `w_ii = 0`, a neuron that flips alone lowers the energy by `2 |h_i|`, so
    that asynchronous updates end in a local minimum (Hopfield 1982, eq. 7 and 8).

    Args:
        graph: Symmetric, without self loops and parallel edges; on Hopfield's own,
            `complete(n).without_self_loops()`, every neuron hears all others.
        weights: `w` of each edge, (E,) in edge order, floating, the same in both directions;
            `hebbian_weights` and `projection_weights` store patterns.
        field: External field `b`, (n,); 0 by default.

    Raises:
        TypeError: If graph is not a graph, or weights or field are not floating tensors.
        ValueError: If the graph or the weights are not symmetric, an edge is a loop or parallel to
            another, or shapes don't fit.

    Example:
        >>> from graphattn import complete
        >>> graph = complete(4).without_self_loops()
        >>> pattern = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
        >>> network = HopfieldNetwork(graph, hebbian_weights(pattern, graph))
        >>> network(torch.tensor([-1.0, 1.0, -1.0, -1.0])).tolist()
        [1.0, 1.0, -1.0, -1.0]
    """

    weights: Tensor
    field: Tensor

    def __init__(self, graph: Graph, weights: Tensor, field: Tensor | None = None) -> None:
        super().__init__()
        _check_symmetric(require_graph(graph), floating("weights", weights))
        field = weights.new_zeros(graph.num_dst) if field is None else floating("field", field)
        if field.shape != (graph.num_dst,):
            raise ValueError(
                f"field must have shape ({graph.num_dst},), one number for each neuron, got "
                f"{tuple(field.shape)}"
            )
        self.graph = graph
        self.register_buffer("weights", weights.detach())
        self.register_buffer("field", field.detach().to(weights))

    @torch.no_grad()
    def forward(
        self, state: Tensor, *, generator: torch.Generator | None = None, max_sweeps: int = 100
    ) -> Tensor:
        """The attractor that asynchronous updates lead to.

        Args:
            state: -1 and +1, (*batch, n) of any signed dtype.
            generator: Draws the order of the neurons, anew for every sweep; the default one of
                torch by default.
            max_sweeps: After this many times through all neurons the state is returned as it is;
                `is_stable` tells whether it had settled.

        Returns:
            (*batch, n), of the dtype of `state`.

        Raises:
            TypeError, ValueError: If the state is not binary, or of another size.
        """
        spins = self._spins(state)
        for _ in range(integer("max_sweeps", max_sweeps)):
            fields = self._fields(spins)
            if bool((spins * fields >= 0).all()):
                break
            self._sweep(spins, fields, generator)
        return _like(state, spins)

    @torch.no_grad()
    def sweep(self, state: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Every neuron once, one after the other in random order; as in `forward`."""
        spins = self._spins(state)
        self._sweep(spins, self._fields(spins), generator)
        return _like(state, spins)

    @torch.no_grad()
    def synchronous_step(self, state: Tensor) -> Tensor:
        """All neurons at once, each from what the others were: (*batch, n) to the same.

        The energy may rise, and the states may end in a cycle of two (Goles and Olivos 1980).
        """
        spins = self._spins(state)
        fields = self._fields(spins)
        return _like(state, torch.where(fields == 0, spins, fields.sign()))

    def is_stable(self, state: Tensor) -> Tensor:
        """Whether no neuron would flip, bool: (*batch, n) to (*batch)."""
        spins = self._spins(state)
        stable = (spins * self._fields(spins) >= 0).all(dim=0)
        return stable.reshape(state.shape[:-1])

    def local_field(self, state: Tensor) -> Tensor:
        """What each neuron hears, `sum_j w_ij s_j + b_i`: (*batch, n) to the same."""
        return self._fields(self._spins(state)).T.reshape(state.shape)

    def energy(self, state: Tensor) -> Tensor:
        """`E(s)` as above: (*batch, n) to (*batch)."""
        spins = self._spins(state)
        half = (self._fields(spins) + self.field[:, None]) / 2
        return -(spins * half).sum(dim=0).reshape(state.shape[:-1])

    def _spins(self, state: Tensor) -> Tensor:
        """(*batch, n) to (n, batch) of the dtype of the weights: a new tensor, a row a neuron."""
        n = self.graph.num_dst
        if not isinstance(state, Tensor) or state.ndim == 0 or state.shape[-1] != n:
            kind = tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__
            raise ValueError(f"state must be a tensor (*batch, {n}), a number a neuron, got {kind}")
        spins = state.to(self.weights).reshape(-1, n)
        _check_binary("state", spins)
        return spins.T.clone(memory_format=torch.contiguous_format)

    def _rows(self) -> tuple[CSR, Tensor]:
        """The edges by destination, and the weight of each."""
        csr = self.graph.to(self.weights.device).csr()
        return csr, csr.from_edge_order(self.weights, dim=0)

    def _fields(self, spins: Tensor) -> Tensor:
        """(n, batch) to the same."""
        csr, weights = self._rows()
        place, shape = torch.stack([csr.row, csr.index]), (len(spins), len(spins))
        matrix = torch.sparse_coo_tensor(
            place, weights, shape, is_coalesced=True, check_invariants=False
        )
        return matrix @ spins + self.field[:, None]

    def _sweep(self, spins: Tensor, fields: Tensor, generator: torch.Generator | None) -> None:
        """Change both in place: a neuron that flips adds its change to the fields around it."""
        csr, weights = self._rows()
        ptr = csr.ptr.tolist()
        device = None if generator is None else generator.device
        for node in torch.randperm(len(spins), generator=generator, device=device).tolist():
            flips = spins[node] * fields[node] < 0
            if not bool(flips.any()):
                continue
            change = torch.where(flips, -2 * spins[node], 0.0)
            spins[node] += change
            near = slice(ptr[node], ptr[node + 1])  # those it hears, which hear it as loudly
            fields.index_add_(0, csr.index[near], weights[near, None] * change)


def hebbian_weights(patterns: Tensor, graph: Graph) -> Tensor:
    """Hebb's rule: neurons that agree in a pattern excite each other (Hopfield 1982, eq. 2).

    `w_ij = sum_p x_pi x_pj`: whole numbers, so that local fields and energies are exact. On a
    complete graph of n neurons about 0.138 n random patterns stay close to attractors (Amit et al.
    1985), and most of n / (2 ln n) are attractors themselves (McEliece et al. 1987); of patterns
    that resemble each other, many fewer.

    Args:
        patterns: -1 and +1, (num_patterns, n), floating.
        graph: Who hears whom, on n neurons.

    Returns:
        (E,) in edge order.

    Raises:
        TypeError, ValueError: If the patterns are not binary, or don't fit the graph.

    Example:
        >>> from graphattn import from_edges
        >>> hebbian_weights(torch.tensor([[1.0, -1.0]]), from_edges([[0, 1], [1, 0]], 2))
        tensor([-1., -1.])
    """
    count, n = _check_patterns(patterns, graph)
    src, dst = graph.edge_index.to(patterns.device)
    if n * n <= count * len(src):  # the smaller of the two tensors is made
        return (patterns.T @ patterns)[dst, src]
    return (patterns[:, dst] * patterns[:, src]).sum(dim=0)


def projection_weights(patterns: Tensor, graph: Graph) -> Tensor:
    """The projection on the patterns, which may resemble each other (Personnaz et al. 1985).

    `W = P^+ P` of the patterns P. On `complete(n).without_self_loops()` every pattern is stable,
    but n independent ones make W the identity, and everything is. On other graphs it is cut to
    the edges, and promises nothing.

    Args:
        patterns, graph: As in `hebbian_weights`.

    Returns:
        (E,) in edge order.

    Raises:
        TypeError, ValueError: As in `hebbian_weights`.

    Example:
        >>> from graphattn import from_edges
        >>> weights = projection_weights(
        ...     torch.tensor([[1.0, -1.0]]), from_edges([[0, 1], [1, 0]], 2)
        ... )
        >>> [round(weight, 4) for weight in weights.tolist()]
        [-0.5, -0.5]
    """
    _check_patterns(patterns, graph)
    src, dst = graph.edge_index.to(patterns.device)
    weights = torch.linalg.pinv(patterns) @ patterns
    return (weights + weights.T)[dst, src] / 2  # symmetric to the last bit


def _like(state: Tensor, spins: Tensor) -> Tensor:
    return spins.T.reshape(state.shape).to(state)


def _check_patterns(patterns: Tensor, graph: Graph) -> tuple[int, int]:
    """Number of patterns and of neurons, if they fit the graph."""
    n = require_graph(graph).num_dst
    if floating("patterns", patterns).ndim != 2 or graph.num_src != n or patterns.shape[1] != n:
        raise ValueError(
            f"patterns must be (num_patterns, n) and the graph one on n neurons, got "
            f"{tuple(patterns.shape)} and {graph.num_src} sources for {n} destinations"
        )
    _check_binary("patterns", patterns)
    return len(patterns), n


def _check_binary(name: str, x: Tensor) -> None:
    wrong = x[x.abs() != 1]
    if len(wrong):
        raise ValueError(
            f"{name} must hold -1 and +1 and nothing else, got {wrong[0].item():g}; 2 * x - 1 "
            "makes them of 0 and 1"
        )


def _check_symmetric(graph: Graph, weights: Tensor) -> None:
    """Raise ValueError unless every edge has one reverse, of the same weight."""
    n = graph.num_dst
    if graph.num_src != n:
        raise ValueError(
            f"neurons hear each other: the graph must be one on n nodes, got {graph.num_src} "
            f"sources and {n} destinations"
        )
    if weights.shape != (graph.num_edges,):
        raise ValueError(
            f"weights must have shape ({graph.num_edges},), one for each edge, got "
            f"{tuple(weights.shape)}"
        )
    csr = graph.csr()
    if bool((csr.row == csr.index).any()):
        raise ValueError("a neuron must not hear itself; use graph.without_self_loops()")
    if not is_simple(graph):
        raise ValueError("the graph has parallel edges; add up their weights, and give it one each")
    back, order = pair_keys(csr.index, csr.row, n).sort()
    if not torch.equal(back, pair_keys(csr.row, csr.index, n)):
        raise ValueError("the graph must be symmetric; graph | graph.T is")
    weights = csr.from_edge_order(weights.to(graph.device), dim=0)
    if not torch.equal(weights, weights[order]):
        edge = int((weights != weights[order]).nonzero()[0])
        one, other = int(csr.index[edge]), int(csr.row[edge])
        raise ValueError(
            f"weights must be the same in both directions, got {weights[edge]:g} for {one} -> "
            f"{other} and {weights[order[edge]]:g} for {other} -> {one}; take the mean of the two"
        )
