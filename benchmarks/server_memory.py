"""Memory in use of a server process, beside what its allocators hold.

The resident memory of a process contains memory that was freed and that malloc keeps for later
requests. A server that was started with ``PROGRAM`` writes at SIGUSR1 what is in use.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

PROGRAM: Final = (
    "import server_memory; server_memory.write_at_signal(); from candid.cli import main; main()"
)
"""Program of a server with ``environment``."""
VARIABLE: Final = "SERVER_MEMORY_FILE"
WAIT_SECONDS: Final = 60.0


class _Mallinfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost",
        )
    )  # fmt: skip


def environment(file: Path) -> dict[str, str]:
    """Return the variables of a server that writes to ``file``."""
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    return {VARIABLE: str(file), "PYTHONPATH": paths}


def write_at_signal() -> None:
    """Append a line to the file at each SIGUSR1."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _Mallinfo

    def write(number: int, frame: Any) -> None:
        info = libc.mallinfo2()
        found = {
            "malloc_in_use_mib": (info.uordblks + info.hblkhd) / 2**20,
            "malloc_free_mib": info.fordblks / 2**20,
            "python_blocks": sys.getallocatedblocks(),
        }
        with open(os.environ[VARIABLE], "a") as stream:
            stream.write(json.dumps(found) + "\n")

    signal.signal(signal.SIGUSR1, write)


def in_use(pid: int, file: Path) -> dict[str, float]:
    """Return the memory in use of a server now: MiB of all arenas of malloc, blocks of Python.

    Raises:
        TimeoutError: the server does not write it.
    """
    before = file.read_text().count("\n") if file.exists() else 0
    os.kill(pid, signal.SIGUSR1)
    began = time.monotonic()
    while time.monotonic() - began < WAIT_SECONDS:
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        if len(lines) > before and lines[-1].endswith("\n"):
            found: dict[str, float] = json.loads(lines[-1])
            found["lazily_freed_mib"] = _lazily_freed_mib(pid)
            return {name: round(value, 1) for name, value in found.items()}
        time.sleep(0.01)
    raise TimeoutError("the server did not write its memory in use")


def _lazily_freed_mib(pid: int) -> float:
    """Return what the process gave back and the system has not taken yet: it counts as resident."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("LazyFree:")]
    return int(line.split()[1]) / 1024
