"""Our Swin, with the weights of transformers' Swin, gives the same scores."""

import pytest
import torch

from graphattn.models import Swin

transformers = pytest.importorskip("transformers")


def hf_swin(image_size, patch_size, depths, heads, window):
    config = transformers.SwinConfig(
        image_size=image_size,
        patch_size=patch_size,
        embed_dim=16,
        depths=list(depths),
        num_heads=list(heads),
        window_size=window,
        mlp_ratio=2.0,
        num_labels=5,
        drop_path_rate=0.0,
    )
    model = transformers.SwinForImageClassification(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2, generator=generator)
    return model


def renamed(name, depths):
    """The name in our model of a parameter in transformers' model."""
    name = name.removeprefix("swin.").removeprefix("encoder.")
    for theirs, ours in (
        ("embeddings.patch_embeddings.projection", "embedding.project"),
        ("embeddings.norm", "embedding_norm"),
        ("classifier", "head"),
        ("layernorm_before", "attention_norm"),
        ("layernorm_after", "mlp_norm"),
        ("layernorm", "norm"),
        ("mlp.fc1", "mlp.0"),
        ("mlp.fc2", "mlp.2"),
        ("q_proj", "query"),
        ("k_proj", "key"),
        ("v_proj", "value"),
        ("o_proj", "out"),
        ("relative_position_bias.relative_position_bias_table", "bias.table"),
    ):
        name = name.replace(theirs, ours)
    parts = name.split(".")
    if parts[0] == "layers":
        stage = int(parts[1])
        if parts[2] == "blocks":
            return ".".join(["blocks", str(sum(depths[:stage]) + int(parts[3])), *parts[4:]])
        return ".".join(["merges", parts[1], *parts[3:]])
    return name


@pytest.mark.parametrize(
    ("image_size", "patch_size", "depths", "heads", "window"),
    [
        (32, 2, (2, 2), (2, 4), 4),  # shifted in both stages
        (32, 4, (2, 2), (2, 4), 4),  # the second stage is one window, and not shifted
        (48, 2, (4,), (2,), 3),  # odd windows
    ],
)
def test_scores_are_those_of_transformers(image_size, patch_size, depths, heads, window):
    theirs = hf_swin(image_size, patch_size, depths, heads, window)
    ours = Swin(
        (image_size, image_size),
        (patch_size, patch_size),
        num_classes=5,
        dim=16,
        depths=depths,
        heads=heads,
        window=window,
        mlp_ratio=2.0,
    ).eval()
    ours.load_state_dict(
        {renamed(name, depths): value for name, value in theirs.named_parameters()}
    )
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(
            ours(images, ours.graphs()), theirs(images).logits, rtol=1e-4, atol=1e-4
        )
