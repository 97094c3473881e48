"""Graphs made of an `edge_index` are kept as long as it lives, so that it is sorted once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from threading import RLock

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from graphattn.graphs import Graph, from_edges


@dataclass
class Entry:
    """The graph of an edge_index, and what the tensor was like when it was made.

    used: Number of the use of the cache that was the last of this graph.
    """

    state: tuple[object, ...]
    graph: Graph
    used: int = 0


class GraphCache:
    """The graphs of the last edge_index tensors, found again by the identity of the tensor.

    A graph is taken again only if the tensor is the same object, none of torch's operations wrote
    into it since (its version), its memory and shape are the same, and so are the numbers of nodes.
    It goes when the tensor goes. What torch can't see, a write through numpy or through `.data`, is
    not noticed: `clear()` after it.

    Args:
        limit: Number of graphs that are kept, the latest used; 0 keeps none. It may be set at any
            time.

    Example:
        >>> import torch
        >>> cache, index = GraphCache(), torch.tensor([[0, 1], [1, 2]])
        >>> graph = cache.graph(index, num_src=3, num_dst=3)
        >>> cache.graph(index, num_src=3, num_dst=3) is graph
        True
        >>> index[0, 0] = 2
        >>> cache.graph(index, num_src=3, num_dst=3) is graph
        False
    """

    def __init__(self, limit: int = 64) -> None:
        self.limit = limit
        self._entries: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._uses = count()
        self._lock = RLock()  # an entry may go while its own thread holds the lock

    def graph(self, edge_index: Tensor, *, num_src: int, num_dst: int) -> Graph:
        """The graph of an edge_index (2, E), made now or before.

        Raises:
            TypeError, ValueError, IndexError: As `from_edges`.
        """
        return self.of(edge_index, from_edges, num_src=num_src, num_dst=num_dst)

    def of(self, tensor: Tensor, make: Callable[..., Graph], **numbers: int) -> Graph:
        """`make(tensor, **numbers)`, made now or before; one graph is kept for a tensor."""
        if self.limit < 1 or tensor.is_inference():  # which has no version
            return make(tensor, **numbers)
        state = _state(tensor, make, *numbers.values())
        entry = self._entries.get(tensor)
        if entry is None or entry.state != state:
            entry = Entry(state, make(tensor, **numbers))
            with self._lock:
                self._entries.pop(tensor, None)
                while len(self._entries) >= self.limit:
                    del self._entries[min(self._entries, key=lambda x: self._entries[x].used)]
                self._entries[tensor] = entry
        entry.used = next(self._uses)
        return entry.graph

    def clear(self) -> None:
        """Forget all graphs."""
        with self._lock:
            self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)


def _state(tensor: Tensor, *how: object) -> tuple[object, ...]:
    place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
    return (tensor._version, *how, *place)


graph_cache = GraphCache()
"""The cache of all layers. `graph_cache.limit = 0` switches it off."""
