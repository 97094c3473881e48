"""What is kept of the nodes of a sequence that others are yet to hear; the graph says it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from graphattn.attention import attention
from graphattn.graphs import Graph
from graphattn.graphs.checks import integer, integers, items
from graphattn.graphs.graph import num_nodes, require_graph
from graphattn.graphs.order import edge_ahead
from graphattn.graphs.tree import Branches
from graphattn.nn.schedule import Turn, schedule


class Memory(Protocol):
    """What `GraphAttention.step` takes: a `KVCache`, or a `Draft` of one."""

    def places(self, count: int, device: torch.device) -> Tensor:
        """Numbers of the next nodes, int64 (count,); (batch, count) where they differ."""
        ...

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **meaning: Any) -> Tensor:
        """Attention of the next nodes over those kept and themselves; takes as `attention`."""
        ...


class KVCache:
    """Keys and values of the nodes that later ones attend to, for one layer (Shazeer 2019).

    Nodes come in the order of their numbers, one or several at a time. What is kept of them is what
    the graph asks for: a key is dropped as soon as no later node has an edge from it. Over `causal`
    the cache grows, over a sliding window it is a ring, and with hubs it keeps these besides. The
    place of every key is known beforehand, and room for the most keys at once is made with the
    first. The cache is for inference: no gradient passes through what is kept.

    Args:
        graph: Who attends to whom among all nodes that will ever come; no node attends to a later
            one.

    Raises:
        TypeError: If it is not a graph.
        ValueError: If a node attends to a later one.

    Example:
        >>> import torch
        >>> from graphattn import causal, nn, sliding_window
        >>> layer = nn.GraphAttention(32, heads=4, positions=nn.Rotary(8))
        >>> graph, x = causal(100) & sliding_window(100, 3), torch.randn(2, 100, 32)
        >>> cache = nn.KVCache(graph)
        >>> read = layer.step(x[:, :60], cache)  # many nodes at once
        >>> step = layer.step(x[:, 60:61], cache)  # and one
        >>> torch.allclose(step, layer(x, graph)[:, 60:61], atol=1e-5)
        True
        >>> cache.capacity, cache.kept().tolist()
        (4, [58, 59, 60])
    """

    def __init__(self, graph: Graph) -> None:
        num_nodes(require_graph(graph), "a cache needs")
        if (edge := edge_ahead(graph)) is not None:
            raise ValueError(
                f"node {edge[0]} attends to the later node {edge[1]} in {graph}, so that it can't "
                f"be computed before that comes; take graph & causal({graph.num_dst})"
            )
        self.graph = graph
        self.lengths: tuple[int, ...] = (0,)
        """How many nodes came: one number, or one for each sequence of a batch if they differ."""
        self._keys = self._values = torch.empty(0)

    @property
    def capacity(self) -> int:
        """The most keys that are kept at once, for each sequence."""
        return schedule(self.graph).slots.capacity

    def kept(self, sequence: int = 0) -> Tensor:
        """The nodes before the next one that it or a later one attends to, int64 (nodes,)."""
        return schedule(self.graph).alive(self.lengths[sequence])

    def places(self, count: int, device: torch.device | str = "cpu") -> Tensor:
        """Numbers of the next nodes, int64 (count,); (batch, count) if lengths differ.

        Raises:
            ValueError: If the graph has fewer nodes, or lengths differ and count is not 1.
        """
        return self._turn(count, torch.device(device)).places

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **meaning: Any) -> Tensor:
        """Attention of the next nodes over those kept and themselves, which are then kept too.

        Args:
            query: (*batch, new, heads, head_dim).
            key: (*batch, new, kv_heads, head_dim).
            value: (*batch, new, kv_heads, value_dim).
            meaning: As in `attention`; a bias is a function of the numbers that nodes have in the
                graph.

        Returns:
            (*batch, new, heads, value_dim).

        Raises:
            ValueError: If the graph has fewer nodes, or shapes don't fit what is kept.
        """
        count = key.shape[-3]
        turn = self._turn(count, key.device)
        self._make_room(key, value)
        if turn.alone:
            self._write(turn, key, value)
            key, value = turn.read(self._keys), turn.read(self._values)
            out = attention(query, key, value, turn.graph, **turn.at_nodes(meaning, query))
        else:
            out = self._beside(turn, query, key, value, meaning)
            self._write(turn, key, value)
        self.lengths = tuple(length + count for length in self.lengths)
        return out

    def draft(self, parents: Tensor | Iterable[int]) -> Draft:
        """A tree of nodes that may come next, to be attended over before one branch is taken.

        Args:
            parents: The parent of each, int64 (nodes,); -1 for those that follow what is kept. A
                node comes after its parent.

        Raises:
            ValueError: If a parent does not come before its child, a branch is longer than the
                graph, or the sequences of the batch have different lengths.
        """
        return Draft(self, Branches.of(parents))

    def rewind(self, length: int) -> None:
        """Forget the nodes from this number on, so that others may come in their place.

        Over a causal graph that can always be done, and over a window only until it is full.

        Args:
            length: How many nodes are left, at most as many as came.

        Raises:
            ValueError: If there are fewer nodes, if sequences have different lengths, or if a key
                that is needed again was dropped in the meantime.

        Example:
            >>> import torch
            >>> from graphattn import causal, nn
            >>> cache, layer = nn.KVCache(causal(9)), nn.GraphAttention(8, heads=2)
            >>> _ = layer.step(torch.randn(5, 8), cache)
            >>> cache.rewind(2)
            >>> cache.places(1).tolist()
            [2]
        """
        length = integer("length", length, high=self._length)
        lost = schedule(self.graph).dropped(length, self._length)
        if len(lost):
            raise ValueError(
                f"node {length} or a later one attends to node {int(lost[0])}, which was dropped: "
                f"no node from {self._length} on does; read the nodes before {length} again"
            )
        self.lengths = (length,)

    def select(self, rows: Tensor) -> KVCache:
        """The sequences of these numbers, int64 (rows,), along the first batch dimension.

        Raises:
            ValueError: If there is no batch dimension.

        Example:
            >>> import torch
            >>> from graphattn import causal, nn
            >>> cache, layer = nn.KVCache(causal(4)), nn.GraphAttention(8, heads=2)
            >>> _ = layer.step(torch.randn(3, 1, 8), cache)
            >>> layer.step(torch.randn(2, 1, 8), cache.select(torch.tensor([2, 2]))).shape
            torch.Size([2, 1, 8])
        """
        chosen = KVCache(self.graph)
        chosen.lengths = self.lengths
        if len(self.lengths) > 1:
            lengths = tuple(self.lengths[row] for row in rows.tolist())
            chosen.lengths = _alike(lengths) or self.lengths[:1]
        if self._keys.ndim == 3:
            raise ValueError("the cache holds one sequence, without a batch to select from")
        if self._keys.ndim > 3:
            chosen._keys, chosen._values = (
                kept.transpose(-3, -2).index_select(0, rows).transpose(-3, -2)
                for kept in (self._keys, self._values)
            )
        return chosen

    @staticmethod
    def stack(caches: Sequence[KVCache]) -> KVCache:
        """One cache of sequences that were read one by one, and may have different lengths.

        They go on together, one node of each at a time.

        Args:
            caches: Over one graph, each of one sequence without batch dimensions.

        Raises:
            ValueError: If there is none, or they are over different graphs, or have read nothing.
        """
        if len({id(cache.graph) for cache in caches}) != 1:
            raise ValueError("give caches over one graph, each made with the same graph object")
        if any(cache._keys.ndim != 3 for cache in caches):
            raise ValueError(
                "each cache must hold one sequence, read without batch dimensions, (nodes, dim)"
            )
        stacked = KVCache(caches[0].graph)
        stacked.lengths = _alike(tuple(length for cache in caches for length in cache.lengths))
        for name in ("_keys", "_values"):
            kept = [getattr(cache, name).transpose(-3, -2) for cache in caches]
            setattr(stacked, name, torch.stack(kept).transpose(-3, -2))
        return stacked

    def _turn(self, count: int, device: torch.device) -> Turn:
        longest = max(self.lengths, default=0) + count
        if longest > self.graph.num_dst:
            raise ValueError(
                f"{self.graph} has {self.graph.num_dst} nodes, but there would be {longest}; build "
                f"the graph on {longest} nodes or more"
            )
        if count == 1:
            return schedule(self.graph).next_of_each(self.lengths, device)
        return schedule(self.graph).following(self._length, count, device)

    @property
    def _length(self) -> int:
        if len(self.lengths) != 1:
            raise ValueError(
                f"the sequences have different lengths, {self.lengths}; they go on together one "
                "node at a time"
            )
        return self.lengths[0]

    def _beside(
        self, turn: Turn, query: Tensor, key: Tensor, value: Tensor, meaning: dict[str, Any]
    ) -> Tensor:
        """Attention over what is kept and, beside it, the new ones."""
        if turn.num_kept:
            key = torch.cat([turn.read(self._keys), key], dim=-3)
            value = torch.cat([turn.read(self._values), value], dim=-3)
        return attention(query, key, value, turn.graph, **turn.at_nodes(meaning, query))

    def _make_room(self, key: Tensor, value: Tensor) -> None:
        if self._keys.ndim == 1:
            with torch.inference_mode(False):  # else the cache could be used under no other mode
                self._keys, self._values = (_room(x, self.capacity) for x in (key, value))
        for new, kept in ((key, self._keys), (value, self._values)):
            alike = (new.dtype, new.device) == (kept.dtype, kept.device)
            if not alike or new.shape[:-3] + new.shape[-2:] != kept.shape[:-3] + kept.shape[-2:]:
                raise ValueError(
                    f"the cache keeps {kept.dtype} {tuple(kept.shape)} on {kept.device}, (*batch, "
                    f"capacity, kv_heads, dim), which {new.dtype} {tuple(new.shape)} on "
                    f"{new.device} does not fit; make a cache for each layer and batch"
                )

    def _write(self, turn: Turn, key: Tensor, value: Tensor) -> None:
        turn.write(self._keys, key.detach())
        turn.write(self._values, value.detach())


class Draft:
    """Nodes that may come next, a tree of them, beside what a cache keeps; `KVCache.draft`.

    `GraphAttention.step` over it lets every node attend as if its branch were the sequence: to what
    the graph gives a node of its place, among the nodes kept and its own ancestors. The cache stays
    as it is until `accept` (SpecInfer, Miao et al. 2024, section 4).

    Example:
        >>> import torch
        >>> from graphattn import causal, nn
        >>> cache, layer = nn.KVCache(causal(9)), nn.GraphAttention(8, heads=2)
        >>> _ = layer.step(torch.randn(5, 8), cache)
        >>> draft = cache.draft([-1, 0, 0])  # a node, and two that may follow it
        >>> layer.step(torch.randn(3, 8), draft).shape
        torch.Size([3, 8])
        >>> draft.accept([0, 2])
        >>> cache.lengths
        (7,)
    """

    def __init__(self, cache: KVCache, branches: Branches) -> None:
        self.cache, self.branches = cache, branches
        self._start, depths = cache._length, branches.path.shape[1]
        if self._start + depths > cache.graph.num_dst:
            raise ValueError(
                f"{cache.graph} has {cache.graph.num_dst} nodes, but the longest branch ends at "
                f"{self._start + depths}; cut it, or build the graph on more nodes"
            )
        self._pending: tuple[Tensor, Tensor] | None = None

    def places(self, count: int, device: torch.device | str = "cpu") -> Tensor:
        """The number that each node of the tree would have, int64 (nodes,).

        Raises:
            ValueError: If count is not how many nodes there are.
        """
        if count != len(self.branches.depth):
            raise ValueError(
                f"the draft has {len(self.branches.depth)} nodes, but {count} were given"
            )
        return self._turn(torch.device(device)).places

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **meaning: Any) -> Tensor:
        """As `KVCache.attend`, for the nodes of the tree; what is kept stays as it is."""
        turn = self._turn(key.device)
        self.cache._make_room(key, value)
        self._pending = key.detach(), value.detach()
        return self.cache._beside(turn, query, key, value, meaning)

    def accept(self, path: Tensor | Iterable[int]) -> None:
        """Let nodes of the tree come next, a path from a root on; all others are forgotten.

        Args:
            path: Nodes of the tree, each the parent of the next; may be none.

        Raises:
            RuntimeError: If nothing was attended to yet, or the cache went on without the draft.
            ValueError: If it is not such a path.
        """
        given = path if isinstance(path, Tensor) else items("path", path)
        nodes = integers("path", given).reshape(-1).cpu()
        if self._pending is None or self.cache.lengths != (self._start,):
            raise RuntimeError(
                "a draft is accepted once, after the layer's step over it and before the cache "
                "goes on; make a new one with cache.draft(parents)"
            )
        parents = torch.cat([nodes.new_tensor([-1]), nodes])[:-1]
        known = nodes.numel() == 0 or 0 <= int(nodes.min()) <= int(nodes.max()) < self._size
        if not known or not torch.equal(self.branches.parents[nodes], parents):
            raise ValueError(f"path must go from a root to one of its descendants, got {path}")
        key, value = self._pending
        if len(nodes):
            turn = schedule(self.cache.graph).following(self._start, len(nodes), key.device)
            chosen = nodes.to(key.device)
            self.cache._write(turn, key.index_select(-3, chosen), value.index_select(-3, chosen))
        self.cache.lengths = (self._start + len(nodes),)
        self._pending = None

    @property
    def _size(self) -> int:
        return len(self.branches.depth)

    def _turn(self, device: torch.device) -> Turn:
        return schedule(self.cache.graph).tree(self._start, self.branches, device)


def _room(x: Tensor, capacity: int) -> Tensor:
    """Zeros (*batch, capacity, heads, dim); heads lie one by one, as attention reads them."""
    *batch, _, heads, dim = x.shape
    zeros = torch.zeros(*batch, heads, capacity, dim, dtype=x.dtype, device=x.device)
    return zeros.transpose(-3, -2)


def _alike(lengths: tuple[int, ...]) -> tuple[int, ...]:
    """One length for all sequences, where they have the same."""
    return lengths[:1] if len(set(lengths)) == 1 else lengths
