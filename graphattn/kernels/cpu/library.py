"""Library of the CPU kernel: the file that `build.py` made, found, checked and loaded.

The highest level is loaded that was built and that this processor has. The environment variable
GRAPHATTN_CPU_LEVEL names another, such as "x86-64-v3".
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

REBUILD = "python -m graphattn.kernels.cpu.build"


class LibraryError(RuntimeError):
    """The library can't be used; the message holds the reason and what repairs it."""


def load() -> ctypes.CDLL:
    """Return the library; the first call in a process loads it.

    Raises:
        LibraryError: If the library is missing, damaged, or built from other sources.
        ValueError: If GRAPHATTN_CPU_LEVEL names a level that can't be used here.
    """
    found = _find(os.environ.get("GRAPHATTN_CPU_LEVEL", ""))
    if isinstance(found, str):
        raise LibraryError(found)
    return found


def missing() -> str | None:
    """Return why the library can't be used and what repairs it, or None if it was loaded.

    Raises:
        ValueError: If GRAPHATTN_CPU_LEVEL names a level that can't be used here.
    """
    found = _find(os.environ.get("GRAPHATTN_CPU_LEVEL", ""))
    return found if isinstance(found, str) else None


def level() -> str:
    """Return the level of the loaded library, such as "x86-64-v4"."""
    return load().graphattn_level_name().decode()


@cache
def _find(named: str) -> ctypes.CDLL | str:
    """Return the library of a level, or of the highest level, or why there is none."""
    from graphattn.kernels.cpu import build  # here, so that `python -m` of it imports it once

    try:
        return find(build.BUILT, build.LOOPS, named)
    except LibraryError as error:
        return f"the library of the CPU kernel {error}; `{REBUILD}` repairs it"


def find(built: Path, loops: Path, named: str = "") -> ctypes.CDLL:
    """Load the library of the named level, or of the highest level that this processor has.

    Args:
        built: Folder of the libraries.
        loops: Folder of their sources.
        named: A level; if empty, the highest.

    Raises:
        LibraryError: If no library is there, or the file is damaged or of other sources.
        ValueError: If the named level is unknown, not built, or not of this processor.
    """
    from graphattn.kernels.cpu import build

    target = build.host()
    there = [x for x in target.levels if target.library(x, built).is_file()]
    if named and named not in (there or target.levels):
        raise ValueError(f"GRAPHATTN_CPU_LEVEL={named}: there are {_names(there or target.levels)}")
    if not there:
        raise LibraryError(f"is missing in {built}")
    sources = build.source_hash(loops)
    has: list[str] = []
    for level in [named] if named else reversed(there):
        library = _open(target.library(level, built), sources)
        has = target.levels[: library.graphattn_level() + 1]
        if level in has:
            return library
    if named:
        raise ValueError(f"GRAPHATTN_CPU_LEVEL={named}: this processor has {_names(has)}")
    raise LibraryError(f"is built for {_names(there)}, and this processor has {_names(has)}")


def _names(levels: list[str]) -> str:
    return ", ".join(levels)


def _open(file: Path, sources: str) -> ctypes.CDLL:
    """Load a library whose file is whole and that was built from the sources of this hash."""
    from graphattn.kernels.cpu import build

    if not build.is_whole(file):
        raise LibraryError(f"is truncated: {file}")
    try:
        library = ctypes.CDLL(str(file))
        library.graphattn_hash.restype = library.graphattn_level_name.restype = ctypes.c_char_p
        found = library.graphattn_hash().decode()
    except (OSError, AttributeError) as error:
        raise LibraryError(f"can't be loaded: {error}") from None
    if found != sources:
        raise LibraryError(f"was built from other sources than those beside it: {file}")
    return library
