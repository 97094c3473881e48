"""Attention with a cache against attention over all nodes at once, over every kind of graph."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import graphattn as ga
from graphattn import nn
from graphattn.graphs.order import last_listener
from tests.test_laws import trees

N, DIM, HEADS = 17, 16, 4
HEAD_DIM = DIM // HEADS
CAUSAL = ga.causal(N)


def blocks_of(size):
    """Each attends to those before it in its own block: places are freed all at once."""
    return ga.batch([ga.causal(size) for _ in range(N // size)] + [ga.causal(N % size)])


GRAPHS = {
    "causal": CAUSAL,
    "window": ga.sliding_window(N, 4) & CAUSAL,
    "window and sinks": (ga.sliding_window(N, 3) | ga.hubs(N, [0, 7])) & CAUSAL,
    "expander": ga.expander(N - 1, 5).rows(0, N - 1) & ga.causal(N - 1),
    "dilated": ga.dilated(N, 3, 2) & CAUSAL,
    "strided": (ga.sliding_window(N, 2) | ga.from_edges([[3, 9, 3], [14, 15, 16]], N)) & CAUSAL,
    "blocks": blocks_of(5),
    "no loops": CAUSAL.without_self_loops(),
    "reversed edges": ga.from_edges((ga.dilated(N, 3, 2) & CAUSAL).edge_index.flip(1), N),
    "parallel edges": ga.from_edges([[0, 0, 1, 1, 2, 0], [1, 1, 2, 2, 4, 4]], N),
    "alone": ga.sliding_window(N, 0),
    "no edges": CAUSAL - CAUSAL,
    "one": ga.causal(1),
}

OPTIONS = {
    "dot": {},
    "grouped-query": {"kv_heads": 2, "positions": nn.Rotary(HEAD_DIM), "qk_norm": True},
    "multi-query": {"kv_heads": 1, "normalizer": nn.SinkSoftmax(HEADS, sink=0.5)},
    "soft-capping": {"softcap": 2.0, "positions": nn.Rotary(HEAD_DIM, base=50.0)},
    "ALiBi": {"bias": nn.ALiBi(HEADS)},
    "T5": {"bias": nn.T5Bias(HEADS, num_buckets=8, max_distance=16, bidirectional=False)},
    "a bias of both": {"bias": lambda dst, src: torch.sin(dst * 1.0 + 3 * src)[:, None]},
    "GATv2": {"score": nn.GATv2(HEADS, HEAD_DIM), "kv_heads": 2, "positions": nn.Rotary(HEAD_DIM)},
    "additive": {"score": nn.Additive(HEADS, HEAD_DIM), "bias": nn.ALiBi(HEADS)},
    "cosine": {"score": nn.Cosine(HEADS), "normalizer": "entmax15"},
    "bilinear": {"score": nn.Bilinear(HEADS, HEAD_DIM), "normalizer": "sigmoid"},
    "location": {"score": nn.Location(N, HEADS, HEAD_DIM), "normalizer": "sparsemax"},
    "a score of pairs": {"score": lambda q, k, edge: (q - k).square().sum(-1)},
    "rotary on a grid": {"positions": nn.Rotary(HEAD_DIM, shape=(1, N))},
    "a user's positions": {
        "positions": lambda x: x * torch.arange(1, x.shape[-3] + 1)[:, None, None].to(x.dtype) / 9
    },
}
# Every option runs over these: the slots are all that is heard, or some, or a list.
FEW = ("causal", "window and sinks", "expander", "parallel edges")
CASES = [(graph, "grouped-query") for graph in GRAPHS]
CASES += [(graph, name) for graph in FEW for name in OPTIONS if name != "grouped-query"]
# Those that any number of sequences of different lengths can't share.
ONE_LENGTH = ("location", "a score of pairs")


def layer_of(options):
    torch.manual_seed(1)
    layer = nn.GraphAttention(DIM, HEADS, **options).double().eval()
    for parameter in layer.parameters():
        parameter.data.mul_(2)
    return layer


def whole(options, graph):
    """Options that a graph of fewer nodes allows: a grid has to have the size of the graph."""
    positions = options.get("positions")
    if isinstance(positions, nn.Rotary) and positions.shape is not None:
        return {**options, "positions": nn.Rotary(HEAD_DIM, shape=(1, graph.num_dst))}
    return options


def assert_steps_agree(layer, graph, chunks, batch=(2,)):
    """All rows of the forward pass come out of the cache, whatever is read at once."""
    x = torch.randn(*batch, graph.num_dst, DIM, dtype=torch.float64)
    cache, out = nn.KVCache(graph), []
    last = last_listener(graph)
    with torch.no_grad():
        for part in x.split(chunks, dim=-2):
            out.append(layer.step(part, cache))
            (length,) = cache.lengths
            kept = [node for node in range(length) if last[node] >= length]
            assert cache.kept().tolist() == kept
            assert len(kept) <= cache.capacity
        torch.testing.assert_close(torch.cat(out, dim=-2), layer(x, graph), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("graph", "name"), CASES)
def test_steps_are_rows_of_the_forward_pass(graph, name):
    graph = GRAPHS[graph]
    layer, n = layer_of(whole(OPTIONS[name], graph)), graph.num_dst
    for chunks in ([1] * n, [n], [n // 2, *[1] * (n - n // 2)]):
        assert_steps_agree(layer, graph, chunks)


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
@pytest.mark.parametrize("chunk", [2, 3, 7])
def test_chunks_are_one_call(graph, chunk):
    layer, n = layer_of({"positions": nn.Rotary(HEAD_DIM), "bias": nn.ALiBi(HEADS)}), graph.num_dst
    rest = n - 1
    assert_steps_agree(layer, graph, [1, 0, *[chunk] * (rest // chunk), rest % chunk])
    assert_steps_agree(layer, graph, [*[chunk] * (n // chunk), n % chunk])


@given(st.integers(1, 9), st.data())
def test_any_causal_graph(n, data):
    graph = data.draw(trees(n, n, 2)).graph & ga.causal(n)
    cut = sorted(data.draw(st.lists(st.integers(0, n), max_size=4)))
    chunks = [stop - start for start, stop in zip([0, *cut], [*cut, n])]
    assert_steps_agree(layer_of({"bias": nn.ALiBi(HEADS)}), graph, chunks, batch=())


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)])
def test_batch_dimensions(batch):
    layer = layer_of({"kv_heads": 2})
    assert_steps_agree(layer, GRAPHS["window and sinks"], [7, *[1] * (N - 7)], batch)


def read(layer, graph, sequences):
    """A cache of sequences of different lengths, read one by one."""
    caches = [nn.KVCache(graph) for _ in sequences]
    for cache, x in zip(caches, sequences):
        layer.step(x, cache)
    return nn.KVCache.stack(caches)


@torch.no_grad()
@pytest.mark.parametrize(
    ("graph", "name"), [case for case in CASES if case[0] != "one" and case[1] not in ONE_LENGTH]
)
def test_sequences_of_different_lengths_go_on_together(graph, name):
    graph = GRAPHS[graph]
    layer, lengths = layer_of(whole(OPTIONS[name], graph)), (7, 1, 11, 7)
    x = torch.randn(len(lengths), graph.num_dst, DIM, dtype=torch.float64)
    expected = layer(x, graph)
    cache = read(layer, graph, [row[:length] for row, length in zip(x, lengths)])
    for step in range(graph.num_dst - max(lengths)):
        places = torch.tensor(lengths) + step
        assert cache.places(1).tolist() == places[:, None].tolist()
        each = torch.arange(len(lengths))
        out = layer.step(x[each, places][:, None], cache)[:, 0]
        torch.testing.assert_close(out, expected[each, places], rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("rows", [[2, 2, 0], [1], [3, 1], []])
def test_selected_sequences_go_on(rows):
    layer, graph = layer_of({"bias": nn.ALiBi(HEADS)}), GRAPHS["window and sinks"]
    x, lengths = torch.randn(4, N, DIM, dtype=torch.float64), (7, 4, 11, 4)
    expected, picked = layer(x, graph), torch.tensor(rows, dtype=torch.int64)
    for chosen_lengths in (lengths, (6,) * 4):
        parts = [row[:length] for row, length in zip(x, chosen_lengths)]
        cache = read(layer, graph, parts)
        other = cache.select(picked)
        places = torch.tensor(chosen_lengths)
        layer.step(x[torch.arange(4), places][:, None], cache)  # and the first is none of theirs
        out = layer.step(x[picked, places[picked]][:, None], other)[:, 0]
        torch.testing.assert_close(out, expected[picked, places[picked]], rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize(("graph", "name"), [case for case in CASES if case[0] != "one"])
def test_a_tree_is_its_branches(graph, name):
    """Every node of a draft is what it would be in a sequence that ends with it."""
    graph = GRAPHS[graph]
    layer = layer_of(whole(OPTIONS[name], graph))
    n, parents, start = graph.num_dst, [-1, 0, 0, 1, 3, -1, 2], 10
    before = torch.randn(2, start, DIM, dtype=torch.float64)
    nodes = torch.randn(2, len(parents), DIM, dtype=torch.float64)
    cache = nn.KVCache(graph)
    layer.step(before, cache)
    draft = cache.draft(parents)
    out = layer.step(nodes, draft)
    for node in range(len(parents)):
        path = path_to(node, parents)
        filler = torch.zeros(2, n - start - len(path), DIM, dtype=torch.float64)
        expected = layer(torch.cat([before, nodes[:, path], filler], dim=1), graph)
        place = start + len(path) - 1
        torch.testing.assert_close(out[:, node], expected[:, place], rtol=1e-9, atol=1e-9)
    draft.accept(taken := path_to(4, parents))
    after = torch.randn(2, n - start - len(taken), DIM, dtype=torch.float64)
    expected = layer(torch.cat([before, nodes[:, taken], after], dim=1), graph)
    out = torch.cat([layer.step(x, cache) for x in after.split(1, dim=1)], dim=1)
    torch.testing.assert_close(out, expected[:, start + len(taken) :], rtol=1e-9, atol=1e-9)


def path_to(node, parents):
    return [] if node < 0 else [*path_to(parents[node], parents), node]


@torch.no_grad()
def test_a_draft_that_is_refused_leaves_no_trace():
    layer, graph = layer_of({}), GRAPHS["window"]
    x = torch.randn(N, DIM, dtype=torch.float64)
    cache = nn.KVCache(graph)
    layer.step(x[:9], cache)
    for path in ([], [0]):
        draft = cache.draft([-1, 0])
        layer.step(x[9 : 9 + 2] * (1 if path else 7), draft)
        draft.accept(path)
    torch.testing.assert_close(layer.step(x[10:], cache), layer(x, graph)[10:])


@torch.no_grad()
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_nodes_are_taken_back_unless_a_key_is_lost(graph):
    layer, n = layer_of({}), graph.num_dst
    x = torch.randn(n, DIM, dtype=torch.float64)
    last, expected = last_listener(graph), layer(x, graph)
    for length in range(n):
        for now in range(length, n, 3):
            cache = nn.KVCache(graph)
            layer.step(torch.cat([x[:length], torch.randn(now - length, DIM).double()]), cache)
            if any(length <= last[node] < now for node in range(length)):
                with pytest.raises(ValueError, match=f"no node from {now} on does; read the nodes"):
                    cache.rewind(length)
            else:
                cache.rewind(length)
                torch.testing.assert_close(layer.step(x[length:], cache), expected[length:])


def test_a_score_is_told_the_edges_of_the_whole_graph():
    graph = GRAPHS["reversed edges"]
    table = torch.randn(graph.num_edges, 1, dtype=torch.float64)
    layer = layer_of({"score": lambda q, k, edge: (q * k).sum(-1) + table[edge]})
    assert_steps_agree(layer, graph, [4, *[1] * 4, 5, *[1] * 4])


def test_transformer_blocks_step():
    block = nn.TransformerBlock(DIM, HEADS, positions=nn.Rotary(HEAD_DIM), residual=nn.post_norm)
    block = block.double()
    assert_steps_agree(block, GRAPHS["window and sinks"], [9, *[1] * (N - 9)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_kept_has_the_dtype_of_the_keys(dtype):
    layer, graph = layer_of({"kv_heads": 2}).to(dtype), GRAPHS["window"]
    cache, x = nn.KVCache(graph), torch.randn(2, N, DIM).to(dtype)
    with torch.no_grad():
        out = torch.cat([layer.step(part, cache) for part in x.split([6, *[1] * (N - 6)], 1)], 1)
        assert out.dtype == dtype
        rounding = 40 * torch.finfo(dtype).eps
        torch.testing.assert_close(out, layer(x, graph), rtol=rounding, atol=rounding)


def test_room_is_made_once_and_for_the_fewest_keys():
    graph = (ga.sliding_window(N, 3) | ga.hubs(N, [0, 1])) & CAUSAL
    layer, cache = layer_of({"kv_heads": 2}), nn.KVCache(graph)
    x = torch.randn(2, N, DIM, dtype=torch.float64)
    layer.step(x[:, :1], cache)
    at = cache._keys.data_ptr()
    for place in range(1, N):
        layer.step(x[:, place : place + 1], cache)
        assert cache._keys.data_ptr() == at
    assert cache.capacity == 4 + 2  # the sinks besides the window
    assert cache._keys.shape == cache._values.shape == (2, cache.capacity, 2, HEAD_DIM)


def test_gradients_reach_the_new_nodes_and_stop_at_the_kept_ones():
    layer, cache = layer_of({}), nn.KVCache(CAUSAL)
    x = torch.randn(5, DIM, dtype=torch.float64, requires_grad=True)
    layer.step(x, cache).sum().backward()
    expected, x.grad = x.grad, None
    layer(torch.cat([x, x.detach()]), ga.causal(10))[:5].sum().backward()
    torch.testing.assert_close(x.grad, expected)
    x.grad = None
    layer.step(torch.randn(1, DIM, dtype=torch.float64), cache).sum().backward()
    assert x.grad is None


def test_a_cache_outlives_inference_mode():
    layer, cache = layer_of({}), nn.KVCache(GRAPHS["window"])
    x = torch.randn(9, DIM, dtype=torch.float64)
    with torch.inference_mode():
        layer.step(x[:4], cache)
        layer.step(x[4:5], cache)
    layer.step(x[5:6], cache).sum().backward()


def test_dropout_is_applied_in_training_alone():
    layer = nn.GraphAttention(DIM, HEADS, dropout=0.5)
    x = torch.randn(1, N, DIM)
    steps = [layer.train(mode).step(x, nn.KVCache(CAUSAL)) for mode in (True, False)]
    assert not torch.allclose(*steps)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: nn.KVCache(ga.sliding_window(9, 2)),
            ValueError,
            "node 0 attends to the la",
        ),
        (lambda: nn.KVCache(ga.from_edges([[0, 2], [1, 1]], 3)), ValueError, "node 1 .* node 2"),
        (lambda: nn.KVCache(ga.bipartite(2, 3)), ValueError, "from a set of nodes to itself"),
        (lambda: nn.KVCache(torch.zeros(3, 3)), TypeError, "expected a graph, got Tensor"),
        (lambda: stepped(9, [5, 5]), ValueError, "has 9 nodes, but there would be 10"),
        (lambda: stepped(9, [9, 1]), ValueError, "build the graph on 10 nodes or more"),
        (lambda: stepped(9, [2, 1], batches=(2, 3)), ValueError, "does not fit; make a cache for"),
        (lambda: nn.KVCache.stack([]), ValueError, "over one graph"),
        (
            lambda: nn.KVCache.stack([nn.KVCache(CAUSAL), nn.KVCache(ga.causal(3))]),
            ValueError,
            "over one graph",
        ),
        (lambda: nn.KVCache.stack([stepped(9, [2])]), ValueError, "read without batch dimensions"),
        (lambda: stepped(9, [2], ()).select(torch.tensor([0])), ValueError, "without a batch"),
        (lambda: stepped(9, [3]).rewind(4), ValueError, "length must be between 0 and 3, got 4"),
        (lambda: stepped(9, [8]).draft([-1, 0]), ValueError, "longest branch ends at 10"),
        (lambda: stepped(9, [3]).draft([-1, 0]).accept([0]), RuntimeError, "after the layer's st"),
        (lambda: drafted([1]), ValueError, r"from a root to one of its descendants, got \[1\]"),
        (lambda: drafted([0, 3]), ValueError, "from a root"),
        (lambda: drafted([0, 0]), ValueError, "from a root"),
        (lambda: drafted([0, 1], nodes=2), ValueError, "draft has 3 nodes, but 2 were given"),
        (lambda: attended(bias=torch.zeros(6, 1)), TypeError, "a bias is a function"),
        (lambda: unequal("a score of pairs"), ValueError, "have different lengths; let them go"),
        (lambda: unequal("location"), ValueError, "a location score knows one order of nodes"),
        (lambda: unequal("dot", count=2), ValueError, r"different lengths, \(2, 3\); they go on"),
    ],
)
def test_bad_input_says_what_was_expected(make, error, message):
    with pytest.raises(error, match=message):
        make()


def stepped(n, counts, batch=(2,), batches=None):
    layer, cache = nn.GraphAttention(DIM, HEADS), nn.KVCache(ga.causal(n))
    for number, count in enumerate(counts):
        shape = batch if batches is None else (batches[number],)
        layer.step(torch.randn(*shape, count, DIM), cache)
    return cache


def drafted(path, nodes=3):
    cache, layer = stepped(9, [3]), nn.GraphAttention(DIM, HEADS)
    draft = cache.draft([-1, 0, 1])
    layer.step(torch.randn(2, nodes, DIM), draft)
    draft.accept(path)


def attended(**meaning):
    x = torch.randn(3, 1, 4)
    nn.KVCache(ga.causal(3)).attend(x, x, x, **meaning)


@torch.no_grad()
def unequal(name, count=1):
    layer, graph = layer_of(OPTIONS[name]), ga.causal(N)
    x = torch.randn(2, N, DIM, dtype=torch.float64)
    layer.step(x[:, :count], read(layer, graph, [x[0, :2], x[1, :3]]))


def test_learned_and_sinusoidal_positions_stand_at_places():
    x, places = torch.randn(2, 3, 8), torch.tensor([[4, 5, 9], [0, 1, 2]])
    for positions in (nn.LearnedPositions(10, 8), nn.SinusoidalPositions(8)):
        table = positions(torch.zeros(10, 8))
        torch.testing.assert_close(positions(x, places), x + table[places])
        torch.testing.assert_close(positions(x, places[0]), x + table[places[0]])
    with pytest.raises(ValueError, match="4 learned positions, but a node stands at place 9"):
        nn.LearnedPositions(4, 8)(x, places)
    with pytest.raises(ValueError, match=r"4 cells of the grid \(2, 2\), but a node stands at pl"):
        nn.Rotary(8, shape=(2, 2))(torch.randn(3, 1, 8), torch.tensor([1, 4, 2]))
