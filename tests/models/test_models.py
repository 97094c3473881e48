"""Every model: any graph with the same weights, compile, autocast, state, gradients, DDP."""

import pytest
import torch
import torch.multiprocessing

import graphattn as ga
from graphattn import models


def vit():
    return models.ViT((8, 8), (2, 2), 10, channels=1, dim=16, depth=2, heads=2)


def swin():
    return models.Swin(
        (16, 16), (2, 2), 10, channels=1, dim=8, depths=(2, 2), heads=(2, 4), window=4
    )


def gpt():
    return models.GPT(50, dim=16, depth=2, heads=4, kv_heads=2)


def bert():
    return models.BERT(50, max_len=12, dim=16, depth=2, heads=4, dropout=0.0)


def images(size):
    return torch.randn(3, 1, size, size, generator=torch.Generator().manual_seed(0))


def tokens():
    return torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(0))


CASES = {
    "vit complete": (vit, images(8), ga.complete(16)),
    "vit windows": (vit, images(8), [ga.shifted_windows((4, 4), 2, s) for s in (0, 1)]),
    "vit neighborhood": (vit, images(8), ga.neighborhood((4, 4), 1)),
    "swin": (swin, images(16), swin().graphs()),
    "swin complete": (swin, images(16), [ga.complete(64)] * 2 + [ga.complete(16)] * 2),
    "bert complete": (bert, tokens(), ga.complete(12)),
    "bert window": (bert, tokens(), ga.sliding_window(12, 3) | ga.hubs(12, [0])),
    "gpt causal": (gpt, tokens(), ga.causal(12)),
    "gpt window": (gpt, tokens(), ga.causal(12) & ga.sliding_window(12, 3)),
    "gpt edges": (gpt, tokens(), ga.from_edges(ga.causal(12).edge_index.flip(1), 12)),
}
cases = pytest.mark.parametrize(("make", "x", "graph"), CASES.values(), ids=CASES)


@cases
def test_scores_have_a_shape_and_every_parameter_learns(make, x, graph):
    model = make()
    scores = model(x, graph)
    assert scores.shape == ((3, 12, 50) if x.ndim == 2 else (3, 10))
    scores.square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias of the keys shifts all scores of a destination alike: softmax does not see it.
    assert all(name.endswith("attention.key.bias") for name in without)


@cases
def test_compiles_into_one_graph(make, x, graph):
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = make()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, graph), model(x, graph), rtol=1e-4, atol=1e-5)
    compiled(x, graph).sum().backward()


@pytest.mark.slow
def test_inductor_compiles_a_training_step():
    torch._dynamo.reset()
    model, x, graph = gpt(), tokens(), ga.causal(12) & ga.sliding_window(12, 3)
    model(x, graph).square().mean().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    torch.compile(model, fullgraph=True)(x, graph).square().mean().backward()
    for parameter, grad in zip(model.parameters(), expected):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-3, atol=1e-5)


@cases
def test_autocast_runs_in_bfloat16(make, x, graph):
    model = make()
    expected = model(x, graph)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model(x, graph)
    assert scores.dtype == torch.bfloat16
    torch.testing.assert_close(scores.float(), expected, rtol=0.1, atol=0.1)
    scores.float().sum().backward()


@cases
def test_state_dict_carries_a_model_over(make, x, graph):
    first, second = make(), make()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x, graph), second(x, graph))


def test_the_same_weights_run_under_another_graph():
    model = vit().eval()
    outputs = [model(images(8), graph) for graph in (ga.complete(16), ga.axial((4, 4)))]
    assert not torch.allclose(*outputs)
    everything = ga.neighborhood((4, 4), 3, border="cut")  # complete, in other words
    torch.testing.assert_close(model(images(8), everything), outputs[0], rtol=1e-4, atol=1e-5)


def test_later_tokens_change_nothing_under_a_causal_graph():
    model, x = gpt().eval(), tokens()
    changed = x.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 50
    for graph in (ga.causal(12), ga.causal(12) & ga.sliding_window(12, 3)):
        before, after = model(x, graph), model(changed, graph)
        torch.testing.assert_close(before[:, :8], after[:, :8])
        assert not torch.allclose(before[:, 8:], after[:, 8:])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vit()(images(9), ga.complete(16)), r"\(1, 8, 8\).*got \(3, 1, 9, 9\)"),
        (lambda: vit()(images(8), ga.complete(17)), "17 destination nodes"),
        (lambda: vit()(images(8), [ga.complete(16)]), "each of the 2 blocks; got 1"),
        (lambda: models.ViT((9, 8), (2, 2), 10), "do not tile"),
        (lambda: models.Swin((12, 12), (4, 4), 10, depths=(1, 1), heads=(1, 1)), "can't be halved"),
        (lambda: gpt()(tokens(), ga.causal(13)), "13 destination nodes but query holds 12"),
    ],
)
def test_bad_input_says_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def train_two_steps(rank, store, out):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    model = gpt()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = tokens()[:2].chunk(2)[rank]
    for graph in (ga.causal(12), ga.causal(12) & ga.sliding_window(12, 3)):
        optimizer.zero_grad()
        parallel(x, graph).square().mean().backward()
        optimizer.step()
    torch.save(model.state_dict(), f"{out}.{rank}")
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one(tmp_path):
    out = tmp_path / "weights"
    torch.multiprocessing.spawn(train_two_steps, (tmp_path / "store", out), nprocs=2)
    torch.manual_seed(0)
    model = gpt()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for graph in (ga.causal(12), ga.causal(12) & ga.sliding_window(12, 3)):
        optimizer.zero_grad()
        model(tokens()[:2], graph).square().mean().backward()
        optimizer.step()
    for rank in range(2):
        for name, value in torch.load(f"{out}.{rank}").items():
            torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-4, atol=1e-6)
