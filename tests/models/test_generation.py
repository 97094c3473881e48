"""Generation with caches against reading all that was written again for each token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import graphattn as ga
from graphattn import models, nn
from graphattn.models.sampling import Dice, draw, nucleus
from tests.test_laws import trees

VOCAB, N, NEW = 13, 26, 12
PROMPTS = [torch.tensor([1, 2, 3, 4, 5]), torch.tensor([7]), torch.tensor([3, 1, 4, 1, 5, 9, 2])]
GRAPHS = {
    "causal": ga.causal(N),
    "window": ga.sliding_window(N, 3) & ga.causal(N),
    "window and sinks": (ga.sliding_window(N, 2) | ga.hubs(N, [0, 1])) & ga.causal(N),
    "expander": ga.expander(N, 5) & ga.causal(N),
}
BLOCKS = {
    "grouped-query": {"kv_heads": 2},
    "multi-query and sinks": {"kv_heads": 1, "normalizer": nn.SinkSoftmax(4, sink=1.0)},
    "soft-capping": {"softcap": 3.0, "bias": nn.ALiBi(4)},
    "GATv2": {"score": nn.GATv2(4, 4)},
}


def drawn(seed=0, **block):
    """A model in float64 that prefers different things in different places."""
    torch.manual_seed(seed)
    model = models.GPT(VOCAB, dim=16, depth=2, heads=4, **block).double()
    for parameter in model.parameters():
        parameter.data.mul_(6)
    return model


def beginning(graph, n):
    """The graph on the first n nodes, as a mask says it."""
    return ga.from_mask(graph.mask()[:n, :n])


@torch.no_grad()
def reread(model, prompt, graph, choose, count=NEW):
    """Every token is read again for each new one: nothing is kept."""
    graphs = graph if isinstance(graph, list) else [graph] * len(model.blocks)
    tokens = prompt
    for _ in range(count):
        scores = model(tokens, [beginning(each, len(tokens)) for each in graphs])[-1]
        tokens = torch.cat([tokens, choose(scores)[None]])
    return tokens[len(prompt) :].tolist()


def greedily(scores):
    return scores.argmax()


def lists(texts):
    return [text.tolist() for text in texts]


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_greedy_texts_are_those_of_reading_all_again(graph, block):
    model = drawn(**block)
    expected = [reread(model, prompt, graph, greedily) for prompt in PROMPTS]
    assert len({token for text in expected for token in text}) > 2  # it does not say one thing
    options = {"max_new_tokens": NEW, "temperature": 0}
    assert lists(model.generate(PROMPTS, graph, **options)) == expected
    alone = [list(model.stream(prompt, graph, **options)) for prompt in PROMPTS]
    assert alone == expected


@settings(max_examples=40)
@given(st.integers(3, 9), st.data())
def test_greedy_texts_of_any_causal_graph(n, data):
    graph = data.draw(trees(n, n, 2)).graph & ga.causal(n)
    lengths = data.draw(st.lists(st.integers(1, n - 1), min_size=1, max_size=3))
    prompts = [torch.randint(VOCAB, (length,)) for length in lengths]
    model, count = drawn(), n - max(lengths)
    expected = [reread(model, prompt, graph, greedily, count) for prompt in prompts]
    assert lists(model.generate(prompts, graph, max_new_tokens=count, temperature=0)) == expected


def test_graphs_are_one_for_each_block_or_made_of_the_number_of_nodes():
    model = drawn()
    graphs = [GRAPHS["window"], GRAPHS["causal"]]
    expected = [reread(model, prompt, graphs, greedily) for prompt in PROMPTS]
    options, asked = {"max_new_tokens": NEW, "temperature": 0}, []

    def make(n):
        asked.append(n)
        return [ga.sliding_window(n, 3) & ga.causal(n), ga.causal(n)]

    assert lists(model.generate(PROMPTS, graphs, **options)) == expected
    assert lists(model.generate(PROMPTS, make, **options)) == expected
    assert asked == [max(map(len, PROMPTS)) + NEW]


def test_a_batch_is_one_tensor():
    model, batch = drawn(), torch.randint(VOCAB, (3, 6))
    options = {"max_new_tokens": NEW, "temperature": 0}
    together = lists(model.generate(batch, GRAPHS["window"], **options))
    assert together == lists(model.generate(list(batch), GRAPHS["window"], **options))
    assert together == [reread(model, row, GRAPHS["window"], greedily) for row in batch]


@pytest.mark.parametrize("choice", [{}, {"top_k": 4}, {"temperature": 0.7, "top_p": 0.8}])
def test_drawn_texts_depend_on_the_seed_and_the_prompt_alone(choice):
    model, graph = drawn(), GRAPHS["window and sinks"]
    options = {"max_new_tokens": NEW, **choice}
    texts = lists(model.generate(PROMPTS, graph, seed=5, **options))
    assert texts == lists(model.generate(PROMPTS, graph, seed=5, **options))
    assert texts != lists(model.generate(PROMPTS, graph, seed=9, **options))
    for number, (prompt, text) in enumerate(zip(PROMPTS, texts)):
        dice = Dice(5 + number, 1)
        of = models.Choice(**choice)
        choose = lambda scores: draw(of.probabilities(scores), dice.roll([0])[0])  # noqa: B023, E731
        assert text == reread(model, prompt, graph, choose)
        assert text == list(model.stream(prompt, graph, seed=5 + number, **options))


def test_torch_draws_the_seed_that_is_not_given():
    model = drawn()

    def text():
        return lists(model.generate(PROMPTS, GRAPHS["causal"], max_new_tokens=NEW))

    torch.manual_seed(3)
    one, other = text(), text()
    assert one != other
    torch.manual_seed(3)
    assert text() == one


def test_texts_end_at_a_stop_and_the_others_go_on():
    model, graph = drawn(), GRAPHS["window and sinks"]
    whole = [reread(model, prompt, graph, greedily) for prompt in PROMPTS]
    for stop in ({whole[0][3]}, {whole[1][0], whole[2][5]}, set(range(VOCAB)), set()):
        cut = [[*text, -1][: _first(text, stop)] for text in whole]
        options = {"max_new_tokens": NEW, "temperature": 0, "stop": stop}
        assert lists(model.generate(PROMPTS, graph, **options)) == cut
        assert [list(model.stream(prompt, graph, **options)) for prompt in PROMPTS] == cut


def _first(text, stop):
    return min((place for place, token in enumerate(text) if token in stop), default=len(text))


def test_the_mode_of_the_model_and_gradients_are_left_as_they_were():
    model = drawn(dropout=0.5).train()
    model.blocks[1].eval()
    options = {"max_new_tokens": NEW, "temperature": 0}
    one, other = (lists(model.generate(PROMPTS, GRAPHS["causal"], **options)) for _ in range(2))
    assert one == other  # no dropout
    assert [block.training for block in model.blocks] == [True, False]
    for _ in model.stream(PROMPTS[0], GRAPHS["causal"], **options):
        assert model.training
        assert torch.is_grad_enabled()
    assert model(PROMPTS[0], ga.causal(5)).requires_grad


def test_a_stream_is_drawn_as_it_is_asked_for(monkeypatch):
    model, read = drawn(), []
    step = models.GPT.step
    monkeypatch.setattr(models.GPT, "step", lambda *a: read.append(a[1].shape[-1]) or step(*a))
    tokens = model.stream(PROMPTS[0], GRAPHS["window"], max_new_tokens=NEW)
    assert read == []
    next(tokens)
    assert read == [5]  # the prompt in one call
    next(tokens), next(tokens)
    assert read == [5, 1, 1]
    assert len(list(tokens)) == NEW - 3
    assert read == [5, *[1] * (NEW - 1)]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"graph": ga.causal(18)}, ValueError, r"causal\(18\) has 18 nodes, but a prompt of 7 tok"),
        ({"graph": ga.causal}, TypeError, "max_new_tokens must be an integer, got 1.5"),
        ({"graph": ga.complete(N)}, ValueError, "node 0 attends to the later node 25 in complete"),
        ({"graph": [GRAPHS["causal"]] * 3}, ValueError, "one for each of the 2 blocks; got 3"),
        ({"graph": lambda n: 7}, TypeError, "or a function that makes them .* got int 7"),
        ({"graph": torch.ones(N, N)}, TypeError, "graph must be a graph, .* got Tensor"),
        ({"graph": ["causal", "causal"]}, TypeError, "expected a graph, got str 'causal'"),
        ({"prompts": []}, ValueError, "at least one prompt"),
        ({"prompts": [PROMPTS[0][:0]]}, ValueError, r"prompts\[0\] is empty"),
        ({"prompts": PROMPTS[0]}, ValueError, r"shape \(n,\), got \(\); a single prompt is given"),
        ({"prompts": [PROMPTS[0].float()]}, TypeError, r"prompts\[0\] .* got torch.float32"),
        ({"prompts": [[1, 2]]}, TypeError, r"prompts\[0\] must be an int64 tensor, got list"),
        ({"prompts": "abc"}, TypeError, "prompts must be several"),
        ({"prompts": [torch.tensor([1, 13])]}, ValueError, r"the token 13, out of range for 13"),
        ({"prompts": [torch.tensor([-1])]}, ValueError, r"the token -1, out of range"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be between 1"),
        ({"temperature": -0.5}, ValueError, "temperature must be .* got -0.5"),
        ({"temperature": float("nan")}, ValueError, "temperature must be .* got nan"),
        ({"temperature": "hot"}, ValueError, "got 'hot'"),
        ({"top_k": 0}, ValueError, "top_k must be between 1"),
        ({"top_k": 2.5}, TypeError, "top_k must be an integer"),
        ({"top_k": 14}, ValueError, "top_k must be at most 13, the number of tokens, got 14"),
        ({"top_p": 0.0}, ValueError, "top_p must be a probability above 0, .* got 0.0"),
        ({"top_p": 1.5}, ValueError, "got 1.5"),
        ({"stop": [13]}, ValueError, "a stop token must be between 0 and 12, got 13"),
        ({"stop": 3}, TypeError, "stop must be several"),
        ({"seed": 0.5}, TypeError, "seed must be an integer"),
    ],
)
def test_bad_input_says_what_was_expected(options, error, message):
    arguments = {"prompts": PROMPTS, "graph": GRAPHS["causal"], "max_new_tokens": NEW, **options}
    if arguments["graph"] is ga.causal:
        arguments["max_new_tokens"] = 1.5
    with pytest.raises(error, match=message):
        drawn().generate(**arguments)


def test_a_prompt_longer_than_the_positions():
    model = drawn()
    model.blocks[0].attention.positions = nn.Rotary(4, shape=(2, 4))
    with pytest.raises(ValueError, match=r"8 cells of the grid \(2, 4\), but a node stands at pl"):
        model.generate([torch.zeros(9, dtype=torch.int64)], ga.causal, max_new_tokens=1)


def test_one_cache_for_each_block():
    with pytest.raises(ValueError, match="one cache for each of the 2 blocks, got 1"):
        drawn().step(PROMPTS[0], [nn.KVCache(ga.causal(N))])


# --- what is drawn --------------------------------------------------------------------------------


def by_hand(scores, temperature, top_k, top_p):
    """Token by token, from the likeliest on, until there are enough of them."""
    p = (torch.tensor(scores).double() / temperature).softmax(0).tolist()
    ranked = sorted(range(len(p)), key=lambda token: -p[token])[:top_k]
    kept, total = [], sum(p[token] for token in ranked)
    for token in ranked:
        kept.append(token)
        if top_p is not None and sum(p[token] for token in kept) / total >= top_p:
            break
    sum_ = sum(p[token] for token in kept)
    return [p[token] / sum_ if token in kept else 0.0 for token in range(len(p))]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 7])
@pytest.mark.parametrize("top_p", [None, 0.01, 0.6, 1.0])
def test_probabilities(temperature, top_k, top_p):
    scores = torch.randn(5, 7, dtype=torch.float64) * 2
    found = models.Choice(temperature, top_k, top_p).probabilities(scores)
    expected = [by_hand(row, temperature, top_k, top_p) for row in scores.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_probabilities_of_extreme_scores():
    scores = torch.tensor([3e38, -3e38, 3e38])
    for least in (1e-30, 1e-50, 5e-324):
        assert models.Choice(least).probabilities(scores).tolist() == [0.5, 0.0, 0.5]
    assert models.Choice(0).probabilities(scores.to(torch.bfloat16)).tolist() == [1.0, 0.0, 0.0]
    assert models.Choice().probabilities(scores.half().clamp(-6e4, 6e4)).dtype == torch.float32


def test_ties_leave_as_many_as_were_asked_for():
    p = models.Choice(top_k=2).probabilities(torch.zeros(5))
    assert sorted(p.tolist()) == [0, 0, 0, 0.5, 0.5]
    assert nucleus(torch.full((4,), 0.25), 0.5).count_nonzero() == 2


def test_every_token_is_drawn_as_often_as_its_probability_says():
    p = torch.tensor([0.0, 0.3, 0.0, 0.5, 0.2, 0.0])
    uniform = (torch.arange(1000) + 0.5) / 1000
    drawn_ = draw(p.expand(1000, 6), uniform)
    assert torch.bincount(drawn_, minlength=6).tolist() == [0, 300, 0, 500, 200, 0]
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw(p.expand(2, 6), ends).tolist() == [1, 4]
