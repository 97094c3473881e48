"""The library of the CPU kernel: how it is built, checked, chosen and loaded.

Most tests build a tiny library of their own, of two short files.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from graphattn.kernels.cpu import build, library

ROOT = Path(__file__).parents[2]
HOST = build.host()
NUMBERS = itertools.count()
WORK = """
typedef float V __attribute__((vector_size(64)));
extern "C" __attribute__((visibility("default"))) void add_squares(V* a, const V* b) {
    *a += *b * *b;
}
"""
PRETENDS = """
extern "C" {
#define EXPORT __attribute__((visibility("default")))
EXPORT int graphattn_level() { return LEVEL; }
EXPORT const char* graphattn_level_name() { return GRAPHATTN_LEVEL_NAME; }
EXPORT const char* graphattn_hash() { return GRAPHATTN_HASH; }
}
"""


class Tiny:
    """A library of two files: its sources and what is built of them."""

    def __init__(self, folder: Path) -> None:
        self.loops, self.built = folder / "loops", folder / "built"

    def build(self, levels: str = "all") -> list[Path]:
        return build.build(levels, loops=self.loops, out=self.built)

    def load(self, level: str = "") -> ctypes.CDLL:
        """Return what is found in a copy, since a process loads the file of a path once."""
        copy = self.built.with_name(f"copy{next(NUMBERS)}")
        if self.built.exists():
            shutil.copytree(self.built, copy)
        return library.find(copy, self.loops, level)

    def find(self, level: str = "") -> str:
        return self.load(level).graphattn_level_name().decode()

    def files(self) -> dict[str, int]:
        return {x.name: x.stat().st_mtime_ns for x in self.built.iterdir()}


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CPU_LEVEL", "CPU_LEVELS", "CPU_TARGET", "NO_KERNEL"):
        monkeypatch.delenv(f"GRAPHATTN_{name}", raising=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny = Tiny(folder)
    tiny.loops.mkdir()
    shutil.copy(build.LOOPS / "level.cpp", tiny.loops)
    (tiny.loops / "work.cpp").write_text(WORK)
    tiny.build()
    return folder


@pytest.fixture
def tiny(built: Path, tmp_path: Path) -> Tiny:
    return Tiny(shutil.copytree(built, tmp_path / "copy"))


@pytest.fixture
def own(tiny: Tiny) -> int:
    """Return the index of this processor's own level."""
    return tiny.load(HOST.levels[0]).graphattn_level()


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder, which PATH names alone."""
    folder = tmp_path / "path"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)
    return folder


# --- loading --------------------------------------------------------------------------------------


def test_every_level_of_this_processor_loads_and_the_highest_does_by_itself(tiny: Tiny, own: int):
    for level in HOST.levels[: own + 1]:
        assert tiny.find(level) == level
    assert tiny.find() == HOST.levels[own]


def test_the_library_that_users_run_loads_at_every_level_built(monkeypatch: pytest.MonkeyPatch):
    current = build.current_libraries(HOST)
    assert current, f"`{library.REBUILD}` builds it"
    assert library.level() in current
    for level in HOST.levels[: HOST.levels.index(library.level()) + 1]:
        if level in current:
            monkeypatch.setenv("GRAPHATTN_CPU_LEVEL", level)
            assert library.level() == level


@pytest.mark.parametrize("level", range(len(HOST.levels)))
def test_a_processor_gets_the_highest_level_that_it_has(tiny: Tiny, level: int):
    (tiny.loops / "level.cpp").write_text(f"#define LEVEL {level}\n{PRETENDS}")
    tiny.build()
    assert tiny.find() == HOST.levels[level]
    for higher in HOST.levels[level + 1 :]:
        with pytest.raises(ValueError, match=rf"this processor has .*{HOST.levels[level]}$"):
            tiny.find(higher)


@pytest.mark.parametrize("name", ["x86-64-v5", "avx", "X86-64"])
def test_an_unknown_level_is_an_error_that_names_those_there(tiny: Tiny, name: str):
    with pytest.raises(ValueError, match=f"{name}: there are {', '.join(HOST.levels)}"):
        tiny.find(name)


def test_a_level_that_is_not_built_is_an_error(tiny: Tiny):
    for level in HOST.levels[1:]:
        HOST.library(level, tiny.built).unlink()
        with pytest.raises(ValueError, match="there are"):
            tiny.find(level)


def test_the_error_of_a_level_reaches_the_user(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GRAPHATTN_CPU_LEVEL", "none")
    for function in (library.load, library.missing, library.level):
        with pytest.raises(ValueError, match="GRAPHATTN_CPU_LEVEL=none"):
            function()


def broken(tiny: Tiny, reason: str) -> None:
    with pytest.raises(library.LibraryError, match=reason):
        tiny.find()


def test_missing(tiny: Tiny):
    shutil.rmtree(tiny.built)
    broken(tiny, "is missing")


def test_truncated_at_any_length(tiny: Tiny, own: int):
    file = HOST.library(HOST.levels[own], tiny.built)
    whole = file.read_bytes()
    for length in (*range(0, len(whole), 97), len(whole) - 1):
        file.write_bytes(whole[:length])
        broken(tiny, "is truncated|can't be loaded")


def test_of_other_content(tiny: Tiny, own: int):
    file = HOST.library(HOST.levels[own], tiny.built)
    file.write_bytes(bytes(file.stat().st_size))
    broken(tiny, "can't be loaded")


@pytest.mark.parametrize("changed", ["loops/work.cpp", "loops/new.h", "interface.py"])
def test_of_other_sources_until_it_is_built_again(tiny: Tiny, changed: str):
    with (tiny.loops.parent / changed).open("a") as file:
        file.write("\n")
    broken(tiny, "was built from other sources")
    tiny.build()
    tiny.find()


def test_the_reason_names_what_repairs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "BUILT", tmp_path)
    library._find.cache_clear()
    try:
        reason = library.missing()
        assert reason is not None
        assert "is missing" in reason
        assert library.REBUILD in reason
        with pytest.raises(library.LibraryError, match="is missing"):
            library.load()
    finally:
        library._find.cache_clear()


def test_nothing_is_written_where_it_is_installed(tiny: Tiny):
    before = tiny.files()
    for folder in (tiny.built, tiny.loops):
        folder.chmod(0o555)
    library.find(tiny.built, tiny.loops)
    assert tiny.files() == before


# --- building -------------------------------------------------------------------------------------


def test_only_what_is_not_there_is_built(tiny: Tiny):
    before = tiny.files()
    tiny.build()
    assert tiny.files() == before
    HOST.library(HOST.levels[0], tiny.built).unlink()
    assert not build.is_built("all", HOST, tiny.loops, tiny.built)
    tiny.build()
    assert set(tiny.files()) == set(before)


def test_what_is_of_other_sources_or_systems_is_removed(tiny: Tiny, own: int):
    (tiny.built / "x86-64.dll.old").touch()
    (tiny.loops / "work.cpp").write_text(f"{WORK}\n")
    levels = {HOST.levels[0], HOST.levels[own]}
    assert set(tiny.build("")) == {HOST.library(x, tiny.built) for x in levels}
    assert len(tiny.files()) == len(levels)


def test_a_failed_build_changes_nothing_and_shows_what_the_compiler_says(tiny: Tiny):
    before = tiny.files()
    (tiny.loops / "work.cpp").write_text("int answer = unheard_of;")
    with pytest.raises(build.BuildError, match="unheard_of"):
        tiny.build()
    assert tiny.files() == before


def test_an_unknown_level_is_not_built(tiny: Tiny):
    with pytest.raises(build.BuildError, match=f"no level v9; there are {HOST.levels[0]}"):
        tiny.build("v9")


def test_no_compiler_no_library(tiny: Tiny, no_compiler: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "_zig", lambda target: build.Compiler(("no-zig",), target, True))
    (tiny.loops / "work.cpp").write_text("")
    with pytest.raises(build.BuildError, match=r"no-zig[\s\S]*install GCC .*GRAPHATTN_NO_KERNEL=1"):
        tiny.build()


@pytest.mark.parametrize("stub", [None, "exit 0", "echo 'unknown option -std=c++17' >&2; exit 1"])
def test_ziglang_is_asked_for_where_no_compiler_counts(
    stub: str | None, no_compiler: Path, monkeypatch: pytest.MonkeyPatch
):
    if stub:
        (no_compiler / "c++").write_text(f"#!/bin/sh\n{stub}\n")
        (no_compiler / "c++").chmod(0o755)
    assert build.requirements() == [build.ZIG]
    monkeypatch.setenv("GRAPHATTN_NO_KERNEL", "1")
    assert build.requirements() == []


def test_ziglang_is_asked_for_to_build_for_other_machines(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GRAPHATTN_CPU_TARGET", "windows-x86_64")
    assert build.requirements() == [build.ZIG]
    monkeypatch.setenv("GRAPHATTN_CPU_TARGET", "windows-vax")
    assert build.requirements() == []
    with pytest.raises(build.BuildError, match="no level for windows on vax"):
        build.build()


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_building_imports_nothing_but_the_standard_library():
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); sys.exit('torch' in sys.modules)"
    run("-S", "-c", code, str(ROOT / "graphattn/kernels/cpu/build.py"))


def test_the_command_that_rebuilds():
    help = run("-W", "error::RuntimeWarning", "-m", "graphattn.kernels.cpu.build", "--help")
    assert "--levels" in help


# --- packages -------------------------------------------------------------------------------------


@pytest.fixture
def project(tiny: Tiny, tmp_path: Path) -> Path:
    """Return a project that builds as this one does, though of the tiny sources."""
    project = tmp_path / "project"
    cpu = project / "graphattn" / "kernels" / "cpu"
    cpu.mkdir(parents=True)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    for folder in (project / "graphattn", project / "graphattn" / "kernels", cpu):
        (folder / "__init__.py").touch()
    (project / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "build_backend.py", project / "scripts")
    shutil.copy(build.HERE / "build.py", cpu)
    shutil.copytree(tiny.loops, cpu / "loops")
    return project


def packed(project: Path, function: str, **environment: str) -> list[str]:
    """Return the files of a wheel that the build backend made."""
    pytest.importorskip("setuptools")
    code = f"""
import os, sys
os.chdir({str(project)!r})
sys.path.insert(0, "scripts")
import build_backend
print(build_backend.{function}("."))
"""
    wheel = run("-c", code, **environment).splitlines()[-1]
    assert wheel.startswith("graphattn-")
    assert wheel.count("-py3-none-") == 1
    assert not wheel.endswith("-any.whl")
    return zipfile.ZipFile(project / wheel).namelist()


def test_a_wheel_holds_sources_and_libraries_as_they_are_now(project: Path):
    loops = project / "graphattn" / "kernels" / "cpu" / "loops"
    (loops / "old.h").touch()
    packed(project, "build_wheel", GRAPHATTN_CPU_LEVELS="all")
    (loops / "old.h").unlink()
    files = packed(project, "build_wheel", GRAPHATTN_CPU_LEVELS=HOST.levels[0])
    folder = "graphattn/kernels/cpu"
    binary = HOST.library(HOST.levels[0], Path(folder, "built")).as_posix()
    of_kernel = {x for x in files if x.startswith((f"{folder}/loops/", f"{folder}/built/"))}
    assert of_kernel >= {f"{folder}/loops/level.cpp", f"{folder}/loops/work.cpp", binary}
    assert f"{folder}/loops/old.h" not in of_kernel


@pytest.mark.parametrize("function", ["build_wheel", "build_editable"])
def test_an_install_fails_without_a_compiler_or_goes_on_if_it_is_told_to(
    project: Path, no_compiler: Path, function: str
):
    failing = {"CXX": "no-compiler", "PYTHONPATH": str(no_compiler)}
    (no_compiler / "ziglang.py").write_text("raise SystemExit('this is no compiler')")
    with pytest.raises(AssertionError, match=r"this is no compiler[\s\S]*GRAPHATTN_NO_KERNEL=1"):
        packed(project, function, **failing)
    files = packed(project, function, GRAPHATTN_NO_KERNEL="1", **failing)
    assert not [x for x in files if "/built/" in x]


# --- binaries -------------------------------------------------------------------------------------


USERS = build.current_libraries(HOST)


def test_the_widest_registers_are_used(tiny: Tiny):
    if HOST.arch != "x86_64" or shutil.which("objdump") is None:
        pytest.skip("needs objdump, and an x86-64 processor")
    of_tiny = {level: HOST.library(level, tiny.built) for level in HOST.levels}
    for files, least in ((of_tiny, 1), (USERS, 5_000)):
        for level, file in files.items():
            dump = subprocess.check_output(["objdump", "-d", str(file)], text=True)
            assert dump.count("%zmm") >= least if "v4" in level else "%zmm" not in dump


@pytest.mark.parametrize("file", USERS.values(), ids=USERS)
def test_only_the_c_library_is_needed(file: Path):
    content = file.read_bytes()
    for foreign in (b"libstdc++", b"libc++", b"libgcc_s", str(ROOT).encode()):
        assert foreign not in content
