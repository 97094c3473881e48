"""Threads for loops that release the GIL; a forked process, as a DataLoader's, makes its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch


@cache
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, thread_name_prefix="graphattn")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def run_on_threads(work: Callable[..., object], most: int, *args: Any) -> None:
    """Call `work(*args)` on up to `torch.get_num_threads()` threads at once, this one among them.

    Every call takes what it finds to do, until nothing is left: it does not matter how many calls
    there are, nor when they begin.

    Args:
        work: A function that releases the GIL.
        most: No more threads than this.
        args: What it is called with.
    """
    others = min(torch.get_num_threads(), most) - 1
    helpers = [_pool(others).submit(work, *args) for _ in range(others)]
    try:
        work(*args)
    finally:
        # A helper that has not begun is not needed any more.
        started = [helper for helper in helpers if not helper.cancel()]
    for helper in started:
        helper.result()
