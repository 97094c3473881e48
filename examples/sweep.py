"""Many small models, each of which leaves a file: --resume trains those that are missing."""

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from checkpoints import write_json
from tqdm import tqdm


def sweep(
    accelerator: Accelerator,
    options: argparse.Namespace,
    run: str,
    models: Sequence[tuple],
    learn: Callable[..., dict[str, Any]],
) -> dict[tuple, dict[str, Any]]:
    """What `learn(*model)` says of each model; the processes share them out.

    Args:
        accelerator: Of this process.
        options: Of which it takes runs, name and resume.
        run: Names what all models have in common; with --resume, the files of an equal run count.
        models: What tells each from the others, such as its name and its depth.
        learn: Trains one; returns what JSON can hold.
    """
    kept = Path(options.runs, options.name, run)
    if accelerator.is_main_process and not options.resume:
        shutil.rmtree(kept, ignore_errors=True)
    accelerator.wait_for_everyone()
    paths = {model: kept / f"{'-'.join(map(str, model))}.json" for model in models}
    own = models[accelerator.process_index :: accelerator.num_processes]
    missing = [model for model in own if not paths[model].exists()]
    bar = tqdm(missing, desc=options.name, disable=not accelerator.is_main_process)
    for model in bar:
        bar.set_postfix_str(", ".join(map(str, model)))
        write_json(paths[model], learn(*model))
    accelerator.wait_for_everyone()
    return {model: json.loads(path.read_text()) for model, path in paths.items()}
