"""The pass over a tile as machine code for this CPU, where there is a C compiler.

``tile_pass.c`` is compiled once for a machine, in less than a second, when a large loss is first
computed, and kept in ``~/.cache/candid/native`` (or below ``XDG_CACHE_HOME``). Whatever goes wrong,
the losses work as they do without it, on torch's own operations, with one line of log (logger
``candid.losses``). ``CANDID_NATIVE=0`` in the environment asks for that; no compiler is looked for.

Linux only: elsewhere it is neither needed for a server nor tested.
"""

from __future__ import annotations

import ctypes
import functools
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

import torch
from torch import Tensor

from candid.atomic import replacing
from candid.errors import ArtifactError

LOGGER = logging.getLogger("candid.losses")
SOURCE = Path(__file__).with_name("tile_pass.c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
NAMES = {torch.bfloat16: "candid_bfloat16", torch.float32: "candid_float32"}
MAX_COLUMNS = 8192
"""Of a tile, as in the source."""

NativePass = Callable[[Tensor, Tensor | None, Tensor, Tensor, bool], None]
"""scores [rows, columns], shift [columns], reference [rows], log_sum [rows], keep."""


class NativeError(Exception):
    """Why there is no machine code; never seen outside this module."""


@functools.cache
def native_pass() -> NativePass | None:
    """The compiled pass, or None where it is not to be had; looked for once in a process."""
    if os.environ.get("CANDID_NATIVE") == "0":
        return None
    try:
        library = _load(_library())
        compiled = _callable(library)
        _check(compiled)
    except (NativeError, ArtifactError, OSError) as error:
        LOGGER.info("losses run on torch alone, somewhat slower: %s", error)
        return None
    return compiled


def _library() -> Path:
    if sys.platform != "linux":
        raise NativeError("there is machine code for Linux only")
    compiler = _compiler()
    openmp = _openmp()
    command = [*compiler, *FLAGS, "-fopenmp" if openmp else "-fopenmp-simd"]
    version = _run([*compiler, "--version"])
    made_of = [SOURCE.read_text(), *command, str(openmp), version, _cpu()]
    digest = hashlib.sha256("\0".join(made_of).encode()).hexdigest()
    path = _cache() / f"tile_pass-{digest[:32]}.so"
    if not path.exists():
        with replacing(path) as temporary:
            linked = [] if openmp is None else [str(openmp)]
            # An object first: told of OpenMP, the linker would bring a runtime of its own.
            unlinked = temporary.with_suffix(".o")
            try:
                compile_flags = [flag for flag in command if flag != "-shared"]
                _run([*compile_flags, "-c", str(SOURCE), "-o", str(unlinked)])
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


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name in NAMES.values():
        function = getattr(library, name)
        pointer, length, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
        function.argtypes = [pointer, pointer, length, length, flag, pointer, pointer, flag]
        function.restype = None
    return library


def _callable(library: ctypes.CDLL) -> NativePass:
    functions = {dtype: getattr(library, name) for dtype, name in NAMES.items()}

    def run(
        scores: Tensor, shift: Tensor | None, reference: Tensor, log_sum: Tensor, keep: bool
    ) -> None:
        functions[scores.dtype](
            scores.data_ptr(),
            None if shift is None else shift.data_ptr(),
            *scores.shape,
            keep,
            reference.data_ptr(),
            log_sum.data_ptr(),
            torch.get_num_threads(),
        )

    return run


def _check(compiled: NativePass) -> None:
    """Refuse code that does not compute what it should: compilers differ."""
    ramp = torch.linspace(-30.0, 20.0, 3 * 41).view(3, 41)
    ramp[1, 7], ramp[2] = -torch.inf, -torch.inf
    shift = torch.linspace(-1.0, 1.0, 41)
    for dtype, error in ((torch.float32, 1e-5), (torch.bfloat16, 2**-8)):
        scores, reference, log_sum = ramp.to(dtype), torch.empty(3), torch.empty(3)
        x = scores.double() - shift.double()
        compiled(scores, shift, reference, log_sum, True)
        expected = torch.exp(x - torch.where(x[:, :1].isneginf(), 0.0, x.amax(1, keepdim=True)))
        if not torch.allclose(scores.double(), expected, rtol=error, atol=1e-30):
            raise NativeError("the compiled code gives other shares than torch")
        if not torch.allclose(log_sum.double(), x.logsumexp(1), rtol=1e-6, atol=1e-6):
            raise NativeError("the compiled code gives other sums than torch")
