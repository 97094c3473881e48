"""Checkpoints that are whole or not there at all, whenever a run is killed.

A checkpoint is a folder of safetensors weights, optimizer and progress. It is written under another
name, brought to the disk, and renamed: a reader finds all of it or nothing. Those before it are
removed only after that.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import safe_open
from torch import nn


def store(accelerator: Accelerator, model: nn.Module) -> None:
    """Let checkpoints hold the model itself, not what wraps it when there are several processes.

    Then one process can go on from a checkpoint of many, and many from that of one.
    """

    def save_plain(models: list, weights: list, folder: str) -> None:
        weights[:] = [model.state_dict()]

    def load_plain(models: list, folder: str) -> None:
        models[:] = [model]

    accelerator.register_save_state_pre_hook(save_plain)
    accelerator.register_load_state_pre_hook(load_plain)


def newest(folder: Path) -> Path | None:
    """The last complete checkpoint of a run."""
    return max(folder.glob("checkpoint-*"), key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def save(accelerator: Accelerator, folder: Path, state: dict[str, Any]) -> None:
    """Write `checkpoint-STEP` with all that the accelerator holds, and `state`; all processes."""
    draft, final = folder / "unfinished", folder / f"checkpoint-{state['step']}"
    if accelerator.is_main_process:
        shutil.rmtree(draft, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(draft))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(draft / "state.json", state)
        publish(draft, final)
        remove(folder, but=final)
    accelerator.wait_for_everyone()


def load(accelerator: Accelerator, checkpoint: Path, model: nn.Module, config: dict) -> dict:
    """Load a checkpoint if it is one of this model and of this configuration; return its state.

    Raises:
        ValueError: If it is not.
    """
    state = json.loads((checkpoint / "state.json").read_text())
    theirs = state["config"]
    differing = [name for name, value in config.items() if theirs.get(name) != value]
    options = ", ".join(f"--{name} {theirs.get(name)}, not {config[name]}" for name in differing)
    remedy = f"resume with {options or 'the same options'}; or choose another --name for this run"
    remedy += f"; or delete {checkpoint}"
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = shapes(checkpoint / "model.safetensors")
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{checkpoint} does not fit the model: {name} must have the shape "
                f"{expected.get(name)}, and has {found.get(name)}; {remedy}"
            )
    if differing:
        raise ValueError(f"{checkpoint} is from a run with other options; {remedy}")
    accelerator.load_state(str(checkpoint))
    return state


def shapes(weights: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file, from its header alone."""
    with safe_open(weights, "pt") as file:
        names = file.keys()
        return {name: tuple(file.get_slice(name).get_shape()) for name in names}


def set_aside(folder: Path) -> None:
    """Move the last checkpoint of an earlier run to `previous`: it is not one of the next run."""
    if (last := newest(folder)) is not None:
        shutil.rmtree(folder / "previous", ignore_errors=True)
        last.rename(folder / "previous")
        remove(folder)
        print(f"starting anew; {last} of an earlier run is {folder / 'previous'} from now on")


def remove(folder: Path, *, but: Path | None = None) -> None:
    for checkpoint in folder.glob("checkpoint-*"):
        if checkpoint != but:
            shutil.rmtree(checkpoint)


def publish(draft: Path, final: Path) -> None:
    """Rename what is complete and on the disk."""
    for path in (*draft.rglob("*"), draft):
        sync(path)
    os.replace(draft, final)
    sync(final.parent)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(content, indent=2) + "\n")
    publish(draft, path)
