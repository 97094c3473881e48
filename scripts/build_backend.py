"""Build backend: setuptools, and a C++ compiler from PyPI where the system has none that counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

_BUILD = Path(__file__).parents[1] / "graphattn" / "kernels" / "cpu" / "build.py"


def get_requires_for_build_wheel(config_settings=None):
    command = [sys.executable, str(_BUILD), "--requirements"]
    requirements = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [*build_meta.get_requires_for_build_wheel(config_settings), *requirements.split()]


get_requires_for_build_editable = get_requires_for_build_wheel
