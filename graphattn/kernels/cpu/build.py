"""Build of the CPU kernel: C++ loops compiled ahead of time, one shared library per level.

    python -m graphattn.kernels.cpu.build                  the base level and this processor's own
    python -m graphattn.kernels.cpu.build --levels all     every level of this architecture

A level is a set of instructions that a processor may have; `library.py` picks the level when it
loads. The file uses the standard library alone, because setup.py loads it by its path.

Environment:
    CXX                      The C++ compiler to try, instead of c++, g++ and clang++.
    GRAPHATTN_CPU_LEVELS     Levels to build, "all" or names with commas, instead of the default.
    GRAPHATTN_CPU_TARGET     System and architecture of other machines to build for, with zig, such
                             as "windows-x86_64".
    GRAPHATTN_NO_KERNEL      "1": setup.py builds nothing, and no compiler is needed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shlex
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
LOOPS, BUILT = HERE / "loops", HERE / "built"
ZIG = "ziglang>=0.16"  # a C++ compiler on PyPI, 100 MB
REMEDY = (
    f"install GCC 12 or newer, Clang 14 or newer, or {ZIG} with pip for {sys.executable}; "
    "with GRAPHATTN_NO_KERNEL=1 graphattn installs without the kernel"
)
SECONDS = 600  # that a compiler may take for one file

# Levels of an architecture, lowest first: flags of GCC and Clang, and zig's name of the processor.
LEVELS = {
    "x86_64": {
        "x86-64": (["-march=x86-64"], "x86_64"),
        "x86-64-v3": (["-march=x86-64-v3"], "x86_64_v3"),
        "x86-64-v4": (["-march=x86-64-v4"], "x86_64_v4"),
        "x86-64-v4-bf16": (["-march=x86-64-v4", "-mavx512bf16"], "x86_64_v4+avx512bf16"),
    },
    "arm64": {"arm64": ([], "baseline")},
}
# NaN and infinity keep their meaning: no -ffast-math.
COMPILE = [
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
]
WIDE = {"x86_64": ["-mprefer-vector-width=512"], "arm64": []}  # or Clang halves the vectors
# Nothing of libstdc++ is used: the linker drops the libraries that nobody needs.
LINK = {
    "linux": ["-shared", "-s", "-static-libgcc", "-Wl,--as-needed", "-Wl,-z,defs"],
    "darwin": ["-dynamiclib", "-Wl,-dead_strip_dylibs", "-Wl,-install_name,@rpath/graphattn"],
    "windows": ["-shared", "-s"],
}
SUFFIX = {"linux": ".so", "darwin": ".dylib", "windows": ".dll"}
# What a compiler has to build: wide vectors, and the newest instruction of the assembler.
PROBE = """
#define EXPORT extern "C" __attribute__((visibility("default")))
typedef float V __attribute__((vector_size(64)));
EXPORT void add_squares(V* a, const V* b) {
    *a += *b * *b;
#ifdef __AVX512BF16__
    asm volatile("vcvtneps2bf16 %%zmm0, %%ymm0" ::: "xmm0");
#endif
}
EXPORT int probe() { return 0; }
"""


class BuildError(RuntimeError):
    """The library can't be built; the message holds the compiler's last lines."""


class Target(NamedTuple):
    """The system and the architecture that a library is for."""

    system: str  # "linux", "darwin" or "windows"
    arch: str  # "x86_64" or "arm64"
    is_cross: bool = True  # for machines other than this one, though perhaps of the same kind

    @property
    def levels(self) -> list[str]:
        return list(LEVELS.get(self.arch, {})) if self.system in LINK else []

    def library(self, level: str, folder: Path = BUILT) -> Path:
        return folder / (level + SUFFIX.get(self.system, ".so"))


def host() -> Target:
    """Return the target that this process runs on."""
    machine = platform.machine().lower()
    arch = {"amd64": "x86_64", "aarch64": "arm64"}.get(machine, machine)
    return Target(platform.system().lower(), arch, is_cross=False)


def chosen_target() -> Target:
    """Return the target of GRAPHATTN_CPU_TARGET, or else the host."""
    system, _, arch = os.environ.get("GRAPHATTN_CPU_TARGET", "").partition("-")
    return Target(system, arch) if system else host()


def source_hash(loops: Path = LOOPS) -> str:
    """Return the SHA-256 of names and contents of the sources, the interface and this file."""
    files = sorted([*loops.glob("*.cpp"), *loops.glob("*.h"), *loops.parent.glob("interface.py")])
    total = hashlib.sha256()
    for file in [*files, Path(__file__)]:
        total.update(f"{file.name}\0".encode() + file.read_bytes() + b"\0")
    return total.hexdigest()


# --- compilers ------------------------------------------------------------------------------------


class Compiler(NamedTuple):
    """A command that compiles and links C++, for one target."""

    command: tuple[str, ...]
    target: Target
    is_zig: bool = False

    def flags(self, level: str) -> list[str]:
        flags, processor = LEVELS[self.target.arch][level]
        if self.is_zig:
            flags = ["-target", _zig_target(self.target), f"-mcpu={processor}"]
        return [*flags, *WIDE[self.target.arch]]

    def compile(self, source: Path, out: Path, level: str, defines: Sequence[str] = ()) -> None:
        defines = [f"-D{define}" for define in defines]
        self._run([*COMPILE, *self.flags(level), *defines, "-c", str(source), "-o", str(out)], out)

    def link(self, objects: Sequence[Path], out: Path) -> None:
        # Zig compiles its runtime for each processor: 6 s, and 100 s with libc++.
        libraries = ["-nostdlib++"] if self.is_zig else []
        link = [*LINK[self.target.system], *libraries, *self.flags(self.target.levels[0])]
        self._run([*link, *map(str, objects), "-o", str(out)], out)

    def _run(self, arguments: list[str], out: Path) -> None:
        # Without a writable HOME, zig may hang over its caches: they are beside the output.
        caches = {f"ZIG_{kind}_CACHE_DIR": str(out.parent / "zig") for kind in ("GLOBAL", "LOCAL")}
        run_checked([*self.command, *arguments], env={**os.environ, **caches})


def run_checked(command: Sequence[str], env: dict[str, str] | None = None) -> str:
    """Run a command; return its output, or raise BuildError with its last lines."""
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(str(error)) from None
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()[-20:]
        raise BuildError("\n".join([f"{command[0]} failed ({done.returncode}):", *lines]))
    return done.stdout


def _zig_target(target: Target) -> str:
    arch = {"arm64": "aarch64"}.get(target.arch, target.arch)
    if target.system == "linux":
        musl = not target.is_cross and "musl" in (sysconfig.get_config_var("SOABI") or "")
        return f"{arch}-linux-{'musl' if musl else 'gnu.2.17'}"
    return f"{arch}-{ {'darwin': 'macos.11.0', 'windows': 'windows-gnu'}[target.system] }"


def _system_compilers(target: Target) -> list[Compiler]:
    if target.is_cross or target.system == "windows":  # where it would be MSVC
        return []
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    commands = [tuple(shlex.split(name)) for name in names]
    return [Compiler(command, target) for command in commands if shutil.which(command[0])]


def _zig(target: Target) -> Compiler:
    return Compiler((sys.executable, "-m", "ziglang", "c++"), target, is_zig=True)


def _probe(compiler: Compiler, work: Path) -> None:
    """Raise BuildError unless a test file of the highest level compiles, and loads on the host."""
    source, binary, library = (work / f"probe{suffix}" for suffix in (".cpp", ".o", ".so"))
    source.write_text(PROBE)
    level = compiler.target.levels[-1]
    compiler.compile(source, binary, level)
    compiler.link([binary], library)
    if not compiler.target.is_cross:
        _call(library, "probe")


def _find_compiler(compilers: Sequence[Compiler], work: Path) -> Compiler:
    """Return the first compiler that counts; `work` is a folder for test files."""
    failures = []
    for compiler in compilers:
        try:
            _probe(compiler, work)
        except BuildError as error:
            failures.append(str(error))
        else:
            return compiler
    raise BuildError("\n".join([*failures, f"no C++ compiler can build the CPU kernel; {REMEDY}"]))


def requirements() -> list[str]:
    """Return what must be installed to build: ziglang, if no compiler of the system counts."""
    target = chosen_target()
    if os.environ.get("GRAPHATTN_NO_KERNEL") == "1" or not target.levels:
        return []
    with tempfile.TemporaryDirectory() as work:
        try:
            _find_compiler(_system_compilers(target), Path(work))
        except BuildError:
            return [ZIG]
    return []


# --- libraries ------------------------------------------------------------------------------------


def _call(library: Path, function: str) -> int:
    """Call a function without arguments, in another process, since loading may crash it."""
    code = f"import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).{function}())"
    return int(run_checked([sys.executable, "-c", code, str(library)]))


def is_whole(library: Path) -> bool:
    """Return whether no bytes are missing: loading a truncated ELF file may kill the process.

    An ELF file ends with its table of sections. Other systems check the length themselves.
    """
    size = library.stat().st_size
    with library.open("rb") as file:
        head = file.read(64)
    if not head.startswith(b"\x7fELF"):
        return size > 0
    if len(head) < 64:
        return False
    (offset,) = struct.unpack_from("<Q", head, 40)
    entry_size, entries = struct.unpack_from("<HH", head, 58)
    return size >= offset + entry_size * entries


def current_libraries(target: Target, loops: Path = LOOPS, out: Path = BUILT) -> dict[str, Path]:
    """Return the library of each level that is built, whole, and of the sources as they are now."""
    libraries = {level: target.library(level, out) for level in target.levels}
    sources = source_hash(loops).encode()
    return {
        level: file
        for level, file in libraries.items()
        if file.is_file() and is_whole(file) and sources in file.read_bytes()
    }


def _choose(levels: str, target: Target, native: Callable[[], int]) -> list[str]:
    """Return the levels to build; `native` returns the index of this processor's own."""
    levels = levels or os.environ.get("GRAPHATTN_CPU_LEVELS", "")
    if levels == "all" or (target.is_cross and not levels):
        return target.levels
    names = levels.split(",") if levels else [target.levels[0], target.levels[native()]]
    if unknown := set(names) - set(target.levels):
        raise BuildError(
            f"no level {', '.join(unknown)}; there are {', '.join(target.levels)}, all"
        )
    return list(dict.fromkeys(names))


def is_built(levels: str, target: Target, loops: Path = LOOPS, out: Path = BUILT) -> bool:
    """Return whether all levels to build are there, of the sources as they are now."""
    current = current_libraries(target, loops, out)
    try:
        any_library = next(iter(current.values()))
        names = _choose(levels, target, lambda: _call(any_library, "graphattn_level"))
    except (BuildError, StopIteration):
        return False
    return set(names) <= set(current)


def _native_level(compiler: Compiler, loops: Path, work: Path) -> int:
    """Return the index of this processor's own level."""
    base = compiler.target.levels[0]
    library = _compile(compiler, [base], [loops / "level.cpp"], "", work)[base]
    return _call(library, "graphattn_level")


def _compile(
    compiler: Compiler, levels: list[str], sources: list[Path], sources_hash: str, work: Path
) -> dict[str, Path]:
    """Compile the sources for some levels, on all cores; return the library of each level."""

    def compile_one(level: str, source: Path) -> Path:
        out = work / f"{level}.{source.stem}.o"
        # level.cpp runs before it is known what the processor has.
        flags_of = compiler.target.levels[0] if source.stem == "level" else level
        defines = [f'GRAPHATTN_HASH="{sources_hash}"', f'GRAPHATTN_LEVEL_NAME="{level}"']
        compiler.compile(source, out, flags_of, defines)
        return out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = {x: [pool.submit(compile_one, x, source) for source in sources] for x in levels}
    libraries = {level: compiler.target.library(level, work) for level in levels}
    for level, library in libraries.items():
        compiler.link([job.result() for job in objects[level]], library)
    return libraries


def build(
    levels: str = "", target: Target | None = None, loops: Path = LOOPS, out: Path = BUILT
) -> list[Path]:
    """Build the libraries, unless they are built already, and remove others from the folder.

    Args:
        levels: "all", or names with commas; if empty, those of GRAPHATTN_CPU_LEVELS, or else the
            base level and this processor's own.
        target: What to build for; if None, GRAPHATTN_CPU_TARGET, or else this machine.
        loops: Folder of the sources.
        out: Folder of the libraries. Each file is replaced at once: a process that loaded the old
            file goes on with it.

    Returns:
        The libraries.

    Raises:
        BuildError: If no compiler counts, or the compiler fails.
    """
    target = target or chosen_target()
    if not target.levels:
        raise BuildError(f"the CPU kernel has no level for {target.system} on {target.arch}")
    if not is_built(levels, target, loops, out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=out) as folder:
            work, compilers = Path(folder), [*_system_compilers(target), _zig(target)]
            compiler = _find_compiler(compilers, work)
            names = _choose(levels, target, lambda: _native_level(compiler, loops, work))
            sources = sorted(loops.glob("*.cpp"))
            for library in _compile(compiler, names, sources, source_hash(loops), work).values():
                os.replace(library, out / library.name)
    libraries = list(current_libraries(target, loops, out).values())
    for file in set(out.glob("[!.]*")).difference(libraries):  # of other sources, other systems
        file.unlink()
    return libraries


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--levels", default="", help="all, or names with commas")
    parser.add_argument("--check", action="store_true", help="only check: 1 if a build is needed")
    parser.add_argument("--requirements", action="store_true", help="print what pip must install")
    arguments = parser.parse_args()
    try:
        if arguments.check:
            return not is_built(arguments.levels, chosen_target())
        print(*(requirements() if arguments.requirements else build(arguments.levels)), sep="\n")
    except (BuildError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
