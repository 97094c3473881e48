"""The picture of masked text: what is filled in, and what a masked token attends to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from drawings import BLUE, ORANGE
from heatmaps import attention_of, save
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from tokenizers import Tokenizer
from torch import Tensor
from vocabulary import MASK

import graphattn as ga

CHARACTER, COLUMNS = 0.105, 96  # width in inches, and how many fit in a line
FONT = 0.97 * CHARACTER * 72 / 0.602  # points; a character of DejaVu Sans Mono is 0.602 of it wide


@dataclass
class Cell:
    """A token in the picture: its text, where it starts in characters and lines, its width."""

    text: str
    x: int
    y: int
    width: int


@torch.no_grad()
def filled_in(
    path: Path,
    model: ga.models.BERT,
    graph: ga.Graph,
    chunks: Tensor,
    chosen: Tensor,
    tokenizer: Tokenizer,
) -> str:
    """The first of chunks (N, n) that defines a function, as the model fills in what is chosen.

    Below, what the longest of the masked tokens attends to, in the two sharpest heads.
    """
    defines = ["def " in tokenizer.decode(tokens) for tokens in chunks.tolist()]
    index = max(range(len(chunks)), key=lambda i: (bool(chosen[i].any()), defines[i]))
    true, masked = chunks[index], chosen[index].nonzero()[:, 0].tolist()
    inputs = true.masked_fill(chosen[index], MASK)[None].to(model.bias.device)
    chances, fill = model(inputs, graph)[0].softmax(dim=-1).cpu().max(dim=-1)
    words, fills = (text_of(tokens, tokenizer) for tokens in (true, fill))
    cells = layout(words, {place: fills[place] for place in masked})
    framed = max(masked, key=lambda place: (len(words[place].strip()), words[place].isalpha()))
    graphs = [graph] * len(model.blocks)
    weights = torch.cat(attention_of(model.blocks, model.embed(inputs), graphs))
    src, dst = graph.edge_index.cpu()
    heat = torch.zeros(len(weights), weights.shape[-1], len(words))  # (blocks, heads, n)
    heat[:, :, src[dst == framed]] = weights[:, dst == framed].transpose(1, 2)
    best = heat.amax(dim=-1).flatten().topk(2).indices

    figure, (filled, *heats) = panels_for(cells, [0.42, 0.25, 0.25])
    filled.set_title(
        "Masked tokens as the model fills them in: blue is right; orange is wrong, with the true "
        "token above.\nBelow each stands how probable the model takes it to be.",
        size=11,
    )
    for place in masked:
        color = BLUE if fill[place] == true[place] else ORANGE
        box(filled, cells[place], facecolor=color, alpha=0.25)
        note(filled, cells[place], 0.9, f"{chances[place]:.0%}", color)
        if color == ORANGE:
            note(filled, cells[place], 0.1, named(words[place]), "black")
    for axes, index in zip(heats, best.tolist()):
        block, head = divmod(index, heat.shape[1])
        most = heat[block, head].max()
        axes.set_title(
            f"What the framed token attends to in block {block + 1}, head {head + 1}; "
            f"the darkest has {most:.0%} of the weight",
            size=11,
        )
        for cell, weight in zip(cells, (heat[block, head] / most).tolist()):
            box(axes, cell, facecolor=colormaps["Oranges"](0.75 * weight))
        box(axes, cells[framed], fill=False, edgecolor=BLUE, linewidth=2)
    for axes in (filled, *heats):
        for place, cell in enumerate(cells):
            write(axes, cell, faint=place not in masked and cell.text in ("↵", "[CLS]"))
    return save(figure, path)


def text_of(tokens: Tensor, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode([token], skip_special_tokens=False) for token in tokens.tolist()]


def visible(word: str) -> str:
    return "".join(c if c.isprintable() else "·" for c in word.replace("\n", "↵"))


def named(word: str) -> str:
    """As it is shown where it was masked: spaces alone would not be seen."""
    return visible(word) if word.strip(" ") else "␣" * len(word)


def layout(words: Sequence[str], filled: dict[int, str]) -> list[Cell]:
    """Cells of words, with those `filled` in; lines break where the words say, or are full."""
    cells, x, y = [], 0, 0
    for place, word in enumerate(words):
        text = named(filled[place]) if place in filled else visible(word)
        width = max(3, len(text)) if place in filled else len(text)
        if x + width > COLUMNS:
            x, y = 0, y + 1
        cells.append(Cell(text, x, y, width))
        x, y = (0, y + 1) if "\n" in word else (x + width, y)
    return cells


def panels_for(cells: list[Cell], heights: list[float]) -> tuple[Figure, list[Axes]]:
    """Panels one below the other, in lines of such heights in inches, as wide as their text."""
    lines, margin = 1 + max(cell.y for cell in cells), 0.4
    width = COLUMNS * CHARACTER + 2 * margin
    height = sum(lines * line + 2 * margin for line in heights)
    figure, top, panels = Figure(figsize=(width, height)), height, []
    for line in heights:
        top -= lines * line + 1.5 * margin
        size = (1 - 2 * margin / width, lines * line / height)
        axes = figure.add_axes((margin / width, top / height, *size))
        axes.set(xlim=(0, COLUMNS), ylim=(lines, 0))
        axes.axis("off")
        panels.append(axes)
        top -= 0.5 * margin
    return figure, panels


def box(axes: Axes, cell: Cell, **style: Any) -> None:
    axes.add_patch(Rectangle((cell.x + 0.1, cell.y + 0.2), cell.width - 0.2, 0.6, **style))


def write(axes: Axes, cell: Cell, *, faint: bool) -> None:
    style = {"family": "DejaVu Sans Mono", "size": FONT, "parse_math": False}
    style |= {"va": "center_baseline", "color": "gray" if faint else "black"}
    axes.text(cell.x + (cell.width - len(cell.text)) / 2, cell.y + 0.5, cell.text, **style)


def note(axes: Axes, cell: Cell, y: float, text: str, color: str) -> None:
    style = {"ha": "center", "va": "center", "size": 6.5, "color": color, "parse_math": False}
    axes.text(cell.x + cell.width / 2, cell.y + y, text, **style)
