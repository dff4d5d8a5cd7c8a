"""Processes of the fault campaign: the command line in a forked child, which can be killed.

Importing torch takes seconds. The process of the campaign imports candid once, runs nothing itself,
and forks: a child begins with all modules loaded and without threads of another command.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from faults_programs import PROGRAMS, program_code

HANG = 90.0
"""Seconds after which a command hangs; on a free machine it takes a few tenths."""
TEMPORARY, CACHE = "tmp", "cache"
"""Names of the folders of temporary files and of the cache, in the working folder of a command."""
MEMORY = 16 << 30
"""Address space of a child in bytes, so that a damaged size cannot take the memory of others."""
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "POLARS_MAX_THREADS": "2",
    "MPLBACKEND": "Agg",
    "NO_COLOR": "1",
    "COLUMNS": "200",
}
OPTIONAL = ("faiss", "usearch.index", "optuna", "uvicorn", "httptools", "matplotlib.pyplot",
            "torch.distributed.launcher.api")  # fmt: skip
CHANGES = frozenset(
    {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
)


def preload() -> None:
    """Set the environment of the children and import every module of candid."""
    os.environ.update(SETTINGS)
    import candid

    for module in pkgutil.walk_packages(candid.__path__, "candid."):
        if "triton" in module.name or module.name.endswith("__main__"):
            continue
        importlib.import_module(module.name)
    for name in OPTIONAL:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    fork_ranks()
    # Blocks of a bulk recommendation have several batches there; the tiny outputs have several too.
    bulk = importlib.import_module("candid.runs.bulk")
    bulk.BATCH, bulk.BLOCK_ROWS = 8, 80  # type: ignore[misc]


@dataclass(frozen=True)
class Outcome:
    """End of one command.

    Attributes:
        code: exit code; minus the number of the signal that ended the process.
        out: stdout.
        err: stderr.
        seconds: wall time.
        is_hung: it was killed at its time limit.
        places: file operations counted, if it was recorded.
    """

    code: int
    out: str
    err: str
    seconds: float
    is_hung: bool = False
    places: list[str] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class Skipped:
    """The result of a case that could not do what it is for.

    Attributes:
        reason: why.
    """

    reason: str


@dataclass(frozen=True)
class Stop:
    """A place at which a command is killed: before the n-th file operation below its folder.

    Attributes:
        number: from 1; 0: the operations are only recorded.
        record: file for the names of the operations; None: not recorded.

    Of several processes of a launcher only rank 0 counts.
    """

    number: int
    record: Path | None = None


class Command:
    """``candid ARGUMENTS`` in a forked child with ``folder`` as its working folder.

    Args:
        arguments: of the command line; or the name of one of ``faults_programs.PROGRAMS``.
        folder: working folder; the output is stored beside it.
        stop: where the child kills itself; None: nowhere.
        environment: variables of the child, beside those of ``private_folders``.
        file_limit: largest file that the child can write, in bytes; None: no limit.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        stop: Stop | None = None,
        environment: dict[str, str] | None = None,
        file_limit: int | None = None,
    ) -> None:
        self._folder, self._stop = folder, stop
        self._out, self._err = (folder.with_name(folder.name + s) for s in (".out", ".err"))
        for path in (self._out, self._err):
            path.unlink(missing_ok=True)  # the parent may read before the child writes
        self._began = time.perf_counter()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _in_child(lambda: self._run(list(arguments), environment or {}, file_limit))
        self._end = os.pidfd_open(self.pid)

    def wait(self, seconds: float) -> bool:
        """Wait until the child has ended; return whether it has."""
        return bool(select.select([self._end], [], [], max(0.0, seconds))[0])

    def kill(self) -> None:
        """Kill the child and its children with SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def finish(self, seconds: float = HANG) -> Outcome:
        """Wait for the end, at most ``seconds``, and return it."""
        is_hung = not self.wait(seconds)
        if is_hung:
            self.kill()
        _, status = os.waitpid(self.pid, 0)
        os.close(self._end)
        took = time.perf_counter() - self._began
        self.kill()  # children that the command left behind
        record = self._stop.record if self._stop else None
        places = record.read_text().splitlines() if record and record.exists() else []
        code = os.waitstatus_to_exitcode(status)
        return Outcome(code, _text(self._out), _text(self._err), took, is_hung, places)

    def error_text(self) -> str:
        """Return stderr so far."""
        return _text(self._err)

    def _run(self, arguments: list[str], environment: dict[str, str], limit: int | None) -> int:
        os.setsid()
        os.chdir(self._folder)
        os.environ.update(private_folders(self._folder) | environment)
        tempfile.tempdir = None
        redirect(self._out, self._err)
        limit_resources(limit)
        if self._stop is not None:
            stop_at(self._stop, self._folder)
        if arguments[0] in PROGRAMS:
            return program_code(arguments[0], self._folder, self._folder)
        return candid_code(arguments)


def run(arguments: Sequence[str], folder: Path, seconds: float = HANG, **given: Any) -> Outcome:
    """Run one command to its end."""
    return Command(arguments, folder, **given).finish(seconds)


def private_folders(folder: Path) -> dict[str, str]:
    """Return the variables by which temporary files and the cache of kernels are in a folder.

    A case then sees what a killed command leaves there. The folders are made.
    """
    found = {"TMPDIR": folder / TEMPORARY, "XDG_CACHE_HOME": folder / CACHE}
    for path in found.values():
        path.mkdir(exist_ok=True)
    return {name: str(path) for name, path in found.items()}


def candid_code(arguments: Sequence[str]) -> int:
    """Run the entry point of the command line in this process and return the exit code."""
    from candid.cli import main

    sys.argv = ["candid", *arguments]
    try:
        main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 0


def redirect(out: Path, err: Path) -> None:
    """Send stdout and stderr to files, those of native libraries included."""
    for number, path in ((1, out), (2, err)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        os.dup2(descriptor, number)
        os.close(descriptor)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)


def limit_resources(file_limit: int | None = None) -> None:
    """Limit the memory of this process and the size of its files; write no core files."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    if file_limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails with EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))


def stop_at(stop: Stop, folder: Path) -> None:
    """Kill this process before the n-th file operation below ``folder``.

    Operations are those that Python reports to audit hooks (files opened for writing, renames,
    removals, new folders) and ``os.fsync``. A write by a native library is not one of them; kills
    at random times reach those.
    """
    root, count = str(folder.resolve()), 0
    log = None if stop.record is None else stop.record.open("a", buffering=1)

    def operation(name: str, path: Any) -> None:
        nonlocal count
        text = os.path.abspath(os.fsdecode(path)) if isinstance(path, str | bytes | Path) else ""
        if not text.startswith(root) or os.environ.get("RANK", "0") != "0":
            return
        count += 1
        if log is not None:
            log.write(f"{name} {text[len(root) + 1 :]}\n")
        if count == stop.number:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = given
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                operation(event, path)
        elif event in CHANGES:
            operation(event, given[0])

    fsync = os.fsync

    def counted_fsync(descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        operation("os.fsync", os.readlink(f"/proc/self/fd/{number}"))
        fsync(descriptor)

    os.fsync = counted_fsync
    sys.addaudithook(hook)


def processes_in(folder: Path) -> list[int]:
    """Return the processes, other than zombies, whose working folder is this one."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and os.readlink(entry / "cwd") == str(folder):
                found.append(int(entry.name))
    return sorted(found)


class _Rank:
    """A forked process of a launcher, with the methods of ``subprocess.Popen`` that torch calls."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str]) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:

            def child() -> int:
                os.setsid()
                os.environ.clear()
                os.environ.update(environment)
                _close_sockets()  # A killed launcher would seem to live on in its store.
                return candid_code(arguments)

            _in_child(child)

    def poll(self) -> int | None:
        """Return the exit code; None: it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code."""
        limit = time.monotonic() + (HANG if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > limit:
                raise subprocess.TimeoutExpired("candid", timeout or HANG)
            time.sleep(0.01)
        return code


def _close_sockets() -> None:
    """Close the sockets of the parent, as a new process does."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                os.close(int(name))


def fork_ranks() -> None:
    """Let launchers fork the processes of ``--processes N``: a new one would import torch again."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    def start(handler: Any, arguments: tuple[str, ...], environment: dict[str, str]) -> _Rank:
        python, option, module, *rest = arguments
        assert (python, option, module) == (sys.executable, "-m", "candid")
        return _Rank(rest, environment)

    SubprocessHandler._popen = start


def fork_lines(work: Callable[[Callable[[Any], None]], None]) -> tuple[int, int]:
    """Fork a child that runs ``work``; return its pid and a descriptor of its JSON lines."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)

        def send(value: Any) -> None:
            os.write(writer, json.dumps(value).encode() + b"\n")

        def child() -> int:
            os.setsid()
            work(send)
            return 0

        _in_child(child)
    os.close(writer)
    return pid, reader


def messages(pid: int, reader: int) -> Iterator[Any]:
    """Yield the JSON lines of a child, and its end where it is not a success."""
    buffer, is_hung = b"", False
    while True:
        if not select.select([reader], [], [], HANG)[0]:
            is_hung = True
            os.killpg(pid, signal.SIGKILL)
            break
        block = os.read(reader, 1 << 16)
        if not block:
            break
        *lines, buffer = (buffer + block).split(b"\n")
        for line in lines:
            yield json.loads(line)
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code or is_hung:
        yield {"died": code, "is_hung": is_hung}


def _in_child(work: Callable[[], int]) -> NoReturn:
    code = 70
    try:
        code = work()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:
        with contextlib.suppress(BaseException):
            import traceback

            traceback.print_exception(error)
            sys.stderr.flush()
    finally:
        os._exit(code)


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace") if path.exists() else ""
