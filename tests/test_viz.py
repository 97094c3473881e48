"""What is drawn: the artists on the axes, compared with the graph and the weights."""

import itertools
from types import SimpleNamespace

import networkx
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure

import graphattn as ga
from graphattn import viz

PARALLEL = ga.from_edges([[0, 0, 1, 2, 2], [1, 1, 2, 0, 2]], 3)
GRAPHS = {
    "window": ga.causal(9) & ga.sliding_window(9, 2),
    "both ways": ga.sliding_window(7, 1) | ga.hubs(7, [3]),
    "grid": ga.neighborhood((3, 4), 1, border="cut"),
    "volume": ga.axial((2, 2, 3)),
    "cross": ga.bipartite(3, 5),
    "rows": ga.causal(6).rows(2, 5),
    "complete": ga.complete(6),
    "karate": ga.from_networkx(networkx.karate_club_graph()),
    "apart": ga.batch([ga.from_edges([[0, 1], [1, 2]], 3), ga.from_edges([[0, 1], [1, 0]], 2)]),
    "parallel": PARALLEL,
    "no edges": ga.from_edges([[], []], 4),
    "one node": ga.complete(1),
    "lonely": ga.from_edges([[], []], 1),
    "no nodes": ga.causal(0),
    "no sources": ga.bipartite(3, 0),
    "no destinations": ga.bipartite(0, 3),
    "200": ga.causal(200) & ga.sliding_window(200, 3),
}
LARGE = {
    "causal": ga.causal(1000),
    "dilated": ga.dilated(1000, 3, 7),
    "grid": ga.neighborhood((25, 40), 2),
    "shared": ga.expander(500, 4) | ga.hubs(500, [250]),
    "201": ga.sliding_window(201, 1),
    "parallel": ga.from_edges(
        torch.randint(300, (2, 2000), generator=torch.Generator().manual_seed(0)), 300
    ),
    "wide": ga.bipartite(3, 1000),
    "tall": ga.complete(1000).rows(0, 999),
}


@pytest.fixture(autouse=True)
def no_figure_is_left_open():
    yield
    assert pyplot.get_fignums() == []


def weights_of(graph, *heads, seed=0):
    return torch.rand(graph.num_edges, *heads, generator=torch.Generator().manual_seed(seed))


def dense(graph, values):
    """Sums of the values of each pair, and its number of edges; by a loop over the edges."""
    total, number = np.zeros((2, graph.num_dst, graph.num_src))
    for (src, dst), value in zip(graph.edge_index.T.tolist(), values.tolist()):
        total[dst, src] += value
        number[dst, src] += 1
    return total, number


def cells(matrix, down, across):
    """Sums over blocks of `down` x `across`; the last ones may be smaller."""
    rows, columns = (range(0, n, side) for n, side in zip(matrix.shape, (down, across)))
    sums = [matrix[i : i + down, j : j + across].sum() for i in rows for j in columns]
    return np.array(sums).reshape(len(rows), len(columns))


def drawn(ax):
    """The collections of a drawing by their names; it can be rendered."""
    ax.figure.canvas.draw()
    return SimpleNamespace(**{part.get_gid(): part for part in ax.collections})


def paths(collection):
    return np.array([path.vertices for path in collection.get_paths()]).reshape(-1, 4, 2)


def arrows(graph, layout="auto"):
    """The pairs that are drawn as arrows, (dst, src), ordered; and the nodes that have a ring."""
    pairs = sorted(set(map(tuple, graph.edge_index.flip(0).T.tolist())))
    if graph.num_dst != graph.num_src or layout == "bipartite":
        return pairs, []
    return [(i, j) for i, j in pairs if i != j], [i for i, j in pairs if i == j]


# --- nodes and arrows -----------------------------------------------------------------------------


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_an_arrow_for_each_pair_and_a_ring_for_each_loop(graph):
    parts = drawn(viz.draw_graph(graph))
    pairs, loops = arrows(graph)
    places = parts.nodes.get_offsets()
    two = graph.num_dst != graph.num_src
    assert len(places) == graph.num_dst + graph.num_src * two
    np.testing.assert_allclose(parts.loops.get_offsets(), places[loops])
    assert len(parts.heads.get_paths()) == len(pairs)
    for (dst, src), line, head in zip(pairs, paths(parts.edges), parts.heads.get_paths()):
        tip = head.vertices[0]
        begin, end = places[src + graph.num_dst * two], places[dst]
        near = 0.5 * np.linalg.norm(end - begin)
        assert np.linalg.norm(line[0] - begin) < near  # it leaves its source
        assert np.linalg.norm(tip - end) < near  # and its head is at its destination
        back = head.vertices[1:3].mean(0) - tip
        assert back @ (line[2] - tip) > 0  # which the head points to


def test_edges_to_later_nodes_are_above_the_line_and_others_below():
    graph = ga.sliding_window(6, 2).without_self_loops()
    for (dst, src), line in zip(arrows(graph)[0], paths(drawn(viz.draw_graph(graph)).edges)):
        assert (line[1:3, 1] > 0).all() if dst > src else (line[1:3, 1] < 0).all()


def places_of(graph, **options):
    return np.array(drawn(viz.draw_graph(graph, **options)).nodes.get_offsets())


def on_line(n):
    return [(x, 0) for x in range(n)]


def on_grid(rows, columns):
    return [(x, -y) for y in range(rows) for x in range(columns)]


LINES = [
    ga.causal(5),
    ga.causal(5).T,
    ga.prefix(5, 2),
    ga.sliding_window(5, 1).without_self_loops(),
    ga.dilated(5, 1, 2),
    ga.dilated(5, 1, 2) & ga.causal(5),
    ga.causal(5) & (ga.hubs(5, [0, 3]) | ga.sliding_window(5, 1)),
    ga.shifted_windows(5, 2),
    ga.from_mask(torch.ones(5, 5).tril().bool()),
    ga.batch([ga.causal(2), ga.complete(3)]),
]
GRIDS = [
    ga.neighborhood((2, 3), (0, 1)),
    ga.shifted_windows((2, 3), 2, 1),
    ga.axial((2, 3)).without_self_loops(),
    ga.axial((2, 3)) | ga.hubs(6, [0]),
    ga.neighborhood((2, 3), 1, border="cut").T,
]


@pytest.mark.parametrize("graph", LINES, ids=str)
def test_sequences_lie_on_a_line(graph):
    np.testing.assert_allclose(places_of(graph), on_line(5))


@pytest.mark.parametrize("graph", GRIDS, ids=str)
@pytest.mark.parametrize("layout", ["auto", "grid"])
def test_cells_lie_on_their_grid(graph, layout):
    np.testing.assert_allclose(places_of(graph, layout=layout), on_grid(2, 3))


def test_slices_of_a_volume_lie_side_by_side():
    places = places_of(ga.axial((2, 2, 3)))
    np.testing.assert_allclose(places[:6], on_grid(2, 3))
    np.testing.assert_allclose(places[6:], np.add(on_grid(2, 3), [4, 0]))


@pytest.mark.parametrize("shape", [(2, 3), [3, 2], (6, 1)])
def test_the_shape_of_a_grid_may_be_given(shape):
    np.testing.assert_allclose(places_of(ga.complete(6), layout=shape), on_grid(*shape))


@pytest.mark.parametrize("graph", [ga.bipartite(3, 5), ga.causal(6).rows(1, 4)], ids=str)
def test_two_columns(graph):
    places = places_of(graph)
    dst, src = places[: graph.num_dst], places[graph.num_dst :]
    assert len(set(dst[:, 0])) == len(set(src[:, 0])) == 1
    assert dst[0, 0] > src[0, 0]  # arrows go to the right
    for column in (dst, src):
        np.testing.assert_allclose(np.diff(column[:, 1]), -1)
        assert column[:, 1].mean() == pytest.approx(0)


def test_one_set_of_nodes_may_be_drawn_as_two():
    parts = drawn(viz.draw_graph(ga.complete(3), layout="bipartite"))
    assert (len(parts.nodes.get_offsets()), len(paths(parts.edges))) == (6, 9)
    assert len(parts.loops.get_offsets()) == 0


@pytest.mark.parametrize("graph", [ga.complete(8), ga.hubs(8, range(4))], ids=str)
def test_graphs_of_most_pairs_are_circles(graph):
    places = places_of(graph)
    np.testing.assert_allclose(np.hypot(*places.T), 8 / (2 * np.pi))
    assert places[0] == pytest.approx([0, 8 / (2 * np.pi)])
    assert places[2] == pytest.approx([8 / (2 * np.pi), 0])  # clockwise


def test_positions_are_taken_as_they_are():
    given = torch.randn(5, 2, requires_grad=True)
    np.testing.assert_allclose(places_of(ga.causal(5), layout=given), given.detach(), rtol=1e-6)


def test_general_graphs_are_drawn_as_networkx_lays_them_out():
    cycle = networkx.cycle_graph(7)
    places = places_of(ga.from_networkx(cycle))
    sides = np.linalg.norm(places - np.roll(places, 1, axis=0), axis=1)
    np.testing.assert_allclose(sides, sides[0], rtol=0.01)
    spring = np.array(list(networkx.spring_layout(cycle, seed=0).values()))
    ours = places_of(ga.from_networkx(cycle), layout="spring")
    np.testing.assert_allclose(ours / np.abs(ours).max(), spring / np.abs(spring).max(), atol=1e-6)


@pytest.mark.parametrize("graph", [ga.sliding_window(8, 0), ga.hubs(8, [3]), ga.expander(8, 3)])
def test_self_loops_do_not_make_a_sequence(graph):
    assert np.ptp(places_of(graph.with_self_loops())[:, 1]) > 1


def test_many_parts_lie_in_rows():
    ring = ga.from_networkx(networkx.cycle_graph(4))
    width, height = np.ptp(places_of(ga.batch([ring] * 16)), axis=0)
    assert 0.5 < width / height < 2


def test_parts_of_a_graph_lie_apart():
    rings = [ga.from_networkx(networkx.cycle_graph(n)) for n in (3, 5, 4)]
    places = places_of(ga.batch(rings))
    boxes = [(part.min(0), part.max(0)) for part in np.split(places, [3, 8])]
    for (low, high), (other_low, other_high) in itertools.combinations(boxes, 2):
        assert (high < other_low).any() or (other_high < low).any()


@pytest.mark.parametrize(
    "layout", ["kamada_kawai", "planar", "random", "shell", "spectral", "spiral"]
)
def test_layouts_of_networkx(layout):
    places = places_of(ga.from_networkx(networkx.path_graph(6)), layout=layout)
    assert len(np.unique(places.round(6), axis=0)) == 6


# --- what is marked, and labels -------------------------------------------------------------------


@pytest.mark.parametrize("marked", [4, [4], torch.tensor([1, 4]), (1, 4), []])
def test_highlighted_destinations(marked):
    graph = ga.causal(6)
    parts = drawn(viz.draw_graph(graph, highlight=marked))
    nodes = set(torch.as_tensor(marked).reshape(-1).tolist())
    pairs, _ = arrows(graph)
    colors = {tuple(color[:3]) for color in parts.edges.get_edgecolor()}
    assert len(colors) == (2 if nodes else 1)
    expected = sum(dst in nodes for dst, _ in pairs)
    *_, last = parts.edges.get_edgecolor()
    if nodes:
        same = (parts.edges.get_edgecolor()[:, :3] == last[:3]).all(1)
        assert same.sum() == expected
        assert same[-expected:].all()  # drawn over the others
        ring = (parts.loops.get_edgecolor()[:, :3] == last[:3]).all(1)
        assert ring.sum() == len(nodes)
    filled = {node for node, color in enumerate(parts.nodes.get_facecolor()) if color[0] > 0.5}
    assert filled == nodes


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_numbers_and_short_labels_are_inside_of_nodes():
    assert texts(viz.draw_graph(ga.causal(4))) == ["0", "1", "2", "3"]
    ax = viz.draw_graph(ga.causal(4), labels="abcd")
    assert [text.get_position() for text in ax.texts] == on_line(4)
    assert texts(ax) == list("abcd")


def test_words_are_below_a_line():
    ax = viz.draw_graph(ga.causal(3), labels=["attention", "is", "all"])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["attention", "is", "all"]
    assert ax.get_xticks().tolist() == [0, 1, 2]


def test_words_beside_two_columns():
    words = ["wir", "trinken"], ["we", "drink", "milk"]
    said = texts(viz.draw_graph(ga.bipartite(2, 3), labels=words))
    assert said == ["sources", "destinations", *words[0], *words[1]]


def test_dollars_are_no_mathematics():
    words = ["$", "a$b$c", "\\frac$"]
    for ax in (
        viz.draw_graph(ga.causal(3), labels=words),
        viz.draw_graph(ga.causal(3), labels=words, layout="circle"),
        viz.draw_graph(ga.complete(3), labels=["$$"] * 3, layout="bipartite"),
        viz.attention_matrix(torch.ones(6), ga.causal(3), labels=words),
        viz.alignment(torch.ones(3, 3), words, words),
    ):
        ax.figure.canvas.draw()


def test_names_of_networkx_are_shown():
    families = networkx.florentine_families_graph()
    assert texts(viz.draw_graph(ga.from_networkx(families))) == list(families)


def test_many_nodes_have_no_numbers():
    assert texts(viz.draw_graph(GRAPHS["200"])) == []


# --- weights as arrows ----------------------------------------------------------------------------


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_arrows_are_wider_and_darker_by_weight(graph):
    weights = weights_of(graph)
    total, _ = dense(graph, weights)
    parts = drawn(viz.draw_attention(graph, weights))
    pairs, loops = arrows(graph)
    values = [total[pair] for pair in pairs] + [total[node, node] for node in loops]
    width = [*parts.edges.get_linewidth(), *parts.loops.get_linewidth()][: len(values)]
    colors = np.concatenate([parts.edges.get_edgecolor(), parts.loops.get_edgecolor()])
    assert len(colors) == len(values)
    order = np.argsort(values)
    assert (np.diff(np.array(width)[order]) > 0).all()
    assert (np.diff(colors[order, 3]) > 0).all()
    np.testing.assert_array_equal(parts.heads.get_facecolor(), parts.edges.get_edgecolor())


def test_weights_of_zero_are_drawn():
    parts = drawn(viz.draw_attention(ga.causal(3), torch.zeros(6)))
    assert len(paths(parts.edges)) == 3
    assert (parts.edges.get_edgecolor()[:, 3] > 0).all()


def test_negative_weights_are_dashed():
    parts = drawn(viz.draw_attention(ga.bipartite(1, 3), torch.tensor([0.5, -0.5, 0.25])))
    dashed = [pattern is not None for _, pattern in parts.edges.get_linestyle()]
    assert dashed == [False, True, False]


def test_parallel_edges_are_one_arrow_of_their_sum():
    ax = viz.draw_attention(PARALLEL, torch.tensor([0.3, 0.3, 0.5, 0.1, 0.2]))
    widths = drawn(ax).edges.get_linewidth()  # of 2 -> 0, 0 -> 1, 1 -> 2
    assert widths[1] > widths[2] > widths[0]
    by_number = drawn(viz.draw_graph(PARALLEL)).edges.get_linewidth()
    assert by_number[1] > by_number[0] == by_number[2]


# --- matrices -------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
@pytest.mark.parametrize("heads", [(), (1,), (3,)])
def test_the_matrix_is_that_of_the_weights(graph, heads):
    weights = weights_of(graph, *heads)
    total, number = dense(graph, weights.double().mean(1) if heads else weights)
    ax = viz.attention_matrix(weights, graph)
    ax.figure.canvas.draw()
    if total.size == 0:
        assert not ax.images
        return
    shown = ax.images[0].get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), number == 0)
    np.testing.assert_allclose(shown.filled(0), total, atol=1e-12)
    assert ("mean of 3 heads" in ax.get_title()) == (heads == (3,))


def test_no_edge_is_not_a_weight_of_zero():
    image = viz.attention_matrix(torch.tensor([1.0, 0.0, 1.0]), ga.causal(2)).images[0]
    pixels = image.cmap(image.norm(image.get_array()))
    grey, white = pixels[0, 1], pixels[1, 0]
    assert grey[3] == white[3] == 1
    assert np.ptp(grey[:3]) == 0
    assert grey[:3].max() < 0.9 < white[:3].min()


def test_negative_weights_have_another_color():
    image = viz.attention_matrix(torch.tensor([-1.0, 0.0, 0.5]), ga.causal(2)).images[0]
    assert image.get_clim() == (-1, 1)


def test_labels_of_a_matrix():
    ax = viz.attention_matrix(torch.ones(6), ga.causal(3), labels="abc")
    for axis in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert [tick.get_text() for tick in axis] == ["a", "b", "c"]
    ax = viz.attention_matrix(torch.ones(2), ga.bipartite(1, 2), labels=(["x"], ["y", "z"]))
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["x"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["y", "z"]


def test_of_many_labels_some_are_shown_where_they_belong():
    ax = viz.attention_matrix(weights_of(ga.causal(300)), ga.causal(300), labels=range(300))
    places = ax.get_xticks().tolist()
    assert 10 < len(places) <= 100
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [
        f"{place:.0f}" for place in places
    ]


def test_alignment():
    weights, src, dst = torch.rand(2, 3), ["la", "maison", "bleue"], ["the", "house"]
    ax = viz.alignment(weights, src, dst)
    np.testing.assert_allclose(ax.images[0].get_array(), weights)
    assert ax.images[0].get_clim() == (0, 1)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == src
    assert [tick.get_text() for tick in ax.get_yticklabels()] == dst
    assert ax.xaxis.get_ticks_position() == "top"


def test_alignment_of_a_graph():
    graph = ga.bipartite(2, 3) - ga.from_edges([[1], [0]], num_dst=2, num_src=3)
    weights = weights_of(graph, 4)
    shown = viz.alignment(weights, "abc", "xy", graph=graph).images[0].get_array()
    np.testing.assert_allclose(shown, dense(graph, weights.double().mean(1))[0])


# --- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [(), (3,), (1,)])
def test_what_a_patch_attends_to_lies_over_the_image(channels):
    graph, image = ga.neighborhood((2, 3), 1, border="cut"), torch.rand(*channels, 8, 12)
    weights = weights_of(graph, 2)
    ax = viz.attention_over_image(image, weights, graph, 5, (2, 3))
    ax.figure.canvas.draw()
    grey, heat = ax.images
    np.testing.assert_allclose(grey.get_array(), image.double().reshape(-1, 8, 12).mean(0))
    total, number = dense(graph, weights.double().mean(1))
    shown = heat.get_array()
    np.testing.assert_allclose(shown.filled(0), total[5].reshape(2, 3))
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), number[5].reshape(2, 3) == 0)
    assert heat.get_extent() == grey.get_extent()
    (frame,) = ax.patches
    assert (frame.get_xy(), frame.get_width(), frame.get_height()) == ((7.5, 3.5), 4, 4)


def test_the_fullest_color_is_the_strongest_weight():
    graph = ga.complete(4)
    weights = torch.arange(16.0)
    heat = viz.attention_over_image(torch.rand(4, 4), weights, graph, 1, (2, 2)).images[1]
    alpha = heat.cmap(heat.norm(heat.get_array()))[..., 3].flatten()
    assert heat.get_clim() == (0, 7)
    assert (np.diff(alpha) > 0).all()


def test_parallel_edges_add_up_over_an_image():
    ax = viz.attention_over_image(torch.rand(3, 3), torch.ones(5), PARALLEL, 1, (1, 3))
    assert ax.images[1].get_array().tolist() == [[2.0, None, None]]


# --- text -----------------------------------------------------------------------------------------


TEXTS = [
    (ga.causal(3), 80, "# . .\n# # .\n# # #"),
    (ga.bipartite(1, 3), 80, "# # #"),
    (ga.from_edges([[0, 0, 1], [1, 1, 0]], 2), 80, ". #\n2 ."),
    (ga.from_edges([[0] * 12, [0] * 12], 1), 80, "9"),
    (ga.causal(3), 5, "# . .\n# # .\n# # #"),
    (ga.causal(3), 4, "#..\n##.\n###"),
    (ga.causal(3), 3, "#..\n##.\n###"),
    (ga.complete(1), 1, "#"),
    (ga.from_edges([[], []], 2), 80, ". .\n. ."),
    (ga.causal(0), 80, ""),
    (ga.bipartite(2, 0), 80, "\n"),
    (ga.bipartite(0, 2), 80, ""),
]
NOTE = "edges: . none, : <= 1/3, + <= 2/3, * < 1, # all"


@pytest.mark.parametrize(("graph", "width", "text"), TEXTS)
def test_text(graph, width, text):
    assert viz.graph_text(graph, width=width) == text


def test_text_of_a_larger_graph():
    assert viz.graph_text(ga.causal(90), width=5) == (
        "+ . .\n# + .\n# # +\n90 nodes in groups of 30; " + NOTE
    )
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:2, 2:], mask[2, :2], mask[2:, 2:] = True, torch.tensor([True, False]), True
    mask[3, 3] = False
    assert viz.graph_text(ga.from_mask(mask), width=3) == (
        ". #\n: *\n4 nodes in groups of 2; " + NOTE
    )
    wide = viz.graph_text(ga.bipartite(2, 100), width=4)
    assert wide == "# #\n# #\n100 sources in groups of 50; " + NOTE


@pytest.mark.parametrize("graph", LARGE.values(), ids=LARGE)
def test_text_fits_the_width(graph):
    *lines, last = viz.graph_text(graph, width=60).splitlines()
    assert {len(line) for line in lines} <= set(range(1, 61))
    assert "in groups of" in last


def test_a_graph_too_large_to_be_listed_has_a_picture():
    graph = ga.causal(1_000_000) & ga.sliding_window(1_000_000, 200_000)
    assert viz.graph_text(graph, width=9).splitlines()[:5] == [
        "+ . . . .",
        "+ + . . .",
        ". + + . .",
        ". . + + .",
        ". . . + +",
    ]


# --- groups ---------------------------------------------------------------------------------------


def side(n):
    return 1 if n <= 200 else -(-n // 200)


@pytest.mark.parametrize("graph", LARGE.values(), ids=LARGE)
def test_cells_of_a_large_matrix_are_sums(graph):
    weights = weights_of(graph)
    total, number = dense(graph, weights.double())
    down, across = side(graph.num_dst), side(graph.num_src)
    ax = viz.attention_matrix(weights, graph)
    shown = ax.images[0].get_array()
    np.testing.assert_allclose(shown.filled(0), cells(total, down, across), atol=1e-9)
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), cells(number, down, across) == 0)
    assert shown.sum() == pytest.approx(weights.double().sum().item())
    assert f"in groups of {across}, weights summed" in ax.get_title()


def coarse(graph, matrix):
    """A matrix summed over the groups of a drawing, and how many nodes are in them."""
    n = graph.num_dst
    if graph is LARGE["grid"]:  # squares of 5 x 5 cells, 5 rows of 8
        rows, columns = np.divmod(np.arange(n), 40)
        label = rows // 5 * 8 + columns // 5
    else:
        label = np.arange(n) // -(-n // 40)
    groups = np.eye(label.max() + 1)[label]  # (nodes, groups)
    return groups.T @ matrix @ groups, groups.sum(0)


@pytest.mark.parametrize("name", ["causal", "dilated", "grid", "shared", "201", "parallel"])
def test_arrows_between_groups(name):
    graph = LARGE[name]
    weights = weights_of(graph)
    total, number = dense(graph, weights.double())
    for ax, matrix, words in (
        (viz.draw_graph(graph), number > 0, "arrows by the share of pairs that are edges"),
        (viz.draw_attention(graph, weights), total, "weights summed"),
    ):
        strength, sizes = coarse(graph, matrix.astype(float))
        if matrix is not total:
            strength /= sizes[:, None] * sizes
        parts = drawn(ax)
        assert len(parts.nodes.get_offsets()) == len(sizes) <= 40
        dst, src = strength.nonzero()
        values, loop = strength[dst, src] / strength.max(), dst == src
        widths = np.concatenate([parts.edges.get_linewidth(), parts.loops.get_linewidth()])
        expected = 0.2 + 0.8 * np.concatenate([values[~loop], values[loop]])
        np.testing.assert_allclose(widths / widths.max(), expected)
        title = ax.get_title().replace("\n", " ")
        assert f"{graph.num_dst:,} nodes in groups of" in title
        assert words in title


def test_two_hundred_nodes_are_drawn_one_by_one():
    ax = viz.draw_graph(GRAPHS["200"])
    assert "groups" not in ax.get_title()
    assert len(drawn(ax).nodes.get_offsets()) == 200
    assert (
        "groups" not in viz.attention_matrix(weights_of(ga.causal(200)), ga.causal(200)).get_title()
    )


def test_positions_of_groups_are_the_means():
    given = torch.rand(400, 2, dtype=torch.float64)
    places = places_of(ga.causal(400), layout=given)
    np.testing.assert_allclose(places, given.view(40, 10, 2).mean(1))


def test_a_group_is_marked_with_its_node():
    parts = drawn(viz.draw_graph(ga.causal(400), highlight=57))
    assert [i for i, color in enumerate(parts.nodes.get_facecolor()) if color[0] > 0.5] == [5]


# --- where it is drawn ----------------------------------------------------------------------------


GRAPH = ga.neighborhood((2, 3), 1, border="cut")
DRAWINGS = {
    "draw_graph": lambda w, **o: viz.draw_graph(GRAPH, **o),
    "draw_attention": lambda w, **o: viz.draw_attention(GRAPH, w, **o),
    "attention_matrix": lambda w, **o: viz.attention_matrix(w, GRAPH, **o),
    "attention_over_image": lambda w, **o: viz.attention_over_image(
        torch.rand(6, 6), w, GRAPH, 0, (2, 3), **o
    ),
    "alignment": lambda w, **o: viz.alignment(w, "abcdef", "abcdef", graph=GRAPH, **o),
}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_it_draws_on_the_axes_that_are_passed(draw):
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert draw(weights_of(GRAPH), ax=right) is right
    assert figure.axes == [left, right]
    assert not left.has_data()
    assert right.get_title()
    figure.canvas.draw()


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_it_takes_weights_as_attention_gives_them(draw):
    leaf = weights_of(GRAPH, 2).requires_grad_()
    for weights in (leaf, leaf * 1, leaf.bfloat16(), leaf.detach().numpy(), leaf.tolist()):
        draw(weights).figure.canvas.draw()
    assert leaf.grad is None


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_axes_must_be_axes(draw):
    with pytest.raises(TypeError, match="ax must be a matplotlib Axes, got ndarray"):
        draw(weights_of(GRAPH), ax=Figure().subplots(1, 2))


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [d for name, d in DRAWINGS.items() if name != "draw_graph"])
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(3), r"E = 28, the edges of neighborhood\(.* in edge order, got \(3,\)"),
        (torch.ones(2, 28, 4), r"got \(2, 28, 4\); take one of the batch, as weights\[0\]"),
        (torch.ones(28, 0), r"got \(28, 0\)"),
        (torch.ones(28) / 0, r"weights must be finite, got inf at \[0\]"),
    ],
)
def test_weights_that_do_not_fit(draw, weights, message):
    with pytest.raises(ValueError, match=message):
        draw(weights)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layout": "tree"}, ValueError, "layout must be one of auto, line, .*; got 'tree'"),
        ({"layout": 3}, ValueError, "layout must be one of auto, line, .*; got 3"),
        ({"layout": (2, 2)}, ValueError, r"layout \(2, 2\) has 4 cells for 5 nodes"),
        ({"layout": [[0, 0]]}, ValueError, r"every node, \(5, 2\), got \(1, 2\)"),
        ({"layout": "grid"}, ValueError, r"no grid is known of causal\(5\); pass its shape"),
        ({"layout": "planar"}, ValueError, 'layout "planar" does not exist here'),
        ({"labels": "abc"}, ValueError, "labels must be 5, one for each node, got 3"),
        ({"labels": ["abcde", "abcde"]}, ValueError, "labels must be 5, one for each node, got 2"),
        ({"labels": [range(5), range(4)]}, ValueError, "labels of the sources must be 5, .* got 4"),
        ({"labels": [[*"abcde"], [*"fghij"]]}, ValueError, 'give one list, or layout="bipartite"'),
        ({"labels": 5}, TypeError, "labels must be several"),
        ({"highlight": 5}, IndexError, r"node 5, out of range for the 5 destinations of causal"),
        ({"highlight": [0, -1]}, IndexError, "node -1, out of range"),
        ({"highlight": "abc"}, TypeError, "highlight must be several"),
        ({"highlight": 1.5}, TypeError, "highlight must hold integers"),
    ],
)
def test_options_that_do_not_fit(options, error, message):
    with pytest.raises(error, match=message):
        viz.draw_graph(ga.causal(5), **options)


OTHER_ERRORS = {
    r'is for one set of nodes.*take "bipartite"': lambda: viz.draw_graph(
        ga.bipartite(2, 3), layout="line"
    ),
    "labels must be a pair, of 2 destinations and of 3 sources": lambda: viz.draw_graph(
        ga.bipartite(2, 3), labels="abc"
    ),
    "dst_tokens must be 2, one for each node, got 3": lambda: viz.alignment(
        torch.rand(2, 3), "abc", "xyz"
    ),
    r"weights must be \(num_dst, num_src\), or .* graph=...; got \(6,\)": lambda: viz.alignment(
        torch.rand(6), "abc", "xy"
    ),
    r"grid \(2, 2\) has 4 patches, and complete\(6\) has 6 sources": lambda: over_image(
        grid=(2, 2)
    ),
    "query names node 6, out of range": lambda: over_image(query=6),
    r"image must be \(height, width\) or .* got \(3,\)": lambda: over_image(image=torch.rand(3)),
    r"channels first, got \(8, 8, 3\); permute": lambda: over_image(image=torch.rand(8, 8, 3)),
    "must not be negative, got -1": lambda: over_image(weights=-torch.ones(36)),
    "width must be between 1": lambda: viz.graph_text(ga.causal(3), width=0),
}


def over_image(image=None, weights=None, query=0, grid=(2, 3)):
    image = torch.zeros(6, 6) if image is None else image
    weights = torch.ones(36) if weights is None else weights
    return viz.attention_over_image(image, weights, ga.complete(6), query, grid)


@pytest.mark.parametrize("message", OTHER_ERRORS)
def test_other_errors(message):
    with pytest.raises((ValueError, IndexError), match=message):
        OTHER_ERRORS[message]()


@pytest.mark.parametrize("function", [viz.draw_graph, viz.graph_text])
def test_a_graph_is_asked_for(function):
    with pytest.raises(TypeError, match="expected a graph, got Tensor"):
        function(torch.ones(3, 3))
