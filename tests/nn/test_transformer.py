"""DecoderBlock and attention over sentences side by side: parity with torch's padded layers."""

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

import graphattn as ga
from graphattn import nn

LENGTHS = [(4, 6), (1, 3), (5, 1)]  # of the target and of the source of each sentence


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def copy_attention(theirs, ours):
    """The weights of a torch.nn.MultiheadAttention."""
    for part, weight, bias in zip(
        (ours.query, ours.key, ours.value),
        theirs.in_proj_weight.chunk(3),
        theirs.in_proj_bias.chunk(3),
    ):
        part.load_state_dict({"weight": weight, "bias": bias})
    ours.out.load_state_dict(theirs.out_proj.state_dict())


def copy_decoder_layer(theirs, ours):
    """The weights of a torch.nn.TransformerDecoderLayer."""
    copy_attention(theirs.self_attn, ours.attention)
    copy_attention(theirs.multihead_attn, ours.cross)
    for source, target in (
        (theirs.norm1, ours.attention_norm),
        (theirs.norm2, ours.cross_norm),
        (theirs.norm3, ours.mlp_norm),
        (theirs.linear1, ours.mlp[0]),
        (theirs.linear2, ours.mlp[2]),
    ):
        target.load_state_dict(source.state_dict())


def shake(module):
    """Parameters that torch initializes to 0 or 1 would hide a mistake."""
    for number, parameter in enumerate(module.parameters()):
        parameter.data += 0.1 * randn(*parameter.shape, seed=number)
    return module.eval()


def sentences(which, dim=16):
    return [randn(pair[which], dim, seed=pair[which]) for pair in LENGTHS]


def padding(parts):
    lengths = torch.tensor([len(part) for part in parts])
    return torch.arange(int(lengths.max())) >= lengths[:, None]


def real_rows(padded, parts):
    return torch.cat([row[: len(part)] for row, part in zip(padded, parts)])


def causal_mask(n):
    return torch.ones(n, n).triu(1).bool()


@pytest.mark.parametrize("causal", [False, True])
def test_sentences_side_by_side_are_padded_ones_of_torch_multihead_attention(causal):
    theirs = shake(torch.nn.MultiheadAttention(16, 4, batch_first=True))
    ours = nn.GraphAttention(16, 4)
    copy_attention(theirs, ours)
    parts = sentences(1)
    x, graph = pad_sequence(parts, batch_first=True), ga.causal if causal else ga.complete
    mask = causal_mask(x.shape[1]) if causal else None
    expected, _ = theirs(x, x, x, key_padding_mask=padding(parts), attn_mask=mask)
    out = ours(torch.cat(parts), ga.batch([graph(len(part)) for part in parts]))
    torch.testing.assert_close(out, real_rows(expected, parts), rtol=1e-5, atol=1e-5)


def test_cross_attention_side_by_side_is_padded_cross_attention_of_torch():
    theirs = shake(torch.nn.MultiheadAttention(16, 4, batch_first=True))
    ours = nn.GraphAttention(16, 4)
    copy_attention(theirs, ours)
    target, source = sentences(0), sentences(1)
    x, context = (pad_sequence(parts, batch_first=True) for parts in (target, source))
    expected, expected_weights = theirs(
        x, context, context, key_padding_mask=padding(source), average_attn_weights=False
    )
    graph = ga.batch([ga.bipartite(m, n) for m, n in LENGTHS])
    out = ours(torch.cat(target), graph, torch.cat(source))
    torch.testing.assert_close(out, real_rows(expected, target), rtol=1e-5, atol=1e-5)
    weights = ours.weights(torch.cat(target), graph, torch.cat(source))  # (E, heads)
    parts = weights.split([m * n for m, n in LENGTHS])
    for number, (m, n) in enumerate(LENGTHS):
        found = parts[number].unflatten(0, (m, n)).movedim(-1, 0)
        torch.testing.assert_close(found, expected_weights[number, :, :m, :n])


def test_decoder_block_is_torch_transformer_decoder_layer():
    theirs = shake(
        torch.nn.TransformerDecoderLayer(
            16, 4, 24, activation="gelu", batch_first=True, norm_first=True
        )
    )
    ours = nn.DecoderBlock(16, 4, mlp_ratio=1.5).eval()
    copy_decoder_layer(theirs, ours)
    target, source = sentences(0), sentences(1)
    x, context = (pad_sequence(parts, batch_first=True) for parts in (target, source))
    expected = theirs(
        x, context, tgt_mask=causal_mask(x.shape[1]), memory_key_padding_mask=padding(source)
    )
    out = ours(
        torch.cat(target),
        ga.batch([ga.causal(m) for m, _ in LENGTHS]),
        torch.cat(source),
        ga.batch([ga.bipartite(m, n) for m, n in LENGTHS]),
    )
    torch.testing.assert_close(out, real_rows(expected, target), rtol=1e-5, atol=1e-5)


def test_decoder_block_takes_the_options_of_both_attentions():
    options = {"context_dim": 12, "kv_heads": 2, "qk_norm": True, "dropout": 0.5}
    own = {"bias": nn.T5Bias(4), "positions": nn.Rotary(4), "norm": torch.nn.RMSNorm}
    block = nn.DecoderBlock(16, 4, **options, **own)
    x, context = randn(2, 5, 16), randn(2, 7, 12, seed=1)
    graphs = ga.causal(5), context, ga.bipartite(5, 7)
    assert not torch.equal(block(x, *graphs), block(x, *graphs))
    block(x, *graphs).square().sum().backward()
    without = [name for name, p in block.named_parameters() if p.grad is None or not p.grad.any()]
    assert set(without) <= {"attention.key.bias", "cross.key.bias"}  # softmax does not see it
    block.eval()
    assert torch.equal(block(x, *graphs), block(x, *graphs))


def test_decoder_block_says_what_was_expected():
    block = nn.DecoderBlock(16, 4)
    with pytest.raises(ValueError, match="7 source nodes but key holds 6"):
        block(randn(5, 16), ga.causal(5), randn(6, 16), ga.bipartite(5, 7))
