"""C passes as machine code for this CPU, where there is a C compiler.

A source file of the package is compiled once for a machine, in less than a second, when it is first
of use, and kept in ``~/.cache/candid/native`` (or below ``XDG_CACHE_HOME``). Whatever goes wrong,
all works as it does without it, on torch's own operations, with one line of log.
``CANDID_NATIVE=0`` in the environment asks for that; no compiler is looked for.

Linux only: elsewhere it is neither needed for a server nor tested.
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

from candid.atomic import replacing
from candid.errors import ArtifactError

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")

Compiled = TypeVar("Compiled")


class NativeError(Exception):
    """Why there is no machine code; never seen outside ``compiled``."""


def compiled(
    source: Path,
    wrap: Callable[[ctypes.CDLL], Compiled],
    check: Callable[[Compiled], None],
    logger: logging.Logger,
    without: str,
) -> Compiled | None:
    """Compile and load a source file, or None where that is not to be had.

    Args:
        source: the C file; headers lie beside it.
        wrap: makes of the library what is returned.
        check: raises ``NativeError`` where that does not compute what it should.
        logger: gets one line where there is no machine code.
        without: how that line starts: what happens instead.
    """
    if os.environ.get("CANDID_NATIVE") == "0":
        return None
    try:
        found = wrap(ctypes.CDLL(str(_library(source))))
        check(found)
    except (NativeError, ArtifactError, OSError) as error:
        logger.info("%s: %s", without, error)
        return None
    return found


def _library(source: Path) -> Path:
    if sys.platform != "linux":
        raise NativeError("there is machine code for Linux only")
    compiler = _compiler()
    openmp = _openmp()
    command = [*compiler, *FLAGS, "-fopenmp" if openmp else "-fopenmp-simd"]
    version = _run([*compiler, "--version"])
    headers = (header.read_text() for header in sorted(source.parent.glob("*.h")))
    made_of = [source.read_text(), *headers, *command, str(openmp), version, _cpu()]
    digest = hashlib.sha256("\0".join(made_of).encode()).hexdigest()
    path = _cache() / f"{source.stem}-{digest[:32]}.so"
    if not path.exists():
        with replacing(path) as temporary:
            linked = [] if openmp is None else [str(openmp)]
            # An object first: told of OpenMP, the linker would bring a runtime of its own.
            unlinked = temporary.with_suffix(".o")
            try:
                compile_flags = [flag for flag in command if flag != "-shared"]
                _run([*compile_flags, "-c", str(source), "-o", str(unlinked)])
                link = [*compiler, "-shared", str(unlinked), *linked, "-lm"]
                _run([*link, "-o", str(temporary)])
            finally:
                unlinked.unlink(missing_ok=True)
    return path


def _compiler() -> list[str]:
    named = os.environ.get("CC")
    for command in [shlex.split(named)] if named else [["cc"], ["gcc"], ["clang"]]:
        if command and shutil.which(command[0]):
            return command
    raise NativeError("no C compiler was found")


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        raise NativeError(f"{command[0]} did not come to an end") from None
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").splitlines()[0]
        raise NativeError(f"{shlex.join(command)} failed: {reason}")
    return done.stdout


def _openmp() -> Path | None:
    """The OpenMP runtime that torch has loaded: two in one process would fight over the cores."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and Path(fields[5]).name.startswith(("libgomp", "libiomp5", "libomp")):
            return Path(fields[5])
    return None


def _cpu() -> str:
    """What code for this machine may depend on: home folders are shared between machines."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    kinds = ("flags", "Features", "model name", "cpu family", "model\t", "CPU part")
    return "\n".join([platform.machine(), *sorted({ln for ln in lines if ln.startswith(kinds)})])


def _cache() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not root.is_absolute():  # as the XDG base directory specification has it
        root = Path(os.path.expanduser("~")) / ".cache"
    return root / "candid" / "native"
