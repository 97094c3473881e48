"""Laws of the algebra of graphs, on random trees of it that carry their own truth."""

from __future__ import annotations

import copy
import pickle
from typing import NamedTuple

import networkx
import numpy as np
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st

import graphattn as ga
from graphattn.graphs.relabel import Transpose, columns
from graphattn.graphs.structure import is_simple, is_symmetric
from tests.graphs import truth
from tests.graphs.agree import assert_is, assert_same_structure

SIZES = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7])  # none, one, primes, and grids of two axes


class Tree(NamedTuple):
    """A graph, what it must be, and whether its edges come ordered by destination and source."""

    graph: ga.Graph
    count: np.ndarray
    in_order: bool = True


# --- leaves ---------------------------------------------------------------------------------------


def _named(name: str, *args, **kwargs) -> Tree:
    return Tree(getattr(ga, name)(*args, **kwargs), getattr(truth, name)(*args, **kwargs))


@st.composite
def sequences(draw, n: int) -> Tree:
    name = draw(st.sampled_from(["complete", "causal", "prefix", "sliding_window", "dilated"]))
    few = st.integers(0, 3)
    args = {
        "prefix": lambda: (draw(st.integers(0, n)),),
        "sliding_window": lambda: (draw(few),),
        "dilated": lambda: (draw(few), draw(st.integers(1, 3))),
    }.get(name, lambda: ())
    return _named(name, n, *args())


@st.composite
def grids(draw, n: int) -> Tree:
    """On a grid of n > 0 cells."""
    shapes = [(n,), *((a, n // a) for a in range(1, n + 1) if n % a == 0), (1, n, 1)]
    shape = draw(st.sampled_from(shapes))
    each = range(len(shape))
    name = draw(st.sampled_from(["axial", "shifted_windows", "clamp", "cut"]))
    if name == "axial":
        return _named("axial", shape)
    if name == "shifted_windows":
        size = tuple(draw(st.integers(1, 4)) for _ in each)
        return _named(
            name, shape, size, tuple(draw(st.integers(0, size[axis] - 1)) for axis in each)
        )
    dilation = tuple(draw(st.integers(1, 2 if name == "cut" else shape[axis])) for axis in each)
    fits = [3 if name == "cut" else (shape[axis] // dilation[axis] - 1) // 2 for axis in each]
    radius = tuple(draw(st.integers(0, fits[axis])) for axis in each)
    return _named("neighborhood", shape, radius, dilation=dilation, border=name)


@st.composite
def hubs(draw, n: int) -> Tree:
    """On n > 0 nodes."""
    return _named("hubs", n, draw(st.lists(st.integers(0, n - 1), max_size=3)))


@st.composite
def expanders(draw, n: int) -> Tree:
    """On n > 0 nodes. Which ones it draws is its own affair: it is taken at its word."""
    degree = draw(st.integers(0, n - 1).filter(lambda degree: n * degree % 2 == 0))
    graph = ga.expander(n, degree, seed=draw(st.integers(0, 3)))
    return Tree(graph, truth.of_pairs(n, n, graph.edge_index.T.tolist()))


@st.composite
def edge_lists(draw, num_dst: int, num_src: int) -> Tree:
    """Edges in any order, with parallel ones, by every way there is to give them."""
    pair = st.tuples(st.integers(0, max(num_src - 1, 0)), st.integers(0, max(num_dst - 1, 0)))
    pairs = draw(st.lists(pair, max_size=12 if num_dst and num_src else 0))
    count = truth.of_pairs(num_dst, num_src, pairs)
    once = (count > 0).astype(np.int64)
    ways = ["edges", "mask", "scipy"] + ["networkx"] * (num_dst == num_src)
    way = draw(st.sampled_from(ways))
    if way == "edges":
        index = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T
        return Tree(ga.from_edges(index, num_dst=num_dst, num_src=num_src), count, False)
    if way == "mask":
        return Tree(ga.from_mask(count > 0), once)
    if way == "scipy":
        return Tree(ga.from_scipy(scipy.sparse.coo_array(count.T)), once, False)
    multigraph = networkx.MultiDiGraph()
    multigraph.add_nodes_from(range(num_dst))
    multigraph.add_edges_from(pairs)
    return Tree(ga.from_networkx(multigraph), count, False)


def leaves(num_dst: int, num_src: int) -> st.SearchStrategy[Tree]:
    anywhere = [edge_lists(num_dst, num_src), st.just(_named("bipartite", num_dst, num_src))]
    if num_dst != num_src:
        return st.one_of(anywhere)
    somewhere = [grids(num_dst), hubs(num_dst), expanders(num_dst)] if num_dst else []
    return st.one_of(*anywhere, sequences(num_dst), *somewhere)


# --- branches -------------------------------------------------------------------------------------


def _set(count) -> np.ndarray:
    return np.asarray(count > 0, dtype=np.int64)


@st.composite
def trees(draw, num_dst: int, num_src: int, depth: int) -> Tree:
    """A random tree of algebra with `depth` operations on the way to a leaf, or fewer."""
    branches = ["leaf", "|", "&", "-", "T", "rows", "batch"]
    branches += ["permuted", "with loops", "without loops"] * (num_dst == num_src)
    branch = draw(st.sampled_from(branches)) if depth else "leaf"
    grow = lambda *shape: draw(trees(*shape, depth - 1))  # noqa: E731
    if branch == "leaf":
        return draw(leaves(num_dst, num_src))
    if branch == "T":
        graph, count, _ = grow(num_src, num_dst)
        in_order = not isinstance(graph, Transpose)  # turned twice, edges are as they were
        return Tree(graph.T, count.T, in_order)
    if branch == "rows":
        before, after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
        graph, count, _ = grow(before + num_dst + after, num_src)
        stop = before + num_dst
        return Tree(graph.rows(before, stop), count[before:stop])
    if branch == "batch":
        dst, src = draw(st.integers(0, num_dst)), draw(st.integers(0, num_src))
        parts = [grow(dst, src), grow(num_dst - dst, num_src - src)]
        return Tree(
            ga.batch(part.graph for part in parts),
            truth.batch([part.count for part in parts]),
            all(part.in_order for part in parts),
        )
    graph, count, _ = grow(num_dst, num_src)
    if branch == "permuted":
        order = draw(st.permutations(range(num_dst)))
        return Tree(graph.permuted(order), truth.permuted(count, order))
    if branch == "with loops":
        return Tree(graph.with_self_loops(), _set(count + np.eye(num_dst)))
    if branch == "without loops":
        return Tree(graph.without_self_loops(), _set(count * (1 - np.eye(num_dst))))
    other = grow(num_dst, num_src)
    if branch == "|":
        return Tree(graph | other.graph, _set(count + other.count))
    if branch == "&":
        return Tree(graph & other.graph, _set(count * other.count))
    return Tree(graph - other.graph, _set(count * (other.count == 0)))


@st.composite
def forests(draw, trees_: int, depth: int, square: bool = False) -> list[Tree]:
    """Trees on the same nodes."""
    num_dst = draw(SIZES)
    num_src = num_dst if square or draw(st.booleans()) else draw(SIZES)
    return [draw(trees(num_dst, num_src, depth)) for _ in range(trees_)]


# --- laws -----------------------------------------------------------------------------------------


@given(forests(1, depth=3))
def test_all_views_agree(forest):
    """Edges, has_edge, mask, CSR, CSC, degrees, count and claimed structure are one graph."""
    (tree,) = forest
    assert_is(tree.graph, tree.count, sorted_edges=tree.in_order)
    assert is_simple(tree.graph) == (tree.count.max(initial=0) <= 1)
    if is_symmetric(tree.graph):
        assert (tree.count == tree.count.T).all()


@given(forests(1, depth=2), st.randoms(use_true_random=False))
def test_structure_is_read_off_a_list_of_edges(forest, random):
    (tree,) = forest
    pairs = tree.graph.edge_index.T.tolist()
    random.shuffle(pairs)
    index = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T
    num_dst, num_src = tree.count.shape
    assert_same_structure(tree.graph, ga.from_edges(index, num_dst=num_dst, num_src=num_src))


@given(forests(3, depth=1))
def test_sets(forest):
    a, b, c = (tree.graph for tree in forest)
    everything = ga.bipartite(a.num_dst, a.num_src)
    nothing = everything - everything
    same(a | b, b | a)
    same(a & b, b & a)
    same((a | b) | c, a | (b | c))
    same((a & b) & c, a & (b & c))
    same(a & (b | c), (a & b) | (a & c))
    same(a | (b & c), (a | b) & (a | c))
    same(everything - (a | b), (everything - a) & (everything - b))
    same(everything - (a & b), (everything - a) | (everything - b))
    same(a - b, a & (everything - b))
    same((a - b) | (a & b), a | a)
    same(a & a, a | nothing)
    same(a - a, nothing)


@given(forests(2, depth=2))
def test_transposition(forest):
    a, b = (tree.graph for tree in forest)
    assert a.T.T.mask().equal(a.mask())
    assert a.T.num_edges == a.num_edges
    same((a | b).T, a.T | b.T)
    same((a & b).T, a.T & b.T)
    same((a - b).T, a.T - b.T)
    assert a.T.in_degree().equal(a.out_degree())


@given(forests(2, depth=1, square=True), st.data())
def test_renumbering(forest, data):
    a, b = (tree.graph for tree in forest)
    order = data.draw(st.permutations(range(a.num_dst)))
    back = np.argsort(order)
    same((a | b).permuted(order), a.permuted(order) | b.permuted(order))
    same((a - b).permuted(order), a.permuted(order) - b.permuted(order))
    same(a.permuted(order).permuted(back), a.permuted(range(a.num_dst)))
    same(a.permuted(order).T, a.T.permuted(order))
    same(a.with_self_loops().permuted(order), a.permuted(order).with_self_loops())
    same(a.with_self_loops().without_self_loops(), a.without_self_loops())


@given(forests(2, depth=1), st.data())
def test_rows(forest, data):
    a, b = (tree.graph for tree in forest)
    cut = data.draw(st.integers(0, a.num_dst))
    top, bottom = a.rows(0, cut), a.rows(cut, a.num_dst)
    assert torch.cat([top.mask(), bottom.mask()]).equal(a.mask())
    assert top.num_edges + bottom.num_edges == a.num_edges
    same((a | b).rows(0, cut), top | b.rows(0, cut))
    below = ga.batch([a, b]).rows(a.num_dst, a.num_dst + b.num_dst)
    assert below.mask()[:, a.num_src :].equal(b.mask())


@given(forests(1, depth=2), st.data())
def test_columns(forest, data):
    (tree,) = forest
    num_src = tree.graph.num_src
    kept = data.draw(st.lists(st.booleans(), min_size=num_src, max_size=num_src))
    nodes = torch.tensor(kept, dtype=torch.bool).nonzero().squeeze(1)
    count = tree.count[:, nodes.numpy()]
    graph = columns(tree.graph, nodes)
    assert_is(graph, count, sorted_edges=tree.in_order)
    assert is_simple(graph) == (count.max(initial=0) <= 1)


@given(forests(1, depth=2))
def test_a_graph_is_its_value(forest):
    """Copies are the same graph; without edge lists in it, an equal one."""
    (tree,) = forest
    for again in (copy.deepcopy(tree.graph), pickle.loads(pickle.dumps(tree.graph))):
        assert str(again) == str(tree.graph)
        assert again.edge_index.equal(tree.graph.edge_index)
        if "edge list" not in str(again):
            assert again == tree.graph
            assert hash(again) == hash(tree.graph)


def same(one: ga.Graph, other: ga.Graph) -> None:
    """The same pairs, in the same order."""
    assert (one.num_dst, one.num_src) == (other.num_dst, other.num_src)
    assert one.edge_index.tolist() == other.edge_index.tolist()
