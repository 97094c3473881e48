import copy
import dataclasses
import pickle
import warnings

import numpy as np
import pytest
import torch

import graphattn as ga
from graphattn.graphs import memory
from graphattn.graphs.csr import sorted_keys
from graphattn.graphs.structure import as_blocks, as_dense, as_intervals
from tests.graphs import truth
from tests.graphs.agree import assert_is


def pickled(graph):
    return pickle.loads(pickle.dumps(graph))


STRUCTURED = {
    "complete(4)": lambda: ga.complete(4),
    "causal(4)": lambda: ga.causal(4),
    "prefix(4, 2)": lambda: ga.prefix(4, 2),
    "sliding_window(4, 1)": lambda: ga.sliding_window(4, 1),
    "bipartite(2, 3)": lambda: ga.bipartite(2, 3),
    "neighborhood((4,), radius=(1,), dilation=(2,), border='cut')": lambda: ga.dilated(4, 1, 2),
    "shifted_windows((4, 2), size=(2, 2), shift=(1, 1))": lambda: ga.shifted_windows((4, 2), 2, 1),
    "neighborhood((3, 4), radius=(1, 1), dilation=(1, 1), border='clamp')": (
        lambda: ga.neighborhood([3, 4], 1)
    ),
    "axial((2, 3))": lambda: ga.axial((2, 3)),
    "hubs(4, [1])": lambda: ga.hubs(4, [1]),
    "expander(6, 3, seed=1)": lambda: ga.expander(6, 3, 1),
    "(causal(4) | hubs(4, [1]))": lambda: ga.causal(4) | ga.hubs(4, [1]),
    "(causal(4) & hubs(4, [1]))": lambda: ga.causal(4) & ga.hubs(4, [1]),
    "(causal(4) - hubs(4, [1]))": lambda: ga.causal(4) - ga.hubs(4, [1]),
    "causal(4).T": lambda: ga.causal(4).T,
    "(causal(4) | hubs(4, [1])).T": lambda: (ga.causal(4) | ga.hubs(4, [1])).T,
    "causal(4).permuted(...)": lambda: ga.causal(4).permuted([1, 0, 2, 3]),
    "causal(4).rows(1, 3)": lambda: ga.causal(4).rows(1, 3),
    "batch([causal(4), bipartite(2, 3)])": lambda: ga.batch([ga.causal(4), ga.bipartite(2, 3)]),
    "batch([causal(1), causal(1), causal(1), ... 4 in all])": lambda: ga.batch([ga.causal(1)] * 4),
    "(causal(4) | sliding_window(4, 0))": lambda: ga.causal(4).with_self_loops(),
    "(causal(4) - sliding_window(4, 0))": lambda: ga.causal(4).without_self_loops(),
}


@pytest.mark.parametrize("text", STRUCTURED)
def test_structured_graphs_compare_by_value(text):
    graph, again = STRUCTURED[text](), STRUCTURED[text]()
    assert graph == again
    assert hash(graph) == hash(again)
    assert graph.edge_index is not again.edge_index
    others = [STRUCTURED[other]() for other in STRUCTURED if other != text]
    assert graph not in others
    assert graph != text


def test_values_that_differ_make_graphs_that_differ():
    assert ga.bipartite(3, 3) == ga.complete(3)
    assert ga.causal(4).permuted([1, 0, 2, 3]) != ga.causal(4).permuted([1, 0, 3, 2])
    assert ga.shifted_windows((4, 4), 2, 1) != ga.shifted_windows((4, 4), 2, (1, 0))
    assert len({ga.causal(3), ga.causal(3), ga.causal(4), ga.complete(3)}) == 3


def test_edge_lists_are_equal_only_to_themselves():
    one, other = (ga.from_edges([[0, 1], [1, 0]], 2) for _ in range(2))
    assert one == one
    assert one != other
    assert (one | ga.causal(2)) == (one | ga.causal(2)) != (other | ga.causal(2))
    assert hash(one.T) == hash(one.T)


LISTED = ga.from_edges([[1, 0, 0], [0, 1, 1]], 2)


GRAPHS = {
    **{text: make() for text, make in STRUCTURED.items()},
    "edge list": LISTED,
    "(edge list | causal(2))": LISTED | ga.causal(2),
    "edge list.T": LISTED.T,
    "batch([edge list, causal(4).permuted(...)])": ga.batch(
        [LISTED, GRAPH := ga.causal(4).permuted([3, 2, 1, 0])]
    ),
}


@pytest.mark.parametrize(("text", "graph"), GRAPHS.items(), ids=list(GRAPHS))
def test_words(text, graph):
    """What it is, how many nodes and edges, how dense."""
    nodes = f"{graph.num_dst} nodes"
    if graph.num_dst != graph.num_src:
        nodes = f"{graph.num_src} sources -> {graph.num_dst} destinations"
    share = 100 * graph.num_edges / (graph.num_dst * graph.num_src)
    assert str(graph) == text
    assert repr(graph) == f"{text}: {nodes}, {graph.num_edges} edges, {share:.3g}% of all pairs"


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickled])
@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize(("text", "graph"), GRAPHS.items(), ids=list(GRAPHS))
def test_copies(text, graph, asked, again):
    graph = pickled(graph)  # one of our own, without facts
    if asked:
        graph.mask(), graph.csc(), as_blocks(graph), graph.to("meta")
    copied = again(graph)
    assert type(copied) is type(graph)
    assert copied is not graph
    assert not [name for name in vars(copied) if name.startswith("_kept")]
    assert copied.edge_index.equal(graph.edge_index)
    assert copied.device == graph.device
    if text in STRUCTURED:
        assert copied == graph
        assert hash(copied) == hash(graph)


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=list(GRAPHS))
def test_nothing_of_a_graph_can_be_set(graph):
    for field in dataclasses.fields(graph):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(graph, field.name, None)


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=list(GRAPHS))
def test_facts_are_kept(graph):
    asked = [
        lambda: graph.edge_index, graph.csr, graph.csc, graph.mask,
        lambda: sorted_keys(graph), lambda: as_intervals(graph), lambda: as_blocks(graph),
        lambda: as_dense(graph), lambda: graph.to("meta"),
    ]  # fmt: skip
    assert [question() is question() for question in asked] == [True] * len(asked)


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=list(GRAPHS))
def test_to(graph):
    assert graph.to("cpu") is graph.to(torch.device("cpu")) is graph
    moved = graph.to("meta")
    assert moved.to("meta") is moved
    assert moved.device == torch.device("meta")
    assert (moved.num_dst, moved.num_src) == (graph.num_dst, graph.num_src)
    tensors = _tensors_of(moved)
    assert all(tensor.device == moved.device for tensor in tensors)
    assert bool(tensors) == graph.stores_tensors
    assert all(tensor.device == graph.device for tensor in _tensors_of(graph))


def _tensors_of(part):
    if isinstance(part, torch.Tensor):
        return [part]
    if isinstance(part, ga.Graph):
        part = [getattr(part, field.name) for field in dataclasses.fields(part)]
    if isinstance(part, list | tuple):
        return [tensor for item in part for tensor in _tensors_of(item)]
    return []


def test_graphs_are_joined_where_the_tensors_are():
    listed = LISTED.to("meta")
    for joined in (listed | ga.causal(2), ga.causal(2) & listed, ga.batch([ga.causal(2), listed])):
        assert joined.device == torch.device("meta")
    with pytest.raises(ValueError, match=r"on different devices .* \['cpu', 'meta'\]; move them"):
        listed | LISTED


@pytest.mark.gpu
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=list(GRAPHS))
def test_a_graph_on_the_gpu_is_the_same(graph):
    moved = graph.to("cuda")
    assert moved.edge_index.is_cuda
    assert moved.edge_index.cpu().equal(graph.edge_index)
    assert moved.mask().cpu().equal(graph.mask())
    dst, src = moved.edges()
    assert moved.has_edge(dst, src).all()
    assert (as_blocks(moved) is None) == (as_blocks(graph) is None)


@pytest.mark.parametrize("number", [int, np.int64, np.int32, torch.tensor])
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=list(GRAPHS))
def test_has_edge_of_any_integers(graph, number):
    mask = graph.mask()
    for dst, src in [(0, 0), (1, 0), (0, 1), (graph.num_dst - 1, graph.num_src - 1)]:
        assert bool(graph.has_edge(number(dst), number(src))) == mask[dst, src]


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=list(GRAPHS))
def test_has_edge_broadcasts(graph):
    dst, src = torch.arange(graph.num_dst), torch.arange(graph.num_src)
    assert graph.has_edge(dst[:, None], src).equal(graph.mask())
    assert graph.has_edge(dst[:, None, None], src[:, None]).equal(graph.mask()[..., None])
    assert graph.has_edge(dst, 0).equal(graph.mask()[:, 0])
    assert graph.has_edge(0, src).equal(graph.mask()[0])


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: ga.complete(10**6).edges(), r"listing the 1,000,000,000,000 edges of complete\(1"),
        (lambda: ga.complete(10**6).edge_index, r"takes 32 TB and .* free on cpu; take a sparser"),
        (lambda: ga.causal(10**6).csr(), r"listing the 500,000,500,000 edges of causal\(1000000\)"),
        (lambda: ga.complete(10**6).mask(), r"the mask of complete\(1000000\) takes 1 TB and"),
        (lambda: ga.axial((1000, 1000, 2000)).edges(), r"listing the 7,996,000,000,000 edges"),
        (lambda: ga.shifted_windows((10**4, 10**4), 10**4).edges(), r"the 10,000,000,000,000,000 "),
        (lambda: ga.neighborhood((10**3, 10**3), 499).edges(), r"the 998,001,000,000 edges"),
        (lambda: ga.hubs(2**31 - 1, range(99)).edges(), r"the 425,201,762,106 edges of hubs"),
        (lambda: (ga.complete(10**6) | ga.causal(10**6)).edges(), r"the 1,000,000,000,000 edges"),
        (lambda: ga.complete(10**6).T.edges(), r"the 1,000,000,000,000 edges"),
        (lambda: ga.complete(10**6).without_self_loops().edges(), r"edges of \(complete\(10+\) - "),
    ],
)  # fmt: skip
def test_what_cannot_fit_is_an_error_with_its_size(ask, message, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 24 * 10**9)
    with pytest.raises(MemoryError, match=message):
        ask()


@pytest.mark.parametrize(
    ("graph", "ask"),
    [
        (ga.sliding_window(2**31 - 1, 1), lambda graph: graph.edges()),
        (ga.sliding_window(2**31 - 1, 1), lambda graph: graph.in_degree()),
        (ga.sliding_window(2**31 - 1, 1) & ga.causal(2**31 - 1), lambda graph: graph.num_edges),
        (ga.from_edges([[5], [3]], 2**31 - 1), lambda graph: graph.in_degree()),
        (ga.from_edges([[5], [3]], 2**31 - 1), lambda graph: graph.mask()),
        (ga.expander(2**31 - 2, 4), lambda graph: graph.edges()),
    ],
)
def test_a_number_for_every_node_may_not_fit_either(graph, ask, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 24 * 10**9)
    with pytest.raises(MemoryError, match=r"takes .* and 24 GB are free on cpu"):
        ask(graph)
    assert "2,147,483,64" in repr(graph)


def test_words_for_what_nobody_can_count(monkeypatch):
    graph = ga.sliding_window(99, 1) & ga.causal(99)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10)
    assert repr(graph).endswith("99 nodes, too many edges to count")


def test_free_memory_is_known():
    free = memory.free_bytes(torch.device("cpu"))
    assert 0 < free < 2**50


# A user's own kinds of graph


@dataclasses.dataclass(frozen=True, repr=False)
class Ring(ga.Graph):
    num_dst: int
    num_src: int

    def edges(self):
        dst = torch.arange(self.num_dst, device=self.device)
        return dst, (dst + 1) % self.num_src

    def has_edge(self, dst, src):
        return (dst + 1) % self.num_src == src


class Star(ga.Graph):
    """In no order, and with a parallel edge."""

    def __init__(self, num_nodes):
        self.num_dst = self.num_src = num_nodes

    def edges(self):
        src = torch.arange(self.num_src).flip(0)
        return torch.zeros(self.num_src + 1, dtype=torch.int64), torch.cat([src, src[:1]])

    def has_edge(self, dst, src):
        return dst == 0


class Kept(ga.Graph):
    """One that holds tensors."""

    num_dst = num_src = 3

    def __init__(self):
        self.pairs = (torch.tensor([0, 1]), torch.tensor([2, 2]))

    def edges(self):
        return self.pairs

    def has_edge(self, dst, src):
        return (src == 2) & (dst < 2)


RING = truth.matrix(5, 5, lambda i, j: (i + 1) % 5 == j)
STAR = truth.of_pairs(5, 5, [*((j, 0) for j in range(5)), (4, 0)])
HELD = truth.of_pairs(3, 3, [(2, 0), (2, 1)])


@pytest.mark.parametrize(
    ("graph", "count"),
    [
        (Ring(5, 5), RING),
        (Ring(5, 5).T, RING.T),
        (Ring(5, 5) | Star(5), RING | (STAR > 0)),
        (Star(5) - Ring(5, 5), (STAR > 0) & ~(RING > 0)),
        (Star(5).T, STAR.T),
        (Star(5).rows(0, 2), STAR[:2]),
        (Star(5).permuted([1, 2, 3, 4, 0]), truth.permuted(STAR, [1, 2, 3, 4, 0])),
        (Star(5) & ga.causal(5), (STAR > 0) & (truth.causal(5) > 0)),
        (Ring(5, 5).with_self_loops(), RING | np.eye(5, dtype=int)),
        (ga.batch([Ring(5, 5), Kept()]), truth.batch([RING, HELD])),
        (Kept(), HELD),
    ],
    ids=str,
)
def test_own_kinds_work_as_the_others(graph, count):
    assert_is(graph, count.astype(int))


def test_own_kinds_compare_as_python_has_it():
    assert Ring(5, 5) == Ring(5, 5)
    assert hash(Ring(5, 5)) == hash(Ring(5, 5))
    assert Star(5) != Star(5)
    assert repr(Star(5)) == "Star: 5 nodes, 6 edges, 24% of all pairs"


def test_structure_of_own_kinds_is_recognised():
    assert as_dense(Ring(2, 2).with_self_loops()) == (False,)
    assert as_intervals(Ring(5, 5).rows(0, 4)) is not None
    assert as_blocks(Ring(5, 5)).num_blocks == 5


def test_own_kinds_move():
    assert Kept().stores_tensors
    assert not Star(5).stores_tensors
    assert {part.device.type for part in Kept().to("meta").pairs} == {"meta"}
    assert Ring(5, 5).to("meta").edges()[0].device.type == "meta"


def test_a_kind_without_edges_cannot_be_made():
    class Nothing(ga.Graph):
        num_dst = num_src = 1

        def has_edge(self, dst, src):
            return False

    with pytest.raises(TypeError, match="abstract"):
        Nothing()


def test_asking_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for graph in GRAPHS.values():
            copied = copy.copy(graph)
            copied.mask(), copied.csc(), as_blocks(copied), repr(copied)
