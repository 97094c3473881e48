"""Dates in twenty languages are translated into ISO 8601, character by character.

    python examples/translate_dates.py --model transformer
    python examples/translate_dates.py --model luong-local --steps 2000
    accelerate launch examples/translate_dates.py

A tenth of all days from 1950 to 2049 is held out in every language, and so is one way to write them
in each, whose parts are learned in others: "Fri, Mar 7, 2031", where "Friday, Mar 7, 2031" and
"Fri, March 7, 2031" are learned. The picture in runs/translate_dates/ shows what the papers on
attention show: which characters of the text the model attends to while it writes each of its own.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import dates
import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from heatmaps import alignments
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
SHOWN, EVALUATED = ("en", "es", "el", "tr"), 2000  # languages drawn; examples of either kind


def build(options: argparse.Namespace) -> Any:
    """The model of these options."""
    vocab, dim, name = len(dates.vocabulary()), options.dim, options.model
    if name == "transformer":
        sizes = {"dim": dim, "depth": options.depth, "heads": options.heads}
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
    options = {"start": dates.START, "end": dates.END, "max_length": dates.WRITTEN}
    written = []
    for first in range(0, len(examples), 128):
        source, _, _ = tensors(examples[first : first + 128], next(model.parameters()).device)
        written += models.greedy(model, source, **options)
    return [dates.written(tokens) for tokens in written]


def accuracy(model: Any, examples: list[dates.Example]) -> dict[str, float]:
    """How many are right to the last character: of each language, and of all."""
    right: dict[str, list[bool]] = {}
    for example, text in zip(examples, translate(model, examples)):
        right.setdefault(example.language, []).append(text == example.day.isoformat())
    shares = {language: sum(found) / len(found) for language, found in sorted(right.items())}
    return {"all": sum(map(sum, right.values())) / len(examples), **shares}


@torch.no_grad()
def alignment(model: Any, name: str, example: dates.Example) -> tuple[Tensor, list[str], list[str]]:
    """What each character of the date attends to in the text; with the labels of both."""
    source, known, _ = tensors([example], next(model.parameters()).device)
    weights = model.weights(source, known, *graphs_of(name, source, known))
    if name == "transformer":  # (depth, m * n, heads) to (m, n), the mean of the last block's heads
        weights = weights[-1].mean(dim=-1).unflatten(0, (known.shape[1], -1))
    written, read = [*example.day.isoformat(), "end"], [f"‹{example.language}›", *example.text]
    return weights.cpu(), written, read


def report(run: Run, name: str, days: list[dates.Example], phrasing: list[dates.Example]) -> None:
    """Print how much is right, by language, and some translations; write result.json."""
    model: Any = run.plain_model
    found = {"days": accuracy(model, days), "phrasing": accuracy(model, phrasing)}
    print("right, of held-out days, and of held-out phrasings on them")
    for language in found["days"]:
        shares = [of[language] for of in found.values() if language in of]
        print(f"{language:>5}", *(f"{share:7.1%}" for share in shares))
    some = [*days[:6], *phrasing[:6]]
    for example, text in zip(some, translate(model, some)):
        wrong = "" if text == example.day.isoformat() else f"  but it is {example.day}"
        print(f"  {example.language}  {example.text:32} {text}{wrong}")
    shown = [next(e for e in phrasing if e.language == language) for language in SHOWN]
    parts = {f"{e.text}  →  {e.day}": alignment(model, name, e) for e in shown}
    title = f"What each character of a date (row) attends to in the text (columns): {name}"
    heads, score = run.options.heads, "dot"
    if name != "transformer":
        heads, score = 1, model.decoder.attention.alignment.score
    graphs = graphs_of(name, *tensors(days[: run.options.batch], "cpu")[:2])
    every, new = (of["all"] for of in found.values())
    run.finish(
        graphs=plans(graphs, heads, run.options.dim // heads, score=score),
        result=f"{every:.2%} of held-out days are right, {new:.2%} of held-out phrasings",
        accuracy=found,
        pictures=[alignments(run.folder / "alignment.png", title, parts)],
    )


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, "translate_dates", steps=2500)
    add_training(options, dim=128, depth=2, heads=4, batch=64, lr=2e-3)
    options.add_argument("--model", choices=["transformer", *ATTENTIONS], default="transformer")
    options = options.parse_args(argv)

    set_seed(0)  # the same examples are held out, whatever the seed
    days, phrasing = dates.draw(EVALUATED, held_out=True), dates.draw_phrasing(EVALUATED)
    set_seed(options.seed)
    run = Run(options, build(options), lr=options.lr)
    for step in run:
        source, known, following = tensors(dates.draw(options.batch), run.accelerator.device)
        scores = run.model(source, known, *graphs_of(options.model, source, known))
        run.learn(F.cross_entropy(scores, following.flatten()))
        if (step + 1) % options.save_every == 0:
            run.log(held_out=accuracy(run.plain_model, days[:128])["all"])
    if run.accelerator.is_main_process:
        report(run, options.model, days, phrasing)


if __name__ == "__main__":
    main()
