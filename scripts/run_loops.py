"""Runs the C++ of the CPU kernel in a program of its own, over calls that Python made.

    python scripts/run_loops.py sanitize   with GCC's sanitizers and valgrind's memcheck
    python scripts/run_loops.py arm64      compiled by ziglang for arm64, under qemu-user

In tests/kernels, record_loops.py records the calls with the Python of .venv, and loops_test.cpp
repeats them. What is not installed here is skipped, with the reason.
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

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "graphattn" / "kernels" / "cpu"))
import build  # noqa: E402  # pyright: ignore[reportMissingImports]

PROGRAM = ROOT / "tests" / "kernels" / "loops_test.cpp"
COMMON = [*build.COMPILE, "-pthread", f"-I{build.LOOPS}"]
SANITIZERS = {  # GCC takes five times as long to compile for addresses at -O1 as at -O0
    "address,undefined": ["-O0", "-fno-sanitize-recover=all", "-fsanitize=float-cast-overflow"],
    "thread": ["-Og"],
}
OPTIONS = {
    # GCC 12 puts the vectors of such frames at addresses that their size does not divide.
    "ASAN_OPTIONS": "detect_stack_use_after_return=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}
MEMCHECK = ["valgrind", "--quiet", "--error-exitcode=1"]


def record(folder: Path) -> Path:
    """Return the file of the recorded calls."""
    python, file = ROOT / ".venv" / "bin" / "python", folder / "calls"
    if not python.exists():
        sys.exit(f"loops: calls are recorded with {python}, which scripts/setup makes")
    subprocess.run([python, "-m", "tests.kernels.record_loops", file], cwd=ROOT, check=True)
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

    def run(self, name: str, compiler: list[str], flags: list[str], *under: str) -> None:
        """Compile and run the program; `under` is a command that runs programs."""
        start = time.monotonic()
        try:
            program = compiled(name, self.sources, [*compiler, *COMMON, *flags], self.folder)
            command = [*under, str(program), str(self.calls)]
            environment = {**os.environ, **OPTIONS}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            words, is_passed = done.stderr + done.stdout, done.returncode == 0
        except build.BuildError as error:
            words, is_passed = str(error), False
        self.failed |= not is_passed
        words = words.strip() if is_passed else f"FAILED\n{words[:8_000]}"
        print(f"loops, {name}: {words}, {time.monotonic() - start:.0f} s", flush=True)


def sanitize(runs: Runs) -> None:
    arch = build.host().arch
    flags_of = {level: build.LEVELS[arch][level][0] for level in levels()}
    for sanitizer, more in SANITIZERS.items():
        sanitized = [f"-fsanitize={sanitizer}", "-g", *more]
        if reason := refusal(sanitized, runs.folder):
            print(f"loops, {sanitizer}: skipped: {reason}")
            continue
        for level, flags in flags_of.items():
            runs.run(f"{sanitizer}, {level}", ["g++"], [*flags, *sanitized])
    if shutil.which(MEMCHECK[0]) is None:
        print("loops, memcheck: skipped: there is no valgrind")
        return
    base, flags = next(iter(flags_of.items()))  # valgrind lacks instructions of the highest levels
    runs.run(f"memcheck, {base}", ["g++"], [*flags, "-Og", "-g", "-DMEMCHECK"], *MEMCHECK)


def levels() -> list[str]:
    """Return the base level and this processor's own."""
    host = build.host()
    library = next(iter(build.current_libraries(host).values()))
    return list(dict.fromkeys(host.levels[i] for i in (0, build._call(library, "graphattn_level"))))


def refusal(flags: list[str], folder: Path) -> str | None:
    """Return why programs with these flags don't compile or run, or None."""
    source = folder / "empty.cpp"
    source.write_text("int main() {}")
    try:
        build.run_checked([str(compiled("empty", [source], ["g++", *flags], folder))])
    except build.BuildError as error:
        return str(error).splitlines()[-1]
    return None


def arm64(runs: Runs) -> None:
    qemu = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if qemu is None or find_spec("ziglang") is None:
        absent = "ziglang" if qemu else "qemu-user, which only root can install"
        print(f"loops, arm64: skipped: there is no {absent}")
        return
    for cache in ("GLOBAL", "LOCAL"):
        os.environ[f"ZIG_{cache}_CACHE_DIR"] = str(runs.folder / "zig")
    # musl, linked statically: no libraries of arm64 are needed here.
    target = ["-target", "aarch64-linux-musl", "-static", "-nostdlib++"]
    runs.run("arm64", [sys.executable, "-m", "ziglang", "c++"], target, qemu)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder))
        {"sanitize": sanitize, "arm64": arm64}[sys.argv[1]](runs)
    sys.exit(runs.failed)
