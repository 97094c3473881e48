"""BERT with the weights of transformers' BERT gives the same scores; what mask_tokens hides."""

import math

import pytest
import torch

import graphattn as ga
from graphattn.models import BERT, mask_tokens

transformers = pytest.importorskip("transformers")

VOCAB, MAX_LEN, N = 50, 16, 12
THEIR_NAMES = (
    ("bert.embeddings.word_embeddings", "embedding"),
    ("bert.embeddings.position_embeddings", "positions"),
    ("bert.embeddings.token_type_embeddings", "segments"),
    ("bert.embeddings.LayerNorm", "embedding_norm"),
    ("bert.encoder.layer", "blocks"),
    ("attention.self.", "attention."),
    ("attention.output.dense", "attention.out"),
    ("attention.output.LayerNorm", "attention_norm"),
    ("intermediate.dense", "mlp.0"),
    ("output.dense", "mlp.2"),
    ("output.LayerNorm", "mlp_norm"),
    ("cls.predictions.transform.dense", "head.0"),
    ("cls.predictions.transform.LayerNorm", "head.2"),
    ("cls.predictions.", ""),
)


def renamed(name):
    """The name in our model of a parameter in transformers' model."""
    for theirs, ours in THEIR_NAMES:
        name = name.replace(theirs, ours)
    return name


@pytest.fixture(scope="module")
def pair():
    """transformers' model and ours with its weights, both without dropout, in float64."""
    config = transformers.BertConfig(
        vocab_size=VOCAB,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=60,
        max_position_embeddings=MAX_LEN,
        attn_implementation="eager",
    )
    theirs = transformers.BertForMaskedLM(config).eval().double()
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        parameter.data.normal_(std=0.3, generator=generator)
    ours = BERT(VOCAB, max_len=MAX_LEN, dim=24, depth=3, heads=4, mlp_ratio=2.5).eval().double()
    ours.load_state_dict({renamed(name): value for name, value in theirs.named_parameters()})
    return theirs, ours


def draw(*shape, high=VOCAB, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


GRAPHS = {
    "complete": ga.complete(N),
    "one node": ga.complete(1),
    "all positions": ga.complete(MAX_LEN),
    "window": ga.sliding_window(N, 2),
    "window, hub, expander": ga.sliding_window(N, 1) | ga.hubs(N, [0]) | ga.expander(N, 3, seed=0),
    "one way": ga.causal(N),
    "two sentences": ga.batch([ga.complete(5), ga.complete(N - 5)]),
}


def additive(graph):
    """The graph as transformers takes it: (1, 1, n, n), added to the scores."""
    allowed = graph.mask()[None, None]
    return torch.zeros(allowed.shape, dtype=torch.float64).masked_fill(~allowed, -math.inf)


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_scores_and_gradients_are_those_of_transformers_under_the_mask(pair, graph):
    theirs, ours = pair
    tokens, segments = draw(2, graph.num_dst), draw(2, graph.num_dst, high=2, seed=1)
    got = ours(tokens, graph, segments)
    expected = theirs(tokens, additive(graph), token_type_ids=segments).logits
    close(got, expected)
    weight = torch.randn(got.shape, generator=torch.Generator().manual_seed(2))
    names, parameters = zip(*theirs.named_parameters())
    own = dict(ours.named_parameters())
    grads = torch.autograd.grad((got * weight).sum(), [own[renamed(name)] for name in names])
    close(grads, torch.autograd.grad((expected * weight).sum(), parameters))


def test_one_graph_for_each_block(pair):
    _, ours = pair
    window, whole = ga.sliding_window(N, 1), ga.complete(N)
    x = ours.embed(draw(N))
    for block, graph in zip(ours.blocks, (window, window, whole)):
        x = block(x, graph)
    close(ours.encode(draw(N), [window, window, whole]), x)


def test_padding_is_nodes_that_nobody_hears(pair):
    theirs, ours = pair
    tokens, real = draw(2, N), torch.arange(N) < 7
    graph = ga.from_mask(real.expand(N, N))  # no edge leaves a padded node
    expected = theirs(tokens, real.long().expand(2, N)).logits
    close(ours(tokens, graph), expected)
    changed = tokens.masked_fill(~real, 0)
    close(ours(changed, graph)[:, :7], expected[:, :7])


def test_sequences_side_by_side_need_no_padding(pair):
    theirs, ours = pair
    lengths = [3, N, 1, 7]
    real = torch.arange(N) < torch.tensor(lengths)[:, None]
    tokens, segments = draw(4, N), draw(4, N, high=2, seed=1)
    graph = ga.batch([ga.complete(length) for length in lengths])
    positions = torch.cat([torch.arange(length) for length in lengths])
    expected = theirs(tokens, real.long(), token_type_ids=segments).logits
    close(ours(tokens[real], graph, segments[real], positions), expected[real])


def test_starts_as_the_paper_says():
    model = BERT(3000, dim=64, depth=2, heads=4)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif "norm" in name or name == "head.2.weight":
            assert (parameter == 1).all()
        else:
            assert 0.015 < parameter.std() < 0.025, name
    parts = [part for part in model.modules() if isinstance(part, torch.nn.Dropout)]
    assert {part.p for part in parts} == {0.1}
    assert {block.attention.dropout for block in model.blocks} == {0.1}
    norms = [part for part in model.modules() if isinstance(part, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-12}


def test_more_tokens_than_positions():
    model = BERT(VOCAB, max_len=4, dim=8, depth=1, heads=2)
    with pytest.raises(ValueError, match=r"4 positions, but there are 5 tokens.*max_len=5"):
        model(draw(5), ga.complete(5))
    model(draw(5), ga.complete(5), positions=torch.tensor([0, 1, 2, 3, 0]))


# --- the masking rule -----------------------------------------------------------------------------

MASK, SPECIAL = 7, (0, 49)


def masked(tokens, rate=0.15, seed=0):
    generator = torch.Generator().manual_seed(seed)
    options = {"mask": MASK, "special": SPECIAL, "rate": rate, "generator": generator}
    return mask_tokens(tokens, vocab_size=VOCAB, **options)


def within(count, trials, probability):
    """Whether a binomial count is within five standard deviations of its mean."""
    spread = math.sqrt(trials * probability * (1 - probability))
    return abs(count - trials * probability) <= 5 * spread


@pytest.mark.parametrize("rate", [0.15, 0.5])
def test_shares_of_what_is_hidden(rate):
    tokens = torch.full((400, 500), 3)
    seen, chosen = masked(tokens, rate)
    num = int(chosen.sum())
    assert within(num, tokens.numel(), rate)
    hidden, kept = int((seen == MASK).sum()), int((chosen & (seen == 3)).sum())
    drawn = torch.bincount(seen[chosen & (seen != MASK) & (seen != 3)], minlength=VOCAB)
    ordinary = VOCAB - 3
    assert within(hidden, num, 0.8)
    assert within(kept, num, 0.1 + 0.1 / ordinary)  # 3 is drawn, too
    assert within(int(drawn.sum()), num, 0.1 - 0.1 / ordinary)
    assert (seen[~chosen] == 3).all()
    assert all(within(int(n), num, 0.1 / ordinary) for n in drawn[drawn > 0])
    assert (drawn > 0).sum() == ordinary - 1  # all but 3 itself
    assert not drawn[[*SPECIAL, MASK]].any()


def test_choices_are_independent_of_their_neighbors():
    _, chosen = masked(torch.full((1000, 200), 3))
    both = (chosen[:, 1:] & chosen[:, :-1]).sum()
    assert within(int(both), 1000 * 199, 0.15**2)


def test_special_tokens_are_never_touched():
    tokens = draw(200, 100)
    seen, chosen = masked(tokens, rate=1.0)
    special = torch.isin(tokens, torch.tensor([*SPECIAL, MASK]))
    assert torch.equal(chosen, ~special)
    assert torch.equal(seen[special], tokens[special])


def test_nothing_is_hidden_at_rate_0_and_the_input_stays():
    tokens = draw(20, 100)
    before = tokens.clone()
    seen, chosen = masked(tokens, rate=0.0)
    assert torch.equal(seen, tokens)
    assert not chosen.any()
    masked(tokens, rate=1.0)
    assert torch.equal(tokens, before)


def test_the_generator_decides():
    tokens = draw(20, 100)
    first, second, other = masked(tokens), masked(tokens), masked(tokens, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert not torch.equal(first[1], other[1])
    torch.manual_seed(0)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    masked(tokens)
    assert torch.equal(torch.rand(1), drawn)  # torch's own is left alone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1.5}, "from 0 to 1, got 1.5"),
        ({"mask": 5}, "among the 5 of the vocabulary, got 5"),
        ({"special": [-1]}, "got -1"),
        ({"special": range(5)}, "all of the 5 tokens are special"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        mask_tokens(torch.zeros(3, dtype=torch.int64), **{"vocab_size": 5, "mask": 0, **options})
