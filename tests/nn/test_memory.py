"""ExternalMemory: what it finds, what it reads, gradients, growing, faiss, bad input."""

import copy

import faiss
import pytest
import torch

from graphattn import nn
from graphattn.nn import memory as memory_module


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def whole(*shape, high=3, seed=0):
    """Small whole numbers, so that inner products are exact and many are equal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-high, high + 1, shape, generator=generator).float()


def best(query, keys, k):
    """The k best of a full sort: scores (queries, k) and indices, the lowest first if equal."""
    rows = [
        sorted(((-float(q.double() @ key.double()), i) for i, key in enumerate(keys)))[:k]
        for q in query
    ]
    scores = torch.tensor([[-score for score, _ in row] for row in rows])
    return scores.view(len(query), k), torch.tensor([[i for _, i in row] for row in rows])


def read(query, keys, values, index, scale):
    """Softmax over the items of `index` (queries, k), in float64, the formula of one query each."""
    query, keys, values = query.double(), keys.double(), values.double()
    weights = [(scale * keys[i] @ q).softmax(0) for q, i in zip(query, index)]
    return torch.stack([w @ values[i] for w, i in zip(weights, index)])


# --- what is found --------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3, 8, 64, 2**24])
@pytest.mark.parametrize(
    ("num_queries", "n", "k"), [(5, 17, 4), (3, 17, 17), (1, 1, 1), (2, 40, 7)]
)
def test_the_best_are_found_and_equals_in_order(monkeypatch, chunk, num_queries, n, k):
    monkeypatch.setattr(memory_module, "CHUNK", chunk)
    query, keys = whole(num_queries, 3), whole(n, 3, seed=1)
    scores, index = nn.ExternalMemory(keys, randn(n, 2), k=k).retrieve(query)
    expected_scores, expected_index = best(query, keys, k)
    assert torch.equal(index, expected_index)
    assert torch.equal(scores, expected_scores)


def test_equal_keys_are_found_from_the_first_on():
    memory = nn.ExternalMemory(torch.ones(1000, 2), randn(1000, 1), k=5)
    assert memory.retrieve(torch.ones(3, 2))[1].tolist() == [[0, 1, 2, 3, 4]] * 3


def test_no_matrix_of_all_scores_is_made(monkeypatch):
    sizes = []
    top = memory_module._top
    monkeypatch.setattr(memory_module, "CHUNK", 4096)
    monkeypatch.setattr(memory_module, "_top", lambda s, k: sizes.append(s.numel()) or top(s, k))
    nn.ExternalMemory(randn(5000, 4), randn(5000, 1), k=3).retrieve(randn(1500, 4))
    assert max(sizes) <= 4096
    assert sum(sizes) == 5000 * 1500


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32, torch.float64])
def test_queries_and_items_of_any_dtype(dtype, stored):
    query, keys, values = whole(6, 4).to(dtype), whole(30, 4, seed=1), whole(30, 2, seed=2)
    memory = nn.ExternalMemory(keys.to(stored), values.to(stored), k=5)
    scores, index = memory.retrieve(query)
    assert torch.equal(index, best(query, keys, 5)[1])
    assert scores.dtype == torch.promote_types(dtype, torch.float32)
    out = memory(query)
    assert out.dtype == dtype
    error = 4 * torch.finfo(dtype).eps + 1e-6
    expected = read(query, keys, values, index, scale=0.5)
    torch.testing.assert_close(out.double(), expected, rtol=error, atol=3 * error)


@pytest.mark.parametrize(("n", "k"), [(3, 8), (0, 8)])
def test_a_memory_of_few_items_gives_all_of_them(n, k):
    keys, values, query = randn(n, 4), randn(n, 2, seed=1), randn(5, 4, seed=2)
    for index in ("exact", "faiss"):
        memory = nn.ExternalMemory(keys, values, k=k, index=index)
        scores, found = memory.retrieve(query)
        assert scores.shape == found.shape == (5, n)
        expected = ((query @ keys.T) / 2).softmax(1) @ values if n else torch.zeros(5, 2)
        torch.testing.assert_close(memory(query), expected)


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("index", ["exact", "faiss"])
@pytest.mark.parametrize(("shape", "k", "scale"), [((6,), 4, None), ((2, 3), 1, 3.0), ((), 9, 0.1)])
def test_queries_attend_to_what_they_found(index, shape, k, scale):
    keys, values, query = randn(200, 4), randn(200, 3, seed=1), randn(*shape, 4, seed=2)
    memory = nn.ExternalMemory(keys, values, k=k, scale=scale, index=index)
    rows = query.reshape(-1, 4)
    expected = read(rows, keys, values, best(rows, keys, k)[1], scale or 4**-0.5)
    out = memory(query)
    torch.testing.assert_close(out, expected.float().reshape(*shape, 3), rtol=1e-4, atol=1e-5)


def test_all_items_are_plain_attention():
    keys, values, query = randn(50, 8), randn(50, 8, seed=1), randn(6, 8, seed=2)
    expected = torch.nn.functional.scaled_dot_product_attention(query, keys, values)
    torch.testing.assert_close(nn.ExternalMemory(keys, values, k=50)(query), expected)


def test_gradients_reach_queries_and_learned_items():
    sizes = [(4, 3), (9, 3), (9, 2)]
    inputs = [randn(*s, seed=i, dtype=torch.float64) for i, s in enumerate(sizes)]
    index = best(inputs[0], inputs[1], 3)[1]
    for part in inputs:
        part.requires_grad_()
    outs = [answer_of(*inputs) for answer_of in (learned(3), lambda *x: read(*x, index, 3**-0.5))]
    torch.testing.assert_close(*outs)
    ours, truth = (torch.autograd.grad(out.square().sum(), inputs) for out in outs)
    torch.testing.assert_close(ours, truth)
    never = torch.ones(9, dtype=torch.bool).index_fill(0, index.flatten(), False)
    assert never.any()
    assert not ours[1][never].any()
    assert all(grad.any() for grad in ours)


def learned(k):
    """A memory whose items are tensors with a history."""

    def answer(query, keys, values):
        memory = nn.ExternalMemory(keys.detach(), values.detach(), k=k)
        memory.keys, memory.values = keys, values
        return memory(query)

    return answer


def test_parameters_train_and_the_search_follows_them():
    for index in ("exact", "faiss"):
        torch.manual_seed(0)
        keys, values = torch.nn.Parameter(torch.eye(4)), torch.nn.Parameter(torch.zeros(4, 1))
        memory = nn.ExternalMemory(keys, values, k=1, index=index)
        assert len(list(memory.parameters())) == 2
        query = torch.tensor([[1.0, 0.1, 0.0, 0.0]])
        assert memory.retrieve(query)[1].item() == 0
        with torch.no_grad():
            keys[0] -= 2.0
        assert memory.retrieve(query)[1].item() == 1
        memory(query).sum().backward()
        assert values.grad.flatten().tolist() == [0.0, 1.0, 0.0, 0.0]


# --- growing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", ["exact", "faiss"])
def test_items_come_and_go(index):
    keys, values, query = randn(30, 4), randn(30, 2, seed=1), randn(5, 4, seed=2)
    memory = nn.ExternalMemory(keys[:0], values[:0], k=3, index=index)
    memory.add(keys[:20], values[:20])
    memory(query)
    memory.add(keys[20:].double().requires_grad_(), values[20:])
    memory.forget(5)
    assert "num_items=25, k=3" in repr(memory)
    fresh = nn.ExternalMemory(keys[5:], values[5:], k=3)
    torch.testing.assert_close(memory(query), fresh(query))
    torch.testing.assert_close(copy.deepcopy(memory)(query), fresh(query))
    fresh.load_state_dict(nn.ExternalMemory(-keys[5:], values[5:]).state_dict())
    memory.load_state_dict(fresh.state_dict())
    torch.testing.assert_close(memory(query), fresh(query))
    memory.forget(25)
    assert not memory(query).any()


# --- an index of one's own ------------------------------------------------------------------------


def test_an_own_index_ranks_by_its_metric():
    keys, values, query = randn(100, 4), randn(100, 2, seed=1), randn(5, 4, seed=2)
    index = faiss.IndexFlatL2(4)
    index.add(keys.numpy())
    memory = nn.ExternalMemory(keys, values, k=6, index=index)
    scores, found = memory.retrieve(query)
    squared = torch.cdist(query, keys).square()
    nearest = squared.topk(6, largest=False)
    assert torch.equal(found, nearest.indices)
    torch.testing.assert_close(scores, nearest.values, rtol=1e-4, atol=1e-4)
    expected = read(query, keys, values, found, scale=0.5).float()
    torch.testing.assert_close(memory(query), expected, rtol=1e-4, atol=1e-5)


def test_an_own_index_may_find_too_few():
    keys, values, query = randn(64, 4), randn(64, 2, seed=1), randn(5, 4, seed=2)
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(4), 4, 16)
    faiss.omp_set_num_threads(1)
    index.train(keys.numpy())
    index.add(keys.numpy())  # 4 keys a list on average, and one list is searched
    memory = nn.ExternalMemory(keys, values, k=32, index=index)
    found = memory.retrieve(query)[1]
    assert (found < 0).any()
    expected = [
        read(q[None], keys, values, i[i >= 0][None], scale=0.5)[0] for q, i in zip(query, found)
    ]
    torch.testing.assert_close(memory(query), torch.stack(expected).float(), rtol=1e-4, atol=1e-5)


# --- bad input ------------------------------------------------------------------------------------

MEMORY = nn.ExternalMemory(randn(9, 4), randn(9, 2))


def learned_memory():
    return nn.ExternalMemory(torch.nn.Parameter(randn(9, 4)), randn(9, 2))


def own_index(num_items):
    index = faiss.IndexFlatIP(4)
    index.add(randn(num_items, 4).numpy())
    return index


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.ExternalMemory(randn(9, 4), randn(8, 2)), ValueError, r"\(9, 4\) and \(8, 2\)"),
        (lambda: nn.ExternalMemory(randn(9), randn(9, 2)), ValueError, r"\(n, width\), got \(9,\)"),
        (lambda: nn.ExternalMemory([1], randn(9, 2)), TypeError, "floating tensor, got list"),
        (lambda: nn.ExternalMemory(randn(9, 4), randn(9, 2), k=0), ValueError, "k must be between"),
        (
            lambda: nn.ExternalMemory(randn(9, 4), randn(9, 2), index="hnsw"),
            ValueError,
            "\"faiss\" or an index of faiss, got 'hnsw'",
        ),
        (
            lambda: nn.ExternalMemory(randn(9, 4), randn(9, 2), index=3),
            TypeError,
            "an index of faiss, got int",
        ),
        (
            lambda: nn.ExternalMemory(randn(9, 4), randn(9, 2), index=own_index(8)),
            ValueError,
            "holds 8 items of width 4, and the memory 9 of width 4",
        ),
        (lambda: MEMORY(randn(5, 3)), ValueError, r"as wide as keys, \(..., 4\), got \(5, 3\)"),
        (lambda: MEMORY.retrieve(torch.ones(5, 4).long()), TypeError, "got torch.int64"),
        (lambda: MEMORY.add(randn(2, 3), randn(2, 2)), ValueError, "width 4 and values of width 2"),
        (lambda: MEMORY.forget(10), ValueError, "count must be between 0 and 9, got 10"),
        (lambda: learned_memory().add(randn(1, 4), randn(1, 2)), ValueError, "are learned"),
        (
            lambda: nn.ExternalMemory(randn(9, 4), randn(9, 2), index=own_index(9)).forget(1),
            ValueError,
            "the index is your own",
        ),
    ],
)
def test_bad_input_says_what_was_expected(make, error, message):
    with pytest.raises(error, match=message):
        make()
