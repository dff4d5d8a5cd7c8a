"""Native kernels: C files of the package, compiled for this CPU where there is a C compiler.

A file is compiled once per machine and user, on first use and in less than a second, and cached in
``~/.cache/candid/native`` (or below ``XDG_CACHE_HOME``), which only this user can write. Without
such a folder it is compiled in each process. If compiling fails, callers use torch operations
instead and write one log line. ``CANDID_NATIVE=0`` in the environment turns kernels off.

Linux only: other systems are not tested.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from candid.native_cache import cached_library, load_library
from candid.temporary import TemporaryFolder

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
SHARED_HEADERS = Path(__file__).parent
"""Folder of the headers that kernels of several packages include."""

Kernel = TypeVar("Kernel")


class NativeError(Exception):
    """The reason why a kernel is not available; never leaves ``load_kernel``."""


def load_kernel(
    source: Path,
    wrap: Callable[[ctypes.CDLL], Kernel],
    check: Callable[[Kernel], None],
    logger: logging.Logger,
    fallback: str,
) -> Kernel | None:
    """Compile and load a source file; return None if that fails.

    Args:
        source: the C file; its headers are in the same folder or in ``SHARED_HEADERS``.
        wrap: turns the library into the returned object.
        check: raises ``NativeError`` if the object computes wrong results.
        logger: gets one line if that fails, or if the cache cannot be used.
        fallback: start of that line, which names the alternative that is used.
    """
    if os.environ.get("CANDID_NATIVE") == "0":
        return None
    try:
        kernel = wrap(_library(source, logger))
        check(kernel)
    except (NativeError, OSError) as error:
        logger.info("%s: %s", fallback, error)
        return None
    return kernel


def _library(source: Path, logger: logging.Logger) -> ctypes.CDLL:
    if sys.platform != "linux":
        raise NativeError("native kernels are for Linux only")
    compiler = _compiler()
    openmp = _openmp()
    command = [*compiler, *FLAGS, "-fopenmp" if openmp else "-fopenmp-simd"]
    version = _run([*compiler, "--version"])
    folders = (source.parent, SHARED_HEADERS)
    headers = [file.read_text() for folder in folders for file in sorted(folder.glob("*.h"))]
    inputs = [source.read_text(), *headers, *command, str(openmp), version, _cpu()]
    digest = hashlib.sha256("\0".join(inputs).encode()).hexdigest()

    def build() -> bytes:
        return _compile(source, command, compiler, openmp)

    name = f"{source.stem}-{digest[:32]}"
    return load_library(source.stem, cached_library(_cache_root(), name, build, logger))


def _compile(source: Path, command: list[str], compiler: list[str], openmp: Path | None) -> bytes:
    """Compile in a temporary folder of this user and return the library."""
    with TemporaryFolder("compile") as folder:
        # Object file first: with -fopenmp the linker would add a second OpenMP runtime.
        object_file, library = folder.path / "kernel.o", folder.path / "kernel.so"
        compile_flags = [flag for flag in command if flag != "-shared"]
        compile_flags.append(f"-I{SHARED_HEADERS}")
        _run([*compile_flags, "-c", str(source), "-o", str(object_file)], folder.path)
        libraries = [] if openmp is None else [str(openmp)]
        link = [*compiler, "-shared", str(object_file), *libraries, "-lm"]
        _run([*link, "-o", str(library)], folder.path)
        return library.read_bytes()


def _compiler() -> list[str]:
    compiler = os.environ.get("CC")
    for command in [shlex.split(compiler)] if compiler else [["cc"], ["gcc"], ["clang"]]:
        if command and shutil.which(command[0]):
            return command
    raise NativeError("no C compiler found")


def _run(command: list[str], temporary: Path | None = None) -> str:
    """Run a command and return its output; its own temporary files are in a folder if given."""
    environment = None if temporary is None else os.environ | {"TMPDIR": str(temporary)}
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        raise NativeError(f"{command[0]} did not finish within 60 seconds") from None
    if result.returncode:
        reason = (result.stderr.strip() or "no reason given").splitlines()[0]
        raise NativeError(f"{shlex.join(command)} failed: {reason}")
    return result.stdout


def _openmp() -> Path | None:
    """The OpenMP runtime that torch has loaded: two in one process would compete for the cores."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and Path(fields[5]).name.startswith(("libgomp", "libiomp5", "libomp")):
            return Path(fields[5])
    return None


def _cpu() -> str:
    """Features of the CPU that a kernel may use: machines may share a home folder."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = ("flags", "Features", "model name", "cpu family", "model\t", "CPU part")
    return "\n".join([platform.machine(), *sorted({ln for ln in lines if ln.startswith(fields)})])


def _cache_root() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not root.is_absolute():  # required by the XDG base directory specification
        root = Path(os.path.expanduser("~")) / ".cache"
    return root
