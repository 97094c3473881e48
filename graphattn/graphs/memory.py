"""What fits: asked before a large tensor is made, so that a request too large is an error."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from graphattn.graphs.facts import constant_when_compiled

MAX_NODES = 2**31 - 1
WORTH_ASKING = 2**26  # bytes


@constant_when_compiled
def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on a device; a large number where nobody can tell.

    Compiled code asks once, while it is traced.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_free_on_machine(), _free_in_container())


def _free_on_machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 2**40


def _free_in_container() -> int:
    """What a control group leaves (Linux, version 2); a large number where there is none."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        return limit - int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return 2**40


def human(num_bytes: float) -> str:
    """Bytes as people say them.

    Example:
        >>> human(3_400_000_000)
        '3.4 GB'
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} TB" if num_bytes < 1000 else f"{num_bytes:,.0f} TB"


def fits(num_bytes: int, device: torch.device) -> bool:
    """Whether that many bytes are free on the device."""
    return num_bytes <= free_bytes(device)


def shortage(num_bytes: int, device: torch.device) -> str | None:
    """How many bytes something would take and how many there are, if these are too few.

    Little is taken to fit: asking would take longer than a small call.
    """
    if num_bytes <= WORTH_ASKING or fits(num_bytes, device):
        return None
    return f"{human(num_bytes)}, and {human(free_bytes(device))} are free"


def require(num_bytes: int, device: torch.device, what: str, remedy: str) -> None:
    """Raise MemoryError, with the size, if that many bytes are not free on the device."""
    if not fits(num_bytes, device):
        free = human(free_bytes(device))
        raise MemoryError(
            f"{what} takes {human(num_bytes)} and {free} are free on {device}; {remedy}"
        )
