"""Build of the package, as far as pyproject.toml can't describe it: the CPU kernel is compiled."""

from __future__ import annotations

import os
import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

CPU = Path("graphattn", "kernels", "cpu")
spec = spec_from_file_location("kernel", Path(__file__).parent / CPU / "build.py")
kernel = module_from_spec(spec)  # by its path: importing the package would import torch
spec.loader.exec_module(kernel)


class BuildKernel(Command):
    """Step of the build that compiles the CPU kernel beside its sources, as package data.

    It isn't part of `build_py`, because editable installs go on when that fails.
    """

    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        # A build before this one may have left sources and libraries that are gone since.
        shutil.rmtree(Path(self.build_lib, CPU), ignore_errors=True)
        if os.environ.get("GRAPHATTN_NO_KERNEL") != "1":
            kernel.build()

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return []


class Build(build):
    """Build of the package; the kernel comes first."""

    sub_commands = [("build_kernel", None), *build.sub_commands]  # noqa: RUF012


class Wheel(bdist_wheel):
    """Wheel for one platform and any version of Python: the kernel is called through ctypes."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class PlatformDistribution(Distribution):
    """Distribution that holds compiled code, though no extension module."""

    def has_ext_modules(self) -> bool:
        return True


setup(
    distclass=PlatformDistribution,
    cmdclass={"build": Build, "build_kernel": BuildKernel, "bdist_wheel": Wheel},
)
