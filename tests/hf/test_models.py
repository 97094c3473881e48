"""Rewired models beside transformers' eager attention."""

from __future__ import annotations

import pytest
import torch

from graphattn import hf
from tests.hf.tiny import GENERATING, MODELS, PADDED, inputs, real, result

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 6e-2}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("name", "side"), PADDED)
def test_forward(name: str, side: str | None, dtype: torch.dtype) -> None:
    tiny = MODELS[name]
    model = tiny.make().to(dtype)
    given = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs(tiny, side).items()}
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = result(model, given)
        assert hf.rewire(model).switched
        ours = result(model, given)
    assert not ours.isnan().any()
    of_tokens = real(tiny, side, ours)
    ours, expected = of_tokens(ours).float(), of_tokens(expected).float()
    scale = expected.abs().max()
    assert (ours - expected).abs().max() <= TOLERANCE[dtype] * scale


@pytest.mark.parametrize("name", MODELS)
def test_gradients(name: str) -> None:
    tiny = MODELS[name]
    model, given = tiny.make(), inputs(tiny, "left")
    model.set_attn_implementation("eager")
    parameters = [weight for weight in model.parameters() if weight.requires_grad]

    def gradients() -> list[torch.Tensor | None]:
        out = result(model, given)
        loss = real(tiny, "left", out)(out).square().mean()
        return list(torch.autograd.grad(loss, parameters, allow_unused=True))

    expected = gradients()
    hf.rewire(model)
    for theirs, ours in zip(expected, gradients(), strict=True):
        assert (theirs is None) == (ours is None)
        if theirs is not None and ours is not None:
            near = 2e-5 * max(1.0, theirs.abs().max().item())
            torch.testing.assert_close(ours, theirs, atol=near, rtol=1e-3)


@pytest.mark.parametrize("cache", ["static", "dynamic"])
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", GENERATING)
def test_generation(name: str, beams: int, cache: str) -> None:
    tiny = MODELS[name]
    model = tiny.make()
    model.set_attn_implementation("eager")
    given = inputs(tiny, "left")
    given = {key: given[key] for key in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 6, "num_beams": beams, "do_sample": False}
    options |= {"cache_implementation": "static"} if cache == "static" else {}
    expected = model.generate(**given, **options)
    hf.rewire(model)
    assert torch.equal(model.generate(**given, **options), expected)
    assert expected.shape[1] >= 6
