"""The cache of compiled kernels: damaged files, files of other users, several processes."""

import hashlib
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from candid import native
from candid.native_cache import _log_once, cached_library, load_library

OTHER_USER = 65534
LOGGER = logging.getLogger("candid.test_native_cache")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture(autouse=True)
def forget_logged_lines():
    _log_once.cache_clear()


@pytest.fixture
def lines(caplog):
    """The lines that were logged so far."""
    caplog.set_level(logging.INFO, LOGGER.name)
    return lambda: [(r.levelname, r.getMessage()) for r in caplog.records if r.name == LOGGER.name]


class Build:
    """A build that counts its calls."""

    def __init__(self, library=b"the library"):
        self.library = library
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return self.library


def fetch(root, build):
    assert cached_library(root, "kernel-1", build, LOGGER) == build.library
    return build.calls


def cached_file(root):
    return root / "candid" / "native" / "kernel-1.kernel"


def test_library_is_built_once_in_a_private_folder(tmp_path, lines):
    build = Build()
    root = tmp_path / "missing" / "cache"
    assert [fetch(root, build) for _ in range(3)] == [1, 1, 1]
    assert lines() == []
    assert stat.S_IMODE(cached_file(root).parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(cached_file(root).stat().st_mode) == 0o600
    assert os.listdir(cached_file(root).parent) == ["kernel-1.kernel"]
    digest = hashlib.sha256(b"the library").digest()
    assert cached_file(root).read_bytes() == digest + b"the library"


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 42])
def test_cut_file_is_built_again(tmp_path, lines, length):
    build = Build()
    fetch(tmp_path, build)
    os.truncate(cached_file(tmp_path), length)
    assert fetch(tmp_path, build) == 2
    [(level, line)] = lines()
    assert level == "WARNING"
    assert line.endswith("is compiled again: it is damaged")
    assert fetch(tmp_path, build) == 2


def test_flipped_bit_is_built_again(tmp_path, lines):
    build = Build()
    fetch(tmp_path, build)
    content = bytearray(cached_file(tmp_path).read_bytes())
    for position in range(len(content)):
        content[position] ^= 4
        cached_file(tmp_path).write_bytes(content)
        content[position] ^= 4
        assert fetch(tmp_path, build) == position + 2
    assert len(lines()) == len(content)


def make_pipe(path):
    os.mkfifo(path, 0o600)


def make_link(path):
    target = path.with_name("target")
    target.write_bytes(hashlib.sha256(b"planted").digest() + b"planted")
    path.symlink_to(target)


@pytest.mark.parametrize(
    ("make", "reason"),
    [(make_pipe, "not a regular file"), (make_link, "Too many levels of symbolic links")],
)
def test_pipe_or_link_is_replaced(tmp_path, lines, make, reason):
    build = Build()
    fetch(tmp_path, build)
    cached_file(tmp_path).unlink()
    make(cached_file(tmp_path))
    assert [fetch(tmp_path, build) for _ in range(2)] == [2, 2]
    assert cached_file(tmp_path).is_file()
    assert not cached_file(tmp_path).is_symlink()
    [(_, line)] = lines()
    assert line.endswith(reason)


def test_folder_in_the_place_of_a_file_is_passed_over(tmp_path, lines):
    """It cannot be replaced by a file in one step."""
    build = Build()
    fetch(tmp_path, build)
    cached_file(tmp_path).unlink()
    cached_file(tmp_path).mkdir()
    assert [fetch(tmp_path, build) for _ in range(2)] == [2, 3]
    assert lines()[0][1].endswith("not a regular file")


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_file_that_others_may_write_is_built_again(tmp_path, lines, mode):
    build = Build()
    fetch(tmp_path, build)
    cached_file(tmp_path).chmod(mode)
    assert [fetch(tmp_path, build) for _ in range(2)] == [2, 2]
    assert lines()[0][1].endswith("other users may write it")


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_folder_that_others_may_write_is_emptied(tmp_path, lines, mode):
    build = Build()
    fetch(tmp_path, build)
    cached_file(tmp_path).parent.chmod(mode)
    assert [fetch(tmp_path, build) for _ in range(2)] == [2, 2]
    assert stat.S_IMODE(cached_file(tmp_path).parent.stat().st_mode) == 0o700
    [(level, line)] = lines()
    assert (level, "emptied" in line) == ("WARNING", True)


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o711])
def test_folder_that_others_may_read_is_made_private(tmp_path, lines, mode):
    build = Build()
    fetch(tmp_path, build)
    cached_file(tmp_path).parent.chmod(mode)
    assert fetch(tmp_path, build) == 1
    assert stat.S_IMODE(cached_file(tmp_path).parent.stat().st_mode) == 0o700
    assert lines() == []


WRITER = """
import logging, pathlib, sys, time
from candid import native_cache
native_cache.os.rename = lambda *arguments, **options: (print("there", flush=True), time.sleep(60))
root, logger = pathlib.Path(sys.argv[1]), logging.getLogger()
native_cache.cached_library(root, "kernel-2", lambda: b"cut", logger)
"""


def test_temporary_file_of_a_killed_process_is_removed_by_the_next(tmp_path):
    folder = cached_file(tmp_path).parent
    program = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, env=environment(tmp_path)) as writer:
        assert writer.stdout.readline() == b"there\n"
        [temporary] = os.listdir(folder)
        mine = folder / ".kernel.tmp"
        mine.touch()
        build = Build()
        fetch(tmp_path, build)
        assert (folder / temporary).exists()  # of a live process
        writer.kill()
    fetch(tmp_path, build)
    assert sorted(os.listdir(folder)) == [".kernel.tmp", "kernel-1.kernel"]
    assert build.calls == 1


@needs_root
def test_file_of_another_user_is_built_again(tmp_path, lines):
    build = Build()
    fetch(tmp_path, build)
    os.chown(cached_file(tmp_path), OTHER_USER, -1)
    assert [fetch(tmp_path, build) for _ in range(2)] == [2, 2]
    assert lines()[0][1].endswith(f"it belongs to user {OTHER_USER}")


@needs_root
@pytest.mark.parametrize("part", ["candid", "candid/native"])
def test_folder_of_another_user_is_passed_over(tmp_path, lines, part):
    build = Build()
    fetch(tmp_path, build)
    os.chown(tmp_path / part, OTHER_USER, -1)
    assert [fetch(tmp_path, build) for _ in range(3)] == [2, 3, 4]
    [(level, line)] = lines()
    assert level == "WARNING"
    assert f"{tmp_path / part} belongs to user {OTHER_USER}" in line


@pytest.mark.parametrize("part", ["candid", "candid/native"])
def test_linked_folder_is_passed_over(tmp_path, lines, part):
    build = Build()
    fetch(tmp_path, build)
    (tmp_path / part).rename(tmp_path / "elsewhere")
    (tmp_path / part).symlink_to(tmp_path / "elsewhere")
    assert [fetch(tmp_path, build) for _ in range(2)] == [2, 3]
    assert "symbolic link" in lines()[0][1]


@needs_root
def test_file_of_root_is_used_by_another_user():
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        fetch(root, Build())
        cached_file(root).chmod(0o644)
        cached_file(root).parent.chmod(0o755)
        cached_file(root).parents[1].chmod(0o755)
        build = Build()
        os.seteuid(OTHER_USER)
        try:
            assert fetch(root, build) == 0
            cached = cached_library(root, "kernel-2", build, LOGGER)
        finally:
            os.seteuid(0)
        assert (cached, build.calls) == (build.library, 1)
        assert os.listdir(cached_file(root).parent) == ["kernel-1.kernel"]


@needs_root
def test_readonly_cache_of_this_user_gives_an_info_line(tmp_path, lines):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o555)
        build = Build()
        os.seteuid(OTHER_USER)
        try:
            assert [fetch(root, build) for _ in range(2)] == [1, 2]
        finally:
            os.seteuid(0)
    [(level, line)] = lines()
    assert level == "INFO"
    assert "without a cache" in line


KERNEL = "int seven(void) { return 7; }\n"
PLANTED = """
#include <fcntl.h>
__attribute__((constructor)) static void run(void) { open("MARKER", O_CREAT | O_WRONLY, 0600); }
int seven(void) { return 8; }
"""
PROGRAM = """
import logging, sys, time
from pathlib import Path
from candid.native import load_kernel
logging.basicConfig(level=logging.INFO)
time.sleep(max(0.0, float(sys.argv[2]) - time.time()))
source, logger = Path(sys.argv[1]), logging.getLogger()
print(load_kernel(source, lambda library: library.seven, lambda _: None, logger, "none")())
"""


def command(source, start=0.0):
    return [sys.executable, "-c", PROGRAM, str(source), str(start)]


def environment(root):
    paths = os.pathsep.join(sys.path)
    return os.environ | {"XDG_CACHE_HOME": str(root), "PYTHONPATH": paths, "CANDID_NATIVE": "1"}


def compile_library(folder, text):
    source, library = folder / "planted.c", folder / "planted.so"
    source.write_text(text)
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    return library.read_bytes()


@needs_root
@needs_compiler
def test_library_planted_by_another_user_never_runs(tmp_path):
    """Another user prepares the cache in a folder that all may write, such as /tmp."""
    source, marker = tmp_path / "seven.c", tmp_path / "marker"
    source.write_text(KERNEL)
    planted = compile_library(tmp_path, PLANTED.replace("MARKER", str(marker)))
    load_library("planted", planted)
    assert marker.exists()  # loading it runs its code
    marker.unlink()
    own = tmp_path / "own"
    subprocess.run(command(source), env=environment(own), check=True, stdout=subprocess.DEVNULL)
    [file] = (own / "candid" / "native").iterdir()
    with tempfile.TemporaryDirectory() as shared:
        Path(shared).chmod(0o1777)
        plant = 'mkdir -p "$0/candid/native" && cat > "$0/candid/native/$1"'
        subprocess.run(
            ["sh", "-c", plant, shared, file.name],
            input=hashlib.sha256(planted).digest() + planted,
            user=OTHER_USER,
            group=OTHER_USER,
            check=True,
        )
        result = subprocess.run(
            command(source), env=environment(shared), check=True, capture_output=True, text=True
        )
    assert result.stdout == "7\n"
    assert not marker.exists()
    assert f"belongs to user {OTHER_USER}" in result.stderr


@needs_compiler
def test_processes_that_start_together_all_get_the_kernel(tmp_path):
    source = tmp_path / "seven.c"
    source.write_text(KERNEL)
    start = time.time() + 1.0
    processes = [
        subprocess.Popen(
            command(source, start), env=environment(tmp_path), stdout=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    assert [process.communicate(timeout=60)[0] for process in processes] == ["7\n"] * 6
    [file] = (tmp_path / "candid" / "native").iterdir()
    assert file.suffix == ".kernel"


@needs_compiler
def test_temporary_files_of_the_compiler_are_in_the_folder_of_the_compilation(tmp_path):
    """A kill leaves them, and only that folder is removed later."""
    compiler, source = tmp_path / "compiler", tmp_path / "seven.c"
    source.write_text(KERNEL)
    compiler.write_text(f'#!/bin/sh\necho "$TMPDIR" "$*" >> {tmp_path}/calls\nexec cc "$@"\n')
    compiler.chmod(0o700)
    (tmp_path / "temporary").mkdir()
    variables = {"CC": str(compiler), "TMPDIR": str(tmp_path / "temporary")}
    subprocess.run(command(source), env=environment(tmp_path) | variables, check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    folders = [call.split()[0] for call in calls if " -o " in call]
    assert len(folders) == 2
    assert all(folder.startswith(f"{tmp_path}/temporary/candid-compile-") for folder in folders)
    assert list((tmp_path / "temporary").iterdir()) == []


@needs_compiler
def test_loaded_libraries_do_not_depend_on_files_or_on_each_other(tmp_path):
    first = load_library("first", compile_library(tmp_path, KERNEL))
    second = load_library("second", compile_library(tmp_path, KERNEL.replace("7", "9")))
    assert (first.seven(), second.seven()) == (7, 9)


def test_damaged_library_is_an_error_of_the_system():
    with pytest.raises(OSError, match="/proc/self/fd"):
        load_library("cut", b"\x7fELF\x02\x01\x01")


@needs_compiler
def test_cut_file_of_a_kernel_is_compiled_again(tmp_path, monkeypatch, lines):
    """A mapped file that was cut would end the process with SIGBUS."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CANDID_NATIVE", "1")
    source = tmp_path / "seven.c"
    source.write_text(KERNEL)

    def load():
        kernel = native.load_kernel(source, lambda lib: lib.seven, lambda _: None, LOGGER, "none")
        return kernel()

    assert load() == 7
    [file] = (tmp_path / "candid" / "native").iterdir()
    os.truncate(file, file.stat().st_size // 2)
    assert load() == 7
    assert len(lines()) == 1
    assert load() == 7
    assert len(lines()) == 1
