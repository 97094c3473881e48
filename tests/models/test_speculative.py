"""Speculative decoding: the text of plain decoding, whatever is guessed; and exact sampling."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import graphattn as ga
from graphattn import models
from graphattn.models.generation import make_caches
from graphattn.models.sampling import Dice, accept
from graphattn.models.speculative import verify
from tests.models.test_generation import GRAPHS, VOCAB, drawn
from tests.test_laws import trees

PROMPT, NEW = torch.tensor([1, 2, 3, 1, 2, 3, 4]), 19
NOTHING = models.Proposal(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))


def chain(tokens, probabilities=None):
    tokens = torch.as_tensor(tokens, dtype=torch.int64)
    return models.Proposal(tokens, torch.arange(-1, len(tokens) - 1), probabilities)


def nothing(text):
    return NOTHING


def random_tree(text):
    """Nodes below nodes drawn at random, no token twice below one."""
    generator = torch.Generator().manual_seed(len(text))
    parents, tokens = [], []
    for node in range(12):
        parent, token = (
            int(torch.randint(*ends, (), generator=generator)) for ends in ((-1, node), (0, VOCAB))
        )
        if (parent, token) not in zip(parents, tokens) and parent < len(parents):
            parents.append(parent)
            tokens.append(token)
    return models.Proposal(torch.tensor(tokens), torch.tensor(parents))


class Oracle:
    """Knows the text, and hides it among wrong guesses; says a wrong token from `wrong` on."""

    def __init__(self, text, wrong):
        self.text, self.wrong = text, wrong

    def __call__(self, seen):
        right = self.text[len(seen) - len(PROMPT) :][: self.wrong]
        tokens, parents = [], []
        for depth, token in enumerate(right):
            at = -1 if depth == 0 else 3 * depth - 1  # the right one is the last of three
            tokens += [(token + 1) % VOCAB, (token + 2) % VOCAB, token]
            parents += [at] * 3
        return models.Proposal(torch.tensor(tokens), torch.tensor(parents))


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
@pytest.mark.parametrize("choice", [models.Choice(0), models.Choice(0.8, top_k=5)])
def test_the_text_is_that_of_plain_decoding(graph, choice):
    model, options = drawn(kv_heads=2), {"max_new_tokens": NEW, "seed": 4}
    fields = {"temperature": choice.temperature, "top_k": choice.top_k}
    (expected,) = model.generate([PROMPT], graph, **options, **fields)
    oracles = [Oracle(expected.tolist(), wrong) for wrong in (1, 3, NEW)]
    calls = {}
    for draft in (nothing, random_tree, models.prompt_lookup, *oracles):
        found = models.speculative(model, PROMPT, graph, draft, choice=choice, **options)
        assert found.tokens.tolist() == expected.tolist()
        calls[draft] = found.calls
    assert calls[nothing] == NEW - 1  # the prompt tells the first
    assert [calls[oracle] for oracle in oracles] == [-(-(NEW - 1) // 2), -(-(NEW - 1) // 4), 1]
    assert calls[random_tree] <= calls[nothing]


@settings(max_examples=30)
@given(st.integers(4, 9), st.data())
def test_the_text_of_any_causal_graph_and_any_tree(n, data):
    graph = data.draw(trees(n, n, 2)).graph & ga.causal(n)
    prompt = torch.randint(VOCAB, (data.draw(st.integers(1, n - 1)),))
    model, options = drawn(), {"max_new_tokens": n - len(prompt)}
    (expected,) = model.generate([prompt], graph, temperature=0, **options)
    found = models.speculative(model, prompt, graph, random_tree, **options)
    assert found.tokens.tolist() == expected.tolist()


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_one_call_on_a_tree_is_many_calls_on_its_branches(graph):
    """The scores of every node, and what the caches hold afterwards."""
    model, parents = drawn(), torch.tensor([-1, 0, 0, 1, 3, 2])
    tokens = torch.tensor([5, 1, 2, 3, 4, 5])
    with torch.no_grad():
        caches = make_caches(model, graph, len(PROMPT), NEW)
        model.step(PROMPT, caches)
        drafts = [cache.draft(parents) for cache in caches]
        scores = model.scores(model.step(tokens, drafts))
        for node in range(len(parents)):
            path = path_to(node, parents.tolist())
            own = make_caches(model, graph, len(PROMPT), NEW)
            model.step(PROMPT, own)
            for token in tokens[path]:
                last = model.scores(model.step(token[None], own)[-1])
            torch.testing.assert_close(scores[node], last)


def path_to(node, parents):
    return [] if node < 0 else [*path_to(parents[node], parents), node]


def test_a_text_ends_at_a_stop_within_a_branch():
    model, graph = drawn(), GRAPHS["window"]
    (whole,) = model.generate([PROMPT], graph, max_new_tokens=NEW, temperature=0)
    whole = whole.tolist()
    for stop in whole[0], whole[3], whole[-1]:
        found = models.speculative(
            model, PROMPT, graph, Oracle(whole, 5), max_new_tokens=NEW, stop=[stop]
        )
        assert found.tokens.tolist() == whole[: whole.index(stop)]


# --- the rule of Leviathan et al. -----------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_what_is_accepted_is_distributed_as_the_model(seed):
    """Summed over all that may be drawn from q, and an even grid of the uniform number."""
    torch.manual_seed(seed)
    p, q = (torch.randn(2, 5, dtype=torch.float64) * 2).softmax(-1)
    p = torch.where(p < p.max() / 20, 0, p)  # some tokens that the model never says
    p, found, taken, steps = p / p.sum(), torch.zeros(5, dtype=torch.float64), 0.0, 2000
    for token, step in itertools.product(range(5), range(steps)):
        said = accept(p, q, token, torch.tensor((step + 0.5) / steps))
        found[said] += q[token] / steps
        taken += float(q[token]) / steps * (said == token)
    torch.testing.assert_close(found, p, rtol=0, atol=2e-3)
    assert taken == pytest.approx(torch.minimum(p, q).sum().item(), abs=2e-3)  # theorem 3.5


class Markov:
    """A model whose next token depends on the last alone: scores by a table, nothing to keep."""

    def __init__(self, scores):
        self.table, self.embedding = scores, torch.nn.Embedding(*scores.shape)

    def step(self, tokens, caches):
        return tokens

    def scores(self, tokens):
        return self.table[tokens]


def test_a_text_with_a_draft_of_known_probabilities_is_distributed_as_the_model():
    """Pairs of tokens, many times: their frequencies against the model's own."""
    model, choice, times = Markov(torch.randn(5, 5) * 2), models.Choice(1.5, top_k=4), 3000
    p, q = choice.probabilities(model.table), torch.randn(2, 5).softmax(-1)
    expected = p[0][:, None] * p  # after token 0
    counts = torch.zeros(5, 5)
    for seed in range(times):
        proposal, dice = chain(torch.multinomial(q, 1)[:, 0], q), Dice(seed, 1)
        said = verify(model, 0, proposal, [], choice, dice)
        if len(said) == 1:  # the first was not taken, and so nothing was said of the second
            said += verify(model, said[0], NOTHING, [], choice, dice)
        counts[said[0], said[1]] += 1
    likely = expected > 0
    deviation = (counts - times * expected)[likely].square() / (times * expected[likely])
    assert deviation.sum() < 2 * likely.sum()  # chi-square: its mean is one for each pair
    assert counts[~likely].sum() == 0
    assert (~likely).any()


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proposal", "error", "message"),
    [
        (models.Proposal(torch.tensor([1]), torch.tensor([0])), ValueError, r"parents\[0\] must"),
        (
            models.Proposal(torch.tensor([1]), torch.tensor([-1, 0])),
            ValueError,
            "a parent for each",
        ),
        (chain([VOCAB]), ValueError, "proposed tokens must be 0..12"),
        (models.Proposal(torch.tensor([1, 1]), torch.tensor([-1, -1])), ValueError, "twice after"),
        (chain([1, 2], torch.ones(2, 3)), ValueError, r"probabilities must be \(2, 13\), of"),
        (chain([1], torch.eye(VOCAB)[2:3]), ValueError, "token 1 can't have been drawn"),
        (models.Proposal(torch.tensor([0.5]), torch.tensor([-1])), TypeError, "tokens must hold"),
    ],
)
def test_bad_proposals(proposal, error, message):
    with pytest.raises(error, match=message):
        models.speculative(
            drawn(), PROMPT, ga.causal(26), lambda text: proposal, max_new_tokens=NEW
        )


def test_no_place_where_the_last_tokens_stood_before():
    for text in ([1], [1, 2], [1, 2, 3, 4], [1, 1]):
        assert models.prompt_lookup(torch.tensor(text)).tokens.tolist() == []
    assert models.prompt_lookup(torch.tensor([1, 1, 1, 1]), ngram=2).tokens.tolist() == [1]
