"""One model for each of many settings, and a file for each: a run that was killed goes on."""

import argparse
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from checkpoints import write_json
from tqdm import tqdm


def learn_each(
    options: argparse.Namespace, settings: Sequence[tuple], learn: Callable[..., dict[str, Any]]
) -> dict[tuple, dict[str, Any]]:
    """What `learn(*setting, seconds)` says of every setting, shared out among the processes.

    The seconds are what a setting has of those that the options give, or infinite.
    """
    accelerator = Accelerator()
    kept = Path(options.runs, options.name, f"seed{options.seed}-steps{options.steps}")
    if accelerator.is_main_process and not options.resume:
        shutil.rmtree(kept, ignore_errors=True)
    accelerator.wait_for_everyone()
    paths = {setting: kept / f"{'-'.join(map(str, setting))}.json" for setting in settings}
    own = settings[accelerator.process_index :: accelerator.num_processes]
    missing = [setting for setting in own if not paths[setting].exists()]
    bar = tqdm(missing, desc=options.name, disable=not accelerator.is_main_process)
    for setting in bar:
        bar.set_postfix_str(" ".join(map(str, setting)))
        write_json(paths[setting], learn(*setting, (options.seconds or math.inf) / len(settings)))
    accelerator.wait_for_everyone()
    return {setting: json.loads(path.read_text()) for setting, path in paths.items()}
