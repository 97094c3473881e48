"""Real digits on larger canvases, among fragments of others."""

import torch
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

DIGIT, FRAGMENT, FRAGMENTS = 8, 3, 6  # sides in pixels, and how many
SIDE, TILE, MARGIN = 20, 4, 2  # a patch is a tile and the pixels around it, and covers a digit
GRID = (SIDE // TILE, SIDE // TILE)


def load_canvases(device: torch.device) -> list[Tensor]:
    """Digits to learn from (N, 8, 8) and labels (N,); held-out canvases (M, 20, 20) and labels."""
    pixels, labels = load_digits(return_X_y=True)
    digits, labels = torch.tensor(pixels / 16).float().view(-1, DIGIT, DIGIT), torch.tensor(labels)
    split = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    train, held_out = (torch.tensor(part) for part in split)
    set_seed(0)  # the same canvases in all runs
    held_out = held_out.repeat(4)
    data = digits[train], labels[train], scatter(digits[held_out]), labels[held_out]
    return [part.to(device) for part in data]


def scatter(digits: Tensor) -> Tensor:
    """Each digit at a random place of a canvas of its own, over fragments of the others."""
    canvas = digits.new_zeros(len(digits), SIDE, SIDE)
    for _ in range(FRAGMENTS):
        y, x = torch.randint(DIGIT - FRAGMENT + 1, (2,)).tolist()
        others = digits[torch.randperm(len(digits), device=digits.device)]
        paste(canvas, others[:, y : y + FRAGMENT, x : x + FRAGMENT])
    paste(canvas, digits)
    return canvas


def paste(canvas: Tensor, pieces: Tensor) -> None:
    """Put each piece (batch, side, side) at a random place of its canvas."""
    batch, side = len(pieces), pieces.shape[-1]
    y, x = torch.randint(SIDE - side + 1, (2, batch, 1, 1), device=canvas.device)
    span, item = torch.arange(side, device=canvas.device), torch.arange(batch, device=canvas.device)
    canvas[item[:, None, None], y + span[:, None], x + span] = pieces
