"""Dates in twenty languages are translated into ISO 8601, character by character.

    python examples/translate_dates.py --model transformer
    python examples/translate_dates.py --model luong-local --steps 2000
    accelerate launch examples/translate_dates.py

A tenth of all days between 1950 and 2049 is held out, in every language; and so is one way to write
them in each, whose parts are learned in others: "Fri, Mar 7, 2031", where "Friday, Mar 7, 2031" and
"Fri, March 7, 2031" are learned. The picture in runs/translate_dates/ is the one that papers draw:
which characters of the text the model attends to, for each that it writes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dates
import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from heatmaps import save
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from support import Run, add_training, parser, plans
from torch import Tensor

import graphattn as ga
from graphattn import models, nn

ATTENTIONS = {  # of recurrent models; of their width
    "bahdanau": lambda dim: nn.GlobalAttention(dim, "concat"),
    "luong-dot": lambda dim: nn.GlobalAttention(dim, "dot"),
    "luong": lambda dim: nn.GlobalAttention(dim, "general"),
    "luong-concat": lambda dim: nn.GlobalAttention(dim, "concat"),
    "luong-local": lambda dim: nn.LocalAttention(dim, "general", radius=4),
}
SHOWN = ("en", "es", "el", "tr")  # languages of the picture
EVALUATED = 2000  # examples of held-out days, and of held-out phrasings


def build(name: str, vocab: int, *, dim: int, depth: int, heads: int) -> Any:
    """A model that reads `vocab` characters."""
    if name == "transformer":
        sizes = {"dim": dim, "depth": depth, "heads": heads}
        return models.Seq2SeqTransformer(vocab, dates.TARGET_VOCAB, **sizes)
    decoder = models.BahdanauDecoder if name == "bahdanau" else models.LuongDecoder
    attention = ATTENTIONS[name](dim)
    return models.Seq2SeqGRU(vocab, decoder(dates.TARGET_VOCAB, dim=dim, attention=attention))


def graphs_of(name: str, source: Sequence[Tensor], target: Tensor) -> tuple[ga.Graph, ...]:
    """What the model takes behind source and target."""
    if name == "transformer":
        return models.sentence_graphs(source, target)
    return (models.source_graph(source),)


def tensors(examples: list[dates.Example], device: Any) -> tuple[list[Tensor], Tensor, Tensor]:
    """Sources, targets as far as they are known at each step, and what comes next in them."""
    source = [dates.read(example).to(device) for example in examples]
    following = dates.write([example.day for example in examples]).to(device)
    known = following.roll(1, dims=1)
    known[:, 0] = dates.START
    return source, known, following


def translate(model: Any, examples: list[dates.Example]) -> list[str]:
    """What the model writes, greedily."""
    model.eval()
    device = next(model.parameters()).device
    options = {"start": dates.START, "end": dates.END, "max_length": dates.WRITTEN}
    written = []
    for first in range(0, len(examples), 128):
        source, _, _ = tensors(examples[first : first + 128], device)
        written += models.greedy(model, source, **options)
    return [dates.written(tokens) for tokens in written]


def accuracy(model: Any, examples: list[dates.Example]) -> dict[str, float]:
    """How many are right to the last character: of each language, and of all."""
    right: dict[str, list[bool]] = {}
    for example, text in zip(examples, translate(model, examples)):
        right.setdefault(example.language, []).append(text == example.day.isoformat())
    shares = {language: sum(found) / len(found) for language, found in sorted(right.items())}
    return {"all": sum(map(sum, right.values())) / len(examples), **shares}


def alignments(path: Path, model: Any, name: str, examples: list[dates.Example]) -> str:
    """What each character of a date attends to in four texts."""
    figure = Figure(figsize=(12, 7.6), layout="constrained")
    figure.suptitle(f"Which characters of the text (columns) each of the date (rows) hears: {name}")
    device = next(model.parameters()).device
    for axes, example in zip(figure.subplots(2, 2).flat, examples):
        source, known, _ = tensors([example], device)
        with torch.no_grad():
            weights = model.weights(source, known, *graphs_of(name, source, known))
        if name == "transformer":  # (depth, m * n, heads)
            weights = weights[-1].mean(dim=-1).unflatten(0, (known.shape[1], -1))
        show_alignment(axes, weights[:-1].cpu(), [f"‹{example.language}›", *example.text], example)
    return save(figure, path)


def show_alignment(axes: Axes, weights: Tensor, labels: list[str], example: dates.Example) -> None:
    axes.imshow(weights.numpy(), cmap="Oranges", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(labels)), ["␣" if c.isspace() else c for c in labels])
    axes.set_yticks(range(len(weights)), list(example.day.isoformat()))
    axes.set_title(example.text, size=10)


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, "translate_dates", steps=2500)
    add_training(options, dim=128, depth=2, heads=4, batch=64, lr=2e-3)
    options.add_argument("--model", choices=["transformer", *ATTENTIONS], default="transformer")
    options = options.parse_args(argv)

    set_seed(0)  # the same examples are held out, whatever the seed
    days, phrasing = dates.draw(EVALUATED, held_out=True), dates.draw_phrasing(EVALUATED)
    set_seed(options.seed)
    sizes = {"dim": options.dim, "depth": options.depth, "heads": options.heads}
    run = Run(options, build(options.model, len(dates.vocabulary()), **sizes), lr=options.lr)
    for step in run:
        examples = dates.draw(options.batch)
        source, known, following = tensors(examples, run.accelerator.device)
        scores = run.model(source, known, *graphs_of(options.model, source, known))
        run.learn(F.cross_entropy(scores, following.flatten()))
        if (step + 1) % options.save_every == 0:
            run.log(held_out=accuracy(run.plain_model, days[:128])["all"])

    if run.accelerator.is_main_process:
        model, graphs = run.plain_model, graphs_of(options.model, *tensors(days[:64], "cpu")[:2])
        found = {"days": accuracy(model, days), "phrasing": accuracy(model, phrasing)}
        for name in found["days"]:
            shares = (found[what].get(name) for what in ("days", "phrasing"))
            print(f"{name:4}", *("      -" if s is None else f"{s:7.1%}" for s in shares))
        some = [*days[:6], *phrasing[:6]]
        for example, text in zip(some, translate(model, some)):
            mark = "" if text == example.day.isoformat() else f"  but it is {example.day}"
            print(f"  {example.language}  {example.text:32} {text}{mark}")
        shown = [next(e for e in phrasing if e.language == name) for name in SHOWN]
        picture = alignments(run.folder / "alignment.png", model, options.model, shown)
        every, new = found["days"]["all"], found["phrasing"]["all"]
        run.finish(
            graphs=plans(list(graphs), options.heads, options.dim // options.heads),
            result=f"{every:.2%} of held-out days, {new:.2%} of held-out phrasings",
            accuracy=found,
            pictures=[picture],
        )


if __name__ == "__main__":
    main()
