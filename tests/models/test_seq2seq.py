"""The encoder-decoder transformer: parity with torch.nn.Transformer, sentences, bad input."""

import math

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

import graphattn as ga
from graphattn import models
from tests.nn.test_transformer import (
    causal_mask,
    copy_attention,
    copy_decoder_layer,
    padding,
    real_rows,
    shake,
)

SOURCE = [torch.tensor([3, 1, 4, 1, 5, 9, 2]), torch.tensor([6]), torch.tensor([5, 3, 5])]
TARGET = [torch.tensor([0, 2, 7]), torch.tensor([0, 1, 8, 2, 8]), torch.tensor([0])]


def transformer(**options):
    return models.Seq2SeqTransformer(10, 9, dim=16, depth=2, heads=4, **options)


def run(model, source=SOURCE, target=TARGET):
    return model(source, target, *models.sentence_graphs(source, target))


def copy_transformer(theirs, ours):
    """The weights of a torch.nn.Transformer."""
    for layer, block in zip(theirs.encoder.layers, ours.encoder):
        copy_attention(layer.self_attn, block.attention)
        for source, target in (
            (layer.norm1, block.attention_norm),
            (layer.norm2, block.mlp_norm),
            (layer.linear1, block.mlp[0]),
            (layer.linear2, block.mlp[2]),
        ):
            target.load_state_dict(source.state_dict())
    for layer, block in zip(theirs.decoder.layers, ours.decoder):
        copy_decoder_layer(layer, block)
    ours.encoder_norm.load_state_dict(theirs.encoder.norm.state_dict())
    ours.decoder_norm.load_state_dict(theirs.decoder.norm.state_dict())


def embedded(sentences, embedding):
    """Padded: embeddings times sqrt(dim), and sines and cosines of the place in the sentence."""
    dim = embedding.shape[1]
    x = pad_sequence([embedding[tokens] for tokens in sentences], batch_first=True) * dim**0.5
    place = torch.arange(x.shape[1])[:, None]
    angle = place * torch.exp(torch.arange(0, dim, 2) * -(math.log(10000.0) / dim))
    x[..., 0::2] += angle.sin()
    x[..., 1::2] += angle.cos()
    return x


def test_scores_are_those_of_torch_transformer():
    theirs = torch.nn.Transformer(
        *(16, 4, 2, 2, 64), dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    shake(theirs)
    ours = transformer().eval()
    copy_transformer(theirs, ours)
    x, y = (
        embedded(SOURCE, ours.source_embedding.weight.detach()),
        embedded(TARGET, ours.target_embedding.weight.detach()),
    )
    expected = theirs(
        *(x, y),
        tgt_mask=causal_mask(y.shape[1]),
        src_key_padding_mask=padding(SOURCE),
        memory_key_padding_mask=padding(SOURCE),
    )
    expected = real_rows(expected, TARGET) @ ours.target_embedding.weight.T
    torch.testing.assert_close(run(ours), expected, rtol=1e-5, atol=1e-5)


def test_a_sentence_is_the_same_alone_and_beside_others():
    model = transformer().eval()
    alone = [run(model, [source], [target]) for source, target in zip(SOURCE, TARGET)]
    torch.testing.assert_close(run(model), torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_sentences_of_one_length_may_be_one_tensor():
    model, source, target = transformer(), torch.arange(8).view(2, 4), torch.arange(6).view(2, 3)
    graphs = models.sentence_graphs(source, target)
    assert [str(graph) for graph in graphs] == [
        "batch([complete(4), complete(4)])",
        "batch([causal(3), causal(3)])",
        "batch([bipartite(3, 4), bipartite(3, 4)])",
    ]
    torch.testing.assert_close(
        model(source, target, *graphs), model(list(source), list(target), *graphs)
    )


def test_later_tokens_change_nothing():
    model = transformer().eval()
    changed = [torch.tensor([0, 2, 5]), torch.tensor([0, 1, 8, 3, 3]), TARGET[2]]
    before, after = run(model).split([3, 5, 1]), run(model, SOURCE, changed).split([3, 5, 1])
    for old, new, known in zip(before, after, (2, 3, 1)):
        torch.testing.assert_close(old[:known], new[:known])
    assert not torch.allclose(before[1][3:], after[1][3:])


def test_the_same_weights_run_under_other_graphs():
    model = transformer().eval()
    encoder, decoder, cross = models.sentence_graphs(SOURCE, TARGET)
    near = ga.batch([ga.sliding_window(len(tokens), 1) for tokens in SOURCE])
    assert not torch.allclose(model(SOURCE, TARGET, near, decoder, cross), run(model))
    listed = [ga.from_edges(g.edge_index, num_dst=g.num_dst, num_src=g.num_src) for g in
              (encoder, decoder, cross)]  # fmt: skip
    torch.testing.assert_close(model(SOURCE, TARGET, *listed), run(model), rtol=1e-4, atol=1e-5)


def test_weights_are_those_of_every_block():
    model = transformer().eval()
    graphs = models.sentence_graphs(SOURCE, TARGET)
    weights = model.weights(SOURCE, TARGET, *graphs)
    assert weights.shape == (2, graphs[2].num_edges, 4)
    heard = torch.zeros(2, 9, 4).index_add(1, graphs[2].edge_index[1], weights)
    torch.testing.assert_close(heard, torch.ones(2, 9, 4))
    seen = []
    for block in model.decoder:
        block.cross.register_forward_hook(
            lambda layer, given, out: seen.append(layer.weights(*given))
        )
    run(model)
    torch.testing.assert_close(weights, torch.stack(seen))


def test_every_parameter_learns():
    model = transformer(dropout=0.1)
    run(model).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(name.endswith("key.bias") for name in without)  # softmax does not see it


def test_compiles_into_one_graph():
    torch._dynamo.reset()
    model, graphs = transformer(), models.sentence_graphs(SOURCE, TARGET)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    scores = compiled(SOURCE, TARGET, *graphs)
    torch.testing.assert_close(scores, run(model), rtol=1e-4, atol=1e-5)
    scores.sum().backward()


def test_autocast_runs_in_bfloat16():
    model = transformer()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = run(model)
    assert scores.dtype == torch.bfloat16
    torch.testing.assert_close(scores.float(), run(model), rtol=0.1, atol=0.2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.sentence_graphs(SOURCE, TARGET[:2]), "each source, got 3 and 2"),
        (lambda: models.sentence_graphs([], []), "at least one graph"),
        (lambda: run(models.Seq2SeqTransformer(10, 9, dim=15, heads=3)), "dim must be even"),
        (
            lambda: transformer()(SOURCE, TARGET, *models.sentence_graphs(SOURCE, SOURCE)),
            "11 destination nodes but query holds 9",
        ),
    ],
)
def test_bad_input_says_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
