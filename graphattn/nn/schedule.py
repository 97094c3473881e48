"""Which keys a call of new nodes reads and leaves, once for all layers that share a graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from graphattn import scores
from graphattn.biases import PairBias, bias_of_pairs
from graphattn.graphs import Graph, bipartite
from graphattn.graphs.csr import pair_keys, sorted_keys
from graphattn.graphs.facts import fact
from graphattn.graphs.order import last_listener, slots, sources_of
from graphattn.graphs.relabel import columns
from graphattn.graphs.structure import is_simple
from graphattn.graphs.tree import Branches, grown
from graphattn.scores import Score, as_score

_bipartite = lru_cache(4096)(bipartite)  # a row of some length comes again and again


@dataclass(frozen=True, eq=False)
class Turn:
    """One call of new nodes: what is read, attended over, and left for later ones.

    of: The graph of all nodes.
    places: Numbers of the new nodes in it, int64 (new,); (batch, 1) where they differ.
    graph: Who attends to whom, from the sources to the new nodes.
    kept: Slots of the sources that are read: the first so many, or int64 (kept,); (batch, kept)
        where places differ.
    alone: Whether the new nodes are written first and read with the others; else they are sources
        themselves, behind those read.
    new, slot: Which of the new nodes are left for later, and where; int64 of the same shape.
    nodes: Makes the numbers of the sources, int64 (sources,); (batch, sources).
    switch: 0 where a source is one, -inf where it only fills up, (batch, sources, 1).
    """

    of: Graph
    places: Tensor
    graph: Graph
    kept: int | Tensor
    alone: bool
    new: Tensor
    slot: Tensor
    nodes: Callable[[], Tensor]
    switch: Tensor | None = None

    @property
    def num_kept(self) -> int:
        return self.kept if isinstance(self.kept, int) else self.kept.shape[-1]

    @cached_property
    def sources(self) -> Tensor:
        """The numbers of the sources; made where a bias or a score asks for them."""
        return self.nodes().to(self.places.device)

    def read(self, memory: Tensor) -> Tensor:
        """(*batch, capacity, heads, dim) -> (*batch, kept, heads, dim)."""
        if isinstance(self.kept, int):
            return memory.narrow(-3, 0, self.kept)
        if self.kept.ndim == 1:
            return memory.index_select(-3, self.kept)
        sequence = torch.arange(len(memory), device=memory.device)[:, None]
        return memory[sequence, self.kept]

    def write(self, memory: Tensor, new: Tensor) -> None:
        """Leave the new ones, (*batch, new, heads, dim), in (*batch, capacity, heads, dim)."""
        if self.places.ndim > 1:  # one of each sequence
            memory[self.new, self.slot] = new[self.new, 0]
        elif len(self.new) == new.shape[-3]:
            memory.index_copy_(-3, self.slot, new)
        elif len(self.new):
            memory.index_copy_(-3, self.slot, new.index_select(-3, self.new))

    def at_nodes(self, meaning: dict[str, Any], query: Tensor) -> dict[str, Any]:
        """The arguments of `attention` with bias and score of nodes by their numbers."""
        bias, score = meaning.get("bias"), as_score(meaning.get("score", "dot"))
        if isinstance(bias, Tensor):
            raise TypeError(
                "in a cache, a bias is a function (dst, src) of nodes, not a tensor with a row for "
                "each edge"
            )
        return {**meaning, "bias": self._bias(bias, query), "score": self._score(score)}

    def _bias(self, bias: PairBias | None, query: Tensor) -> PairBias | Tensor | None:
        if bias is None:
            return self.switch
        if self.places.ndim == 1:
            return lambda dst, src: bias(self.places[dst], self.sources[src])
        values = bias_of_pairs(bias, self.places, self.sources, query.shape[-2])
        return values if self.switch is None else values + self.switch

    def _score(self, score: Score) -> Score:
        if isinstance(score, scores.Location):
            self._require_one_length("a location score")
            return replace(score, weight=score.weight[self.sources])
        if isinstance(score, scores.Dot | scores.Additive) or hasattr(score, "lower"):
            return score
        self._require_one_length("a score that is a function of edges")
        return lambda q_i, k_j, edge: score(q_i, k_j, self._edges[edge])

    @cached_property
    def _edges(self) -> Tensor:
        """The place of each edge in the edge order of all; of parallel ones, the first."""
        src, dst = self.graph.edge_index.to(self.places.device)
        keys = pair_keys(self.places[dst], self.sources[src], self.of.num_src)
        place = torch.searchsorted(sorted_keys(self.of).to(keys.device), keys)
        edge = self.of.csr().edge
        return place if edge is None else edge.to(keys.device)[place]

    def _require_one_length(self, what: str) -> None:
        if self.places.ndim > 1:
            raise ValueError(
                f"{what} knows one order of nodes, and the sequences have different lengths; let "
                "them go on one by one, or in batches of one length"
            )


class Schedule:
    """When each node of a causal graph comes, where it is kept, and for how long."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.last, self.slots = last_listener(graph), slots(graph)
        # Numbers of Python, which are asked for node by node.
        self._slot, self._used = self.slots.slot.tolist(), self.slots.used.tolist()
        simple = is_simple(graph)
        whole = (graph.in_degree() == self.slots.used) & simple
        self._whole = whole.tolist()  # whether a node hears all that is kept
        self._turn: tuple[Any, Turn] | None = None

    def alive(self, length: int) -> Tensor:
        """The nodes before `length` that are heard from there on, int64 (nodes,), ascending."""
        return (self.last[:length] >= length).nonzero().squeeze(1)

    def dropped(self, length: int, now: int) -> Tensor:
        """The nodes alive at `length` that are no more at `now`, int64 (nodes,)."""
        alive = self.alive(length)
        return alive[self.last[alive] < now]

    def next_of_each(self, lengths: tuple[int, ...], device: torch.device) -> Turn:
        """One node of each sequence, which have these lengths, or all the same."""
        make = self._row if len(lengths) == 1 else self._rows
        return self._kept(("next", lengths, device), make, lengths, device)

    def following(self, start: int, count: int, device: torch.device) -> Turn:
        """Nodes `start` to `start + count`, which attend to those kept and to each other."""
        return self._kept(("following", start, count, device), self._chunk, start, count, device)

    def tree(self, start: int, branches: Branches, device: torch.device) -> Turn:
        """The nodes of a tree, of which no one is left before it is accepted."""
        parents = tuple(branches.parents.tolist())
        return self._kept(("tree", start, parents, device), self._tree, start, branches, device)

    def _kept(self, key: Any, make: Callable[..., Turn], *args: Any) -> Turn:
        """The layers of a model ask for the same turn one after the other."""
        kept = self._turn
        if kept is None or kept[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                kept = self._turn = key, make(*args)
        return kept[1]

    def _heard(self, node: int) -> Tensor:
        """The sources of a node, int64 (degree,), ascending."""
        heard = sources_of(self.graph, node)
        if isinstance(heard, range):
            return torch.arange(heard.start, heard.stop, device=self.graph.device)
        return heard

    def _heard_in_order(self, node: int) -> Tensor:
        """The sources of a node that hears all that is kept, in the order of their slots."""
        heard = self._heard(node)
        return torch.empty_like(heard).index_put_((self.slots.slot[heard],), heard)

    def _row(self, lengths: tuple[int, ...], device: torch.device) -> Turn:
        (node,) = lengths
        place, slot = torch.tensor([node], device=device), self._slot[node]
        taken = torch.tensor([slot] if slot >= 0 else [], dtype=torch.int64, device=device)
        if self._whole[node]:
            kept, degree, nodes = self._used[node], self._used[node], self._heard_in_order
        else:
            nodes, heard = self._heard, self._heard(node)
            kept, degree = self.slots.slot[heard].to(device), len(heard)
        new, graph = torch.zeros_like(taken), _bipartite(1, degree)
        return Turn(self.graph, place, graph, kept, True, new, taken, lambda: nodes(node))

    def _rows(self, lengths: tuple[int, ...], device: torch.device) -> Turn:
        """Rows are filled up to the longest with sources that a bias switches off."""
        place, slot = torch.tensor([lengths, [self._slot[node] for node in lengths]], device=device)
        new = (slot >= 0).nonzero().squeeze(1)
        whole = all(self._whole[node] for node in lengths)
        heard = [(self._heard_in_order if whole else self._heard)(node) for node in lengths]
        degree = torch.tensor([len(row) for row in heard], device=device)
        nodes = torch.nn.utils.rnn.pad_sequence(heard, batch_first=True)  # (batch, sources)
        width = nodes.shape[1]
        kept = width if whole else self.slots.slot[nodes].clamp(min=0).to(device)
        off = torch.arange(width, device=device) >= degree[:, None]
        switch = torch.zeros_like(off, dtype=torch.float32).masked_fill(off, -torch.inf)[..., None]
        graph = _bipartite(1, width)
        return Turn(
            self.graph,
            place[:, None],
            graph,
            kept,
            True,
            new,
            slot[new],
            lambda: nodes,
            switch if bool(off.any()) else None,
        )

    def _chunk(self, start: int, count: int, device: torch.device) -> Turn:
        place = torch.arange(start, start + count, device=self.graph.device)
        alive = self.alive(start)
        graph = columns(self.graph.rows(start, start + count), torch.cat([alive, place]))
        return self._beside(place, graph, alive, torch.cat([alive, place]), device)

    def _tree(self, start: int, branches: Branches, device: torch.device) -> Turn:
        alive = self.alive(start)
        place = start + branches.depth.to(alive.device)
        tree = torch.arange(start, start + len(place), device=alive.device)
        graph = columns(grown(self.graph, start, branches), torch.cat([alive, tree]))
        return self._beside(place, graph, alive, torch.cat([alive, place]), device)

    def _beside(
        self, place: Tensor, graph: Graph, alive: Tensor, nodes: Tensor, device: torch.device
    ) -> Turn:
        """New nodes that are sources too, behind those kept."""
        after = int(place[-1]) + 1 if len(place) else 0
        new = (self.last[place] >= after).nonzero().squeeze(1)
        slot = self.slots.slot[place[new]].to(device)
        kept, graph = self.slots.slot[alive].to(device), graph.to(device)
        place, new = place.to(device), new.to(device)
        return Turn(self.graph, place, graph, kept, False, new, slot, lambda: nodes)


@fact
def schedule(graph: Graph) -> Schedule:
    """The schedule of a graph in which no node attends to a later one."""
    return Schedule(graph)
