"""Pictures of recall: images as networks give them back, and how many patterns they hold."""

import math
from collections.abc import Sequence
from pathlib import Path

from heatmaps import BLUE, ORANGE, save
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

STYLES = {  # colors that the color-blind can tell apart (Okabe and Ito 2008)
    "Hebb, all to all": {"color": BLUE, "marker": "o"},
    "Hebb, random graph": {"color": "#CC79A7", "marker": "v"},
    "Hebb, neighborhood": {"color": "#56B4E9", "marker": "^"},
    "projection, all to all": {"color": "#009E73", "marker": "s"},
    "modern": {"color": ORANGE, "marker": "D"},
}


def images_recalled(path: Path, rows: dict[str, Tensor], shape: tuple[int, int]) -> str:
    """A row of images (num_images, height * width) for each name, of ink (+1) on paper (-1).

    The first are those stored; pixels that differ from them are orange.
    """
    stored = next(iter(rows.values()))
    figure = Figure(
        figsize=(0.85 * len(stored) + 2.2, 0.92 * len(rows) + 0.6), layout="constrained"
    )
    words = "wrong pixels are orange, dark where there is too much ink, light where it is missing"
    figure.suptitle(f"{len(stored)} stored images, damaged and recalled; {words}")
    axes = figure.subplots(len(rows), len(stored), squeeze=False)
    for row, (name, images) in zip(axes, rows.items()):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
        for place, image, truth in zip(row, images, stored):
            ink, wrong = (part.view(shape).numpy() for part in (image, image != truth))
            place.imshow(-ink, cmap="gray", vmin=-1.3, vmax=1.1)
            place.imshow(wrong, cmap="Oranges", vmin=0, vmax=1.5, alpha=0.75 * wrong)
            place.set(xticks=[], yticks=[])
            place.spines[:].set_color("lightgray")
    return save(figure, path)


def recall_by_load(
    path: Path,
    loads: dict[str, Sequence[float]],
    shares: dict[str, dict[str, list[float]]],
    neurons: dict[str, int],
) -> str:
    """How many patterns come back over how many are stored, a panel for each task."""
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    figure.suptitle("How many patterns come back when a tenth of each is flipped")
    for axes, task in zip(figure.subplots(1, len(loads), sharey=True), loads):
        n = neurons[task]
        bounds = {"n / (2 ln n) ": 1 / (2 * math.log(max(n, 2))), " 0.138 n": 0.138}  # Hebb, random
        for what, bound in bounds.items():
            axes.axvline(bound, color="black", linestyle=":", linewidth=1)
            axes.text(bound, 1.045, what, size=9, ha="right" if "ln" in what else "left")
        for name, curve in shares[task].items():
            axes.plot(loads[task], curve, label=name, markersize=5, clip_on=False, **STYLES[name])
        axes.set_title(f"{task}, {n} neurons", pad=20)
        axes.set(xlabel="stored patterns to a neuron", xscale="log", ylim=(0, 1.04))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.legend(loc="center right", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("patterns that come back, at least 95% of each")
    return save(figure, path)
