"""Makes the source distribution and the wheels of all systems; see scripts/wheels.

Wheels of other systems are built and inspected: tag, levels, exported functions, libraries that
they need. They are not tested, which the output says.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import build_backend
import lief  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).parents[1]
CPU = Path("graphattn", "kernels", "cpu")
sys.path.insert(0, str(ROOT / CPU))
import build as kernel  # noqa: E402  # pyright: ignore[reportMissingImports]

PLATFORMS = {  # of wheels, in the words of their names
    "linux-x86_64": "manylinux_2_17_x86_64",
    "linux-arm64": "manylinux_2_17_aarch64",
    "darwin-arm64": "macosx_11_0_arm64",
    "windows-x86_64": "win_amd64",
}
GLIBC = (2, 17)  # the newest symbols that manylinux_2_17 may use
MAY_NEED = (  # in small letters
    "libc.so.6",
    "libm.so.6",
    "libsystem.b.dylib",
    "kernel32.dll",
    "api-ms-win-crt-",
)
MUST_EXPORT = {"graphattn_level", "graphattn_level_name", "graphattn_hash", "graphattn_call_bytes"}


def make_wheel(target: str, sdist: Path, dist: Path) -> Path:
    """Build the wheel of a target out of the source distribution; return its file."""
    setting = f"--config-settings=--build-option=--plat-name={PLATFORMS[target]}"
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "wheel", *options, setting, "-w", str(dist), str(sdist)]
    subprocess.run(command, check=True, env={**os.environ, "GRAPHATTN_CPU_TARGET": target})
    return next(dist.glob(f"*-py3-none-{PLATFORMS[target]}.whl"))


# --- inspection -----------------------------------------------------------------------------------


def inspect_wheel(target: str, wheel: Path) -> str:
    """Check a wheel, or raise AssertionError; return what was found."""
    system, _, arch = target.partition("-")
    goal = kernel.Target(system, arch)
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
        words = next(Path(folder).glob("*.dist-info/WHEEL")).read_text()
        assert f"Tag: py3-none-{PLATFORMS[target]}\n" in words, words
        cpu = Path(folder) / CPU
        libraries = kernel.current_libraries(goal, cpu / "loops", cpu / "built")
        assert list(libraries) == goal.levels, f"{wheel.name} holds {list(libraries)}"
        assert len(list((cpu / "built").iterdir())) == len(libraries), "files of other systems"
        exports = {frozenset(inspect_library(file)) for file in libraries.values()}
        assert len(exports) == 1, f"levels differ in what they export: {exports}"
        here = goal._replace(is_cross=False) == kernel.host()
        loaded = load_levels(libraries) if here else f"untested: this is no {target} machine"
    size = wheel.stat().st_size / 1e6
    return f"{wheel.name}: {size:.2f} MB, {len(next(iter(exports)))} functions, {loaded}"


def inspect_library(file: Path) -> set[str]:
    """Return what a library exports, after checking that it needs no more than the C library."""
    binary = lief.parse(str(file))
    exports = {str(x.name).removeprefix("_") for x in binary.exported_functions}
    ours = {name for name in exports if name.startswith("graphattn_")}
    assert ours >= MUST_EXPORT, f"{file.name} lacks {MUST_EXPORT - ours}"
    names = [x if isinstance(x, str) else x.name for x in binary.libraries]
    needed = {name.rpartition("/")[2] for name in names} - {"graphattn"}  # macOS: its own name
    foreign = [x for x in needed if not x.lower().startswith(MAY_NEED)]
    assert not foreign, f"{file.name} needs {foreign}"
    for version in getattr(binary, "symbols_version_requirement", ()):
        for symbol in version.get_auxiliary_symbols():
            number = symbol.name.removeprefix("GLIBC_")
            assert tuple(map(int, number.split("."))) <= GLIBC, f"{file.name} needs {symbol.name}"
    return ours


def load_levels(libraries: dict[str, Path]) -> str:
    """Load every level of this system's wheel, in a process of its own."""
    code = "import ctypes, sys; [ctypes.CDLL(x).graphattn_level() for x in sys.argv[1:]]"
    subprocess.run([sys.executable, "-c", code, *map(str, libraries.values())], check=True)
    return f"loads here: {', '.join(libraries)}"


def main() -> None:
    lief.logging.disable()
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    os.chdir(ROOT)
    sdist = dist / build_backend.build_sdist(str(dist), {"--global-option": ["--quiet"]})
    found = [inspect_wheel(x, make_wheel(x, sdist, dist)) for x in PLATFORMS]
    print(f"\n{sdist.name}: {sdist.stat().st_size / 1e6:.2f} MB", *found, sep="\n")
    subprocess.run([sys.executable, str(ROOT / "scripts" / "run_loops.py"), "arm64"], check=True)


if __name__ == "__main__":
    main()
