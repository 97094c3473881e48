"""GraphAttention and TransformerBlock: shapes, parity with torch, options, bad input."""

import pytest
import torch

import graphattn as ga
from graphattn import nn


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def multihead_with_weights_of(layer):
    theirs = torch.nn.MultiheadAttention(
        layer.query.in_features,
        layer.heads,
        kdim=layer.context_dim,
        vdim=layer.context_dim,
        batch_first=True,
    )
    theirs = theirs.eval()
    parts = (layer.query, layer.key, layer.value)
    with torch.no_grad():
        if theirs.in_proj_weight is not None:
            theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        else:
            theirs.q_proj_weight.copy_(layer.query.weight)
            theirs.k_proj_weight.copy_(layer.key.weight)
            theirs.v_proj_weight.copy_(layer.value.weight)
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    theirs.out_proj.load_state_dict(layer.out.state_dict())
    return theirs


@pytest.mark.parametrize(
    "graph",
    [
        ga.complete(6),
        ga.causal(6),
        ga.sliding_window(6, 1),
        ga.neighborhood((2, 3), 1, border="cut"),
        ga.batch([ga.complete(2), ga.causal(4)]),
        ga.expander(6, 3, seed=1).with_self_loops(),
    ],
    ids=str,
)
def test_self_attention_is_torch_multihead_attention_under_the_mask(graph):
    layer = nn.GraphAttention(16, 4).eval()
    x = randn(2, 6, 16)
    expected, _ = multihead_with_weights_of(layer)(x, x, x, attn_mask=~graph.mask())
    torch.testing.assert_close(layer(x, graph), expected, rtol=1e-4, atol=1e-5)


def test_cross_attention_is_torch_multihead_attention():
    layer = nn.GraphAttention(16, 4, context_dim=10).eval()
    x, context = randn(2, 3, 16), randn(2, 5, 10, seed=1)
    expected, _ = multihead_with_weights_of(layer)(x, context, context)
    out = layer(x, ga.bipartite(3, 5), context)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_key_heads_are_shared_by_their_group():
    torch.manual_seed(0)
    grouped, full = nn.GraphAttention(16, 4, kv_heads=2), nn.GraphAttention(16, 4)
    state = grouped.state_dict()
    for part in ("key", "value"):
        for kind in ("weight", "bias"):
            heads = state[f"{part}.{kind}"].unflatten(0, (2, 4))
            state[f"{part}.{kind}"] = heads.repeat_interleave(2, 0).flatten(0, 1)
    full.load_state_dict(state)
    x = randn(7, 16)
    for graph in (ga.causal(7), ga.sliding_window(7, 1)):
        torch.testing.assert_close(grouped(x, graph), full(x, graph), rtol=1e-4, atol=1e-5)


def test_weights_are_what_the_forward_pass_uses():
    layer = nn.GraphAttention(8, 2, bias=nn.ALiBi(2), positions=nn.Rotary(4), qk_norm=True)
    graph, x = ga.sliding_window(5, 1), randn(3, 5, 8)
    weights = layer.weights(x, graph)  # (3, E, 2)
    src, dst = graph.edge_index
    value = layer.value(x).unflatten(-1, (2, 4))
    message = weights[..., None] * value[:, src]
    summed = torch.zeros(3, 5, 2, 4).index_add(1, dst, message)
    torch.testing.assert_close(layer.out(summed.flatten(-2)), layer(x, graph))


def test_dropout_acts_in_training_only():
    layer, x = nn.GraphAttention(8, 2, dropout=0.5), randn(6, 8)
    assert not torch.equal(layer(x, ga.complete(6)), layer(x, ga.complete(6)))
    layer.eval()
    torch.testing.assert_close(layer(x, ga.complete(6)), layer(x, ga.complete(6)))


def test_every_parameter_learns():
    block = nn.TransformerBlock(
        16,
        4,
        kv_heads=2,
        qk_norm=True,
        bias=nn.T5Bias(4),
        positions=nn.Rotary(4),
        norm=torch.nn.RMSNorm,
    )
    block(randn(2, 9, 16), ga.sliding_window(9, 2)).square().sum().backward()
    without = [name for name, p in block.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias of the keys shifts all scores of a destination alike: softmax does not see it.
    assert set(without) <= {"attention.key.bias"}


def test_a_block_takes_a_context():
    block = nn.TransformerBlock(16, 4, context_dim=8)
    out = block(randn(2, 3, 16), ga.bipartite(3, 5), randn(2, 5, 8))
    assert out.shape == (2, 3, 16)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.GraphAttention(10, 4), "multiple of heads, got dim=10 and heads=4"),
        (lambda: nn.GraphAttention(8, 0), "multiple of heads"),
        (lambda: nn.GraphAttention(8, 4, kv_heads=3), "heads=4 and kv_heads=3"),
        (lambda: nn.GraphAttention(8, 2)(randn(5, 9), ga.complete(5)), "width 8.*got 9"),
        (
            lambda: nn.GraphAttention(8, 2, context_dim=4)(randn(5, 8), ga.complete(5)),
            "context of width 4, got 8 and 8",
        ),
        (lambda: nn.GraphAttention(8, 2)(randn(5, 8), ga.complete(6)), "6 destination nodes.*5"),
    ],
)
def test_bad_input_says_what_was_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()
