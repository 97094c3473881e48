"""A picture of how often models are right, over the sizes of graphs."""

from pathlib import Path

from drawings import BLUE, ORANGE
from heatmaps import save
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter


def accuracy_by_size(folder: Path, accuracy: dict[str, dict], chance: float) -> str:
    """How often each model is right on held-out graphs, over their size."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for (kind, by_size), color in zip(accuracy.items(), (BLUE, ORANGE, "#009E73")):
        axes.plot(list(map(int, by_size)), list(by_size.values()), "o-", label=kind, color=color)
    axes.axhline(chance, color="black", linestyle=":", label="most frequent class")
    axes.set(xlabel="depth of the tree: edges from the root to the leaf", ylim=(0, 1.03))
    axes.set(title="Which leaf does the root ask for?", ylabel="right, of held-out trees")
    axes.set_xticks([int(size) for size in next(iter(accuracy.values()))])
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend()
    return save(figure, folder / "accuracy.png")
