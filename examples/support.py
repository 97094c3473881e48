"""What the examples share: their options, and a training run that may be killed at any time.

A run lives in runs/NAME/: checkpoints, pictures, and result.json. All that is random in a step
depends on the seed and the step alone: a run that was killed ends where it would have anyway.
"""

import argparse
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import checkpoints
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from torch import Tensor, nn
from tqdm import tqdm

import graphattn as ga

# Options that may differ when a run goes on; any other makes it another run.
MAY_CHANGE = {"runs", "name", "steps", "seconds", "save_every", "resume"}


def parser(
    doc: str | None, name: str, *, steps: int, unit: str = "training steps"
) -> argparse.ArgumentParser:
    """The options that every example has; `unit` says what its steps are."""
    style = argparse.RawDescriptionHelpFormatter
    options = argparse.ArgumentParser(description=doc, formatter_class=style)
    add = options.add_argument
    add("--steps", type=positive, default=steps, help=f"{unit} (default {steps})")
    add("--seconds", type=positive, help="take no longer than this; a schedule fits itself in")
    add("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    add("--runs", default="runs", help="folder of all runs (default runs)")
    add("--name", default=name, help=f"folder of this run inside it (default {name})")
    add("--seed", type=int, default=0, help="of the initial weights and of all that is drawn")
    return options


def add_training(options: argparse.ArgumentParser, *, lr: float, **sizes: int) -> None:
    """The options of a run that trains one model: sizes by name, such as dim, depth and batch."""
    add = options.add_argument
    add("--save-every", type=positive, default=100, metavar="STEPS", help="between checkpoints")
    add("--lr", type=float, default=lr, help=f"learning rate at its highest (default {lr})")
    for name, size in sizes.items():
        add(f"--{name}", type=positive, default=size, help=f"default {size}")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


class Run:
    """A training run: `for step in run: run.learn(loss)` trains, and saves checkpoints."""

    def __init__(self, options: argparse.Namespace, model: nn.Module, *, lr: float) -> None:
        self.options, self.lr = options, lr
        self.config = {k: v for k, v in vars(options).items() if k not in MAY_CHANGE}
        self.folder = Path(options.runs, options.name)
        self.step, self.saved, self.seconds, self.history, self.metrics = 0, 0, 0.0, [], {}
        self.accelerator = Accelerator()
        optimizer = torch.optim.AdamW(model.parameters(), lr, betas=(0.9, 0.98), weight_decay=0.05)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.plain_model = model  # without the wrapper that several processes need
        checkpoints.store(self.accelerator, model)
        if options.resume and (last := checkpoints.newest(self.folder)) is not None:
            state = checkpoints.load(self.accelerator, last, model, self.config)
            self.step = self.saved = state["step"]
            self.seconds, self.history = state["seconds"], state["history"]
            self.accelerator.print(f"going on from {last}")
        elif self.accelerator.is_main_process:
            checkpoints.set_aside(self.folder)
        self.accelerator.wait_for_everyone()

    def __iter__(self) -> Iterator[int]:
        bar = tqdm(
            total=1.0,
            initial=min(self.used(), 1.0),
            desc=self.options.name,
            mininterval=0.5,
            disable=not self.accelerator.is_main_process,
            bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed} < {remaining}{postfix}",
        )
        last = time.perf_counter()
        while (used := self.used()) < 1:
            set_seed(hash((self.options.seed, self.step)) % 2**31, device_specific=True)
            for group in self.optimizer.param_groups:  # up during the first 5%, then down to 0
                group["lr"] = self.lr * min(used / 0.05, (1 - used) / 0.95)
            self.model.train()
            yield self.step
            now = time.perf_counter()
            self.step, self.seconds, last = self.step + 1, self.seconds + now - last, now
            bar.set_postfix(step=self.step, **self.metrics, refresh=False)
            bar.update(used - bar.n)
            if self.step % self.options.save_every == 0:
                self.save()
        if self.step != self.saved:
            self.save()
        bar.update(1 - bar.n)
        bar.close()

    def used(self) -> float:
        """How much of the steps or of the seconds is used up; the same in all processes."""
        used = self.step / self.options.steps
        if self.options.seconds:
            used = max(used, self.seconds / self.options.seconds)
        return broadcast_object_list([used])[0]

    def learn(self, loss: Tensor) -> None:
        """One step of the optimizer."""
        self.metrics["loss"] = loss.item()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.step}; lower --lr")
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def log(self, **metrics: float) -> None:
        """Keep measurements in the history, and show them in the progress bar."""
        self.metrics |= metrics
        self.history.append({"step": self.step + 1, "seconds": self.seconds, **self.metrics})

    def save(self) -> None:
        state = {name: getattr(self, name) for name in ("step", "seconds", "history", "config")}
        checkpoints.save(self.accelerator, self.folder, state)
        self.saved = self.step

    def finish(self, **result: Any) -> None:
        """Write result.json and say where it is."""
        counts = {"example": self.options.name, "steps": self.step, "seconds": self.seconds}
        result = {**counts, **result, "history": self.history}
        checkpoints.write_json(self.folder / "result.json", result)
        print(f"{result['result']}; see {self.folder}")


def plans(graphs: Iterable[ga.Graph], heads: int, head_dim: int, **options: Any) -> list[dict]:
    """Of each different graph, for result.json: its size, the kernel that runs it, and why."""
    rows = []
    for graph in dict.fromkeys(graphs):
        query, key = (torch.empty(n, heads, head_dim) for n in (graph.num_dst, graph.num_src))
        plan = ga.explain(query, key, key, graph, **options)
        rows.append({"graph": str(graph), "edges": graph.num_edges, **asdict(plan)})
    return rows
