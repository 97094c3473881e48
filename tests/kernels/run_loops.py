"""Runs the C++ of the CPU kernel in a program of its own, over calls that Python made.

    python tests/kernels/run_loops.py sanitize   with GCC's sanitizers and valgrind's memcheck
    python tests/kernels/run_loops.py arm64      compiled by ziglang for arm64, under qemu-user

`record_loops.py` records the calls with the Python of .venv, `loops_test.cpp` repeats them. What is
not installed here is skipped, with the reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "graphattn" / "kernels" / "cpu"))
import build  # noqa: E402

PROGRAM = ROOT / "tests" / "kernels" / "loops_test.cpp"
# One compiler at a time needs 1 GB: optimized little, the sanitized loops compile in half a minute.
COMMON = [*build.COMPILE, "-O1", "-g", "-pthread", f"-I{build.LOOPS}"]
SANITIZERS = {
    "address,undefined": ["-fno-sanitize-recover=all", "-fsanitize=float-cast-overflow"],
    "thread": [],
}
OPTIONS = {
    "ASAN_OPTIONS": "detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}
MEMCHECK = ["valgrind", "--quiet", "--error-exitcode=1"]


def record(folder: Path) -> Path:
    """Return the file of the recorded calls."""
    python, file = ROOT / ".venv" / "bin" / "python", folder / "calls"
    command = [python if python.exists() else sys.executable, "-m", "tests.kernels.record_loops"]
    subprocess.run([*command, file], cwd=ROOT, check=True)
    return file


def compiled(name: str, sources: list[Path], command: list[str], folder: Path) -> Path:
    """Return the program that a compiler makes of sources, on all cores."""
    defines = ['-DGRAPHATTN_HASH=""', '-DGRAPHATTN_LEVEL_NAME=""']

    def compile_one(source: Path) -> str:
        out = str(folder / f"{name}.{source.stem}.o")
        build.run_checked([*command, *defines, "-c", str(source), "-o", out])
        return out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    build.run_checked([*command, *objects, "-o", str(folder / name)])
    return folder / name


class Runs:
    """Runs of the program, compiled in different ways, over the same calls."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls, self.failed = folder, record(folder), False
        self.sources = [*sorted(build.LOOPS.glob("*.cpp")), PROGRAM]

    def run(self, name: str, compiler: list[str], *under: str) -> None:
        """Compile and run the program; `under` is a command that runs programs."""
        start = time.monotonic()
        try:
            program = compiled(name, self.sources, [*compiler, *COMMON], self.folder)
            command = [*under, str(program), str(self.calls)]
            words = build.run_checked(command, {**os.environ, **OPTIONS})
        except build.BuildError as error:
            words, self.failed = f"FAILED\n{error}", True
        print(f"loops, {name}: {words.strip()} in {time.monotonic() - start:.0f} s", flush=True)


def own_level() -> str:
    """Return the level of this processor."""
    libraries = build.current_libraries(build.host()).values()
    return build.host().levels[build._call(next(iter(libraries)), "graphattn_level")]


def missing(sanitizer: str, folder: Path) -> str | None:
    """Return why a sanitizer can't be used, or None."""
    source = folder / "empty.cpp"
    source.write_text("int main() {}")
    try:
        build.run_checked([str(compiled("empty", [source], ["g++", f"-fsanitize={sanitizer}"], folder))])
    except build.BuildError as error:
        return str(error).splitlines()[-1]
    return None


def sanitize(runs: Runs) -> None:
    levels = dict.fromkeys([build.host().levels[0], own_level()])
    for sanitizer, more in SANITIZERS.items():
        if reason := missing(sanitizer, runs.folder):
            print(f"loops, {sanitizer}: skipped: {reason}")
            continue
        for level in levels:
            flags = build.LEVELS[build.host().arch][level][0]
            compiler = ["g++", *flags, f"-fsanitize={sanitizer}", *more]
            runs.run(f"{sanitizer}, {level}", compiler)
    if shutil.which(MEMCHECK[0]) is None:
        return print("loops, memcheck: skipped: there is no valgrind")
    flags = build.LEVELS[build.host().arch][build.host().levels[0]][0]
    runs.run("memcheck", ["g++", *flags, "-DMEMCHECK"], *MEMCHECK)


def arm64(runs: Runs) -> None:
    qemu = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if qemu is None or find_spec("ziglang") is None:
        absent = "ziglang" if qemu else "qemu-user, which only root can install"
        return print(f"loops, arm64: skipped: there is no {absent}")
    for cache in ("GLOBAL", "LOCAL"):
        os.environ[f"ZIG_{cache}_CACHE_DIR"] = str(runs.folder / "zig")
    # musl, linked statically: no libraries of arm64 are needed here.
    target = ["-target", "aarch64-linux-musl", "-static", "-nostdlib++"]
    runs.run("arm64", [sys.executable, "-m", "ziglang", "c++", *target], qemu)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder))
        {"sanitize": sanitize, "arm64": arm64}[sys.argv[1]](runs)
    sys.exit(runs.failed)
