"""Pictures of what models measure up to, over the sizes of graphs."""

import itertools
from pathlib import Path

from drawings import BLUE, ORANGE
from heatmaps import save
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter, StrMethodFormatter

COLORS = (BLUE, ORANGE, "#009E73")


def accuracy_by_size(folder: Path, accuracy: dict[str, dict], chance: float) -> str:
    """How often each model is right on held-out graphs, over their size."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for (kind, by_size), color in zip(accuracy.items(), COLORS):
        axes.plot(list(map(int, by_size)), list(by_size.values()), "o-", label=kind, color=color)
    axes.axhline(chance, color="black", linestyle=":", label="most frequent class")
    axes.set(xlabel="depth of the tree: edges from the root to the leaf", ylim=(0, 1.03))
    axes.set(title="Which leaf does the root ask for?", ylabel="right, of held-out trees")
    axes.set_xticks([int(size) for size in next(iter(accuracy.values()))])
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend()
    return save(figure, folder / "accuracy.png")


def loss_and_speed(folder: Path, loss: dict[str, dict], speed: dict[str, dict]) -> str:
    """Over the tokens of a piece, by graph: nats per token, and tokens a second."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, values in ((left, loss), (right, speed)):
        for (name, by_length), color in zip(values.items(), itertools.cycle(COLORS)):
            axes.plot(list(by_length), list(by_length.values()), "o-", label=name, color=color)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(by_length), [f"{length:,}" for length in by_length])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("context length (tokens)")
        axes.grid(color="gainsboro")
    left.set(title="Loss on held-out text", ylabel="nats per token")
    right.set(title="Speed of a forward pass", ylabel="tokens per second", ylim=(0, None))
    right.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    left.legend()
    return save(figure, folder / "loss_and_speed.png")
