"""Positions: against the formulas of their papers, and what they promise of scores."""

import math

import pytest
import torch

from graphattn import nn


def test_sinusoidal_positions_are_the_formula_of_the_paper():
    nodes, dim = 7, 10
    expected = torch.zeros(nodes, dim)
    for place in range(nodes):
        for i in range(dim // 2):
            angle = place / 10000 ** (2 * i / dim)
            expected[place, 2 * i], expected[place, 2 * i + 1] = math.sin(angle), math.cos(angle)
    torch.testing.assert_close(nn.SinusoidalPositions(dim)(torch.zeros(2, nodes, dim))[1], expected)


def test_rotary_is_that_of_llama():
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    x = torch.randn(2, 9, 3, 8)
    angle = torch.arange(9)[:, None] / 10000 ** (torch.arange(4) / 4)
    angle = torch.cat([angle, angle], dim=-1)[None]
    expected, _ = llama.apply_rotary_pos_emb(x, x, angle.cos(), angle.sin(), unsqueeze_dim=2)
    torch.testing.assert_close(nn.Rotary(8)(x), expected)


@pytest.mark.parametrize("shape", [None, (30,), (5, 6), (2, 3, 5)])
def test_rotary_scores_depend_on_the_offset_alone(shape):
    head_dim, nodes = 12, 30
    query, key = torch.randn(2, head_dim, dtype=torch.float64)
    rotary = nn.Rotary(head_dim, shape)
    turned_q = rotary(query.expand(nodes, 1, head_dim))[:, 0]
    turned_k = rotary(key.expand(nodes, 1, head_dim))[:, 0]
    scores = turned_q @ turned_k.T
    grid = shape or (nodes,)
    coordinates = torch.stack(torch.unravel_index(torch.arange(nodes), grid), dim=-1)
    offsets = coordinates[:, None] - coordinates[None]
    seen = {}
    for offset, score in zip(offsets.reshape(-1, len(grid)).tolist(), scores.reshape(-1)):
        expected = seen.setdefault(tuple(offset), score)
        torch.testing.assert_close(score, expected, rtol=1e-5, atol=1e-5)
    assert len({round(value.item(), 6) for value in seen.values()}) > len(seen) // 2


def test_learned_positions_are_added_row_by_row():
    positions = nn.LearnedPositions(5, 4)
    torch.testing.assert_close(positions(torch.zeros(2, 3, 4))[1], positions.table[:3])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.LearnedPositions(5, 4)(torch.zeros(6, 4)), "5 learned positions.*6 nodes"),
        (lambda: nn.SinusoidalPositions(5), "even, got 5"),
        (lambda: nn.Rotary(6, shape=(2, 2)), "multiple of 4"),
        (lambda: nn.Rotary(8, shape=(2, 2))(torch.zeros(5, 1, 8)), "has 4 nodes, but x holds 5"),
    ],
)
def test_bad_input_says_what_was_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()
