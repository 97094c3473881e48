"""What a call attends to: the keys that are read, and a graph or a dense mask over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from graphattn.graphs import Graph, batch, bipartite
from graphattn.graphs.order import sources_of
from graphattn.hf.place import Place, edge_across, first_source, place
from graphattn.hf.tokens import Rule, Tokens, graph_of_rule
from graphattn.hf.wiring import Layer

Columns = slice | Tensor

ByTorch = Literal["always", "where it is better", "never"]
"""Whether torch computes a call under a dense mask: always if a dense bias is there anyway, never
if there is more to a call than torch knows."""

# Queries from which on a batch that is padded on the left is faster as causal blocks than under a
# mask. On one core, forward, with 12 heads x 64 and half to all of the tokens real: 8 items of 128
# tokens took 1.2 x as long, 8 of 512 took 0.8 x, 4 of 2,048 took 0.36 x.
WORTH_BLOCKS = 256


@dataclass(frozen=True)
class Found:
    """Who attends to whom in a call.

    keys: The keys that are read, if not all.
    graph: On the queries and those keys; if flat, on those of the whole batch, one item after the
        other. None: what the mask says.
    mask: (batch or 1, heads or 1, queries, keys): bool, True where attended, or added to the
        scores. None: everything, or all up to the query itself if causal.
    causal: As torch has it; only without a mask.
    """

    keys: Columns | None = None
    graph: Graph | None = None
    flat: bool = False
    mask: Tensor | None = None
    causal: bool = False


class Sizes(NamedTuple):
    """Numbers of items, queries and keys of a call, and where they are."""

    batch: int
    queries: int
    keys: int
    device: torch.device


def find(layer: Layer | None, mask: Any, sizes: Sizes, is_causal: bool, by_torch: ByTorch) -> Found:
    """What a call attends to.

    Args:
        layer: The graph that the user gave, or None for the model's own.
        mask: As `attend` takes it.
        sizes: Of the call.
        is_causal: What no mask means, for more than one query.
        by_torch: Whether a dense mask is the better answer.
    """
    if isinstance(mask, Tokens):
        return _find_tokens(layer, mask, sizes, by_torch)
    given = None if layer is None else _given(layer, _unplaced(sizes, mask))
    if given is None:
        return Found(mask=mask, causal=is_causal and mask is None and sizes.queries > 1)
    found = _find_tokens(layer, _unplaced(sizes, mask), sizes, by_torch)
    return replace(found, mask=mask)


def _unplaced(sizes: Sizes, mask: Tensor | None) -> Tokens:
    """Tokens of a layer that was told nothing but a dense mask, or nothing."""
    if sizes.queries != sizes.keys:
        raise ValueError(
            f"{sizes.queries} queries can't be placed among {sizes.keys} keys on a graph, because "
            f"the model gave the layer {'no mask' if mask is None else 'a dense mask'}; give "
            "attention_mask as (batch, tokens), or rewire without a graph"
        )
    places = (sizes.batch, sizes.queries, sizes.keys, 0, 0)
    return Tokens(*places, len, None, {"device": sizes.device})


def _find_tokens(layer: Layer | None, tokens: Tokens, sizes: Sizes, by_torch: ByTorch) -> Found:
    if tokens.keys != sizes.keys:
        raise ValueError(
            f"the mask was made for {tokens.keys} keys, and the layer has {sizes.keys}: its cache "
            "is of another kind than that of the first layer, which graphattn can't place"
        )
    whose = None if layer is None else layer if layer.is_asked else layer.graph
    key = (id(whose), by_torch)
    if key not in tokens.kept:
        tokens.kept[key] = _found(layer, tokens, sizes, by_torch)
    return tokens.kept[key]


def _found(layer: Layer | None, tokens: Tokens, sizes: Sizes, by_torch: ByTorch) -> Found:
    given = None if layer is None else _given(layer, tokens)
    rule = tokens.rule
    if given is None and (rule is None or _is_for_torch(tokens, by_torch)):
        mask = tokens.dense
        is_causal = rule is None or rule.causal
        return Found(mask=mask, causal=mask is None and is_causal and tokens.queries > 1)
    if given is None and rule is not None and rule.everything:
        if tokens.padding is None:
            return Found(graph=bipartite(tokens.queries, tokens.keys))
        return Found(mask=tokens.real(tokens.keys)[:, None, None])
    if given is None and rule == Rule(True) and tokens.queries == 1 and tokens.padding is None:
        seen = tokens.stop - tokens.key_offset
        return Found(keys=slice(0, seen) if seen < tokens.keys else None)
    parts = given or _own(rule, tokens)  # pyright: ignore[reportArgumentType]
    if tokens.queries == 1:
        return _row(parts, tokens, sizes.device)
    return _rows(parts, tokens, sizes.device)


def _is_for_torch(tokens: Tokens, by_torch: ByTorch) -> bool:
    """Whether torch computes the model's own graph best, under transformers' own mask."""
    rule, padding = tokens.rule, tokens.padding
    if rule is None or by_torch == "never" or tokens.queries == 1:
        return False
    if by_torch == "always":
        return True
    if padding is None or rule.everything:
        return False
    is_behind = min(padding.stop) < tokens.stop  # then a padded causal graph is no causal graph
    whole = rule.window is None and rule.chunk is None
    return padding.holes or tokens.queries < WORTH_BLOCKS or (is_behind and whole)


# --- parts of a graph -----------------------------------------------------------------------------


class Part(NamedTuple):
    """What one item of the batch is of a graph: as `Place`, without the numbers of nodes."""

    graph: Graph
    row: int
    column: int
    stop: int


Parts = list[Part] | list[list[Part]]


def _own(rule: Rule, tokens: Tokens) -> list[Part]:
    """The parts of the model's own graph."""
    if rule.packed is not None:
        return [_packed(rule, of_item) for of_item in rule.packed.expand(tokens.batch, -1)]
    # Of a sequence that grows, the graph is made anew whenever it has doubled.
    size = tokens.stop if not tokens.offset else 1 << (tokens.stop - 1).bit_length()
    graph = graph_of_rule(rule, size)
    return _of_items(tokens, lambda left: (graph, tokens.offset - left))


def _packed(rule: Rule, sequence: Tensor) -> Part:
    lengths = sequence.unique_consecutive(return_counts=True)[1].tolist()
    graph = batch([graph_of_rule(rule._replace(packed=None), length) for length in lengths])
    return Part(graph, 0, 0, graph.num_src)


def _given(layer: Layer, tokens: Tokens) -> list[Part] | None:
    """The parts of the graph that the user gave, or None for the model's own."""
    if layer.is_asked:
        return _asked(layer, tokens)
    if (graph := layer.graph) is None:
        return None
    if tokens.rule is not None and tokens.rule.packed is not None:
        return [_packed_given(graph, of_item) for of_item in tokens.rule.packed]
    left = [0] if tokens.padding is None else tokens.padding.left
    _check_size(graph, tokens.stop - min(left))
    for first in set(left):
        _check_past(graph, tokens, first)
    return _of_items(tokens, lambda first: (graph, tokens.offset - first))


def _packed_given(graph: Graph, sequence: Tensor) -> Part:
    lengths = sequence.unique_consecutive(return_counts=True)[1].tolist()
    _check_size(graph, max(lengths))
    parts = [place(graph, Place(n, n, 0, 0, n)) for n in lengths]
    whole = batch(parts)
    return Part(whole, 0, 0, whole.num_src)


def _asked(layer: Layer, tokens: Tokens) -> list[Part] | None:
    """The same of a function, which is asked for the tokens of each item."""
    if tokens.rule is not None and tokens.rule.packed is not None:
        raise ValueError(
            "a function of lengths can't say the graph of packed sequences; give a graph, or pad "
            "the sequences and give attention_mask"
        )

    def ask(left: int) -> tuple[Graph | None, int]:
        first = min(max(tokens.offset, left), tokens.stop)
        queries, keys = tokens.stop - first, tokens.stop - left
        graph = layer.ask(queries, keys, first - left)
        if graph is not None:
            _check_kept(graph, tokens, left, slice(0, queries), first - left)
        return graph, tokens.offset - first

    left = [0] if tokens.padding is None else tokens.padding.left
    is_own = [ask(first)[0] is None for first in left]
    if all(is_own):
        return None
    parts = _of_items(tokens, ask)  # pyright: ignore[reportArgumentType]
    if not any(is_own):
        return parts
    if tokens.rule is None:
        raise ValueError(
            "the function gives graphs for some sequences of the batch and None for others, and "
            "only the model knows its own graph; let it give a graph for each"
        )
    own = _own(tokens.rule, tokens)
    return [its if none else part for part, its, none in zip(parts, own, is_own)]


def _of_items(tokens: Tokens, of: Callable[[int], tuple[Graph, int]]) -> list[Part]:
    """A part for each item, or one for all; `of(left)` is the graph, and the row of query 0."""
    padding = tokens.padding
    pairs = [(0, tokens.stop)] if padding is None else list(zip(padding.left, padding.stop))
    parts = []
    for left, stop in pairs:
        graph, row = of(left)
        parts.append(Part(graph, row, tokens.key_offset - left, max(stop - left, 0)))
    return parts


def _check_size(graph: Graph, num_tokens: int) -> None:
    if graph.num_dst < num_tokens:
        raise ValueError(
            f"{graph} has {graph.num_dst} nodes, and there are {num_tokens} tokens; give rewire a "
            f"graph on {num_tokens} nodes or more (a longer one serves shorter inputs)"
        )


def _check_past(graph: Graph, tokens: Tokens, left: int) -> None:
    """Raise if keys and values that are cached can't be those that the graph asks for."""
    offset = tokens.offset - left
    if offset > 0 and (edge := edge_across(graph, offset)) is not None:
        raise ValueError(
            f"{graph} is not causal: the edge {edge[0]} -> {edge[1]} is from a token that was not "
            f"there yet when token {edge[1]} was computed and cached; give a causal graph "
            "(graph & causal(n)), or use_cache=False"
        )
    _check_kept(graph, tokens, left, slice(max(offset, 0), tokens.stop - left))


def _check_kept(graph: Graph, tokens: Tokens, left: int, rows: slice, shift: int = 0) -> None:
    """Raise if the cache has dropped a key that rows of a graph ask for.

    shift: The token that row 0 is.
    """
    dropped = tokens.key_offset - left
    if dropped <= 0:
        return
    first = first_source(graph)[rows]
    if bool((first < dropped).any()):
        row = int((first < dropped).nonzero()[0])
        raise ValueError(
            f"the cache has dropped token {int(first[row])}, to which token "
            f"{rows.start + row + shift} attends in {graph}; the model's own sliding window made "
            "the cache: pass past_key_values=DynamicCache(), which keeps all"
        )


# --- several queries, or one ----------------------------------------------------------------------


def _rows(parts: list[Part], tokens: Tokens, device: torch.device) -> Found:
    """A graph on queries and keys, of all items if they differ."""
    seen = min(tokens.keys, tokens.stop - tokens.key_offset)
    graphs = [
        place(part.graph.to(device), Place(tokens.queries, seen, *part[1:])) for part in parts
    ]
    found = _joined(graphs)
    keys = slice(0, seen) if seen < tokens.keys else None
    if tokens.padding is None or not tokens.padding.holes:
        return replace(found, keys=keys)
    return replace(found, keys=keys, mask=tokens.real(seen)[:, None, None])


def _joined(graphs: list[Graph]) -> Found:
    """One graph for all items if they are the same, else one on the nodes of all."""
    if all(graph is graphs[0] for graph in graphs):
        return Found(graph=graphs[0])
    return Found(graph=batch(graphs), flat=True)


def _row(parts: list[Part], tokens: Tokens, device: torch.device) -> Found:
    """The keys of a single query: a dense call on them, masked where items differ."""
    columns = {part: _columns(part) for part in {id(p): p for p in parts}.values()}
    each = [columns[part] for part in parts]
    if len(columns) == 1 and tokens.padding is None:
        only = each[0]
        if isinstance(only, Tensor):
            return Found(keys=only.to(device)) if len(only) else _nothing(tokens, device)
        if only == (0, tokens.keys):
            return Found()
        return Found(keys=slice(*only)) if only[0] < only[1] else _nothing(tokens, device)
    mask = torch.zeros(len(each), tokens.keys, dtype=torch.bool, device=device)
    for item, heard in zip(mask, each):
        item[heard.to(device) if isinstance(heard, Tensor) else slice(*heard)] = True
    if tokens.padding is not None and tokens.padding.holes:
        mask = mask & tokens.real(tokens.keys)
    heard = mask.any(0).nonzero().squeeze(1)
    if not len(heard):
        return _nothing(tokens, device)
    first, last = int(heard[0]), int(heard[-1]) + 1
    keys = slice(first, last) if 2 * len(heard) > last - first else heard
    return Found(keys=keys, mask=mask[:, None, None, keys])


def _nothing(tokens: Tokens, device: torch.device) -> Found:
    """A query that hears nobody: masked from a key, because torch wants one."""
    mask = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=device)
    return Found(keys=slice(0, 1), mask=mask)


def _columns(part: Part) -> tuple[int, int] | Tensor:
    """The keys that query 0 hears: first and one past the last, or all of them."""
    if not 0 <= part.row < part.graph.num_dst:
        return (0, 0)
    heard = sources_of(part.graph, part.row)
    if isinstance(heard, range):
        first, stop = max(heard.start, part.column), min(heard.stop, part.stop)
        return (first - part.column, max(first, stop) - part.column)
    inside = (heard >= part.column) & (heard < part.stop)
    return heard[inside] - part.column
