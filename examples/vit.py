"""A vision transformer learns to read digits; its patches attend over the graph that you choose.

    python examples/vit.py --graph complete
    python examples/vit.py --graph shifted_windows --name windows
    python examples/vit.py --data mnist --seconds 600
    accelerate launch examples/vit.py

The images are the 1,797 real ones that scikit-learn carries, 8 x 8 pixels each; a fifth is held out
before anything else happens. Pictures go to runs/vit/: the graph, drawn over an image, and what a
patch attends to.
"""

import math

import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from drawings import graph_over_image
from heatmaps import attention_over_images
from sklearn.datasets import fetch_openml, load_digits
from sklearn.metrics import accuracy_score, confusion_matrix
from sklearn.model_selection import train_test_split
from support import Run, add_training, parser, plans, positive
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import graphattn as ga
from graphattn.models.layers import init_weights

GRAPHS = {  # of the grid of patches, for each block; add your own
    "complete": lambda grid, block: ga.complete(math.prod(grid)),
    "shifted_windows": lambda grid, block: windows(grid, shifted=block % 2 == 1),
    "neighborhood": lambda grid, block: ga.neighborhood(grid, radius=1),
    "axial": lambda grid, block: ga.axial(grid),
    "expander": lambda grid, block: ga.expander(math.prod(grid), 4, seed=block).with_self_loops(),
}


def windows(grid: tuple[int, int], *, shifted: bool) -> ga.Graph:
    """Swin's windows, two to a side; every other block moves them by half."""
    size = (grid[0] + 1) // 2
    return ga.shifted_windows(grid, size, size // 2 if shifted else 0)


def load_data(name: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, height, width) from 0 to 1, and their labels (N,)."""
    if name == "digits":
        pixels, labels = load_digits(return_X_y=True)
        pixels, side = pixels / 16, 8
    else:
        try:
            pixels, labels = fetch_openml(
                "mnist_784", version=1, return_X_y=True, as_frame=False, parser="liac-arff"
            )
        except OSError as error:
            raise OSError(
                f"MNIST comes from openml.org, which did not answer ({error}); go online once "
                "(scikit-learn keeps it), or use --data digits, which needs no network"
            ) from error
        pixels, side = pixels / 255, 28
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, side, side)
    return images, torch.tensor(labels.astype(int))


def augment(images: Tensor) -> Tensor:
    """Turn, scale and move every image a little."""
    most = torch.tensor([[0.15], [0.1], [0.2], [0.2]])  # radians, ratio, halves of the image
    angle, zoom, right, down = most * (2 * torch.rand(4, len(images)) - 1)
    cos, sin = (1 + zoom) * angle.cos(), (1 + zoom) * angle.sin()
    maps = torch.stack([cos, -sin, right, sin, cos, down], dim=1).view(-1, 2, 3)
    places = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, places, align_corners=False)


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, "vit", steps=1500)
    add_training(options, dim=64, depth=4, heads=4, batch=64, lr=4e-3)
    options.add_argument("--graph", choices=GRAPHS, default="complete")
    options.add_argument("--data", choices=["digits", "mnist"], default="digits")
    options.add_argument("--patch", type=positive, help="its side (default: digits 2, mnist 4)")
    options = options.parse_args(argv)

    images, labels = load_data(options.data)
    split = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    train, held_out = (torch.tensor(part) for part in split)
    set_seed(options.seed)
    side = options.patch or {"digits": 2, "mnist": 4}[options.data]
    model = ga.models.ViT(
        (images.shape[-2], images.shape[-1]),
        (side, side),
        num_classes=10,
        channels=1,
        dim=options.dim,
        depth=options.depth,
        heads=options.heads,
        dropout=0.1,
    )
    init_weights(model, std=options.dim**-0.5)
    graphs = [GRAPHS[options.graph](model.grid, block) for block in range(options.depth)]

    run = Run(options, model, lr=options.lr)
    loader = DataLoader(TensorDataset(images[held_out], labels[held_out]), batch_size=256)
    loader = run.accelerator.prepare(loader)
    device = run.accelerator.device
    for step in run:
        chosen = train[torch.randint(len(train), (options.batch,))]
        scores = run.model(augment(images[chosen]).to(device), graphs)
        run.learn(F.cross_entropy(scores, labels[chosen].to(device)))
        if (step + 1) % options.save_every == 0:
            run.log(accuracy=accuracy_score(*evaluate(run, loader, graphs)))

    predicted, true = evaluate(run, loader, graphs)
    if run.accelerator.is_main_process:
        print("held-out digits (rows) and what they were read as (columns):")
        print(confusion_matrix(true, predicted))
        accuracy, shown = accuracy_score(true, predicted), images[held_out[:6]].to(device)
        titles = [f"{label}, read as {read}" for label, read in zip(true[:6], predicted[:6])]
        over, heat = run.folder / "graph.png", run.folder / "attention.png"
        run.finish(
            graphs=plans(graphs, options.heads, options.dim // options.heads),
            result=f"{accuracy:.1%} of {len(true)} held-out images",
            accuracy=accuracy,
            pictures=[
                graph_over_image(over, images[held_out[0], 0], graphs, model.grid),
                attention_over_images(heat, model, graphs, shown, titles),
            ],
        )


@torch.no_grad()
def evaluate(run: Run, loader: DataLoader, graphs: list[ga.Graph]) -> tuple[Tensor, Tensor]:
    """Predicted and true labels of the held-out images, gathered from all processes."""
    run.model.eval()
    pairs = []
    for images, labels in loader:
        predicted = run.model(images, graphs).argmax(dim=-1)
        pairs.append(run.accelerator.gather_for_metrics((predicted, labels)))
    predicted, labels = (torch.cat(part).cpu() for part in zip(*pairs))
    return predicted, labels


if __name__ == "__main__":
    main()
