"""Papers that cite each other: made of digits that are hard to read, or PyG's own data sets."""

from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch_geometric.data import Data

READABLE, ALIKE = 0.15, 0.25  # share of a digit's pixels; of citations that are no surveys
PLANETOID = {"cora": "Cora", "citeseer": "CiteSeer", "pubmed": "PubMed"}
OGB = ("ogbn-arxiv", "ogbn-products")
DATA = ("digits", *PLANETOID, *OGB)


def load_citations(name: str, root: str, nodes: int, degree: int) -> Any:
    """A `Data` with x (nodes, features), y (nodes,), edge_index, and train_mask and test_mask."""
    if name == "digits":
        return digits_that_cite(nodes, degree)
    try:
        return of_planetoid(name, root) if name in PLANETOID else of_ogb(name, root)
    except ImportError as error:
        raise SystemExit(f"{name} needs the package ogb ({error}); pip install ogb") from error
    except Exception as error:  # each way to download fails in a way of its own
        raise SystemExit(
            f"{name} is neither in {root} nor can it be downloaded ({type(error).__name__}: "
            f"{error}); put its raw files there, pass --root, or leave --data out"
        ) from error


def of_planetoid(name: str, root: str) -> Any:
    from torch_geometric.datasets import Planetoid

    return Planetoid(root, PLANETOID[name])[0]


def of_ogb(name: str, root: str) -> Any:
    from ogb.nodeproppred import PygNodePropPredDataset  # pyright: ignore

    dataset = PygNodePropPredDataset(name, root)
    data, split = dataset[0], dataset.get_idx_split()
    data.y = data.y.flatten()
    for part in ("train", "test"):
        data[f"{part}_mask"] = torch.zeros(data.num_nodes, dtype=torch.bool)
        data[f"{part}_mask"][split[part]] = True
    return data


def digits_that_cite(nodes: int, degree: int) -> Any:
    """Each node is a real digit of which few pixels can be read, and cites others.

    Half of the nodes are labelled; the others are made of other images. Everybody cites surveys, a
    third of all; what else a node cites is of its own class.
    """
    generator = torch.Generator().manual_seed(0)  # the same data in all runs

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    images, labels = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    images, half = images.float() / 16, len(images) // 2
    train, survey = draw(nodes) < 0.5, draw(nodes) < 1 / 3
    chosen = (draw(nodes) * half).long() + half * ~train
    y, image = labels[chosen], images[chosen]
    readable = draw(*image.shape) < READABLE
    x = torch.cat([image * readable, readable, survey[:, None]], dim=1)
    surveys, own = survey.nonzero().flatten(), (~survey).nonzero().flatten()
    own = own[y[own].argsort()]  # class by class
    size = y[own].bincount()
    start = size.cumsum(0) - size
    alike = own[start[y, None] + (draw(nodes, degree) * size[y, None]).long()]
    anyone = surveys[(draw(nodes, degree) * len(surveys)).long()]
    src = torch.where(draw(nodes, degree) < ALIKE, alike, anyone)
    index = torch.stack([src.flatten(), torch.arange(nodes).repeat_interleave(degree)])
    return Data(x, index, y=y, image=image, train_mask=train, test_mask=~train)


def baselines(data: Any, train: Tensor, test: Tensor) -> dict[str, float]:
    """Logistic regression on what a node shows; and on that and the mean of what it hears."""
    src, dst = data.edge_index
    heard = torch.zeros_like(data.x).index_add_(0, dst, data.x[src])
    heard /= dst.bincount(minlength=len(heard)).clamp(min=1)[:, None]
    train = train[:50_000]
    both = torch.cat([data.x, heard], dim=1)
    found = {"most common class": (data.y[test] == data.y[train].mode().values).float().mean()}
    for name, x in (("own features", data.x), ("and neighbors' mean", both)):
        fitted = LogisticRegression(max_iter=1000).fit(x[train].numpy(), data.y[train].numpy())
        found[f"logistic regression, {name}"] = fitted.score(x[test].numpy(), data.y[test].numpy())
    return {name: float(share) for name, share in found.items()}
