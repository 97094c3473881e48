"""A memory that is searched first, and then attended to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphattn.attention import attention
from graphattn.graphs import from_edges
from graphattn.graphs.checks import integer
from graphattn.nn.stored import CHUNK, check_items, flat, store


class ExternalMemory(nn.Module):
    """A memory larger than a batch: each query finds its best keys, and attends to those alone.

    kNN-augmented attention of Memorizing Transformers (Wu et al. 2022, section 3.1): the `k` keys
    with the largest inner product are searched for without gradient; they are the edges of a sparse
    bipartite graph, and `attention` over it has gradients for the queries, and for keys and values
    that are parameters. With one-hot tokens as values it gives the distribution of kNN-LM
    (Khandelwal et al. 2020, eq. 2), for keys of unit length. No graph is known before the
    search, so keep it out of `torch.compile`.

    Args:
        keys: (N, dim), floating, of any dtype and on any device; parts are brought to the queries
            as they are needed. A `torch.nn.Parameter` is trained along; any other tensor becomes a
            buffer.
        values: (N, value_dim), likewise.
        k: How many items each query retrieves; all of them if there are fewer.
        scale: Factor of the inner products in the softmax; 1 / sqrt(dim) by default.
        index: What searches. "exact" compares a query with every key, in chunks. "faiss" does the
            same by faiss's IndexFlatIP, which keeps a float32 copy of the keys. Or an index of
            faiss of your own (trained, of any metric, item i at number i): it ranks, and the
            weights are still those of inner products.

    Raises:
        TypeError: If keys or values are not floating tensors, or index is none of these.
        ValueError: If their shapes don't fit, or the index holds other items.

    Example:
        >>> keys = torch.eye(4)
        >>> memory = ExternalMemory(keys, values=torch.arange(4.0)[:, None], k=2, scale=100.0)
        >>> query = torch.tensor([[0.0, 0.0, 1.0, 0.5]])
        >>> memory.retrieve(query)
        (tensor([[1.0000, 0.5000]]), tensor([[2, 3]]))
        >>> memory(query)
        tensor([[2.]])
    """

    keys: Tensor
    values: Tensor

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        *,
        k: int = 32,
        scale: float | None = None,
        index: Any = "exact",
    ) -> None:
        super().__init__()
        check_items(keys, values)
        store(self, keys=keys, values=values)
        self.k = integer("k", k, low=1)
        self.scale = keys.shape[1] ** -0.5 if scale is None else scale
        self.index = index
        self._flat_index: Any = None
        self._indexed: tuple[Tensor, int] | None = None  # the keys that it holds, their version
        if not isinstance(index, str):
            _check_index(index, keys)
        elif index not in ("exact", "faiss"):
            raise ValueError(f'index must be "exact", "faiss" or an index of faiss, got {index!r}')

    @torch.no_grad()
    def retrieve(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """The best items of each query, best first; of equal scores the lowest index first.

        faiss breaks ties in an order of its own.

        Args:
            query: (*batch, dim), floating.

        Returns:
            Scores, at least float32, and indices, int64: both (*batch, min(k, N)). Scores are inner
            products, or what an index of your own ranks by; an index of -1 is an item that it did
            not find.

        Raises:
            TypeError, ValueError: If the query does not fit.
        """
        rows = flat(query, self.keys)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        k = min(self.k, len(self.keys))
        if self.index == "exact" or k == 0:
            with torch.autocast(rows.device.type, enabled=False):
                scores, index = _best_items(rows, self.keys, k)
        else:
            found = self._faiss_index().search(rows.detach().float().cpu().numpy(), k)
            scores, index = (torch.as_tensor(part, device=rows.device) for part in found)
        return scores.reshape(*query.shape[:-1], k), index.reshape(*query.shape[:-1], k)

    def forward(self, query: Tensor) -> Tensor:
        """What each query reads: (*batch, dim) to (*batch, value_dim) of the dtype of query.

        The leading dimensions share the memory; several heads of queries may be among them.

        Raises:
            TypeError, ValueError: If the query does not fit.
        """
        rows = flat(query, self.keys)
        _, index = self.retrieve(rows)
        found = index >= 0
        item, src = index[found].unique(return_inverse=True)
        edges = torch.stack([src, found.nonzero()[:, 0]])
        graph = from_edges(edges, num_dst=len(rows), num_src=len(item))
        key, value = (x[item.to(x.device)].to(rows)[:, None] for x in (self.keys, self.values))
        out = attention(rows[:, None], key, value, graph, scale=self.scale)
        return out.reshape(*query.shape[:-1], self.values.shape[-1])

    @torch.no_grad()
    def add(self, keys: Tensor, values: Tensor) -> None:
        """Append items, (M, dim) and (M, value_dim), without their gradients.

        They are in the `state_dict` from then on; it is loaded into a memory of as many items.

        Raises:
            TypeError, ValueError: If they don't fit, or the memory can't grow: its items are
                parameters, or the index is your own.
        """
        self._require_growing()
        check_items(keys, values)
        if keys.shape[1] != self.keys.shape[1] or values.shape[1] != self.values.shape[1]:
            raise ValueError(
                f"the memory holds keys of width {self.keys.shape[1]} and values of width "
                f"{self.values.shape[1]}, got {keys.shape[1]} and {values.shape[1]}"
            )
        self.keys = torch.cat([self.keys, keys.to(self.keys)])
        self.values = torch.cat([self.values, values.to(self.values)])

    def forget(self, count: int) -> None:
        """Drop the items that were added first, as Wu et al. do when the memory is full.

        Raises:
            ValueError: If there are not as many, or the memory can't change; see `add`.
        """
        self._require_growing()
        count = integer("count", count, high=len(self.keys))
        self.keys, self.values = self.keys[count:].clone(), self.values[count:].clone()

    def _require_growing(self) -> None:
        if isinstance(self.keys, nn.Parameter) or isinstance(self.values, nn.Parameter):
            raise ValueError("items that are parameters are learned; give tensors to add to them")
        if not isinstance(self.index, str):
            raise ValueError(
                'the index is your own: make another ExternalMemory when it grows, or take "faiss"'
            )

    def _faiss_index(self) -> Any:
        """The user's index; or one of the keys as they are now, made anew if they changed."""
        if not isinstance(self.index, str):
            _check_index(self.index, self.keys)
            return self.index
        version = 0 if self.keys.is_inference() else self.keys._version
        held, held_version = self._indexed or (None, 0)
        if held is not self.keys or held_version != version:
            import faiss

            self._flat_index = faiss.IndexFlatIP(self.keys.shape[1])
            self._flat_index.add(self.keys.detach().float().cpu().contiguous().numpy())
            self._indexed = (self.keys, version)
        return self._flat_index

    def extra_repr(self) -> str:
        """What printing the memory shows besides its parts."""
        index = self.index if isinstance(self.index, str) else type(self.index).__name__
        return f"num_items={len(self.keys)}, k={self.k}, index={index}"


def _best_items(query: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest inner products of each query and their keys, in chunks of both.

    Args:
        query: (num_queries, dim), at least float32.
        keys: (N, dim) of any dtype, on any device.
        k: At most N.

    Returns:
        Scores and int64 indices, (num_queries, k): descending, equal scores by index.
    """
    parts = []
    for some in query.split(1024):
        scores = some.new_empty(len(some), 0)
        index = torch.empty(len(some), 0, dtype=torch.int64, device=some.device)
        first = 0
        for chunk in keys.split(max(1, CHUNK // max(len(some), keys.shape[1], 1))):
            found, place = _top(some @ chunk.to(some).T, k)
            scores, index = torch.cat([scores, found], 1), torch.cat([index, place + first], 1)
            scores, order = scores.sort(dim=1, descending=True, stable=True)
            scores, index = scores[:, :k], index.gather(1, order)[:, :k]
            first += len(chunk)
        parts.append((scores, index))
    scores, index = zip(*parts)
    return torch.cat(scores), torch.cat(index)


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row (all, if there are fewer), equal ones by index.

    `topk` takes any of those that are equal to the last one; rows with a choice are sorted.
    """
    k = min(k, scores.shape[1])
    best, index = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    if best.shape[1] > k:
        choice = best[:, k - 1] == best[:, k]
        if bool(choice.any()):
            in_order = scores[choice].sort(dim=1, descending=True, stable=True).indices
            index[choice, :k] = in_order[:, :k]
    index = index[:, :k].sort(dim=1).values
    best, order = scores.gather(1, index).sort(dim=1, descending=True, stable=True)
    return best, index.gather(1, order)


def _check_index(index: Any, keys: Tensor) -> None:
    """Raise unless an index of the user's searches, and holds as many items of that width."""
    if not all(hasattr(index, name) for name in ("search", "ntotal", "d")):
        raise TypeError(
            f'index must be "exact", "faiss" or an index of faiss, got {type(index).__name__}'
        )
    if (index.ntotal, index.d) != tuple(keys.shape):
        raise ValueError(
            f"the index holds {index.ntotal} items of width {index.d}, and the memory "
            f"{len(keys)} of width {keys.shape[1]}; add the keys to the index in their order"
        )
